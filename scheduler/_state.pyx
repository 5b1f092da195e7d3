# cython: language_level=3, cdivision=True
"""What the engine knows: hosts, shapes, server groups and claims, by number, in arrays.

What is free of a host is its capacity less what the claims on it hold, after every call. Each change of a host is logged.
"""
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free as release_memory
from libc.string cimport memcpy, memset

from scheduler import reference
from scheduler._structs cimport (
    Parts, Shape, Tree, copied_shape, copied_tree, free_shape, free_tree, new_parts, new_shape, new_tree, resized,
)

cdef int SHARE_BITS = 14, SCORE_BITS = 30, SOFT_AFFINITY = 3
cdef int64_t MOST = <int64_t>1 << 40, SCALE = <int64_t>1 << 54


cdef class State:
    """See :class:`scheduler.reference.Engine`, whose methods these are."""

    def __cinit__(self, Py_ssize_t resources, *_):
        if resources < 1:
            raise ValueError("there must be a resource class")
        self.resources = resources
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
            free_shape(self.shapes[i])
        for memory in ((<size_t>self.signature), (<size_t>self.capacity), (<size_t>self.unclaimed), (<size_t>self.scale),
                       (<size_t>self.tree), (<size_t>self.first_claim), (<size_t>self.until), (<size_t>self.stamp),
                       (<size_t>self.members), (<size_t>self.shunned), (<size_t>self.marked), (<size_t>self.shapes),
                       (<size_t>self.group_policy), (<size_t>self.group_most),
                       (<size_t>self.group_first), (<size_t>self.claim_host), (<size_t>self.claim_shape),
                       (<size_t>self.claim_group), (<size_t>self.claim_next), (<size_t>self.claim_before),
                       (<size_t>self.group_next), (<size_t>self.group_before), (<size_t>self.claim_until),
                       (<size_t>self.claim_parts), (<size_t>self.unused), (<size_t>self.log)):
            release_memory(<void*><size_t>memory)

    cdef copy_into(self, State twin):
        """Make a new state the same as this one, with the same numbers."""
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
        self.n_shapes += 1
        return self.n_shapes - 1

    def set_group(self, Py_ssize_t group, int policy, Py_ssize_t most=1):
        """See the reference."""
        if group < 0 or group >= 2**31 or not 0 <= policy <= SOFT_AFFINITY or not 1 <= most < 2**31:
            raise ValueError(f"group {group}: unknown policy, or fewer than one member a host")
        self.room_for_groups(group + 1)
        self.group_policy[group] = policy
        self.group_most[group] = most

    # Claims

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

    cdef void touch(self, Py_ssize_t host) noexcept nogil:
        self.log[self.position & (LOG - 1)] = host
        self.position += 1

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
            self.shape_room = room

    def room_for_groups(self, Py_ssize_t groups):
        cdef Py_ssize_t i
        if groups > self.n_groups:
            groups = max(groups, self.n_groups + self.n_groups // 2)
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


cdef tuple amounts_of(const int64_t* amounts, Py_ssize_t resources):
    cdef Py_ssize_t r
    return tuple([amounts[r] for r in range(resources)])
