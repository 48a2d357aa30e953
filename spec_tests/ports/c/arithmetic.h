/* The layers of the block, forward and backward. port.c includes this file once for each type REAL, T being the
   suffix of its names. Each layer adds to zeroed memory; sums over many elements of a norm are kept in double. */

typedef struct { int64_t n, c, h, w; REAL *v; } T(Map);

/* What the backward pass needs of each layer: a norm's `hat` is (x - mean) * inverse, with one inverse a plane. */
static struct { T(Map) x, y; REAL *hat; double *inverse; } T(tape)[MAX_LAYERS];

static T(Map) T(map)(int64_t n, int64_t c, int64_t h, int64_t w) {
    return (T(Map)){n, c, h, w, take(product(4, (int64_t[]){n, c, h, w}), sizeof(REAL))};
}

static const REAL *T(given)(const Layer *l, const char *entry) {
    const Tensor *t = entry_of(l, entry);
    return t ? t->data : NULL;
}

/* Every product of a convolution (4.2): y += w x; or with dw, and dy in place of y: dx += w dy and dw += x dy. */
static void T(products)(const Layer *l, const REAL *w, T(Map) x, T(Map) y, REAL *dx, REAL *dw) {
    int64_t taps = l->kernel[0] * l->kernel[1], s = l->stride[1];
    for (int64_t n = 0; n < y.n; n++)
    for (int64_t o = 0; o < y.c; o++)
    for (int64_t c = 0; c < x.c; c++)
    for (int64_t tap = 0; tap < taps; tap++) {
        int64_t at = (o * x.c + c) * taps + tap;
        int64_t down = tap / l->kernel[1] - l->padding[0], right = tap % l->kernel[1] - l->padding[1];
        /* The columns j of y that read within x: 0 <= j s + right < x.w. */
        int64_t first = right < 0 ? (-right - 1) / s + 1 : 0, end = x.w > right ? (x.w - right - 1) / s + 1 : 0;
        if (end > y.w) end = y.w;
        for (int64_t i = 0; i < y.h; i++) {
            int64_t r = i * l->stride[0] + down, from = ((n * x.c + c) * x.h + r) * x.w + right;
            REAL *row = y.v + ((n * y.c + o) * y.h + i) * y.w, sum = 0;
            if (r < 0 || r >= x.h) continue;
            for (int64_t j = first; !dw && j < end; j++) row[j] += w[at] * x.v[from + j * s];
            for (int64_t j = first; dw && j < end; j++) {
                dx[from + j * s] += w[at] * row[j];
                sum += x.v[from + j * s] * row[j];
            }
            if (dw) dw[at] += sum;
        }
    }
}

static T(Map) T(convolve)(const Layer *l, T(Map) x) {
    int64_t h = (x.h + 2 * l->padding[0] - l->kernel[0]) / l->stride[0] + 1;
    int64_t w = (x.w + 2 * l->padding[1] - l->kernel[1]) / l->stride[1] + 1;
    T(Map) y = T(map)(x.n, l->out, h, w);
    const REAL *bias = T(given)(l, "bias");
    for (int64_t i = 0; bias && i < y.n * y.c * h * w; i++) y.v[i] = bias[i / (h * w) % y.c];
    T(products)(l, T(given)(l, "weight"), x, y, NULL, NULL);
    return y;
}

static void T(convolve_back)(const Layer *l, T(Map) x, T(Map) dy, REAL *dx) {
    REAL *db = result_like("d.", entry_of(l, "bias")), *dw = result_like("d.", entry_of(l, "weight"));
    for (int64_t i = 0; db && i < dy.n * dy.c * dy.h * dy.w; i++) db[i / (dy.h * dy.w) % dy.c] += dy.v[i];
    T(products)(l, T(given)(l, "weight"), x, dy, dx, dw);
}

