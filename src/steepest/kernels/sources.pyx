"""Looking at Python's arrays; see ``sources.pxd``. An array is looked at before every step, so it
must cost nanoseconds.
"""
from cpython.buffer cimport (
    PyBUF_FORMAT, PyBUF_STRIDES, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer,
)
from cpython.exc cimport PyErr_Clear
from cpython.object cimport PyObject
from cpython.pycapsule cimport PyCapsule_GetPointer, PyCapsule_IsValid
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

import numpy

# The head of a NumPy array, the same since NumPy 1.7: reading it takes 2 ns, the buffer protocol
# 50. It is compared with the buffer protocol once, at import, and not used if they disagree.
cdef extern from *:
    """
    typedef struct {
        PyObject_HEAD
        char *data;
        int ndim;
        Py_ssize_t *shape;
        Py_ssize_t *strides;
        PyObject *base;
        PyObject *descr;
        int flags;
    } steepest_array_head;
    """
    ctypedef struct ArrayHead "steepest_array_head":
        char *data
        int ndim
        Py_ssize_t *shape
        Py_ssize_t *strides
        PyObject *descr
        int flags

cdef extern from *:
    """
    #define steepest_type(x) ((PyObject *)Py_TYPE(x))
    #define steepest_references(x) ((Py_ssize_t)Py_REFCNT(x))
    """
    PyObject *type_of "steepest_type" (object x)
    Py_ssize_t references "steepest_references" (PyObject *x)

# A tensor as DLPack 1 shows it, and its C exchange API (dlpack.h), through which tensors are looked
# at without an object being made for it.
cdef extern from *:
    """
    #include <stdint.h>
    typedef struct { int32_t type, id; } steepest_device;
    typedef struct { uint8_t code, bits; uint16_t lanes; } steepest_dtype;
    typedef struct {
        void *data;
        steepest_device device;
        int32_t ndim;
        steepest_dtype dtype;
        int64_t *shape;
        int64_t *strides;
        uint64_t byte_offset;
    } steepest_tensor;
    typedef int (*steepest_look)(void *, steepest_tensor *);
    typedef struct {
        uint32_t major, minor;
        void *previous;
        void *allocate;
        void *from_object;
        void *to_object;
        steepest_look look;
        void *stream;
    } steepest_exchange;
    """
    ctypedef struct Device "steepest_device":
        int32_t type
    ctypedef struct DType "steepest_dtype":
        uint8_t code
        uint8_t bits
        uint16_t lanes
    ctypedef struct Tensor "steepest_tensor":
        void *data
        Device device
        int32_t ndim
        DType dtype
        int64_t *shape
        int64_t *strides
        uint64_t byte_offset
    ctypedef int (*Look "steepest_look")(void *, Tensor *) noexcept
    ctypedef struct Exchange "steepest_exchange":
        uint32_t major
        Look look

cdef enum:
    WRITEABLE = 0x0400
    ON_CPU = 1                         # DLPack's numbers
    INTEGER = 0
    FLOATING = 2
    KNOWN_TYPES = 8

cdef object NDARRAY = numpy.ndarray
cdef object FLOAT = numpy.dtype(numpy.float32)
cdef object DOUBLE = numpy.dtype(numpy.float64)
cdef object LONG = numpy.dtype(numpy.int64)


cdef bint head_is_known():
    """Whether ArrayHead reads sample arrays as the buffer protocol does."""
    cdef Py_buffer view
    cdef const ArrayHead *head
    cdef bint result = True
    for writeable in (True, False):
        for dtype in (FLOAT, DOUBLE):
            x = numpy.zeros((5, 4, 3), dtype)[1:4:2, ::-1, 1:]
            x.flags.writeable = writeable
            head = <const ArrayHead *>x
            PyObject_GetBuffer(x, &view, PyBUF_FORMAT | PyBUF_STRIDES)
            result = (result and sizeof(ArrayHead) <= x.__sizeof__() and head.data == view.buf
                      and head.ndim == 3 and same_axes(head.shape, view.shape, 3)
                      and same_axes(head.strides, view.strides, 3)
                      and head.descr == <PyObject *>dtype
                      and bool(head.flags & WRITEABLE) == writeable)
            PyBuffer_Release(&view)
    return result

cdef bint HEAD_IS_KNOWN = head_is_known()


