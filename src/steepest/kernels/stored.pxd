"""Elements as they are stored, and as floats: the conversions that codecs and loops share.

What is decoded is exact. What is encoded is rounded to nearest, ties to even, once. Bit patterns
are looked at as integers, and there are selections in place of branches, so that loops vectorise;
the twins in NumPy are in ``steepest.codecs``.
"""
from libc.stdint cimport int16_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from steepest.kernels.groups cimport Group, Random, code_group

cdef enum:
    GROUP = 128            # elements that share a scale
    LOWEST = 16            # the smallest scale: below it codes would not be normal floats
    SIGNED_BITS = 20       # of a float that a signed code drops: it has 3 of the mantissa,
    SQUARE_BITS = 19       # and that of a square, which has 4
    NAN_BITS = 0x7fc00000      # of the float that every NaN becomes
    PER_ELEMENT = 0x9e3779b9   # by what the random numbers of neighbours begin apart

# Those of 16 bits are structs, for the compiler to tell them apart.
ctypedef struct float16:
    uint16_t bits
ctypedef struct bfloat16:
    uint16_t bits


# The arrays of a rule as they are stored, from some element on: the parameter, the gradient, four
# states; what is stored beside them, and where the random numbers of each begin.
cdef enum:
    ARRAYS = 6

cdef struct Stored:
    void *data[ARRAYS]
    void *beside[ARRAYS]
    uint32_t noise[ARRAYS]

# A loop of a rule over n elements of these; see ``stored_loops.py``.
ctypedef void (*stored_loop)(const Stored *x, Py_ssize_t n, double factor, double keep,
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
    cdef uint32_t bits = bits_of(x) if x == x else <uint32_t>NAN_BITS
    y.bits = <uint16_t>((bits + <uint32_t>0x7fff + ((bits >> 16) & <uint32_t>1)) >> 16)
    return y


cdef inline float joined(bfloat16 high, int16_t low) noexcept nogil:
    return from_bits((<uint32_t>high.bits << 16) + <uint32_t><int32_t>low)


cdef inline void split(float x, bfloat16 *high, int16_t *low) noexcept nogil:
    """The nearest bfloat16, ties away from 0, and what its bits lack of those of x."""
    cdef uint32_t bits = bits_of(x) if x == x else <uint32_t>NAN_BITS
    high.bits = <uint16_t>((bits + <uint32_t>0x8000) >> 16)
    low[0] = <int16_t>bits


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


# Random bits, by counting: those of an element follow from a number that is another one for each
# seed, parameter and step, and from the element's place. So they do not depend on who computes
# them, and each element's are uniform over the steps.

cdef inline uint32_t noise_base(uint64_t seed, int64_t number, int64_t t,
                                int64_t lane) noexcept nogil:
    """Where the random numbers of a parameter begin (`lane` 0), or those of its states (1), which
    share them. (The finalizer of SplitMix64.)"""
    cdef uint64_t x = seed * <uint64_t>0x9e3779b97f4a7c15 + <uint64_t>number
    x = mixed(x) * <uint64_t>0x9e3779b97f4a7c15 + <uint64_t>t
    x = mixed(x) * <uint64_t>0x9e3779b97f4a7c15 + <uint64_t>lane
    return <uint32_t>(mixed(x) >> 32)


cdef inline uint64_t mixed(uint64_t x) noexcept nogil:
    x = (x ^ (x >> 30)) * <uint64_t>0xbf58476d1ce4e5b9
    x = (x ^ (x >> 27)) * <uint64_t>0x94d049bb133111eb
    return x ^ (x >> 31)


cdef inline uint32_t noise(uint32_t at) noexcept nogil:
    """Random bits of the i-th element, whose `at` is base + i * PER_ELEMENT: 32 of them, of which
    the upper ones are the better ones."""
    return (at ^ (at >> 15)) * <uint32_t>0xd35a2d97


cdef inline void draw_group(Random *x, uint32_t at) noexcept nogil:
    """The random bits of a group's elements, which begin at `at`."""
    cdef Py_ssize_t i
    for i in range(GROUP):
        x.x[i] = noise(at)
        at += <uint32_t>PER_ELEMENT


# 8-bit floats of a group relative to a power of two, its scale, which is stored as the biased
# exponent of that. A code is the upper bits of a float, counted from 15 below the scale: of a
# signed one sign, 4 bits of exponent, 3 of mantissa; of a square, those of its root, 4 and 4. See
# ``groups.pxd``.

cdef inline uint32_t lowest_of(uint8_t scale) noexcept nogil:
    return (<uint32_t>scale - <uint32_t>15) << 23


cdef inline uint32_t magnitude_bits(float x) noexcept nogil:
    return bits_of(x) & <uint32_t>0x7fffffff


cdef inline uint8_t scale_of(uint32_t most, int dropped) noexcept nogil:
    """The scale of a group by the bits of its largest magnitude: no rounding exceeds it."""
    cdef uint32_t exponent = ((most & <uint32_t>0x7fffffff) + ((<uint32_t>1 << dropped) - 1)) >> 23
    exponent = exponent if exponent < <uint32_t>255 else <uint32_t>255
    return <uint8_t>(exponent if exponent > <uint32_t>LOWEST else <uint32_t>LOWEST)


cdef inline void usual_nan(Group *x, uint32_t most, Py_ssize_t n) noexcept nogil:
    """Makes each NaN of a group, whose largest magnitude has the bits `most`, the same one."""
    cdef Py_ssize_t k
    if most > <uint32_t>0x7f800000:
        k = 0
        while k < n:
            if x.x[k] != x.x[k]:
                x.x[k] = from_bits(<uint32_t>NAN_BITS)
            k += 1


cdef inline void encode_group(Group *x, uint8_t *restrict code, uint8_t *scale, uint32_t most,
                              uint32_t at, Py_ssize_t n, bint square) noexcept nogil:
    """A group of numbers, or of the roots of squares, whose largest magnitude has the bits `most`;
    `at` is where its random numbers begin."""
    cdef Random random
    cdef uint8_t codes[GROUP]
    draw_group(&random, at)
    usual_nan(x, most, n)
    scale[0] = scale_of(most, SQUARE_BITS if square else SIGNED_BITS)
    if n == GROUP:
        code_group(x.x, random.x, lowest_of(scale[0]), code, square)
    else:
        memset(&x.x[n], 0, (GROUP - n) * sizeof(float))
        code_group(x.x, random.x, lowest_of(scale[0]), codes, square)
        memcpy(code, codes, n)
