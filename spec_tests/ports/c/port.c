/* BlockBottleneck2d in C11: a port without a library, for float32 and float64. To build it:
       cc -O2 -std=c11 -Wall -Wextra -o port port.c -lm
   wire.h has the messages, arithmetic.h computes; here are the arguments, the layers and the answers. The
   numbers in parentheses are clauses of SPEC.md. */

#include <math.h>
#include "wire.h"

typedef struct { int64_t n, c, h, w; double *v, *d; } Map; /* values, and the gradient for them */

/* `kind` is c, n, a or u: convolution, norm, activation, up-sampling. What a layer does not have is NULL. */
enum { WEIGHT, BIAS, MEAN, VARIANCE, TRACKED, ENTRIES };
static const char *const ENTRY[] = {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"};
typedef struct {
    char kind;
    int64_t in, out, *kernel, *stride, *padding;
    Tensor *entry[ENTRIES];
    Map x, y;
} Layer;

/* The ten arguments, and what follows from them; `shortcut` is the first layer of the projection. */
static struct {
    int64_t in[2], out[2], kernel[2], stride[2], padding[2], size[2];
    const char *normalizer, *activator;
    int new, up, type, training, layers, shortcut, entries;
    Layer layer[16];
    Tensor state[MAX_TENSORS];
} block;

#include "arithmetic.h"

/* An integer of at least `low`, or where `most` is 2, a pair of them. */
static void numbers(const char *key, const char *fallback, int most, int low, int64_t *pair) {
    char *text = metadata(key, fallback), twice[64], *at = *text == '[' && most == 2 ? text : twice;
    snprintf(twice, sizeof twice, "[%.25s,%.25s]", text, text);
    if (integers(&at, pair, 2) != 2 || *at || pair[0] < low || pair[1] < low)
        fail("invalid_input", "`%s` (=%.500s) must be %s of at least %d", key + 4, text,
             most == 2 ? "an integer or a pair of integers" : "an integer", low);
}

/* One of the names in a list such as "|new|old|". */
static const char *choice(const char *key, const char *fallback, const char *allowed) {
    char *text = metadata(key, fallback), between[16];
    snprintf(between, sizeof between, "|%.10s|", text);
    if (!strstr(allowed, between) || strchr(text, '|'))
        fail("invalid_input", "`%s` (=%.500s) must be one of %s", key + 4, text, allowed);
    return text;
}

static void add(const char *name, int64_t planes, int64_t *kernel, int64_t *stride, int64_t *pad, int up) {
    int shortcut = is(name, "in_node"), norm = !is(block.normalizer, "null"), i = 0;
    int64_t width = block.in[0];
    for (const char *kind = norm && block.new && !shortcut ? "nauc" : "ucna"; *kind; kind++) {
        int conv = *kind == 'c', act = *kind == 'a', batch = *kind == 'n' && is(block.normalizer, "batch");
        int affine = *kind == 'n' && !is(block.normalizer, "inst"), sloped = is(block.activator, "prelu");
        if (act ? shortcut || is(block.activator, "null") : *kind == 'u' ? !up : !norm && !conv) continue;
        Layer *l = &block.layer[block.layers++];
        *l = (Layer){*kind, width, conv ? planes : width, kernel, stride, pad, {0}, {0}, {0}};
        width = l->out;
        int has[] = {conv || affine || (act && sloped), affine || (conv && !norm), batch, batch, batch};
        for (int e = 0; e < ENTRIES; e++) {
            if (!has[e]) continue;
            int axes = e == TRACKED ? 0 : conv && e == WEIGHT ? 4 : 1;
            Tensor *t = l->entry[e] = &block.state[block.entries++];
            *t = (Tensor){"", axes ? block.type : I64, axes, {l->out, l->in, kernel[0], kernel[1]}, NULL};
            snprintf(t->name, sizeof t->name, "%c.%s.%d.%s", e < MEAN ? 'p' : 'b', name, i, ENTRY[e]);
        }
        i++;
    }
}

/* Fill in `block` from the request: the arguments (chapter 1) and the layers (chapter 2). */
static void read_block(int type) {
    static int64_t one[] = {1, 1}, zero[] = {0, 0};
    memset(&block, 0, sizeof block);
    block.type = type;
    numbers("cfg.in_planes", "", 1, 1, block.in);
    numbers("cfg.out_planes", "", 1, 1, block.out);
    numbers("cfg.kernel_size", "3", 2, 1, block.kernel);
    numbers("cfg.stride", "1", 2, 1, block.stride);
    numbers("cfg.padding", "1", 2, 0, block.padding);
    if (!is(metadata("cfg.output_size", "null"), "null")) numbers("cfg.output_size", "", 2, 1, block.size);
    block.normalizer = choice("cfg.normalizer", "pinst", "|batch|inst|pinst|null|");
    block.activator = choice("cfg.activator", "prelu", "|prelu|relu|null|");
    block.new = is(choice("cfg.layer_order", "new", "|new|old|"), "new");
    block.up = is(choice("cfg.scaler", "down", "|down|up|"), "up");
    int rescales = block.stride[0] > 1 || block.stride[1] > 1 || (block.up && block.size[0]);
    int64_t *stride = block.up ? one : block.stride;
    add("conv1", block.in[0], one, one, zero, 0);
    add("conv2", block.in[0], block.kernel, stride, block.padding, block.up && rescales);
    add("conv3", block.out[0], one, one, zero, 0);
    block.shortcut = block.layers;
    if (!rescales && block.in[0] == block.out[0]) return;
    add("in_node", block.out[0], one, stride, zero, block.up);
}

/* The sizes behind each layer, and the output for x, unless chapter 3 refuses x. */
static Tensor output_for(const Tensor *x) {
    if (x->axes != 4 || x->shape[0] < 1 || x->shape[1] != block.in[0] || x->shape[2] < 1 || x->shape[3] < 1)
        fail("invalid_input", "x is %s; it must be (N, in_planes, H, W), not empty", described(x));
    int64_t sizes[2][2] = {{x->shape[2], x->shape[3]}, {x->shape[2], x->shape[3]}}, single = 0;
    for (int i = 0; i < block.layers; i++) {
        Layer *l = &block.layer[i];
        int64_t *size = sizes[i >= block.shortcut], *up = block.size[0] ? block.size : NULL;
        for (int axis = 0; axis < 2; axis++) {
            int64_t room = size[axis] + 2 * l->padding[axis] - l->kernel[axis], s = l->stride[axis];
            if (l->kind == 'c') size[axis] = 1 + (room < 0 ? -1 - (-1 - room) / s : room / s);
            if (l->kind == 'u') size[axis] = up ? up[axis] : times(size[axis], block.stride[axis]);
            if (size[axis] >= LARGEST) fail("oom", "a size behind a layer is above 2^60");
        }
        l->y = (Map){.h = size[0], .w = size[1]};
        int64_t count = times(l->entry[TRACKED] ? x->shape[0] : 1, times(size[0], size[1]));
        if (l->kind == 'n' && count == 1 && (block.training || !l->entry[TRACKED])) single = 1;
    }
    if (memcmp(sizes[0], sizes[1], sizeof *sizes))
        fail("invalid_input", "x is %s; kernel_size, padding, stride, output_size, scaler make it [%" PRId64
             ",%" PRId64 "], but on the shortcut to [%" PRId64 ",%" PRId64 "]",
             described(x), sizes[0][0], sizes[0][1], sizes[1][0], sizes[1][1]);
    if (single) fail("invalid_input", "a norm meets a single element; with one, there is no variance");
    return (Tensor){"y", block.type, 4, {x->shape[0], block.out[0], sizes[0][0], sizes[0][1]}, NULL};
}

static void hello(void) {
    static const char *const SAID[] = {
        "protocol", "1", "name", "C port", "version", "2", "language", "C11", "dtypes", "F32,F64", "ops",
        "describe,forward,backward,init", "modes", "train,eval", "accumulation", "float32", "determinism",
        "bitwise"};
    for (size_t i = 0; i < sizeof SAID / sizeof *SAID; i += 2) put_value(SAID[i], SAID[i + 1]);
}

static int offered_type(void) {
    const char *name = metadata("dtype", "");
    if (is(name, "BF16")) unsupported(name);
    if (!is(name, "F32") && !is(name, "F64")) fail("bad_request", "dtype must be F32, F64 or BF16");
    return is(name, "F32") ? F32 : F64;
}

static void describe(void) {
    read_block(offered_type());
    for (const Tensor *t = block.state; t < block.state + block.entries; t++)
        put(",\"%s%s\":\"%s\"", t->name[0] == 'p' ? "param" : "buffer", t->name + 1, described(t));
    if (!find("shape", "\"")) return;
    char *text = metadata("shape", "");
    Tensor x = {.type = block.type};
    x.axes = integers(&text, x.shape, MAX_AXES);
    if (x.axes < 0 || *text) fail("bad_request", "shape must be such as [2,16,4,255]");
    x = output_for(&x); /* no mode is given: only what evaluation refuses too is refused */
    put_value("out", described(&x));
}

/* 7.4 to 7.7; the numbers are those of a linear congruential generator. */
static void init(void) {
    read_block(offered_type());
    char *text = metadata("seed", ""), *end = text + strspn(text, "0123456789");
    uint64_t seed = strtoull(text, NULL, 10);
    if (end == text || *end || (*text == '0' && text[1]) || seed > INT64_MAX) fail("bad_request", "bad seed");
    for (const Layer *l = block.layer; l < block.layer + block.layers; l++) {
        double limit = l->kind == 'c' ? 1 / sqrt((double)times(l->in, times(l->kernel[0], l->kernel[1]))) : 0;
        double start[] = {l->kind == 'a' ? 0.25 : l->kind == 'n', 0, 0, 1, 0};
        for (int e = 0; e < ENTRIES; e++) {
            double *v = l->entry[e] ? result(l->entry[e]) : NULL;
            for (int64_t i = 0; v && i < elements(l->entry[e]); i++) {
                seed = seed * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
                v[i] = start[e] + limit * ((double)(seed >> 11) * 0x1p-52 - 1);
            }
        }
    }
}

/* `forward`, or with dy `backward`. */
static void call(int with_dy) {
    const char *mode = metadata("mode", "");
    if (!is(mode, "train") && !is(mode, "eval")) fail("bad_request", "mode must be train or eval");
    Tensor x = given("x");
    read_block(x.type);
    block.training = is(mode, "train");
    if (x.type == I64 || x.type == BOOL) fail("invalid_input", "x is of no floating-point type");
    Tensor y = output_for(&x);
    if (x.type == BF16) unsupported("BF16");
    for (Tensor *t = block.state; t < block.state + block.entries; t++) t->data = given_as(t->name, t);
    const double *dy = with_dy ? given_as("dy", &y) : NULL;
    int surplus = -1 - with_dy - block.entries;
    for (char *at = request.header; (at = strstr(at, "\"data_offsets\":[")); at++) surplus++;
    if (surplus) fail("bad_request", "there are tensors too many");
    Layer *shortcut = block.layer + block.shortcut, *end = block.layer + block.layers;
    Map from = {x.shape[0], x.shape[1], x.shape[2], x.shape[3], x.data, take(elements(&x))};
    for (Layer *l = block.layer; l < end; l++) {
        int64_t count = times(from.n, times(l->out, times(l->y.h, l->y.w)));
        l->x = l == block.layer || l == shortcut ? from : l[-1].y;
        l->y = (Map){from.n, l->out, l->y.h, l->y.w, take(count), take(count)};
        run_layer(l, 0);
    }
    Map left = shortcut[-1].y, right = shortcut < end ? end[-1].y : from;
    for (int64_t i = 0; i < elements(&y); i++) left.v[i] += right.v[i];
    for (int64_t i = 0; dy && i < elements(&y); i++) left.d[i] = right.d[i] = dy[i];
    if (dy) reply.count = 0; /* new buffers are no part of this reply */
    for (Layer *l = end; dy && l-- > block.layer;) run_layer(l, 1);
    strcpy(x.name, "dx");
    memcpy(result(dy ? &x : &y), dy ? from.d : left.v, 8 * (size_t)elements(dy ? &x : &y));
}

int main(void) {
    setjmp(next_request); /* where a request that failed ends */
    while (read_request()) {
        begin_reply("ok");
        const char *op = metadata("op", "");
        if (is(op, "hello")) hello();
        else if (is(op, "describe")) describe();
        else if (is(op, "init")) init();
        else if (is(op, "forward") || is(op, "backward")) call(is(op, "backward"));
        else if (is(op, "stop")) break;
        else unsupported(op);
        send_reply();
    }
}
