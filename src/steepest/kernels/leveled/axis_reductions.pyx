"""What the terms of a row and column reduction come to in each row and each column. Compiled once
per instruction-set level.

COMBINERS maps "squares" (their sum, in double: a row's in lanes, as ``rules.squares`` adds, a
column's row by row) and "largest" (of terms that are not negative) to the function for each type;
SPREADS maps "factors" to what makes factors of rows and columns into those of elements.
"""
from cpython.pycapsule cimport PyCapsule_New

from steepest.kernels.contract cimport (
    LANES, combine_double, combine_float, larger, real, spread_double, spread_float,
)

COMBINERS, SPREADS = {}, {}


cdef object entry(combine_float of_float, combine_double of_double):
    return (PyCapsule_New(<void *>of_float, "steepest.combine", NULL),
            PyCapsule_New(<void *>of_double, "steepest.combine", NULL))


cdef inline double row_squares(const real *restrict x, double *restrict column,
                               Py_ssize_t n) noexcept nogil:
    """The sum of squares, each of which is added to its column, if there are any: element i goes to
    lane i mod 32, and lanes are added in halves. Of fewer lanes than that only those are added that
    have got something: the others are 0."""
    cdef double lane[LANES]
    cdef double term
    cdef Py_ssize_t i, j, width = LANES, whole = n // LANES
    while whole == 0 and 1 < width and n <= width // 2:
        width = width // 2
    for j in range(width):
        lane[j] = 0
    if column == NULL:
        for i in range(whole):
            for j in range(LANES):
                term = <double>x[i * LANES + j] * <double>x[i * LANES + j]
                lane[j] += term
        for j in range(n - whole * LANES):
            term = <double>x[whole * LANES + j] * <double>x[whole * LANES + j]
            lane[j] += term
    else:
        for i in range(whole):
            for j in range(LANES):
                term = <double>x[i * LANES + j] * <double>x[i * LANES + j]
                lane[j] += term
                column[i * LANES + j] += term
        for j in range(n - whole * LANES):
            term = <double>x[whole * LANES + j] * <double>x[whole * LANES + j]
            lane[j] += term
            column[whole * LANES + j] += term
    while width > 1:
        width = width // 2
        for j in range(width):
            lane[j] += lane[j + width]
    return lane[0]


cdef inline void rows_squares(const real *restrict terms, Py_ssize_t rows, Py_ssize_t n,
                              Py_ssize_t place, Py_ssize_t height, Py_ssize_t step, double *row,
                              double *column) noexcept nogil:
    cdef Py_ssize_t k
    for k in range(rows):
        row[k] += row_squares(terms + k * n, column, n)
        if column != NULL:
            place += 1
            if place == height:
                place = 0
                column += step


cdef void squares(const real *restrict terms, Py_ssize_t rows, Py_ssize_t n, Py_ssize_t place,
                  Py_ssize_t height, Py_ssize_t step, double *row, double *column) noexcept nogil:
    """Loops of a known length for the widths of kernels of convolutions."""
    if n == 1:
        rows_squares(terms, rows, 1, place, height, step, row, column)
    elif n == 3:
        rows_squares(terms, rows, 3, place, height, step, row, column)
    elif n == 5:
        rows_squares(terms, rows, 5, place, height, step, row, column)
    elif n == 7:
        rows_squares(terms, rows, 7, place, height, step, row, column)
    else:
        rows_squares(terms, rows, n, place, height, step, row, column)

COMBINERS["squares"] = entry(squares, squares)


cdef inline real row_largest(const real *x, Py_ssize_t n) noexcept nogil:
    cdef real lane[LANES]
    cdef real most = <real>0
    cdef Py_ssize_t i, j, whole = n // LANES
    if whole:
        for j in range(LANES):
            lane[j] = <real>0
        for i in range(whole):
            for j in range(LANES):
                lane[j] = larger(x[i * LANES + j], lane[j])
        for j in range(LANES):
            most = larger(lane[j], most)
    for j in range(whole * LANES, n):
        most = larger(x[j], most)
    return most


cdef inline void column_largest(const real *restrict x, double *restrict column,
                                Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        column[i] = larger(<double>x[i], column[i])


cdef void largest(const real *restrict terms, Py_ssize_t rows, Py_ssize_t n, Py_ssize_t place,
                  Py_ssize_t height, Py_ssize_t step, double *row, double *column) noexcept nogil:
    cdef Py_ssize_t k
    for k in range(rows):
        row[k] = larger(<double>row_largest(terms + k * n, n), row[k])
        if column != NULL:
            column_largest(terms + k * n, column, n)
            place += 1
            if place == height:
                place = 0
                column += step

COMBINERS["largest"] = entry(largest, largest)


cdef inline void spread_rows(const real *row, const real *column, Py_ssize_t rows,
                             Py_ssize_t columns, Py_ssize_t place, Py_ssize_t height,
                             real *restrict a, real *restrict b) noexcept nogil:
    """Of whole rows."""
    cdef Py_ssize_t k, i
    for k in range(rows):
        for i in range(columns):
            a[k * columns + i] = row[k]
        if column != NULL:
            for i in range(columns):
                b[k * columns + i] = column[i]
            place += 1
            if place == height:
                place = 0
                column += columns


cdef void spread(const real *row, const real *column, Py_ssize_t j, Py_ssize_t n,
                 Py_ssize_t columns, Py_ssize_t place, Py_ssize_t height, real *restrict a,
                 real *restrict b) noexcept nogil:
    cdef Py_ssize_t run, rows, passed
    while n > 0:
        run, rows = min(n, columns - j), 1
        if j == 0 and n >= columns:
            rows = n // columns
            run = rows * columns
            if columns == 1:
                spread_rows(row, column, rows, 1, place, height, a, b)
            elif columns == 3:
                spread_rows(row, column, rows, 3, place, height, a, b)
            elif columns == 5:
                spread_rows(row, column, rows, 5, place, height, a, b)
            elif columns == 7:
                spread_rows(row, column, rows, 7, place, height, a, b)
            else:
                spread_rows(row, column, rows, columns, place, height, a, b)
        else:
            spread_rows(row, NULL if column == NULL else column + j, 1, run, 0, 2, a, b)
        row += rows
        a += run
        n -= run
        j = 0
        if column != NULL:
            b += run
            passed = place + rows
            column += passed // height * columns
            place = passed % height

SPREADS["factors"] = (PyCapsule_New(<void *><spread_float>spread, "steepest.spread", NULL),
                      PyCapsule_New(<void *><spread_double>spread, "steepest.spread", NULL))
