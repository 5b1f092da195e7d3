# cython: language_level=3, cdivision=True
"""The engine in Cython: the answers of :mod:`scheduler.reference`, found in an index instead of a search.

For each shape that is asked for there is an index (:mod:`scheduler._index`) with a key for every host: its score, or NEVER.
A change of a host is written to a log; an index catches up with the log when it is asked next.
"""
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, malloc
from libc.stdlib cimport free as release_memory
from libc.string cimport memcpy, memset
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

from scheduler import reference
from scheduler._index cimport (
    LEVELS, NEVER, Index, free_index, index_size, least16, least_host, new_index, raise_minima, set_key,
)
from scheduler._state cimport LOG, State
from scheduler._structs cimport MOST_PARTS, Parts, Shape, Tree, resized
from scheduler.reference import Misses

cdef int PACK = 0, SPREAD = 1, FIRST = 2
cdef int ANTI_AFFINITY = 0, AFFINITY = 1, SOFT_ANTI_AFFINITY = 2, SOFT_AFFINITY = 3
cdef int SHARE_BITS = 14, SCORE_BITS = 30, GAP_BITS = 10
cdef int64_t MOST = <int64_t>1 << 40
cdef Py_ssize_t TRIES = reference.TRIES
cdef Py_ssize_t MASKED = 64            # hosts hidden one by one; beyond, all keys are looked at


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


cdef class Engine(State):
    """See :class:`scheduler.reference.Engine`: the same methods, and those for many at once.

    `index_bytes` bounds the memory of all indexes; the one that was not asked for longest goes first. Too little makes
    many shapes in turn cost a look at every host each.
    """

    def __cinit__(self, Py_ssize_t resources, size_t index_bytes=512 << 20):
        self.most_index_bytes = index_bytes

    def __dealloc__(self):
        cdef Py_ssize_t shape
        for shape in range(self.n_indexes):
            self.drop_index(shape)
        release_memory(self.indexes)

    def copy(self):
        """The same hosts and claims under the same numbers, free to be planned on. Indexes are made when asked for."""
        cdef Engine twin = Engine(self.resources, self.most_index_bytes)
        self.copy_into(twin)
        twin.room_for_indexes()
        return twin

    # What there is

    def add_shape(self, parts, Py_ssize_t groups, bint isolate, subtrees, int policy, weights):
        """See the reference."""
        shape = State.add_shape(self, parts, groups, isolate, subtrees, policy, weights)
        self.room_for_indexes()
        return shape

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
        cdef Py_ssize_t n = shapes.shape[0], i, earlier, host, placed = 0, live = 0, needed = 0
        cdef timespec start, end
        cdef bint timed = nanoseconds is not None
        cdef uint8_t[::1] released = bytearray(n)
        if groups.shape[0] != n or claims.shape[0] != n or hosts.shape[0] != n or (timed and nanoseconds.shape[0] != n):
            raise ValueError("the arrays disagree in length")
        for i in range(n):
            if shapes[i] >= 0:
                self.shape_at(shapes[i])
                self.check_group(groups[i])
                live += 1
                needed = max(needed, live)
            elif -1 - shapes[i] >= i or shapes[-1 - shapes[i]] < 0:
                raise ValueError(f"operation {i} releases what is not placed before it")
            elif not released[-1 - shapes[i]]:
                released[-1 - shapes[i]] = 1
                live -= 1
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

    # Looking

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

    # Indexes

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
            self.make_room_for_index()
            index = self.indexes[shape] = new_index(self.host_room)
            if index == NULL:
                return NULL
            self.index_bytes += index.bytes
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

    def room_for_indexes(self):
        self.indexes = <Index**>resized(self.indexes, self.n_shapes, sizeof(Index*))
        while self.n_indexes < self.n_shapes:
            self.indexes[self.n_indexes] = NULL
            self.n_indexes += 1

    cdef void make_room_for_index(self) noexcept nogil:
        """Drop indexes, those that were not asked for longest first, until one more is within the bound."""
        cdef Py_ssize_t room[LEVELS]
        cdef Py_ssize_t i, oldest
        cdef int levels = 0
        cdef size_t size = index_size(self.host_room, room, &levels)
        while self.index_bytes and self.index_bytes + size > self.most_index_bytes:
            oldest = -1
            for i in range(self.n_shapes):
                if self.indexes[i] != NULL and (oldest < 0 or self.indexes[i].used < self.indexes[oldest].used):
                    oldest = i
            self.drop_index(oldest)

    cdef void drop_index(self, Py_ssize_t shape) noexcept nogil:
        if self.indexes[shape] != NULL:
            self.index_bytes -= self.indexes[shape].bytes
            free_index(self.indexes[shape])
            self.indexes[shape] = NULL

    cdef void fill(self, Shape* shape, Index* index) noexcept nogil:
        """All keys anew, and the minima above them."""
        cdef Py_ssize_t host
        for host in range(self.n_hosts):
            index.keys[0][host] = self.key(shape, host)
        raise_minima(index, self.n_hosts)

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
