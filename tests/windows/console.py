r"""Run on the Windows side: starts `python -m hansa ...` and ends it as Windows would, when told so on standard input.

`tools/test-windows --python tests\windows\console.py run --source ...`, then one word per line: `break` and `interrupt`
are Ctrl-Break and Ctrl-C, `terminate` is TerminateProcess. Prints `ended CODE` at last. At the end of the input it is
terminated, so that nothing stays behind if the test dies.

Wine's consoles need a terminal, and its CRT knows no Ctrl-Break. So this does what Windows does to deliver them: it
starts a thread in the process: at the routine of kernelbase that calls the console handlers for Ctrl-C, at the CRT
function `raise`, which is what the console handler of the CRT does, for Ctrl-Break.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import threading
from ctypes import c_size_t, c_uint32, c_void_p

if sys.platform != "win32":
    sys.exit("this is for Windows")

CTRL_C_EVENT = 0
SIGBREAK = 21


def start_thread(process: subprocess.Popen[bytes], function: object, argument: int) -> None:
    """In that process. The DLLs of the system lie at the same address in every process."""
    create = ctypes.WinDLL("kernel32").CreateRemoteThread
    create.argtypes = (c_void_p, c_void_p, c_size_t, c_void_p, c_void_p, c_uint32, c_void_p)
    create.restype = c_void_p
    address = ctypes.cast(function, c_void_p)  # type: ignore[arg-type]
    if not create(int(process._handle), None, 0, address, argument, 0, None):
        raise ctypes.WinError()


def obey(process: subprocess.Popen[bytes]) -> None:
    for line in sys.stdin:
        match line.strip():
            case "break":
                start_thread(process, ctypes.CDLL("ucrtbase")["raise"], SIGBREAK)
            case "interrupt":
                start_thread(process, ctypes.WinDLL("kernelbase").CtrlRoutine, CTRL_C_EVENT)
            case "terminate":
                process.terminate()
    if process.poll() is None:
        process.terminate()


def main() -> None:
    command = [sys.executable, "-m", "hansa", *sys.argv[1:]]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=sys.stdout, stderr=sys.stdout)
    threading.Thread(target=obey, args=(process,), daemon=True).start()
    print(f"ended {process.wait()}", flush=True)
    # Not by way of the interpreter's end, where the thread may still sit in a read of standard input.
    os._exit(0)


main()
