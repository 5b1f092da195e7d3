"""Whether the hosts are there."""
from collections.abc import Callable, Iterator

from google.protobuf.timestamp_pb2 import Timestamp

from control.kernel import clock, fleet
from control.kernel.database import Transaction
from control.kernel.findings import WARNING, Check, Finding


def checks(now: Callable[[], Timestamp] = clock.now) -> list[Check]:
    """`now` is the clock, to be replaced in tests."""
    def silent(tx: Transaction) -> Iterator[Finding]:
        for host in tx.rows(fleet.HOST):
            if not host.up:
                seconds = now().seconds - host.updated_at.seconds
                yield Finding(f"host {host.name}", f"its agent is not attached since {seconds} s",
                              "What it runs goes on and cannot be changed; nothing new is placed on it.", severity=WARNING,
                              remedy="Look at the host and its agent's log; delete the host where it is gone for good.")

    return [Check("hosts.attached", "Every host's agent is attached.", silent)]
