"""Threads that work together; the only file that knows their library, the only one linked with it.

It is loaded when the first sweep wants threads (see ``threads.team``), not before: then it is known
with whom the threads are shared.

There are two forms, of which the build chooses one. With OpenMP each worker does one part, as many
as there are threads. With Grand Central Dispatch, which every macOS has, so that no second runtime
has to be shipped beside PyTorch's, the parts are smaller, and each worker takes the next one when
it is free: cores of two kinds end at the same time.
"""
from cpython.pycapsule cimport PyCapsule_New

from steepest.kernels.team cimport team_work

cdef extern from *:
    """
    typedef void (*steepest_work)(void *, int, int, int);
    #define STEEPEST_TURNS 4  /* parts for each worker, where these are taken in turn */

    #if defined(STEEPEST_DISPATCH)
    #include <dispatch/dispatch.h>
    #include <stdatomic.h>
    static const char *const steepest_threads_of = "Grand Central Dispatch";
    static int steepest_openmp(void) { return 0; }
    static int steepest_max_threads(void) { return 0; }
    struct steepest_turns {
        steepest_work work;
        void *context;
        int parts;
        atomic_int next;
    };
    static void steepest_take(void *given, size_t worker) {
        struct steepest_turns *turns = (struct steepest_turns *)given;
        int part = atomic_fetch_add(&turns->next, 1);
        while (part < turns->parts) {
            turns->work(turns->context, part, turns->parts, (int)worker);
            part = atomic_fetch_add(&turns->next, 1);
        }
    }
    static void steepest_run(steepest_work work, void *context, int threads) {
        struct steepest_turns turns;
        turns.work = work;
        turns.context = context;
        turns.parts = threads * STEEPEST_TURNS;
        atomic_init(&turns.next, 0);
        dispatch_apply_f((size_t)threads, DISPATCH_APPLY_AUTO, &turns, steepest_take);
    }
    #elif defined(_OPENMP)
    #include <omp.h>
    static const char *const steepest_threads_of = "OpenMP";
    static int steepest_openmp(void) { return _OPENMP; }
    static int steepest_max_threads(void) { return omp_get_max_threads(); }
    static void steepest_run(steepest_work work, void *context, int threads) {
        #pragma omp parallel num_threads(threads)
        {
            int worker = omp_get_thread_num();
            work(context, worker, omp_get_num_threads(), worker);
        }
    }
    #else
    static const char *const steepest_threads_of = "none: a serial build";
    static int steepest_openmp(void) { return 0; }
    static int steepest_max_threads(void) { return 1; }
    static void steepest_run(steepest_work work, void *context, int threads) {
        (void)threads;
        work(context, 0, 1, 0);
    }
    #endif
    """
    const char *steepest_threads_of
    int steepest_openmp() nogil
    int steepest_max_threads() nogil
    void steepest_run(team_work work, void *context, int threads) noexcept nogil


cdef void run(team_work work, void *context, int threads) noexcept nogil:
    steepest_run(work, context, threads)

RUN = PyCapsule_New(<void *>run, "steepest.team", NULL)


def threads_of():
    """Whose threads these are: OpenMP's, those of Grand Central Dispatch, or none."""
    return steepest_threads_of.decode()


def openmp():
    """The OpenMP version this was built with, as yyyymm; 0 for a build without it."""
    return steepest_openmp()


def max_threads():
    """The setting of the calling thread's own; torch.set_num_threads changes OpenMP's, too.

    0 where there is none, as with Grand Central Dispatch.
    """
    return steepest_max_threads()
