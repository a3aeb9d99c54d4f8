"""What a compiled rule is handed over in: capsules, whose names say for which contract they are."""
from cpython.pycapsule cimport PyCapsule_CheckExact, PyCapsule_GetName

from steepest.kernels.contract cimport (
    RULE_DOUBLE, RULE_FLOAT, SETTLE, SURVEY_DOUBLE, SURVEY_FLOAT, TABLE_DOUBLE, TABLE_FLOAT,
)

RULE = (RULE_FLOAT.decode(), RULE_DOUBLE.decode())
SURVEY = (SURVEY_FLOAT.decode(), SURVEY_DOUBLE.decode(), SETTLE.decode())
TABLE = (TABLE_FLOAT.decode(), TABLE_DOUBLE.decode())


def name(capsule):
    """The name of a capsule, "" if it has none; None for what is no capsule."""
    if not PyCapsule_CheckExact(capsule):
        return None
    cdef const char *found = PyCapsule_GetName(capsule)
    return "" if found == NULL else found.decode("utf-8", "replace")