/* A norm (4.5 to 4.9) takes its statistics from `group` samples together: all, or for "inst" and "pinst" one. */
static T(Map) T(normalize)(const Layer *l, T(Map) x, int step) {
    T(Map) y = T(map)(x.n, x.c, x.h, x.w);
    int batch = block.normalizer == BATCH, own = !batch || block.training;
    int64_t group = batch ? x.n : 1, area = x.h * x.w, count = group * area;
    const REAL *scale = T(given)(l, "weight"), *shift = T(given)(l, "bias");
    const REAL *old_mean = T(given)(l, "running_mean"), *old_var = T(given)(l, "running_var");
    REAL *new_mean = NULL, *new_var = NULL, *hat = T(tape)[step].hat = take(x.n * x.c * area, sizeof *hat);
    double *inverse = T(tape)[step].inverse = take(x.n * x.c, sizeof *inverse);
    if (batch && own) {
        const Tensor *tracked = entry_of(l, "num_batches_tracked");
        *(int64_t *)result_like("b.", tracked) = *(int64_t *)tracked->data + 1;
        new_mean = result_like("b.", entry_of(l, "running_mean"));
        new_var = result_like("b.", entry_of(l, "running_var"));
    }
    for (int64_t start = 0; start < x.n; start += group)
    for (int64_t c = 0; c < x.c; c++) {
        double mean = 0, variance = 0;
        for (int64_t n = start; n < start + group; n++)
            for (int64_t i = 0; i < area; i++) mean += x.v[(n * x.c + c) * area + i];
        mean = own ? mean / (double)count : old_mean[c];
        for (int64_t n = start; n < start + group; n++)
            for (int64_t i = 0; i < area; i++) {
                double distance = x.v[(n * x.c + c) * area + i] - mean;
                variance += distance * distance;
            }
        variance = own ? variance / (double)count : old_var[c];
        if (new_mean) {
            new_mean[c] = (REAL)(0.9 * old_mean[c] + 0.1 * mean);
            new_var[c] = (REAL)(0.9 * old_var[c] + 0.1 * variance * (double)count / (double)(count - 1));
        }
        for (int64_t n = start; n < start + group; n++) {
            int64_t plane = n * x.c + c;
            inverse[plane] = 1 / sqrt(variance + 1e-5);
            for (int64_t i = plane * area; i < (plane + 1) * area; i++) {
                hat[i] = (REAL)((x.v[i] - mean) * inverse[plane]);
                y.v[i] = scale ? hat[i] * scale[c] + shift[c] : hat[i];
            }
        }
    }
    return y;
}

static void T(normalize_back)(const Layer *l, T(Map) dy, int step, REAL *dx) {
    int batch = block.normalizer == BATCH, own = !batch || block.training;
    int64_t group = batch ? dy.n : 1, area = dy.h * dy.w;
    double count = (double)(group * area);
    const REAL *scale = T(given)(l, "weight"), *hat = T(tape)[step].hat;
    REAL *dscale = result_like("d.", entry_of(l, "weight")), *dshift = result_like("d.", entry_of(l, "bias"));
    for (int64_t start = 0; start < dy.n; start += group)
    for (int64_t c = 0; c < dy.c; c++) {
        double sum = 0, slope = 0;
        for (int64_t n = start; n < start + group; n++)
            for (int64_t i = (n * dy.c + c) * area, end = i + area; i < end; i++) {
                sum += dy.v[i];
                slope += (double)dy.v[i] * hat[i];
            }
        if (dscale) {
            dscale[c] += (REAL)slope;
            dshift[c] += (REAL)sum;
        }
        for (int64_t n = start; n < start + group; n++)
            for (int64_t plane = n * dy.c + c, i = plane * area; i < (plane + 1) * area; i++) {
                double core = own ? dy.v[i] - sum / count - hat[i] * slope / count : dy.v[i];
                dx[i] = (REAL)(core * T(tape)[step].inverse[plane] * (scale ? scale[c] : 1));
            }
    }
}

/* 4.11 and 4.12; the slope at 0 is that of the negative side (5.6). A NaN is neither above 0 nor at most 0. */
static T(Map) T(activate)(const Layer *l, T(Map) x) {
    T(Map) y = T(map)(x.n, x.c, x.h, x.w);
    const REAL *slope = T(given)(l, "weight");
    for (int64_t i = 0, area = x.h * x.w; i < x.n * x.c * area; i++)
        y.v[i] = x.v[i] > 0 ? x.v[i] : slope ? slope[i / area % x.c] * x.v[i] : x.v[i] <= 0 ? 0 : x.v[i];
    return y;
}

static void T(activate_back)(const Layer *l, T(Map) x, T(Map) dy, REAL *dx) {
    const REAL *slope = T(given)(l, "weight");
    REAL *dslope = result_like("d.", entry_of(l, "weight"));
    for (int64_t i = 0, area = x.h * x.w; i < x.n * x.c * area; i++) {
        int64_t c = i / area % x.c;
        if (x.v[i] > 0) dx[i] = dy.v[i];
        else if (slope) {
            dx[i] = slope[c] * dy.v[i];
            dslope[c] += x.v[i] * dy.v[i];
        }
    }
}

/* The place of element i in 4.14: between m[0] and m[1], which are one where it is whole. The weight of m[1]. */
static REAL T(place)(int64_t i, int64_t length, int64_t target, int64_t *m) {
    int64_t steps = target > 1 ? target - 1 : 1, rest = i * (length - 1) % steps;
    m[0] = i * (length - 1) / steps;
    m[1] = m[0] + (rest > 0);
    return (REAL)rest / (REAL)steps;
}

