/* BlockBottleneck2d in C11: a port without a library, for float32 and float64.

       cc -O2 -std=c11 -Wall -Wextra -o port port.c -lm
       mdnc-spec run --subject cmd:./port

   This file holds the arguments, the layers and their sizes, and answers requests. wire.h reads and writes the
   messages of PROTOCOL.md, arithmetic.h computes. The numbers in parentheses are clauses of SPEC.md. */

#include "wire.h"

#include <math.h>

/* ------------------------------------------------------------ arguments, layers, shapes */

enum { BATCH, INST, PINST, NONE };
enum { PRELU, RELU, LINEAR };
enum { NEW, OLD };
enum { DOWN, UP };
enum { MAX_LAYERS = 16 };
static const int64_t ONE[2] = {1, 1}, ZERO[2] = {0, 0};

typedef struct { char name[16], kind; int64_t in, out; const int64_t *kernel, *stride, *padding; } Layer;

/* The state's names begin with "p." for a parameter and "b." for a buffer. */
static struct {
    int64_t in[2], out[2], kernel[2], stride[2], padding[2], size[2];
    int sized, normalizer, activator, order, scaler, type, training;
    int layers, shortcut, entries; /* `shortcut` is the first layer of the projection */
    Layer layer[MAX_LAYERS];
    Tensor state[MAX_TENSORS];
} block;

static char *argument(const char *name, char *fallback) {
    char key[32];
    snprintf(key, sizeof key, "cfg.%s", name);
    char *text = metadata(key);
    return text ? text : fallback;
}

static void numbers(const char *name, char *fallback, int64_t low, int64_t *pair) {
    char *text = argument(name, fallback), *at = text;
    int single = !strcmp(name, "in_planes") || !strcmp(name, "out_planes");
    int good = single || *text != '[' ? integer(&at, pair) : integers(&at, pair, 2) == 2;
    if (*text != '[') pair[1] = pair[0];
    if (!good || *at || pair[0] < low || pair[1] < low)
        fail("invalid_input", "`%s` (=%.500s) must be an integer of at least %" PRId64 "%s%s", name, text, low,
             single ? "" : ", or a pair of such integers", strcmp(name, "output_size") ? "" : ", or null");
}

static int choice(const char *name, char *fallback, const char *const *allowed) {
    const char *text = argument(name, fallback);
    char list[64] = "";
    for (int i = 0; allowed[i]; i++) {
        if (!strcmp(text, allowed[i])) return i;
        strcat(strcat(list, i ? ", " : ""), allowed[i]);
    }
    fail("invalid_input", "`%s` (=%.500s) must be one of %s", name, text, list);
}

static void add_branch(const char *branch, int64_t planes, const int64_t *kernel, const int64_t *stride,
                       const int64_t *padding, int up) {
    const char *norm = block.normalizer == NONE ? "" : "n", *conv = up ? "uc" : "c";
    const char *act = block.activator == LINEAR || !strcmp(branch, "in_node") ? "" : "a";
    int first = block.order == NEW && *norm && strcmp(branch, "in_node");
    char kinds[8];
    snprintf(kinds, sizeof kinds, "%s%s%s", first ? norm : conv, first ? act : norm, first ? conv : act);
    int64_t channels = block.in[0];
    for (int i = 0; kinds[i]; i++) {
        Layer *l = &block.layer[block.layers++];
        *l = (Layer){"", kinds[i], channels, kinds[i] == 'c' ? planes : channels, kernel, stride, padding};
        snprintf(l->name, sizeof l->name, "%.8s.%d", branch, i);
        channels = l->out;
    }
}

static void add_entry(char role, const Layer *l, const char *entry, int axes) {
    Tensor *t = &block.state[block.entries++];
    snprintf(t->name, sizeof t->name, "%c.%s.%s", role, l->name, entry);
    t->type = axes ? block.type : I64;
    t->axes = axes;
    memcpy(t->shape, (int64_t[]){l->out, l->in, l->kernel[0], l->kernel[1]}, 4 * sizeof(int64_t));
    t->data = NULL;
}

