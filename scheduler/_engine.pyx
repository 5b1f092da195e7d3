# cython: language_level=3, cdivision=True
"""The engine in Cython: the answers of :mod:`scheduler.reference`, found in an index instead of a search.

For each shape that is asked for there is an index: a key for every host (its score, or NEVER) under a tree of minima, 16 to
1, so that the best host is found in a step per level. A change of a host is written to a log; an index catches up with the
log when it is asked next, a host a step, and mostly stops at the first level, where the minimum stays what it was.
"""
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free as release_memory, malloc, realloc
from libc.string cimport memcpy, memset
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

from scheduler import reference
from scheduler.reference import Misses

cdef extern from "stdlib.h" nogil:
    void* aligned_alloc(size_t alignment, size_t size) noexcept

cdef int PACK = 0, SPREAD = 1, FIRST = 2
cdef int ANTI_AFFINITY = 0, AFFINITY = 1, SOFT_ANTI_AFFINITY = 2, SOFT_AFFINITY = 3
cdef int SHARE_BITS = 14, SCORE_BITS = 30, GAP_BITS = 10
cdef int64_t MOST = <int64_t>1 << 40, SCALE = <int64_t>1 << 54
cdef Py_ssize_t TRIES = reference.TRIES
cdef Py_ssize_t LOG = 1 << 16          # changed hosts remembered; an index further behind is made anew
cdef Py_ssize_t MASKED = 64            # hosts hidden one by one; beyond, all keys are looked at


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


cdef void set_key(Index* index, Py_ssize_t host, int32_t key) noexcept nogil:
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


cdef Py_ssize_t least_host(Index* index) noexcept nogil:
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


cdef bint above(Tree* tree, Py_ssize_t top, Py_ssize_t row) noexcept nogil:
    while row != top and row:
        row = tree.parents[row]
    return row == top


cdef int gap_class(int64_t gap) noexcept nogil:
    cdef int bits = 0
    gap = gap >> GAP_BITS if gap > 0 else 0
    while gap:
        bits += 1
        gap >>= 1
    return bits


