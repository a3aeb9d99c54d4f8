"""How one stored array becomes a row of float or double in L1 and goes back. Compiled once per
instruction-set level.

CODECS maps the name of a format to (decode to float, decode to double, encode from float, encode
from double), and some formats to one more: encode from float past the caches, into a contiguous,
aligned array. A contiguous, aligned array of the row's own type needs no codec: its blocks are
borrowed. What else an array's format says, and the twin of its codec in NumPy, stand in
``memory/formats.py``; no rule, operation or sweep knows of formats.

A codec is two functions of one element (see ``stored.pxd``), and their loops over a contiguous run,
which the compiler vectorises, and over a run of any stride.
"""
from cpython.pycapsule cimport PyCapsule_New
from libc.stdint cimport int8_t, int16_t, int32_t, uint8_t, uint32_t
from libc.string cimport memcpy, memset

from steepest.kernels.contract cimport (
    MAXDIMS, Operand, decode_double, decode_float, encode_double, encode_float, real, root,
)
from steepest.kernels.groups cimport Group, decode_group
from steepest.kernels.streams cimport LINE, stream_line
from steepest.kernels.stored cimport (
    GROUP, PER_ELEMENT, bfloat16, bits_of, encode_group, float16, from_bfloat16, from_bits,
    from_float16, lowest_of, magnitude_bits, noise, split, to_bfloat16, to_float16, to_odd,
)

CODECS = {}

ctypedef float float32
ctypedef double float64

ctypedef fused stored:
    float32
    float64
    float16
    bfloat16


cdef object entry(decode_float to_float, decode_double to_double, encode_float from_float,
                  encode_double from_double):
    return (PyCapsule_New(<void *>to_float, "steepest.codec", NULL),
            PyCapsule_New(<void *>to_double, "steepest.codec", NULL),
            PyCapsule_New(<void *>from_float, "steepest.codec", NULL),
            PyCapsule_New(<void *>from_double, "steepest.codec", NULL))


cdef inline Py_ssize_t seek(const Operand *x, Py_ssize_t start, Py_ssize_t *index) noexcept nogil:
    """Sets `index` to the start-th element in loop order and returns its byte offset."""
    cdef Py_ssize_t offset = 0, rest = start
    cdef int axis
    for axis in range(x.ndim - 1, -1, -1):
        index[axis] = rest % x.shape[axis]
        rest = rest // x.shape[axis]
        offset += index[axis] * x.strides[axis]
    return offset


cdef inline Py_ssize_t carry(const Operand *x, Py_ssize_t offset, Py_ssize_t *index) noexcept nogil:
    """From the end of the innermost axis to the beginning of the next run."""
    cdef int axis = x.ndim - 1
    while axis > 0 and index[axis] == x.shape[axis]:
        offset -= index[axis] * x.strides[axis]
        index[axis] = 0
        axis -= 1
        index[axis] += 1
        offset += x.strides[axis]
    return offset


# One element.

cdef inline real widened(stored x, real unused) noexcept nogil:
    if stored is float16:
        return <real>from_float16(x)
    elif stored is bfloat16:
        return <real>from_bfloat16(x)
    else:
        return <real>x


cdef inline float narrower(real x) noexcept nogil:
    """x as a float that rounds to 16 bits as x does."""
    if real is float:
        return x
    else:
        return to_odd(x)


cdef inline stored narrowed(real x, const stored *kind) noexcept nogil:
    if stored is float16:
        return to_float16(narrower(x))
    elif stored is bfloat16:
        return to_bfloat16(narrower(x))
    else:
        return <stored>x


# A contiguous run, and one of any stride and alignment: memcpy reads what is not aligned.

cdef void widen(const char *memory, Py_ssize_t n, real *restrict row,
                const stored *kind) noexcept nogil:
    cdef const stored *x = <const stored *>memory
    cdef Py_ssize_t i
    for i in range(n):
        row[i] = widened(x[i], <real>0)


cdef void narrow(char *memory, Py_ssize_t n, const real *restrict row,
                 const stored *kind) noexcept nogil:
    cdef stored *x = <stored *>memory
    cdef Py_ssize_t i
    for i in range(n):
        x[i] = narrowed(row[i], kind)


