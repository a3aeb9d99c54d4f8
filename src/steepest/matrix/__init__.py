"""Directions of the matrix rules: pure functions on NumPy's BLAS, computed before a step commits.

Each family has two functions. ``initial_states(shape, dtype, ...)`` gives the states of one
parameter by name. ``direction(g, state, t, ...)`` gives d of  p ← p - lr · d  and the new values of
the states that changed, all in new arrays. It writes to no argument, so after an exception nothing
has changed. Factors of the rate that depend on t or on the shape are part of d.

Results repeat to the bit on one machine and one build of BLAS with the same number of threads, not
across them. A gradient that is not finite gives a d that is not finite; a factorisation of finite
numbers that fails raises ``DecompositionError``.
"""
