"""Binding a parameter's arrays to its entry: where each lies, how it is walked, which codec its
blocks take. Done once for each layout, not once a step.
"""
from cpython.buffer cimport PyBUF_STRIDES, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.pycapsule cimport PyCapsule_GetPointer
from libc.stdint cimport int64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy

from steepest.kernels import stored_loops
from steepest.kernels.contract cimport Operand
from steepest.kernels.engine cimport tiles
from steepest.kernels.engine.structs cimport (
    FIRST, FORMAT_SETS, G, HOME, P, READING, SOURCE, Entry, Tiles, Units,
)
from steepest.kernels.sources cimport Source, address, reach, same_axes, type_of
from steepest.kernels.stored cimport bfloat16, noise_base

assert len(stored_loops.SETS) == FORMAT_SETS


cdef int bind(Entry *e, object kernels, tuple arrays, object gradient, object layout) except -1:
    """Binds (parameter, states..., arrays of operations...) and a gradient as `layout` walks them;
    of its cuts e has the units already."""
    cdef int k
    cdef Units *units
    e.width = gradient.itemsize
    for k in range(<int>len(arrays)):
        e.width += arrays[k].itemsize
        bind_operand(e, kernels, P if k == 0 else k + 1, arrays[k], layout.walks[k])
    bind_source(e, gradient)
    bind_home(e, arrays[0])
    bind_operand(e, kernels, G, gradient, layout.walks[len(arrays)])
    e.offset = layout.walks[len(arrays)].offset
    bind_operand(e, kernels, READING, gradient, layout.c_order)
    e.formats = set_of_formats(e, layout)
    e.grouped, e.squares = False, 0
    for k in range(FIRST, e.operands):
        e.grouped = e.grouped or e.operand[k].beside != NULL
        if k < FIRST + e.states and layout.walks[k - 1].codec == "q8_square":
            e.squares |= 1 << (k - FIRST)
    e.borrowed = (e.operand[G].decode == NULL or e.reading.decode == NULL or e.formats >= 0)
    for k, cut in enumerate(layout.cuts):
        units = &e.units[k]
        units.count, units.length = cut.count, cut.length
        bind_walk(e, kernels, &units.p, &units.axes_p, arrays[0], cut.p)
        bind_walk(e, kernels, &units.g, &units.axes_g, gradient, cut.g)
        e.borrowed = e.borrowed or units.g.decode == NULL
        units.factors = NULL if cut.factors is None else address(cut.factors, True)
    return 0


cdef int set_of_formats(const Entry *e, object layout) except -2:
    """The set of formats that parameter, gradient and the rule's states have; -1 for one that there
    are no loops for, or where an array is not contiguous and aligned."""
    cdef int number, k
    cdef tuple every = layout.walks
    cdef tuple walks = (every[0], every[len(every) - 1], *every[1:1 + e.states])
    if e.in_double or all([walk.codec is None for walk in walks]):
        return -1
    for number, (of_p, of_g, *of_states) in enumerate(stored_loops.SETS.values()):
        for k, walk in enumerate(walks):
            allowed = (of_p,) if k == P else (of_g,) if k == G else of_states
            if not lies_as(&e.operand[k], walk, allowed):
                break
        else:
            return number
    return -1


cdef bint lies_as(const Operand *x, object walk, object formats):
    """Whether a loop over an array of one of the formats may take x as it is."""
    cdef Py_ssize_t size
    if walk.codec is None:
        return "float32" in formats
    if walk.codec not in [stored_loops.CODECS.get(name) for name in formats]:
        return False
    size = 1 if walk.codec in ("q8", "q8_square") else sizeof(bfloat16)
    return (x.ndim == 1 and (x.strides[0] == size or x.shape[0] == 1)
            and <size_t>x.data % size == 0)


cdef void set_noise(Entry *e, Py_ssize_t number) noexcept:
    """Where the random numbers of each of its arrays begin at this step; `number` is its own."""
    cdef int64_t t = e.count[0] + 1
    cdef Operand *x
    cdef int k
    for k in range(e.operands):
        x = &e.operand[k]
        x.noise = noise_base(e.seed, number, t, k >= FIRST)
    e.passes = 0


cdef void renew_noise(Entry *e, Py_ssize_t number, Operand *p) noexcept nogil:
    """The same for the parameter, as p, which is stored once more at this step."""
    e.passes += 1
    p.noise = noise_base(e.seed, number, e.count[0] + 1, 1 + e.passes)


cdef int bind_operand(Entry *e, object kernels, int k, object array, object walk) except -1:
    """Makes an array the k-th operand of e."""
    return bind_walk(e, kernels, &e.reading if k == READING else &e.operand[k], &e.axes[k], array,
                     walk)