/* Fill in `block` from the request: the arguments (chapter 1), the layers and the state (chapter 2). */
static void read_block(void) {
    memset(&block, 0, sizeof block);
    numbers("in_planes", "", 1, block.in);
    numbers("out_planes", "", 1, block.out);
    numbers("kernel_size", "3", 1, block.kernel);
    numbers("stride", "1", 1, block.stride);
    numbers("padding", "1", 0, block.padding);
    block.sized = strcmp(argument("output_size", "null"), "null");
    if (block.sized) numbers("output_size", "", 1, block.size);
    block.normalizer = choice("normalizer", "pinst", (const char *[]){"batch", "inst", "pinst", "null", NULL});
    block.activator = choice("activator", "prelu", (const char *[]){"prelu", "relu", "null", NULL});
    block.order = choice("layer_order", "new", (const char *[]){"new", "old", NULL});
    block.scaler = choice("scaler", "down", (const char *[]){"down", "up", NULL});

    int up = block.scaler == UP, rescales = block.stride[0] > 1 || block.stride[1] > 1 || (up && block.sized);
    const int64_t *stride = up ? ONE : block.stride;
    add_branch("conv1", block.in[0], ONE, ONE, ZERO, 0);
    add_branch("conv2", block.in[0], block.kernel, stride, block.padding, up && rescales);
    add_branch("conv3", block.out[0], ONE, ONE, ZERO, 0);
    block.shortcut = block.layers;
    if (rescales || block.in[0] != block.out[0]) add_branch("in_node", block.out[0], ONE, stride, ZERO, up);
}

static void list_state(int type) {
    block.type = type;
    for (const Layer *l = block.layer; l < block.layer + block.layers; l++) {
        int affine = l->kind == 'n' && block.normalizer != INST;
        if (l->kind == 'c' || affine || (l->kind == 'a' && block.activator == PRELU))
            add_entry('p', l, "weight", l->kind == 'c' ? 4 : 1);
        if (affine || (l->kind == 'c' && block.normalizer == NONE)) add_entry('p', l, "bias", 1);
        if (l->kind == 'n' && block.normalizer == BATCH) {
            add_entry('b', l, "running_mean", 1);
            add_entry('b', l, "running_var", 1);
            add_entry('b', l, "num_batches_tracked", 0);
        }
    }
}

/* Sizes are kept below 2^60, where their sums do not overflow; more than that is never in memory. */
static int64_t limited(int64_t size) { return size < INT64_C(1) << 60 ? size : INT64_C(1) << 60; }
static int64_t times(int64_t a, int64_t b) { return limited(a && b > (INT64_C(1) << 60) / a ? INT64_MAX : a * b); }

static int64_t upsampled(int axis, int64_t length) {
    return block.sized ? limited(block.size[axis]) : times(length, block.stride[axis]);
}

/* The shape of the output, unless chapter 3 refuses the input. */
static void output_shape(int axes, const int64_t *shape, int64_t *out) {
    if (axes != 4 || shape[0] < 1 || shape[1] != block.in[0] || shape[2] < 1 || shape[3] < 1)
        fail("invalid_input", "x is %s; it must be (N, %" PRId64 ", H, W), nothing of it empty",
             described(block.type, axes, shape), block.in[0]);
    int64_t residual[2];
    out[0] = shape[0];
    out[1] = block.out[0];
    for (int i = 0; i < 2; i++) {
        int up = block.scaler == UP;
        int64_t stride = up ? 1 : block.stride[i], start = up ? upsampled(i, shape[2 + i]) : limited(shape[2 + i]);
        int64_t room = start + 2 * limited(block.padding[i]) - limited(block.kernel[i]);
        /* Division in C rounds toward zero, and a kernel that does not fit would seem to fit once. */
        residual[i] = (room >= 0 ? room / stride : -1 - (-1 - room) / stride) + 1;
        out[2 + i] = (start - 1) / stride + 1;
    }
    if (residual[0] != out[2] || residual[1] != out[3])
        fail("invalid_input", "the residual branch has the size [%" PRId64 ",%" PRId64 "], the shortcut [%" PRId64 ",%"
             PRId64 "], for the reason of kernel_size, padding, stride, output_size and scaler, and x being %s",
             residual[0], residual[1], out[2], out[3], described(block.type, axes, shape));

    int64_t before = times(shape[2], shape[3]), after = times(out[2], out[3]), area = before;
    for (int i = 0; i < block.layers; i++) {
        const Layer *l = &block.layer[i];
        if (i == block.shortcut) area = before;
        if (l->kind == 'c' && strncmp(l->name, "conv1", 5)) area = after;
        int batch = block.normalizer == BATCH;
        if (l->kind == 'n' && (block.training || !batch) && times(area, batch ? shape[0] : 1) == 1)
            fail("invalid_input", "the norm %s meets a single element; with one, there is no variance", l->name);
    }
}

/* The entry of the state that belongs to a layer, or NULL. */
static Tensor *entry_of(const Layer *l, const char *entry) {
    size_t length = strlen(l->name);
    for (Tensor *t = block.state; t < block.state + block.entries; t++)
        if (!strncmp(t->name + 2, l->name, length) && !strcmp(t->name + 3 + length, entry)) return t;
    return NULL;
}

