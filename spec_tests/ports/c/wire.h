/* The messages of PROTOCOL.md. Requests are canonical, so that a text such as "x":{"dtype": can stand in one
   place alone, and what is wanted is searched for. In memory every element takes 8 bytes: a double or, of the
   type I64, an int64_t. The machine must be little-endian, as the wire is. */

#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_AXES = 8, MAX_TENSORS = 64, MAX_TAKEN = 512, MAX_HEADER = 16 << 20, MAX_REPLY_HEADER = 1 << 16 };
enum { F32, F64, BF16, I64, BOOL, TYPES };
static const char *const TYPE[] = {"F32", "F64", "BF16", "I64", "BOOL"};
static const int64_t WIDTH[] = {4, 8, 2, 8, 1}, LARGEST = INT64_C(1) << 60;

typedef struct { char name[64]; int type, axes; int64_t shape[MAX_AXES]; void *data; } Tensor;

static struct { char header[MAX_HEADER + 1], id[256], *body; int64_t bytes; } request;
static struct { char header[MAX_REPLY_HEADER]; size_t length; int count; Tensor tensor[MAX_TENSORS]; } reply;
static struct { void *room[MAX_TAKEN]; int count; } taken;
static jmp_buf next_request;

static int is(const char *text, const char *other) { return !strcmp(text, other); }
/* Sizes are kept up to 2^60, where their sums do not overflow; more than that is never in memory. */
static int64_t times(int64_t a, int64_t b) { return a && b > LARGEST / a ? LARGEST : a * b; }

static int64_t elements(const Tensor *t) {
    int64_t count = 1;
    for (int i = 0; i < t->axes; i++) count = times(count, t->shape[i]);
    return count;
}

/* Type and shape, such as F32 [16,8,3,3]. */
static const char *described(const Tensor *t) {
    static char text[256];
    int end = sprintf(text, "%s [", TYPE[t->type]);
    for (int i = 0; i < t->axes; i++) end += sprintf(text + end, "%s%" PRId64, i ? "," : "", t->shape[i]);
    return strcat(text, "]");
}

_Noreturn static void give_up(const char *why) {
    fprintf(stderr, "port: %s\n", why);
    exit(1);
}

static void put(const char *format, ...) {
    va_list list;
    va_start(list, format);
    size_t room = sizeof reply.header - reply.length;
    reply.length += (size_t)vsnprintf(reply.header + reply.length, room, format, list);
    va_end(list);
    if (reply.length >= sizeof reply.header) give_up("the header of a reply is too long");
}

static void begin_reply(const char *status) {
    reply.length = 0;
    reply.count = 0;
    put("{\"__metadata__\":{\"id\":\"%s\",\"status\":\"%s\"", request.id, status);
}
static void put_value(const char *key, const char *value) { put(",\"%s\":\"%s\"", key, value); }

static void send_reply(void) {
    int64_t end = 0;
    put("}");
    for (const Tensor *t = reply.tensor; t < reply.tensor + reply.count; t++) {
        put(",\"%s\":{\"dtype\":\"%s\",\"shape\":%s", t->name, TYPE[t->type], strchr(described(t), '['));
        put(",\"data_offsets\":[%" PRId64 ",", end);
        put("%" PRId64 "]}", end += elements(t) * WIDTH[t->type]);
    }
    put("}");
    fwrite(&(uint64_t){reply.length}, sizeof(uint64_t), 1, stdout);
    fwrite(reply.header, 1, reply.length, stdout);
    for (const Tensor *t = reply.tensor; t < reply.tensor + reply.count; t++)
        for (int64_t i = 0; i < elements(t); i++) {
            double *wide = (double *)t->data + i;
            float narrow = t->type == F32 ? (float)*wide : 0;
            fwrite(t->type == F32 ? (void *)&narrow : wide, (size_t)WIDTH[t->type], 1, stdout);
        }
    if (fflush(stdout)) give_up("nobody reads the replies");
}

/* Each of these ends a request. */
#define fail(code, ...) (begin_reply("error"), put_value("code", code), put(",\"message\":\""), \
    put(__VA_ARGS__), put("\""), send_reply(), longjmp(next_request, 1))
#define unsupported(what) (begin_reply("unsupported"), put_value("feature", what), send_reply(), \
    longjmp(next_request, 1))

