/* Pillow's or torch's 8-bit resize of a window, in vectors.

Both have the same filters (precompute_coeffs of libImaging/Resample.c, MIT-CMU licence) as doubles, which Pillow scales
by 2^22 and torch by the largest power of two that keeps all weights of an axis in 16 bits; a pass along rows and one
along columns add integers and round to 8 bits. Every step is the same arithmetic, so the result is theirs to the bit
with any vectors or none. What is saved: pixels that no output needs are not touched, AVX2 (found at run time) has
products of 16 bits (a weight of Pillow's is two of them), the output is planar as a batch wants it, mirrored or not. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <limits.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define PILLOW_BITS 22
#define MAX_SIDE (1 << 24) /* Pillow keeps sides as floats; beyond this they would not be exact */
#define SPARE 16           /* bytes that a vector may read behind a row */

/* One axis: `count` outputs from `first`, each a weighted sum over inputs [start, start + num). */
typedef struct {
    int old_size, new_size, first, count;
    int width; /* room for weights of one output, a multiple of 4; zeros behind `num` */
    int bits;  /* a weight is in units of 2^-bits */
    int *start, *num;
    int32_t *weight;
    int16_t *high, *low; /* weight = 256 high + low, or high where low is NULL */
} Axis;

static double
filter_value(double x, int support) {
    x = fabs(x);
    if (support == 1) return x < 1.0 ? 1.0 - x : 0.0;
    /* Keys' cubic with a = -0.5, in Pillow's order of operations. */
    if (x < 1.0) return ((-0.5 + 2.0) * x - (-0.5 + 3.0)) * x * x + 1;
    if (x < 2.0) return (((x - 5) * x + 8) * x - 4) * -0.5;
    return 0.0;
}

static void
bounds(const Axis *axis, int support, int index, int *start, int *stop, double *center, double *stretch) {
    double scale = (double)axis->old_size / axis->new_size;
    *stretch = scale < 1.0 ? 1.0 : scale;
    *center = (index + 0.5) * scale;
    *start = (int)(*center - support * *stretch + 0.5);
    *stop = (int)(*center + support * *stretch + 0.5);
    if (*start < 0) *start = 0;
    if (*stop > axis->old_size) *stop = axis->old_size;
}

static void
free_axis(Axis *axis) {
    free(axis->start);
    free(axis->num);
    free(axis->weight);
    free(axis->high);
    free(axis->low);
}

/* Of all outputs, one after the other in `exact`. */
static void
fill_exact(Axis *axis, int support, double *exact) {
    for (int i = 0; i < axis->count; i++, exact += axis->width) {
        double sum = 0.0, center, stretch;
        int stop;
        bounds(axis, support, axis->first + i, &axis->start[i], &stop, &center, &stretch);
        double reciprocal = 1.0 / stretch;
        axis->num[i] = stop - axis->start[i];
        for (int t = 0; t < axis->num[i]; t++) {
            exact[t] = filter_value((t + axis->start[i] - center + 0.5) * reciprocal, support);
            sum += exact[t];
        }
        for (int t = 0; t < axis->num[i] && sum != 0.0; t++) exact[t] /= sum;
    }
}

/* The most that leave the largest weight below 2^15; at most 22. */
static int
torch_bits(const double *exact, size_t num) {
    double most = 0.0;
    int bits = 0;
    for (size_t i = 0; i < num; i++)
        if (exact[i] > most) most = exact[i];
    while (bits < 22 && (int)(0.5 + most * (1 << (bits + 1))) < 1 << 15) bits++;
    return bits;
}

/* 0 where a weight does not fit in vectors */
static int
split_weights(Axis *axis, size_t num) {
    for (size_t i = 0; i < num; i++) {
        int32_t high = axis->low ? axis->weight[i] >> 8 : axis->weight[i];
        if (high < INT16_MIN || high > INT16_MAX) return 0;
        axis->high[i] = (int16_t)high;
        if (axis->low) axis->low[i] = (int16_t)(axis->weight[i] & 255);
    }
    return 1;
}

