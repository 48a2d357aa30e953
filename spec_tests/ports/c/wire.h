/* The messages of PROTOCOL.md, for a port in C11: `read_request`, `metadata` and `read_tensors` on one side,
   `put_value`, `result` and `send_reply` on the other. Nothing in it knows the block.

   Memory is taken from one list, which `release` empties after each request. Whatever is wrong with a request
   ends in `fail`, which jumps to `failed`. The machine must be little-endian, as the wire is. */

#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define COUNT(array) ((int)(sizeof(array) / sizeof *(array)))
enum { MAX_AXES = 8, MAX_TENSORS = 64, MAX_HEADER = 16 << 20 };

/* ------------------------------------------------------------ errors and memory */

static jmp_buf failed;
static struct { const char *code; char message[1024]; } problem;

/* End the request with an error of PROTOCOL.md, or with "unsupported" and a feature. */
_Noreturn static void fail(const char *code, const char *format, ...) {
    va_list list;
    va_start(list, format);
    vsnprintf(problem.message, sizeof problem.message, format, list);
    va_end(list);
    problem.code = code;
    longjmp(failed, 1);
}

typedef union Chunk { union Chunk *next; max_align_t align; } Chunk;
static Chunk *chunks;

/* Zeroed memory until the end of the request, NULL if there is none. */
static void *try_take(uint64_t count, size_t size) {
    Chunk *chunk = count < (SIZE_MAX - sizeof *chunk) / size ? calloc(1, sizeof *chunk + (size_t)count * size) : NULL;
    if (!chunk) return NULL;
    chunk->next = chunks;
    return (chunks = chunk) + 1;
}

static void *take(int64_t count, size_t size) {
    void *memory = try_take((uint64_t)count, size);
    if (!memory) fail("oom", "no memory for %" PRId64 " elements", count);
    return memory;
}

static void release(void) {
    for (Chunk *next; chunks; chunks = next) {
        next = chunks->next;
        free(chunks);
    }
}

_Noreturn static void give_up(const char *why) {
    fprintf(stderr, "port: %s\n", why);
    exit(1);
}

/* ------------------------------------------------------------ messages */

enum { F32, F64, BF16, I64, BOOL };
static const char *const TYPES[] = {"F32", "F64", "BF16", "I64", "BOOL"};
static const int64_t WIDTH[] = {4, 8, 2, 8, 1};

typedef struct { char name[64]; int type, axes; int64_t shape[MAX_AXES]; void *data; } Tensor;

/* In the header of a request, a zero takes the place of the quote behind each string; `metadata` is its first key. */
static struct { char *metadata, *entries, *body; int64_t bytes; int pairs, count; Tensor tensor[MAX_TENSORS]; } request;
static struct { char *header; size_t length, room; int count; Tensor tensor[MAX_TENSORS]; } reply;

static int skip(char **at, const char *text) {
    size_t length = strlen(text);
    if (strncmp(*at, text, length)) return 0;
    *at += length;
    return 1;
}

static char *string(char **at) {
    char *start = *at + 1, *end = **at == '"' ? strchr(start, '"') : NULL;
    if (!end) return NULL;
    *end = 0;
    *at = end + 1;
    return start;
}

static int integer(char **at, int64_t *value) {
    int negative = skip(at, "-"), digits = 0;
    for (*value = 0; **at >= '0' && **at <= '9'; ++*at, digits++) {
        if (*value > (INT64_MAX - 9) / 10) return 0;
        *value = *value * 10 + (**at - '0');
    }
    if (negative) *value = -*value;
    return digits > 0;
}

/* Integers between brackets, `room` of them at most: how many, or -1. */
static int integers(char **at, int64_t *values, int room) {
    int count = 0;
    if (!skip(at, "[")) return -1;
    if (skip(at, "]")) return 0;
    do {
        if (count == room || !integer(at, &values[count++])) return -1;
    } while (skip(at, ","));
    return skip(at, "]") ? count : -1;
}

static char *metadata(const char *key) {
    char *at = request.metadata;
    for (int i = 0; i < request.pairs; i++) {
        char *value = at + strlen(at) + 3; /* behind the zero, a colon and a quote */
        if (!strcmp(at, key)) return value;
        at = value + strlen(value) + 3;
    }
    return NULL;
}

static int read_metadata(char *at) {
    request.pairs = 0;
    if (!skip(&at, "{\"__metadata__\":{")) return 0;
    request.metadata = at + 1;
    do {
        if (!string(&at) || !skip(&at, ":") || !string(&at)) return 0;
        request.pairs++;
    } while (skip(&at, ","));
    request.entries = at + 1;
    return *at == '}';
}

/* Read the next request up to its tensors; 0 at the end. Without its length there is no way on. */
static int read_request(void) {
    uint64_t length;
    size_t got = fread(&length, 1, sizeof length, stdin);
    if (!got) return 0;
    char *header = got == sizeof length && length <= MAX_HEADER ? try_take(length + 1, 1) : NULL;
    if (!header) give_up("the length of the header is wrong");
    if (fread(header, 1, length, stdin) != length || !read_metadata(header)) give_up("the metadata cannot be read");
    char *bytes = metadata("bytes");
    if (!bytes || !integer(&bytes, &request.bytes) || *bytes || request.bytes < 0) give_up("`bytes` is wrong");
    request.body = try_take((uint64_t)request.bytes, 1);
    int64_t got_bytes = request.body ? (int64_t)fread(request.body, 1, (size_t)request.bytes, stdin) : 0;
    while (!request.body && got_bytes < request.bytes && getchar() != EOF) got_bytes++;
    if (got_bytes < request.bytes) give_up("the input ends within a request");
    return 1;
}