cdef int bind_walk(Entry *e, object kernels, Operand *x, Py_ssize_t **memory, object array,
                   object walk) except -1:
    """Makes x the array, walked as an arrays.Walk says; its axes get their own memory."""
    cdef char *data = address(array, False)
    cdef int ndim = <int>len(walk.shape), axis
    cdef Py_ssize_t *axes = reserve_axes(memory, ndim)
    for axis in range(ndim):
        axes[axis] = walk.shape[axis]
        axes[ndim + axis] = walk.strides[axis]
    x.data, x.ndim, x.shape, x.strides = data + <Py_ssize_t>walk.offset, ndim, axes, axes + ndim
    x.decode, x.encode, x.beside, x.noise = NULL, NULL, NULL, 0
    if walk.beside is not None:
        x.beside = address(walk.beside, True)
    if walk.codec is None:
        if array.dtype.char != ("d" if e.in_double else "f"):
            raise ValueError(f"an array of {array.dtype} without a codec")
    else:
        functions = kernels.codecs[walk.codec]
        x.decode = PyCapsule_GetPointer(functions[1 if e.in_double else 0], "steepest.codec")
        if array.flags.writeable:
            x.encode = PyCapsule_GetPointer(functions[3 if e.in_double else 2], "steepest.codec")
    return 0


cdef int bind_copy(Entry *e, object kernels, object array, object walk) except -1:
    """Makes an array the one that the parameter is also written to."""
    cdef Py_ssize_t size = array.itemsize
    e.stream_copy = NULL
    bind_walk(e, kernels, &e.copy, &e.copy_axes, array, walk)
    if e.copy.ndim == 1 and e.copy.strides[0] == size and <size_t>e.copy.data % <size_t>size == 0:
        functions = kernels.codecs[walk.codec]
        if len(functions) > 4:
            e.stream_copy = PyCapsule_GetPointer(functions[4], "steepest.codec")
    return 0


cdef int bind_source(Entry *e, object gradient) except -1:
    """Remembers what the gradient looks like."""
    cdef Py_buffer view
    cdef Source *s = &e.gradient
    PyObject_GetBuffer(gradient, &view, PyBUF_STRIDES)
    try:
        s.shape = reserve_axes(&e.axes[SOURCE], view.ndim)
        s.strides = s.shape + view.ndim
        s.data, s.ndim, s.type = <char *>view.buf, view.ndim, type_of(gradient)
        if view.ndim:
            memcpy(s.shape, view.shape, view.ndim * sizeof(Py_ssize_t))
            memcpy(s.strides, view.strides, view.ndim * sizeof(Py_ssize_t))
        reach(s, view.itemsize)
    finally:
        PyBuffer_Release(&view)
    return 0


cdef int bind_home(Entry *e, object array) except -1:
    """Remembers where the parameter lies; its strides are mostly the gradient's."""
    cdef Py_buffer view
    cdef Py_ssize_t *steps
    e.type = type_of(array)
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


cdef Py_ssize_t *reserve_axes(Py_ssize_t **memory, int ndim) except NULL:
    """Room for a shape and strides, in place of what was there."""
    cdef Py_ssize_t *axes = <Py_ssize_t *>malloc(2 * (ndim + 1) * sizeof(Py_ssize_t))
    if axes == NULL:
        raise MemoryError
    free(memory[0])
    memory[0] = axes
    return axes


cdef int bind_matrices(Entry *e, object kernels, tuple matrices) except -1:
    """Takes e as matrices: (number of matrices, of rows, of columns, factors, states)."""
    cdef int k
    cdef tuple factors = matrices[3], states = matrices[4]
    cdef Tiles *b = <Tiles *>calloc(1, sizeof(Tiles))
    if b == NULL:
        raise MemoryError
    e.tiles = b  # from here on, `release` frees it
    b.table.matrices, b.table.rows, b.table.columns = matrices[:3]
    if b.table.matrices * b.table.rows * b.table.columns != e.size:
        raise ValueError("matrices of another size than the parameter")
    for x in factors + states:
        if x.dtype.char != ("d" if e.in_double else "f") or not x.flags.carray:
            raise ValueError("factors or states of another type or order")
    b.row = address(factors[0], True)
    b.column = address(factors[1], True) if len(factors) > 1 else NULL
    b.spread = PyCapsule_GetPointer(kernels.spreads["factors"][1 if e.in_double else 0],
                                    "steepest.spread")
    b.table.states = <int>len(states)
    b.table.state = <void **>malloc((len(states) + 1) * sizeof(void *))
    b.table.length = <Py_ssize_t *>malloc((len(states) + 1) * sizeof(Py_ssize_t))
    if b.table.state == NULL or b.table.length == NULL:
        raise MemoryError
    for k, x in enumerate(states):
        b.table.state[k], b.table.length[k] = address(x, True), x.size
    return tiles.divide(b)


cdef void release(Entry *e) noexcept:
    cdef int k
    for k in range(HOME + 1):
        free(e.axes[k])
    for k in range(e.cuts):
        free(e.units[k].axes_p)
        free(e.units[k].axes_g)
    free(e.units)
    free(e.copy_axes)
    tiles.release(e.tiles)