/* 0 where memory is short */
static int
fill_axis(Axis *axis, int support, int is_torch, int *is_plain) {
    double center, stretch;
    int stop;
    bounds(axis, support, axis->first, &(int){0}, &stop, &center, &stretch);
    axis->width = ((int)ceil(support * stretch) * 2 + 4) / 4 * 4;
    size_t num = (size_t)axis->count * axis->width;
    axis->start = calloc(axis->count, sizeof(int));
    axis->num = calloc(axis->count, sizeof(int));
    axis->weight = malloc(num * sizeof(int32_t));
    axis->high = malloc(num * sizeof(int16_t));
    axis->low = is_torch ? NULL : malloc(num * sizeof(int16_t));
    double *exact = calloc(num, sizeof(double));
    int is_filled = axis->start && axis->num && axis->weight && axis->high && (is_torch || axis->low) && exact;
    if (is_filled) {
        fill_exact(axis, support, exact);
        axis->bits = is_torch ? torch_bits(exact, num) : PILLOW_BITS;
        for (size_t i = 0; i < num; i++)
            axis->weight[i] = (int32_t)((exact[i] < 0 ? -0.5 : 0.5) + exact[i] * (1 << axis->bits));
        if (!split_weights(axis, num)) *is_plain = 1;
    }
    free(exact);
    return is_filled;
}

typedef struct {
    const uint8_t *source; /* RGB, rows of `width` pixels, the first at (left, top) of the picture */
    int left, top, width, height;
    Axis x, y;
    uint8_t *last;   /* a copy of the last rows of the source, with room behind them */
    uint8_t *middle; /* `height` rows of RGBX, `stride` bytes each, and more behind them */
    size_t stride;
    uint8_t *out; /* three planes */
    int is_plain; /* without AVX2 even where it is: for tests */
    int is_mirrored;
} Work;

/* ---- the two passes, for any processor */

static uint8_t
to_byte(int32_t sum, int bits) {
    sum = (sum + (1 << (bits - 1))) >> bits;
    return sum < 0 ? 0 : sum > 255 ? 255 : (uint8_t)sum;
}

static void
across_plain(const Work *w, const uint8_t *row, uint8_t *result) {
    for (int x = 0; x < w->x.count; x++) {
        const int32_t *weight = w->x.weight + (size_t)x * w->x.width;
        const uint8_t *from = row + 3 * (size_t)(w->x.start[x] - w->left);
        int32_t sum[3] = {0, 0, 0};
        for (int t = 0; t < w->x.num[x]; t++)
            for (int c = 0; c < 3; c++) sum[c] += from[3 * t + c] * weight[t];
        for (int c = 0; c < 3; c++) result[4 * x + c] = to_byte(sum[c], w->x.bits);
        result[4 * x + 3] = 0;
    }
}

static void
down_plain(const Work *w, int y) {
    const int32_t *weight = w->y.weight + (size_t)y * w->y.width;
    const uint8_t *rows = w->middle + (w->y.start[y] - w->top) * w->stride;
    size_t plane = (size_t)w->x.count * w->y.count;
    for (int x = 0; x < w->x.count; x++) {
        int32_t sum[3] = {0, 0, 0};
        uint8_t *to = w->out + (size_t)y * w->x.count + (w->is_mirrored ? w->x.count - 1 - x : x);
        for (int t = 0; t < w->y.num[y]; t++)
            for (int c = 0; c < 3; c++) sum[c] += rows[t * w->stride + 4 * x + c] * weight[t];
        for (int c = 0; c < 3; c++) to[c * plane] = to_byte(sum[c], w->y.bits);
    }
}

/* ---- the same for AVX2 */

#if defined(__x86_64__)
#define AVX2 __attribute__((target("avx2")))

/* Sums of products with weights, rounded; `bits` is known to the caller's loops as a vector. */
AVX2 static inline __m256i
rounded(__m256i high, __m256i low, int is_split, __m256i half, __m128i bits) {
    if (is_split) high = _mm256_add_epi32(_mm256_slli_epi32(high, 8), low);
    return _mm256_sra_epi32(_mm256_add_epi32(high, half), bits);
}

