# cython: language_level=3, cdivision=True
"""The packing kernels. The specification is :mod:`scheduler.reference`; this file only makes it fast."""
from libc.stdint cimport int64_t, uint8_t

cdef int SPREAD = 1


cdef int64_t slack_ppm(
    const int64_t* free, const int64_t* capacity, const int64_t* demand, Py_ssize_t n_resources,
) noexcept nogil:
    cdef Py_ssize_t r
    cdef int64_t slack = 0
    for r in range(n_resources):
        if demand[r] > free[r]:
            return NO_FIT
        if capacity[r] > 0:
            slack += (free[r] - demand[r]) * 1_000_000 // capacity[r]
    return slack


cdef int64_t distance_ppm(
    const int64_t* free, const int64_t* capacity, const int64_t* demand, Py_ssize_t n_resources, Py_ssize_t* first_short,
) noexcept nogil:
    cdef Py_ssize_t r
    cdef int64_t distance = 0, short
    first_short[0] = -1
    for r in range(n_resources):
        short = demand[r] - free[r]
        if short > 0:
            if first_short[0] < 0:
                first_short[0] = r
            distance += short * 1_000_000 // (capacity[r] if capacity[r] > 0 else 1)
    return distance


def pick(
    const int64_t[:, ::1] free,        # IN  (hosts, resources)
    const int64_t[:, ::1] capacity,    # IN  (hosts, resources)
    const int64_t[::1] demand,         # IN  (resources,)
    const uint8_t[::1] eligible,       # IN  (hosts,)
    int policy,                        # IN  0 pack, 1 spread
):
    """See :func:`scheduler.reference.pick`."""
    cdef Py_ssize_t n_hosts = free.shape[0], n_resources = demand.shape[0], h, best = -1
    cdef int64_t slack, best_slack = 0
    check(free, capacity, demand, eligible)
    if policy not in (0, SPREAD):
        raise ValueError(f"unknown policy {policy}")
    if n_hosts == 0 or n_resources == 0:
        raise ValueError("there must be a host and a resource")
    with nogil:
        for h in range(n_hosts):
            if eligible[h]:
                slack = slack_ppm(&free[h, 0], &capacity[h, 0], &demand[0], n_resources)
                if slack != NO_FIT and (best < 0 or (slack > best_slack if policy == SPREAD else slack < best_slack)):
                    best, best_slack = h, slack
    return best, best_slack


def misses(
    const int64_t[:, ::1] free,        # IN  (hosts, resources)
    const int64_t[:, ::1] capacity,    # IN  (hosts, resources)
    const int64_t[::1] demand,         # IN  (resources,)
    const uint8_t[::1] eligible,       # IN  (hosts,)
):
    """See :func:`scheduler.reference.misses`."""
    cdef Py_ssize_t n_hosts = free.shape[0], n_resources = demand.shape[0], h, nearest = -1, first = -1
    cdef int64_t distance, least = 0
    check(free, capacity, demand, eligible)
    if n_hosts == 0 or n_resources == 0:
        raise ValueError("there must be a host and a resource")
    counts = [0] * n_resources
    for h in range(n_hosts):
        if eligible[h]:
            distance = distance_ppm(&free[h, 0], &capacity[h, 0], &demand[0], n_resources, &first)
            if first >= 0:
                counts[first] += 1
                if nearest < 0 or distance < least:
                    nearest, least = h, distance
    return counts, nearest


cdef check(free, capacity, demand, eligible):
    if not (capacity.shape[0] == eligible.shape[0] == free.shape[0]
            and capacity.shape[1] == free.shape[1] == demand.shape[0]):
        raise ValueError("free, capacity, demand and eligible disagree on (hosts, resources)")
