#include "wire.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef _WIN32
#include <objbase.h>
#include <ws2tcpip.h>
typedef SOCKET socket_t;
#define NO_SOCKET INVALID_SOCKET
static SRWLOCK mutex = SRWLOCK_INIT;
static void lock(void) { AcquireSRWLockExclusive(&mutex); }
static void unlock(void) { ReleaseSRWLockExclusive(&mutex); }
#else
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <arpa/inet.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>
typedef int socket_t;
#define NO_SOCKET (-1)
#define closesocket close
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static void lock(void) { pthread_mutex_lock(&mutex); }
static void unlock(void) { pthread_mutex_unlock(&mutex); }
#endif

/* ---- counters ---- */

static int64_t counters[CALLBACKS + 1];

void hns_double_add(enum hns_double_counter counter, int64_t change) {
    __atomic_add_fetch(&counters[counter], change, __ATOMIC_SEQ_CST);
}

EXPORT int64_t hns_double_count(int32_t counter) {
#ifdef _WIN32
    if (counter == TEXTS_LIVE || counter == FREES_WRONG)
        return -1; /* callers free with ole32's CoTaskMemFree, which nobody counts */
#endif
    return __atomic_load_n(&counters[counter], __ATOMIC_SEQ_CST);
}

/* ---- memory: what CoTaskMemAlloc gives out and CoTaskMemFree takes back ---- */

#ifdef _WIN32
void *hns_double_alloc(uint64_t bytes) {
    hns_double_add(TEXTS_ALLOCATED, 1);
    return CoTaskMemAlloc(bytes);
}
#else
/* Every text ends exactly where an unmapped page begins, and is unmapped when freed: reading one byte too far, or after
 * the free, is a segmentation fault here and not luck. */
struct block { char *text, *map; size_t map_bytes; struct block *next; };
static struct block *blocks;

void *hns_double_alloc(uint64_t bytes) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE), body = (bytes + page - 1) / page * page;
    struct block *block = malloc(sizeof *block);
    block->map_bytes = body + page;
    block->map = mmap(NULL, block->map_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (block->map == MAP_FAILED || mprotect(block->map + body, page, PROT_NONE) != 0)
        abort();
    block->text = block->map + body - bytes;
    lock();
    block->next = blocks;
    blocks = block;
    unlock();
    hns_double_add(TEXTS_ALLOCATED, 1);
    hns_double_add(TEXTS_LIVE, 1);
    return block->text;
}

EXPORT void CoTaskMemFree(void *text) {
    if (text == NULL)
        return;
    lock();
    struct block **link = &blocks;
    while (*link != NULL && (*link)->text != text)
        link = &(*link)->next;
    struct block *block = *link;
    if (block != NULL)
        *link = block->next;
    unlock();
    if (block == NULL) {
        hns_double_add(FREES_WRONG, 1);
        return;
    }
    munmap(block->map, block->map_bytes);
    free(block);
    hns_double_add(TEXTS_LIVE, -1);
}
#endif

/* ---- handles ---- */

/* A handle is an address above 4 GB, so that a caller who keeps 32 bits of it is found out. Slots are not used twice. */
#define HANDLE_BASE UINT64_C(0x00007A0000000000)
#define HANDLE_STEP 16
static struct slot { uint64_t remote; int open; } *slots;
static uint64_t slot_count;

static void *new_handle(uint64_t remote) {
    if (slot_count % 1024 == 0)
        slots = realloc(slots, (slot_count + 1024) * sizeof *slots);
    slots[slot_count] = (struct slot){remote, 1};
    hns_double_add(HANDLES_OPEN, 1);
    return (void *)(uintptr_t)(HANDLE_BASE + slot_count++ * HANDLE_STEP);
}

static struct slot *slot_of(void *handle) {
    uint64_t offset = (uint64_t)(uintptr_t)handle - HANDLE_BASE;
    if (offset % HANDLE_STEP != 0 || offset / HANDLE_STEP >= slot_count)
        return NULL;
    return &slots[offset / HANDLE_STEP];
}

