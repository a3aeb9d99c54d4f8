"""One kind of work on the elements of all parameters of a step, in one parallel region.

The elements of all parameters with a gradient are cut at chunks (or at units, such as rows, where
those are measured) into contiguous parts, one or a few for each thread. An element is owned by one
part. What is measured of a chunk is a number of its own, and one thread combines these in order
later: no result depends on the number of threads. Every thread works in the default floating-point
mode and puts its own mode back. A sweep allocates nothing and cannot fail.
"""
from cpython.pycapsule cimport PyCapsule_GetPointer
from libc.stdlib cimport free, malloc

from steepest.kernels import threads as thread_pool
from steepest.kernels.contract cimport CHUNK, SUMS, measure_double, measure_float, real
from steepest.kernels.engine.blocks cimport (
    agreeing, held_norm, prepare_range, reduce_range, update_range,
)
from steepest.kernels.engine.operands cimport decoded
from steepest.kernels.engine.structs cimport LARGE, LINE, MAKERS, SCRATCH, Entry, Program, Step
from steepest.kernels.engine.tiles cimport finalize_range, reduce_tiles
from steepest.kernels.engine.units cimport unit_range
from steepest.kernels.floatmode cimport floatmode_enter, floatmode_leave
from steepest.kernels.streams cimport fence
from steepest.kernels.team cimport team_run

cdef enum:
    PAGE = 1 << 19                     # elements of float32 on a huge page of 2 MiB
    GRAINS = 64                        # of a large part, at least

# Below this cost (elements, and what parameters cost besides) a sweep of several is one thread's.
cdef Py_ssize_t SERIAL = 1 << 15

cdef team_run run = NULL               # once a sweep has asked for threads


cdef struct Work:
    Step *step
    int what


cdef void shared(void *context, int part, int parts, int worker) noexcept nogil:
    cdef const Work *work = <const Work *>context
    share(work.step, work.what, part, parts, worker)


cdef int reserve(Step *s, int threads) except -1:
    """Gets scratch memory for so many threads, and the threads."""
    cdef char *memory
    global run
    if threads > 1 and run == NULL:
        run = <team_run>PyCapsule_GetPointer(thread_pool.team().RUN, "steepest.team")
    if threads > s.scratch_threads:
        memory = <char *>malloc(<size_t>threads * SCRATCH + LINE)
        if memory == NULL:
            raise MemoryError
        free(s.scratch_memory)
        s.scratch_memory, s.scratch_threads = memory, threads
        s.scratch = memory + (-<size_t>memory) % LINE
    return 0


cdef int reserve_partials(Step *s) except -1:
    """Gets memory for one number of each chunk."""
    cdef double *partial
    if s.partials > s.partial_capacity:
        partial = <double *>malloc(s.partials * sizeof(double))
        if partial == NULL:
            raise MemoryError
        free(s.partial)
        s.partial, s.partial_capacity = partial, s.partials
    return 0


cdef void sweep(Step *s, int what, int threads) noexcept nogil:
    """Does the work for the entries at the places low to high in `active`."""
    cdef Work work
    if threads == 1 or s.cost[s.high] - s.cost[s.low] < SERIAL:
        share(s, what, 0, 1, 0)
        return
    work.step, work.what = s, what
    run(&shared, &work, threads, s.cost[s.high] - s.cost[s.low] >= LARGE)


cdef Py_ssize_t grain(Py_ssize_t all, int parts) noexcept nogil:
    """At multiples of how many elements so many parts end: of a chunk; where they are large, of as
    many chunks as make them end where pages of memory do, up to huge ones. A power of two, and at
    most 1/GRAINS of a part."""
    cdef Py_ssize_t n = CHUNK
    while n < PAGE and 2 * n <= all // parts // GRAINS:
        n *= 2
    return n