cdef void gather(const char *x, Py_ssize_t stride, Py_ssize_t n, real *row,
                 const stored *kind) noexcept nogil:
    cdef stored one
    cdef Py_ssize_t i
    for i in range(n):
        memcpy(&one, x + i * stride, sizeof(stored))
        row[i] = widened(one, <real>0)


cdef void scatter(char *x, Py_ssize_t stride, Py_ssize_t n, const real *row,
                  const stored *kind) noexcept nogil:
    cdef stored one
    cdef Py_ssize_t i
    for i in range(n):
        one = narrowed(row[i], kind)
        memcpy(x + i * stride, &one, sizeof(stored))


# A block: one contiguous run, or as many as it takes. `kind`, NULL, has the type of an element.

cdef inline bint contiguous(const Operand *x, Py_ssize_t size) noexcept nogil:
    return x.ndim == 1 and x.strides[0] == size and <size_t>x.data % <size_t>size == 0


cdef void decoded(const Operand *x, Py_ssize_t start, Py_ssize_t n, real *row,
                  const stored *kind) noexcept nogil:
    cdef Py_ssize_t index[MAXDIMS]
    cdef Py_ssize_t offset, done = 0, run
    cdef int inner = x.ndim - 1
    if contiguous(x, sizeof(stored)):
        widen(x.data + start * <Py_ssize_t>sizeof(stored), n, row, kind)
        return
    offset = seek(x, start, index)
    while done < n:
        run = min(n - done, x.shape[inner] - index[inner])
        gather(x.data + offset, x.strides[inner], run, row + done, kind)
        done += run
        index[inner] += run
        offset = carry(x, offset + run * x.strides[inner], index)


cdef void encoded(Operand *x, Py_ssize_t start, Py_ssize_t n, const real *row,
                  const stored *kind) noexcept nogil:
    cdef Py_ssize_t index[MAXDIMS]
    cdef Py_ssize_t offset, done = 0, run
    cdef int inner = x.ndim - 1
    if contiguous(x, sizeof(stored)):
        narrow(x.data + start * <Py_ssize_t>sizeof(stored), n, row, kind)
        return
    offset = seek(x, start, index)
    while done < n:
        run = min(n - done, x.shape[inner] - index[inner])
        scatter(x.data + offset, x.strides[inner], run, row + done, kind)
        done += run
        index[inner] += run
        offset = carry(x, offset + run * x.strides[inner], index)