/* The emulator's number of a handle; what was never given out is passed as 0, which no object has. */
static uint64_t remote_of(void *handle, int closing) {
    struct slot *slot = slot_of(handle);
    if (slot == NULL || !slot->open)
        hns_double_add(HANDLES_MISUSED, 1);
    else if (closing) {
        slot->open = 0;
        hns_double_add(HANDLES_OPEN, -1);
    }
    return slot == NULL ? 0 : slot->remote;
}

/* ---- lines ---- */

struct buffer { char *data; size_t length, room; };
static struct buffer line;

static void put(const char *data, size_t length) {
    if (line.length + length > line.room) {
        line.room = (line.length + length) * 2;
        line.data = realloc(line.data, line.room);
    }
    memcpy(line.data + line.length, data, length);
    line.length += length;
}

static void put_text(const wide *text) {
    char escape[8];
    put("\"", 1);
    for (; *text != 0; text++) {
        char plain = (char)*text;
        if (*text >= 0x20 && *text < 0x7f && *text != '"' && *text != '\\')
            put(&plain, 1);
        else
            put(escape, (size_t)snprintf(escape, sizeof escape, "\\u%04x", *text));
    }
    put("\"", 1);
}

static void put_guid(const uint8_t *guid) { /* the first three fields are little-endian */
    char text[48];
    int length = snprintf(text, sizeof text, "\"%02X%02X%02X%02X-%02X%02X-%02X%02X-%02X%02X-%02X%02X%02X%02X%02X%02X\"",
                          guid[3], guid[2], guid[1], guid[0], guid[5], guid[4], guid[7], guid[6], guid[8], guid[9],
                          guid[10], guid[11], guid[12], guid[13], guid[14], guid[15]);
    put(text, (size_t)length);
}

/* [hresult,handle,out,record]: `at` walks over the values; anything else than they makes it NULL. */
static const char *read_number(const char *at, uint64_t *number, int *given) {
    char *end;
    *given = 0;
    if (at == NULL || strncmp(at, "null", 4) == 0)
        return at == NULL ? NULL : at + 4;
    *number = strtoull(at, &end, 10);
    *given = 1;
    return end == at ? NULL : end;
}

static const char *read_text(const char *at, wide **text) {
    if (at == NULL || strncmp(at, "null", 4) == 0)
        return at == NULL ? NULL : at + 4;
    if (*at++ != '"')
        return NULL;
    const char *end = at;
    while (*end != '"') {
        if (*end == 0)
            return NULL;
        end += *end == '\\' ? 2 : 1;
    }
    wide *units = malloc((size_t)(end - at + 1) * sizeof *units);
    size_t count = 0;
    while (at < end) {
        if (*at != '\\') {
            units[count++] = (uint8_t)*at++;
            continue;
        }
        unsigned unit = 0;
        switch (at[1]) {
        case 'u': sscanf(at + 2, "%4x", &unit); at += 4; break;
        case 'n': unit = '\n'; break;
        case 'r': unit = '\r'; break;
        case 't': unit = '\t'; break;
        case 'b': unit = '\b'; break;
        case 'f': unit = '\f'; break;
        default: unit = (uint8_t)at[1];
        }
        at += 2;
        units[count++] = (wide)unit;
    }
    units[count++] = 0;
    *text = units;
    return end + 1;
}

static const char *skip(const char *at, char expected) { return at != NULL && *at == expected ? at + 1 : NULL; }

static void give_away(wide *units, wide **to) { /* malloc'd, may be NULL → what the caller frees with CoTaskMemFree */
    uint64_t count = 0;
    if (units == NULL)
        return;
    while (units[count++] != 0)
        ;
    if (to != NULL) {
        *to = hns_double_alloc(count * sizeof **to);
        memcpy(*to, units, count * sizeof **to);
    }
    free(units);
}

/* ---- connection ---- */

static char server[64];
static socket_t connection = NO_SOCKET;

