"""Which bytes are written: no gradient may touch one of them."""

cdef struct Bounds:
    # Bounds of all written arrays, sorted and disjoint.
    char **lows                        # owned
    char **highs
    Py_ssize_t count
    Py_ssize_t capacity

cdef int set_bounds(Bounds *b, list bounds) except -1
cdef bint touches(const Bounds *b, const char *low, const char *high) noexcept
cdef void free_bounds(Bounds *b) noexcept
