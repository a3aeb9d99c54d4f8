"""Stores that go past the caches (non-temporal), for what is written once and read much later.

They save reading the lines that are overwritten. Other threads see them after a fence. Where the
processor has none, they are ordinary stores.
"""

cdef extern from *:
    """
    #include <stdint.h>
    #include <string.h>
    #if defined(__SSE2__) || defined(_M_X64)
    #include <emmintrin.h>
    #define steepest_fence() _mm_sfence()
    static inline void steepest_stream(char *to, const char *from, Py_ssize_t n) {
        Py_ssize_t head = (Py_ssize_t)(-(uintptr_t)to & 63);
        int k;
        head = head < n ? head : n;
        memcpy(to, from, (size_t)head);
        for (to += head, from += head, n -= head; n >= 64; to += 64, from += 64, n -= 64)
            for (k = 0; k < 64; k += 16)
                _mm_stream_si128((__m128i *)(to + k), _mm_loadu_si128((const __m128i *)(from + k)));
        memcpy(to, from, (size_t)n);
    }
    #else
    #define steepest_fence() ((void)0)
    #define steepest_stream(to, from, n) memcpy(to, from, (size_t)(n))
    #endif
    """
    void stream "steepest_stream" (char *to, const char *source, Py_ssize_t n) noexcept nogil
    void fence "steepest_fence" () noexcept nogil
