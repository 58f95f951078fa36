/* python.exe for the interpreter DLL that deployment wheels carry without one. PYTHON_DLL: its name, e.g. python311.dll */
#include <stdio.h>
#include <windows.h>

typedef int (*py_main)(int argc, wchar_t **argv);

int wmain(int argc, wchar_t **argv) {
    HMODULE python = LoadLibraryA(PYTHON_DLL);
    py_main run = python == NULL ? NULL : (py_main)(void *)GetProcAddress(python, "Py_Main");
    if (run == NULL) {
        fprintf(stderr, "cannot load %s: error %lu\n", PYTHON_DLL, GetLastError());
        return 1;
    }
    return run(argc, argv);
}
