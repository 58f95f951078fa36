/* The one export of vmcompute.dll that hansa uses (hcn.md 1.8); it has no error record. */
#include "wire.h"

#include <stddef.h>

EXPORT result WINAPI HNSCall(const wide *method, const wide *path, const wide *object, wide **response) {
    void *const arguments[] = {(void *)(uintptr_t)method, (void *)(uintptr_t)path, (void *)(uintptr_t)object};
    return hns_double_call("HNSCall", "sss", arguments, NULL, response, NULL);
}