cdef void reach(Source *s, Py_ssize_t itemsize) noexcept:
    """How far the elements of s lie below and above its first."""
    cdef int axis
    cdef Py_ssize_t span
    s.low, s.high = 0, itemsize
    for axis in range(s.ndim):
        span = (s.shape[axis] - 1) * s.strides[axis]
        if span < 0:
            s.low += span
        else:
            s.high += span


cdef inline bint is_array(object x, bint is_double) noexcept:
    """Whether x is an ndarray of the type, so that its head may be read."""
    return (HEAD_IS_KNOWN and type(x) is NDARRAY
            and (<const ArrayHead *>x).descr == <PyObject *>(DOUBLE if is_double else FLOAT))


# The types of tensors that may be looked at through the exchange API: they are kept alive, and each
# has been compared with NumPy's view of a tensor.
cdef PyObject *TYPES[KNOWN_TYPES]
cdef Look LOOKS[KNOWN_TYPES]
cdef int types = 0
cdef list kept = []


cdef inline Look look_of(object x) noexcept:
    """What looks at x; NULL where that is not known."""
    cdef int k
    for k in range(types):
        if TYPES[k] == type_of(x):
            return LOOKS[k]
    return NULL


cdef bint looked(object x, Look look, Tensor *t, bint is_double):
    """Whether x lies in main memory and is of the type. Sets `t`."""
    if look(<void *>x, t) != 0:
        PyErr_Clear()
        return False
    return (t.device.type == ON_CPU and t.dtype.code == FLOATING and t.dtype.lanes == 1
            and t.dtype.bits == (64 if is_double else 32)
            and (t.strides != NULL or t.ndim == 0))


cdef bint alike(const Tensor *t, int ndim, const Py_ssize_t *shape, const Py_ssize_t *strides,
                bint is_double) noexcept:
    """Whether the axes of t are these; a stride along an axis of length 1 means nothing, and no
    stride of an empty tensor does."""
    cdef int axis
    cdef bint steps = True
    if t.ndim != ndim:
        return False
    for axis in range(ndim):
        if t.shape[axis] != shape[axis]:
            return False
        if shape[axis] != 1 and t.strides[axis] * (8 if is_double else 4) != strides[axis]:
            steps = False
    return steps or is_empty(t)


cdef bint is_empty(const Tensor *t) noexcept:
    cdef int axis
    for axis in range(t.ndim):
        if t.shape[axis] == 0:
            return True
    return False


cdef bint may_be_negative(const Tensor *t) noexcept:
    """Whether t may be a view of complex numbers, whose sign PyTorch can leave to be changed."""
    cdef int axis
    for axis in range(t.ndim):
        if t.shape[axis] > 1 and t.strides[axis] == 1:
            return False
    return True


def learn(cls, list samples):
    """Looks at tensors of the type `cls` through its exchange API from now on, if it has one of
    DLPack 1 and reads the samples, pairs of a tensor and NumPy's view of it, as NumPy does. Says
    whether it does; False leaves all as it was."""
    global types
    cdef Look look
    cdef Tensor t
    cdef const ArrayHead *head
    cdef const Exchange *exchange
    cdef bint is_double
    capsule = getattr(cls, "__dlpack_c_exchange_api__", None)
    if not (HEAD_IS_KNOWN and PyCapsule_IsValid(capsule, "dlpack_exchange_api")):
        return False
    exchange = <const Exchange *>PyCapsule_GetPointer(capsule, "dlpack_exchange_api")
    look = exchange.look if exchange.major == 1 else NULL
    if look == NULL:
        return False
    for x, array in samples:
        is_double = array.dtype.char == "d"
        head = <const ArrayHead *>array
        if type(x) is not cls or not is_array(array, is_double) or not (
                looked(x, look, &t, is_double)
                and alike(&t, head.ndim, head.shape, head.strides, is_double)
                and <char *>t.data + t.byte_offset == head.data):
            return False
    if look_of(samples[0][0]) == NULL:
        if types == KNOWN_TYPES:
            return False
        kept.append((cls, capsule))
        TYPES[types], LOOKS[types] = <PyObject *>cls, look
        types += 1
    return True


