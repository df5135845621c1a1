/* A rectangle of a JPEG, decoded by libjpeg-turbo without what lies beside and below it.

Pixels are those of a decoding of the whole image, to the bit: blocks beside the rectangle are parsed but not
transformed, and one more pair of pixels is decoded on each side, because upsampled colour looks at its neighbours.
Everything that libjpeg would only warn of (damaged or missing data) is an error here: the caller then asks
Pillow, whose verdict counts. Rows below the rectangle are not looked at. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jpeglib.h>

#if !defined(LIBJPEG_TURBO_VERSION_NUMBER) || LIBJPEG_TURBO_VERSION_NUMBER < 2001000
#error "needs libjpeg-turbo 2.1 or newer: others cannot decode a part, or upsample otherwise than Pillow's"
#endif

#define MARGIN 2 /* pixels */

typedef struct {
    struct jpeg_error_mgr base;
    jmp_buf escape;
    char message[JMSG_LENGTH_MAX];
} Errors;

typedef struct {
    unsigned left, top, width, height, denominator;
} Box;

static void
stop(j_common_ptr jpeg) {
    Errors *errors = (Errors *)jpeg->err;
    errors->base.format_message(jpeg, errors->message);
    longjmp(errors->escape, 1);
}

static void
stop_at_warning(j_common_ptr jpeg, int level) {
    if (level < 0) stop(jpeg);
}

static void
refuse(j_decompress_ptr jpeg, const char *reason) {
    Errors *errors = (Errors *)jpeg->err;
    snprintf(errors->message, sizeof errors->message, "%s", reason);
    longjmp(errors->escape, 1);
}

static void
start(j_decompress_ptr jpeg, const uint8_t *data, size_t size, unsigned denominator) {
    jpeg_create_decompress(jpeg);
    jpeg_mem_src(jpeg, data, size);
    jpeg_read_header(jpeg, TRUE);
    if (jpeg->jpeg_color_space != JCS_YCbCr && jpeg->jpeg_color_space != JCS_GRAYSCALE)
        refuse(jpeg, "neither YCbCr nor gray");
    jpeg->out_color_space = JCS_RGB;
    jpeg->dct_method = JDCT_ISLOW;
    jpeg->scale_num = 1;
    jpeg->scale_denom = denominator;
    jpeg_start_decompress(jpeg);
}

static void
read_rows(j_decompress_ptr jpeg, const Box *box, uint8_t *row, JDIMENSION offset, uint8_t *out) {
    size_t size = (size_t)box->width * 3;
    if (box->top > 0 && jpeg_skip_scanlines(jpeg, box->top) != box->top) refuse(jpeg, "rows are missing");
    for (unsigned y = 0; y < box->height; y++) {
        if (jpeg_read_scanlines(jpeg, &row, 1) != 1) refuse(jpeg, "rows are missing");
        memcpy(out + y * size, row + (size_t)offset * 3, size);
    }
}

/* 0 and a message where it fails. `out` holds height x width x 3 bytes. */
static int
decode_box(const uint8_t *data, size_t size, const Box *box, uint8_t *out, char *message) {
    struct jpeg_decompress_struct jpeg;
    Errors errors;
    uint8_t *volatile row = NULL; /* volatile: still right after a longjmp */
    memset(&jpeg, 0, sizeof jpeg);
    jpeg.err = jpeg_std_error(&errors.base);
    errors.base.error_exit = stop;
    errors.base.emit_message = stop_at_warning;
    if (setjmp(errors.escape)) {
        jpeg_destroy_decompress(&jpeg);
        free(row);
        memcpy(message, errors.message, sizeof errors.message);
        return 0;
    }
    start(&jpeg, data, size, box->denominator);
    if (box->left >= jpeg.output_width || box->width > jpeg.output_width - box->left ||
        box->top >= jpeg.output_height || box->height > jpeg.output_height - box->top)
        refuse(&jpeg, "the box lies outside the image");
    JDIMENSION left = box->left > MARGIN ? box->left - MARGIN : 0;
    JDIMENSION right = box->left + box->width;
    right = jpeg.output_width - right > MARGIN ? right + MARGIN : jpeg.output_width;
    JDIMENSION width = right - left;
    if (width < jpeg.output_width) jpeg_crop_scanline(&jpeg, &left, &width); /* moves to whole blocks */
    row = malloc((size_t)width * 3);
    if (!row) refuse(&jpeg, "not enough memory");
    read_rows(&jpeg, box, row, box->left - left, out);
    if (jpeg.output_scanline == jpeg.output_height) jpeg_finish_decompress(&jpeg);
    jpeg_destroy_decompress(&jpeg);
    free(row);
    return 1;
}

static PyObject *
decode(PyObject *self, PyObject *args) {
    Py_buffer data, out;
    Box box;
    char message[JMSG_LENGTH_MAX];
    int is_done;
    if (!PyArg_ParseTuple(args, "y*(IIII)Iw*", &data, &box.left, &box.top, &box.width, &box.height,
                          &box.denominator, &out))
        return NULL;
    if (box.width < 1 || box.width > JPEG_MAX_DIMENSION || box.height < 1 || box.height > JPEG_MAX_DIMENSION ||
        out.len != (Py_ssize_t)box.width * box.height * 3 ||
        (box.denominator != 1 && box.denominator != 2 && box.denominator != 4 && box.denominator != 8))
        PyErr_SetString(PyExc_ValueError, "the box, the denominator or the buffer's length is out of range");
    else {
        Py_BEGIN_ALLOW_THREADS;
        is_done = decode_box(data.buf, data.len, &box, out.buf, message);
        Py_END_ALLOW_THREADS;
        if (!is_done) PyErr_SetString(PyExc_ValueError, message);
    }
    PyBuffer_Release(&data);
    PyBuffer_Release(&out);
    if (PyErr_Occurred()) return NULL;
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"decode", decode, METH_VARARGS, "See _jpeg.pyi."},
    {NULL, NULL, 0, NULL},
};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_jpeg", NULL, 0, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC
PyInit__jpeg(void) {
    return PyModule_Create(&module);
}
