"""What the files of rules (``sgd``, ``adaptive``, ``adam``, ``sign``, ``averaged``) share.

A rule is one loop over one block. Only plain loops may live there: no Python, no threads, no
dtypes, no clipping, no schedules. The reference of the same name in ``steepest.reference`` fixes
the order of the operations; the optimizer of the same name computes ``h``. Letters are the papers':
parameter p, gradient g, moments m and v. Every rule takes the gradient times `factor` and the
parameter times `keep`, which is how clipping and decoupled decay come without a pass of their own;
both are 1 otherwise, and 1 * x is x to the last bit. Compiled once per instruction-set level.
"""
from cpython.pycapsule cimport PyCapsule_New

from steepest.kernels.contract cimport RULE_DOUBLE, RULE_FLOAT, rule_double, rule_float


cdef inline object rule(rule_float of_float, rule_double of_double):
    """An entry of RULES: the rule for each type, as the engine takes it."""
    return (PyCapsule_New(<void *>of_float, RULE_FLOAT, NULL),
            PyCapsule_New(<void *>of_double, RULE_DOUBLE, NULL))
