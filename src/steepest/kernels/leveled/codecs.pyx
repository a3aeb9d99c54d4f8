"""How one stored array becomes a row of float or double in L1 and goes back. Compiled once per
instruction-set level.

CODECS maps the name of a stored form to (decode to float, decode to double, encode from float,
encode from double); None where a form does not go with a type. A contiguous, aligned float or
double array needs no codec: its blocks are borrowed. What else an array's format says stands in
``memory/formats.py``; the codecs of further ones (bfloat16, split masters, 8-bit states) belong
here, and no rule, operation or sweep knows of them.
"""
from cpython.pycapsule cimport PyCapsule_New
from libc.string cimport memcpy

from steepest.kernels.contract cimport (
    MAXDIMS, Operand, decode_double, decode_float, encode_double, encode_float, real,
)

CODECS = {}


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


# A strided or misaligned array of the row's own type. memcpy reads what is not aligned.

cdef void gather(const Operand *x, Py_ssize_t start, Py_ssize_t n, real *row) noexcept nogil:
    cdef Py_ssize_t index[MAXDIMS]
    cdef Py_ssize_t offset = seek(x, start, index), done = 0, run, i
    cdef int inner = x.ndim - 1
    while done < n:
        run = min(n - done, x.shape[inner] - index[inner])
        for i in range(run):
            memcpy(row + done + i, x.data + offset + i * x.strides[inner], sizeof(real))
        done += run
        index[inner] += run
        offset = carry(x, offset + run * x.strides[inner], index)


cdef void scatter(Operand *x, Py_ssize_t start, Py_ssize_t n, const real *row) noexcept nogil:
    cdef Py_ssize_t index[MAXDIMS]
    cdef Py_ssize_t offset = seek(x, start, index), done = 0, run, i
    cdef int inner = x.ndim - 1
    while done < n:
        run = min(n - done, x.shape[inner] - index[inner])
        for i in range(run):
            memcpy(x.data + offset + i * x.strides[inner], row + done + i, sizeof(real))
        done += run
        index[inner] += run
        offset = carry(x, offset + run * x.strides[inner], index)

CODECS["strided"] = entry(gather, gather, scatter, scatter)
