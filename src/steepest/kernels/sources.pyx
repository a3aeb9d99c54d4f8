"""Looking at Python's arrays; see ``sources.pxd``. An array is looked at before every step, so it
must cost nanoseconds.
"""
from cpython.buffer cimport (
    PyBUF_FORMAT, PyBUF_STRIDES, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer,
)
from cpython.exc cimport PyErr_Clear
from cpython.object cimport PyObject
from cpython.pycapsule cimport PyCapsule_GetPointer, PyCapsule_IsValid
from cpython.tuple cimport PyTuple_GET_ITEM
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport strcmp

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

cdef extern from "Python.h":
    PyObject *PyDict_GetItem "PyDict_GetItemWithError" (object group, object key) except? NULL
    bint PyDict_Next(object items, Py_ssize_t *place, PyObject **key, PyObject **value)

cdef extern from *:
    """
    #define steepest_type(x) ((PyObject *)Py_TYPE(x))
    #define steepest_references(x) ((Py_ssize_t)Py_REFCNT(x))
    """
    PyObject *class_of "steepest_type" (object x)
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
    KNOWN_TYPES = 8                    # of tensors
    KNOWN_FORMATS = 32
    HEAD_BYTES = 184                   # at the start of what implements a tensor; it has more

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


# How elements may be stored; what they point into is kept alive.
cdef ElementType FORMATS[KNOWN_FORMATS]
cdef int formats = 0
cdef list named = []


def know(dtype, int code, int bits):
    """Makes arrays with elements of this type known, which DLPack knows by code and bits. Once more
    does nothing. Raises ValueError where there are too many."""
    global formats
    cdef ElementType *t
    cdef bytes letters
    if find(dtype) != NULL:
        return
    if formats == KNOWN_FORMATS:
        raise ValueError("too many formats")
    try:
        letters = memoryview(numpy.zeros(1, dtype)).format.encode()
    except (BufferError, TypeError, ValueError):
        letters = b""  # what the buffer protocol cannot say
    t = &FORMATS[formats]
    t.dtype, t.itemsize, t.code, t.bits = <PyObject *>dtype, dtype.itemsize, code, bits
    t.letters = letters
    named.append((dtype, letters))
    formats += 1


cdef const ElementType *find(object dtype):
    """The element type for a dtype, or NULL."""
    cdef int k
    for k in range(formats):
        if FORMATS[k].dtype == <PyObject *>dtype or named[k][0] == dtype:
            return &FORMATS[k]
    return NULL


cdef const ElementType *type_of(object array) except NULL:
    """How the elements of an array are stored. Raises TypeError where that is no format."""
    cdef const ElementType *found = find(array.dtype)
    if found == NULL:
        raise TypeError(f"no format is stored as {array.dtype}")
    return found


cdef inline bint is_array(object x, const ElementType *type_) noexcept:
    """Whether x is an ndarray with elements of the type, so that its head may be read."""
    return (HEAD_IS_KNOWN and type(x) is NDARRAY
            and (<const ArrayHead *>x).descr == type_.dtype)


cdef inline const ElementType *type_at(const ArrayHead *head) noexcept:
    """How the elements of the array are stored; NULL where that is no format."""
    cdef int k
    for k in range(formats):
        if FORMATS[k].dtype == head.descr:
            return &FORMATS[k]
    return NULL


# The types of tensors that may be looked at through the exchange API: they are kept alive, and each
# has been compared with NumPy's view of a tensor.
cdef PyObject *TYPES[KNOWN_TYPES]
cdef Look LOOKS[KNOWN_TYPES]
cdef int types = 0
cdef list kept = []

# What the exchange API does not say stands in a tensor's dispatch keys: that its numbers are to be
# negated, are zeros without memory, or belong to another tensor that this one wraps. They lie
# KEYS_AT bytes into what implements it, whose address lies POINTER_AT bytes into the object. All
# tensors that are looked at have USUAL keys or fewer.
cdef Py_ssize_t POINTER_AT, KEYS_AT
cdef uint64_t USUAL