static void hang_up(void) {
    if (connection != NO_SOCKET)
        closesocket(connection);
    connection = NO_SOCKET;
}

/* The emulator's address, 127.0.0.1:PORT; also read from HANSA_HNS_ADDRESS. Ends the connection there is. */
EXPORT void hns_double_connect(const char *address) {
    lock();
    hang_up();
    snprintf(server, sizeof server, "%s", address);
    unlock();
}

static int dial(void) {
    if (connection != NO_SOCKET)
        return 1;
    if (server[0] == 0) {
#ifdef _WIN32
        GetEnvironmentVariableA("HANSA_HNS_ADDRESS", server, sizeof server);
#else
        const char *address = getenv("HANSA_HNS_ADDRESS");
        snprintf(server, sizeof server, "%s", address == NULL ? "" : address);
#endif
    }
    const char *colon = strrchr(server, ':');
    if (colon == NULL || strncmp(server, "127.0.0.1:", 10) != 0)
        return 0;
#ifdef _WIN32
    WSADATA data;
    WSAStartup(MAKEWORD(2, 2), &data);
#endif
    struct sockaddr_in address = {0};
    address.sin_family = AF_INET;
    address.sin_port = htons((uint16_t)atoi(colon + 1));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int yes = 1;
    connection = socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(connection, IPPROTO_TCP, TCP_NODELAY, (const char *)&yes, sizeof yes);
    if (connect(connection, (struct sockaddr *)&address, sizeof address) != 0)
        hang_up();
    return connection != NO_SOCKET;
}

static int send_line(void) {
    for (size_t sent = 0; sent < line.length;) {
        int count = (int)send(connection, line.data + sent, (int)(line.length - sent), 0);
        if (count <= 0)
            return 0;
        sent += (size_t)count;
    }
    return 1;
}

static int receive_line(void) {
    char chunk[65536];
    line.length = 0;
    do {
        int count = (int)recv(connection, chunk, sizeof chunk, 0);
        if (count <= 0)
            return 0;
        put(chunk, (size_t)count);
    } while (line.data[line.length - 1] != '\n');
    put("", 1); /* NUL */
    return 1;
}

static uint32_t exchange(uint64_t *remote, int *has_handle, wide **out, wide **record) {
    int has_hresult;
    uint64_t hresult = 0;
    if (!dial())
        return RPC_SERVER_UNAVAILABLE;
    if (!send_line() || !receive_line()) {
        hang_up();
        return RPC_CALL_FAILED;
    }
    const char *at = skip(line.data, '[');
    at = skip(read_number(at, &hresult, &has_hresult), ',');
    at = skip(read_number(at, remote, has_handle), ',');
    at = skip(read_text(at, out), ',');
    at = skip(read_text(at, record), ']');
    if (at == NULL || !has_hresult) {
        hang_up();
        return RPC_CALL_FAILED;
    }
    return (uint32_t)hresult;
}

EXPORT result hns_double_call(const char *function, const char *inputs, void *const *arguments, void **handle, wide **out,
                              wide **record) {
    wide *out_units = NULL, *record_units = NULL;
    uint64_t remote = 0;
    int has_handle = 0, closing = strncmp(function, "HcnClose", 8) == 0;
    char number[24];
    hns_double_add(CALLS, 1);
    lock();
    line.length = 0;
    put("[\"", 2);
    put(function, strlen(function));
    put("\"", 1);
    for (; *inputs != 0; inputs++, arguments++) {
        put(",", 1);
        switch (*inputs) {
        case 'h':
            put(number, (size_t)snprintf(number, sizeof number, "%llu",
                                         (unsigned long long)remote_of(*arguments, closing)));
            break;
        case 'g': put_guid(*arguments); break;
        default: put_text(*arguments);
        }
    }
    put("]\n", 2);
    uint32_t hresult = exchange(&remote, &has_handle, &out_units, &record_units);
    if (has_handle && handle != NULL)
        *handle = new_handle(remote);
    unlock();
    give_away(out_units, out);
    give_away(record_units, record);
    return RESULT(hresult);
}
