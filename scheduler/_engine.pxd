# cython: language_level=3
"""C-level interface of :mod:`scheduler._engine`."""
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t

cdef extern from "_scan.h" nogil:
    int32_t least16(const int32_t* keys) noexcept     # of 16 keys on a 16-byte boundary
    int first16(const int32_t* keys, int32_t key) noexcept

cdef enum:
    NEVER = 0x7fffffff         # the key of a host that does not take a shape
    LEVELS = 8                 # 16**8 hosts
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

cdef struct Index:             # hosts by how well they fit a shape: a tree of minima, 16 to 1
    int32_t* memory
    size_t bytes
    int32_t* keys[LEVELS]      # keys[0]: a key for every host
    int levels
    Py_ssize_t hosts           # room for so many
    uint64_t seen              # position in the log of changed hosts up to which the keys are right
    uint64_t used              # when last asked

cdef class Engine:
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
    cdef uint32_t round_, shun_round
    cdef Shape** shapes
    cdef Index** indexes
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
    cdef uint64_t position, ticks
    cdef size_t index_bytes, most_index_bytes
    cdef Py_ssize_t tries

    cdef int room_for_hosts(self, Py_ssize_t hosts) except -1
    cdef int room_for_claims(self, Py_ssize_t more) except -1
    cdef Shape* shape_at(self, Py_ssize_t shape) except NULL
    cdef int check_group(self, Py_ssize_t group) except -1
    cdef void touch(self, Py_ssize_t host) noexcept nogil
    cdef int32_t key(self, Shape* shape, Py_ssize_t host) noexcept nogil
    cdef int64_t total(self, Shape* shape, Py_ssize_t host) noexcept nogil
    cdef int64_t share(self, Py_ssize_t host, Py_ssize_t r, int64_t demand) noexcept nogil
    cdef bint assign(self, Shape* shape, Tree* tree, int32_t* chosen) noexcept nogil
    cdef bint search(self, Shape* shape, Tree* tree, int32_t* chosen, Py_ssize_t part) noexcept nogil
    cdef Index* index(self, Py_ssize_t shape) noexcept nogil
    cdef Index* new_index(self) noexcept nogil
    cdef void drop_index(self, Py_ssize_t shape) noexcept nogil
    cdef void fill(self, Shape* shape, Index* index) noexcept nogil
    cdef void count_members(self, Py_ssize_t group) noexcept nogil
    cdef bint forbidden(self, Py_ssize_t group, Py_ssize_t host) noexcept nogil
    cdef Py_ssize_t least_but(self, Index* index, bint all_members, Py_ssize_t group) noexcept nogil
    cdef Py_ssize_t best(self, Py_ssize_t shape, Py_ssize_t group, int64_t until) noexcept nogil
    cdef Py_ssize_t best_of(self, Py_ssize_t shape, Py_ssize_t group, const int32_t* hosts, Py_ssize_t n, int64_t until) noexcept nogil
    cdef Py_ssize_t take(self, Py_ssize_t shape, Py_ssize_t host, Py_ssize_t group, int64_t until) noexcept nogil
    cdef Py_ssize_t new_claim(self, Py_ssize_t host, Py_ssize_t shape, Py_ssize_t group, int64_t until, Parts* parts) noexcept nogil
    cdef void apply(self, Py_ssize_t claim, int64_t sign) noexcept nogil
    cdef void give_back(self, Py_ssize_t claim) noexcept nogil
    cdef void lasts(self, Py_ssize_t host) noexcept nogil