cdef inline uint64_t word(const void *x, Py_ssize_t offset) noexcept:
    return (<const uint64_t *>(<const char *>x + offset))[0]


cdef inline Look look_of(object x) noexcept:
    """What looks at x; NULL where that is not known."""
    cdef int k
    for k in range(types):
        if TYPES[k] == class_of(x):
            return LOOKS[k]
    return NULL


cdef bint looked(object x, Look look, Tensor *t, const ElementType *type_):
    """Whether the numbers of x lie in main memory as they are, and of the type. Sets `t`."""
    if word(<const void *>word(<const void *>x, POINTER_AT), KEYS_AT) & ~USUAL:
        return False
    if look(<void *>x, t) != 0:
        PyErr_Clear()
        return False
    return (t.device.type == ON_CPU and t.dtype.code == type_.code and t.dtype.lanes == 1
            and t.dtype.bits == type_.bits
            and (t.strides != NULL or t.ndim == 0) and (t.data != NULL or is_empty(t)))


cdef bint alike(const Tensor *t, int ndim, const Py_ssize_t *shape, const Py_ssize_t *strides,
                Py_ssize_t itemsize) noexcept:
    """Whether the axes of t are these; a stride along an axis of length 1 means nothing, and no
    stride of an empty tensor does."""
    cdef int axis
    cdef bint steps = True
    if t.ndim != ndim:
        return False
    for axis in range(ndim):
        if t.shape[axis] != shape[axis]:
            return False
        if shape[axis] != 1 and t.strides[axis] * itemsize != strides[axis]:
            steps = False
    return steps or is_empty(t)


cdef bint is_empty(const Tensor *t) noexcept:
    cdef int axis
    for axis in range(t.ndim):
        if t.shape[axis] == 0:
            return True
    return False


cdef Py_ssize_t place_of(list words, Py_ssize_t start, Py_ssize_t end) except -2:
    """Where all of some places in memory have the word that goes with them; -1 if nowhere. `words`
    has pairs (address, word)."""
    cdef Py_ssize_t offset
    for offset in range(start, end - 7, 8):
        for address, expected in words:
            if word(<const void *><size_t>address, offset) != <uint64_t>expected:
                break
        else:
            return offset
    return -1


def learn_keys(list tensors, usual):
    """Finds the dispatch keys of tensors: `tensors` are triples of one, the address of what
    implements it, and its keys; `usual` are the keys of those that may be looked at. False, if they
    are not found, leaves all as it was; `learn` comes after True."""
    global POINTER_AT, KEYS_AT, USUAL
    cdef Py_ssize_t size = min(type(x).__basicsize__ for x, _, _ in tensors)
    cdef Py_ssize_t pointer = place_of([(id(x), address) for x, address, _ in tensors],
                                       sizeof(PyObject), size)
    cdef Py_ssize_t keys = place_of([(address, keys) for _, address, keys in tensors],
                                    0, HEAD_BYTES)
    if pointer < 0 or keys < 0:
        return False
    POINTER_AT, KEYS_AT, USUAL = pointer, keys, usual
    return True


def learn(cls, list samples):
    """Looks at tensors of the type `cls` through its exchange API from now on, if it has one of
    DLPack 1 and reads the samples, pairs of a tensor and NumPy's view of it, as NumPy does. Says
    whether it does; False leaves all as it was. See `learn_keys`."""
    global types
    cdef Look look
    cdef Tensor t
    cdef const ArrayHead *head
    cdef const Exchange *exchange
    cdef const ElementType *type_
    capsule = getattr(cls, "__dlpack_c_exchange_api__", None)
    if not (HEAD_IS_KNOWN and POINTER_AT and PyCapsule_IsValid(capsule, "dlpack_exchange_api")):
        return False
    exchange = <const Exchange *>PyCapsule_GetPointer(capsule, "dlpack_exchange_api")
    look = exchange.look if exchange.major == 1 else NULL
    if look == NULL:
        return False
    for x, array in samples:
        type_ = type_of(array)
        head = <const ArrayHead *>array
        if type(x) is not cls or not is_array(array, type_) or not (
                looked(x, look, &t, type_)
                and alike(&t, head.ndim, head.shape, head.strides, type_.itemsize)
                and <char *>t.data + t.byte_offset == head.data):
            return False
    if look_of(samples[0][0]) == NULL:
        if types == KNOWN_TYPES:
            return False
        kept.append((cls, capsule))
        TYPES[types], LOOKS[types] = <PyObject *>cls, look
        types += 1
    return True


