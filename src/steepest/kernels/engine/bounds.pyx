"""Which bytes are written: no gradient may touch one of them."""
from libc.stdlib cimport free, realloc


cdef int set_bounds(Bounds *b, list bounds) except -1:
    """Takes bounds (low, high), sorted and disjoint, in place of those before."""
    cdef size_t low, high
    cdef char **more
    b.count = 0
    if <Py_ssize_t>len(bounds) > b.capacity:
        more = <char **>realloc(b.lows, len(bounds) * sizeof(char *))
        if more == NULL:
            raise MemoryError
        b.lows = more
        more = <char **>realloc(b.highs, len(bounds) * sizeof(char *))
        if more == NULL:
            raise MemoryError
        b.highs, b.capacity = more, len(bounds)
    for low, high in bounds:
        b.lows[b.count] = <char *>low
        b.highs[b.count] = <char *>high
        b.count += 1
    return 0


cdef bint touches(const Bounds *b, const char *low, const char *high) noexcept:
    """Whether the bytes low to high overlap any written array: binary search."""
    cdef Py_ssize_t lo = 0, hi = b.count, middle
    while lo < hi:
        middle = (lo + hi) // 2
        if b.highs[middle] <= low:
            lo = middle + 1
        else:
            hi = middle
    return lo < b.count and b.lows[lo] < high


cdef void free_bounds(Bounds *b) noexcept:
    free(b.lows)
    free(b.highs)
