/* A port of BlockBottleneck2d: what is not written yet says so. It is C++ too.

       cc -O2 -std=c11 -Wall -Wextra -o port port.c -lm
       mdnc-spec run --subject cmd:./port --until-first-failure

   Requests are canonical (PROTOCOL.md), so that `strstr` finds everything. */

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static char *header;      /* of the request, ending in a zero */
static unsigned char *body; /* its tensors; "data_offsets" count from here */

/* Where the input ends inside a request, nothing can be answered. */
static void read_all(void *room, size_t length) {
    if (!room || fread(room, 1, length, stdin) != length) exit(1);
}

/* Read the next request; 0 at the end of standard input. The machine must be little-endian, as the wire is. */
static int read_request(void) {
    uint64_t length;
    int first = getchar();
    if (first == EOF) return 0;
    ungetc(first, stdin);
    read_all(&length, sizeof length);
    header = (char *)realloc(header, length + 1);
    read_all(header, length);
    header[length] = 0;
    const char *bytes = strstr(header, "\"bytes\":\"");
    size_t size = bytes ? strtoull(bytes + 9, NULL, 10) : 0;
    body = (unsigned char *)realloc(body, size + 1);
    read_all(body, size);
    return 1;
}

/* A copy of the text of `key` in the metadata, such as "op" or "cfg.in_planes"; empty if it is not there. */
static const char *metadata(const char *key, char *text, size_t room) {
    char quoted[64];
    snprintf(quoted, sizeof quoted, "\"%s\":\"", key);
    const char *at = strstr(header, quoted);
    size_t length = 0;
    for (at = at ? at + strlen(quoted) : "\""; at[length] != '"' && length + 1 < room; length++) text[length] = at[length];
    text[length] = 0;
    return text;
}

/* Answer with metadata alone; `more` is JSON such as "\"status\":\"ok\"". */
static void reply(const char *more) {
    char id[32], text[4096];
    int length = snprintf(text, sizeof text, "{\"__metadata__\":{\"id\":\"%s\",%s}}", metadata("id", id, sizeof id), more);
    uint64_t prefix = (uint64_t)length;
    fwrite(&prefix, sizeof prefix, 1, stdout);
    fwrite(text, 1, (size_t)length, stdout);
    fflush(stdout);
}

int main(void) {
    char op[32], text[256];
    while (read_request() && strcmp(metadata("op", op, sizeof op), "stop")) {
        if (!strcmp(op, "hello")) {
            reply("\"status\":\"ok\",\"protocol\":\"1\",\"name\":\"my port\",\"version\":\"0\",\"language\":\"C\","
                  "\"ops\":\"describe,forward\",\"modes\":\"train,eval\",\"dtypes\":\"F32\","
                  "\"accumulation\":\"float32\",\"determinism\":\"bitwise\"");
        } else if (!strcmp(op, "describe") || !strcmp(op, "forward")) {
            snprintf(text, sizeof text, "\"status\":\"error\",\"code\":\"internal\",\"message\":\"%s is not written yet\"", op);
            reply(text);
        } else {
            snprintf(text, sizeof text, "\"status\":\"unsupported\",\"feature\":\"%s\"", op);
            reply(text);
        }
    }
    return 0;
}
