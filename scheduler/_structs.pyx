# cython: language_level=3, cdivision=True
"""The structs that the engine is made of: made, copied and given back. A function that makes one raises MemoryError."""
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t
from libc.stdlib cimport calloc, realloc
from libc.stdlib cimport free as release_memory
from libc.string cimport memcpy


cdef void* resized(void* memory, size_t count, size_t size) except NULL:
    memory = realloc(memory, max(count, 1) * size)
    if memory == NULL:
        raise MemoryError("the scheduler is out of memory")
    return memory


cdef void* twin_of(const void* memory, size_t count, size_t size) except NULL:
    cdef void* twin = resized(NULL, count, size)
    if count:
        memcpy(twin, memory, count * size)
    return twin


cdef Tree* new_tree(Py_ssize_t rows, Py_ssize_t resources) except NULL:
    cdef Tree* tree = <Tree*>resized(NULL, sizeof(Tree) + rows * (2 * resources * sizeof(int64_t) + 2 * sizeof(int32_t)), 1)
    tree.n = rows
    tree.capacity = <int64_t*>(tree + 1)
    tree.free = tree.capacity + rows * resources
    tree.signatures = <int32_t*>(tree.free + rows * resources)
    tree.parents = tree.signatures + rows
    return tree


cdef Tree* copied_tree(Tree* tree, Py_ssize_t resources) except NULL:
    cdef Tree* twin = new_tree(tree.n, resources)
    memcpy(twin.capacity, tree.capacity, tree.n * (2 * resources * sizeof(int64_t) + 2 * sizeof(int32_t)))
    return twin


cdef void free_tree(Tree* tree):
    release_memory(tree)


cdef Parts* new_parts(Py_ssize_t n, Py_ssize_t resources) except NULL:
    """Parts with amounts of their own; resources 0: without."""
    cdef Parts* parts = <Parts*>resized(NULL, sizeof(Parts) + n * (resources * sizeof(int64_t) + sizeof(int32_t)), 1)
    parts.n = n
    parts.amounts = <int64_t*>(parts + 1)
    parts.rows = <int32_t*>(parts.amounts + n * resources)
    return parts


cdef Shape* new_shape(Py_ssize_t parts, Py_ssize_t subtrees, Py_ssize_t resources) except NULL:
    cdef Shape* shape = <Shape*>calloc(1, sizeof(Shape))
    if shape == NULL:
        raise MemoryError("the scheduler is out of memory")
    shape.n_parts, shape.n_subtrees = parts, subtrees
    shape.parts = <int64_t*>calloc(parts * resources, sizeof(int64_t))
    shape.demand = <int64_t*>calloc(resources, sizeof(int64_t))
    shape.weights = <int64_t*>calloc(resources, sizeof(int64_t))
    shape.demanded = <int32_t*>calloc(resources, sizeof(int32_t))
    shape.row_codes = <uint8_t**>calloc(parts, sizeof(uint8_t*))
    shape.n_row_codes = <Py_ssize_t*>calloc(parts, sizeof(Py_ssize_t))
    shape.subtrees = <uint32_t*>calloc(subtrees + 1, sizeof(uint32_t))
    if (shape.parts == NULL or shape.demand == NULL or shape.weights == NULL or shape.demanded == NULL
            or shape.row_codes == NULL or shape.n_row_codes == NULL or shape.subtrees == NULL):
        free_shape(shape)
        raise MemoryError("the scheduler is out of memory")
    return shape


cdef Shape* copied_shape(Shape* shape, Py_ssize_t resources) except NULL:
    cdef Shape* twin = new_shape(shape.n_parts, shape.n_subtrees, resources)
    cdef Py_ssize_t part
    twin.n_groups, twin.n_codes, twin.n_demanded = shape.n_groups, shape.n_codes, shape.n_demanded
    twin.isolate, twin.policy, twin.shift = shape.isolate, shape.policy, shape.shift
    memcpy(twin.parts, shape.parts, shape.n_parts * resources * sizeof(int64_t))
    memcpy(twin.demand, shape.demand, resources * sizeof(int64_t))
    memcpy(twin.weights, shape.weights, resources * sizeof(int64_t))
    memcpy(twin.demanded, shape.demanded, resources * sizeof(int32_t))
    memcpy(twin.subtrees, shape.subtrees, shape.n_subtrees * sizeof(uint32_t))
    twin.codes = <uint8_t*>twin_of(shape.codes, shape.n_codes, 1)
    for part in range(shape.n_parts):
        twin.n_row_codes[part] = shape.n_row_codes[part]
        twin.row_codes[part] = <uint8_t*>twin_of(shape.row_codes[part], shape.n_row_codes[part], 1)
    return twin


cdef void free_shape(Shape* shape):
    cdef Py_ssize_t part
    if shape.row_codes != NULL:
        for part in range(shape.n_parts):
            release_memory(shape.row_codes[part])
    release_memory(shape.parts)
    release_memory(shape.demand)
    release_memory(shape.weights)
    release_memory(shape.demanded)
    release_memory(shape.codes)
    release_memory(shape.row_codes)
    release_memory(shape.n_row_codes)
    release_memory(shape.subtrees)
    release_memory(shape)
