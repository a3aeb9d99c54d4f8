"""The plan of a step and its sweeps.

A Plan holds one Entry per parameter: where its arrays lie and how they are walked. Before a step,
`resolve` takes the parameters and gradients and compares them with what the plan knows (pointer,
type, shape, strides); `rows` tells which (group, t) pairs occur; `program` says what to do for each
pair. None of that writes to a parameter. `norms`, `factors` and `commit` run the sweeps: one
parallel region each, over the elements of all parameters with a gradient, cut at chunks (or at
units, such as rows, where those are measured) into one contiguous share per thread. An element is
owned by one thread, and what is measured of a chunk is folded in order by one thread, so no result
depends on the number of threads. A rule that goes by sums has its surveys swept first, and its
coefficients settled between the sweeps: of as many parameters at a time as caches hold, where the
sums are those of one parameter each. One that goes by rows and columns tallies them in such sweeps
(see `bands`); a rule in Python computes its step before the commit, from what `stage` makes, and
`replace` says what else the commit copies. Once `commit` has its scratch memory it cannot fail: it
allocates nothing and calls no Python until the counters have advanced with the parameters.

Every thread works in the default floating-point mode and puts its own mode back; the thread that
steps is in it for the whole of the step (see `machine.alone`).
"""
from cpython.buffer cimport (
    PyBUF_STRIDES, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer,
)
from cpython.pycapsule cimport PyCapsule_GetPointer
from libc.float cimport DBL_MAX
from libc.math cimport INFINITY, NAN, frexp, isfinite, ldexp, pow, sqrt
from libc.stdint cimport int64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcpy

from steepest.kernels import threads as thread_pool
from steepest.kernels.contract cimport (
    BLOCK, CHUNK, COEFFICIENTS, RULE_DOUBLE, RULE_FLOAT, SCALARS, SETTLE, STAGES, STATES, SUMS,
    SURVEYS, SURVEY_DOUBLE, SURVEY_FLOAT, TABLE_DOUBLE, TABLE_FLOAT, Operand, larger,
    measure_double, measure_float, real, settle_function,
)
from steepest.kernels.engine.bands cimport divide, release, table_range, tally_range
from steepest.kernels.engine.visits cimport (
    ADAPTIVE_CLIP, CENTRALIZE, COUNT_ABOVE, G, GROUP_LASSO, HOME, LARGEST, LINE, MAKERS, MAX_NORM,
    MAXIMUM, P, READING, SCRATCH, SIMPLEX, SOURCE, SPARE, SQUARES, STAGE_COEFFICIENTS,
    SUM, SUM_ABOVE, UNIT_NORM, UNIT_STAGES, Bands, Entry, Measures, Program, Stage, Units, decoded,
    agreeing, held_norm, representable, stage_range, survey_range, unit_range, update_range,
)
from steepest.kernels.floatmode cimport floatmode_enter, floatmode_leave
from steepest.kernels.sources cimport (
    Source, address, counter, held, reach, same, same_axes, still_as, still_at,
)
from steepest.kernels.team cimport team_run

cdef enum:
    VISIT = 64                         # what a parameter costs besides its elements, in elements

cdef enum:                             # what a sweep does
    MEASURE, AGAIN, UPDATE, MEASURE_AND_UPDATE, FACTORS, PROJECT, LATE, SURVEY, TABLE, STAGE,
    HOLD, AGREE

_UNIT_KINDS = {
    "adaptive": ADAPTIVE_CLIP, "centralize": CENTRALIZE, "group_lasso": GROUP_LASSO,
    "max_norm": MAX_NORM, "unit_norm": UNIT_NORM, "simplex": SIMPLEX,
}
_UNIT_MEASURES = {
    "sum_squares": SQUARES, "largest": LARGEST, "sum": SUM, "sum_above": SUM_ABOVE,
    "count_above": COUNT_ABOVE, "maximum": MAXIMUM,
}

BLOCK_SIZE, CHUNK_SIZE, UNIT_STAGE_LIMIT = BLOCK, CHUNK, UNIT_STAGES
SPARE_OPERAND = SPARE

# Below this cost (elements, plus VISIT per parameter) a sweep of several is one thread's.
cdef Py_ssize_t SERIAL = 1 << 15

# Bytes for each thread that a survey leaves in cache for the update, if it goes no further.
cdef Py_ssize_t NEAR = 1 << 21


# The least magnitude whose inverse is a double for certain: 2^-1000.
cdef double LEAST = ldexp(1.0, -1000)


cdef inline Py_ssize_t chunks_of(const Entry *e) noexcept nogil:
    return (e.size + CHUNK - 1) // CHUNK


cdef void *pointer(object capsule, const char *kind) except? NULL:
    return PyCapsule_GetPointer(capsule, kind)


cdef Py_ssize_t *reserve_axes(Py_ssize_t **memory, int ndim) except NULL:
    """Room for a shape and strides, in place of what was there."""
    cdef Py_ssize_t *axes = <Py_ssize_t *>malloc(2 * (ndim + 1) * sizeof(Py_ssize_t))
    if axes == NULL:
        raise MemoryError
    free(memory[0])
    memory[0] = axes
    return axes


cdef team_run run = NULL               # once a sweep has asked for threads


cdef struct Sweep:
    void *plan
    int what


cdef void shared(void *context, int worker, int team) noexcept nogil:
    cdef const Sweep *sweep = <const Sweep *>context
    (<Plan>sweep.plan).share(sweep.what, worker, team)


cdef struct Domain:
    # What a rule keeps or sums up of all parameters of a group, or of all its groups.
    bint taken                         # whether a parameter of it is in this step
    double sums[SUMS]
    double before[SCALARS]             # the numbers kept, as a survey finds them
    double now[SCALARS]


cdef struct Copy:
    # A new value of a state that a rule in Python has computed.
    char *to
    const char *source
    size_t bytes


