"""What a step does with its parameters, from what Python says of it: a rule with its coefficients
and reductions, the operations before and after it, those on units. Done for each program of a step.
"""
from cpython.pycapsule cimport PyCapsule_GetPointer
from libc.math cimport NAN

from steepest.kernels.contract cimport (
    COEFFICIENTS, REDUCTIONS, RULE_DOUBLE, RULE_FLOAT, SETTLE, SURVEY_DOUBLE, SURVEY_FLOAT,
    TABLE_DOUBLE, TABLE_FLOAT,
)
from steepest.kernels.engine.structs cimport (
    ADAPTIVE_CLIP, CENTRALIZE, COUNT_ABOVE, FORMAT_SETS, GROUP_LASSO, LARGEST, MAKERS, MAXIMUM,
    MAX_NORM,
    OPERATION_COEFFICIENTS, SIMPLEX, SQUARES, SUM, SUM_ABOVE, UNIT_NORM, Measures, Operation,
    Program, Step,
)

_UNIT_KINDS = {
    "adaptive": ADAPTIVE_CLIP, "centralize": CENTRALIZE, "group_lasso": GROUP_LASSO,
    "max_norm": MAX_NORM, "unit_norm": UNIT_NORM, "simplex": SIMPLEX,
}
_UNIT_MEASURES = {
    "sum_squares": SQUARES, "largest": LARGEST, "sum": SUM, "sum_above": SUM_ABOVE,
    "count_above": COUNT_ABOVE, "maximum": MAXIMUM,
}


cdef int set_operation(Operation *s, tuple functions, int operand, tuple h) except -1:
    cdef int k
    s.of_float = PyCapsule_GetPointer(functions[0], "steepest.operation")
    s.of_double = PyCapsule_GetPointer(functions[1], "steepest.operation")
    s.makes_gradient = functions[2]
    s.operand = operand
    if len(h) > OPERATION_COEFFICIENTS:
        raise ValueError("an operation with too many coefficients")
    for k in range(<int>len(h)):
        s.h[k] = h[k]
    return 0


cdef int set_measures(Measures *measures, object kernels) except -1:
    """What units are measured by, and what follows from that."""
    cdef int k
    for name, k in _UNIT_MEASURES.items():
        of_float, of_double = kernels.measures[name]
        measures.of[k][0] = PyCapsule_GetPointer(of_float, "steepest.measure")
        measures.of[k][1] = PyCapsule_GetPointer(of_double, "steepest.measure")
    set_operation(&measures.multiply, kernels.operations["multiply"], 0, ())
    set_operation(&measures.divide, kernels.operations["divide"], 0, ())
    return set_operation(&measures.lower, kernels.operations["lower"], 0, ())


cdef int set_numbers(Program *program, tuple h, tuple kept) except -1:
    """The numbers of a program, which may be others at every step."""
    cdef int k
    for k in range(COEFFICIENTS):  # a kernel that reads more than it was given finds NaN
        program.h[k] = h[k] if k < len(h) else NAN
    program.scalars = <int>len(kept)
    for k in range(<int>len(kept)):
        program.kept[k] = kept[k]
    return 0


cdef int set_structure(Program *program, object kernels, str rule, list before, list after,
                       list units, list late) except -1:
    """The rest of it, which stays the same as long as these are the same objects."""
    cdef int k = 0
    functions = kernels.rules[rule]
    program.rule_float = PyCapsule_GetPointer(functions[0], RULE_FLOAT)
    program.rule_double = PyCapsule_GetPointer(functions[1], RULE_DOUBLE)
    set_reductions(program, kernels, functions[2])
    set_stored(program, kernels.stored.get(rule), not (before or after or functions[2]))
    program.prologue, program.epilogue = <int>len(before), <int>len(after)
    program.late, program.units = <int>len(late), <int>len(units)
    for k, (name, coefficients, operand) in enumerate(before + after + late):
        set_operation(&program.operation[k], kernels.operations[name], operand, coefficients)
    set_measured(program, before, after)
    program.moves = False
    for k in range(program.prologue):
        program.moves = (program.moves or not program.operation[k].makes_gradient
                         or program.operation[k].operand != 0)
    program.projects = False
    for k, (kind, coefficients) in enumerate(units):
        program.unit[k].kind = _UNIT_KINDS[kind]
        program.projects = program.projects or program.unit[k].kind > MAKERS
        program.unit[k].h[0], program.unit[k].h[1] = coefficients
    return 0


cdef int set_stored(Program *program, object loops, bint alone) except -1:
    """The loops of a rule over arrays as they are stored: for one without operations around it."""
    cdef int k
    program.squares = loops[0] if loops is not None else 0
    for k in range(FORMAT_SETS):
        program.stored[k] = NULL
        if alone and loops is not None and loops[1 + k] is not None:
            program.stored[k] = PyCapsule_GetPointer(loops[1 + k], "steepest.stored")
    return 0


cdef void note(Step *s, const Program *program) noexcept:
    """Notes in the step what a program asks for."""
    cdef int k
    s.reductions = max(s.reductions, program.reductions)
    s.holding = s.holding or program.holds >= 0
    s.agreeing = s.agreeing or program.agrees >= 0
    for k in range(program.units):
        if program.unit[k].kind < MAKERS:
            s.making_factors = True
        else:
            s.projections = max(s.projections, k + 1)


cdef int set_measured(Program *program, list before, list after) except -1:
    """Finds the operations that depend on the whole gradient as the prologue makes it."""
    cdef int k
    program.holds = program.agrees = -1
    for k, (name, coefficients, _) in enumerate(before):
        if name == "hold":
            program.holds, program.most = k, coefficients[0]
    for k, (name, _, _) in enumerate(after):
        if name == "agree":
            program.agrees = program.prologue + k
    return 0


cdef int set_reductions(Program *program, object kernels, tuple reductions) except -1:
    cdef int k
    if len(reductions) > REDUCTIONS:
        raise ValueError("a rule with too many reductions")
    for k, (of_float, of_double, *finalize) in enumerate(reductions):
        program.reduction_float[k] = program.reduction_double[k] = NULL
        if of_float is not None:
            program.reduction_float[k] = PyCapsule_GetPointer(of_float, SURVEY_FLOAT)
            program.reduction_double[k] = PyCapsule_GetPointer(of_double, SURVEY_DOUBLE)
        program.finalize[k] = program.axes_float[k] = program.axes_double[k] = NULL
        if len(finalize) == 1:
            program.finalize[k] = PyCapsule_GetPointer(finalize[0], SETTLE)
        else:
            set_axis_reduction(program, kernels, k, finalize)
    program.reductions = <int>len(reductions)
    return 0


cdef int set_axis_reduction(Program *program, object kernels, int k, list finalize) except -1:
    combine, of_float, of_double = finalize
    program.axes_float[k] = PyCapsule_GetPointer(of_float, TABLE_FLOAT)
    program.axes_double[k] = PyCapsule_GetPointer(of_double, TABLE_DOUBLE)
    if combine is not None:
        name, program.blind[k] = combine
        functions = kernels.combiners[name]
        program.combine_float[k] = PyCapsule_GetPointer(functions[0], "steepest.combine")
        program.combine_double[k] = PyCapsule_GetPointer(functions[1], "steepest.combine")
        program.largest[k] = name == "largest"
    return 0
