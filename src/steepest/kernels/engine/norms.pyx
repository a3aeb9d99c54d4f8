"""Norms of gradients: each chunk is measured in a sweep, and its measures are combined in order.

A norm is NaN or infinite only where a gradient is; one beyond double is the largest double.
"""
from cpython.pycapsule cimport PyCapsule_GetPointer
from libc.float cimport DBL_MAX
from libc.math cimport INFINITY, frexp, isfinite, ldexp, pow, sqrt

from steepest.kernels.contract cimport larger
from steepest.kernels.engine.structs cimport Entry, Step, chunks_of
from steepest.kernels.engine.sweeps cimport AGAIN, MEASURE, reserve, reserve_partials, sweep
from steepest.kernels.engine.units cimport representable

# The least magnitude whose inverse is a double for certain: 2^-1000.
cdef double LEAST = ldexp(1.0, -1000)


cdef double bounded(double order) noexcept:
    """Above 1e18 the norm is the largest magnitude, but the power of its rounding has no bound."""
    return order if order == INFINITY else min(order, 1e18)


cdef int measure(Step *s, object kernels, double order, int threads) except -1:
    """Measures the gradients as they are, not scaled, for their norms of an order."""
    s.order = bounded(order)
    reserve_partials(s)
    reserve(s, threads)
    if order == 2.0:
        measured(s, kernels, "sum_squares", MEASURE, threads)
    elif order == 1.0:
        measured(s, kernels, "sum_magnitudes", MEASURE, threads)
    else:
        measured(s, kernels, "largest", MEASURE, threads)
    if order != INFINITY:
        measure_again(s, kernels, threads)
    return 0


cdef int measure_first(Step *s, object kernels) except -1:
    """Makes a coming sweep measure the gradients for their Euclidean norms, on its way."""
    s.order = 2.0
    reserve_partials(s)
    take_measure(s, kernels, "sum_squares")
    start_measuring(s)
    return 0


cdef int measured_first(Step *s, object kernels, int threads) except -1:
    """Ends what `measure_first` has begun, after the sweep."""
    combine(s, False, MEASURE)
    return measure_again(s, kernels, threads)


cdef int measure_again(Step *s, object kernels, int threads) except -1:
    """Measures those gradients once more, scaled, whose first measure is not exact enough:
    squares leave the range of double long before the elements do, other powers sooner. Squares
    and magnitudes are scaled by a power of two; other powers by the largest magnitude, whose
    own power, and so the sum, is then 1 or a little more for any order.
    """
    cdef Py_ssize_t i
    cdef Entry *e
    cdef bint powers = s.order != 1.0 and s.order != 2.0, some = False
    for i in range(s.actives):
        e = &s.entries[s.active[i]]
        e.again = e.size > 0 and (powers or e.in_double and not (
            (s.order == 1.0 or 1e-280 < e.measured) and e.measured < 1e300))
        some = some or e.again
    if not some:
        return 0
    if not powers:
        measured(s, kernels, "largest", AGAIN, threads)
    for i in range(s.actives):
        e = &s.entries[s.active[i]]
        if not (e.again and isfinite(e.measured) and e.measured > 0):
            e.again = False
        elif powers:
            e.largest = max(e.measured, LEAST)
            e.inverse = 1.0 / e.largest
        else:
            frexp(e.measured, &e.exponent)
            e.exponent = max(e.exponent, -1000)  # as LEAST
            e.inverse = ldexp(1.0, -e.exponent)
    return measured(s, kernels, "sum_powers" if powers else
                    "sum_squares" if s.order == 2.0 else "sum_magnitudes", AGAIN, threads)


cdef int take_measure(Step *s, object kernels, str name) except -1:
    functions = kernels.measures[name]
    s.measure_float = PyCapsule_GetPointer(functions[0], "steepest.measure")
    s.measure_double = PyCapsule_GetPointer(functions[1], "steepest.measure")
    return 0


