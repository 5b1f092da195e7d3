# cython: language_level=3
"""C-level interface of :mod:`scheduler._state`."""
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t

from scheduler._structs cimport Parts, Shape, Tree

cdef enum:
    LOG = 65536                # changed hosts remembered; an index further behind is made anew

cdef class State:
    cdef readonly Py_ssize_t resources
    cdef public int64_t now
    cdef Py_ssize_t n_hosts, host_room, n_alive
    cdef int32_t* signature    # (hosts,) -1: no such host
    cdef int64_t* capacity     # (hosts, resources), rows added up
    cdef int64_t* unclaimed    # (hosts, resources), rows added up
    cdef int64_t* scale        # (hosts, resources): 2**54 // capacity, 0 without any
    cdef Tree** tree           # (hosts,) NULL: one row
    cdef int32_t* first_claim  # (hosts,) -1: none
    cdef int64_t* until        # (hosts,) the latest end of its claims
    cdef uint32_t* stamp       # (hosts,) marks members of the group that is looked at
    cdef int32_t* members      # (hosts,) how many, where stamped
    cdef uint32_t* shunned     # (hosts,) marks hosts to avoid
    cdef int32_t* marked       # (hosts,) the stamped ones
    cdef Py_ssize_t n_marked
    cdef Shape** shapes
    cdef Py_ssize_t n_shapes, shape_room
    cdef int32_t* group_policy # (groups,) -1: no such group
    cdef int32_t* group_most
    cdef int32_t* group_first  # first claim
    cdef Py_ssize_t n_groups
    cdef Py_ssize_t n_claims, claim_room, n_unused
    cdef int32_t* claim_host   # (claims,) -1: none
    cdef int32_t* claim_shape  # -1: amounts of its own
    cdef int32_t* claim_group
    cdef int32_t* claim_next   # of the host
    cdef int32_t* claim_before
    cdef int32_t* group_next
    cdef int32_t* group_before
    cdef int64_t* claim_until
    cdef Parts** claim_parts
    cdef int32_t* unused
    cdef int32_t* log
    cdef uint64_t position

    cdef copy_into(self, State twin)
    cdef int room_for_hosts(self, Py_ssize_t hosts) except -1
    cdef int room_for_claims(self, Py_ssize_t more) except -1
    cdef Shape* shape_at(self, Py_ssize_t shape) except NULL
    cdef int check_group(self, Py_ssize_t group) except -1
    cdef void touch(self, Py_ssize_t host) noexcept nogil
    cdef Py_ssize_t new_claim(self, Py_ssize_t host, Py_ssize_t shape, Py_ssize_t group, int64_t until, Parts* parts) noexcept nogil
    cdef void apply(self, Py_ssize_t claim, int64_t sign) noexcept nogil
    cdef void give_back(self, Py_ssize_t claim) noexcept nogil
    cdef void lasts(self, Py_ssize_t host) noexcept nogil
