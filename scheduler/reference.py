"""What the scheduler means, in plain Python: the oracle the Cython kernel is tested against."""

PACK, SPREAD = 0, 1


def pick(free, capacity, demand, eligible, policy):
    """Index of the host to take and its slack, or (-1, 0) when none fits.

    Args:
      free, capacity: (hosts, resources) int64; each resource in its own unit (vCPU, MiB, GiB), capacity 0 to 2**40,
        free at most capacity; below zero where a host is over-full.
      demand: (resources,) int64, same units, 0 to 2**40.
      eligible: (hosts,) uint8, 1 where the filters passed.
      policy: PACK takes the least slack (best fit), SPREAD the most (worst fit).

    Slack is the sum over resources of (free - demand) / capacity in parts per million, each floored: integers, so that
    both implementations agree to the last bit. A resource without capacity adds nothing. Ties go to the lowest index.
    Heuristics for vector bin packing: Panigrahy et al. 2011.

    Raises:
      ValueError: the arrays disagree on (hosts, resources), there is no host or no resource, or the policy is unknown.
    """
    hosts, resources = len(free), len(demand)
    _check(free, capacity, demand, eligible)
    if policy not in (PACK, SPREAD):
        raise ValueError(f"unknown policy {policy}")
    best, best_slack = -1, 0
    for h in range(hosts):
        if not eligible[h] or any(demand[r] > free[h][r] for r in range(resources)):
            continue
        slack = sum((int(free[h][r]) - int(demand[r])) * 1_000_000 // int(capacity[h][r])
                    for r in range(resources) if capacity[h][r] > 0)
        if best < 0 or (slack < best_slack if policy == PACK else slack > best_slack):
            best, best_slack = h, slack
    return best, best_slack


def misses(free, capacity, demand, eligible):
    """Why eligible hosts do not take a demand: (counts per resource, index of the nearest miss).

    A host counts for the first resource of which it has too little. The nearest miss is the host whose shortages, each
    as a share of capacity in parts per million (floored; a resource without capacity counts as 1,000,000 a unit), add up
    to least, -1 when no eligible host misses. Ties go to the lowest index. Arguments and errors as in pick().
    """
    _check(free, capacity, demand, eligible)
    counts, nearest, least = [0] * len(demand), -1, 0
    for h in range(len(free)):
        short = [max(int(demand[r]) - int(free[h][r]), 0) for r in range(len(demand))]
        if not eligible[h] or not any(short):
            continue
        counts[next(r for r, amount in enumerate(short) if amount)] += 1
        distance = sum(amount * 1_000_000 // max(int(capacity[h][r]), 1) for r, amount in enumerate(short))
        if nearest < 0 or distance < least:
            nearest, least = h, distance
    return counts, nearest


def _check(free, capacity, demand, eligible):
    if len(free) == 0 or len(demand) == 0:
        raise ValueError("there must be a host and a resource")
    if not (len(capacity) == len(eligible) == len(free)
            and all(len(row) == len(demand) for rows in (free, capacity) for row in rows)):
        raise ValueError("free, capacity, demand and eligible disagree on (hosts, resources)")