cdef bint same(const Source *s, object x, char **data):
    """Whether x has the type, shape and strides of s. Sets `data`."""
    cdef Py_buffer view
    cdef bint result
    cdef const ArrayHead *head
    cdef Look look
    cdef Tensor t
    if is_array(x, s.format == c"d"):
        head = <const ArrayHead *>x
        if (head.ndim == s.ndim and same_axes(head.shape, s.shape, s.ndim)
                and same_axes(head.strides, s.strides, s.ndim)):
            data[0] = head.data
            return True
    look = look_of(x)
    if look != NULL:
        result = (looked(x, look, &t, s.format == c"d")
                  and alike(&t, s.ndim, s.shape, s.strides, s.format == c"d")
                  and not (may_be_negative(&t) and x.is_neg()))
        data[0] = <char *>t.data + t.byte_offset
        return result
    try:
        PyObject_GetBuffer(x, &view, PyBUF_FORMAT | PyBUF_STRIDES)
    except (BufferError, TypeError, ValueError):
        return False
    # NumPy writes the type of an unaligned array as "=f".
    result = (view.ndim == s.ndim and (view.format + (view.format[0] == c"="))[0] == s.format
              and view.itemsize == (8 if s.format == c"d" else 4)
              and same_axes(view.shape, s.shape, s.ndim)
              and same_axes(view.strides, s.strides, s.ndim))
    data[0] = <char *>view.buf
    PyBuffer_Release(&view)
    return result


cdef bint still_at(object x, const char *home, bint is_double, object array):
    """Whether the data of x is where it was and may still be written; a tensor also lies as
    `array`, which was made of it."""
    cdef const ArrayHead *head
    cdef Look look
    cdef Tensor t
    if is_array(x, is_double):
        head = <const ArrayHead *>x
        return head.data == home and (head.flags & WRITEABLE) != 0
    look = look_of(x)
    if look != NULL:
        head = <const ArrayHead *>array
        return (is_array(array, is_double) and looked(x, look, &t, is_double)
                and (<const char *>t.data + t.byte_offset == home or is_empty(&t))
                and alike(&t, head.ndim, head.shape, head.strides, is_double))
    try:
        return address(x, True) == home
    except (BufferError, TypeError, ValueError):
        return False


cdef char *address(object x, bint writable) except? NULL:
    """Where the data of x begins."""
    cdef Py_buffer view
    PyObject_GetBuffer(x, &view, PyBUF_STRIDES | (PyBUF_WRITABLE if writable else 0))
    PyBuffer_Release(&view)
    return <char *>view.buf


cdef inline bint same_axes(const Py_ssize_t *x, const Py_ssize_t *y, int n) noexcept:
    cdef int axis
    for axis in range(n):
        if x[axis] != y[axis]:
            return False
    return True


cdef int64_t *counter(object x) except NULL:
    """The address of a 0-d int64 array, which the caller keeps alive."""
    cdef Py_buffer view
    cdef int64_t *result
    PyObject_GetBuffer(x, &view, PyBUF_FORMAT | PyBUF_STRIDES | PyBUF_WRITABLE)
    result = <int64_t *>view.buf
    if view.ndim != 0 or view.itemsize != sizeof(int64_t) or view.format[0] not in b"lq":
        result = NULL
    PyBuffer_Release(&view)
    if result == NULL:
        raise ValueError("a counter must be a 0-d int64 array")
    return result


cpdef bint lie_as(list tensors, list arrays):
    """Whether each tensor, of a type that was learnt, lies as the array beside it does, of float32,
    float64 or int64 numbers."""
    cdef Py_ssize_t i
    cdef Tensor t
    cdef const ArrayHead *head
    cdef Look look
    for i in range(len(tensors)):
        x, array = tensors[i], arrays[i]
        look = look_of(x)
        if not HEAD_IS_KNOWN or look == NULL or type(array) is not NDARRAY:
            return False
        if look(<void *>x, &t) != 0:
            PyErr_Clear()
            return False
        head = <const ArrayHead *>array
        if (t.device.type != ON_CPU or t.dtype.lanes != 1
                or not (t.dtype.code == FLOATING or t.dtype.code == INTEGER and t.dtype.bits == 64)
                or t.dtype.bits < 32 or head.descr != type_like(&t)
                or not alike(&t, head.ndim, head.shape, head.strides, t.dtype.bits == 64)
                or not (<const char *>t.data + t.byte_offset == head.data or is_empty(&t))):
            return False
    return True


cdef inline PyObject *type_like(const Tensor *t) noexcept:
    """NumPy's type of such numbers."""
    if t.dtype.bits == 64:
        return <PyObject *>(DOUBLE if t.dtype.code == FLOATING else LONG)
    return <PyObject *>FLOAT


cpdef bint held_beside(list objects, Py_ssize_t own):
    """Whether one of the objects has more than `own` references, this list's among them."""
    for x in objects:
        if references(<PyObject *>x) > own + 1:
            return True
    return False
