/* The exports of computenetwork.dll (hcn.md 1.2), as a library of the same shape over the emulator's socket. */
#include "wire.h"

#include <stddef.h>
#include <stdlib.h>
#ifndef _WIN32
#include <pthread.h>
#endif

#define CALL(inputs, handle, out, record, ...) \
    hns_double_call(__func__, inputs, (void *const[]){__VA_ARGS__}, handle, out, record)
#define ARG(value) (void *)(uintptr_t)(value)

#define KIND(X) \
    EXPORT result WINAPI HcnEnumerate##X##s(const wide *query, wide **out, wide **record) { \
        return CALL("s", NULL, out, record, ARG(query)); \
    } \
    EXPORT result WINAPI HcnOpen##X(const uint8_t *id, void **handle, wide **record) { \
        return CALL("g", handle, NULL, record, ARG(id)); \
    } \
    EXPORT result WINAPI HcnModify##X(void *handle, const wide *settings, wide **record) { \
        return CALL("hs", NULL, NULL, record, handle, ARG(settings)); \
    } \
    EXPORT result WINAPI HcnQuery##X##Properties(void *handle, const wide *query, wide **out, wide **record) { \
        return CALL("hs", NULL, out, record, handle, ARG(query)); \
    } \
    EXPORT result WINAPI HcnDelete##X(const uint8_t *id, wide **record) { \
        return CALL("g", NULL, NULL, record, ARG(id)); \
    } \
    EXPORT result WINAPI HcnClose##X(void *handle) { return CALL("h", NULL, NULL, NULL, handle); }

#define CREATE(X) \
    EXPORT result WINAPI HcnCreate##X(const uint8_t *id, const wide *settings, void **handle, wide **record) { \
        return CALL("gs", handle, NULL, record, ARG(id), ARG(settings)); \
    }

KIND(Network)
KIND(Endpoint)
KIND(Namespace)
#ifndef WITHOUT_LOAD_BALANCERS
KIND(LoadBalancer)
CREATE(LoadBalancer)
#endif
KIND(SdnRoute)
KIND(GuestNetworkService)
CREATE(Network)
CREATE(Namespace)
CREATE(SdnRoute)
CREATE(GuestNetworkService)

EXPORT result WINAPI HcnCreateEndpoint(void *network, const uint8_t *id, const wide *settings, void **handle,
                                       wide **record) {
    return CALL("hgs", handle, NULL, record, network, ARG(id), ARG(settings));
}

EXPORT result WINAPI HcnQueryEndpointStats(void *endpoint, const wide *query, wide **out, wide **record) {
    return CALL("hs", NULL, out, record, endpoint, ARG(query));
}

EXPORT result WINAPI HcnQueryEndpointAddresses(void *endpoint, const wide *query, wide **out, wide **record) {
    return CALL("hs", NULL, out, record, endpoint, ARG(query));
}

/* Port reservations belong to guest network services, which nobody emulates; QueryFeatures has no public signature. */
#define REFUSED(name) \
    EXPORT result WINAPI name(void) { return RESULT(NOT_IMPLEMENTED); }

REFUSED(HcnReserveGuestNetworkServicePort)
REFUSED(HcnReserveGuestNetworkServicePortRange)
REFUSED(HcnReleaseGuestNetworkServicePortReservationHandle)
REFUSED(HcnEnumerateGuestNetworkPortReservations)
REFUSED(HcnQueryFeatures)
EXPORT void WINAPI HcnFreeGuestNetworkPortReservations(void *entries) { (void)entries; }

/* ---- notifications: registered here, sent by the test through hns_double_notify ---- */

typedef void(WINAPI *callback)(uint32_t type, void *context, int32_t status, const wide *data);
#define MAX_CALLBACKS 64
static struct { callback function; void *context; } registered[MAX_CALLBACKS];
static uint32_t refuse_with; /* HRESULT for the next (un)registrations, 0 = none */

EXPORT void hns_double_refuse_callbacks(uint32_t hresult) { refuse_with = hresult; }

EXPORT result WINAPI HcnRegisterServiceCallback(callback function, void *context, void **handle) {
    if (refuse_with != 0)
        return RESULT(refuse_with);
    for (int index = 0; index < MAX_CALLBACKS; index++)
        if (registered[index].function == NULL) {
            registered[index].function = function;
            registered[index].context = context;
            *handle = &registered[index];
            hns_double_add(CALLBACKS, 1);
            return RESULT(0);
        }
    return RESULT(NOT_IMPLEMENTED);
}

EXPORT result WINAPI HcnUnregisterServiceCallback(void *handle) {
    if (refuse_with != 0)
        return RESULT(refuse_with);
    ((callback *)handle)[0] = NULL;
    hns_double_add(CALLBACKS, -1);
    return RESULT(0);
}

struct notification { uint32_t type; int32_t status; const wide *data; };

#ifdef _WIN32
static DWORD WINAPI notify_all(void *argument) {
#else
static void *notify_all(void *argument) {
#endif
    const struct notification *it = argument;
    for (int index = 0; index < MAX_CALLBACKS; index++)
        if (registered[index].function != NULL)
            registered[index].function(it->type, registered[index].context, it->status, it->data);
    return 0;
}

/* Call all registered callbacks from a thread that the program did not make, as HNS does, and wait for them. */
EXPORT void hns_double_notify(uint32_t type, int32_t status, const wide *data) {
    struct notification notification = {type, status, data};
#ifdef _WIN32
    HANDLE thread = CreateThread(NULL, 0, notify_all, &notification, 0, NULL);
    WaitForSingleObject(thread, INFINITE);
    CloseHandle(thread);
#else
    pthread_t thread;
    if (pthread_create(&thread, NULL, notify_all, &notification) != 0)
        abort();
    pthread_join(thread, NULL);
#endif
}
