"""How one stored array becomes a row of float or double in L1 and goes back. Compiled once per
instruction-set level.

CODECS maps the name of a format to (decode to float, decode to double, encode from float, encode
from double). A contiguous, aligned array of the row's own type needs no codec: its blocks are
borrowed. What else an array's format says, and the twin of its codec in NumPy, stand in
``memory/formats.py``; no rule, operation or sweep knows of formats.

A codec is two functions of one element, `widened` and `narrowed`, and their loops over a run of
elements at one stride and over a contiguous run, which the compiler vectorises. Whatever is
narrowed is rounded to nearest, ties to even, once.
"""
from cpython.pycapsule cimport PyCapsule_New
from libc.stdint cimport int32_t, uint16_t, uint32_t
from libc.string cimport memcpy

from steepest.kernels.contract cimport (
    MAXDIMS, Operand, decode_double, decode_float, encode_double, encode_float, real,
)

CODECS = {}

# What arrays are made of. Those of 16 bits are structs, for the compiler to tell them apart.
ctypedef float float32
ctypedef double float64
ctypedef struct float16:
    uint16_t bits
ctypedef struct bfloat16:
    uint16_t bits

ctypedef fused stored:
    float32
    float64
    float16
    bfloat16


cdef object entry(decode_float to_float, decode_double to_double, encode_float from_float,
                  encode_double from_double):
    return (PyCapsule_New(<void *>to_float, "steepest.codec", NULL),
            PyCapsule_New(<void *>to_double, "steepest.codec", NULL),
            PyCapsule_New(<void *>from_float, "steepest.codec", NULL),
            PyCapsule_New(<void *>from_double, "steepest.codec", NULL))


cdef inline Py_ssize_t seek(const Operand *x, Py_ssize_t start, Py_ssize_t *index) noexcept nogil:
    """Sets `index` to the start-th element in loop order and returns its byte offset."""
    cdef Py_ssize_t offset = 0, rest = start
    cdef int axis
    for axis in range(x.ndim - 1, -1, -1):
        index[axis] = rest % x.shape[axis]
        rest = rest // x.shape[axis]
        offset += index[axis] * x.strides[axis]
    return offset


cdef inline Py_ssize_t carry(const Operand *x, Py_ssize_t offset, Py_ssize_t *index) noexcept nogil:
    """From the end of the innermost axis to the beginning of the next run."""
    cdef int axis = x.ndim - 1
    while axis > 0 and index[axis] == x.shape[axis]:
        offset -= index[axis] * x.strides[axis]
        index[axis] = 0
        axis -= 1
        index[axis] += 1
        offset += x.strides[axis]
    return offset


# One element. Bit patterns are looked at as integers; selections, for a loop with a branch does not
# vectorise.

cdef inline float from_bits(uint32_t bits) noexcept nogil:
    cdef float x
    memcpy(&x, &bits, sizeof(float))
    return x


cdef inline uint32_t bits_of(float x) noexcept nogil:
    cdef uint32_t bits
    memcpy(&bits, &x, sizeof(float))
    return bits


cdef inline float to_odd(double x) noexcept nogil:
    """x as a float if it is one, else the next one to it, towards 0, with its last bit set. Rounded
    once more, to fewer bits, that gives what x itself would."""
    cdef float near = <float>x
    cdef double back = <double>near
    cdef uint32_t beyond = (back < x) if x < <double>0 else (back > x)
    cdef uint32_t inexact = back < x
    inexact |= back > x
    return from_bits((bits_of(near) - beyond) | inexact)


cdef inline real widened(stored x, real unused) noexcept nogil:
    cdef uint32_t magnitude, normal
    cdef float small
    if stored is float16:
        magnitude = x.bits & <uint32_t>0x7fff
        # Exponents are biased by 15 and by 127; infinity and NaN have the largest of either.
        normal = (magnitude << 13) + (<uint32_t>112 << 23 if magnitude < <uint32_t>0x7c00
                                      else <uint32_t>224 << 23)
        small = <float>(<int32_t>magnitude) * <float>5.9604644775390625e-08
        normal = normal if magnitude >= <uint32_t>0x0400 else bits_of(small)
        return <real>from_bits(normal | (x.bits & <uint32_t>0x8000) << 16)
    elif stored is bfloat16:
        return <real>from_bits(<uint32_t>x.bits << 16)
    else:
        return <real>x


cdef inline stored narrowed(real x, const stored *kind) noexcept nogil:
    cdef stored y
    cdef float near
    cdef uint32_t bits, magnitude, normal, small
    if stored is float16 or stored is bfloat16:
        if real is float:
            near = x
        else:
            near = to_odd(x)
        bits = bits_of(near)
        magnitude = bits & <uint32_t>0x7fffffff
        if stored is bfloat16:
            normal = (bits + <uint32_t>0x7fff + ((bits >> 16) & <uint32_t>1)) >> 16
            small = (bits >> 16) | <uint32_t>0x40  # a NaN stays one
            y.bits = <uint16_t>(small if magnitude > <uint32_t>0x7f800000 else normal)
        else:
            normal = (magnitude - (<uint32_t>112 << 23) + <uint32_t>0x0fff
                      + ((magnitude >> 13) & <uint32_t>1)) >> 13
            # Below 2^-14 elements are multiples of 2^-24, which is the unit of floats from 1/2 on.
            small = bits_of(from_bits(magnitude) + <float>0.5) - <uint32_t>0x3f000000
            normal = normal if magnitude >= <uint32_t>0x38800000 else small
            normal = normal if magnitude < <uint32_t>0x47800000 else <uint32_t>0x7c00
            normal = normal if magnitude <= <uint32_t>0x7f800000 else <uint32_t>0x7e00
            y.bits = <uint16_t>(normal | ((bits >> 16) & <uint32_t>0x8000))
        return y
    else:
        return <stored>x


