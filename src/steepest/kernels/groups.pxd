"""Groups of 8-bit states to floats and back; ``stored.pxd`` says what a code means.

A code's place in its float lies in the upper half of the float. So codes are widened and narrowed
by words, twice as many at a time as floats, and a float's halves are put together or taken apart by
one shuffle. Of loops over elements compilers make longer ways, in which a step spends most of its
time, so this is written with the vectors of GCC and Clang, as wide as the level's. Other compilers
have the loops over elements, below.
"""
from libc.stdint cimport uint8_t, uint32_t

cdef extern from *:
    """
    #include <stdint.h>
    #include <string.h>

    #if defined(__GNUC__)
    typedef struct { float x[128]; } __attribute__((aligned(64))) steepest_group;
    typedef struct { uint32_t x[128]; } __attribute__((aligned(64))) steepest_random;
    #else
    typedef struct { float x[128]; } steepest_group;
    typedef struct { uint32_t x[128]; } steepest_random;
    #endif

    #if defined(__has_builtin) && defined(__BYTE_ORDER__)
    #if __has_builtin(__builtin_shufflevector) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    #define STEEPEST_VECTORS
    #endif
    #endif

    #ifdef STEEPEST_VECTORS

    /* WORDS of 16 bits fill a vector. UPPER_HALVES: of two vectors of floats. FIRST and SECOND: the
       halves of a vector of words, each of them above one of zeros. */
    #define STEEPEST_ODD(i) 2*(i)+1, 2*(i)+3, 2*(i)+5, 2*(i)+7
    #define STEEPEST_ZIP(i, n) (i), (n)+(i), (i)+1, (n)+(i)+1, (i)+2, (n)+(i)+2, (i)+3, (n)+(i)+3
    #if defined(__AVX512BW__)
    #define STEEPEST_WORDS 32
    #define STEEPEST_UPPER_HALVES STEEPEST_ODD(0), STEEPEST_ODD(4), STEEPEST_ODD(8), \
        STEEPEST_ODD(12), STEEPEST_ODD(16), STEEPEST_ODD(20), STEEPEST_ODD(24), STEEPEST_ODD(28)
    #define STEEPEST_FIRST STEEPEST_ZIP(0, 32), STEEPEST_ZIP(4, 32), STEEPEST_ZIP(8, 32), \
        STEEPEST_ZIP(12, 32)
    #define STEEPEST_SECOND STEEPEST_ZIP(16, 32), STEEPEST_ZIP(20, 32), STEEPEST_ZIP(24, 32), \
        STEEPEST_ZIP(28, 32)
    #elif defined(__AVX2__)
    #define STEEPEST_WORDS 16
    #define STEEPEST_UPPER_HALVES STEEPEST_ODD(0), STEEPEST_ODD(4), STEEPEST_ODD(8), \
        STEEPEST_ODD(12)
    #else
    #define STEEPEST_WORDS 8
    #define STEEPEST_UPPER_HALVES STEEPEST_ODD(0), STEEPEST_ODD(4)
    #define STEEPEST_FIRST STEEPEST_ZIP(0, 8)
    #define STEEPEST_SECOND STEEPEST_ZIP(4, 8)
    #endif

    typedef uint8_t steepest_bytes __attribute__((vector_size(STEEPEST_WORDS)));
    typedef int8_t steepest_signed_bytes __attribute__((vector_size(STEEPEST_WORDS)));
    typedef uint16_t steepest_words __attribute__((vector_size(2 * STEEPEST_WORDS)));
    typedef int16_t steepest_signed_words __attribute__((vector_size(2 * STEEPEST_WORDS)));
    typedef uint32_t steepest_bits __attribute__((vector_size(2 * STEEPEST_WORDS)));
    typedef float steepest_floats __attribute__((vector_size(2 * STEEPEST_WORDS)));

    /* What the processor does in one or two instructions, and compilers in more: codes widened to
       words, in an order that suits the last; `low` added where k is not 0; what exceeds `low`;
       the first and the second half of words as the upper halves of floats. */
    #if defined(__AVX512BW__)
    #include <immintrin.h>
    #define steepest_widened(code) \
        ((steepest_words)_mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i *)(code))))
    #define steepest_widened_signed(code) \
        ((steepest_words)_mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)(code))))
    #define steepest_raised(x, k, low) ((steepest_words)_mm512_mask_add_epi16((__m512i)(x), \
        _mm512_test_epi16_mask((__m512i)(k), (__m512i)(k)), (__m512i)(x), _mm512_set1_epi16(low)))
    #define steepest_above(x, low) \
        ((steepest_words)_mm512_subs_epu16((__m512i)(x), _mm512_set1_epi16(low)))
    #define steepest_half(x, ...) ((steepest_floats)_mm512_maskz_permutexvar_epi16( \
        0xaaaaaaaa, (__m512i)(steepest_words){__VA_ARGS__}, (__m512i)(x)))
    #define steepest_first(x) steepest_half(x, STEEPEST_FIRST)
    #define steepest_second(x) steepest_half(x, STEEPEST_SECOND)
    #elif defined(__AVX2__)
    #include <immintrin.h>
    #define steepest_ordered(code) \
        _mm_shuffle_epi32(_mm_loadu_si128((const __m128i *)(code)), 0xd8)
    #define steepest_widened(code) ((steepest_words)_mm256_cvtepu8_epi16(steepest_ordered(code)))
    #define steepest_widened_signed(code) \
        ((steepest_words)_mm256_cvtepi8_epi16(steepest_ordered(code)))
    #define steepest_raised(x, k, low) ((x) + ((steepest_words)((k) != 0) & (low)))
    #define steepest_above(x, low) \
        ((steepest_words)_mm256_subs_epu16((__m256i)(x), _mm256_set1_epi16(low)))
    #define steepest_first(x) \
        ((steepest_floats)_mm256_unpacklo_epi16(_mm256_setzero_si256(), (__m256i)(x)))
    #define steepest_second(x) \
        ((steepest_floats)_mm256_unpackhi_epi16(_mm256_setzero_si256(), (__m256i)(x)))
    #else
    static inline steepest_words steepest_widened(const uint8_t *code) {
        steepest_bytes c;
        memcpy(&c, code, sizeof c);
        return __builtin_convertvector(c, steepest_words);
    }
    static inline steepest_words steepest_widened_signed(const uint8_t *code) {
        steepest_signed_bytes c;
        memcpy(&c, code, sizeof c);
        return (steepest_words)__builtin_convertvector(c, steepest_signed_words);
    }
    #define steepest_raised(x, k, low) ((x) + ((steepest_words)((k) != 0) & (low)))
    #define steepest_above(x, low) (((x) - (low)) & (steepest_words)((x) > (low)))
    #define steepest_half(x, ...) \
        ((steepest_floats)__builtin_shufflevector((steepest_words){0}, x, __VA_ARGS__))
    #define steepest_first(x) steepest_half(x, STEEPEST_FIRST)
    #define steepest_second(x) steepest_half(x, STEEPEST_SECOND)
    #endif

    static inline void steepest_decode(const uint8_t *code, uint32_t lowest, float *to,
                                       int square) {
        const uint16_t low = (uint16_t)(lowest >> 16);
        int i;
        for (i = 0; i < 128; i += STEEPEST_WORDS) {
            steepest_words k, x;
            steepest_floats a, b;
            if (square) {
                k = steepest_widened(code + i);
                x = k << 3;
            } else {
                k = steepest_widened_signed(code + i);
                x = (k << 4) & 0x87f0;
                k &= 0x7f;
            }
            x = steepest_raised(x, k, low);
            a = steepest_first(x);
            b = steepest_second(x);
            if (square) {
                a *= a;
                b *= b;
            }
            memcpy(to + i, &a, sizeof a);
            memcpy(to + i + STEEPEST_WORDS / 2, &b, sizeof b);
        }
    }

    static inline void steepest_encode(const float *from, const uint32_t *random, uint32_t lowest,
                                       uint8_t *code, int square) {
        const uint16_t low = (uint16_t)(lowest >> 16);
        const int half = STEEPEST_WORDS / 2, below = square ? 13 : 12;
        int i;
        for (i = 0; i < 128; i += STEEPEST_WORDS) {
            steepest_bits a, b, c, d;
            steepest_words x;
            steepest_bytes y;
            memcpy(&a, from + i, sizeof a);
            memcpy(&b, from + i + half, sizeof b);
            memcpy(&c, random + i, sizeof c);
            memcpy(&d, random + i + half, sizeof d);
            a += c >> below;
            b += d >> below;
            x = __builtin_shufflevector((steepest_words)a, (steepest_words)b,
                                        STEEPEST_UPPER_HALVES);
            if (square)
                x = steepest_above(steepest_above(x, low) >> 3, 1) + 1;  /* at least 1 */
            else
                x = steepest_above(x & 0x7fff, low) >> 4 | (x >> 8 & 0x80);
            y = __builtin_convertvector(x, steepest_bytes);
            memcpy(code + i, &y, sizeof y);
        }
    }

    #else

    static inline void steepest_decode(const uint8_t *code, uint32_t lowest, float *to,
                                       int square) {
        int i;
        for (i = 0; i < 128; i++) {
            uint32_t k = square ? code[i] : code[i] & 0x7f;
            uint32_t bits = k ? (k << (square ? 19 : 20)) + lowest : 0;
            float x;
            bits |= square ? 0 : (uint32_t)(code[i] & 0x80) << 24;
            memcpy(&x, &bits, sizeof x);
            to[i] = square ? x * x : x;
        }
    }

    static inline void steepest_encode(const float *from, const uint32_t *random, uint32_t lowest,
                                       uint8_t *code, int square) {
        int i;
        for (i = 0; i < 128; i++) {
            uint32_t bits, up;
            int32_t k;
            memcpy(&bits, from + i, sizeof bits);
            if (square) {
                up = bits + (random[i] >> 13);
                k = (int32_t)(up >> 19) - (int32_t)(lowest >> 19);
                code[i] = (uint8_t)(k > 1 ? k : 1);
            } else {
                up = (bits & 0x7fffffff) + (random[i] >> 12);
                k = (int32_t)(up >> 20) - (int32_t)(lowest >> 20);
                code[i] = (uint8_t)((k > 0 ? k : 0) | (bits >> 24 & 0x80));
            }
        }
    }

    #endif
    """
    ctypedef struct Group "steepest_group":
        float x[128]
    ctypedef struct Random "steepest_random":
        uint32_t x[128]

    # The numbers of a group's codes; `lowest` are the bits of the float that code 0 would be.
    void decode_group "steepest_decode" (const uint8_t *code, uint32_t lowest, float *to,
                                         bint square) noexcept nogil

    # The codes of numbers, or of roots of squares, without NaN that is not the usual one: one more
    # as often as what a code drops is large. Codes of squares are never 0.
    void code_group "steepest_encode" (const float *x, const uint32_t *random, uint32_t lowest,
                                       uint8_t *code, bint square) noexcept nogil
