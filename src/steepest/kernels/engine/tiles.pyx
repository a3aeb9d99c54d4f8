"""Rows and columns of matrices: who adds up which of them, and in what order.

A parameter is taken as matrices, and they are cut into *tiles* by their shape alone: a band of rows
of a large matrix, or a run of small matrices; of rows longer than CHUNK, one panel of CHUNK columns
of them. One thread does a tile, row by row in blocks of at most BLOCK elements (of short rows,
several make a block), and a tile has memory of its own for what it finds of its rows (of each
panel) and of its columns (of each band). One thread then combines the panels and bands of a matrix
in their order and finalizes it. So no result depends on the number of threads. No Python, no
threads.
"""
from libc.stdlib cimport free, malloc

from steepest.kernels.contract cimport (
    BLOCK, CHUNK, Matrices, axis_finalize_double, axis_finalize_float, combine_double,
    combine_float, larger, real,
)
from steepest.kernels.engine.blocks cimport terms_of
from steepest.kernels.engine.structs cimport Entry, Operation, Program, Tiles

cdef enum:
    GRAIN = 32768                      # elements of a tile, at least, if there are as many;
    DEPTH = 16                         # rows of a band, at least: its columns cost memory
    MOST = 64                          # bands of a matrix


cdef inline Py_ssize_t parts(Py_ssize_t n, Py_ssize_t m) noexcept nogil:
    """How many parts of m at most make up n."""
    return (n + m - 1) // m