cdef void start_measuring(Step *s) noexcept:
    """Takes the gradients as they are, not scaled."""
    cdef Py_ssize_t i
    cdef Entry *e
    for i in range(s.actives):
        e = &s.entries[s.active[i]]
        e.exponent, e.largest, e.inverse = 0, LEAST, 1.0


cdef int measured(Step *s, object kernels, str name, int what, int threads) except -1:
    """Measures the gradients, or AGAIN those marked so, and combines what is measured of each."""
    take_measure(s, kernels, name)
    if what == MEASURE:
        start_measuring(s)
    with nogil:
        sweep(s, what, threads)
    combine(s, name == "largest", what)
    return 0


cdef void combine(Step *s, bint most, int what) noexcept:
    """Combines the measures of an entry's chunks, in their order."""
    cdef Py_ssize_t i, chunk
    cdef double part
    cdef Entry *e
    for i in range(s.actives):
        e = &s.entries[s.active[i]]
        if what == AGAIN and not e.again:
            continue
        e.measured = 0
        for chunk in range(chunks_of(e)):
            part = s.partial[s.first[i] + chunk]
            e.measured = larger(e.measured, part) if most else e.measured + part


cdef double joint(const Step *s, list members) except? -1:
    """The norm of the measured entries among `members` (None: all) together."""
    cdef Py_ssize_t i, k, n = s.actives if members is None else len(members)
    cdef double total = 0, largest = LEAST
    cdef int exponent = 0
    cdef bint some = False
    cdef Entry *e
    for k in range(n):
        i = s.active[k] if members is None else <Py_ssize_t>members[k]
        e = &s.entries[i]
        if e.active and e.measured != 0:
            exponent = e.exponent if not some else max(e.exponent, exponent)
            largest = max(e.largest, largest)
            some = True
    for k in range(n):
        i = s.active[k] if members is None else <Py_ssize_t>members[k]
        e = &s.entries[i]
        if not e.active:
            continue
        if s.order == INFINITY:
            total = larger(total, e.measured)
        else:
            total += raised(s.order, e.measured, e.exponent, e.largest, exponent, largest)
    return norm(s.order, total, exponent, largest)


cdef double joint_of(list found, double order) except? -1:
    """The norm of gradients together that were measured in several steps, maybe of several plans:
    (measured, exponent, largest) of each, in their order. The bits of `joint`."""
    cdef double total = 0, x, own_largest, largest = LEAST
    cdef int exponent = 0, own_exponent
    cdef bint some = False
    order = bounded(order)
    for x, own_exponent, own_largest in found:
        if x != 0:
            exponent = own_exponent if not some else max(own_exponent, exponent)
            largest = max(own_largest, largest)
            some = True
    for x, own_exponent, own_largest in found:
        if order == INFINITY:
            total = larger(total, x)
        else:
            total += raised(order, x, own_exponent, own_largest, exponent, largest)
    return norm(order, total, exponent, largest)


cdef tuple norms(const Step *s):
    """The norms of all measured entries together, and of each; 0 for those without a gradient."""
    cdef Py_ssize_t i
    cdef Entry *e
    cdef list each = []
    for i in range(s.count):
        e = &s.entries[i]
        each.append(norm(s.order, e.measured, e.exponent, e.largest) if e.active else 0.0)
    return joint(s, None), each


cdef double raised(double order, double measured, int own_exponent, double own_largest,
                   int exponent, double largest) noexcept:
    """What was measured of an entry, had it been scaled by the given exponent or largest."""
    if measured == 0 or not isfinite(measured):
        return measured
    if order == 2.0:
        return ldexp(measured, 2 * (own_exponent - exponent))
    if order == 1.0:
        return ldexp(measured, own_exponent - exponent)
    return measured * pow(own_largest / largest, order)


cdef double norm(double order, double x, int exponent, double largest) noexcept:
    """The norm for a sum of powers; finite where the sum is."""
    if order == INFINITY:
        return x
    if order == 1.0:
        return representable(x, exponent)
    if order == 2.0:
        return representable(sqrt(x), exponent)
    cdef double root = largest * pow(x, 1.0 / order)
    return DBL_MAX if isfinite(x) and not isfinite(root) else root