/* Bilinear: y from x, or with dx, and dy in place of y, the transposed (5.7). */
static void T(resample)(T(Map) x, T(Map) y, REAL *dx) {
    for (int64_t plane = 0; plane < y.n * y.c; plane++)
    for (int64_t i = 0; i < y.h; i++)
    for (int64_t j = 0; j < y.w; j++) {
        int64_t row[2], col[2], from = plane * x.h * x.w;
        REAL down = T(place)(i, x.h, y.h, row), right = T(place)(j, x.w, y.w, col);
        REAL *at = y.v + (plane * y.h + i) * y.w + j;
        for (int corner = 0; corner < 4; corner++) {
            REAL weight = (corner / 2 ? down : 1 - down) * (corner % 2 ? right : 1 - right);
            int64_t k = from + row[corner / 2] * x.w + col[corner % 2];
            if (dx) dx[k] += weight * *at;
            else *at += weight * x.v[k];
        }
    }
}

static T(Map) T(through)(int first, int end, T(Map) x) {
    for (int i = first; i < end; i++) {
        const Layer *l = &block.layer[i];
        T(tape)[i].x = x;
        switch (l->kind) {
            case 'c': x = T(convolve)(l, x); break;
            case 'n': x = T(normalize)(l, x, i); break;
            case 'a': x = T(activate)(l, x); break;
            default:
                x = T(map)(x.n, x.c, upsampled(0, x.h), upsampled(1, x.w));
                T(resample)(T(tape)[i].x, x, NULL);
        }
    }
    return x;
}

static T(Map) T(back)(int first, int end, T(Map) dy) {
    for (int i = end; i-- > first;) {
        const Layer *l = &block.layer[i];
        T(Map) x = T(tape)[i].x, dx = T(map)(x.n, x.c, x.h, x.w);
        switch (l->kind) {
            case 'c': T(convolve_back)(l, x, dy, dx.v); break;
            case 'n': T(normalize_back)(l, dy, i, dx.v); break;
            case 'a': T(activate_back)(l, x, dy, dx.v); break;
            default: T(resample)(x, dy, dx.v);
        }
        dy = dx;
    }
    return dy;
}

/* Answer `forward`, or with dy `backward`. */
static void T(run)(const Tensor *given, const int64_t *out, void *dy) {
    T(Map) x = {given->shape[0], given->shape[1], given->shape[2], given->shape[3], given->data};
    T(Map) left = T(through)(0, block.shortcut, x), right = T(through)(block.shortcut, block.layers, x);
    if (dy) {
        T(Map) from = {out[0], out[1], out[2], out[3], dy};
        reply.count = 0; /* new buffers are no part of this reply */
        left = T(back)(0, block.shortcut, from);
        right = T(back)(block.shortcut, block.layers, from);
    }
    const int64_t *shape = dy ? given->shape : out;
    REAL *sum = result("", dy ? "dx" : "y", given->type, 4, shape);
    for (int64_t i = 0; i < product(4, shape); i++) sum[i] = left.v[i] + right.v[i];
}

/* The uniform number in [0, 1) that follows (splitmix64). */
static double T(uniform)(uint64_t *state) {
    uint64_t z = *state += UINT64_C(0x9E3779B97F4A7C15);
    z = (z ^ z >> 30) * UINT64_C(0xBF58476D1CE4E5B9);
    z = (z ^ z >> 27) * UINT64_C(0x94D049BB133111EB);
    return (double)((z ^ z >> 31) >> 11) * 0x1p-53;
}

/* Answer `init` (7.4 to 7.7). */
static void T(init)(uint64_t seed) {
    static const char *const NAMES[] = {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"};
    for (const Layer *l = block.layer; l < block.layer + block.layers; l++)
    for (int name = 0; name < COUNT(NAMES); name++) {
        const Tensor *t = entry_of(l, NAMES[name]);
        REAL *v = t ? result_like(t->name[0] == 'p' ? "p." : "b.", t) : NULL;
        double limit = 1 / sqrt((double)l->in * (double)l->kernel[0] * (double)l->kernel[1]);
        for (int64_t i = 0; t && i < product(t->axes, t->shape); i++) {
            if (l->kind == 'c') v[i] = (REAL)(limit * (2 * T(uniform)(&seed) - 1));
            else if (name == 0 || name == 3) v[i] = l->kind == 'a' ? (REAL)0.25 : 1;
        }
    }
}
