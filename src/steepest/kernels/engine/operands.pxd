"""A row of a block: borrowed from a stored array, or decoded from it into scratch and put back."""
from steepest.kernels.contract cimport (
    Operand, decode_double, decode_float, encode_double, encode_float, real,
)


cdef inline real *decoded(Operand *x, Py_ssize_t start, Py_ssize_t n, real *row) noexcept nogil:
    """The elements start to start + n of x: borrowed, or decoded into the row."""
    if x.decode == NULL:
        return <real *>x.data + start
    if real is float:
        (<decode_float>x.decode)(x, start, n, row)
    else:
        (<decode_double>x.decode)(x, start, n, row)
    return row


cdef inline void encoded(Operand *x, Py_ssize_t start, Py_ssize_t n,
                         const real *row) noexcept nogil:
    """Puts a row back where it was not borrowed."""
    if x.encode != NULL:
        if real is float:
            (<encode_float>x.encode)(x, start, n, row)
        else:
            (<encode_double>x.encode)(x, start, n, row)