/* Four pixels from `from`: lanes of 32 bits hold two of red, green, blue; the lower half the first two pixels. */
AVX2 static inline __m256i
four_pixels(const uint8_t *from) {
    const __m256i pairs = _mm256_setr_epi8(0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1,
                                           6, -1, 9, -1, 7, -1, 10, -1, 8, -1, 11, -1, -1, -1, -1, -1);
    __m128i bytes = _mm_loadu_si128((const __m128i *)from);
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(bytes), pairs);
}

/* Four weights for that. */
AVX2 static inline __m256i
four_weights(const int16_t *weight) {
    const __m256i places = _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1);
    __m128i bytes = _mm_loadl_epi64((const __m128i *)weight);
    return _mm256_permutevar8x32_epi32(_mm256_castsi128_si256(bytes), places);
}

/* The lower half of the result is the sum of both halves of `a`, the upper one that of `b`. */
AVX2 static inline __m256i
add_halves(__m256i a, __m256i b) {
    return _mm256_add_epi32(_mm256_permute2x128_si256(a, b, 0x20), _mm256_permute2x128_si256(a, b, 0x31));
}

/* Four rows `step` bytes apart to four of `middle`. */
AVX2 static inline __attribute__((always_inline)) void
across_four(const Work *w, const uint8_t *rows, size_t step, uint8_t *result, int is_split) {
    const Axis *axis = &w->x;
    const __m256i half = _mm256_set1_epi32(1 << (axis->bits - 1)), zero = _mm256_setzero_si256();
    const __m128i bits = _mm_cvtsi32_si128(axis->bits);
    for (int x = 0; x < axis->count; x++) {
        const uint8_t *from = rows + 3 * (size_t)(axis->start[x] - w->left);
        size_t place = (size_t)x * axis->width;
        __m256i high[4] = {zero, zero, zero, zero}, low[4] = {zero, zero, zero, zero};
        for (int t = 0; t < axis->num[x]; t += 4) {
            __m256i weight = four_weights(axis->high + place + t), less = zero;
            if (is_split) less = four_weights(axis->low + place + t);
            for (int row = 0; row < 4; row++) {
                __m256i pixels = four_pixels(from + row * step + 3 * t);
                high[row] = _mm256_add_epi32(high[row], _mm256_madd_epi16(pixels, weight));
                if (is_split) low[row] = _mm256_add_epi32(low[row], _mm256_madd_epi16(pixels, less));
            }
        }
        __m256i ab = add_halves(high[0], high[1]), cd = add_halves(high[2], high[3]);
        if (is_split) {
            ab = rounded(ab, add_halves(low[0], low[1]), 1, half, bits);
            cd = rounded(cd, add_halves(low[2], low[3]), 1, half, bits);
        } else {
            ab = rounded(ab, zero, 0, half, bits);
            cd = rounded(cd, zero, 0, half, bits);
        }
        __m256i bytes = _mm256_packs_epi32(ab, cd);
        bytes = _mm256_packus_epi16(bytes, bytes);
        uint64_t ac = (uint64_t)_mm256_extract_epi64(bytes, 0), bd = (uint64_t)_mm256_extract_epi64(bytes, 2);
        uint32_t pixel[4] = {(uint32_t)ac, (uint32_t)bd, (uint32_t)(ac >> 32), (uint32_t)(bd >> 32)};
        for (int row = 0; row < 4; row++) memcpy(result + row * w->stride + 4 * x, &pixel[row], 4);
    }
}

/* Up to eight pixels of a plane, which begins a row at `row`. */
static inline void
put(uint64_t pixels, uint8_t *row, int x, int width, int is_mirrored) {
    int num = width - x < 8 ? width - x : 8;
    if (is_mirrored) {
        pixels = __builtin_bswap64(pixels);
        memcpy(row + width - x - num, (uint8_t *)&pixels + 8 - num, num);
    } else
        memcpy(row + x, &pixels, num);
}

