/* The one function that extension modules written in Rust want from bcryptprimitives.dll, which Wine 8 does not have. */
#include <windows.h>
#include <ntsecapi.h>

__declspec(dllexport) BOOL WINAPI ProcessPrng(unsigned char *data, size_t length) {
    return RtlGenRandom(data, (ULONG)length);
}
