"""Reads many keys of etcd page by page, all at one revision, at a cost that grows with their number and no faster.

For each page etcd walks over all keys of the range that it is asked for, however few it answers with: a million keys, a thousand
at a time, to the end each time, are half a billion steps. So each page is asked for of a window that has a few pages at most.
"""
from collections.abc import AsyncIterator
from typing import Any

from control.kernel.etcd_client import Client, prefix_range, range_end, rpc_pb2

#: Records in one page, and seconds that one may take. Larger pages save round trips, and hold etcd and us up for longer.
PAGE, DEADLINE = 1000, 5.0

#: Where a range has no end.
_NO_END = b"\0"


async def pages(client: Client, prefix: str) -> AsyncIterator[Any]:
    """The responses that have the keys below a prefix, in order; one at least. `header.revision` is the first one's.

    A window is the keys that begin with the first `shared` bytes of the one to go on from. One that has more than a page becomes
    as small as what its page had in common; one that had little lets the next be wider.
    Raises AioRpcError: OUT_OF_RANGE where the revision is compacted meanwhile.
    """
    start, end = prefix_range(prefix).values()
    shared = least = len(prefix.encode())
    revision = 0
    while True:
        window = range_end(start[:shared]) if shared > least else end
        if end != _NO_END and not _NO_END < window < end:
            window = end
        response = await client.call(lambda member: member.kv.Range, rpc_pb2.RangeRequest(
            key=start, range_end=window, limit=PAGE, revision=revision), deadline=DEADLINE)
        revision = revision or response.header.revision
        response.header.revision = revision
        yield response
        if response.more:
            first, last = response.kvs[0].key, response.kvs[-1].key
            start, shared = last + b"\0", max(_common(first, last), least)
        elif window == end:
            return
        else:
            start, shared = window, max(shared - (len(response.kvs) < PAGE // 4), least)


def _common(first: bytes, second: bytes) -> int:
    """How many bytes two different keys begin with alike."""
    return next((place for place, (one, other) in enumerate(zip(first, second, strict=False)) if one != other),
                min(len(first), len(second)))
