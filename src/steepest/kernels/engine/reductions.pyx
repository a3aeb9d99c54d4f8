"""Reductions of rules: a *reduction pass* is a sweep that adds up numbers of each chunk (or of rows
and columns, see `tiles`); these *partial* results are *combined* in order by one thread, and
*finalized*: the coefficients of what follows are made of them. The update comes after the last
pass. No Python; no memory is allocated once `reserve_sums` has some.
"""
from libc.math cimport sqrt
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from steepest.kernels.contract cimport SCALARS, SUMS, finalize_function
from steepest.kernels.engine.structs cimport Domain, Entry, Program, Step, chunks_of
from steepest.kernels.engine.sweeps cimport AGREE, FINALIZE_AXES, HOLD, REDUCE, sweep

# Bytes for each thread that a reduction leaves in cache for the update, if it is of few parameters.
cdef Py_ssize_t NEAR = 1 << 21


cdef int reserve_sums(Step *s) except -1:
    """Gets memory for SUMS numbers of each chunk."""
    cdef double *sums
    if s.partials > s.sums_capacity:
        sums = <double *>malloc(s.partials * SUMS * sizeof(double))
        if sums == NULL:
            raise MemoryError
        free(s.sums)
        s.sums, s.sums_capacity = sums, s.partials
    return 0


cdef inline const Program *program_at(const Step *s, Py_ssize_t i) noexcept nogil:
    """The program of the i-th entry of the sweep."""
    return &s.programs[s.entries[s.active[i]].program]


cdef void reduce_and_update(Step *s, int update, int threads) noexcept nogil:
    """Sweeps the reductions of all rules that have some, and the update after them: of as many
    parameters at a time as caches hold, unless a rule takes the sums of all."""
    cdef Py_ssize_t i
    cdef bint apart = s.reductions > 0
    for i in range(s.capacity):  # also those that no parameter of this step belongs to
        s.domains[i].taken = False
    for i in range(s.actives):
        apart = apart and not program_at(s, i).together
    s.high = 0
    while s.high < s.actives:
        s.low, s.high = s.high, near(s, threads) if apart else s.actives
        reduce(s, threads)
        sweep(s, update, threads)
    s.low = 0


cdef Py_ssize_t near(const Step *s, int threads) noexcept nogil:
    """How far those parameters go whose arrays caches hold, from the end of the last ones."""
    cdef Py_ssize_t i, bytes = 0
    cdef Entry *e
    for i in range(s.high, s.actives):
        e = &s.entries[s.active[i]]
        bytes += e.size * e.width
        if bytes >= NEAR * threads:
            return i + 1
    return s.actives


cdef void reduce(Step *s, int threads) noexcept nogil:
    """All reduction passes, and what follows from each."""
    cdef Py_ssize_t i
    cdef Entry *e
    cdef const Program *program
    if s.reductions == 0:
        return
    for i in range(s.low, s.high):
        e = &s.entries[s.active[i]]
        program = program_at(s, i)
        memcpy(e.h, program.h, sizeof(e.h))
        s.domains[program.domain].taken |= program.reductions > 0
        memcpy(s.domains[program.domain].now, program.kept, sizeof(program.kept))
    for s.reduction in range(s.reductions):
        if has_loop(s):
            sweep(s, REDUCE, threads)
        if has_axes(s):
            sweep(s, FINALIZE_AXES, threads)
        combine(s)


cdef bint has_loop(const Step *s) noexcept nogil:
    """Whether a rule of this step has a loop to run in this pass."""
    cdef Py_ssize_t i
    cdef const Program *program
    for i in range(s.low, s.high):
        program = program_at(s, i)
        if s.reduction < program.reductions and program.reduction_float[s.reduction] != NULL:
            return True
    return False


cdef bint has_axes(const Step *s) noexcept nogil:
    """Whether a rule of this step finalizes rows and columns after this pass."""
    cdef Py_ssize_t i
    cdef const Program *program
    for i in range(s.low, s.high):
        program = program_at(s, i)
        if s.reduction < program.reductions and program.axes_float[s.reduction] != NULL:
            return True
    return False


cdef void combine(Step *s) noexcept nogil:
    """Combines what a pass has found of chunks, and finalizes it."""
    cdef Py_ssize_t i, chunk
    cdef int k
    cdef Entry *e
    cdef Domain *domain
    cdef const Program *program
    for i in range(s.low, s.high):
        domain = &s.domains[program_at(s, i).domain]
        for k in range(SUMS):
            domain.sums[k] = 0
        memcpy(domain.before, domain.now, sizeof(domain.now))
    for i in range(s.low, s.high):
        e = &s.entries[s.active[i]]
        program = program_at(s, i)
        if s.reduction >= program.reductions or program.finalize[s.reduction] == NULL:
            continue
        for k in range(SUMS):
            e.sums[k] = 0
        if program.reduction_float[s.reduction] != NULL:
            for chunk in range(s.first[i], s.first[i] + chunks_of(e)):
                for k in range(SUMS):
                    e.sums[k] += s.sums[chunk * SUMS + k]
        for k in range(SUMS):
            s.domains[program.domain].sums[k] += e.sums[k]
    for i in range(s.low, s.high):
        program = program_at(s, i)
        if s.reduction < program.reductions and program.finalize[s.reduction] != NULL:
            finalize(s, &s.entries[s.active[i]], program,
                     <finalize_function>program.finalize[s.reduction])


cdef void finalize(Step *s, Entry *e, const Program *program,
                   finalize_function function) noexcept nogil:
    """The coefficients of one parameter. Numbers that are kept of a domain follow for each of its
    parameters from the same ones before, and so are the same."""
    cdef Domain *domain = &s.domains[program.domain]
    cdef const double *sums = &domain.sums[0] if program.together else &e.sums[0]
    cdef double scalars[SCALARS]
    if e.scalars != NULL:
        function(sums, e.scalars, e.h)
        return
    memcpy(scalars, domain.before, sizeof(scalars))
    function(sums, scalars, e.h)
    memcpy(domain.now, scalars, sizeof(scalars))


# What depends on the whole gradient as the prologue makes it

cdef double added(const Step *s, Py_ssize_t i) noexcept nogil:
    """What the chunks of the i-th entry of the sweep add up to."""
    cdef Py_ssize_t chunk
    cdef double total = 0
    for chunk in range(s.first[i], s.first[i] + chunks_of(&s.entries[s.active[i]])):
        total += s.partial[chunk]
    return total


cdef void hold_norms(Step *s, int threads) noexcept nogil:
    """Finds by what gradients are multiplied to hold their norms."""
    cdef Py_ssize_t i
    cdef double norm, most
    sweep(s, HOLD, threads)
    for i in range(s.actives):
        if program_at(s, i).holds >= 0:
            norm, most = sqrt(added(s, i)), program_at(s, i).most
            s.entries[s.active[i]].held = most / norm if norm > most else 1.0


cdef void scale_agreeing(Step *s, int threads) noexcept nogil:
    """Finds by what updates are scaled of which only what agrees with the gradient is taken."""
    cdef Py_ssize_t i
    cdef Entry *e
    cdef double share
    sweep(s, AGREE, threads)
    for i in range(s.actives):
        e = &s.entries[s.active[i]]
        if program_at(s, i).agrees >= 0 and e.size:
            share = added(s, i) / <double>e.size
            e.agreed = 1.0 / (share if share > 1e-3 else 1e-3)
