# cython: language_level=3
"""C-level interface of :mod:`scheduler._engine`."""
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t

from scheduler._index cimport Index
from scheduler._state cimport State
from scheduler._structs cimport Shape, Tree

cdef class Engine(State):
    cdef Index** indexes       # (shapes,) NULL: not asked for yet
    cdef Py_ssize_t n_indexes
    cdef size_t index_bytes, most_index_bytes
    cdef uint64_t ticks
    cdef uint32_t round_, shun_round
    cdef Py_ssize_t tries

    cdef int32_t key(self, Shape* shape, Py_ssize_t host) noexcept nogil
    cdef int64_t total(self, Shape* shape, Py_ssize_t host) noexcept nogil
    cdef int64_t share(self, Py_ssize_t host, Py_ssize_t r, int64_t demand) noexcept nogil
    cdef bint assign(self, Shape* shape, Tree* tree, int32_t* chosen) noexcept nogil
    cdef bint search(self, Shape* shape, Tree* tree, int32_t* chosen, Py_ssize_t part) noexcept nogil
    cdef Index* index(self, Py_ssize_t shape) noexcept nogil
    cdef void make_room_for_index(self) noexcept nogil
    cdef void drop_index(self, Py_ssize_t shape) noexcept nogil
    cdef void fill(self, Shape* shape, Index* index) noexcept nogil
    cdef void count_members(self, Py_ssize_t group) noexcept nogil
    cdef bint forbidden(self, Py_ssize_t group, Py_ssize_t host) noexcept nogil
    cdef Py_ssize_t least_but(self, Index* index, bint all_members, Py_ssize_t group) noexcept nogil
    cdef Py_ssize_t best(self, Py_ssize_t shape, Py_ssize_t group, int64_t until) noexcept nogil
    cdef Py_ssize_t best_of(self, Py_ssize_t shape, Py_ssize_t group, const int32_t* hosts, Py_ssize_t n, int64_t until) noexcept nogil
    cdef Py_ssize_t take(self, Py_ssize_t shape, Py_ssize_t host, Py_ssize_t group, int64_t until) noexcept nogil