cdef void boundary(const Step *s, int part, int parts, Py_ssize_t *entry,
                   Py_ssize_t *element) noexcept nogil:
    """Where a part begins: (place in `active`, element, a multiple of the grain)."""
    cdef Py_ssize_t lo = s.low, hi = s.high, middle, n
    cdef Py_ssize_t all = s.cost[hi] - s.cost[lo]
    cdef Py_ssize_t target = s.cost[lo] + all // parts * part + all % parts * part // parts
    while lo < hi:
        middle = (lo + hi) // 2
        if s.cost[middle + 1] <= target:
            lo = middle + 1
        else:
            hi = middle
    entry[0], element[0] = lo, 0
    if lo < s.high:
        n = grain(all, parts)
        element[0] = (target - s.cost[lo] + n // 2) // n * n


cdef void share(Step *s, int what, int part, int parts, int worker) noexcept nogil:
    """Does one of so many parts of all elements, each contiguous, with a worker's memory."""
    cdef unsigned long long mode = floatmode_enter()
    cdef char *scratch = s.scratch + <size_t>worker * SCRATCH
    cdef Py_ssize_t i, start, last, last_stop, stop
    cdef Entry *e
    boundary(s, part, parts, &i, &start)
    boundary(s, part + 1, parts, &last, &last_stop)
    while i < s.high and i <= last:
        e = &s.entries[s.active[i]]
        stop = min(e.size, last_stop) if i == last else e.size
        if e.in_double:
            work_on(s, what, i, e, start, stop, <double *>scratch)
        else:
            work_on(s, what, i, e, start, stop, <float *>scratch)
        i += 1
        start = 0
    fence()
    floatmode_leave(mode)


cdef void work_on(Step *s, int what, Py_ssize_t i, Entry *e, Py_ssize_t start, Py_ssize_t stop,
                  real *scratch) noexcept nogil:
    """One kind of work on the elements start to stop of an entry, the i-th in the sweep."""
    cdef const Program *program = &s.programs[e.program]
    cdef double *partial = NULL if s.partial == NULL else s.partial + s.first[i]
    cdef Py_ssize_t n
    if what == UPDATE:
        update_range(e, program, &s.scale, False, start, stop, scratch)
    elif what == LATE:
        if program.late or (program.projects and e.copy.encode != NULL):
            update_range(e, program, &s.scale, True, start, stop, scratch)
    elif what == HOLD or what == AGREE:
        while start < stop and (program.holds if what == HOLD else program.agrees) >= 0:
            n = min(stop - start, <Py_ssize_t>CHUNK)
            partial[start // CHUNK] = (
                held_norm(e, program, &s.measures, &s.scale, start, n, scratch)
                if what == HOLD else agreeing(e, program, &s.scale, start, n, scratch))
            start += n
    elif what == PREPARE:
        if program.prepared:
            prepare_range(e, program, &s.scale, start, stop, scratch)
    elif what == REDUCE:
        if s.reduction >= program.reductions or program.reduction_float[s.reduction] == NULL:
            return
        if program.axes_float[s.reduction] != NULL:
            reduce_tiles(e, program, s.reduction, &s.scale, start, stop, scratch)
        else:
            reduce_range(e, program, s.reduction, &s.scale, s.sums + s.first[i] * SUMS, start,
                         stop, scratch)
    elif what == FINALIZE_AXES:
        if s.reduction < program.reductions and program.axes_float[s.reduction] != NULL:
            finalize_range(e, program, s.reduction, start, stop, scratch)
    elif what == MEASURE or what == AGAIN:
        if what == MEASURE or e.again:
            measure_range(s, e, partial, start, stop, scratch)
    elif what == MEASURE_AND_UPDATE:
        while start < stop:  # the second finds the chunk where the first has brought it
            n = min(stop - start, <Py_ssize_t>CHUNK)
            measure_range(s, e, partial, start, start + n, scratch)
            update_range(e, program, &s.scale, False, start, start + n, scratch)
            start += n
    elif e.size:
        work_on_units(s, what, e, start, stop, scratch)


cdef void work_on_units(Step *s, int what, Entry *e, Py_ssize_t start, Py_ssize_t stop,
                        real *scratch) noexcept nogil:
    """The units that begin in a share of the elements: their FACTORS, or those to PROJECT."""
    cdef const Program *program = &s.programs[e.program]
    cdef Py_ssize_t n
    cdef int k
    for k in range(program.units):
        if (program.unit[k].kind < MAKERS) if what == FACTORS else (
                k == s.unit and program.unit[k].kind > MAKERS):
            n = e.units[k].length
            unit_range(e, program, &s.measures, k, (start + n - 1) // n, (stop + n - 1) // n,
                       scratch)


cdef void measure_range(Step *s, Entry *e, double *partial, Py_ssize_t start, Py_ssize_t stop,
                        real *scratch) noexcept nogil:
    cdef Py_ssize_t n
    cdef const real *row
    while start < stop:
        n = min(stop - start, <Py_ssize_t>CHUNK)
        row = decoded(&e.reading, start, n, scratch)
        if real is float:
            partial[start // CHUNK] = (<measure_float>s.measure_float)(row, n, e.inverse, s.order)
        else:
            partial[start // CHUNK] = (<measure_double>s.measure_double)(row, n, e.inverse,
                                                                         s.order)
        start += n
