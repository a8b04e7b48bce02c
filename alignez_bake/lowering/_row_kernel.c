/* Rows of edited weights in one pass over memory, where numpy's float32 takes a dozen.

    edit_rows    out = round(W + L R) of some rows, with the sums that a delivery is made of
    add_product  T += Rᵀ W of some rows, block by block

W and `out` hold values of 16 bits, bf16 or fp16. Each value of a product is one chain of fused multiply-adds in
float32, from zero, in the order of the inner index. So its bits depend neither on how many values are computed at once
nor on which rows a call is given.

Everything is checked before a pointer is followed: buffers have just the sizes that the numbers say, and no product of
numbers overflows. The interpreter is let go of while values are computed.
*/
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__) && defined(__GNUC__)
#define FOR_THIS_PROCESSOR 1
#include <cpuid.h>
#include <immintrin.h>
#else
#define FOR_THIS_PROCESSOR 0
#endif

typedef enum { BF16, F16 } Kind;

/* What is summed over values, W being the base, ΔW its change, and e what rounding added. */
enum { BASE_BASE, CHANGE_CHANGE, ERROR_CHANGE, ERROR_ERROR, SUMS };

#if FOR_THIS_PROCESSOR

#define VECTORS __attribute__((target("avx2,fma,f16c")))
#define INLINE VECTORS static inline __attribute__((always_inline))

enum {
    LANES = 8,      /* float32 values of a vector */
    WIDE = 16,      /* columns of a panel: two vectors, so that each value of `left` is used twice */
    TALL = 6,       /* rows of a product: with WIDE, 12 sums in registers, more than multiply-adds are in flight */
    STRIP = 256,    /* columns that are edited in all rows before the next, so that R's part of them stays in a cache */
    SUM_STRIP = 128 /* columns whose products are added up over all blocks before the next, likewise of the total */
};

INLINE __m256 widened(__m128i stored, Kind kind) {
    if (kind == F16)
        return _mm256_cvtph_ps(stored);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(stored), 16));
}