/* A row of the result; 8 pixels at a time. */
AVX2 static inline __attribute__((always_inline)) void
down_row(const Work *w, int y, int is_split) {
    const Axis *axis = &w->y;
    const __m256i half = _mm256_set1_epi32(1 << (axis->bits - 1)), zero = _mm256_setzero_si256();
    const __m128i bits = _mm_cvtsi32_si128(axis->bits);
    const __m256i by_plane = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    const uint8_t *rows = w->middle + (axis->start[y] - w->top) * w->stride;
    const int16_t *weights = axis->high + (size_t)y * axis->width;
    const int16_t *lesser = is_split ? axis->low + (size_t)y * axis->width : NULL;
    size_t plane = (size_t)w->x.count * axis->count;
    uint8_t *out = w->out + (size_t)y * w->x.count;
    for (int x = 0; x < w->x.count; x += 8) {
        __m256i high[4] = {zero, zero, zero, zero}, low[4] = {zero, zero, zero, zero};
        for (int t = 0; t < axis->num[y]; t += 2) {
            int32_t two[2] = {0, 0};
            memcpy(two, weights + t, 4);
            if (is_split) memcpy(two + 1, lesser + t, 4);
            __m256i weight = _mm256_set1_epi32(two[0]), less = _mm256_set1_epi32(two[1]);
            __m256i a = _mm256_loadu_si256((const __m256i *)(rows + t * w->stride + 4 * x));
            __m256i b = _mm256_loadu_si256((const __m256i *)(rows + (t + 1) * w->stride + 4 * x));
            __m256i left = _mm256_unpacklo_epi8(a, b), right = _mm256_unpackhi_epi8(a, b);
            __m256i pairs[4] = {_mm256_unpacklo_epi8(left, zero), _mm256_unpackhi_epi8(left, zero),
                                _mm256_unpacklo_epi8(right, zero), _mm256_unpackhi_epi8(right, zero)};
            for (int part = 0; part < 4; part++) {
                high[part] = _mm256_add_epi32(high[part], _mm256_madd_epi16(pairs[part], weight));
                if (is_split) low[part] = _mm256_add_epi32(low[part], _mm256_madd_epi16(pairs[part], less));
            }
        }
        for (int part = 0; part < 4; part++) high[part] = rounded(high[part], low[part], is_split, half, bits);
        __m256i bytes = _mm256_packus_epi16(_mm256_packs_epi32(high[0], high[1]),
                                            _mm256_packs_epi32(high[2], high[3]));
        bytes = _mm256_permutevar8x32_epi32(_mm256_shuffle_epi8(bytes, by_plane), order);
        put((uint64_t)_mm256_extract_epi64(bytes, 0), out, x, w->x.count, w->is_mirrored);
        put((uint64_t)_mm256_extract_epi64(bytes, 1), out + plane, x, w->x.count, w->is_mirrored);
        put((uint64_t)_mm256_extract_epi64(bytes, 2), out + 2 * plane, x, w->x.count, w->is_mirrored);
    }
}

AVX2 static void
across_pillow(const Work *w, const uint8_t *rows, size_t step, uint8_t *result) {
    across_four(w, rows, step, result, 1);
}

AVX2 static void
across_torch(const Work *w, const uint8_t *rows, size_t step, uint8_t *result) {
    across_four(w, rows, step, result, 0);
}

AVX2 static void
down_pillow(const Work *w, int y) {
    down_row(w, y, 1);
}

AVX2 static void
down_torch(const Work *w, int y) {
    down_row(w, y, 0);
}

static void
run_avx2(const Work *w) {
    size_t step = (size_t)w->width * 3, length = step * w->height;
    for (int y = 0; y < w->height; y += 4) {
        const uint8_t *rows = w->source + y * step;
        if ((y + 4) * step + SPARE > length) { /* nothing is read behind the source's end */
            memcpy(w->last, rows, length - y * step);
            rows = w->last;
        }
        (w->x.low ? across_pillow : across_torch)(w, rows, step, w->middle + y * w->stride);
    }
    for (int y = 0; y < w->y.count; y++) (w->y.low ? down_pillow : down_torch)(w, y);
}
#endif

/* ---- both passes */

static void
run(const Work *w) {
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2") && !w->is_plain) {
        run_avx2(w);
        return;
    }
#endif
    for (int y = 0; y < w->height; y++)
        across_plain(w, w->source + (size_t)y * w->width * 3, w->middle + y * w->stride);
    for (int y = 0; y < w->y.count; y++) down_plain(w, y);
}