cdef int divide(Tiles *b) except -1:
    """Cuts matrices into tiles, and gets the memory for what is found of them."""
    cdef Matrices *x = &b.table
    cdef Py_ssize_t size = max(x.rows * x.columns, 1)
    b.height = max(<Py_ssize_t>DEPTH, parts(GRAIN, max(x.columns, 1)), parts(x.rows, MOST))
    b.bands = max(parts(x.rows, b.height), 1)
    b.panels = max(parts(x.columns, CHUNK), 1)
    b.group = max(GRAIN // size, 1) if b.bands == 1 else 1
    b.count = parts(x.matrices, b.group) * b.bands * b.panels
    x.step = b.bands * x.columns
    x.row = <double *>malloc(max(x.matrices * x.rows * b.panels, 1) * sizeof(double))
    if x.row == NULL:
        raise MemoryError
    if b.column != NULL:
        x.column = <double *>malloc(max(x.matrices * x.step, 1) * sizeof(double))
        if x.column == NULL:
            raise MemoryError
    return 0


cdef void release(Tiles *b) noexcept:
    if b != NULL:
        free(b.table.row)
        free(b.table.column)
        free(b.table.state)
        free(b.table.length)
        free(b)


cdef void reduce_tiles(Entry *e, const Program *program, int number, const Operation *scale,
                       Py_ssize_t start, Py_ssize_t stop, real *scratch) noexcept nogil:
    """Does the tiles of a share that goes from one element to another."""
    cdef Tiles *b = e.tiles
    cdef Py_ssize_t tile, each
    if e.size == 0:
        return
    each = max(e.size // b.count, 1)
    for tile in range(min(parts(start, each), b.count), min(parts(stop, each), b.count)):
        reduce_tile(e, program, number, scale, tile, scratch)


cdef void reduce_tile(Entry *e, const Program *program, int number, const Operation *scale,
                      Py_ssize_t tile, real *scratch) noexcept nogil:
    cdef Tiles *b = e.tiles
    cdef Matrices *x = &b.table
    cdef Py_ssize_t panel = tile % b.panels, band = tile // b.panels % b.bands
    cdef Py_ssize_t matrix = tile // b.panels // b.bands * b.group
    cdef Py_ssize_t past = min(matrix + b.group, x.matrices)
    cdef Py_ssize_t row = matrix * x.rows + band * b.height, stop, rows, n, i, j
    cdef Py_ssize_t left = panel * CHUNK, right = min(left + CHUNK, x.columns)
    cdef double *found = x.row + panel * x.matrices * x.rows
    cdef real terms[BLOCK]
    stop = past * x.rows if b.bands == 1 else min(row + b.height, past * x.rows)
    for i in range(row, stop):
        found[i] = 0
    if x.column != NULL:
        if b.bands == 1 and b.panels == 1:
            for i in range(matrix * x.columns, past * x.columns):
                x.column[i] = 0
        else:
            for i in range(matrix, past):
                for j in range(left, right):
                    x.column[i * x.step + band * x.columns + j] = 0
    if 2 * x.columns <= BLOCK:
        while row < stop:
            rows = min(BLOCK // x.columns, stop - row)
            terms_of(e, program, number, scale, &terms[0], row * x.columns, rows * x.columns,
                     scratch)
            combine(e, program, number, &terms[0], rows, x.columns, row, band, 0, found)
            row += rows
        return
    while row < stop:
        j = left
        while j < right:
            n = min(right - j, <Py_ssize_t>BLOCK)
            terms_of(e, program, number, scale, &terms[0], row * x.columns + j, n, scratch)
            combine(e, program, number, &terms[0], 1, n, row, band, j, found)
            j += n
        row += 1


cdef inline void combine(Entry *e, const Program *program, int number, const real *terms,
                         Py_ssize_t rows, Py_ssize_t n, Py_ssize_t row, Py_ssize_t band,
                         Py_ssize_t j, double *found) noexcept nogil:
    cdef Matrices *x = &e.tiles.table
    cdef double *column = NULL
    if x.column != NULL:
        column = x.column + row // x.rows * x.step + band * x.columns + j
    if real is float:
        (<combine_float>program.combine_float[number])(
            terms, rows, n, row % x.rows, x.rows, x.step, found + row, column)
    else:
        (<combine_double>program.combine_double[number])(
            terms, rows, n, row % x.rows, x.rows, x.step, found + row, column)


cdef void finalize_range(Entry *e, const Program *program, int number, Py_ssize_t start,
                         Py_ssize_t stop, real *scratch) noexcept nogil:
    """Finalizes the matrices that begin in a share of the elements."""
    cdef Tiles *b = e.tiles
    cdef Matrices *x = &b.table
    cdef Py_ssize_t size = x.rows * x.columns, first, last
    if e.size == 0:
        return
    first, last = parts(start, size), parts(stop, size)
    if first >= last:
        return
    if program.reduction_float[number] != NULL:
        combine_panels(b, program.largest[number], first * x.rows, last * x.rows)
        if x.column != NULL:
            combine_bands(b, program.largest[number], first, last)
    if real is float:
        (<axis_finalize_float>program.axes_float[number])(
            x, <float *>b.row, <float *>b.column, first, last, e.h)
    else:
        (<axis_finalize_double>program.axes_double[number])(
            x, <double *>b.row, <double *>b.column, first, last, e.h)


cdef void combine_panels(Tiles *b, bint largest, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    """Adds up, or finds the largest of, what was found of rows in all panels."""
    cdef Matrices *x = &b.table
    cdef Py_ssize_t panel, i
    cdef double *more
    for panel in range(1, b.panels):
        more = x.row + panel * x.matrices * x.rows
        for i in range(first, last):
            x.row[i] = larger(x.row[i], more[i]) if largest else x.row[i] + more[i]


cdef void combine_bands(Tiles *b, bint largest, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    """The same for columns in all bands."""
    cdef Matrices *x = &b.table
    cdef Py_ssize_t matrix, band, j
    cdef double *sums
    cdef double *more
    if b.bands == 1:
        return
    for matrix in range(first, last):
        sums = x.column + matrix * x.step
        for band in range(1, b.bands):
            more = sums + band * x.columns
            for j in range(x.columns):
                sums[j] = larger(sums[j], more[j]) if largest else sums[j] + more[j]
