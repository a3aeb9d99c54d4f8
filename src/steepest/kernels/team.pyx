"""Threads that work together; the only file that knows OpenMP, and the only module linked with it.

It is loaded when the first sweep wants threads (see ``threads.team``), not before: then it is known
with whom the threads are shared.
"""
from cpython.pycapsule cimport PyCapsule_New
from cython.parallel cimport parallel

from steepest.kernels.team cimport team_work

cdef extern from *:
    """
    #ifdef _OPENMP
    #include <omp.h>
    static int steepest_openmp(void) { return _OPENMP; }
    static int steepest_max_threads(void) { return omp_get_max_threads(); }
    #define steepest_worker() omp_get_thread_num()
    #define steepest_team() omp_get_num_threads()
    #else
    static int steepest_openmp(void) { return 0; }
    static int steepest_max_threads(void) { return 1; }
    #define steepest_worker() 0
    #define steepest_team() 1
    #endif
    """
    int steepest_openmp() nogil
    int steepest_max_threads() nogil
    int steepest_worker() noexcept nogil
    int steepest_team() noexcept nogil


cdef void run(team_work work, void *context, int threads) noexcept nogil:
    with parallel(num_threads=threads):
        work(context, steepest_worker(), steepest_team())

RUN = PyCapsule_New(<void *>run, "steepest.team", NULL)


def openmp():
    """The OpenMP version this was built with, as yyyymm; 0 for a serial build."""
    return steepest_openmp()


def max_threads():
    """OpenMP's own setting for the calling thread; torch.set_num_threads changes it too."""
    return steepest_max_threads()
