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
    /* Past the caches, if that is asked for and both lie in their lines alike. */
    static inline void steepest_copy(void *into, const void *of, size_t bytes, int past) {
        char *to = (char *)into;
        const char *from = (const char *)of;
        if (past && (((uintptr_t)to ^ (uintptr_t)from) & 63) == 0) {
            size_t before = (size_t)(-(uintptr_t)to & 63);
            before = before < bytes ? before : bytes;
            memcpy(to, from, before);
            to += before;
            from += before;
            for (bytes -= before; bytes >= 64; bytes -= 64) {
                steepest_line(to, from);
                to += 64;
                from += 64;
            }
        }
        memcpy(to, from, bytes);
    }
    """
    void stream_line "steepest_line" (char *to, const char *x) noexcept nogil
    void stream_copy "steepest_copy" (
        void *to, const void *x, size_t size, bint past) noexcept nogil
    void fence "steepest_fence" () noexcept nogil