# A contiguous run, and one of any stride and alignment: memcpy reads what is not aligned.

cdef void widen(const char *memory, Py_ssize_t n, real *restrict row,
                const stored *kind) noexcept nogil:
    cdef const stored *x = <const stored *>memory
    cdef Py_ssize_t i
    for i in range(n):
        row[i] = widened(x[i], <real>0)


cdef void narrow(char *memory, Py_ssize_t n, const real *restrict row,
                const stored *kind) noexcept nogil:
    cdef stored *x = <stored *>memory
    cdef Py_ssize_t i
    for i in range(n):
        x[i] = narrowed(row[i], kind)


cdef void gather(const char *x, Py_ssize_t stride, Py_ssize_t n, real *row,
                 const stored *kind) noexcept nogil:
    cdef stored one
    cdef Py_ssize_t i
    for i in range(n):
        memcpy(&one, x + i * stride, sizeof(stored))
        row[i] = widened(one, <real>0)


cdef void scatter(char *x, Py_ssize_t stride, Py_ssize_t n, const real *row,
                  const stored *kind) noexcept nogil:
    cdef stored one
    cdef Py_ssize_t i
    for i in range(n):
        one = narrowed(row[i], kind)
        memcpy(x + i * stride, &one, sizeof(stored))


# A block: one contiguous run, or as many as it takes. `kind`, NULL, says by its type what is stored.

cdef inline bint contiguous(const Operand *x, Py_ssize_t size) noexcept nogil:
    return x.ndim == 1 and x.strides[0] == size and <size_t>x.data % <size_t>size == 0


cdef void decoded(const Operand *x, Py_ssize_t start, Py_ssize_t n, real *row,
                  const stored *kind) noexcept nogil:
    cdef Py_ssize_t index[MAXDIMS]
    cdef Py_ssize_t offset, done = 0, run
    cdef int inner = x.ndim - 1
    if contiguous(x, sizeof(stored)):
        widen(x.data + start * <Py_ssize_t>sizeof(stored), n, row, kind)
        return
    offset = seek(x, start, index)
    while done < n:
        run = min(n - done, x.shape[inner] - index[inner])
        gather(x.data + offset, x.strides[inner], run, row + done, kind)
        done += run
        index[inner] += run
        offset = carry(x, offset + run * x.strides[inner], index)


cdef void encoded(Operand *x, Py_ssize_t start, Py_ssize_t n, const real *row,
                  const stored *kind) noexcept nogil:
    cdef Py_ssize_t index[MAXDIMS]
    cdef Py_ssize_t offset, done = 0, run
    cdef int inner = x.ndim - 1
    if contiguous(x, sizeof(stored)):
        narrow(x.data + start * <Py_ssize_t>sizeof(stored), n, row, kind)
        return
    offset = seek(x, start, index)
    while done < n:
        run = min(n - done, x.shape[inner] - index[inner])
        scatter(x.data + offset, x.strides[inner], run, row + done, kind)
        done += run
        index[inner] += run
        offset = carry(x, offset + run * x.strides[inner], index)


cdef void decode_float32(const Operand *x, Py_ssize_t start, Py_ssize_t n,
                         real *row) noexcept nogil:
    decoded(x, start, n, row, <const float32 *>NULL)


cdef void encode_float32(Operand *x, Py_ssize_t start, Py_ssize_t n,
                         const real *row) noexcept nogil:
    encoded(x, start, n, row, <const float32 *>NULL)

CODECS["float32"] = entry(decode_float32, decode_float32, encode_float32, encode_float32)


cdef void decode_float64(const Operand *x, Py_ssize_t start, Py_ssize_t n,
                         real *row) noexcept nogil:
    decoded(x, start, n, row, <const float64 *>NULL)


cdef void encode_float64(Operand *x, Py_ssize_t start, Py_ssize_t n,
                         const real *row) noexcept nogil:
    encoded(x, start, n, row, <const float64 *>NULL)

CODECS["float64"] = entry(decode_float64, decode_float64, encode_float64, encode_float64)


cdef void decode_float16(const Operand *x, Py_ssize_t start, Py_ssize_t n,
                         real *row) noexcept nogil:
    decoded(x, start, n, row, <const float16 *>NULL)


cdef void encode_float16(Operand *x, Py_ssize_t start, Py_ssize_t n,
                         const real *row) noexcept nogil:
    encoded(x, start, n, row, <const float16 *>NULL)

CODECS["float16"] = entry(decode_float16, decode_float16, encode_float16, encode_float16)


cdef void decode_bfloat16(const Operand *x, Py_ssize_t start, Py_ssize_t n,
                          real *row) noexcept nogil:
    decoded(x, start, n, row, <const bfloat16 *>NULL)


cdef void encode_bfloat16(Operand *x, Py_ssize_t start, Py_ssize_t n,
                          const real *row) noexcept nogil:
    encoded(x, start, n, row, <const bfloat16 *>NULL)

CODECS["bfloat16"] = entry(decode_bfloat16, decode_bfloat16, encode_bfloat16, encode_bfloat16)