cdef class Engine:
    """See :class:`scheduler.reference.Engine`: the same methods, and those for many at once.

    `index_bytes` bounds the memory of all indexes; the one that was not asked for longest goes first. Too little makes
    many shapes in turn cost a look at every host each.
    """

    def __cinit__(self, Py_ssize_t resources, size_t index_bytes=512 << 20):
        if resources < 1:
            raise ValueError("there must be a resource class")
        self.resources = resources
        self.most_index_bytes = index_bytes
        self.log = <int32_t*>resized(NULL, LOG, sizeof(int32_t))

    def __dealloc__(self):
        cdef Py_ssize_t i
        for i in range(self.n_hosts):
            if self.tree[i] != NULL:
                free_tree(self.tree[i])
        for i in range(self.n_claims):
            if self.claim_parts[i] != NULL:
                release_memory(self.claim_parts[i])
        for i in range(self.n_shapes):
            self.drop_index(i)
            free_shape(self.shapes[i])
        for memory in ((<size_t>self.signature), (<size_t>self.capacity), (<size_t>self.unclaimed), (<size_t>self.scale),
                       (<size_t>self.tree), (<size_t>self.first_claim), (<size_t>self.until), (<size_t>self.stamp),
                       (<size_t>self.members), (<size_t>self.shunned), (<size_t>self.marked), (<size_t>self.shapes),
                       (<size_t>self.indexes), (<size_t>self.group_policy), (<size_t>self.group_most),
                       (<size_t>self.group_first), (<size_t>self.claim_host), (<size_t>self.claim_shape),
                       (<size_t>self.claim_group), (<size_t>self.claim_next), (<size_t>self.claim_before),
                       (<size_t>self.group_next), (<size_t>self.group_before), (<size_t>self.claim_until),
                       (<size_t>self.claim_parts), (<size_t>self.unused), (<size_t>self.log)):
            release_memory(<void*><size_t>memory)

    def copy(self):
        """The same hosts and claims under the same numbers, free to be planned on. Indexes are made when asked for."""
        cdef Engine twin = Engine(self.resources, self.most_index_bytes)
        cdef Py_ssize_t hosts = self.n_hosts, claims = self.n_claims, i, size
        cdef Parts* parts
        twin.now = self.now
        twin.n_alive = self.n_alive
        twin.room_for_hosts(hosts)
        memcpy(twin.signature, self.signature, hosts * sizeof(int32_t))
        memcpy(twin.capacity, self.capacity, hosts * self.resources * sizeof(int64_t))
        memcpy(twin.unclaimed, self.unclaimed, hosts * self.resources * sizeof(int64_t))
        memcpy(twin.scale, self.scale, hosts * self.resources * sizeof(int64_t))
        memcpy(twin.first_claim, self.first_claim, hosts * sizeof(int32_t))
        memcpy(twin.until, self.until, hosts * sizeof(int64_t))
        for i in range(hosts):
            if self.tree[i] != NULL:
                twin.tree[i] = copied_tree(self.tree[i], self.resources)
        for i in range(self.n_shapes):
            twin.room_for_shape()
            twin.shapes[i] = copied_shape(self.shapes[i], self.resources)
            twin.n_shapes += 1
        twin.room_for_groups(self.n_groups)
        if self.n_groups:
            memcpy(twin.group_policy, self.group_policy, self.n_groups * sizeof(int32_t))
            memcpy(twin.group_most, self.group_most, self.n_groups * sizeof(int32_t))
            memcpy(twin.group_first, self.group_first, self.n_groups * sizeof(int32_t))
        twin.room_for_claims(claims)
        if claims:
            memcpy(twin.claim_host, self.claim_host, claims * sizeof(int32_t))
            memcpy(twin.claim_shape, self.claim_shape, claims * sizeof(int32_t))
            memcpy(twin.claim_group, self.claim_group, claims * sizeof(int32_t))
            memcpy(twin.claim_next, self.claim_next, claims * sizeof(int32_t))
            memcpy(twin.claim_before, self.claim_before, claims * sizeof(int32_t))
            memcpy(twin.group_next, self.group_next, claims * sizeof(int32_t))
            memcpy(twin.group_before, self.group_before, claims * sizeof(int32_t))
            memcpy(twin.claim_until, self.claim_until, claims * sizeof(int64_t))
            memcpy(twin.unused, self.unused, self.n_unused * sizeof(int32_t))
        twin.n_unused = self.n_unused
        for i in range(claims):
            twin.claim_parts[i] = NULL
            if self.claim_parts[i] != NULL:
                parts = self.claim_parts[i]
                twin.claim_parts[i] = new_parts(parts.n, self.resources if self.claim_shape[i] < 0 else 0)
                memcpy(twin.claim_parts[i].rows, parts.rows, parts.n * sizeof(int32_t))
                if self.claim_shape[i] >= 0:
                    twin.claim_parts[i].amounts = twin.shapes[self.claim_shape[i]].parts
                else:
                    memcpy(twin.claim_parts[i].amounts, parts.amounts, parts.n * self.resources * sizeof(int64_t))
        twin.n_claims = claims
        return twin

    # What there is

    def set_host(self, Py_ssize_t host, Py_ssize_t signature, capacity, row_signatures=(0,), parents=(0,)):
        """See the reference."""
        cdef Py_ssize_t rows = len(capacity), r, row, C = self.resources
        cdef int32_t claim
        cdef int64_t total
        cdef Tree* tree = NULL
        reference.check_host(host, signature, capacity, row_signatures, parents, C)
        if host >= 2**31 or signature >= 2**31:
            raise ValueError(f"host {host}: a number is beyond 2**31")
        if host < self.n_hosts and self.signature[host] >= 0:
            claim = self.first_claim[host]
            while claim >= 0:
                if rows < 2 and self.claim_parts[claim] == NULL:
                    pass
                elif self.claim_parts[claim] != NULL:
                    for r in range(self.claim_parts[claim].n):
                        if self.claim_parts[claim].rows[r] >= rows:
                            raise ValueError(f"host {host}: a claim stands on a row that is to go")
                claim = self.claim_next[claim]
        self.room_for_hosts(host + 1)
        if rows > 1:
            tree = new_tree(rows, C)
            for row in range(rows):
                tree.signatures[row] = row_signatures[row]
                tree.parents[row] = parents[row]
                for r in range(C):
                    tree.capacity[row * C + r] = tree.free[row * C + r] = capacity[row][r]
        if self.tree[host] != NULL:
            free_tree(self.tree[host])
        self.tree[host] = tree
        if self.signature[host] < 0:
            self.n_alive += 1
        self.signature[host] = signature
        for r in range(C):
            total = sum([capacity[row][r] for row in range(rows)])
            self.capacity[host * C + r] = self.unclaimed[host * C + r] = total
            self.scale[host * C + r] = SCALE // total if total else 0
        claim = self.first_claim[host]
        while claim >= 0:
            self.apply(claim, -1)
            claim = self.claim_next[claim]
        self.touch(host)

    def remove_host(self, Py_ssize_t host):
        """See the reference."""
        self.check_host_there(host)
        if self.first_claim[host] >= 0:
            raise ValueError(f"host {host} holds claims")
        if self.tree[host] != NULL:
            free_tree(self.tree[host])
            self.tree[host] = NULL
        self.signature[host] = -1
        self.n_alive -= 1
        self.touch(host)

    def add_shape(self, parts, Py_ssize_t groups, bint isolate, subtrees, int policy, weights):
        """See the reference."""
        cdef Py_ssize_t C = self.resources, n = len(parts), part, r
        cdef Shape* shape
        reference.check_shape(parts, groups, subtrees, policy, weights, C)
        self.room_for_shape()
        shape = new_shape(n, len(subtrees), C)
        shape.n_groups = groups
        shape.isolate = isolate
        shape.policy = policy
        shape.shift = max(0, int(sum(weights)).bit_length() + 2 * SHARE_BITS - SCORE_BITS)
        for r in range(C):
            shape.weights[r] = weights[r]
            for part in range(n):
                shape.parts[part * C + r] = parts[part][r]
                shape.demand[r] += shape.parts[part * C + r]
            if shape.demand[r]:
                shape.demanded[shape.n_demanded] = r
                shape.n_demanded += 1
        for part in range(len(subtrees)):
            for group in subtrees[part]:
                shape.subtrees[part] |= <uint32_t>1 << <int>group
        self.shapes[self.n_shapes] = shape
        self.indexes[self.n_shapes] = NULL
        self.n_shapes += 1
        return self.n_shapes - 1

    def judge(self, Py_ssize_t shape, bytes codes):
        """See the reference."""
        cdef Shape* kind = self.shape_at(shape)
        cdef const uint8_t* given = codes
        kind.codes = <uint8_t*>resized(kind.codes, len(codes), 1)
        kind.n_codes = len(codes)
        memcpy(kind.codes, given, len(codes))
        self.drop_index(shape)

    def judge_next(self, Py_ssize_t shape, int code):
        """See the reference."""
        cdef Shape* kind = self.shape_at(shape)
        cdef Py_ssize_t host
        if not 0 <= code <= 255:
            raise ValueError("a code is 0 to 255")
        kind.codes = <uint8_t*>resized(kind.codes, kind.n_codes + 1, 1)
        kind.codes[kind.n_codes] = code
        for host in range(self.n_hosts):
            if self.signature[host] == kind.n_codes:
                self.drop_index(shape)
                break
        kind.n_codes += 1

    def judge_rows(self, Py_ssize_t shape, Py_ssize_t part, bytes codes):
        """See the reference."""
        cdef Shape* kind = self.shape_at(shape)
        cdef const uint8_t* given = codes
        if not 0 <= part < kind.n_parts:
            raise IndexError(f"shape {shape} has no part {part}")
        kind.row_codes[part] = <uint8_t*>resized(kind.row_codes[part], len(codes), 1)
        kind.n_row_codes[part] = len(codes)
        memcpy(kind.row_codes[part], given, len(codes))
        self.drop_index(shape)

    def set_group(self, Py_ssize_t group, int policy, Py_ssize_t most=1):
        """See the reference."""
        if group < 0 or group >= 2**31 or not 0 <= policy <= SOFT_AFFINITY or not 1 <= most < 2**31:
            raise ValueError(f"group {group}: unknown policy, or fewer than one member a host")
        self.room_for_groups(group + 1)
        self.group_policy[group] = policy
        self.group_most[group] = most

    # Placing

    def place(self, Py_ssize_t shape, Py_ssize_t group=-1, only=None, avoid=(), int64_t until=0):
        """See the reference."""
        cdef Py_ssize_t host, claim
        self.shape_at(shape)
        self.check_group(group)
        self.room_for_claims(1)
        self.shun(avoid)
        host = self.choose(shape, group, only, until)
        if host < 0:
            return -1, -1
        claim = self.take(shape, host, group, until)
        if claim < 0:
            raise MemoryError("the scheduler is out of memory")
        return claim, host

    def place_many(self,
                   const int32_t[::1] shapes,      # IN  (requests,)
                   const int32_t[::1] groups,      # IN  (requests,) -1: in none
                   int32_t[::1] claims,            # OUT (requests,) -1: none fits
                   bint all_or_nothing=False):
        """Claim hosts for many, in order; how many were claimed. All or nothing: none, where one does not fit."""
        cdef Py_ssize_t n = shapes.shape[0], i, host, placed = 0
        if groups.shape[0] != n or claims.shape[0] != n:
            raise ValueError("shapes, groups and claims disagree in length")
        for i in range(n):
            self.shape_at(shapes[i])
            self.check_group(groups[i])
        self.room_for_claims(n)
        self.shun(())
        with nogil:
            for i in range(n):
                host = self.best(shapes[i], groups[i], 0)
                claims[i] = self.take(shapes[i], host, groups[i], 0) if host >= 0 else -1
                if claims[i] >= 0:
                    placed += 1
                elif all_or_nothing:
                    break
            if all_or_nothing and placed < n:
                for i in range(placed - 1, -1, -1):
                    self.give_back(claims[i])
                for i in range(n):
                    claims[i] = -1
                placed = 0
        return placed

    def replay(self,
               const int32_t[::1] shapes,          # IN  (operations,) a shape to place, or -1 - i: release what operation i placed
               const int32_t[::1] groups,          # IN  (operations,) -1: in none
               int32_t[::1] claims,                # OUT (operations,) the claim made or released, -1: none
               int32_t[::1] hosts,                 # OUT (operations,) of the claim, -1: none
               int64_t[::1] nanoseconds=None):     # OUT (operations,) what each took, where given
        """Place and release in the order given, as a trace or a busy cloud does; how many were placed.

        Raises ValueError where an operation releases a later one.
        """
        cdef Py_ssize_t n = shapes.shape[0], i, earlier, host, placed = 0, needed = 0
        cdef timespec start, end
        cdef bint timed = nanoseconds is not None
        if groups.shape[0] != n or claims.shape[0] != n or hosts.shape[0] != n or (timed and nanoseconds.shape[0] != n):
            raise ValueError("the arrays disagree in length")
        for i in range(n):
            if shapes[i] >= 0:
                self.shape_at(shapes[i])
                self.check_group(groups[i])
                needed += 1
            elif -1 - shapes[i] >= i or shapes[-1 - shapes[i]] < 0:
                raise ValueError(f"operation {i} releases what is not placed before it")
        self.room_for_claims(needed)
        self.shun(())
        with nogil:
            for i in range(n):
                if timed:
                    clock_gettime(CLOCK_MONOTONIC, &start)
                claims[i] = hosts[i] = -1
                if shapes[i] >= 0:
                    host = self.best(shapes[i], groups[i], 0)
                    if host >= 0:
                        claims[i] = self.take(shapes[i], host, groups[i], 0)
                        hosts[i] = host
                        placed += 1
                else:
                    earlier = -1 - shapes[i]
                    if claims[earlier] >= 0 and hosts[earlier] >= 0:
                        self.give_back(claims[earlier])
                        claims[i], hosts[i] = claims[earlier], hosts[earlier]
                        hosts[earlier] = -2 - hosts[earlier]       # released: not again
                if timed:
                    clock_gettime(CLOCK_MONOTONIC, &end)
                    nanoseconds[i] = (end.tv_sec - start.tv_sec) * 1_000_000_000 + end.tv_nsec - start.tv_nsec
            for i in range(n):
                if hosts[i] < -1:
                    hosts[i] = -2 - hosts[i]
        return placed

    def hold(self, Py_ssize_t host, parts, Py_ssize_t group=-1, int64_t until=0):
        """See the reference."""
        cdef Py_ssize_t n = len(parts), i, r, C = self.resources, claim
        cdef Py_ssize_t rows
        cdef Parts* held
        self.check_group(group)
        self.check_host_there(host)
        rows = 1 if self.tree[host] == NULL else self.tree[host].n
        if not parts or any([not 0 <= row < rows or len(amounts) != C or not all([0 <= amount <= MOST for amount in amounts])
                             for row, amounts in parts]):
            raise ValueError("a part is of no row of the host, or its amounts are out of range")
        self.room_for_claims(1)
        held = new_parts(n, C)
        for i in range(n):
            held.rows[i] = parts[i][0]
            for r in range(C):
                held.amounts[i * C + r] = parts[i][1][r]
        claim = self.new_claim(host, -1, group, until, held)
        return claim

    def hold_many(self,
                  const int32_t[::1] hosts,        # IN  (claims,) hosts of one row, or whose first row is meant
                  const int32_t[::1] shapes,       # IN  (claims,) whose amounts, added up, are held
                  const int32_t[::1] groups,       # IN  (claims,) -1: in none
                  int32_t[::1] claims):            # OUT (claims,)
        """Hold what shapes ask for, whether it fits or not: how a scheduler that starts takes in what is so already."""
        cdef Py_ssize_t n = hosts.shape[0], i
        if shapes.shape[0] != n or groups.shape[0] != n or claims.shape[0] != n:
            raise ValueError("hosts, shapes, groups and claims disagree in length")
        for i in range(n):
            self.check_host_there(hosts[i])
            self.shape_at(shapes[i])
            self.check_group(groups[i])
        self.room_for_claims(n)
        with nogil:
            for i in range(n):
                claims[i] = self.new_claim(hosts[i], shapes[i], groups[i], 0, NULL)

    def release(self, Py_ssize_t claim):
        """See the reference."""
        self.check_claim(claim)
        self.give_back(claim)

    def release_many(self, const int32_t[::1] claims):
        """Release claims, in order. Raises ValueError at the first that is not there; those before it are released."""
        cdef Py_ssize_t i
        for i in range(claims.shape[0]):
            self.check_claim(claims[i])
            self.give_back(claims[i])

    def extend(self, Py_ssize_t claim, int64_t until):
        """See the reference."""
        cdef int64_t before
        self.check_claim(claim)
        before = self.claim_until[claim]
        self.claim_until[claim] = until
        if until > self.until[self.claim_host[claim]]:
            self.until[self.claim_host[claim]] = until
        elif before == self.until[self.claim_host[claim]]:
            self.lasts(self.claim_host[claim])

    # Looking

    def host_of(self, Py_ssize_t claim):
        self.check_claim(claim)
        return self.claim_host[claim]

    def claims_on(self, Py_ssize_t host):
        """See the reference."""
        cdef int32_t claim
        self.check_host_there(host)
        claims = []
        claim = self.first_claim[host]
        while claim >= 0:
            claims.append(claim)
            claim = self.claim_next[claim]
        return claims

    def parts_of(self, Py_ssize_t claim):
        """See the reference."""
        cdef Py_ssize_t C = self.resources, i
        cdef Parts* parts
        self.check_claim(claim)
        parts = self.claim_parts[claim]
        if parts == NULL:
            return [(0, amounts_of(self.shapes[self.claim_shape[claim]].demand, C))]
        return [(parts.rows[i], amounts_of(parts.amounts + i * C, C)) for i in range(parts.n)]

    def free(self, Py_ssize_t host):
        """See the reference."""
        cdef Py_ssize_t C = self.resources, row
        self.check_host_there(host)
        if self.tree[host] == NULL:
            return [list(amounts_of(self.unclaimed + host * C, C))]
        return [list(amounts_of(self.tree[host].free + row * C, C)) for row in range(self.tree[host].n)]

    def score(self, Py_ssize_t shape, Py_ssize_t host):
        """See the reference."""
        cdef Shape* kind = self.shape_at(shape)
        cdef int32_t key
        if not 0 <= host < self.n_hosts:
            return -1
        key = self.key(kind, host)
        return -1 if key == NEVER else key

    def shares(self, Py_ssize_t shape, Py_ssize_t host):
        """What a host would have left of each class, in 2**-14 of its capacity; -1 where it has no capacity of it."""
        cdef Py_ssize_t r
        cdef Shape* kind = self.shape_at(shape)
        self.check_host_there(host)
        return [self.share(host, r, kind.demand[r]) for r in range(self.resources)]

    def misses(self, Py_ssize_t shape, Py_ssize_t group=-1, only=None, avoid=()):
        """See the reference."""
        cdef Shape* kind = self.shape_at(shape)
        cdef Py_ssize_t C = self.resources, host, r, nearest = -1, first
        cdef int64_t lack, distance, least = 0
        cdef int64_t codes[256]
        cdef int64_t not_asked = 0, avoided = 0, grouped = 0, unassigned = 0
        cdef int64_t* lacking
        cdef int code
        cdef int32_t chosen[MOST_PARTS]
        cdef bint asked_all = only is None
        self.check_group(group)
        self.shun(avoid)
        self.count_members(group)
        memset(codes, 0, sizeof(codes))
        wanted = bytearray(self.n_hosts if not asked_all else 0)
        if not asked_all:
            for host in only:
                if 0 <= host < self.n_hosts:
                    wanted[host] = 1
        cdef uint8_t[::1] asked = wanted
        lacking = <int64_t*>calloc(C, sizeof(int64_t))
        if lacking == NULL:
            raise MemoryError("the scheduler is out of memory")
        with nogil:
            for host in range(self.n_hosts):
                if self.signature[host] < 0:
                    continue
                code = kind.codes[self.signature[host]] if self.signature[host] < kind.n_codes else 255
                if not asked_all and not asked[host]:
                    not_asked += 1
                elif self.shunned[host] == self.shun_round:
                    avoided += 1
                elif code:
                    codes[code] += 1
                elif self.forbidden(group, host):
                    grouped += 1
                elif self.key(kind, host) == NEVER:
                    first = -1
                    distance = 0
                    for r in range(C):
                        lack = kind.demand[r] - self.unclaimed[host * C + r]
                        if kind.demand[r] and lack > 0:
                            first = r if first < 0 else first
                            lack = (min(lack, MOST) << 20) // max(self.capacity[host * C + r], <int64_t>1)
                            distance += min(lack, MOST)
                    if first < 0:
                        unassigned += 1
                    else:
                        lacking[first] += 1
                        if nearest < 0 or distance < least:
                            nearest, least = host, distance
        found = Misses(hosts=self.n_alive, not_asked=not_asked, avoided=avoided, codes=[codes[r] for r in range(256)],
                       grouped=grouped, lacking=[lacking[r] for r in range(C)], unassigned=unassigned, nearest=nearest)
        release_memory(lacking)
        if nearest >= 0:
            found.lacks = [max(kind.demand[r] - self.unclaimed[nearest * C + r], <int64_t>0) if kind.demand[r] else 0
                           for r in range(C)]
        return found

    def assign_rows(self, Py_ssize_t shape, Py_ssize_t host):
        """A row for each part of a shape, None where the host's free amounts allow none: `assign` of the reference."""
        cdef Shape* kind = self.shape_at(shape)
        cdef int32_t chosen[MOST_PARTS]
        cdef Py_ssize_t i
        self.check_host_there(host)
        if self.tree[host] == NULL:
            for i in range(kind.n_demanded):
                if kind.demand[kind.demanded[i]] > self.unclaimed[host * self.resources + kind.demanded[i]]:
                    return None
            return [0] * kind.n_parts
        return [chosen[i] for i in range(kind.n_parts)] if self.assign(kind, self.tree[host], chosen) else None

    def bytes_used(self):
        """Bytes by what they are for: hosts, claims, indexes."""
        cdef Py_ssize_t host
        trees = sum([self.tree[host].n * (8 + 16 * self.resources) for host in range(self.n_hosts) if self.tree[host] != NULL])
        return {"hosts": self.host_room * (8 + 24 * self.resources + 40) + trees, "claims": self.claim_room * (8 * 4 + 16),
                "indexes": self.index_bytes}

    # The parts of a choice

    def choose(self, Py_ssize_t shape, Py_ssize_t group, only, int64_t until):
        cdef int32_t* hosts
        cdef Py_ssize_t n, host
        if only is None:
            return self.best(shape, group, until)
        asked = sorted({host for host in only if 0 <= host < self.n_hosts})
        n = len(asked)
        hosts = <int32_t*>resized(NULL, n, sizeof(int32_t))
        for host in range(n):
            hosts[host] = asked[host]
        self.count_members(group)
        host = self.best_of(shape, group, hosts, n, until)
        release_memory(hosts)
        return host

    cdef Py_ssize_t best(self, Py_ssize_t shape, Py_ssize_t group, int64_t until) noexcept nogil:
        """The best of all hosts, those shunned left out; -1 when none fits."""
        cdef Index* index
        cdef Py_ssize_t host, i, other
        cdef int policy
        cdef int32_t key
        if until:
            self.count_members(group)
            return self.best_of(shape, group, NULL, self.n_hosts, until)
        index = self.index(shape)
        if index == NULL:
            self.count_members(group)
            return self.best_of(shape, group, NULL, self.n_hosts, 0)
        if group < 0:
            return self.least_but(index, False, -1)
        self.count_members(group)
        policy = self.group_policy[group]
        if self.n_marked == 0 or policy == ANTI_AFFINITY:
            return self.least_but(index, False, group)
        if policy == SOFT_ANTI_AFFINITY:
            host = self.least_but(index, True, -1)
            if host >= 0:
                return host
        else:
            host = self.best_of(shape, group, self.marked, self.n_marked, 0)
            if host >= 0 or policy == AFFINITY:
                return host
            return self.least_but(index, False, -1)
        return self.best_of(shape, group, self.marked, self.n_marked, 0)

    cdef Py_ssize_t best_of(self, Py_ssize_t shape, Py_ssize_t group, const int32_t* hosts, Py_ssize_t n, int64_t until) noexcept nogil:
        """The best of some hosts (NULL: of the first n), by group, lifetime, score and number. Members are counted."""
        cdef Shape* kind = self.shapes[shape]
        cdef Index* index = self.index(shape)
        cdef Py_ssize_t i, host, best = -1
        cdef int policy = self.group_policy[group] if group >= 0 else -1
        cdef int64_t rank, gap, lasts, best_rank = 0, best_gap = 0
        cdef int32_t key, best_key = 0
        for i in range(n):
            host = hosts[i] if hosts != NULL else i
            key = index.keys[0][host] if index != NULL else self.key(kind, host)
            if key == NEVER or self.shunned[host] == self.shun_round or self.forbidden(group, host):
                continue
            rank = 0
            if policy >= SOFT_ANTI_AFFINITY and self.stamp[host] == self.round_:
                rank = self.members[host] if policy == SOFT_ANTI_AFFINITY else -self.members[host]
            gap = 0
            if until:
                lasts = self.until[host] if self.until[host] > self.now else self.now
                gap = gap_class(until - lasts)
            if (best < 0 or rank < best_rank or (rank == best_rank and (gap < best_gap or (gap == best_gap and (
                    key < best_key or (key == best_key and host < best)))))):
                best, best_rank, best_gap, best_key = host, rank, gap, key
        return best

    cdef Py_ssize_t least_but(self, Index* index, bint all_members, Py_ssize_t group) noexcept nogil:
        """The host with the least key that is not shunned, forbidden by the group, or (all_members) marked as a member.

        Hosts that may not be taken are hidden while the search goes on, and shown again at its end.
        """
        cdef Py_ssize_t hidden[64]
        cdef int32_t keys[64]
        cdef Py_ssize_t n = 0, host = -1, i
        cdef int32_t least = NEVER
        while True:
            host = least_host(index)
            if host < 0 or not (self.shunned[host] == self.shun_round or self.forbidden(group, host)
                                or (all_members and self.stamp[host] == self.round_)):
                break
            if n == MASKED:
                host = -1
                for i in range(self.n_hosts):
                    if index.keys[0][i] < least and not (
                            self.shunned[i] == self.shun_round or self.forbidden(group, i)
                            or (all_members and self.stamp[i] == self.round_)):
                        host, least = i, index.keys[0][i]
                break
            hidden[n] = host
            keys[n] = index.keys[0][host]
            n += 1
            set_key(index, host, NEVER)
        for i in range(n):
            set_key(index, hidden[i], keys[i])
        return host

    cdef void count_members(self, Py_ssize_t group) noexcept nogil:
        """Stamp the hosts that hold members of a group, with how many."""
        cdef int32_t claim
        cdef Py_ssize_t host
        self.n_marked = 0
        self.round_ += 1
        if self.round_ == 0:
            memset(self.stamp, 0, self.host_room * sizeof(uint32_t))
            self.round_ = 1
        if group < 0:
            return
        claim = self.group_first[group]
        while claim >= 0:
            host = self.claim_host[claim]
            if self.stamp[host] != self.round_:
                self.stamp[host] = self.round_
                self.members[host] = 0
                self.marked[self.n_marked] = host
                self.n_marked += 1
            self.members[host] += 1
            claim = self.group_next[claim]

    cdef bint forbidden(self, Py_ssize_t group, Py_ssize_t host) noexcept nogil:
        """Whether the group, whose members are counted, keeps a host from one more."""
        if group < 0:
            return False
        if self.group_policy[group] == ANTI_AFFINITY:
            return self.stamp[host] == self.round_ and self.members[host] >= self.group_most[group]
        return self.group_policy[group] == AFFINITY and self.n_marked > 0 and self.stamp[host] != self.round_

    cdef int32_t key(self, Shape* shape, Py_ssize_t host) noexcept nogil:
        """A host's score, NEVER where it does not take the shape."""
        cdef int32_t signature = self.signature[host]
        cdef const int64_t* free = self.unclaimed + host * self.resources
        cdef int32_t chosen[MOST_PARTS]
        cdef Py_ssize_t i
        if signature < 0 or signature >= shape.n_codes or shape.codes[signature]:
            return NEVER
        if self.tree[host] == NULL:
            for i in range(shape.n_demanded):
                if shape.demand[shape.demanded[i]] > free[shape.demanded[i]]:
                    return NEVER
        elif not self.assign(shape, self.tree[host], chosen):
            return NEVER
        return self.total(shape, host)

    cdef int64_t total(self, Shape* shape, Py_ssize_t host) noexcept nogil:
        cdef Py_ssize_t r, base = host * self.resources
        cdef int64_t share, total = 0
        if shape.policy == PACK:
            for r in range(self.resources):
                share = self.unclaimed[base + r] - shape.demand[r]
                share = (share if share > 0 else 0) * self.scale[base + r] >> 40
                total += shape.weights[r] * share * share
        elif shape.policy == SPREAD:
            for r in range(self.resources):
                if self.scale[base + r]:
                    share = self.unclaimed[base + r] - shape.demand[r]
                    share = (1 << SHARE_BITS) - ((share if share > 0 else 0) * self.scale[base + r] >> 40)
                    total += shape.weights[r] * share * share
        return total >> shape.shift

    cdef int64_t share(self, Py_ssize_t host, Py_ssize_t r, int64_t demand) noexcept nogil:
        cdef int64_t left = self.unclaimed[host * self.resources + r] - demand
        if self.scale[host * self.resources + r] == 0:
            return -1
        return (left if left > 0 else 0) * self.scale[host * self.resources + r] >> 40

    cdef bint assign(self, Shape* shape, Tree* tree, int32_t* chosen) noexcept nogil:
        self.tries = 0
        return self.search(shape, tree, chosen, 0)

    cdef bint search(self, Shape* shape, Tree* tree, int32_t* chosen, Py_ssize_t part) noexcept nogil:
        """Rows for the parts from `part` on; the tree's free amounts are as before when it returns."""
        cdef Py_ssize_t C = self.resources, row, i, other, top
        cdef const int64_t* amounts
        cdef int64_t* free
        cdef int32_t signature
        cdef bint fits, related
        if part == shape.n_parts:
            for i in range(shape.n_subtrees):
                related = False
                for top in range(shape.n_groups):
                    if shape.subtrees[i] >> top & 1:
                        related = True
                        for other in range(shape.n_groups):
                            if shape.subtrees[i] >> other & 1 and not above(tree, chosen[top], chosen[other]):
                                related = False
                                break
                        if related:
                            break
                if not related:
                    return False
            return True
        amounts = shape.parts + part * C
        for row in range(tree.n):
            self.tries += 1
            if self.tries > TRIES:
                return False
            signature = tree.signatures[row]
            if signature >= shape.n_row_codes[part] or shape.row_codes[part][signature]:
                continue
            free = tree.free + row * C
            fits = True
            for i in range(C):
                if amounts[i] and amounts[i] > free[i]:
                    fits = False
                    break
            if fits and shape.isolate and part < shape.n_groups:
                for other in range(part):
                    if chosen[other] == row:
                        fits = False
                        break
            if not fits:
                continue
            for i in range(C):
                free[i] -= amounts[i]
            chosen[part] = row
            fits = self.search(shape, tree, chosen, part + 1)
            for i in range(C):
                free[i] += amounts[i]
            if fits:
                return True
        return False

    # Claims

    cdef Py_ssize_t take(self, Py_ssize_t shape, Py_ssize_t host, Py_ssize_t group, int64_t until) noexcept nogil:
        """A claim of a host that takes the shape; -1 when memory is out. Room for it is there."""
        cdef Shape* kind = self.shapes[shape]
        cdef Parts* parts = NULL
        if self.tree[host] != NULL:
            parts = <Parts*>malloc(sizeof(Parts) + kind.n_parts * sizeof(int32_t))
            if parts == NULL:
                return -1
            parts.n = kind.n_parts
            parts.rows = <int32_t*>(parts + 1)
            parts.amounts = kind.parts
            self.assign(kind, self.tree[host], parts.rows)
        return self.new_claim(host, shape, group, until, parts)

    cdef Py_ssize_t new_claim(self, Py_ssize_t host, Py_ssize_t shape, Py_ssize_t group, int64_t until, Parts* parts) noexcept nogil:
        cdef Py_ssize_t claim
        if self.n_unused:
            self.n_unused -= 1
            claim = self.unused[self.n_unused]
        else:
            claim = self.n_claims
            self.n_claims += 1
        self.claim_host[claim] = host
        self.claim_shape[claim] = shape
        self.claim_group[claim] = group
        self.claim_until[claim] = until
        self.claim_parts[claim] = parts
        self.claim_before[claim] = -1
        self.claim_next[claim] = self.first_claim[host]
        if self.first_claim[host] >= 0:
            self.claim_before[self.first_claim[host]] = claim
        self.first_claim[host] = claim
        if group >= 0:
            self.group_before[claim] = -1
            self.group_next[claim] = self.group_first[group]
            if self.group_first[group] >= 0:
                self.group_before[self.group_first[group]] = claim
            self.group_first[group] = claim
        if until > self.until[host]:
            self.until[host] = until
        self.apply(claim, -1)
        self.touch(host)
        return claim

    cdef void give_back(self, Py_ssize_t claim) noexcept nogil:
        cdef Py_ssize_t host = self.claim_host[claim], group = self.claim_group[claim]
        cdef int32_t after = self.claim_next[claim], before = self.claim_before[claim]
        self.apply(claim, 1)
        if before >= 0:
            self.claim_next[before] = after
        else:
            self.first_claim[host] = after
        if after >= 0:
            self.claim_before[after] = before
        if group >= 0:
            after, before = self.group_next[claim], self.group_before[claim]
            if before >= 0:
                self.group_next[before] = after
            else:
                self.group_first[group] = after
            if after >= 0:
                self.group_before[after] = before
        if self.claim_parts[claim] != NULL:
            release_memory(self.claim_parts[claim])
            self.claim_parts[claim] = NULL
        self.claim_host[claim] = -1
        if self.claim_until[claim] and self.claim_until[claim] == self.until[host]:
            self.lasts(host)
        self.unused[self.n_unused] = claim
        self.n_unused += 1
        self.touch(host)

    cdef void lasts(self, Py_ssize_t host) noexcept nogil:
        """Find the latest end of a host's claims again."""
        cdef int32_t claim = self.first_claim[host]
        self.until[host] = 0
        while claim >= 0:
            if self.claim_until[claim] > self.until[host]:
                self.until[host] = self.claim_until[claim]
            claim = self.claim_next[claim]

    cdef void apply(self, Py_ssize_t claim, int64_t sign) noexcept nogil:
        """Add what a claim holds to what is free, times the sign."""
        cdef Py_ssize_t C = self.resources, host = self.claim_host[claim], r, i
        cdef int64_t* free = self.unclaimed + host * C
        cdef int64_t amount
        cdef const int64_t* demand
        cdef Parts* parts = self.claim_parts[claim]
        cdef Tree* tree = self.tree[host]
        if parts == NULL:
            demand = self.shapes[self.claim_shape[claim]].demand
            for r in range(C):
                free[r] += sign * demand[r]
                if tree != NULL:
                    tree.free[r] += sign * demand[r]
            return
        for i in range(parts.n):
            for r in range(C):
                amount = sign * parts.amounts[i * C + r]
                free[r] += amount
                if tree != NULL:
                    tree.free[parts.rows[i] * C + r] += amount

    # Indexes

    cdef void touch(self, Py_ssize_t host) noexcept nogil:
        self.log[self.position & (LOG - 1)] = host
        self.position += 1

    cdef Index* index(self, Py_ssize_t shape) noexcept nogil:
        """A shape's index, caught up with what changed; NULL where there is no memory for it."""
        cdef Index* index = self.indexes[shape]
        cdef Shape* kind = self.shapes[shape]
        cdef uint64_t behind
        self.ticks += 1
        if index != NULL and index.hosts < self.n_hosts:
            self.drop_index(shape)
            index = NULL
        if index == NULL:
            index = self.new_index()
            self.indexes[shape] = index
            if index == NULL:
                return NULL
            self.fill(kind, index)
        else:
            behind = self.position - index.seen
            if behind >= <uint64_t>LOG or behind > <uint64_t>self.n_hosts:
                self.fill(kind, index)
            else:
                while index.seen != self.position:
                    host = self.log[index.seen & (LOG - 1)]
                    set_key(index, host, self.key(kind, host))
                    index.seen += 1
        index.used = self.ticks
        index.seen = self.position
        return index

    cdef Index* new_index(self) noexcept nogil:
        cdef Index* index
        cdef Py_ssize_t room[LEVELS]
        cdef Py_ssize_t total, i, oldest
        cdef int levels = 0
        cdef uint64_t used
        room[0] = max((self.host_room + 15) // 16, <Py_ssize_t>1) * 16
        total = room[0]
        levels = 1
        while room[levels - 1] > 16:
            room[levels] = ((room[levels - 1] // 16 + 15) // 16) * 16
            total += room[levels]
            levels += 1
        while self.index_bytes and self.index_bytes + total * sizeof(int32_t) > self.most_index_bytes:
            oldest = -1
            used = 0
            for i in range(self.n_shapes):
                if self.indexes[i] != NULL and (oldest < 0 or self.indexes[i].used < used):
                    oldest, used = i, self.indexes[i].used
            if oldest < 0:
                break
            self.drop_index(oldest)
        index = <Index*>malloc(sizeof(Index))
        if index == NULL:
            return NULL
        index.memory = <int32_t*>aligned_alloc(64, (total * sizeof(int32_t) + 63) // 64 * 64)
        if index.memory == NULL:
            release_memory(index)
            return NULL
        index.levels = levels
        index.hosts = self.host_room
        index.seen = index.used = 0
        index.keys[0] = index.memory
        for i in range(1, levels):
            index.keys[i] = index.keys[i - 1] + room[i - 1]
        for i in range(total):
            index.memory[i] = NEVER
        index.bytes = total * sizeof(int32_t)
        self.index_bytes += index.bytes
        return index

    cdef void drop_index(self, Py_ssize_t shape) noexcept nogil:
        cdef Index* index = self.indexes[shape]
        if index == NULL:
            return
        self.index_bytes -= index.bytes
        release_memory(index.memory)
        release_memory(index)
        self.indexes[shape] = NULL

    cdef void fill(self, Shape* shape, Index* index) noexcept nogil:
        """All keys anew, and the minima above them."""
        cdef Py_ssize_t host, place, n = self.n_hosts
        cdef int level
        for host in range(n):
            index.keys[0][host] = self.key(shape, host)
        for level in range(1, index.levels):
            n = (n + 15) // 16
            for place in range(n):
                index.keys[level][place] = least16(index.keys[level - 1] + (place << 4))

    # Room

    cdef int room_for_hosts(self, Py_ssize_t hosts) except -1:
        cdef Py_ssize_t room = self.host_room, i, C = self.resources
        if hosts > room:
            room = max(hosts, room + room // 2, 64)
            self.signature = <int32_t*>resized(self.signature, room, sizeof(int32_t))
            self.capacity = <int64_t*>resized(self.capacity, room * C, sizeof(int64_t))
            self.unclaimed = <int64_t*>resized(self.unclaimed, room * C, sizeof(int64_t))
            self.scale = <int64_t*>resized(self.scale, room * C, sizeof(int64_t))
            self.tree = <Tree**>resized(self.tree, room, sizeof(Tree*))
            self.first_claim = <int32_t*>resized(self.first_claim, room, sizeof(int32_t))
            self.until = <int64_t*>resized(self.until, room, sizeof(int64_t))
            self.stamp = <uint32_t*>resized(self.stamp, room, sizeof(uint32_t))
            self.members = <int32_t*>resized(self.members, room, sizeof(int32_t))
            self.shunned = <uint32_t*>resized(self.shunned, room, sizeof(uint32_t))
            self.marked = <int32_t*>resized(self.marked, room, sizeof(int32_t))
            memset(self.stamp + self.host_room, 0, (room - self.host_room) * sizeof(uint32_t))
            memset(self.shunned + self.host_room, 0, (room - self.host_room) * sizeof(uint32_t))
            self.host_room = room
        for i in range(self.n_hosts, hosts):
            self.signature[i] = -1
            self.tree[i] = NULL
            self.first_claim[i] = -1
            self.until[i] = 0
            memset(self.capacity + i * C, 0, C * sizeof(int64_t))
            memset(self.unclaimed + i * C, 0, C * sizeof(int64_t))
            memset(self.scale + i * C, 0, C * sizeof(int64_t))
        self.n_hosts = max(self.n_hosts, hosts)
        return 0

    def room_for_shape(self):
        cdef Py_ssize_t room = self.shape_room
        if self.n_shapes == room:
            room = max(16, room * 2)
            self.shapes = <Shape**>resized(self.shapes, room, sizeof(Shape*))
            self.indexes = <Index**>resized(self.indexes, room, sizeof(Index*))
            memset(self.indexes + self.n_shapes, 0, (room - self.n_shapes) * sizeof(Index*))
            self.shape_room = room

    def room_for_groups(self, Py_ssize_t groups):
        cdef Py_ssize_t i
        if groups > self.n_groups:
            self.group_policy = <int32_t*>resized(self.group_policy, groups, sizeof(int32_t))
            self.group_most = <int32_t*>resized(self.group_most, groups, sizeof(int32_t))
            self.group_first = <int32_t*>resized(self.group_first, groups, sizeof(int32_t))
            for i in range(self.n_groups, groups):
                self.group_policy[i] = self.group_first[i] = -1
            self.n_groups = groups

    cdef int room_for_claims(self, Py_ssize_t more) except -1:
        cdef Py_ssize_t needed = self.n_claims + more - self.n_unused, room = self.claim_room
        if needed > room:
            room = max(needed, room + room // 2, 64)
            if room >= 2**31:
                raise MemoryError("more than 2**31 claims")
            self.claim_host = <int32_t*>resized(self.claim_host, room, sizeof(int32_t))
            self.claim_shape = <int32_t*>resized(self.claim_shape, room, sizeof(int32_t))
            self.claim_group = <int32_t*>resized(self.claim_group, room, sizeof(int32_t))
            self.claim_next = <int32_t*>resized(self.claim_next, room, sizeof(int32_t))
            self.claim_before = <int32_t*>resized(self.claim_before, room, sizeof(int32_t))
            self.group_next = <int32_t*>resized(self.group_next, room, sizeof(int32_t))
            self.group_before = <int32_t*>resized(self.group_before, room, sizeof(int32_t))
            self.claim_until = <int64_t*>resized(self.claim_until, room, sizeof(int64_t))
            self.claim_parts = <Parts**>resized(self.claim_parts, room, sizeof(Parts*))
            self.unused = <int32_t*>resized(self.unused, room, sizeof(int32_t))
            self.claim_room = room
        return 0

    # Checks

    cdef Shape* shape_at(self, Py_ssize_t shape) except NULL:
        if not 0 <= shape < self.n_shapes:
            raise ValueError(f"there is no shape {shape}")
        return self.shapes[shape]

    cdef int check_group(self, Py_ssize_t group) except -1:
        if group != -1 and (not 0 <= group < self.n_groups or self.group_policy[group] < 0):
            raise ValueError(f"there is no group {group}")
        return 0

    def check_host_there(self, Py_ssize_t host):
        if not 0 <= host < self.n_hosts or self.signature[host] < 0:
            raise ValueError(f"there is no host {host}")

    def check_claim(self, Py_ssize_t claim):
        if not 0 <= claim < self.n_claims or self.claim_host[claim] < 0:
            raise ValueError(f"there is no claim {claim}")

    def shun(self, hosts):
        """Mark the hosts to be left out of the next choice."""
        cdef Py_ssize_t host
        self.shun_round += 1
        if self.shun_round == 0:
            memset(self.shunned, 0, self.host_room * sizeof(uint32_t))
            self.shun_round = 1
        for host in hosts:
            if 0 <= host < self.n_hosts:
                self.shunned[host] = self.shun_round


cdef tuple amounts_of(const int64_t* amounts, Py_ssize_t resources):
    cdef Py_ssize_t r
    return tuple([amounts[r] for r in range(resources)])


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
