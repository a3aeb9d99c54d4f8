"""Counts what steps ask the C library's malloc for; started with ``COUNTER`` in LD_PRELOAD.

    python counted.py LIBRARY

Prints as JSON, for one thread and two, by rules, (calls, bytes of the largest) of 20 bound steps
over all parameters, and of 20 in two chunks, None where there are none. Of rules of matrices, whose
products are NumPy's, there is one, to see that it is seen.
"""

import ctypes
import json
import sys

import numpy as np

import steepest as st
from steepest import functional
from steepest.optimizers import RULES

COUNTER = """
#include <stddef.h>
void *__libc_malloc(size_t);
void *__libc_calloc(size_t, size_t);
void *__libc_realloc(void *, size_t);
static volatile int on;
static long calls, most;
static void note(size_t n)
{
    if (!on)
        return;
    __atomic_fetch_add(&calls, 1, __ATOMIC_RELAXED);
    if ((long)n > most)
        most = (long)n;
}
void *malloc(size_t n) { note(n); return __libc_malloc(n); }
void *calloc(size_t m, size_t n) { note(m * n); return __libc_calloc(m, n); }
void *realloc(void *p, size_t n) { note(n); return __libc_realloc(p, n); }
void begin(void) { calls = most = 0; on = 1; }
long end(void) { on = 0; return calls; }
long largest(void) { return most; }
"""
SHAPES = [(300, 200), (64, 64), (7, 9)]


def main() -> None:
    library = ctypes.CDLL(sys.argv[1])
    library.end.restype = library.largest.restype = ctypes.c_long

    def counted(steps):
        for _ in range(5):
            steps()
        library.begin()
        for _ in range(20):
            steps()
        return library.end(), library.largest()

    def rule_counted(rule):
        params = [np.ones(shape, np.float32) for shape in SHAPES]
        grads = [np.full(shape, 0.5, np.float32) for shape in SHAPES]
        bound = functional.prepare(rule, params, *functional.new_states(rule, params))

        def whole(bound=bound, grads=grads):
            bound.step(grads)

        def chunks(bound=bound, grads=grads):
            bound.step(grads[1:], 1, 3, lr=0.01)
            bound.step(grads[:1], 0, 1, lr=0.02)

        try:
            return counted(whole), counted(chunks)
        except ValueError:  # it looks at all together
            return counted(whole), None

    found = {}
    rules = [rule for rule, cls in RULES.items() if rule == "muon" or not cls.prepares]
    for threads in (1, 2):
        st.set_num_threads(threads)
        found[threads] = {rule: rule_counted(rule) for rule in rules}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
