"""Python's arrays as C sees them: what an array looked like when it was bound, and whether an
object still looks like that."""
from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint8_t

cdef struct ElementType:
    # How the elements of an array are stored, as NumPy, DLPack and the buffer protocol say it.
    PyObject *dtype
    Py_ssize_t itemsize
    uint8_t code                       # DLPack's
    uint8_t bits
    const char *letters                # the buffer protocol's, without a sign for native order

cdef struct Source:
    # What the buffer of one array looked like when it was bound.
    char *data
    const ElementType *type
    int ndim
    Py_ssize_t *shape
    Py_ssize_t *strides
    Py_ssize_t low                     # bytes it reaches below and above `data`
    Py_ssize_t high


cdef const ElementType *type_of(object array) except NULL
cdef void reach(Source *s, Py_ssize_t itemsize) noexcept
cdef object held(object x)
cdef bint same(const Source *s, object x, char **data)
cdef bint still_as(object x, object array)
cdef bint still_at(object x, const char *home, const ElementType *type_, const Source *s,
                   const Py_ssize_t *strides) noexcept
cdef char *address(object x, bint writable) except? NULL
cdef int64_t *counter(object x) except NULL


cdef inline bint same_axes(const Py_ssize_t *x, const Py_ssize_t *y, int n) noexcept:
    cdef int axis
    for axis in range(n):
        if x[axis] != y[axis]:
            return False
    return True
