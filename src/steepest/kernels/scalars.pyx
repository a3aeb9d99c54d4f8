"""Powers of the decay rates, exact enough to round correctly, the same on every platform.

A running product of betas drifts, and the C library's ``pow`` differs between systems. Here a
power is a product of squares kept as an unevaluated sum of two doubles (about 106 bits), made of
+, - and * only, so that its bits depend on nothing but beta and t.
"""


cdef struct Pair:
    double high
    double low


cdef inline Pair exact_product(double x, double y) noexcept nogil:
    """x * y without error: Dekker's product with Veltkamp's splitting."""
    cdef Pair result
    cdef double split = 134217729.0  # 2^27 + 1
    cdef double xc = split * x, yc = split * y
    cdef double xh = xc - (xc - x), yh = yc - (yc - y)
    cdef double xl = x - xh, yl = y - yh
    result.high = x * y
    result.low = ((xh * yh - result.high) + xh * yl + xl * yh) + xl * yl
    return result


cdef inline Pair product(Pair x, Pair y) noexcept nogil:
    cdef Pair result = exact_product(x.high, y.high)
    cdef double low = result.low + (x.high * y.low + x.low * y.high), high = result.high + low
    result.low = low - (high - result.high)
    result.high = high
    return result


cpdef double one_minus_power(double beta, long long t) noexcept:
    """1 - beta**t for 0 <= beta <= 1 and t >= 0, rounded once."""
    cdef Pair square, power
    cdef double rest, error
    square.high, square.low = beta, 0.0
    power.high, power.low = 1.0, 0.0
    while t > 0 and power.high > 1e-200:
        if t & 1:
            power = product(power, square)
        if square.high < 1e-150:
            square.high, square.low = 0.0, 0.0
        square = product(square, square)
        t >>= 1
    rest = 1.0 - power.high
    error = (1.0 - rest) - power.high
    return rest + (error - power.low)