static void *result_like(const char *role, const Tensor *t) {
    return t ? result(role, t->name + 2, t->type, t->axes, t->shape) : NULL;
}

#define REAL float
#define T(name) name##_f32
#include "arithmetic.h"
#undef REAL
#undef T
#define REAL double
#define T(name) name##_f64
#include "arithmetic.h"

/* ------------------------------------------------------------ requests */

static int offered_type(const char *name) {
    if (name && !strcmp(name, "BF16")) fail("unsupported", "BF16");
    if (!name || (strcmp(name, "F32") && strcmp(name, "F64"))) fail("bad_request", "dtype must be F32, F64 or BF16");
    return strcmp(name, "F32") ? F64 : F32;
}

static void hello(void) {
    static const char *const SAID[][2] = {
        {"protocol", "1"}, {"name", "C port"}, {"version", "1"}, {"language", "C11"},
        {"ops", "describe,forward,backward,init"}, {"modes", "train,eval"}, {"dtypes", "F32,F64"},
        {"accumulation", "float32"}, {"determinism", "bitwise"},
    };
    for (int i = 0; i < COUNT(SAID); i++) put_value(SAID[i][0], SAID[i][1]);
}

static void describe(void) {
    list_state(offered_type(metadata("dtype")));
    for (const Tensor *t = block.state; t < block.state + block.entries; t++) {
        char key[80];
        snprintf(key, sizeof key, "%s.%s", t->name[0] == 'p' ? "param" : "buffer", t->name + 2);
        put_value(key, described(t->type, t->axes, t->shape));
    }
    char *text = metadata("shape");
    int64_t shape[MAX_AXES], out[4];
    int axes = text ? integers(&text, shape, MAX_AXES) : 0;
    if (!text) return;
    if (axes < 0 || *text) fail("bad_request", "shape must be such as [2,16,4,255]");
    output_shape(axes, shape, out); /* No mode is given, so that only what evaluation refuses too is refused. */
    put_value("out", described(block.type, 4, out));
}

static void init(void) {
    char *seed = metadata("seed");
    uint64_t number = 0;
    list_state(offered_type(metadata("dtype")));
    if (!seed || !*seed || seed[strspn(seed, "0123456789")]) fail("bad_request", "seed must be an integer >= 0");
    for (; *seed; seed++) number = 10 * number + (uint64_t)(*seed - '0');
    (block.type == F32 ? init_f32 : init_f64)(number);
}

static void call(int backward) {
    const char *mode = metadata("mode");
    int64_t out[4];
    if (!mode || (strcmp(mode, "train") && strcmp(mode, "eval"))) fail("bad_request", "mode must be train or eval");
    block.training = !strcmp(mode, "train");
    read_tensors();
    const Tensor *x = given("x");
    list_state(x->type);
    if (x->type == I64 || x->type == BOOL) fail("invalid_input", "x is %s, no floating-point type", TYPES[x->type]);
    output_shape(x->axes, x->shape, out);
    if (x->type == BF16) fail("unsupported", "BF16");
    for (Tensor *t = block.state; t < block.state + block.entries; t++)
        t->data = given_as(t->name, t->type, t->axes, t->shape);
    void *dy = backward ? given_as("dy", x->type, 4, out) : NULL;
    if (request.count != block.entries + 1 + backward) fail("bad_request", "there are tensors too many");
    (x->type == F32 ? run_f32 : run_f64)(x, out, dy);
}

static void answer(const char *op) {
    static const char *const OPS[] = {"hello", "describe", "init", "forward", "backward"};
    int which = 0;
    while (which < COUNT(OPS) && strcmp(op, OPS[which])) which++;
    if (which == COUNT(OPS)) fail("unsupported", "%s", op);
    if (which == 0) hello();
    else read_block();
    if (which == 1) describe();
    if (which == 2) init();
    if (which > 2) call(which == 4);
}

static void begin_reply(void) {
    reply.length = 0;
    reply.count = 0;
    put_value("id", metadata("id") ? metadata("id") : "");
}

int main(void) {
    while (read_request() && metadata("op") && strcmp(metadata("op"), "stop")) {
        if (!setjmp(failed)) {
            begin_reply();
            answer(metadata("op"));
            put_value("status", "ok");
        } else {
            int unsupported = !strcmp(problem.code, "unsupported");
            begin_reply();
            put_value("status", unsupported ? problem.code : "error");
            if (!unsupported) put_value("code", problem.code);
            put_value(unsupported ? "feature" : "message", problem.message);
        }
        send_reply();
        release();
    }
    release();
    free(reply.header);
    return 0;
}
