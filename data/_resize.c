/* Pillow's 8-bit resize of a window, in vectors.

The filter weights are those of Pillow (precompute_coeffs of libImaging/Resample.c, MIT-CMU licence): doubles, scaled
by 2^22 and rounded; a pass along rows and one along columns add integers and round to 8 bits. Every step is the same
arithmetic, so the result is Pillow's to the bit with any vectors or none. What is saved: pixels that no output
needs are not touched, AVX2 (found at run time) does eight lanes at once, the output is planar as a batch wants it. */

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

#define BITS 22
#define HALF (1 << (BITS - 1))
#define MAX_SIDE (1 << 24) /* Pillow keeps sides as floats; beyond this they would not be exact */

/* One axis: `count` outputs from `first`, each a weighted sum over inputs [start, start + num). */
typedef struct {
    int old_size, new_size, first, count;
    int width; /* room for weights of one output */
    int *start, *num;
    int32_t *weight;
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
}

/* 0 where memory is short */
static int
fill_axis(Axis *axis, int support) {
    double center, stretch;
    int stop;
    bounds(axis, support, axis->first, &(int){0}, &stop, &center, &stretch);
    axis->width = (int)ceil(support * stretch) * 2 + 1;
    axis->start = calloc(axis->count, sizeof(int));
    axis->num = calloc(axis->count, sizeof(int));
    axis->weight = calloc((size_t)axis->count * axis->width, sizeof(int32_t));
    double *exact = calloc(axis->width, sizeof(double));
    if (!axis->start || !axis->num || !axis->weight || !exact) {
        free(exact);
        return 0;
    }
    for (int i = 0; i < axis->count; i++) {
        int32_t *weight = axis->weight + (size_t)i * axis->width;
        double sum = 0.0, reciprocal;
        bounds(axis, support, axis->first + i, &axis->start[i], &stop, &center, &stretch);
        reciprocal = 1.0 / stretch;
        axis->num[i] = stop - axis->start[i];
        for (int t = 0; t < axis->num[i]; t++) {
            exact[t] = filter_value((t + axis->start[i] - center + 0.5) * reciprocal, support);
            sum += exact[t];
        }
        for (int t = 0; t < axis->num[i]; t++) {
            double value = sum != 0.0 ? exact[t] / sum : exact[t];
            weight[t] = (int32_t)((value < 0 ? -0.5 : 0.5) + value * (1 << BITS));
        }
    }
    free(exact);
    return 1;
}

/* ---- the two passes, for any processor */

static uint8_t
to_byte(int32_t sum) {
    sum >>= BITS;
    return sum < 0 ? 0 : sum > 255 ? 255 : (uint8_t)sum;
}

/* Two rows of RGB to one of RGBX RGBX, so that eight lanes hold a column of both. */
static void
pair_rows(const uint8_t *a, const uint8_t *b, int width, uint8_t *pairs) {
    for (int x = 0; x < width - 1; x++) {
        memcpy(pairs + 8 * x, a + 3 * x, 4); /* the fourth byte is the next pixel's: never looked at */
        memcpy(pairs + 8 * x + 4, b + 3 * x, 4);
    }
    memcpy(pairs + 8 * (width - 1), a + 3 * (width - 1), 3); /* and must not be behind the last one */
    memcpy(pairs + 8 * (width - 1) + 4, b + 3 * (width - 1), 3);
}

static void
across_plain(const uint8_t *pairs, const Axis *axis, int origin, uint8_t *a, uint8_t *b) {
    for (int x = 0; x < axis->count; x++) {
        const int32_t *weight = axis->weight + (size_t)x * axis->width;
        const uint8_t *from = pairs + 8 * (size_t)(axis->start[x] - origin);
        int32_t sum[8] = {HALF, HALF, HALF, HALF, HALF, HALF, HALF, HALF};
        for (int t = 0; t < axis->num[x]; t++)
            for (int lane = 0; lane < 8; lane++) sum[lane] += from[8 * t + lane] * weight[t];
        for (int lane = 0; lane < 4; lane++) {
            a[4 * x + lane] = to_byte(sum[lane]);
            b[4 * x + lane] = to_byte(sum[4 + lane]);
        }
    }
}

/* One row of RGBX from several; `stride` bytes apart and a multiple of 16. */
static void
down_plain(const uint8_t *rows, size_t stride, const int32_t *weight, int num, uint8_t *result) {
    for (size_t x = 0; x < stride; x += 16) {
        int32_t sum[16];
        for (int lane = 0; lane < 16; lane++) sum[lane] = HALF;
        for (int t = 0; t < num; t++)
            for (int lane = 0; lane < 16; lane++) sum[lane] += rows[t * stride + x + lane] * weight[t];
        for (int lane = 0; lane < 16; lane++) result[x + lane] = to_byte(sum[lane]);
    }
}

static void
to_planes(const uint8_t *row, int width, uint8_t *red, uint8_t *green, uint8_t *blue) {
    for (int x = 0; x < width; x++) {
        red[x] = row[4 * x];
        green[x] = row[4 * x + 1];
        blue[x] = row[4 * x + 2];
    }
}

/* ---- the same for AVX2 */

#if defined(__x86_64__)
#define AVX2 __attribute__((target("avx2")))

