/* The layers, each forward and back in one function: forward it computes y.v from x.v, back it adds what
   follows from y.d, the gradient for y, to x.d, and puts those of its parameters into the reply. All of it is
   done in double, whatever the type of the request, and rounded once, where the reply is sent. */

static double *values(const Layer *l, int entry) { return l->entry[entry] ? l->entry[entry]->data : NULL; }

static double *gradient(const Layer *l, int entry, int back) {
    if (!back || !l->entry[entry]) return NULL;
    Tensor d = *l->entry[entry];
    d.name[0] = 'd';
    return result(&d);
}

/* 4.2 to 4.4. */
static void convolve(const Layer *l, Map x, Map y, int back) {
    int64_t taps = l->kernel[0] * l->kernel[1], area = y.h * y.w;
    double *w = values(l, WEIGHT), *dw = gradient(l, WEIGHT, back);
    double *bias = values(l, BIAS), *db = gradient(l, BIAS, back);
    for (int64_t to = 0; to < y.n * y.c * area; to++) {
        int64_t n = to / area / y.c, o = to / area % y.c, i = to / y.w % y.h, j = to % y.w;
        double sum = bias ? bias[o] : 0;
        for (int64_t k = 0; k < x.c * taps; k++) {
            int64_t row = i * l->stride[0] + k % taps / l->kernel[1] - l->padding[0], at = o * x.c * taps + k;
            int64_t column = j * l->stride[1] + k % l->kernel[1] - l->padding[1];
            int64_t from = ((n * x.c + k / taps) * x.h + row) * x.w + column;
            if (row < 0 || row >= x.h || column < 0 || column >= x.w) continue;
            sum += w[at] * x.v[from];
            if (back) x.d[from] += w[at] * y.d[to];
            if (back) dw[at] += x.v[from] * y.d[to];
        }
        y.v[to] = sum;
        if (db) db[o] += y.d[to];
    }
}

/* 4.5 to 4.9. The statistics are those of `group` samples together: all, or for "inst" and "pinst" one. */
static void normalize(const Layer *l, Map x, Map y, int back) {
    const Tensor *tracked = l->entry[TRACKED];
    int own = !tracked || block.training, moves = tracked && own && !back;
    int64_t group = tracked ? x.n : 1, area = x.h * x.w, count = group * area;
    double *scale = values(l, WEIGHT), *shift = values(l, BIAS), m = (double)count;
    double *dscale = gradient(l, WEIGHT, back), *dshift = gradient(l, BIAS, back);
    double *old_mean = values(l, MEAN), *new_mean = moves ? result(l->entry[MEAN]) : NULL;
    double *old_var = values(l, VARIANCE), *new_var = moves ? result(l->entry[VARIANCE]) : NULL;
    if (moves) *(int64_t *)result(tracked) = *(int64_t *)tracked->data + 1;
    for (int64_t start = 0; start < x.n; start += group)
    for (int64_t c = 0; c < x.c; c++) {
#define AT(k) (((start + (k) / area) * x.c + c) * area + (k) % area)
#define HAT(k) ((x.v[AT(k)] - mean) * inverse)
        double mean = 0, variance = 0, sum = 0, slope = 0;
        for (int64_t k = 0; k < count; k++) mean += x.v[AT(k)];
        mean = own ? mean / m : old_mean[c];
        for (int64_t k = 0; k < count; k++) variance += pow(x.v[AT(k)] - mean, 2);
        variance = own ? variance / m : old_var[c];
        if (moves) {
            new_mean[c] = 0.9 * old_mean[c] + 0.1 * mean;
            new_var[c] = 0.9 * old_var[c] + 0.1 * variance * m / (m - 1);
        }
        double inverse = 1 / sqrt(variance + 1e-5), factor = scale ? scale[c] : 1;
        for (int64_t k = 0; k < count; k++) y.v[AT(k)] = scale ? HAT(k) * factor + shift[c] : HAT(k);
        for (int64_t k = 0; k < count; k++) sum += y.d[AT(k)];
        for (int64_t k = 0; k < count; k++) slope += y.d[AT(k)] * HAT(k);
        if (dscale) dscale[c] += slope, dshift[c] += sum;
        if (!own) sum = slope = 0;
        for (int64_t k = 0; back && k < count; k++)
            x.d[AT(k)] += (y.d[AT(k)] - sum / m - HAT(k) * slope / m) * inverse * factor;
    }
}

/* 4.11 and 4.12; the slope at 0 is that of the negative side (5.6). A NaN is neither above nor at most 0. */
static void activate(const Layer *l, Map x, Map y, int back) {
    double *slope = values(l, WEIGHT), *dslope = gradient(l, WEIGHT, back);
    for (int64_t i = 0; i < x.n * x.c * x.h * x.w; i++) {
        int64_t c = i / (x.h * x.w) % x.c;
        double v = x.v[i];
        if (!back) y.v[i] = v > 0 ? v : slope ? slope[c] * v : v <= 0 ? 0 : v;
        else x.d[i] += v > 0 ? y.d[i] : slope ? slope[c] * y.d[i] : 0;
        if (dslope && !(v > 0)) dslope[c] += v * y.d[i];
    }
}

/* The place of element i lies between m[0] and m[1], which are one where it is whole. The weight of m[1]. */
static double place(int64_t i, int64_t length, int64_t target, int64_t *m) {
    int64_t steps = target > 1 ? target - 1 : 1, rest = i * (length - 1) % steps;
    m[0] = i * (length - 1) / steps;
    m[1] = m[0] + (rest > 0);
    return (double)rest / (double)steps;
}

/* 4.14, bilinear. */
static void upsample(Map x, Map y, int back) {
    for (int64_t k = 0; k < y.n * y.c * y.h * y.w; k++) {
        int64_t row[2], column[2], plane = k / (y.h * y.w) * x.h * x.w;
        double down = place(k / y.w % y.h, x.h, y.h, row), right = place(k % y.w, x.w, y.w, column);
        for (int corner = 0; corner < 4; corner++) {
            double weight = (corner / 2 ? down : 1 - down) * (corner % 2 ? right : 1 - right);
            int64_t i = plane + row[corner / 2] * x.w + column[corner % 2];
            if (back) x.d[i] += weight * y.d[k];
            else y.v[k] += weight * x.v[i];
        }
    }
}

static void run_layer(const Layer *l, int back) {
    if (l->kind == 'c') convolve(l, l->x, l->y, back);
    if (l->kind == 'n') normalize(l, l->x, l->y, back);
    if (l->kind == 'a') activate(l, l->x, l->y, back);
    if (l->kind == 'u') upsample(l->x, l->y, back);
}