cdef object held(object x):
    """What `same` may look at, with the memory of x, which stays where it is while that lives: x
    itself, or an array over its memory. None for what Python has to look at more closely."""
    if type(x) is NDARRAY or look_of(x) != NULL:
        return x
    if isinstance(x, NDARRAY):  # a subclass may say anything of itself; NumPy's own view does not
        return None if isinstance(x, numpy.ma.MaskedArray) else NDARRAY.view(x, NDARRAY)
    try:
        return numpy.asarray(memoryview(x))
    except (BufferError, TypeError, ValueError):
        return None


cdef bint same(const Source *s, object x, char **data):
    """Whether x, which is `held`, has the type, shape and strides of s. Sets `data`."""
    cdef Py_buffer view
    cdef bint result
    cdef const ArrayHead *head
    cdef Look look
    cdef Tensor t
    if is_array(x, s.type):
        head = <const ArrayHead *>x
        data[0] = head.data
        return (head.ndim == s.ndim and same_axes(head.shape, s.shape, s.ndim)
                and same_axes(head.strides, s.strides, s.ndim))
    look = look_of(x)
    if look != NULL:
        result = (looked(x, look, &t, s.type)
                  and alike(&t, s.ndim, s.shape, s.strides, s.type.itemsize))
        data[0] = <char *>t.data + t.byte_offset
        return result
    try:
        PyObject_GetBuffer(x, &view, PyBUF_FORMAT | PyBUF_STRIDES)
    except (BufferError, TypeError, ValueError):
        return False
    # NumPy writes the type of an unaligned array as "=f".
    result = (view.ndim == s.ndim
              and strcmp(view.format + (view.format[0] == c"="), s.type.letters) == 0
              and view.itemsize == s.type.itemsize
              and same_axes(view.shape, s.shape, s.ndim)
              and same_axes(view.strides, s.strides, s.ndim))
    data[0] = <char *>view.buf
    PyBuffer_Release(&view)
    return result


cdef bint still_as(object x, object array):
    """Whether x may still be written and lies where and as it did when `array` was made of it:
    another array over the same memory, which nobody changes."""
    cdef const ArrayHead *head
    cdef const ArrayHead *before = <const ArrayHead *>array
    cdef Look look
    cdef Tensor t
    cdef const ElementType *type_
    if type(x) is not NDARRAY and isinstance(x, NDARRAY):
        x = NDARRAY.view(x, NDARRAY)
    if HEAD_IS_KNOWN and type(x) is NDARRAY:
        head = <const ArrayHead *>x
        return (head.data == before.data and (head.flags & WRITEABLE) != 0
                and head.descr == before.descr and head.ndim == before.ndim
                and same_axes(head.shape, before.shape, head.ndim)
                and same_axes(head.strides, before.strides, head.ndim))
    look = look_of(x)
    if look != NULL:
        type_ = type_at(before) if HEAD_IS_KNOWN else NULL
        return (type_ != NULL and looked(x, look, &t, type_)
                and (<char *>t.data + t.byte_offset == before.data or is_empty(&t))
                and alike(&t, before.ndim, before.shape, before.strides, type_.itemsize))
    return still_buffer(x, array)