/* sum + eight bytes * weight, in lanes of 32 bits */
AVX2 static inline __m256i
add_product(__m256i sum, const uint8_t *from, int32_t weight) {
    __m256i value = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)from));
    return _mm256_add_epi32(sum, _mm256_mullo_epi32(value, _mm256_set1_epi32(weight)));
}

/* Shifted and cut to 0..255: lanes 0..3 in the lower half's first four bytes, 4..7 in the upper half's. */
AVX2 static inline __m256i
to_bytes(__m256i sum) {
    sum = _mm256_srai_epi32(sum, BITS);
    sum = _mm256_packus_epi32(sum, sum);
    return _mm256_packus_epi16(sum, sum);
}

AVX2 static void
across_avx2(const uint8_t *pairs, const Axis *axis, int origin, uint8_t *a, uint8_t *b) {
    for (int x = 0; x < axis->count; x++) {
        const int32_t *weight = axis->weight + (size_t)x * axis->width;
        const uint8_t *from = pairs + 8 * (size_t)(axis->start[x] - origin);
        __m256i sum = _mm256_set1_epi32(HALF);
        for (int t = 0; t < axis->num[x]; t++) sum = add_product(sum, from + 8 * t, weight[t]);
        sum = to_bytes(sum);
        int32_t first = _mm256_extract_epi32(sum, 0), second = _mm256_extract_epi32(sum, 4);
        memcpy(a + 4 * x, &first, 4);
        memcpy(b + 4 * x, &second, 4);
    }
}

AVX2 static void
down_avx2(const uint8_t *rows, size_t stride, const int32_t *weight, int num, uint8_t *result) {
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    for (size_t x = 0; x < stride; x += 16) {
        __m256i left = _mm256_set1_epi32(HALF), right = left;
        for (int t = 0; t < num; t++) {
            left = add_product(left, rows + t * stride + x, weight[t]);
            right = add_product(right, rows + t * stride + x + 8, weight[t]);
        }
        __m256i both = _mm256_unpacklo_epi32(to_bytes(left), to_bytes(right));
        both = _mm256_permutevar8x32_epi32(both, order);
        _mm_storeu_si128((__m128i *)(result + x), _mm256_castsi256_si128(both));
    }
}
#endif

/* ---- both passes */

typedef struct {
    const uint8_t *source; /* RGB, rows of `width` pixels, the first at (left, top) of the picture */
    int left, top, width, height;
    Axis x, y;
    uint8_t *pairs, *middle, *row;
    size_t stride;
    uint8_t *out; /* three planes */
    int is_plain; /* without AVX2 even where it is: for tests */
} Work;

static void
run(Work *w) {
    void (*across)(const uint8_t *, const Axis *, int, uint8_t *, uint8_t *) = across_plain;
    void (*down)(const uint8_t *, size_t, const int32_t *, int, uint8_t *) = down_plain;
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2") && !w->is_plain) {
        across = across_avx2;
        down = down_avx2;
    }
#endif
    for (int y = 0; y < w->height; y += 2) {
        const uint8_t *a = w->source + (size_t)y * w->width * 3;
        const uint8_t *b = y + 1 < w->height ? a + (size_t)w->width * 3 : a;
        pair_rows(a, b, w->width, w->pairs);
        across(w->pairs, &w->x, w->left, w->middle + y * w->stride, w->middle + (y + 1) * w->stride);
    }
    size_t plane = (size_t)w->x.count * w->y.count;
    for (int y = 0; y < w->y.count; y++) {
        uint8_t *out = w->out + (size_t)y * w->x.count;
        down(w->middle + (w->y.start[y] - w->top) * w->stride, w->stride,
             w->y.weight + (size_t)y * w->y.width, w->y.num[y], w->row);
        to_planes(w->row, w->x.count, out, out + plane, out + 2 * plane);
    }
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
resize_window(Work *w, int support) {
    const char *error = "not enough memory";
    w->stride = ((size_t)w->x.count * 4 + 15) / 16 * 16;
    if (fill_axis(&w->x, support) && fill_axis(&w->y, support)) {
        w->pairs = calloc(w->width, 8);
        w->middle = calloc((size_t)w->height + 1, w->stride);
        w->row = malloc(w->stride);
        if (!covers(&w->x, w->left, w->width) || !covers(&w->y, w->top, w->height))
            error = "the source does not hold every pixel that the window needs";
        else if (w->pairs && w->middle && w->row) {
            run(w);
            error = NULL;
        }
    }
    free(w->pairs);
    free(w->middle);
    free(w->row);
    free_axis(&w->x);
    free_axis(&w->y);
    return error;
}

static PyObject *
resize(PyObject *self, PyObject *args) {
    Work w = {0};
    Py_buffer source, out;
    int support;
    const char *error;
    if (!PyArg_ParseTuple(args, "y*(iiii)(ii)(ii)(iiii)iw*|p", &source, &w.left, &w.top, &w.width, &w.height,
                          &w.x.old_size, &w.y.old_size, &w.x.new_size, &w.y.new_size, &w.x.first, &w.y.first,
                          &w.x.count, &w.y.count, &support, &out, &w.is_plain))
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
            error = resize_window(&w, support);
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
