"""The floating-point control word of the calling thread: read it, set it, and its default."""

cdef extern from *:
    """
    #ifndef STEEPEST_FLOATMODE
    #define STEEPEST_FLOATMODE
    #if defined(__SSE2__) || defined(_M_X64)
    #include <xmmintrin.h>
    #define STEEPEST_FLOATMODE_DEFAULT 0x1f80ULL  /* nearest, no flushing, exceptions masked */
    #define STEEPEST_FLOATMODE_STICKY 0x3fULL     /* which exceptions there were: not a mode */
    static inline unsigned long long steepest_floatmode_get(void) { return _mm_getcsr(); }
    static inline void steepest_floatmode_set(unsigned long long m) { _mm_setcsr((unsigned)m); }
    #elif defined(__aarch64__) && (defined(__GNUC__) || defined(__clang__))
    #define STEEPEST_FLOATMODE_DEFAULT 0ULL
    static inline unsigned long long steepest_floatmode_get(void) {
        unsigned long long m;
        __asm__ __volatile__("mrs %0, fpcr" : "=r"(m));
        return m;
    }
    static inline void steepest_floatmode_set(unsigned long long m) {
        __asm__ __volatile__("msr fpcr, %0" : : "r"(m) : "memory");
    }
    #else
    #define STEEPEST_FLOATMODE_DEFAULT 0ULL
    static inline unsigned long long steepest_floatmode_get(void) { return 0; }
    static inline void steepest_floatmode_set(unsigned long long m) { (void)m; }
    #endif
    #ifndef STEEPEST_FLOATMODE_STICKY
    #define STEEPEST_FLOATMODE_STICKY 0ULL
    #endif
    #endif
    """
    const unsigned long long floatmode_default "STEEPEST_FLOATMODE_DEFAULT"
    const unsigned long long floatmode_sticky "STEEPEST_FLOATMODE_STICKY"
    unsigned long long floatmode_get "steepest_floatmode_get"() noexcept nogil
    void floatmode_set "steepest_floatmode_set"(unsigned long long mode) noexcept nogil


cdef inline unsigned long long floatmode_enter() noexcept nogil:
    """Sets the default mode; what `floatmode_leave` puts back."""
    cdef unsigned long long mode = floatmode_get()
    if mode & ~floatmode_sticky != floatmode_default:
        floatmode_set(floatmode_default)
    return mode


cdef inline void floatmode_leave(unsigned long long mode) noexcept nogil:
    if mode & ~floatmode_sticky != floatmode_default:
        floatmode_set(mode)
