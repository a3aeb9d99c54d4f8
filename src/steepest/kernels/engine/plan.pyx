"""The plan of a step.

A Plan holds one Entry per parameter: where its arrays lie and how they are walked (see `entries`).
Before a step, `resolve` takes the parameters and gradients and compares them with what the plan
knows (pointer, type, shape, strides); `rows` tells which (group, t) pairs occur; `program` says
what to do for each pair (see `programs`). None of that writes to a parameter. `norms`, `factors`
and `commit` run the sweeps (see `sweeps`, `norms`, `reductions`). A rule in Python computes its
step before the commit, from what `prepare` makes, and `replace` says what else the commit copies.
Once `commit` has its scratch memory it cannot fail: it allocates nothing and calls no Python until
the counters have advanced with the parameters.

The thread that steps is in the default floating-point mode for the whole of the step (see
`machine.alone`).
"""
from libc.math cimport isfinite
from libc.stdint cimport int64_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy

from steepest.kernels.contract cimport BLOCK, CHUNK, COEFFICIENTS, SCALARS, OPERATIONS, STATES
from steepest.kernels.engine cimport entries
from steepest.kernels.engine.bounds cimport Bounds, free_bounds, set_bounds, touches
from steepest.kernels.engine.norms cimport (
    joint, joint_of, measure, measure_first, measured_first, norms,
)
from steepest.kernels.engine.programs cimport (
    note, set_measures, set_numbers, set_operation, set_structure,
)
from steepest.kernels.engine.reductions cimport (
    hold_norms, reduce_and_update, reserve_sums, scale_agreeing,
)
from steepest.kernels.engine.structs cimport (
    G, LARGE, MAKERS, P, SPARE, UNIT_OPERATIONS, Domain, Entry, Program, Step, Units, chunks_of,
)
from steepest.kernels.engine.sweeps cimport (
    FACTORS, LATE, MEASURE_AND_UPDATE, PREPARE, PROJECT, UPDATE, boundary, reserve,
    reserve_partials, sweep,
)
from steepest.kernels.sources cimport address, counter, held, same, still_as, still_at

cdef enum:
    VISIT = 64                         # what a parameter costs besides its elements, in elements

BLOCK_SIZE, CHUNK_SIZE, UNIT_OPERATION_LIMIT, LARGE_STEP = BLOCK, CHUNK, UNIT_OPERATIONS, LARGE
SPARE_OPERAND = SPARE


cdef void renew_noises(Step *s, bint late) noexcept nogil:
    """Other random numbers for the parameters that are stored once more: by the late operations, or
    by the present one on units."""
    cdef const Program *program
    cdef Py_ssize_t i
    cdef Entry *e
    for i in range(s.actives):
        e = &s.entries[s.active[i]]
        program = &s.programs[e.program]
        if not e.random:
            continue
        if late:
            entries.renew_noise(e, s.number + s.active[i], &e.operand[P])
        elif s.unit < program.units and program.unit[s.unit].kind > MAKERS:
            entries.renew_noise(e, s.number + s.active[i], &e.units[s.unit].p)


