# cython: language_level=3
"""C-level interface of :mod:`scheduler._structs`."""
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t

cdef enum:
    MOST_PARTS = 32

cdef struct Shape:
    Py_ssize_t n_parts, n_groups, n_codes, n_subtrees, n_demanded
    bint isolate
    int policy, shift
    int64_t* parts             # (parts, resources)
    int64_t* demand            # (resources,): the parts added up
    int64_t* weights           # (resources,)
    int32_t* demanded          # (n_demanded,): the classes of which something is asked
    uint8_t* codes             # (n_codes,) by host signature
    uint8_t** row_codes        # (parts,) each by row signature
    Py_ssize_t* n_row_codes    # (parts,)
    uint32_t* subtrees         # (n_subtrees,): a bit for each group

cdef struct Tree:              # the rows of a host that has several
    Py_ssize_t n
    int32_t* signatures        # (rows,)
    int32_t* parents           # (rows,)
    int64_t* capacity          # (rows, resources)
    int64_t* free              # (rows, resources)

cdef struct Parts:             # what a claim holds where it is not just its shape's demand on the first row
    Py_ssize_t n
    int32_t* rows              # (n,)
    int64_t* amounts           # (n, resources); of the shape's where the claim has one

cdef void* resized(void* memory, size_t count, size_t size) except NULL
cdef void* twin_of(const void* memory, size_t count, size_t size) except NULL
cdef Tree* new_tree(Py_ssize_t rows, Py_ssize_t resources) except NULL
cdef Tree* copied_tree(Tree* tree, Py_ssize_t resources) except NULL
cdef void free_tree(Tree* tree)
cdef Parts* new_parts(Py_ssize_t n, Py_ssize_t resources) except NULL
cdef Shape* new_shape(Py_ssize_t parts, Py_ssize_t subtrees, Py_ssize_t resources) except NULL
cdef Shape* copied_shape(Shape* shape, Py_ssize_t resources) except NULL
cdef void free_shape(Shape* shape)