/* To nearest, ties to even; `value` is what was stored. What NaN becomes may look finite: see `magnitudes`. */
INLINE __m128i narrowed(__m256 exact, Kind kind, __m256 *value) {
    if (kind == F16) {
        __m128i stored = _mm256_cvtps_ph(exact, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
        *value = _mm256_cvtph_ps(stored);
        return stored;
    }
    __m256i bits = _mm256_castps_si256(exact);
    __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    bits = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    *value = _mm256_castsi256_ps(_mm256_and_si256(bits, _mm256_set1_epi32((int32_t)0xffff0000)));
    bits = _mm256_srli_epi32(bits, 16);
    return _mm_packus_epi32(_mm256_castsi256_si128(bits), _mm256_extracti128_si256(bits, 1));
}

/* |value| as integers, in the same order; NaN is the largest. */
INLINE __m256i magnitudes(__m256 value) {
    return _mm256_and_si256(_mm256_castps_si256(value), _mm256_set1_epi32(0x7fffffff));
}

/* The least of these integers that is no finite value of a kind once it is rounded: its tie goes to infinity. */
static int32_t least_infinite(Kind kind) { return kind == F16 ? 0x477ff000 : 0x7f7f8000; }

VECTORS static int32_t largest_lane(__m256i vector) {
    int32_t lanes[LANES], largest = 0;
    _mm256_storeu_si256((__m256i *)lanes, vector);
    for (int lane = 0; lane < LANES; lane++)
        largest = lanes[lane] > largest ? lanes[lane] : largest;
    return largest;
}

/* Adds lanes to half as many of double. */
INLINE void add_lanes(__m256d *sum, __m256 lanes) {
    __m256d low = _mm256_cvtps_pd(_mm256_castps256_ps128(lanes));
    __m256d high = _mm256_cvtps_pd(_mm256_extractf128_ps(lanes, 1));
    *sum = _mm256_add_pd(*sum, _mm256_add_pd(low, high));
}

/* out[row][column] = Σ_l left[row * row_step + l * l_step] panel[l][column], of `rows` rows and WIDE columns. */
INLINE void rows_of_product(size_t rows, const float *left, size_t row_step, size_t l_step, const float *panel,
                            size_t inner, float *out, size_t out_step) {
    __m256 sums[TALL][2];
#pragma GCC unroll 6
    for (size_t row = 0; row < rows; row++)
        sums[row][0] = sums[row][1] = _mm256_setzero_ps();
    for (size_t l = 0; l < inner; l++) {
        __m256 first = _mm256_loadu_ps(panel + l * WIDE), second = _mm256_loadu_ps(panel + l * WIDE + LANES);
#pragma GCC unroll 6
        for (size_t row = 0; row < rows; row++) {
            __m256 factor = _mm256_broadcast_ss(left + row * row_step + l * l_step);
            sums[row][0] = _mm256_fmadd_ps(factor, first, sums[row][0]);
            sums[row][1] = _mm256_fmadd_ps(factor, second, sums[row][1]);
        }
    }
#pragma GCC unroll 6
    for (size_t row = 0; row < rows; row++) {
        _mm256_storeu_ps(out + row * out_step, sums[row][0]);
        _mm256_storeu_ps(out + row * out_step + LANES, sums[row][1]);
    }
}

/* The same of up to TALL rows: the number is a constant in each case, so that sums are registers. */
VECTORS static void product(size_t rows, const float *left, size_t row_step, size_t l_step, const float *panel,
                            size_t inner, float *out, size_t out_step) {
    switch (rows) {
    case 1: rows_of_product(1, left, row_step, l_step, panel, inner, out, out_step); break;
    case 2: rows_of_product(2, left, row_step, l_step, panel, inner, out, out_step); break;
    case 3: rows_of_product(3, left, row_step, l_step, panel, inner, out, out_step); break;
    case 4: rows_of_product(4, left, row_step, l_step, panel, inner, out, out_step); break;
    case 5: rows_of_product(5, left, row_step, l_step, panel, inner, out, out_step); break;
    default: rows_of_product(TALL, left, row_step, l_step, panel, inner, out, out_step);
    }
}

static size_t least(size_t one, size_t other) { return one < other ? one : other; }

/* Of some values: sums, lane by lane, and the largest |W'| as an integer. */
typedef struct {
    __m256 sums[SUMS];
    __m256i largest;
} Measured;

INLINE void finish_vector(const uint16_t *base, const float *delta, uint16_t *out, Kind from, Kind to, Measured *seen) {
    __m256 value = widened(_mm_loadu_si128((const __m128i *)base), from), stored;
    __m256 change = _mm256_loadu_ps(delta);
    __m256 exact = _mm256_add_ps(value, change);
    _mm_storeu_si128((__m128i *)out, narrowed(exact, to, &stored));
    __m256 error = _mm256_sub_ps(stored, exact);
    seen->sums[BASE_BASE] = _mm256_fmadd_ps(value, value, seen->sums[BASE_BASE]);
    seen->sums[CHANGE_CHANGE] = _mm256_fmadd_ps(change, change, seen->sums[CHANGE_CHANGE]);
    seen->sums[ERROR_CHANGE] = _mm256_fmadd_ps(error, change, seen->sums[ERROR_CHANGE]);
    seen->sums[ERROR_ERROR] = _mm256_fmadd_ps(error, error, seen->sums[ERROR_ERROR]);
    seen->largest = _mm256_max_epi32(seen->largest, magnitudes(exact));
}

/* Part of a row, W + ΔW, rounded and measured. A lane sums at most STRIP / LANES products before it goes to double. */
INLINE void finish(const uint16_t *base, const float *delta, uint16_t *out, size_t width, Kind from, Kind to,
                   __m256d *sums, __m256i *largest) {
    uint16_t last[LANES] = {0}; /* and zeros, which add nothing */
    size_t whole = width / LANES * LANES, rest = (width - whole) * sizeof *last;
    Measured seen = {.largest = *largest};
    for (size_t column = 0; column < whole; column += LANES)
        finish_vector(base + column, delta + column, out + column, from, to, &seen);
    if (rest) {
        memcpy(last, base + whole, rest);
        finish_vector(last, delta + whole, last, from, to, &seen);
        memcpy(out + whole, last, rest);
    }
    for (int number = 0; number < SUMS; number++)
        add_lanes(sums + number, seen.sums[number]);
    *largest = seen.largest;
}

/* Some columns of a matrix as panels [rows][WIDE], zeros behind the last one. */
static void pack(const float *matrix, size_t rows, size_t columns, size_t width, float *panels) {
    for (size_t column = 0; column < width; column += WIDE) {
        size_t count = least(width - column, WIDE);
        for (size_t row = 0; row < rows; row++, panels += WIDE) {
            memcpy(panels, matrix + row * columns + column, count * sizeof *panels);
            memset(panels + count, 0, (WIDE - count) * sizeof *panels);
        }
    }
}

/* `edit_rows`; `panels` has room for inner * STRIP values. Whether all that was stored is finite. */
VECTORS static int edit(const uint16_t *base, const float *left, const float *right, uint16_t *out, size_t rows,
                        size_t columns, size_t inner, Kind from, Kind to, float *panels, double *sums) {
    float delta[TALL * STRIP];
    __m256d lanes[SUMS] = {0};
    __m256i largest = _mm256_setzero_si256();
    for (size_t begin = 0; begin < columns; begin += STRIP) {
        size_t width = least(columns - begin, STRIP);
        pack(right + begin, inner, columns, width, panels);
        for (size_t first = 0; first < rows; first += TALL) {
            size_t count = least(rows - first, TALL);
            for (size_t column = 0; column < width; column += WIDE)
                product(count, left + first * inner, inner, 1, panels + column * inner, inner, delta + column, STRIP);
            for (size_t row = 0; row < count; row++) {
                size_t at = (first + row) * columns + begin;
                finish(base + at, delta + row * STRIP, out + at, width, from, to, lanes, &largest);
            }
        }
    }
    for (int number = 0; number < SUMS; number++)
        sums[number] = lanes[number][0] + lanes[number][1] + lanes[number][2] + lanes[number][3];
    return largest_lane(largest) < least_infinite(to);
}

/* Some columns of stored rows as panels [rows][WIDE] of float32, zeros behind the last one. */
INLINE void widen(const uint16_t *stored, size_t rows, size_t columns, size_t width, Kind kind, float *panels,
                  __m256i *largest) {
    for (size_t column = 0; column < width; column += WIDE) {
        size_t count = least(width - column, WIDE);
        for (size_t row = 0; row < rows; row++, panels += WIDE) {
            uint16_t last[WIDE] = {0};
            const uint16_t *from = stored + row * columns + column;
            if (count < WIDE)
                from = memcpy(last, from, count * sizeof *last);
            for (size_t lane = 0; lane < WIDE; lane += LANES) {
                __m256 value = widened(_mm_loadu_si128((const __m128i *)(from + lane)), kind);
                *largest = _mm256_max_epi32(*largest, magnitudes(value));
                _mm256_storeu_ps(panels + lane, value);
            }
        }
    }
}

/* `add_product`; `panels` has room for block * SUM_STRIP values. Whether all stored values are finite. */
VECTORS static int project(const uint16_t *stored, const float *right, double *sum, size_t rows, size_t columns,
                           size_t inner, size_t block, Kind kind, float *panels) {
    float part[TALL * WIDE];
    __m256i largest = _mm256_setzero_si256();
    for (size_t begin = 0; begin < columns; begin += SUM_STRIP) {
        size_t width = least(columns - begin, SUM_STRIP);
        for (size_t first = 0; first < rows; first += block) {
            size_t count = least(rows - first, block);
            widen(stored + first * columns + begin, count, columns, width, kind, panels, &largest);
            for (size_t column = 0; column < width; column += WIDE)
                for (size_t l = 0; l < inner; l += TALL) {
                    size_t tall = least(inner - l, TALL), wide = least(width - column, WIDE);
                    product(tall, right + first * inner + l, 1, inner, panels + column * count, count, part, WIDE);
                    for (size_t row = 0; row < tall; row++)
                        for (size_t lane = 0; lane < wide; lane++)
                            sum[(l + row) * columns + begin + column + lane] += part[row * WIDE + lane];
                }
        }
    }
    return largest_lane(largest) < least_infinite(BF16); /* of fp16 all but NaN and infinity are small */
}

static int is_available(void) {
    unsigned eax, ebx, ecx = 0, edx;
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __get_cpuid(1, &eax, &ebx, &ecx, &edx) &&
           (ecx & bit_F16C);
}

#else

enum { STRIP = 1, SUM_STRIP = 1 };

static int is_available(void) { return 0; }

static int edit(const uint16_t *base, const float *left, const float *right, uint16_t *out, size_t rows, size_t columns,
                size_t inner, Kind from, Kind to, float *panels, double *sums) {
    return 0;
}

static int project(const uint16_t *stored, const float *right, double *sum, size_t rows, size_t columns, size_t inner,
                   size_t block, Kind kind, float *panels) {
    return 0;
}

#endif

/* A buffer, and what it must be: rows * columns values of `item` bytes. */
typedef struct {
    Py_buffer view;
    const char *name;
    size_t item;
} Matrix;

/* Whether no number is negative, and this processor can compute. */
static int is_callable(const Py_ssize_t *numbers, int count) {
    if (!is_available()) {
        PyErr_SetString(PyExc_RuntimeError, "the compiled rows need a processor of x86-64 with AVX2, FMA and F16C");
        return 0;
    }
    for (int index = 0; index < count; index++)
        if (numbers[index] < 0) {
            PyErr_Format(PyExc_ValueError, "a size is %zd: sizes are at least 0", numbers[index]);
            return 0;
        }
    return 1;
}

static int has_rows(size_t block) {
    if (!block)
        PyErr_SetString(PyExc_ValueError, "a block has no rows: it has at least 1");
    return block > 0;
}

static int is_kind(int kind) {
    if (kind != BF16 && kind != F16)
        PyErr_Format(PyExc_ValueError, "kind %d is unknown: 0 is bf16, 1 fp16", kind);
    return kind == BF16 || kind == F16;
}

static int has_size(const Matrix *matrix, size_t rows, size_t columns) {
    if (columns && rows > (size_t)PY_SSIZE_T_MAX / matrix->item / columns)
        PyErr_Format(PyExc_ValueError, "%s: %zu rows of %zu values are too many", matrix->name, rows, columns);
    else if ((size_t)matrix->view.len != rows * columns * matrix->item)
        PyErr_Format(PyExc_ValueError, "%s has %zd bytes, not the %zu of %zu rows of %zu values", matrix->name,
                     matrix->view.len, rows * columns * matrix->item, rows, columns);
    else if (matrix->item > 2 && (uintptr_t)matrix->view.buf % matrix->item) /* what is stored is read bytewise */
        PyErr_Format(PyExc_ValueError, "%s does not begin at a multiple of %zu bytes", matrix->name, matrix->item);
    else
        return 1;
    return 0;
}

/* Room for `values` * strip float32; NULL with an error set. */
static float *room(size_t values, size_t strip) {
    float *memory = values > PY_SSIZE_T_MAX / sizeof(float) / strip ? NULL : malloc(values * strip * sizeof(float) + 1);
    if (memory == NULL)
        PyErr_NoMemory();
    return memory;
}

static PyObject *edit_rows(PyObject *module, PyObject *arguments) {
    Matrix base = {.name = "base", .item = 2}, left = {.name = "left", .item = 4};
    Matrix right = {.name = "right", .item = 4}, out = {.name = "out", .item = 2};
    Py_ssize_t sizes[3];
    int from, to, finite;
    if (!PyArg_ParseTuple(arguments, "y*y*y*w*nnnii:edit_rows", &base.view, &left.view, &right.view, &out.view, sizes,
                          sizes + 1, sizes + 2, &from, &to))
        return NULL;
    size_t rows = sizes[0], columns = sizes[1], inner = sizes[2];
    PyObject *result = NULL;
    float *panels = NULL;
    double sums[SUMS] = {0};
    if (is_callable(sizes, 3) && is_kind(from) && is_kind(to) && has_size(&base, rows, columns) &&
        has_size(&left, rows, inner) && has_size(&right, inner, columns) && has_size(&out, rows, columns) &&
        (panels = room(inner, STRIP)) != NULL) {
        Py_BEGIN_ALLOW_THREADS;
        finite = edit(base.view.buf, left.view.buf, right.view.buf, out.view.buf, rows, columns, inner, (Kind)from,
                      (Kind)to, panels, sums);
        Py_END_ALLOW_THREADS;
        result = Py_BuildValue("Ndddd", PyBool_FromLong(finite), sums[BASE_BASE], sums[CHANGE_CHANGE],
                               sums[ERROR_CHANGE], sums[ERROR_ERROR]);
    }
    free(panels);
    PyBuffer_Release(&base.view);
    PyBuffer_Release(&left.view);
    PyBuffer_Release(&right.view);
    PyBuffer_Release(&out.view);
    return result;
}

static PyObject *add_product(PyObject *module, PyObject *arguments) {
    Matrix stored = {.name = "stored", .item = 2}, right = {.name = "right", .item = 4};
    Matrix total = {.name = "total", .item = 8};
    Py_ssize_t sizes[4];
    int kind, finite;
    if (!PyArg_ParseTuple(arguments, "y*y*w*nnnni:add_product", &stored.view, &right.view, &total.view, sizes,
                          sizes + 1, sizes + 2, sizes + 3, &kind))
        return NULL;
    size_t rows = sizes[0], columns = sizes[1], inner = sizes[2], block = sizes[3];
    PyObject *result = NULL;
    float *panels = NULL;
    if (is_callable(sizes, 4) && has_rows(block) && is_kind(kind) && has_size(&stored, rows, columns) &&
        has_size(&right, rows, inner) && has_size(&total, inner, columns) &&
        (panels = room(rows < block ? rows : block, SUM_STRIP)) != NULL) {
        Py_BEGIN_ALLOW_THREADS;
        finite = project(stored.view.buf, right.view.buf, total.view.buf, rows, columns, inner, block, (Kind)kind,
                         panels);
        Py_END_ALLOW_THREADS;
        result = PyBool_FromLong(finite);
    }
    free(panels);
    PyBuffer_Release(&stored.view);
    PyBuffer_Release(&right.view);
    PyBuffer_Release(&total.view);
    return result;
}

static PyObject *available(PyObject *module, PyObject *arguments) { return PyBool_FromLong(is_available()); }

static PyMethodDef methods[] = {
    {"available", available, METH_NOARGS, "Whether this processor can compute the other two."},
    {"edit_rows", edit_rows, METH_VARARGS,
     "edit_rows(base, left, right, out, rows, columns, inner, kind, out_kind): whether all is finite, and four sums."},
    {"add_product", add_product, METH_VARARGS,
     "add_product(stored, right, total, rows, columns, inner, block, kind): whether all is finite."},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot slots[] = {{0, NULL}};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "_row_kernel",
    .m_doc = "Rows of edited weights; `row_kernel` says what is computed.",
    .m_methods = methods,
    .m_slots = slots,
};

PyMODINIT_FUNC PyInit__row_kernel(void) { return PyModuleDef_Init(&definition); }
