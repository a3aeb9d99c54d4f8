"""Looking at Python's arrays; see ``sources.pxd``. An array is looked at before every step, so it
must cost nanoseconds.
"""
from cpython.buffer cimport (
    PyBUF_FORMAT, PyBUF_STRIDES, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer,
)
from cpython.object cimport PyObject
from libc.stdint cimport int64_t

import numpy

# The head of a NumPy array, the same since NumPy 1.7: reading it takes 2 ns, the buffer protocol
# 50. It is compared with the buffer protocol once, at import, and not used if they disagree.
cdef extern from *:
    """
    typedef struct {
        PyObject_HEAD
        char *data;
        int ndim;
        Py_ssize_t *shape;
        Py_ssize_t *strides;
        PyObject *base;
        PyObject *descr;
        int flags;
    } steepest_array_head;
    """
    ctypedef struct ArrayHead "steepest_array_head":
        char *data
        int ndim
        Py_ssize_t *shape
        Py_ssize_t *strides
        PyObject *descr
        int flags

cdef enum:
    WRITEABLE = 0x0400

cdef object NDARRAY = numpy.ndarray
cdef object FLOAT = numpy.dtype(numpy.float32)
cdef object DOUBLE = numpy.dtype(numpy.float64)


cdef bint head_is_known():
    """Whether ArrayHead reads sample arrays as the buffer protocol does."""
    cdef Py_buffer view
    cdef const ArrayHead *head
    cdef bint result = True
    for writeable in (True, False):
        for dtype in (FLOAT, DOUBLE):
            x = numpy.zeros((5, 4, 3), dtype)[1:4:2, ::-1, 1:]
            x.flags.writeable = writeable
            head = <const ArrayHead *>x
            PyObject_GetBuffer(x, &view, PyBUF_FORMAT | PyBUF_STRIDES)
            result = (result and sizeof(ArrayHead) <= x.__sizeof__() and head.data == view.buf
                      and head.ndim == 3 and same_axes(head.shape, view.shape, 3)
                      and same_axes(head.strides, view.strides, 3)
                      and head.descr == <PyObject *>dtype
                      and bool(head.flags & WRITEABLE) == writeable)
            PyBuffer_Release(&view)
    return result

cdef bint HEAD_IS_KNOWN = head_is_known()


cdef void reach(Source *s, Py_ssize_t itemsize) noexcept:
    """How far the elements of s lie below and above its first."""
    cdef int axis
    cdef Py_ssize_t span
    s.low, s.high = 0, itemsize
    for axis in range(s.ndim):
        span = (s.shape[axis] - 1) * s.strides[axis]
        if span < 0:
            s.low += span
        else:
            s.high += span


cdef inline bint is_array(object x, bint is_double) noexcept:
    """Whether x is an ndarray of the type, so that its head may be read."""
    return (HEAD_IS_KNOWN and type(x) is NDARRAY
            and (<const ArrayHead *>x).descr == <PyObject *>(DOUBLE if is_double else FLOAT))


cdef bint same(const Source *s, object x, char **data):
    """Whether x has the type, shape and strides of s. Sets `data`."""
    cdef Py_buffer view
    cdef bint result
    cdef const ArrayHead *head
    if is_array(x, s.format == c"d"):
        head = <const ArrayHead *>x
        if (head.ndim == s.ndim and same_axes(head.shape, s.shape, s.ndim)
                and same_axes(head.strides, s.strides, s.ndim)):
            data[0] = head.data
            return True
    try:
        PyObject_GetBuffer(x, &view, PyBUF_FORMAT | PyBUF_STRIDES)
    except (BufferError, TypeError, ValueError):
        return False
    # NumPy writes the type of an unaligned array as "=f".
    result = (view.ndim == s.ndim and (view.format + (view.format[0] == c"="))[0] == s.format
              and view.itemsize == (8 if s.format == c"d" else 4)
              and same_axes(view.shape, s.shape, s.ndim)
              and same_axes(view.strides, s.strides, s.ndim))
    data[0] = <char *>view.buf
    PyBuffer_Release(&view)
    return result


cdef bint still_at(object x, const char *home, bint is_double):
    """Whether the data of x is where it was and may still be written."""
    cdef const ArrayHead *head
    if is_array(x, is_double):
        head = <const ArrayHead *>x
        return head.data == home and (head.flags & WRITEABLE) != 0
    try:
        return address(x, True) == home
    except (BufferError, TypeError, ValueError):
        return False


cdef char *address(object x, bint writable) except? NULL:
    """Where the data of x begins."""
    cdef Py_buffer view
    PyObject_GetBuffer(x, &view, PyBUF_STRIDES | (PyBUF_WRITABLE if writable else 0))
    PyBuffer_Release(&view)
    return <char *>view.buf


cdef inline bint same_axes(const Py_ssize_t *x, const Py_ssize_t *y, int n) noexcept:
    cdef int axis
    for axis in range(n):
        if x[axis] != y[axis]:
            return False
    return True


cdef int64_t *counter(object x) except NULL:
    """The address of a 0-d int64 array, which the caller keeps alive."""
    cdef Py_buffer view
    cdef int64_t *result
    PyObject_GetBuffer(x, &view, PyBUF_FORMAT | PyBUF_STRIDES | PyBUF_WRITABLE)
    result = <int64_t *>view.buf
    if view.ndim != 0 or view.itemsize != sizeof(int64_t) or view.format[0] not in b"lq":
        result = NULL
    PyBuffer_Release(&view)
    if result == NULL:
        raise ValueError("a counter must be a 0-d int64 array")
    return result