/* Room for elements, all zeros, until the next request. */
static void *take(int64_t count) {
    void *room = taken.count < MAX_TAKEN ? calloc((size_t)count + 1, 8) : NULL;
    if (!room) fail("oom", "no memory for %" PRId64 " elements", count);
    return taken.room[taken.count++] = room;
}

/* Add to the reply a tensor of this name, type and shape; return its elements, all zeros. */
static void *result(const Tensor *like) {
    void *data = take(elements(like));
    reply.tensor[reply.count] = *like;
    return reply.tensor[reply.count++].data = data;
}

/* Where the header goes on behind "name": and `opening`, or NULL. */
static char *find(const char *name, const char *opening) {
    char text[128];
    int length = snprintf(text, sizeof text, "\"%s\":%s", name, opening);
    char *found = strstr(request.header, text);
    return found ? found + length : NULL;
}

static char *metadata(const char *key, const char *fallback) {
    const char *value = find(key, "\"");
    size_t length = value ? strcspn(value, "\"") : strlen(fallback);
    return memcpy(take((int64_t)length), value ? value : fallback, length);
}

/* Read integers between brackets, `room` of them at most, and move on: how many, or -1. */
static int integers(char **at, int64_t *values, int room) {
    int count = 0;
    if (*(*at)++ != '[') return -1;
    for (; **at != ']'; count++) {
        if (count == room || (count && *(*at)++ != ',') || **at < '0' || **at > '9') return -1;
        if (**at == '0' && strspn(*at, "0123456789") > 1) return -1;
        values[count] = strtoll(*at, at, 10);
        if (values[count] > LARGEST) fail("oom", "an integer is above 2^60");
    }
    ++*at;
    return count;
}

/* Read the next request; 0 at the end. Without its length there is no way on. */
static int read_request(void) {
    while (taken.count) free(taken.room[--taken.count]);
    uint64_t length = 0;
    if (!fread(&length, 1, sizeof length, stdin)) return 0;
    if (length > MAX_HEADER || fread(request.header, 1, length, stdin) < length)
        give_up("the header is cut off or too long");
    request.header[length] = 0;
    char *bytes = find("bytes", "\""), *id = find("id", "\"");
    request.bytes = bytes ? strtoll(bytes, NULL, 10) : -1;
    if (request.bytes < 0 || !id || sscanf(id, "%255[^\"]", request.id) < 1) give_up("no `bytes` or no `id`");
    size_t size = (size_t)request.bytes;
    request.body = realloc(request.body, size + 1);
    if (!request.body || fread(request.body, 1, size, stdin) < size) give_up("the body is cut off");
    return 1;
}

/* The tensor of the request called `name`; those of the types that are refused keep their bytes. */
static Tensor given(const char *name) {
    Tensor t = {.type = 0};
    int64_t span[2];
    char *at = find(name, "{\"dtype\":\"");
    while (at && t.type < TYPES && strncmp(at, TYPE[t.type], strlen(TYPE[t.type]))) t.type++;
    at = at ? strchr(at, '[') : NULL;
    at = at && (t.axes = integers(&at, t.shape, MAX_AXES)) >= 0 ? strchr(at, '[') : NULL;
    if (!at || t.type == TYPES || integers(&at, span, 2) != 2 || span[1] > request.bytes
        || span[1] - span[0] != times(elements(&t), WIDTH[t.type]))
        fail("bad_request", "%s is missing, or its type, shape and offsets do not agree", name);
    double *wide = t.data = take(elements(&t));
    if (t.type != F32) memcpy(wide, request.body + span[0], (size_t)(span[1] - span[0]));
    for (int64_t i = 0; t.type == F32 && i < elements(&t); i++) {
        float narrow;
        memcpy(&narrow, request.body + span[0] + 4 * i, 4);
        wide[i] = narrow;
    }
    return t;
}

/* The elements of a tensor of the request that must have the type and shape of `due`. */
static void *given_as(const char *name, const Tensor *due) {
    Tensor t = given(name);
    if (t.type != due->type || t.axes != due->axes || memcmp(t.shape, due->shape, 8 * (size_t)t.axes))
        fail("bad_request", "%s must be %s", name, described(due));
    return t.data;
}