cdef class Plan:
    """The arrays of an optimizer as C sees them. See the head of this file.

    `kernels` is the table of one instruction-set level (see `dispatch`).
    """
    cdef object kernels
    cdef Entry *entries
    cdef Program *programs
    cdef Py_ssize_t count, capacity, program_capacity
    cdef list params                   # per entry
    cdef list owners                   # per entry: the parameter, or a tensor it is a view of
    cdef list states                   # per entry: its counter and state arrays, kept alive
    cdef list shown                    # per entry: what others can reach of them, and as it was
    cdef list kept_alive               # per entry: its scalar states, its factors and states
    cdef Stage scale
    cdef Measures unit_measures
    cdef void *measure_float
    cdef void *measure_double
    cdef double order                  # of the norm that is measured
    cdef bint making_factors           # whether a program of this step needs that sweep
    cdef int projecting                # how many unit stages the programs have, if any projects
    cdef int unit                      # the one that the present sweep projects by
    cdef bint holding, agreeing        # whether a program of this step holds norms, masks updates
    cdef bint staging                  # whether a rule of this step is prepared in Python
    cdef Copy *copies
    cdef list copied                   # the arrays of these copies
    cdef int surveys                   # the most that a program of this step has
    cdef int survey                    # the one that is being swept
    # Bounds of all written arrays, sorted and merged; gradients must stay outside.
    cdef char **lows
    cdef char **highs
    cdef Py_ssize_t guarded, guard_capacity
    # The sweep's work: entries with a gradient, running cost, first partial result.
    cdef Py_ssize_t *active
    cdef Py_ssize_t *cost
    cdef Py_ssize_t *first
    cdef Py_ssize_t actives
    cdef Py_ssize_t low, high          # the places in `active` that sweeps go over
    cdef double *partial
    cdef double *found                 # what surveys add up, SUMS numbers for each chunk
    cdef Domain *domains
    cdef Py_ssize_t partials, partial_capacity, found_capacity
    cdef char *scratch_memory
    cdef char *scratch
    cdef int scratch_threads
    cdef object updates_array
    cdef int64_t *updates              # completed steps

    def __cinit__(self, kernels, Py_ssize_t capacity, updates):
        self.kernels = kernels
        self.updates_array = updates
        self.updates = counter(updates)
        self.capacity = capacity
        self.params, self.states, self.kept_alive = [], [], []
        self.owners, self.shown = [], []
        self.entries = <Entry *>calloc(max(capacity, 1), sizeof(Entry))
        self.active = <Py_ssize_t *>malloc(max(capacity, 1) * sizeof(Py_ssize_t))
        self.cost = <Py_ssize_t *>malloc((capacity + 1) * sizeof(Py_ssize_t))
        self.first = <Py_ssize_t *>malloc(max(capacity, 1) * sizeof(Py_ssize_t))
        self.domains = <Domain *>calloc(max(capacity, 1), sizeof(Domain))
        if (self.entries == NULL or self.active == NULL or self.cost == NULL or self.first == NULL
                or self.domains == NULL):
            raise MemoryError
        self.set_stage(&self.scale, kernels.stages["scale"], 0, ())
        self.set_stage(&self.unit_measures.multiply, kernels.stages["multiply"], 0, ())
        self.set_stage(&self.unit_measures.divide, kernels.stages["divide"], 0, ())
        self.set_stage(&self.unit_measures.lower, kernels.stages["lower"], 0, ())
        for name, what in _UNIT_MEASURES.items():
            of_float, of_double = kernels.measures[name]
            self.unit_measures.of[<int>what][0] = pointer(of_float, "steepest.measure")
            self.unit_measures.of[<int>what][1] = pointer(of_double, "steepest.measure")

    def __dealloc__(self):
        cdef Py_ssize_t i
        cdef int k
        if self.entries != NULL:
            for i in range(self.count):
                for k in range(HOME + 1):
                    free(self.entries[i].axes[k])
                for k in range(self.entries[i].cuts):
                    free(self.entries[i].units[k].axes_p)
                    free(self.entries[i].units[k].axes_g)
                free(self.entries[i].units)
                release(self.entries[i].bands)
        free(self.entries)
        free(self.programs)
        free(self.lows)
        free(self.highs)
        free(self.active)
        free(self.cost)
        free(self.first)
        free(self.partial)
        free(self.found)
        free(self.domains)
        free(self.copies)
        free(self.scratch_memory)

    # Building

    def add(self, int group, tuple arrays, step, int states, layout, own=None, matrices=None,
            owner=None, tuple shown=()):
        """Adds a parameter: arrays are (parameter, states..., arrays of stages...), with `states`
        of the rule's; `own` are SCALARS doubles at most that the rule keeps beside them. `step` is
        its counter. `layout` (arrays.Layout) walks them and a gradient
        that lies like the parameter, which is expected until `bind_gradient` says otherwise; its
        cuts are the units that the programs' unit stages go by, in their order. `matrices`, for a
        rule that goes by their rows and columns: (number of matrices, of rows, of columns, factors,
        states), the last two tuples of arrays in C order: factors of rows, and of columns unless it
        goes by rows alone, which are spread over the first arrays of the rule. `owner` is what
        `resolve` is given for the parameter, if that is not the array itself. `shown` are the
        arrays of its state that others can reach, for `resolve` to look at.
        """
        cdef Entry *e
        if self.count == self.capacity or len(arrays) + 1 > SPARE or states > STATES:
            raise ValueError("more arrays than the plan has room for")
        e = &self.entries[self.count]
        self.count += 1  # from here on, __dealloc__ frees the entry's axes
        e.group = group
        e.operands = <int>len(arrays) + 1
        e.states = states
        e.scale = 1.0
        e.is_double = arrays[0].dtype.char == "d"
        e.size = arrays[0].size
        e.units = <Units *>calloc(max(len(layout.cuts), 1), sizeof(Units))
        if e.units == NULL:
            raise MemoryError
        e.cuts = <int>len(layout.cuts)
        self.bind_all(e, arrays, arrays[0], layout)
        e.gradient.data = NULL  # no gradient is known to lie outside what is written
        e.count = counter(step)
        e.own = NULL if own is None else <double *>address(own, True)
        if matrices is not None:
            self.set_bands(e, matrices)
        self.params.append(arrays[0].view())  # a head of its own, which nobody changes
        self.owners.append(arrays[0] if owner is None else owner)
        self.shown.append([(x, x.view()) for x in shown])
        self.states.append((step,) + arrays[1:])
        self.kept_alive.append((own, matrices))

    cdef int set_bands(self, Entry *e, tuple matrices) except -1:
        cdef int k
        cdef tuple factors = matrices[3], states = matrices[4]
        cdef Bands *b = <Bands *>calloc(1, sizeof(Bands))
        if b == NULL:
            raise MemoryError
        e.bands = b  # from here on, __dealloc__ frees it
        b.table.matrices, b.table.rows, b.table.columns = matrices[:3]
        if b.table.matrices * b.table.rows * b.table.columns != e.size:
            raise ValueError("matrices of another size than the parameter")
        for x in factors + states:
            if x.dtype.char != ("d" if e.is_double else "f") or not x.flags.carray:
                raise ValueError("factors or states of another type or order")
        b.row = address(factors[0], True)
        b.column = address(factors[1], True) if len(factors) > 1 else NULL
        b.spread = pointer(self.kernels.spreads["factors"][1 if e.is_double else 0],
                           "steepest.spread")
        b.table.states = <int>len(states)
        b.table.state = <void **>malloc((len(states) + 1) * sizeof(void *))
        b.table.length = <Py_ssize_t *>malloc((len(states) + 1) * sizeof(Py_ssize_t))
        if b.table.state == NULL or b.table.length == NULL:
            raise MemoryError
        for k, x in enumerate(states):
            b.table.state[k], b.table.length[k] = address(x, True), x.size
        return divide(b)

    cdef int bind_all(self, Entry *e, tuple arrays, object gradient, object layout) except -1:
        cdef int k
        cdef Units *units
        for k in range(<int>len(arrays)):
            self.bind(e, P if k == 0 else k + 1, arrays[k], layout.walks[k])
        self.bind_source(e, gradient)
        self.bind_home(e, arrays[0])
        self.bind(e, G, gradient, layout.walks[len(arrays)])
        e.offset = layout.walks[len(arrays)].offset
        self.bind(e, READING, gradient, layout.c_order)
        e.lent = e.operand[G].decode == NULL or e.reading.decode == NULL
        for k, cut in enumerate(layout.cuts):
            units = &e.units[k]
            units.count, units.length = cut.count, cut.length
            self.bind_walk(e, &units.p, &units.axes_p, arrays[0], cut.p)
            self.bind_walk(e, &units.g, &units.axes_g, gradient, cut.g)
            e.lent = e.lent or units.g.decode == NULL
            units.factors = NULL if cut.factors is None else address(cut.factors, True)
        return 0

    cdef int bind(self, Entry *e, int k, object array, object walk) except -1:
        """Makes an array the k-th operand of e."""
        return self.bind_walk(e, &e.reading if k == READING else &e.operand[k], &e.axes[k], array,
                              walk)

    cdef int bind_walk(self, Entry *e, Operand *x, Py_ssize_t **memory, object array,
                       object walk) except -1:
        """Makes x the array, walked as an arrays.Walk says; its axes get their own memory."""
        cdef char *data = address(array, False)
        cdef int ndim = <int>len(walk.shape), axis
        cdef Py_ssize_t *axes = reserve_axes(memory, ndim)
        for axis in range(ndim):
            axes[axis] = walk.shape[axis]
            axes[ndim + axis] = walk.strides[axis]
        x.data, x.ndim, x.shape, x.strides = data + <Py_ssize_t>walk.offset, ndim, axes, axes + ndim
        x.decode, x.encode = NULL, NULL
        if walk.codec is not None:
            functions = self.kernels.codecs[walk.codec]
            x.decode = pointer(functions[1 if e.is_double else 0], "steepest.codec")
            if array.flags.writeable:
                x.encode = pointer(functions[3 if e.is_double else 2], "steepest.codec")
        return 0

    cdef int bind_source(self, Entry *e, object gradient) except -1:
        """Remembers what the gradient looks like."""
        cdef Py_buffer view
        cdef Source *s = &e.gradient
        PyObject_GetBuffer(gradient, &view, PyBUF_STRIDES)
        try:
            s.shape = reserve_axes(&e.axes[SOURCE], view.ndim)
            s.strides = s.shape + view.ndim
            s.data, s.ndim, s.format = <char *>view.buf, view.ndim, c"d" if e.is_double else c"f"
            if view.ndim:
                memcpy(s.shape, view.shape, view.ndim * sizeof(Py_ssize_t))
                memcpy(s.strides, view.strides, view.ndim * sizeof(Py_ssize_t))
            reach(s, view.itemsize)
        finally:
            PyBuffer_Release(&view)
        return 0

    cdef int bind_home(self, Entry *e, object array) except -1:
        """Remembers where the parameter lies; its strides are mostly the gradient's."""
        cdef Py_buffer view
        cdef Py_ssize_t *steps
        PyObject_GetBuffer(array, &view, PyBUF_STRIDES | PyBUF_WRITABLE)
        try:
            e.home, e.steps = <char *>view.buf, e.gradient.strides
            if not same_axes(view.strides, e.gradient.strides, view.ndim):
                steps = reserve_axes(&e.axes[HOME], view.ndim)
                memcpy(steps, view.strides, view.ndim * sizeof(Py_ssize_t))
                e.steps = steps
        finally:
            PyBuffer_Release(&view)
        return 0

    def bind_gradient(self, Py_ssize_t i, x, layout):
        """Takes x as the gradient of entry i from here on; `layout` walks its arrays and x."""
        self.bind_all(&self.entries[i], self.arrays(i), x, layout)

    def arrays(self, Py_ssize_t i):
        """The parameter and state arrays of entry i."""
        return (self.params[i],) + self.states[i][1:]

    def guard(self, list bounds):
        """Bounds (low, high) of all written arrays, sorted, disjoint: no gradient may touch one."""
        cdef size_t low, high
        cdef char **more
        self.guarded = 0
        if <Py_ssize_t>len(bounds) > self.guard_capacity:
            more = <char **>realloc(self.lows, len(bounds) * sizeof(char *))
            if more == NULL:
                raise MemoryError
            self.lows = more
            more = <char **>realloc(self.highs, len(bounds) * sizeof(char *))
            if more == NULL:
                raise MemoryError
            self.highs, self.guard_capacity = more, len(bounds)
        for low, high in bounds:
            self.lows[self.guarded] = <char *>low
            self.highs[self.guarded] = <char *>high
            self.guarded += 1

    # Before a step

    def overlaps(self, size_t low, size_t high):
        """Whether the bytes from address low to high overlap the bounds of a written array."""
        return self.touches(<const char *>low, <const char *>high)

    cdef bint touches(self, const char *low, const char *high) noexcept:
        """Whether the bytes low to high overlap any written array: binary search."""
        cdef Py_ssize_t lo = 0, hi = self.guarded, middle
        while lo < hi:
            middle = (lo + hi) // 2
            if self.highs[middle] <= low:
                lo = middle + 1
            else:
                hi = middle
        return lo < self.guarded and self.lows[lo] < high

    def resolve(self, list params, list grads, bint looking=False):
        """Takes the parameters and gradients of a step (None: leave that parameter alone). What
        need not stay where it is gives way in `grads` to an array that holds it there.

        Returns the numbers of the entries whose gradient is not laid out as before or touches a
        written array; None if a parameter is no longer the array that was bound, or lies elsewhere
        or otherwise, or was made read-only. States are looked at only when asked for by `looking`:
        the plan holds them, and their dicts tell of others (optimizers.state).
        """
        cdef Py_ssize_t i
        cdef int k
        cdef Entry *e
        cdef char *data
        cdef list stale = []
        if len(params) != self.count:
            return None
        if len(grads) != self.count:
            raise ValueError(f"{len(grads)} gradients for {self.count} parameters")
        for i in range(self.count):
            e = &self.entries[i]
            grad = grads[i]
            e.active = grad is not None
            if not e.active:
                continue
            p = params[i]
            if p is not self.owners[i] or not (still_at(p, e.home, &e.gradient, e.steps)
                                               or still_as(p, self.params[i])):
                return None
            if looking and not self.as_shown(i):
                return None
            grad = held(grad)
            if grad is None:
                stale.append(i)
                continue
            if grad is not grads[i]:
                grads[i] = grad
            if not same(&e.gradient, grad, &data) or (
                    e.lent and <size_t>data % (8 if e.is_double else 4)):
                stale.append(i)
            elif data != e.gradient.data:
                if e.size and self.touches(data + e.gradient.low, data + e.gradient.high):
                    stale.append(i)
                    continue
                e.gradient.data = data
                e.operand[G].data = data + e.offset
                e.reading.data = data
                for k in range(e.cuts):
                    e.units[k].g.data = data
        return stale

    cdef bint as_shown(self, Py_ssize_t i):
        """Whether the states of entry i that others can reach lie as they did."""
        for x, before in <list>self.shown[i]:
            if not still_as(x, before):
                return False
        return True

    def rows(self):
        """The (group, t, whether by rows) of this step, t from 1; the order in which `program`
        counts."""
        cdef Py_ssize_t i
        cdef Entry *e
        cdef int64_t t, last_t = -1
        cdef int last_group = -1, last = -1
        cdef bint last_banded = False
        cdef list found = []
        cdef dict known = None
        self.actives = 0
        self.cost[0] = 0
        self.partials = 0
        for i in range(self.count):
            e = &self.entries[i]
            if not e.active:
                continue
            e.scale = 1.0
            t = e.count[0] + 1
            if t != last_t or e.group != last_group or (e.bands != NULL) != last_banded:
                last_t, last_group, last_banded = t, e.group, e.bands != NULL
                key = (e.group, t, last_banded)
                if known is None:
                    known = {}  # made only when a second pair turns up
                elif not known:
                    known[found[0]] = 0
                last = known.setdefault(key, len(found)) if found else 0
                if last == len(found):
                    found.append(key)
            e.program = last
            self.active[self.actives] = i
            self.first[self.actives] = self.partials
            self.partials += chunks_of(e)
            self.cost[self.actives + 1] = self.cost[self.actives] + e.size + VISIT
            self.actives += 1
        self.low, self.high = 0, self.actives
        self.making_factors, self.projecting = False, 0
        self.surveys = 0
        self.staging = self.holding = self.agreeing = False
        self.copied = []
        self.reserve_programs(len(found))
        return found

    cdef int reserve_programs(self, Py_ssize_t n) except -1:
        cdef Program *programs
        if n > self.program_capacity:
            programs = <Program *>malloc(n * sizeof(Program))
            if programs == NULL:
                raise MemoryError
            free(self.programs)
            self.programs, self.program_capacity = programs, n
        return 0

    cdef int set_stage(self, Stage *s, functions, int operand, tuple h) except -1:
        cdef int k
        s.of_float = pointer(functions[0], "steepest.stage")
        s.of_double = pointer(functions[1], "steepest.stage")
        s.makes_gradient = functions[2]
        s.operand = operand
        if len(h) > STAGE_COEFFICIENTS:
            raise ValueError("a stage with too many coefficients")
        for k in range(<int>len(h)):
            s.h[k] = h[k]
        return 0

    def program(self, Py_ssize_t row, str rule, tuple h, double keep, list before, list after,
                list units, list late, int domain=0, bint together=False, tuple kept=(),
                bint prepared=False):
        """What to do for a row of `rows`: the rule, its coefficients, what is kept of the
        parameter; the stages before the rule, after it, and after the unit stages, each as (name,
        coefficients, operand number of its own array or 0); and the unit stages, each as (kind,
        coefficients), with those that make factors of the gradient first. `kept` are the numbers
        that the rule keeps of all parameters of the `domain`, and `together` says that its sums
        are those of the whole domain. `prepared`: the rule takes what Python makes of what
        `stage` puts into its first two operands, gradient and parameter."""
        cdef Program *program = &self.programs[row]
        cdef int k
        if (row >= self.program_capacity or len(h) > COEFFICIENTS or len(units) > UNIT_STAGES
                or len(before) + len(after) + len(late) > STAGES or len(kept) > SCALARS
                or not 0 <= domain < max(self.capacity, 1)):
            raise ValueError(f"{rule}: more coefficients or stages than a program has room for")
        functions = self.kernels.rules[rule]
        program.rule_float = pointer(functions[0], RULE_FLOAT)
        program.rule_double = pointer(functions[1], RULE_DOUBLE)
        for k in range(COEFFICIENTS):  # a kernel that reads more than it was given finds NaN
            program.h[k] = h[k] if k < len(h) else NAN
        self.set_surveys(program, functions[2])
        program.prepared = prepared
        self.staging = self.staging or prepared
        program.domain, program.together, program.scalars = domain, together, <int>len(kept)
        for k in range(<int>len(kept)):
            program.kept[k] = kept[k]
        program.keep = keep
        program.before, program.after = <int>len(before), <int>len(after)
        program.late, program.units = <int>len(late), <int>len(units)
        k = 0
        for name, coefficients, operand in before + after + late:
            self.set_stage(&program.stage[k], self.kernels.stages[name], operand, coefficients)
            k += 1
        self.set_measured(program, before, after)
        program.moves = False
        for k in range(program.before):
            program.moves = (program.moves or not program.stage[k].makes_gradient
                             or program.stage[k].operand != 0)
        for k, (kind, coefficients) in enumerate(units):
            program.unit[k].kind = _UNIT_KINDS[kind]
            program.unit[k].h[0], program.unit[k].h[1] = coefficients
            if program.unit[k].kind < MAKERS:
                self.making_factors = True
            else:
                self.projecting = max(self.projecting, k + 1)

    def stage(self):
        """Makes the gradients, and the parameters, that prepared rules start from; on one thread,
        see `elements`."""
        if self.staging:
            self.reserve(1)
            with nogil:
                self.sweep(STAGE, 1)

    def steps(self):
        """The entries of this step and their t."""
        cdef Py_ssize_t i
        return [(self.active[i], self.entries[self.active[i]].count[0] + 1)
                for i in range(self.actives)]

    def replace(self, list copies):
        """What the commit copies: (array, new values), alike in type and shape, both in C order."""
        cdef Py_ssize_t i
        cdef Copy *memory
        for array, values in copies:
            if (array.dtype != values.dtype or array.shape != values.shape
                    or not array.flags.carray or not values.flags.c_contiguous):
                raise ValueError(f"new values {values.dtype} {values.shape} for an array "
                                 f"{array.dtype} {array.shape}")
        memory = <Copy *>malloc(max(len(copies), 1) * sizeof(Copy))
        if memory == NULL:
            raise MemoryError
        free(self.copies)
        self.copies, self.copied = memory, copies
        for i, (array, values) in enumerate(copies):
            memory[i].to = address(array, True)
            memory[i].source = address(values, False)
            memory[i].bytes = array.nbytes

    cdef int set_measured(self, Program *program, list before, list after) except -1:
        """Finds the stages that go by what is measured of the whole gradient as stages make it."""
        cdef int k
        program.holds = program.agrees = -1
        for k, (name, coefficients, _) in enumerate(before):
            if name == "hold":
                program.holds, program.most = k, coefficients[0]
                self.holding = True
        for k, (name, _, _) in enumerate(after):
            if name == "agree":
                program.agrees = program.before + k
                self.agreeing = True
        return 0

    cdef int set_surveys(self, Program *program, tuple surveys) except -1:
        cdef int k
        if len(surveys) > SURVEYS:
            raise ValueError("a rule with too many surveys")
        for k, (of_float, of_double, *settle) in enumerate(surveys):
            program.survey_float[k] = program.survey_double[k] = NULL
            if of_float is not None:
                program.survey_float[k] = pointer(of_float, SURVEY_FLOAT)
                program.survey_double[k] = pointer(of_double, SURVEY_DOUBLE)
            program.settle[k] = program.table_float[k] = program.table_double[k] = NULL
            if len(settle) == 1:
                program.settle[k] = pointer(settle[0], SETTLE)
            else:
                self.set_tally(program, k, settle)
        program.surveys = <int>len(surveys)
        self.surveys = max(self.surveys, program.surveys)
        return 0

    cdef int set_tally(self, Program *program, int k, list settle) except -1:
        fold, of_float, of_double = settle
        program.table_float[k] = pointer(of_float, TABLE_FLOAT)
        program.table_double[k] = pointer(of_double, TABLE_DOUBLE)
        if fold is not None:
            name, program.blind[k] = fold
            functions = self.kernels.folds[name]
            program.fold_float[k] = pointer(functions[0], "steepest.fold")
            program.fold_double[k] = pointer(functions[1], "steepest.fold")
            program.largest[k] = name == "largest"
        return 0

    def rescale(self, scales):
        """The factor of the gradients in the coming step: one for all, or a list of each."""
        cdef Py_ssize_t i
        cdef double one = 1.0
        cdef list each = None
        if isinstance(scales, list):
            each = scales
            if len(each) != self.count:
                raise ValueError(f"{len(each)} factors for {self.count} parameters")
        else:
            one = scales
        for i in range(self.count):
            self.entries[i].scale = one if each is None else each[i]

    def elements(self):
        """What a sweep costs, in elements. Those of prepared rules do not count: threads that wait
        for work, awake, would take the processors from those of BLAS, on which these rules spend
        their time."""
        cdef Py_ssize_t i, count = self.cost[self.actives]
        if self.staging:
            for i in range(self.actives):
                if self.programs[self.entries[self.active[i]].program].prepared:
                    count -= self.cost[i + 1] - self.cost[i]
        return count

    cdef int reserve(self, int threads) except -1:
        cdef char *memory
        global run
        if threads > 1 and run == NULL:
            run = <team_run>pointer(thread_pool.team().RUN, "steepest.team")
        if threads > self.scratch_threads:
            memory = <char *>malloc(<size_t>threads * SCRATCH + LINE)
            if memory == NULL:
                raise MemoryError
            free(self.scratch_memory)
            self.scratch_memory, self.scratch_threads = memory, threads
            self.scratch = memory + (-<size_t>memory) % LINE
        return 0

    # Sweeps

    def norms(self, int threads, double order=2.0):
        """Norms of the gradients: (of all together, [of each; 0 for those without]).

        NaN or infinite only where a gradient is; a norm beyond double is the largest double.
        """
        # Above 1e18 the norm is the largest magnitude, but the power of its rounding has no bound.
        self.order = order if order == INFINITY else min(order, 1e18)
        self.reserve_partials()
        self.reserve(threads)
        if order == 2.0:
            self.measured("sum_squares", MEASURE, threads)
        elif order == 1.0:
            self.measured("sum_magnitudes", MEASURE, threads)
        else:
            self.measured("largest", MEASURE, threads)
        if order != INFINITY:
            self.measure_again(threads)
        return self.folded()

    cdef int measure_again(self, int threads) except -1:
        """Measures those gradients once more, scaled, whose first measure is not exact enough:
        squares leave the range of double long before the elements do, other powers sooner. Squares
        and magnitudes are scaled by a power of two; other powers by the largest magnitude, whose
        own power, and so the sum, is then 1 or a little more for any order.
        """
        cdef Py_ssize_t i
        cdef Entry *e
        cdef bint powers = self.order != 1.0 and self.order != 2.0, some = False
        for i in range(self.actives):
            e = &self.entries[self.active[i]]
            e.again = e.size > 0 and (powers or e.is_double and not (
                (self.order == 1.0 or 1e-280 < e.measured) and e.measured < 1e300))
            some = some or e.again
        if not some:
            return 0
        if not powers:
            self.measured("largest", AGAIN, threads)
        for i in range(self.actives):
            e = &self.entries[self.active[i]]
            if not (e.again and isfinite(e.measured) and e.measured > 0):
                e.again = False
            elif powers:
                e.largest = max(e.measured, LEAST)
                e.inverse = 1.0 / e.largest
            else:
                frexp(e.measured, &e.exponent)
                e.exponent = max(e.exponent, -1000)  # as LEAST
                e.inverse = ldexp(1.0, -e.exponent)
        self.measured("sum_powers" if powers else
                      "sum_squares" if self.order == 2.0 else "sum_magnitudes", AGAIN, threads)
        return 0

    cdef double joint(self, list members) except? -1:
        """The norm of the measured entries among `members` (None: all) together."""
        cdef Py_ssize_t i, k, n = self.actives if members is None else len(members)
        cdef double total = 0, largest = LEAST
        cdef int exponent = 0
        cdef bint some = False
        cdef Entry *e
        for k in range(n):
            i = self.active[k] if members is None else <Py_ssize_t>members[k]
            e = &self.entries[i]
            if e.active and e.measured != 0:
                exponent = e.exponent if not some else max(e.exponent, exponent)
                largest = max(e.largest, largest)
                some = True
        for k in range(n):
            i = self.active[k] if members is None else <Py_ssize_t>members[k]
            e = &self.entries[i]
            if not e.active:
                continue
            if self.order == INFINITY:
                total = larger(total, e.measured)
            else:
                total += self.raised(e, exponent, largest)
        return self.norm(total, exponent, largest)

    def together(self, list members):
        """The norm of some entries' gradients together; of the order that was measured last."""
        for i in members:
            if not 0 <= i < self.count:
                raise IndexError("no such entry")
        return self.joint(members)

    cdef folded(self):
        """The norms of all measured entries together, and of each."""
        cdef Py_ssize_t i
        cdef Entry *e
        cdef list each = []
        for i in range(self.count):
            e = &self.entries[i]
            each.append(self.norm(e.measured, e.exponent, e.largest) if e.active else 0.0)
        return self.joint(None), each

    cdef double raised(self, const Entry *e, int exponent, double largest) noexcept:
        """What was measured of an entry, had it been scaled by the given exponent or largest."""
        if e.measured == 0 or not isfinite(e.measured):
            return e.measured
        if self.order == 2.0:
            return ldexp(e.measured, 2 * (e.exponent - exponent))
        if self.order == 1.0:
            return ldexp(e.measured, e.exponent - exponent)
        return e.measured * pow(e.largest / largest, self.order)

    cdef double norm(self, double x, int exponent, double largest) noexcept:
        """The norm for a sum of powers; finite where the sum is."""
        if self.order == INFINITY:
            return x
        if self.order == 1.0:
            return representable(x, exponent)
        if self.order == 2.0:
            return representable(sqrt(x), exponent)
        cdef double root = largest * pow(x, 1.0 / self.order)
        return DBL_MAX if isfinite(x) and not isfinite(root) else root

    cdef int reserve_partials(self) except -1:
        cdef double *partial
        if self.partials > self.partial_capacity:
            partial = <double *>malloc(self.partials * sizeof(double))
            if partial == NULL:
                raise MemoryError
            free(self.partial)
            self.partial, self.partial_capacity = partial, self.partials
        return 0

    cdef int take_measure(self, str name) except -1:
        functions = self.kernels.measures[name]
        self.measure_float = pointer(functions[0], "steepest.measure")
        self.measure_double = pointer(functions[1], "steepest.measure")
        return 0

    cdef void start_measuring(self) noexcept:
        """Takes the gradients as they are, not scaled."""
        cdef Py_ssize_t i
        cdef Entry *e
        for i in range(self.actives):
            e = &self.entries[self.active[i]]
            e.exponent, e.largest, e.inverse = 0, LEAST, 1.0

    cdef int measured(self, str name, int what, int threads) except -1:
        """Measures the gradients, or AGAIN those marked so, and folds what was measured of each."""
        self.take_measure(name)
        if what == MEASURE:
            self.start_measuring()
        with nogil:
            self.sweep(what, threads)
        self.fold_partials(name == "largest", what)
        return 0

    cdef void fold_partials(self, bint most, int what) noexcept:
        cdef Py_ssize_t i, chunk
        cdef double part
        cdef Entry *e
        for i in range(self.actives):
            e = &self.entries[self.active[i]]
            if what == AGAIN and not e.again:
                continue
            e.measured = 0
            for chunk in range(chunks_of(e)):
                part = self.partial[self.first[i] + chunk]
                e.measured = larger(e.measured, part) if most else e.measured + part

    def factors(self, int threads):
        """Makes the factors of the units of the gradients, and those that hang on whole gradients,
        where programs ask for them."""
        if self.making_factors:
            self.reserve(threads)
            with nogil:
                self.sweep(FACTORS, threads)
        if self.holding or self.agreeing:
            self.reserve(threads)
            self.reserve_partials()
            with nogil:
                if self.holding:
                    self.sweep(HOLD, threads)
                    self.hold()
                if self.agreeing:
                    self.sweep(AGREE, threads)
                    self.agree()

    cdef double added(self, Py_ssize_t i) noexcept nogil:
        """What the chunks of the i-th entry of the sweep add up to."""
        cdef Py_ssize_t chunk
        cdef double total = 0
        for chunk in range(self.first[i], self.first[i] + chunks_of(&self.entries[self.active[i]])):
            total += self.partial[chunk]
        return total

    cdef void hold(self) noexcept nogil:
        cdef Py_ssize_t i
        cdef Entry *e
        cdef double norm
        for i in range(self.actives):
            e = &self.entries[self.active[i]]
            if self.programs[e.program].holds >= 0:
                norm = sqrt(self.added(i))
                e.held = self.programs[e.program].most / norm if (
                    norm > self.programs[e.program].most) else 1.0

    cdef void agree(self) noexcept nogil:
        cdef Py_ssize_t i
        cdef Entry *e
        cdef double share
        for i in range(self.actives):
            e = &self.entries[self.active[i]]
            if self.programs[e.program].agrees >= 0 and e.size:
                share = self.added(i) / <double>e.size
                e.agreed = 1.0 / (share if share > 1e-3 else 1e-3)

    def commit(self, int threads, dict history=None, dict fresh=None, list following=None,
               list keeping=None):
        """The step itself. Once there is memory nothing can fail; the counters advance with it, and
        `fresh` goes into `history`, whose keys it has. `keeping` is a list of (dict, keys, domain):
        the numbers that a domain keeps go into the dict, which has these keys.

        With `following`, the gradients' Euclidean norms are measured on the way and returned as
        `norms` does: a list of (key, entries or None for all), whose norms, if finite, become the
        histories of these keys. Nothing is returned if there is no memory left for that; the step
        has been done then.
        """
        cdef Py_ssize_t i, copies = len(self.copied)
        cdef bint measuring = bool(following)
        cdef double norm
        cdef int k
        self.reserve(threads)
        if self.surveys:
            self.reserve_found()
        if measuring:
            self.order = 2.0
            self.reserve_partials()
            self.take_measure("sum_squares")
            self.start_measuring()
        with nogil:
            self.surveyed_and_updated(MEASURE_AND_UPDATE if measuring else UPDATE, threads)
            for k in range(self.projecting):  # a sweep each: the next may cut other units
                self.unit = k
                self.sweep(PROJECT, threads)
            if self.projecting:
                self.sweep(LATE, threads)
            for i in range(copies):
                memcpy(self.copies[i].to, self.copies[i].source, self.copies[i].bytes)
            for i in range(self.actives):
                self.entries[self.active[i]].count[0] += 1
            self.updates[0] += 1
        if copies:
            self.copied = []  # and frees what was copied
        # From here on no Python function runs, so that no Ctrl-C comes between step and history.
        if fresh:
            history.update(fresh)
        if keeping:
            self.keep(keeping)
        if not measuring:
            return None
        self.fold_partials(False, MEASURE)
        try:
            self.measure_again(threads)
            for key, members in following:
                norm = self.joint(members)
                if isfinite(norm):
                    history[key] = [norm]
            return self.folded()
        except MemoryError:
            return None

    cdef int keep(self, list keeping) except -1:
        """Puts the numbers that domains keep where Python finds them."""
        cdef Domain *domain
        cdef int k
        for kept, keys, number in keeping:
            domain = &self.domains[<Py_ssize_t>number]
            if domain.taken:
                for k, key in enumerate(keys):
                    kept[key] = domain.now[k]
        return 0

    cdef int reserve_found(self) except -1:
        cdef double *found
        if self.partials > self.found_capacity:
            found = <double *>malloc(self.partials * SUMS * sizeof(double))
            if found == NULL:
                raise MemoryError
            free(self.found)
            self.found, self.found_capacity = found, self.partials
        return 0

    cdef void surveyed_and_updated(self, int update, int threads) noexcept nogil:
        """Sweeps the surveys of all rules that have some, and the update after them: of as many
        parameters at a time as caches hold, unless a rule takes the sums of all."""
        cdef Py_ssize_t i
        cdef bint apart = self.surveys > 0
        for i in range(self.capacity):  # also those that no parameter of this step belongs to
            self.domains[i].taken = False
        for i in range(self.actives):
            apart = apart and not self.programs[self.entries[self.active[i]].program].together
        self.high = 0
        while self.high < self.actives:
            self.low, self.high = self.high, self.near(threads) if apart else self.actives
            self.surveyed(threads)
            self.sweep(update, threads)
        self.low = 0

    cdef Py_ssize_t near(self, int threads) noexcept nogil:
        """How far those parameters go whose arrays caches hold, from the end of the last ones."""
        cdef Py_ssize_t i, bytes = 0
        cdef Entry *e
        for i in range(self.high, self.actives):
            e = &self.entries[self.active[i]]
            bytes += e.size * e.operands * (sizeof(double) if e.is_double else sizeof(float))
            if bytes >= NEAR * threads:
                return i + 1
        return self.actives

    cdef void surveyed(self, int threads) noexcept nogil:
        """Sweeps surveys, and settles what follows from them."""
        cdef Py_ssize_t i
        cdef Entry *e
        cdef const Program *program
        if self.surveys == 0:
            return
        for i in range(self.low, self.high):
            e = &self.entries[self.active[i]]
            program = &self.programs[e.program]
            memcpy(e.h, program.h, sizeof(e.h))
            self.domains[program.domain].taken |= program.surveys > 0
            memcpy(self.domains[program.domain].now, program.kept, sizeof(program.kept))
        for self.survey in range(self.surveys):
            if self.sweeps_for(self.survey):
                self.sweep(SURVEY, threads)
            if self.tables(self.survey):
                self.sweep(TABLE, threads)
            self.settle(self.survey)

    cdef bint sweeps_for(self, int number) noexcept nogil:
        """Whether a rule of this step has a loop to run in that survey."""
        cdef Py_ssize_t i
        cdef const Program *program
        for i in range(self.low, self.high):
            program = &self.programs[self.entries[self.active[i]].program]
            if number < program.surveys and program.survey_float[number] != NULL:
                return True
        return False

    cdef bint tables(self, int number) noexcept nogil:
        """Whether a rule of this step settles rows and columns after that survey."""
        cdef Py_ssize_t i
        cdef const Program *program
        for i in range(self.low, self.high):
            program = &self.programs[self.entries[self.active[i]].program]
            if number < program.surveys and program.table_float[number] != NULL:
                return True
        return False

    cdef void settle(self, int number) noexcept nogil:
        """Folds what a survey has found, and settles the coefficients of what follows."""
        cdef Py_ssize_t i, chunk
        cdef int k
        cdef Entry *e
        cdef Domain *domain
        cdef const Program *program
        for i in range(self.low, self.high):
            domain = &self.domains[self.programs[self.entries[self.active[i]].program].domain]
            for k in range(SUMS):
                domain.sums[k] = 0
            memcpy(domain.before, domain.now, sizeof(domain.now))
        for i in range(self.low, self.high):
            e = &self.entries[self.active[i]]
            program = &self.programs[e.program]
            if number >= program.surveys or program.settle[number] == NULL:
                continue
            for k in range(SUMS):
                e.sums[k] = 0
            if program.survey_float[number] != NULL:
                for chunk in range(self.first[i], self.first[i] + chunks_of(e)):
                    for k in range(SUMS):
                        e.sums[k] += self.found[chunk * SUMS + k]
            for k in range(SUMS):
                self.domains[program.domain].sums[k] += e.sums[k]
        for i in range(self.low, self.high):
            e = &self.entries[self.active[i]]
            program = &self.programs[e.program]
            if number < program.surveys and program.settle[number] != NULL:
                self.settled(e, program, <settle_function>program.settle[number])

    cdef void settled(self, Entry *e, const Program *program,
                      settle_function settle) noexcept nogil:
        """The coefficients of one parameter. Numbers that are kept of a domain follow for each of
        its parameters from the same ones before, and so are the same."""
        cdef Domain *domain = &self.domains[program.domain]
        cdef const double *sums = &domain.sums[0] if program.together else &e.sums[0]
        cdef double own[SCALARS]
        if e.own != NULL:
            settle(sums, e.own, e.h)
            return
        memcpy(own, domain.before, sizeof(own))
        settle(sums, own, e.h)
        memcpy(domain.now, own, sizeof(own))

    cdef void sweep(self, int what, int threads) noexcept nogil:
        cdef Sweep sweep
        if threads == 1 or self.cost[self.high] - self.cost[self.low] < SERIAL:
            self.share(what, 0, 1)
            return
        sweep.plan, sweep.what = <void *>self, what
        run(&shared, &sweep, threads)

    cdef void boundary(self, int worker, int team, Py_ssize_t *entry,
                       Py_ssize_t *element) noexcept nogil:
        """Where a worker's share begins: (place in `active`, element, a multiple of CHUNK)."""
        cdef Py_ssize_t lo = self.low, hi = self.high, middle
        cdef Py_ssize_t all = self.cost[hi] - self.cost[lo]
        cdef Py_ssize_t target = self.cost[lo] + all // team * worker + all % team * worker // team
        while lo < hi:
            middle = (lo + hi) // 2
            if self.cost[middle + 1] <= target:
                lo = middle + 1
            else:
                hi = middle
        entry[0], element[0] = lo, 0
        if lo < self.high:
            element[0] = (target - self.cost[lo] + CHUNK - 1) // CHUNK * CHUNK

    cdef void share(self, int what, int worker, int team) noexcept nogil:
        """Does a worker's contiguous share of all elements."""
        cdef unsigned long long mode = floatmode_enter()
        cdef char *scratch = self.scratch + <size_t>worker * SCRATCH
        cdef Py_ssize_t i, start, last, last_stop, stop
        cdef Entry *e
        self.boundary(worker, team, &i, &start)
        self.boundary(worker + 1, team, &last, &last_stop)
        while i < self.high and i <= last:
            e = &self.entries[self.active[i]]
            stop = min(e.size, last_stop) if i == last else e.size
            if e.is_double:
                self.work(what, i, e, start, stop, <double *>scratch)
            else:
                self.work(what, i, e, start, stop, <float *>scratch)
            i += 1
            start = 0
        floatmode_leave(mode)

    cdef void work(self, int what, Py_ssize_t i, Entry *e, Py_ssize_t start, Py_ssize_t stop,
                   real *scratch) noexcept nogil:
        """One kind of work on the elements start to stop of an entry, the i-th in the sweep."""
        cdef const Program *program = &self.programs[e.program]
        cdef double *partial = NULL if self.partial == NULL else self.partial + self.first[i]
        cdef Py_ssize_t n
        cdef int k
        if what == UPDATE:
            update_range(e, program, &self.scale, False, start, stop, scratch)
        elif what == LATE:
            if program.late:
                update_range(e, program, &self.scale, True, start, stop, scratch)
        elif what == HOLD or what == AGREE:
            while start < stop and (program.holds if what == HOLD else program.agrees) >= 0:
                n = min(stop - start, <Py_ssize_t>CHUNK)
                partial[start // CHUNK] = (
                    held_norm(e, program, &self.unit_measures, &self.scale, start, n, scratch)
                    if what == HOLD else agreeing(e, program, &self.scale, start, n, scratch))
                start += n
        elif what == STAGE:
            if program.prepared:
                stage_range(e, program, &self.scale, start, stop, scratch)
        elif what == SURVEY:
            if self.survey >= program.surveys or program.survey_float[self.survey] == NULL:
                return
            if program.table_float[self.survey] != NULL:
                tally_range(e, program, self.survey, &self.scale, start, stop, scratch)
            else:
                survey_range(e, program, self.survey, &self.scale,
                             self.found + self.first[i] * SUMS, start, stop, scratch)
        elif what == TABLE:
            if self.survey < program.surveys and program.table_float[self.survey] != NULL:
                table_range(e, program, self.survey, start, stop, scratch)
        elif what == MEASURE or what == AGAIN:
            if what == MEASURE or e.again:
                self.measure_range(e, partial, start, stop, scratch)
        elif what == MEASURE_AND_UPDATE:
            while start < stop:  # the second finds the chunk where the first has brought it
                n = min(stop - start, <Py_ssize_t>CHUNK)
                self.measure_range(e, partial, start, start + n, scratch)
                update_range(e, program, &self.scale, False, start, start + n, scratch)
                start += n
        elif e.size:
            for k in range(program.units):
                if (program.unit[k].kind < MAKERS) if what == FACTORS else (
                        k == self.unit and program.unit[k].kind > MAKERS):
                    n = e.units[k].length
                    unit_range(e, program, &self.unit_measures, k, (start + n - 1) // n,
                               (stop + n - 1) // n, scratch)

    cdef void measure_range(self, Entry *e, double *partial, Py_ssize_t start, Py_ssize_t stop,
                            real *scratch) noexcept nogil:
        cdef Py_ssize_t n
        cdef const real *row
        while start < stop:
            n = min(stop - start, <Py_ssize_t>CHUNK)
            row = decoded(&e.reading, start, n, scratch)
            if real is float:
                partial[start // CHUNK] = (<measure_float>self.measure_float)(
                    row, n, e.inverse, self.order)
            else:
                partial[start // CHUNK] = (<measure_double>self.measure_double)(
                    row, n, e.inverse, self.order)
            start += n
