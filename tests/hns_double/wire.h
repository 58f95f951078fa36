/* The emulator's socket protocol (src/hansa/hns/emulator/wire.py) for a library that exports the functions of
 * computenetwork.dll: texts, handles and counters are kept here, objects by the emulator at the other end. */
#ifndef WIRE_H
#define WIRE_H

#include <stdint.h>

#ifdef _WIN32
#include <winsock2.h>
#include <windows.h>
#define EXPORT __declspec(dllexport)
#else
#define EXPORT __attribute__((visibility("default")))
#define WINAPI /* one calling convention on x86-64 */
#endif

typedef uint16_t wide; /* a UTF-16LE code unit; wchar_t has 4 bytes outside Windows */

/* An HRESULT leaves the upper half of the result register undefined. The real DLLs leave what happens to be there; this
 * one leaves rubbish on purpose, so that a caller who reads 64 bits is found out. */
typedef uint64_t result;
#define RESULT(hresult) (UINT64_C(0x5A5A5A5A00000000) | (uint32_t)(hresult))

#define NOT_IMPLEMENTED 0x80004001u
#define RPC_SERVER_UNAVAILABLE 0x800706BAu
#define RPC_CALL_FAILED 0x800706BEu

/* One call. Letters of `inputs` name the arguments in front of the outs: h handle, g GUID, s text. An out pointer may be
 * NULL; where the answer has no such value, the caller's variable is left as it was. */
EXPORT result hns_double_call(const char *function, const char *inputs, void *const *arguments, void **handle, wide **out,
                              wide **record);

void *hns_double_alloc(uint64_t bytes);

enum hns_double_counter { CALLS, HANDLES_OPEN, HANDLES_MISUSED, TEXTS_ALLOCATED, TEXTS_LIVE, FREES_WRONG, CALLBACKS };
void hns_double_add(enum hns_double_counter counter, int64_t change);
#endif