/* ---- Python */

static int
check_axis(const Axis *axis, int support) {
    if (axis->old_size < 1 || axis->old_size > MAX_SIDE || axis->new_size < 1 || axis->new_size > MAX_SIDE ||
        axis->first < 0 || axis->count < 1 || axis->count > axis->new_size - axis->first || support < 1 ||
        support > 2) {
        PyErr_SetString(PyExc_ValueError, "a size, a window or the filter is out of range");
        return 0;
    }
    return 1;
}

static PyObject *
span(PyObject *self, PyObject *args) {
    Axis axis = {0};
    int support, start, stop, ignored;
    double center, stretch;
    if (!PyArg_ParseTuple(args, "iiiii", &axis.old_size, &axis.new_size, &axis.first, &axis.count, &support))
        return NULL;
    if (!check_axis(&axis, support)) return NULL;
    bounds(&axis, support, axis.first, &start, &ignored, &center, &stretch);
    bounds(&axis, support, axis.first + axis.count - 1, &ignored, &stop, &center, &stretch);
    return Py_BuildValue("ii", start, stop);
}

static int
covers(const Axis *axis, int left, int width) {
    int last = axis->count - 1;
    return axis->start[0] >= left && axis->start[last] + axis->num[last] <= left + width;
}

static const char *
resize_window(Work *w, int support, int is_torch) {
    const char *error = "not enough memory";
    w->stride = ((size_t)w->x.count + 7) / 8 * 32;
    if (fill_axis(&w->x, support, is_torch, &w->is_plain) && fill_axis(&w->y, support, is_torch, &w->is_plain)) {
        w->last = calloc((size_t)w->width * 3 * 8 + 2 * SPARE, 1); /* seven rows at most: the rest and a few more */
        w->middle = malloc(((size_t)w->height + 4) * w->stride);
        if (!covers(&w->x, w->left, w->width) || !covers(&w->y, w->top, w->height))
            error = "the source does not hold every pixel that the window needs";
        else if (w->last && w->middle) {
            memset(w->middle + (size_t)w->height * w->stride, 0, 4 * w->stride);
            run(w);
            error = NULL;
        }
    }
    free(w->last);
    free(w->middle);
    free_axis(&w->x);
    free_axis(&w->y);
    return error;
}

static PyObject *
resize(PyObject *self, PyObject *args) {
    Work w = {0};
    Py_buffer source, out;
    int support, is_torch = 0;
    const char *error;
    if (!PyArg_ParseTuple(args, "y*(iiii)(ii)(ii)(iiii)iw*|ppp", &source, &w.left, &w.top, &w.width, &w.height,
                          &w.x.old_size, &w.y.old_size, &w.x.new_size, &w.y.new_size, &w.x.first, &w.y.first,
                          &w.x.count, &w.y.count, &support, &out, &is_torch, &w.is_mirrored, &w.is_plain))
        return NULL;
    if (w.left < 0 || w.top < 0 || w.width < 1 || w.height < 1 || w.width > MAX_SIDE || w.height > MAX_SIDE)
        PyErr_SetString(PyExc_ValueError, "the source's place is out of range");
    else if (check_axis(&w.x, support) && check_axis(&w.y, support)) {
        if (source.len != (Py_ssize_t)w.width * w.height * 3 ||
            out.len != (Py_ssize_t)w.x.count * w.y.count * 3)
            PyErr_SetString(PyExc_ValueError, "a buffer's length does not fit its shape");
        else {
            w.source = source.buf;
            w.out = out.buf;
            Py_BEGIN_ALLOW_THREADS;
            error = resize_window(&w, support, is_torch);
            Py_END_ALLOW_THREADS;
            if (error) PyErr_SetString(PyExc_ValueError, error);
        }
    }
    PyBuffer_Release(&source);
    PyBuffer_Release(&out);
    if (PyErr_Occurred()) return NULL;
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"span", span, METH_VARARGS, "See _resize.pyi."},
    {"resize", resize, METH_VARARGS, "See _resize.pyi."},
    {NULL, NULL, 0, NULL},
};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_resize", NULL, 0, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC
PyInit__resize(void) {
    return PyModule_Create(&module);
}