static int64_t product(int axes, const int64_t *shape) {
    int64_t total = 1;
    for (int i = 0; i < axes; i++) {
        if (shape[i] > 0 && total > INT64_MAX / 16 / shape[i]) fail("oom", "a tensor of more than 2^59 elements");
        total *= shape[i];
    }
    return total;
}

static void read_tensors(void) {
    char *at = request.entries;
    if (!request.body) fail("oom", "no memory for %" PRId64 " bytes", request.bytes);
    for (request.count = 0; skip(&at, ","); request.count++) {
        Tensor *t = &request.tensor[request.count];
        int64_t span[2];
        char *name = string(&at), *type = name && skip(&at, ":{\"dtype\":") ? string(&at) : NULL;
        if (request.count == MAX_TENSORS || !type || strlen(name) >= sizeof t->name
            || !skip(&at, ",\"shape\":") || (t->axes = integers(&at, t->shape, MAX_AXES)) < 0
            || !skip(&at, ",\"data_offsets\":") || integers(&at, span, 2) != 2 || !skip(&at, "}"))
            fail("bad_request", "the header has something else than tensors, or too many");
        strcpy(t->name, name);
        for (t->type = 0; t->type < COUNT(TYPES) && strcmp(type, TYPES[t->type]);) t->type++;
        for (int i = 0; i < t->axes; i++)
            if (t->shape[i] < 0) fail("bad_request", "%s has a negative size", name);
        if (t->type == COUNT(TYPES) || span[0] < 0 || span[1] < span[0] || span[1] > request.bytes
            || span[1] - span[0] != product(t->axes, t->shape) * WIDTH[t->type])
            fail("bad_request", "type, shape and offsets of %s do not agree", name);
        t->data = request.body + span[0];
        if (span[0] % WIDTH[t->type])
            t->data = memcpy(take(span[1] - span[0], 1), t->data, (size_t)(span[1] - span[0]));
    }
    if (!skip(&at, "}")) fail("bad_request", "the header has something else than tensors");
}

/* Type and shape, such as F32 [16,8,3,3]. */
static const char *described(int type, int axes, const int64_t *shape) {
    static char text[256];
    int length = snprintf(text, sizeof text, "%s [", TYPES[type]);
    for (int i = 0; i < axes; i++)
        length += snprintf(text + length, sizeof text - (size_t)length, "%s%" PRId64, i ? "," : "", shape[i]);
    strcpy(text + length, "]");
    return text;
}

static const Tensor *given(const char *name) {
    for (const Tensor *t = request.tensor; t < request.tensor + request.count; t++)
        if (!strcmp(t->name, name)) return t;
    fail("bad_request", "the tensor %s is missing", name);
}

static void *given_as(const char *name, int type, int axes, const int64_t *shape) {
    const Tensor *t = given(name);
    if (t->type != type || t->axes != axes || memcmp(t->shape, shape, (size_t)axes * sizeof *shape))
        fail("bad_request", "%s must be %s", name, described(type, axes, shape));
    return t->data;
}

/* Append to the header of the reply, which is kept from one reply to the next. */
static void put(const char *format, ...) {
    va_list list, again;
    va_start(list, format);
    va_copy(again, list);
    size_t length = (size_t)vsnprintf(NULL, 0, format, list);
    if (reply.length + length >= reply.room) {
        reply.room = 2 * (reply.length + length) + 1;
        reply.header = realloc(reply.header, reply.room);
        if (!reply.header) give_up("no memory for the header of a reply");
    }
    vsnprintf(reply.header + reply.length, length + 1, format, again);
    reply.length += length;
    va_end(list);
    va_end(again);
}

/* A value of the metadata; what JSON would have to escape becomes a question mark. */
static void put_value(const char *key, const char *value) {
    put("%s\"%s\":\"%s", reply.length ? "," : "{\"__metadata__\":{", key, value);
    for (char *c = reply.header + reply.length - strlen(value); *c; c++)
        if (*c < ' ' || *c > '~' || *c == '"' || *c == '\\') *c = '?';
    put("\"");
}

/* A tensor of the reply, all zeros. */
static void *result(const char *role, const char *name, int type, int axes, const int64_t *shape) {
    Tensor *t = &reply.tensor[reply.count++];
    snprintf(t->name, sizeof t->name, "%s%.50s", role, name);
    t->type = type;
    t->axes = axes;
    memcpy(t->shape, shape, (size_t)axes * sizeof *shape);
    return t->data = take(product(axes, shape), (size_t)WIDTH[type]);
}

static void send_reply(void) {
    int64_t end = 0;
    put("}");
    for (int i = 0; i < reply.count; i++) {
        const Tensor *t = &reply.tensor[i];
        int64_t begin = end;
        end += product(t->axes, t->shape) * WIDTH[t->type];
        const char *shape = strchr(described(t->type, t->axes, t->shape), '[');
        put(",\"%s\":{\"dtype\":\"%s\",\"shape\":%s,\"data_offsets\":[%" PRId64 ",%" PRId64 "]}", t->name,
            TYPES[t->type], shape, begin, end);
    }
    put("}");
    uint64_t length = reply.length;
    fwrite(&length, sizeof length, 1, stdout);
    fwrite(reply.header, 1, reply.length, stdout);
    for (int i = 0; i < reply.count; i++)
        fwrite(reply.tensor[i].data, (size_t)WIDTH[reply.tensor[i].type],
               (size_t)product(reply.tensor[i].axes, reply.tensor[i].shape), stdout);
    if (fflush(stdout)) give_up("nobody reads the replies");
}