cdef bint still_at(object x, const char *home, const ElementType *type_, const Source *s,
                   const Py_ssize_t *strides) noexcept:
    """Whether x is an array that may still be written, lies at `home`, and has this type, these
    strides and the shape of s. The quick look at parameters; what it denies, `still_as` may
    know."""
    cdef const ArrayHead *head = <const ArrayHead *>x
    return (is_array(x, type_) and head.data == home and (head.flags & WRITEABLE) != 0
            and head.ndim == s.ndim and same_axes(head.shape, s.shape, s.ndim)
            and same_axes(head.strides, strides, s.ndim))


cdef bint still_buffer(object x, object array):
    """The same for what only the buffer protocol shows."""
    cdef Py_buffer now, before
    cdef bint result
    try:
        PyObject_GetBuffer(x, &now, PyBUF_FORMAT | PyBUF_STRIDES | PyBUF_WRITABLE)
    except (BufferError, TypeError, ValueError):
        return False
    try:
        PyObject_GetBuffer(array, &before, PyBUF_FORMAT | PyBUF_STRIDES)
        result = (now.buf == before.buf and now.ndim == before.ndim
                  and now.itemsize == before.itemsize and strcmp(now.format, before.format) == 0
                  and same_axes(now.shape, before.shape, now.ndim)
                  and same_axes(now.strides, before.strides, now.ndim))
        PyBuffer_Release(&before)
    finally:
        PyBuffer_Release(&now)
    return result


cdef char *address(object x, bint writable) except? NULL:
    """Where the data of x begins."""
    cdef Py_buffer view
    PyObject_GetBuffer(x, &view, PyBUF_STRIDES | (PyBUF_WRITABLE if writable else 0))
    PyBuffer_Release(&view)
    return <char *>view.buf


def start(array):
    """The address of the first element of an array. NumPy's own ways to it make objects, and crash
    where there is no memory left for these."""
    if HEAD_IS_KNOWN and isinstance(array, NDARRAY):
        return <size_t>(<const ArrayHead *>array).data
    return array.__array_interface__["data"][0]


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
    """Whether each tensor, of a type that was learnt, lies as the array beside it does, of int64
    numbers or of a format."""
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
        if (t.device.type != ON_CPU or t.dtype.lanes != 1 or not has_type(&t, head.descr)
                or not alike(&t, head.ndim, head.shape, head.strides, t.dtype.bits // 8)
                or not (<const char *>t.data + t.byte_offset == head.data or is_empty(&t))):
            return False
    return True


cdef inline bint has_type(const Tensor *t, const PyObject *dtype) noexcept:
    """Whether NumPy's type is that of the numbers."""
    cdef int k
    if t.dtype.code == INTEGER:
        return t.dtype.bits == 64 and dtype == <PyObject *>LONG
    for k in range(formats):
        if FORMATS[k].dtype == dtype:
            return t.dtype.code == FORMATS[k].code and t.dtype.bits == FORMATS[k].bits
    return False


ANYTHING = object()


def has_only(group, tuple keys, tuple values):
    """Whether a plain dict has these very objects, keys and values, in this order, and no others.
    A value may be ANYTHING."""
    cdef PyObject *key
    cdef PyObject *value
    cdef PyObject *expected
    cdef PyObject *any_value = <PyObject *>ANYTHING
    cdef Py_ssize_t place = 0, i = 0
    if type(group) is not dict or len(group) != len(keys) or len(values) != len(keys):
        return False
    while PyDict_Next(group, &place, &key, &value):
        expected = PyTuple_GET_ITEM(values, i)
        if key != PyTuple_GET_ITEM(keys, i) or (value != expected and expected != any_value):
            return False
        i += 1
    return True


def has_these(group, tuple names, tuple values):
    """Whether a plain dict has under these names these very objects, as many as there are names."""
    cdef PyObject *found
    cdef Py_ssize_t i
    if type(group) is not dict or len(values) != len(names):
        return False
    for i in range(len(names)):
        found = PyDict_GetItem(group, names[i])
        if found != <PyObject *>values[i]:
            return False
    return True


cpdef bint held_beside(list objects, Py_ssize_t own):
    """Whether one of the objects has more than `own` references, this list's among them."""
    for x in objects:
        if references(<PyObject *>x) > own + 1:
            return True
    return False
