# cython: language_level=3
"""Hosts by how well they fit a shape: a key for every host under a tree of minima, 16 to 1.

The best host is found in a step per level; a changed key mostly stops at the first, where the minimum stays what it was.
"""
from libc.stdint cimport int32_t, uint64_t
from libc.stdlib cimport free as release_memory
from libc.stdlib cimport malloc

cdef extern from "_scan.h" nogil:
    int32_t least16(const int32_t* keys) noexcept     # of 16 keys on a 16-byte boundary
    int first16(const int32_t* keys, int32_t key) noexcept

cdef extern from "stdlib.h" nogil:
    void* aligned_alloc(size_t alignment, size_t size) noexcept

cdef enum:
    NEVER = 0x7fffffff         # the key of a host that does not take a shape
    LEVELS = 8                 # 16**8 hosts

cdef struct Index:             # hosts by how well they fit a shape: a tree of minima, 16 to 1
    int32_t* memory
    size_t bytes
    int32_t* keys[LEVELS]      # keys[0]: a key for every host
    int levels
    Py_ssize_t hosts           # room for so many
    uint64_t seen              # position in the log of changed hosts up to which the keys are right
    uint64_t used              # when last asked



cdef inline size_t index_size(Py_ssize_t hosts, Py_ssize_t* room, int* levels) noexcept nogil:
    """The bytes of an index for so many hosts, and the keys of each of its levels."""
    cdef Py_ssize_t total
    cdef int level = 1
    room[0] = max((hosts + 15) // 16, <Py_ssize_t>1) * 16
    total = room[0]
    while room[level - 1] > 16:
        room[level] = ((room[level - 1] // 16 + 15) // 16) * 16
        total += room[level]
        level += 1
    levels[0] = level
    return total * sizeof(int32_t)


cdef inline Index* new_index(Py_ssize_t hosts) noexcept nogil:
    """An index in which no host takes the shape; NULL where memory is out."""
    cdef Py_ssize_t room[LEVELS]
    cdef int levels = 0
    cdef size_t size = index_size(hosts, room, &levels), i
    cdef Index* index = <Index*>malloc(sizeof(Index))
    if index == NULL:
        return NULL
    index.memory = <int32_t*>aligned_alloc(64, (size + 63) // 64 * 64)
    if index.memory == NULL:
        release_memory(index)
        return NULL
    index.bytes, index.levels, index.hosts = size, levels, hosts
    index.seen = index.used = 0
    index.keys[0] = index.memory
    for i in range(1, levels):
        index.keys[i] = index.keys[i - 1] + room[i - 1]
    for i in range(size // sizeof(int32_t)):
        index.memory[i] = NEVER
    return index


cdef inline void free_index(Index* index) noexcept nogil:
    release_memory(index.memory)
    release_memory(index)


cdef inline void raise_minima(Index* index, Py_ssize_t hosts) noexcept nogil:
    """All minima anew, after the keys of the first hosts were set."""
    cdef Py_ssize_t place
    cdef int level
    for level in range(1, index.levels):
        hosts = (hosts + 15) // 16
        for place in range(hosts):
            index.keys[level][place] = least16(index.keys[level - 1] + (place << 4))


cdef inline void set_key(Index* index, Py_ssize_t host, int32_t key) noexcept nogil:
    """Change a key, and the minima above it as far as they change."""
    cdef int level
    cdef int32_t* keys = index.keys[0]
    cdef int32_t before = keys[host], least
    cdef Py_ssize_t place = host
    if before == key:
        return
    keys[place] = key
    for level in range(1, index.levels):
        place >>= 4
        least = index.keys[level][place]
        if key >= least:
            if before != least:
                return
            key = least16(keys + (place << 4))
            if key == least:
                return
        before = least
        keys = index.keys[level]
        keys[place] = key


cdef inline Py_ssize_t least_host(Index* index) noexcept nogil:
    """The first host with the least key, -1 where all are NEVER."""
    cdef int level = index.levels - 1
    cdef int32_t least = least16(index.keys[level])
    cdef Py_ssize_t place
    if least == NEVER:
        return -1
    place = first16(index.keys[level], least)
    while level > 0:
        level -= 1
        place = (place << 4) + first16(index.keys[level] + (place << 4), least)
    return place