def joint_norm(list measures, double order):
    """The norm together of gradients that were measured in different steps, from what
    `Plan.measures` gives of each; with the bits of those of one step, in the same order."""
    return joint_of(measures, order)


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
    cdef Step step
    cdef Py_ssize_t program_capacity
    cdef list params                   # per entry
    cdef list owners                   # per entry: the parameter, or a tensor it is a view of
    cdef list states                   # per entry: its counter and state arrays, kept alive
    cdef list shown                    # per entry: what others can reach of them, and as it was
    cdef list outlets                  # per entry: where the parameter goes too, and as that was
    cdef list made                     # per program: what its structure was made of
    cdef list kept_alive               # per entry: its scalar states, its factors and states
    cdef Copy *copies
    cdef list copied                   # the arrays of these copies
    cdef Bounds written                # which gradients must stay outside
    cdef readonly Py_ssize_t cost      # of a sweep over what has a gradient, in elements, or more
    cdef readonly bint has_factors     # whether `factors` has something to do
    cdef readonly Py_ssize_t selection  # rises when other entries take part in a step
    cdef public object told            # who is told what has been stepped, or None
    cdef object updates_array
    cdef int64_t *updates              # completed steps

    def __cinit__(self, kernels, Py_ssize_t capacity, updates, Py_ssize_t number=0):
        cdef Step *s = &self.step
        self.kernels = kernels
        s.number = number
        self.updates_array = updates
        self.updates = counter(updates)
        self.params, self.states, self.kept_alive = [], [], []
        self.owners, self.shown, self.outlets, self.made = [], [], [], []
        s.capacity = capacity
        s.entries = <Entry *>calloc(max(capacity, 1), sizeof(Entry))
        s.active = <Py_ssize_t *>malloc(max(capacity, 1) * sizeof(Py_ssize_t))
        s.cost = <Py_ssize_t *>malloc((capacity + 1) * sizeof(Py_ssize_t))
        s.first = <Py_ssize_t *>malloc(max(capacity, 1) * sizeof(Py_ssize_t))
        s.domains = <Domain *>calloc(max(capacity, 1), sizeof(Domain))
        if (s.entries == NULL or s.active == NULL or s.cost == NULL or s.first == NULL
                or s.domains == NULL):
            raise MemoryError
        set_operation(&s.scale, kernels.operations["scale"], 0, ())
        set_measures(&s.measures, kernels)

    def __dealloc__(self):
        cdef Step *s = &self.step
        cdef Py_ssize_t i
        for i in range(s.count):
            entries.release(&s.entries[i])
        free(s.entries)
        free(s.programs)
        free(s.domains)
        free(s.active)
        free(s.cost)
        free(s.first)
        free(s.partial)
        free(s.sums)
        free(s.scratch_memory)
        free_bounds(&self.written)
        free(self.copies)

    # Building

    def add(self, int group, tuple arrays, step, int states, layout, own=None, matrices=None,
            owner=None, tuple shown=(), seed=None, copy=None):
        """Adds a parameter: arrays are (parameter, states..., arrays of operations...), with
        `states` of the rule's; `own` are SCALARS doubles at most that the rule keeps beside them.
        `step` is its counter. `layout` (arrays.Layout) walks them and a gradient that lies like the
        parameter, which is expected until `bind_gradient` says otherwise; its cuts are the units of
        the programs' unit operations, in their order. `matrices`, for a rule with row and column
        reductions: (number of matrices, of rows, of columns, factors, states), the last two tuples
        of arrays in C order: factors of rows, and of columns unless there are none, which are
        spread over the first arrays of the rule. `owner` is what `resolve` is given for the
        parameter, if that is not the array itself. `shown` are the arrays of its state that others
        can reach, for `resolve` to look at. `seed` is that of arrays which are rounded
        stochastically, None where none is. `copy`, for a parameter that is also written elsewhere:
        (what is there, as an array, its Walk).
        """
        cdef Step *s = &self.step
        cdef Entry *e
        if s.count == s.capacity or len(arrays) + 1 > SPARE or states > STATES:
            raise ValueError("more arrays than the plan has room for")
        e = &s.entries[s.count]
        s.count += 1  # from here on, __dealloc__ frees what the entry owns
        e.group = group
        e.operands = <int>len(arrays) + 1
        e.states = states
        e.scale = 1.0
        e.random, e.seed = seed is not None, <uint64_t>(seed or 0)
        e.in_double = layout.computed.char == "d"
        e.size = arrays[0].size
        e.units = <Units *>calloc(max(len(layout.cuts), 1), sizeof(Units))
        if e.units == NULL:
            raise MemoryError
        e.cuts = <int>len(layout.cuts)
        entries.bind(e, self.kernels, arrays, arrays[0], layout)
        e.gradient.data = NULL  # no gradient is known to lie outside what is written
        e.count = counter(step)
        e.scalars = NULL if own is None else <double *>address(own, True)
        if matrices is not None:
            entries.bind_matrices(e, self.kernels, matrices)
        if copy is not None:
            entries.bind_copy(e, self.kernels, copy[1], copy[2])
        self.outlets.append(None if copy is None else (copy[0], copy[1].view()))
        self.params.append(arrays[0].view())  # a head of its own, which nobody changes
        self.owners.append(arrays[0] if owner is None else owner)
        self.shown.append([(x, x.view()) for x in shown])
        self.states.append((step,) + arrays[1:])
        self.kept_alive.append((own, matrices))

    def bind_gradient(self, Py_ssize_t i, x, layout):
        """Takes x as the gradient of entry i from here on; `layout` walks its arrays and x."""
        entries.bind(&self.step.entries[i], self.kernels, self.arrays(i), x, layout)

    def arrays(self, Py_ssize_t i):
        """The parameter and state arrays of entry i."""
        return (self.params[i],) + self.states[i][1:]

    def guard(self, list bounds):
        """Bounds (low, high) of all written arrays, sorted, disjoint: no gradient may touch one."""
        set_bounds(&self.written, bounds)

    # Before a step

    def overlaps(self, size_t low, size_t high):
        """Whether the bytes from address low to high overlap the bounds of a written array."""
        return touches(&self.written, <const char *>low, <const char *>high)

    def resolve(self, list params, list grads, bint looking=False):
        """Takes the parameters and gradients of a step (None: leave that parameter alone). What
        need not stay where it is gives way in `grads` to an array that holds it there.

        Returns the numbers of the entries whose gradient is not laid out as before or touches a
        written array; None if a parameter is no longer the array that was bound, or if it or its
        copy lies elsewhere or otherwise, or was made read-only. States are looked at only when
        asked for by `looking`: the plan holds them, and their dicts tell of others (core.state).
        """
        cdef Py_ssize_t i
        cdef int k
        cdef Entry *e
        cdef char *data
        cdef list stale = []
        if len(params) != self.step.count:
            return None
        if len(grads) != self.step.count:
            raise ValueError(f"{len(grads)} gradients for {self.step.count} parameters")
        for i in range(self.step.count):
            e = &self.step.entries[i]
            grad = grads[i]
            e.active = grad is not None
            if not e.active:
                continue
            if not self.in_place(i, params[i]):
                return None
            if looking and not self.as_shown(i):
                return None
            if e.copy.encode != NULL and not self.as_bound(i):
                return None
            grad = held(grad)
            if grad is None:
                stale.append(i)
                continue
            if grad is not grads[i]:
                grads[i] = grad
            if not same(&e.gradient, grad, &data) or (
                    e.borrowed and <size_t>data % <size_t>e.gradient.type.itemsize):
                stale.append(i)
            elif data != e.gradient.data:
                if e.size and touches(&self.written, data + e.gradient.low,
                                      data + e.gradient.high):
                    stale.append(i)
                    continue
                e.gradient.data = data
                e.operand[G].data = data + e.offset
                e.reading.data = data
                for k in range(e.cuts):
                    e.units[k].g.data = data
        return stale

    cdef bint in_place(self, Py_ssize_t i, p):
        """Whether p is the parameter of entry i that was bound, and lies as it did."""
        cdef Entry *e = &self.step.entries[i]
        return p is self.owners[i] and (
            still_at(p, e.home, e.type, &e.gradient, e.steps) or still_as(p, self.params[i]))

    cdef bint as_shown(self, Py_ssize_t i):
        """Whether the states of entry i that others can reach lie as they did."""
        for x, before in <list>self.shown[i]:
            if not still_as(x, before):
                return False
        return True

    cdef bint as_bound(self, Py_ssize_t i):
        """Whether the copy of the parameter of entry i may still be written and lies as it did."""
        x, before = self.outlets[i]
        return still_as(x, before)

    def still(self, list params):
        """Whether the parameters of the step are the arrays that were bound and lie where they did.
        If so, and nothing else was bound, a `commit` does again what the last one did, from the
        gradients where they were: they must be there."""
        cdef Step *s = &self.step
        cdef Py_ssize_t i, k
        if len(params) != s.count:
            return False
        for k in range(s.actives):
            i = s.active[k]
            if not self.in_place(i, params[i]):
                return False
        return True

    def rows(self):
        """The (group, t, whether rows and columns are reduced) of this step, t from 1; the order in
        which `program` counts."""
        cdef Step *s = &self.step
        cdef Py_ssize_t i
        cdef Entry *e
        cdef int64_t t, last_t = -1
        cdef int last_group = -1, last = -1
        cdef bint last_tiled = False, alike = True
        cdef list found = []
        cdef dict known = None
        cdef Py_ssize_t before = s.actives
        s.actives = 0
        s.cost[0] = 0
        s.partials = 0
        for i in range(s.count):
            e = &s.entries[i]
            if not e.active:
                continue
            e.scale = 1.0
            if e.random:
                entries.set_noise(e, s.number + i)
            t = e.count[0] + 1
            if t != last_t or e.group != last_group or (e.tiles != NULL) != last_tiled:
                last_t, last_group, last_tiled = t, e.group, e.tiles != NULL
                key = (e.group, t, last_tiled)
                if known is None:
                    known = {}  # made only when a second pair turns up
                elif not known:
                    known[found[0]] = 0
                last = known.setdefault(key, len(found)) if found else 0
                if last == len(found):
                    found.append(key)
            e.program = last
            alike = alike and s.actives < before and s.active[s.actives] == i
            s.active[s.actives] = i
            s.first[s.actives] = s.partials
            s.partials += chunks_of(e)
            s.cost[s.actives + 1] = s.cost[s.actives] + e.size + VISIT
            s.actives += 1
        if not alike or s.actives != before:
            self.selection += 1
        s.low, s.high = 0, s.actives
        self.cost, self.has_factors = s.cost[s.actives], False
        s.reductions = s.projections = 0
        s.making_factors = s.holding = s.agreeing = s.preparing = False
        self.copied = []
        self.reserve_programs(len(found))
        return found

    cdef int reserve_programs(self, Py_ssize_t n) except -1:
        cdef Program *programs
        if n > self.program_capacity:
            programs = <Program *>malloc(n * sizeof(Program))
            if programs == NULL:
                raise MemoryError
            free(self.step.programs)
            self.step.programs, self.program_capacity, self.made = programs, n, [None] * n
        return 0

    def program(self, Py_ssize_t row, str rule, tuple h, double decay_factor, list before,
                list after, list units, list late, int domain=0, bint together=False, tuple kept=(),
                bint prepared=False):
        """What to do for a row of `rows`: the rule, its coefficients, the decay factor of the
        parameter; the operations before the rule, after it, and after those on units, each as
        (name, coefficients, operand number of its own array or 0); and the unit operations, each as
        (kind, coefficients), with those that make factors of the gradient first. `kept` are the
        numbers that the rule keeps of all parameters of the `domain`, and `together` says that its
        sums are those of the whole domain. `prepared`: the rule takes what Python makes of what
        `stage` puts into its first two operands, gradient and parameter. Lists that are the same
        objects as at the step before must not have changed."""
        cdef Program *program = &self.step.programs[row]
        if (row >= self.program_capacity or len(h) > COEFFICIENTS or len(units) > UNIT_OPERATIONS
                or len(before) + len(after) + len(late) > OPERATIONS or len(kept) > SCALARS
                or not 0 <= domain < max(self.step.capacity, 1)):
            raise ValueError(f"{rule}: more coefficients or operations than a program has room for")
        program.decay, program.domain, program.together = decay_factor, domain, together
        program.prepared = prepared
        program.streams = self.cost >= LARGE
        self.step.preparing = self.step.preparing or prepared
        set_numbers(program, h, kept)
        made = self.made[row]
        if made is None or not (
                (<tuple>made)[0] is rule and (<tuple>made)[1] is before
                and (<tuple>made)[2] is after and (<tuple>made)[3] is units
                and (<tuple>made)[4] is late):
            self.made[row] = None
            set_structure(program, self.kernels, rule, before, after, units, late)
            self.made[row] = (rule, before, after, units, late)
        note(&self.step, program)
        self.has_factors = (self.step.making_factors or self.step.holding or self.step.agreeing)

    def prepare(self):
        """Makes the gradients, and the parameters, that prepared rules start from; on one thread,
        see `elements`."""
        if self.step.preparing:
            reserve(&self.step, 1)
            with nogil:
                sweep(&self.step, PREPARE, 1)

    def steps(self):
        """The entries of this step and their t."""
        cdef Step *s = &self.step
        cdef Py_ssize_t i
        return [(s.active[i], s.entries[s.active[i]].count[0] + 1) for i in range(s.actives)]

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

    def rescale(self, scales):
        """The factor of the gradients in the coming step: one for all, or a list of each."""
        cdef Py_ssize_t i
        cdef double one = 1.0
        cdef list each = None
        if isinstance(scales, list):
            each = scales
            if len(each) != self.step.count:
                raise ValueError(f"{len(each)} factors for {self.step.count} parameters")
        else:
            one = scales
        for i in range(self.step.count):
            self.step.entries[i].scale = one if each is None else each[i]

    def scale(self, Py_ssize_t i):
        """The factor of the gradient in the last step."""
        if not 0 <= i < self.step.count:
            raise IndexError(f"entry {i} of {self.step.count}")
        return self.step.entries[i].scale

    def elements(self):
        """What a sweep costs, in elements. Those of prepared rules do not count: threads that wait
        for work, awake, would take the processors from those of BLAS, on which these rules spend
        their time."""
        cdef Step *s = &self.step
        cdef Py_ssize_t i, count = s.cost[s.actives]
        if s.preparing:
            for i in range(s.actives):
                if s.programs[s.entries[s.active[i]].program].prepared:
                    count -= s.cost[i + 1] - s.cost[i]
        return count

    def parts(self, int count, Py_ssize_t alone=-1):
        """Where each of so many parts of a sweep begins, and where the last one ends: (the place
        among the entries of this step, element); and these entries. With `alone`, of a sweep over
        this entry and no other."""
        cdef Step s = self.step
        cdef Py_ssize_t i = 0, element = 0
        cdef Py_ssize_t[2] cost
        cdef int part
        cdef list found = []
        if count < 1 or alone >= s.count:
            raise ValueError(f"{count} parts of entry {alone}")
        if alone >= 0:
            cost[0], cost[1] = 0, s.entries[alone].size + VISIT
            s.cost, s.low, s.high = &cost[0], 0, 1
        for part in range(count + 1):
            boundary(&s, part, count, &i, &element)
            found.append((i, element))
        return found, [alone] if alone >= 0 else [s.active[i] for i in range(s.actives)]

    # Sweeps

    def norms(self, int threads, double order=2.0, bint measured=False):
        """Norms of the gradients: (of all together, [of each; 0 for those without]). `measured`:
        each has been, as it is, by one of the last calls, in whose step it had a gradient."""
        if not measured or self.step.order != order:
            measure(&self.step, self.kernels, order, threads)
        return norms(&self.step)

    def norm(self, int threads):
        """The Euclidean norm of all gradients."""
        measure(&self.step, self.kernels, 2.0, threads)
        return joint(&self.step, None)

    def measures(self):
        """What was measured last of the entries of this step: by the number of each (measure,
        exponent, largest), for `joint_norm`."""
        cdef Step *s = &self.step
        cdef Py_ssize_t i
        cdef dict found = {}
        for i in range(s.actives):
            e = &s.entries[s.active[i]]
            found[s.active[i]] = (e.measured, e.exponent, e.largest)
        return found

    def together(self, list members):
        """The norm of some entries' gradients together; of the order that was measured last."""
        for i in members:
            if not 0 <= i < self.step.count:
                raise IndexError("no such entry")
        return joint(&self.step, members)

    def factors(self, int threads):
        """Makes the factors of the units of the gradients, and those that depend on whole
        gradients, where programs ask for them."""
        cdef Step *s = &self.step
        if s.making_factors:
            reserve(s, threads)
            with nogil:
                sweep(s, FACTORS, threads)
        if s.holding or s.agreeing:
            reserve(s, threads)
            reserve_partials(s)
            with nogil:
                if s.holding:
                    hold_norms(s, threads)
                if s.agreeing:
                    scale_agreeing(s, threads)

    def commit(self, int threads, dict history=None, dict fresh=None, list following=None,
               list keeping=None):
        """The step itself. Once there is memory nothing can fail; the counters advance with it, and
        `fresh` goes into `history`, whose keys it has. `keeping` is a list of (dict, keys, domain):
        the numbers that a domain keeps go into the dict, which has these keys.

        With `following`, the gradients' Euclidean norms are measured on the way and returned as
        `norms` does: a list of (key, entries or None for all), whose norms, if finite, become the
        histories of these keys. Nothing is returned if there is no memory left for that; the step
        has been done then.

        `told`, if there is one, is called with lists of entries as they are done: several times
        where no rule needs sums and nothing comes after the rules, else at the end. What it raises
        is raised when all is done.
        """
        cdef Step *s = &self.step
        cdef Py_ssize_t i, copies = len(self.copied)
        cdef bint measuring = bool(following)
        cdef bint telling = self.told is not None
        cdef bint in_groups = telling and not (s.reductions or s.projections or copies)
        reserve(s, threads)
        if s.reductions:
            reserve_sums(s)
        if measuring:
            measure_first(s, self.kernels)
        failure = None
        if in_groups:
            failure = self.update_in_groups(MEASURE_AND_UPDATE if measuring else UPDATE, threads)
        else:
            with nogil:
                reduce_and_update(s, MEASURE_AND_UPDATE if measuring else UPDATE, threads)
        with nogil:
            for s.unit in range(s.projections):  # a sweep each: the next may cut other units
                renew_noises(s, False)
                sweep(s, PROJECT, threads)
            if s.projections:
                renew_noises(s, True)
                sweep(s, LATE, threads)
            for i in range(copies):
                memcpy(self.copies[i].to, self.copies[i].source, self.copies[i].bytes)
            for i in range(s.actives):
                s.entries[s.active[i]].count[0] += 1
            self.updates[0] += 1
        if copies:
            self.copied = []  # and frees what was copied
        if telling and not in_groups:
            failure = self.tell(0, s.actives)
        # From here on no Python function runs, so that no Ctrl-C comes between step and history.
        if fresh:
            history.update(fresh)
        if keeping:
            self.keep(keeping)
        measured = self.remember(following, history, threads) if measuring else None
        if failure is not None:
            raise failure
        return measured

    cdef object remember(self, list following, dict history, int threads):
        """Ends what a sweep has measured on its way; see `commit`."""
        cdef Step *s = &self.step
        cdef double norm
        try:
            measured_first(s, self.kernels, threads)
            for key, members in following:
                norm = joint(s, members)
                if isfinite(norm):
                    history[key] = [norm]
            return norms(s)
        except MemoryError:
            return None

    cdef object update_in_groups(self, int what, int threads):
        """Updates the entries in groups that are worth a sweep each; returns what `told` raises."""
        cdef Step *s = &self.step
        cdef Py_ssize_t high = 0
        failure = None
        while high < s.actives:
            s.low = high
            while high < s.actives and (high == s.low or s.cost[high + 1] - s.cost[s.low] <= LARGE):
                high += 1
            s.high = high
            with nogil:
                sweep(s, what, threads)
            error = self.tell(s.low, high)
            if failure is None:
                failure = error
        s.low, s.high = 0, s.actives
        return failure

    cdef object tell(self, Py_ssize_t low, Py_ssize_t high):
        """Says what has been stepped; returns what that raises."""
        cdef Py_ssize_t i
        try:
            self.told([self.step.active[i] for i in range(low, high)])
        except BaseException as error:  # the rest of the step has to come
            return error
        return None

    cdef int keep(self, list keeping) except -1:
        """Puts the numbers that domains keep where Python finds them."""
        cdef Domain *domain
        cdef int k
        for kept, keys, number in keeping:
            domain = &self.step.domains[<Py_ssize_t>number]
            if domain.taken:
                for k, key in enumerate(keys):
                    kept[key] = domain.now[k]
        return 0