cdef void streamed(char *to, Py_ssize_t n, const float *row, const stored *kind) noexcept nogil:
    """Whole lines by non-temporal stores."""
    cdef Group lines
    cdef Py_ssize_t size = sizeof(stored), k
    cdef Py_ssize_t head = min(n, <Py_ssize_t>(-<size_t>to % LINE) // size)
    narrow(to, head, row, kind)
    to, row, n = to + head * size, row + head, n - head
    while n >= GROUP:
        narrow(<char *>&lines, GROUP, row, kind)
        k = 0
        while k < GROUP * size:
            stream_line(to + k, <char *>&lines + k)
            k += LINE
        to, row, n = to + GROUP * size, row + GROUP, n - GROUP
    narrow(to, n, row, kind)


cdef void decode_float32(const Operand *x, Py_ssize_t start, Py_ssize_t n,
                         real *row) noexcept nogil:
    decoded(x, start, n, row, <const float32 *>NULL)


cdef void encode_float32(Operand *x, Py_ssize_t start, Py_ssize_t n,
                         const real *row) noexcept nogil:
    encoded(x, start, n, row, <const float32 *>NULL)


cdef void stream_float32(Operand *x, Py_ssize_t start, Py_ssize_t n,
                         const float *row) noexcept nogil:
    streamed(x.data + start * <Py_ssize_t>sizeof(float32), n, row, <const float32 *>NULL)

CODECS["float32"] = (
    *entry(decode_float32, decode_float32, encode_float32, encode_float32),
    PyCapsule_New(<void *>stream_float32, "steepest.codec", NULL),
)


cdef void decode_float64(const Operand *x, Py_ssize_t start, Py_ssize_t n,
                         real *row) noexcept nogil:
    decoded(x, start, n, row, <const float64 *>NULL)


cdef void encode_float64(Operand *x, Py_ssize_t start, Py_ssize_t n,
                         const real *row) noexcept nogil:
    encoded(x, start, n, row, <const float64 *>NULL)

CODECS["float64"] = entry(decode_float64, decode_float64, encode_float64, encode_float64)


cdef void decode_float16(const Operand *x, Py_ssize_t start, Py_ssize_t n,
                         real *row) noexcept nogil:
    decoded(x, start, n, row, <const float16 *>NULL)


cdef void encode_float16(Operand *x, Py_ssize_t start, Py_ssize_t n,
                         const real *row) noexcept nogil:
    encoded(x, start, n, row, <const float16 *>NULL)


cdef void stream_float16(Operand *x, Py_ssize_t start, Py_ssize_t n,
                         const float *row) noexcept nogil:
    streamed(x.data + start * <Py_ssize_t>sizeof(float16), n, row, <const float16 *>NULL)

CODECS["float16"] = (
    *entry(decode_float16, decode_float16, encode_float16, encode_float16),
    PyCapsule_New(<void *>stream_float16, "steepest.codec", NULL),
)


cdef void decode_bfloat16(const Operand *x, Py_ssize_t start, Py_ssize_t n,
                          real *row) noexcept nogil:
    decoded(x, start, n, row, <const bfloat16 *>NULL)


cdef void encode_bfloat16(Operand *x, Py_ssize_t start, Py_ssize_t n,
                          const real *row) noexcept nogil:
    encoded(x, start, n, row, <const bfloat16 *>NULL)


cdef void stream_bfloat16(Operand *x, Py_ssize_t start, Py_ssize_t n,
                          const float *row) noexcept nogil:
    streamed(x.data + start * <Py_ssize_t>sizeof(bfloat16), n, row, <const bfloat16 *>NULL)

CODECS["bfloat16"] = (
    *entry(decode_bfloat16, decode_bfloat16, encode_bfloat16, encode_bfloat16),
    PyCapsule_New(<void *>stream_bfloat16, "steepest.codec", NULL),
)


# Parameters with a master, PIECE elements at a time, which stay in L1.

cdef enum:
    PIECE = 256

ctypedef fused remainder:
    int16_t
    int8_t

ctypedef fused short_float:
    float16
    bfloat16


cdef void join(const Operand *x, Py_ssize_t start, Py_ssize_t n, real *restrict row,
               const remainder *kind) noexcept nogil:
    cdef const remainder *restrict low = <const remainder *>x.beside + start
    cdef uint32_t unit = <uint32_t>256 if remainder is int8_t else <uint32_t>1
    cdef Py_ssize_t i
    decoded(x, start, n, row, <const bfloat16 *>NULL)
    for i in range(n):
        row[i] = <real>from_bits(bits_of(<float>row[i]) + <uint32_t><int32_t>low[i] * unit)


cdef inline float to_24_bits(float x) noexcept nogil:
    """The nearest float whose last eight bits are 0, ties to even."""
    cdef uint32_t bits = bits_of(x)
    cdef uint32_t rounded = bits + <uint32_t>0x7f + ((bits >> 8) & <uint32_t>1)
    cdef uint32_t quiet = bits | <uint32_t>0x400000  # a NaN stays one
    rounded = quiet if bits & <uint32_t>0x7fffffff > <uint32_t>0x7f800000 else rounded
    return from_bits(rounded & <uint32_t>0xffffff00)


cdef void split_piece(const real *restrict row, Py_ssize_t n, float *restrict upper,
                      remainder *restrict low) noexcept nogil:
    cdef bfloat16 high
    cdef int16_t rest
    cdef Py_ssize_t i
    for i in range(n):
        if remainder is int8_t:
            split(to_24_bits(<float>row[i]), &high, &rest)
            low[i] = <int8_t>(rest >> 8)
        else:
            split(<float>row[i], &high, &rest)
            low[i] = rest
        upper[i] = from_bfloat16(high)


cdef void part(Operand *x, Py_ssize_t start, Py_ssize_t n, const real *row,
               const remainder *kind) noexcept nogil:
    cdef float upper[PIECE]
    cdef Py_ssize_t done = 0, m
    while done < n:
        m = min(n - done, <Py_ssize_t>PIECE)
        split_piece(row + done, m, upper, <remainder *>x.beside + start + done)
        encoded(x, start + done, m, <const float *>upper, <const bfloat16 *>NULL)
        done += m


cdef void decode_split16(const Operand *x, Py_ssize_t start, Py_ssize_t n,
                         real *row) noexcept nogil:
    join(x, start, n, row, <const int16_t *>NULL)


cdef void encode_split16(Operand *x, Py_ssize_t start, Py_ssize_t n,
                         const real *row) noexcept nogil:
    part(x, start, n, row, <const int16_t *>NULL)

CODECS["split16_bfloat16"] = entry(decode_split16, decode_split16, encode_split16, encode_split16)


cdef void decode_split8(const Operand *x, Py_ssize_t start, Py_ssize_t n,
                        real *row) noexcept nogil:
    join(x, start, n, row, <const int8_t *>NULL)


cdef void encode_split8(Operand *x, Py_ssize_t start, Py_ssize_t n,
                        const real *row) noexcept nogil:
    part(x, start, n, row, <const int8_t *>NULL)

CODECS["split8_bfloat16"] = entry(decode_split8, decode_split8, encode_split8, encode_split8)


cdef inline float added(float x, float rest) noexcept nogil:
    cdef float sum = x + rest
    return x if rest == <float>0 else sum  # -0 stays what it is


cdef void add_compensation(const Operand *x, Py_ssize_t start, Py_ssize_t n, real *restrict row,
                           const short_float *kind) noexcept nogil:
    cdef const short_float *restrict rest = <const short_float *>x.beside + start
    cdef Py_ssize_t i
    decoded(x, start, n, row, kind)
    for i in range(n):
        row[i] = <real>added(<float>row[i], widened(rest[i], <float>0))


cdef void add_piece(const float *restrict x, const float *restrict rest, Py_ssize_t n,
                    float *restrict sum) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        sum[i] = added(x[i], rest[i])


cdef void lack_piece(const float *restrict x, const float *restrict near, Py_ssize_t n,
                     float *restrict rest) noexcept nogil:
    """What x has beyond its rounding; of an infinite number or a NaN nothing."""
    cdef float lost, finite
    cdef Py_ssize_t i
    for i in range(n):
        lost = x[i] - near[i]
        finite = near[i] - near[i]
        rest[i] = lost if finite == <float>0 else <float>0


cdef inline void nearest_piece(const float *x, Py_ssize_t n, float *near,
                               short_float *between) noexcept nogil:
    """The nearest numbers of the format, as floats."""
    narrow(<char *>between, n, x, <const short_float *>NULL)
    widen(<char *>between, n, near, <const short_float *>NULL)


cdef void compensate(Operand *x, Py_ssize_t start, Py_ssize_t n, const real *row,
                     const short_float *kind) noexcept nogil:
    cdef float exact[PIECE]
    cdef float near[PIECE]
    cdef float rest[PIECE]
    cdef short_float *beside
    cdef Py_ssize_t done = 0, m
    while done < n:
        m = min(n - done, <Py_ssize_t>PIECE)
        beside = <short_float *>x.beside + start + done
        narrow(<char *>exact, m, row + done, <const float32 *>NULL)
        nearest_piece(exact, m, near, beside)
        lack_piece(exact, near, m, rest)
        nearest_piece(rest, m, exact, beside)
        add_piece(near, exact, m, rest)  # what is stored: exact from here on
        nearest_piece(rest, m, near, beside)  # another one where half a unit was lacking
        lack_piece(rest, near, m, exact)
        narrow(<char *>beside, m, <const float *>exact, kind)
        encoded(x, start + done, m, <const float *>near, kind)
        done += m


cdef void decode_kahan_bfloat16(const Operand *x, Py_ssize_t start, Py_ssize_t n,
                                real *row) noexcept nogil:
    add_compensation(x, start, n, row, <const bfloat16 *>NULL)


cdef void encode_kahan_bfloat16(Operand *x, Py_ssize_t start, Py_ssize_t n,
                                const real *row) noexcept nogil:
    compensate(x, start, n, row, <const bfloat16 *>NULL)

CODECS["kahan_bfloat16"] = entry(decode_kahan_bfloat16, decode_kahan_bfloat16,
                                 encode_kahan_bfloat16, encode_kahan_bfloat16)


cdef void decode_kahan_float16(const Operand *x, Py_ssize_t start, Py_ssize_t n,
                               real *row) noexcept nogil:
    add_compensation(x, start, n, row, <const float16 *>NULL)


cdef void encode_kahan_float16(Operand *x, Py_ssize_t start, Py_ssize_t n,
                               const real *row) noexcept nogil:
    compensate(x, start, n, row, <const float16 *>NULL)

CODECS["kahan_float16"] = entry(decode_kahan_float16, decode_kahan_float16,
                                encode_kahan_float16, encode_kahan_float16)


cdef void decode_master(const Operand *x, Py_ssize_t start, Py_ssize_t n,
                        real *restrict row) noexcept nogil:
    cdef const float *restrict master = <const float *>x.beside + start
    cdef Py_ssize_t i
    for i in range(n):
        row[i] = <real>master[i]


cdef void encode_master(Operand *x, Py_ssize_t start, Py_ssize_t n, const real *restrict row,
                        const stored *kind) noexcept nogil:
    cdef float *restrict master = <float *>x.beside + start
    cdef Py_ssize_t i
    for i in range(n):
        master[i] = <float>row[i]
    encoded(x, start, n, <const float *>x.beside + start, kind)


cdef void encode_master_bfloat16(Operand *x, Py_ssize_t start, Py_ssize_t n,
                                 const real *row) noexcept nogil:
    encode_master(x, start, n, row, <const bfloat16 *>NULL)


cdef void encode_master_float16(Operand *x, Py_ssize_t start, Py_ssize_t n,
                                const real *row) noexcept nogil:
    encode_master(x, start, n, row, <const float16 *>NULL)

CODECS["float32_bfloat16"] = entry(decode_master, decode_master, encode_master_bfloat16,
                                   encode_master_bfloat16)
CODECS["float32_float16"] = entry(decode_master, decode_master, encode_master_float16,
                                  encode_master_float16)


# Parameters that are rounded stochastically.

cdef inline float drawn(float x, uint32_t random, const short_float *kind) noexcept nogil:
    """One of the two numbers of the format beside x: the larger one, in magnitude, if the part of a
    unit that x is above the other exceeds a number of 32 random bits. There are masks in place of
    selections, of which the compiler makes branches here."""
    cdef uint32_t bits = bits_of(x), rounded, small, less, nan
    cdef uint32_t magnitude = bits & <uint32_t>0x7fffffff
    cdef float units
    cdef int32_t whole, part
    if short_float is bfloat16:
        rounded = (magnitude + (random >> 16)) & <uint32_t>0xffff0000
    else:
        rounded = (magnitude + (random >> 19)) & <uint32_t>0xffffe000
        # Below 2^-14 its numbers are multiples of 2^-24.
        units = from_bits(min(magnitude, <uint32_t>0x3f800000)) * <float>16777216.0
        whole = <int32_t>units
        part = <int32_t>((units - <float>whole) * <float>2147483648.0)
        whole += <int32_t>(random >> 1) < part
        small = bits_of(<float>whole * <float>5.9604644775390625e-08)
        less = <uint32_t>0 - ((magnitude - <uint32_t>0x38800000) >> 31)
        rounded = rounded ^ ((rounded ^ small) & less)
    nan = <uint32_t>0 - ((<uint32_t>0x7f800000 - magnitude) >> 31)
    rounded = rounded | (nan & <uint32_t>0x7fc00000)
    return from_bits(rounded | (bits & <uint32_t>0x80000000))


cdef void draw_piece(const real *restrict row, Py_ssize_t n, float *restrict upper, uint32_t at,
                     const short_float *kind) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        upper[i] = drawn(<float>row[i], noise(at), kind)
        at += <uint32_t>PER_ELEMENT


cdef void draw(Operand *x, Py_ssize_t start, Py_ssize_t n, const real *row,
               const short_float *kind) noexcept nogil:
    cdef float upper[PIECE]
    cdef Py_ssize_t done = 0, m
    while done < n:
        m = min(n - done, <Py_ssize_t>PIECE)
        draw_piece(row + done, m, upper, x.noise + <uint32_t>(start + done) * PER_ELEMENT, kind)
        encoded(x, start + done, m, <const float *>upper, kind)
        done += m


cdef void encode_stochastic_bfloat16(Operand *x, Py_ssize_t start, Py_ssize_t n,
                                     const real *row) noexcept nogil:
    draw(x, start, n, row, <const bfloat16 *>NULL)

CODECS["stochastic_bfloat16"] = entry(decode_bfloat16, decode_bfloat16, encode_stochastic_bfloat16,
                                      encode_stochastic_bfloat16)


cdef void encode_stochastic_float16(Operand *x, Py_ssize_t start, Py_ssize_t n,
                                    const real *row) noexcept nogil:
    draw(x, start, n, row, <const float16 *>NULL)

CODECS["stochastic_float16"] = entry(decode_float16, decode_float16, encode_stochastic_float16,
                                     encode_stochastic_float16)


# States of 8 bits, a group at a time: `data` are the codes and `beside` the scales, both in C
# order. A run begins where a group does; only the array's last group may be shorter.

cdef inline void decoded_group(const uint8_t *code, uint8_t scale, Py_ssize_t n, real *row,
                               bint square) noexcept nogil:
    cdef uint8_t codes[GROUP]
    cdef Group group
    cdef Py_ssize_t i
    if n < GROUP:
        memset(codes, 0, GROUP)
        memcpy(codes, code, n)
        code = codes
    elif real is float:
        decode_group(code, lowest_of(scale), row, square)
        return
    decode_group(code, lowest_of(scale), group.x, square)
    for i in range(n):
        row[i] = <real>group.x[i]


cdef inline void decode_groups(const Operand *x, Py_ssize_t start, Py_ssize_t n,
                               real *row, bint square) noexcept nogil:
    cdef const uint8_t *code = <const uint8_t *>x.data + start
    cdef const uint8_t *scale = <const uint8_t *>x.beside + start // GROUP
    cdef Py_ssize_t done = 0
    while done < n:
        decoded_group(code + done, scale[done // GROUP], min(n - done, <Py_ssize_t>GROUP),
                      row + done, square)
        done += GROUP


cdef inline uint32_t taken(const real *restrict row, Py_ssize_t n, float *restrict group,
                           bint square) noexcept nogil:
    """The numbers of a group that are encoded; returns the bits of the largest magnitude."""
    cdef uint32_t most = 0, bits
    cdef Py_ssize_t i
    for i in range(n):
        group[i] = root(<float>row[i] + <float>0) if square else <float>row[i]  # -0 is 0
        bits = bits_of(group[i]) if square else magnitude_bits(group[i])
        most = bits if bits > most else most
    return most


cdef inline void encode_groups(Operand *x, Py_ssize_t start, Py_ssize_t n, const real *row,
                               bint square) noexcept nogil:
    cdef uint8_t *code = <uint8_t *>x.data + start
    cdef uint8_t *scale = <uint8_t *>x.beside + start // GROUP
    cdef Group group
    cdef Py_ssize_t done = 0, m
    cdef uint32_t most
    while done < n:
        m = min(n - done, <Py_ssize_t>GROUP)
        most = taken(row + done, m, group.x, square)
        encode_group(&group, code + done, scale + done // GROUP, most,
                     x.noise + <uint32_t>(start + done) * PER_ELEMENT, m, square)
        done += GROUP


cdef void decode_q8(const Operand *x, Py_ssize_t start, Py_ssize_t n, real *row) noexcept nogil:
    decode_groups(x, start, n, row, False)


cdef void encode_q8(Operand *x, Py_ssize_t start, Py_ssize_t n, const real *row) noexcept nogil:
    encode_groups(x, start, n, row, False)

CODECS["q8"] = entry(decode_q8, decode_q8, encode_q8, encode_q8)


cdef void decode_squares(const Operand *x, Py_ssize_t start, Py_ssize_t n,
                         real *row) noexcept nogil:
    decode_groups(x, start, n, row, True)


cdef void encode_squares(Operand *x, Py_ssize_t start, Py_ssize_t n,
                         const real *row) noexcept nogil:
    encode_groups(x, start, n, row, True)

CODECS["q8_square"] = entry(decode_squares, decode_squares, encode_squares, encode_squares)
