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


cdef enum:
    SQUARES = 64
    TABLES = 8

# The repeated squares of the betas seen last: a step computes the same ones again and again.
cdef double table_beta[TABLES]
cdef int table_length[TABLES]
cdef Pair table[TABLES][SQUARES]
cdef int newest = 0


cdef const Pair *squares(double beta, int n) noexcept:
    """beta^1, beta^2, beta^4, ... : the first n of them, or more."""
    cdef int k, slot
    for slot in range(TABLES):
        if table_length[slot] and table_beta[slot] == beta:
            break
    else:
        global newest
        newest = (newest + 1) % TABLES
        slot = newest
        table_beta[slot], table_length[slot] = beta, 1
        table[slot][0].high, table[slot][0].low = beta, 0.0
    for k in range(table_length[slot], n):
        table[slot][k].high, table[slot][k].low = 0.0, 0.0
        if table[slot][k - 1].high > 1e-150:  # else the square is far below the last bit of 1
            table[slot][k] = product(table[slot][k - 1], table[slot][k - 1])
        table_length[slot] = k + 1
    return table[slot]


cpdef double one_minus_power(double beta, long long t) noexcept:
    """1 - beta**t for 0 <= beta <= 1 and t >= 0, rounded once."""
    cdef Pair power
    cdef const Pair *square
    cdef double rest, error
    cdef int k = 0
    power.high, power.low = 1.0, 0.0
    while k < SQUARES - 1 and t >> k:
        k += 1
    square = squares(beta, max(k, 1))
    for k in range(k):
        if t >> k & 1 and power.high > 1e-200:
            power = product(power, square[k])
    rest = 1.0 - power.high
    error = (1.0 - rest) - power.high
    return rest + (error - power.low)
