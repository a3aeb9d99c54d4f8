"""Stores that go past the caches (non-temporal), for what is written once and read much later.

They save reading the lines that are overwritten. Other threads see them after a fence. Where the
processor has none, they are ordinary stores.
"""

cdef enum:
    LINE = 64              # bytes

cdef extern from *:
    """
    #include <stdint.h>
    #include <string.h>
    #if defined(__SSE2__) || defined(_M_X64)
    #include <emmintrin.h>
    #define steepest_fence() _mm_sfence()
    #if defined(__AVX512F__)
    #include <immintrin.h>
    #define steepest_line(to, x) _mm512_stream_si512((__m512i *)(to), _mm512_load_si512(x))
    #else
    static inline void steepest_line(char *to, const char *x) {
        int k;
        for (k = 0; k < 64; k += 16)
            _mm_stream_si128((__m128i *)(to + k), _mm_load_si128((const __m128i *)(x + k)));
    }
    #endif
    #else
    #define steepest_fence() ((void)0)
    #define steepest_line(to, x) memcpy(to, x, 64)
    #endif
    """
    void stream_line "steepest_line" (char *to, const char *x) noexcept nogil
    void fence "steepest_fence" () noexcept nogil
