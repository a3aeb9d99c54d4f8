"""Threads that work together; the only file that knows their library, the only one linked with it.

It is loaded when the first sweep wants threads (see ``threads.team``), not before: then it is known
with whom the threads are shared.

There are two forms, of which the build chooses one: OpenMP; and Grand Central Dispatch, which every
macOS has, so that no second runtime has to be shipped beside PyTorch's. In both there is a part for
each worker, its own, so that it meets the same memory in every step; or, where `take_turns` says
so, there are more and smaller ones, and a worker takes the next when it is free: cores of two kinds
end at the same time.
"""
from cpython.pycapsule cimport PyCapsule_New
from libc.stdlib cimport free, malloc

from steepest.kernels.team cimport team_work

cdef extern from *:
    """
    typedef void (*steepest_work)(void *, int, int, int);
    struct steepest_turns {
        steepest_work work;
        void *context;
        int parts;
        int next;
    };
    static int steepest_turn(struct steepest_turns *turns) {
    #if defined(_MSC_VER)
        int part;
        #pragma omp critical (steepest)
        part = turns->next++;
        return part;
    #else
        return __atomic_fetch_add(&turns->next, 1, __ATOMIC_RELAXED);
    #endif
    }
    static void steepest_take(void *given, size_t worker) {
        struct steepest_turns *turns = (struct steepest_turns *)given;
        int part = steepest_turn(turns);
        while (part < turns->parts) {
            turns->work(turns->context, part, turns->parts, (int)worker);
            part = steepest_turn(turns);
        }
    }

    #if defined(__linux__)
    #include <sched.h>
    static int steepest_cpu(void) { return sched_getcpu(); }
    #else
    static int steepest_cpu(void) { return -1; }
    #endif

    #if defined(STEEPEST_DISPATCH)
    #include <dispatch/dispatch.h>
    #define STEEPEST_TURNS 4  /* its workers are no threads of their own that would keep a part */
    static const char *const steepest_threads_of = "Grand Central Dispatch";
    static int steepest_openmp(void) { return 0; }
    static int steepest_max_threads(void) { return 0; }
    static void steepest_run(steepest_work work, void *context, int threads, int turns) {
        struct steepest_turns all = {work, context, threads * turns, 0};
        dispatch_apply_f((size_t)threads, DISPATCH_APPLY_AUTO, &all, steepest_take);
    }
    #elif defined(_OPENMP)
    #include <omp.h>
    #define STEEPEST_TURNS 1
    #if _OPENMP >= 201511
    static int steepest_bound(void) { return omp_get_proc_bind() != omp_proc_bind_false; }
    static int steepest_places(void) { return omp_get_num_places(); }
    static int steepest_room(int place) { return omp_get_place_num_procs(place); }
    static void steepest_procs(int place, int *ids) { omp_get_place_proc_ids(place, ids); }
    #define STEEPEST_PLACES
    #endif
    static const char *const steepest_threads_of = "OpenMP";
    static int steepest_openmp(void) { return _OPENMP; }
    static int steepest_max_threads(void) { return omp_get_max_threads(); }
    static void steepest_run(steepest_work work, void *context, int threads, int turns) {
        struct steepest_turns all = {work, context, threads * turns, 0};
        #pragma omp parallel num_threads(threads)
        {
            int worker = omp_get_thread_num();
            if (turns == 1)
                work(context, worker, omp_get_num_threads(), worker);
            else
                steepest_take(&all, (size_t)worker);
        }
    }
    #else
    #define STEEPEST_TURNS 1
    static const char *const steepest_threads_of = "none: a serial build";
    static int steepest_openmp(void) { return 0; }
    static int steepest_max_threads(void) { return 1; }
    static void steepest_run(steepest_work work, void *context, int threads, int turns) {
        (void)threads;
        struct steepest_turns all = {work, context, turns, 0};
        steepest_take(&all, 0);
    }
    #endif
    #ifndef STEEPEST_PLACES
    static int steepest_bound(void) { return 0; }
    static int steepest_places(void) { return 0; }
    static int steepest_room(int place) { (void)place; return 0; }
    static void steepest_procs(int place, int *ids) { (void)place; (void)ids; }
    #endif
    """
    const char *steepest_threads_of
    int steepest_openmp() nogil
    int steepest_max_threads() nogil
    int steepest_bound() nogil
    int steepest_places() nogil
    int steepest_room(int place) nogil
    void steepest_procs(int place, int *ids) nogil
    int steepest_cpu() nogil
    int STEEPEST_TURNS
    void steepest_run(team_work work, void *context, int threads, int turns) noexcept nogil

cdef int turns = STEEPEST_TURNS        # parts for each worker where there is much to do,
cdef int few = STEEPEST_TURNS          # and where caches hold all of it


cdef void run(team_work work, void *context, int threads, bint large) noexcept nogil:
    steepest_run(work, context, threads, turns if large else few)

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


def take_turns(int large, int small):
    """How many parts for each worker there are from now on, in work that is large and other; with
    more than one they are taken in turn. Returns what it was before."""
    global turns, few
    before = turns, few
    turns, few = max(large, STEEPEST_TURNS), max(small, STEEPEST_TURNS)
    return before


def parts():
    """How many parts for each worker there are in work that is large."""
    return turns


def bound():
    """The processors on which OpenMP's threads stay, each on some of them (``OMP_PROC_BIND``);
    empty where they do not."""
    cdef int place, k
    cdef int *found
    cdef set cpus = set()
    if not steepest_bound():
        return cpus
    for place in range(steepest_places()):
        found = <int *>malloc(max(steepest_room(place), 1) * sizeof(int))
        if found == NULL:
            raise MemoryError
        steepest_procs(place, found)
        for k in range(steepest_room(place)):
            cpus.add(found[k])
        free(found)
    return cpus


cdef void place(void *context, int part, int parts, int worker) noexcept nogil:
    (<int *>context)[worker] = steepest_cpu()


def places(int threads):
    """The processors on which so many workers are now; -1 where that is not known."""
    cdef int k
    cdef int *found = <int *>malloc(max(threads, 1) * sizeof(int))
    if found == NULL:
        raise MemoryError
    for k in range(threads):
        found[k] = -1
    with nogil:
        steepest_run(&place, found, threads, STEEPEST_TURNS)
    try:
        return [found[k] for k in range(threads)]
    finally:
        free(found)
