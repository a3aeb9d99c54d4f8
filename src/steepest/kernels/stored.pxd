"""Elements as they are stored, and as floats: the conversions that codecs and loops share.

What is decoded is exact. What is encoded is rounded to nearest, ties to even, once. Bit patterns
are looked at as integers, and there are selections in place of branches, so that loops vectorise;
the twins in NumPy are in ``steepest.codecs``.
"""
from libc.stdint cimport int16_t, int32_t, uint16_t, uint32_t
from libc.string cimport memcpy

# Those of 16 bits are structs, for the compiler to tell them apart.
ctypedef struct float16:
    uint16_t bits
ctypedef struct bfloat16:
    uint16_t bits


# A loop of a rule over parameter, gradient and states as they are stored; see ``stored_loops.py``.
ctypedef void (*stored_loop)(void *p, const void *g, void *a, void *b, void *c, void *d,
                             Py_ssize_t n, double factor, double keep,
                             const double *h) noexcept nogil


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


cdef inline float from_bfloat16(bfloat16 x) noexcept nogil:
    return from_bits(<uint32_t>x.bits << 16)


cdef inline bfloat16 to_bfloat16(float x) noexcept nogil:
    cdef bfloat16 y
    cdef uint32_t bits = bits_of(x)
    cdef uint32_t rounded = (bits + <uint32_t>0x7fff + ((bits >> 16) & <uint32_t>1)) >> 16
    cdef uint32_t quiet = (bits >> 16) | <uint32_t>0x40  # a NaN stays one
    y.bits = <uint16_t>(quiet if bits & <uint32_t>0x7fffffff > <uint32_t>0x7f800000 else rounded)
    return y


cdef inline float joined(bfloat16 high, int16_t low) noexcept nogil:
    return from_bits((<uint32_t>high.bits << 16) + <uint32_t><int32_t>low)


cdef inline void split(float x, bfloat16 *high, int16_t *low) noexcept nogil:
    """The nearest bfloat16, ties away from 0, and what its bits lack of those of x."""
    cdef uint32_t bits = bits_of(x), upper = (bits + <uint32_t>0x8000) >> 16
    cdef uint32_t quiet = (bits >> 16) | <uint32_t>0x40
    cdef uint32_t nan = bits & <uint32_t>0x7fffffff > <uint32_t>0x7f800000
    high.bits = <uint16_t>(quiet if nan else upper)
    low[0] = <int16_t>(<uint32_t>0 if nan else bits)


cdef inline float from_float16(float16 x) noexcept nogil:
    cdef uint32_t magnitude = x.bits & <uint32_t>0x7fff
    # Exponents are biased by 15 and by 127; infinity and NaN have the largest of either.
    cdef uint32_t normal = (magnitude << 13) + (<uint32_t>112 << 23
                                                if magnitude < <uint32_t>0x7c00
                                                else <uint32_t>224 << 23)
    cdef float small = <float>(<int32_t>magnitude) * <float>5.9604644775390625e-08
    normal = normal if magnitude >= <uint32_t>0x0400 else bits_of(small)
    return from_bits(normal | (x.bits & <uint32_t>0x8000) << 16)


cdef inline float16 to_float16(float x) noexcept nogil:
    cdef float16 y
    cdef uint32_t bits = bits_of(x)
    cdef uint32_t magnitude = bits & <uint32_t>0x7fffffff
    cdef uint32_t normal = (magnitude - (<uint32_t>112 << 23) + <uint32_t>0x0fff
                            + ((magnitude >> 13) & <uint32_t>1)) >> 13
    # Below 2^-14 elements are multiples of 2^-24, which is the unit of floats from 1/2 on.
    cdef uint32_t small = bits_of(from_bits(magnitude) + <float>0.5) - <uint32_t>0x3f000000
    normal = normal if magnitude >= <uint32_t>0x38800000 else small
    normal = normal if magnitude < <uint32_t>0x47800000 else <uint32_t>0x7c00
    normal = normal if magnitude <= <uint32_t>0x7f800000 else <uint32_t>0x7e00
    y.bits = <uint16_t>(normal | ((bits >> 16) & <uint32_t>0x8000))
    return y
