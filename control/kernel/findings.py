"""What is out of step in a cloud, as each service finds it in its own records, and how it is put right.

A check reads one snapshot and says what does not agree in it. A finding that can be mended carries how: the check is made again
inside the transaction that mends, on what is there by then, so that only what is still out of step is changed.
"""
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from control.kernel import quota
from control.kernel.database import Transaction
from protos.internal.v1.quota_pb2 import QuotaLedger

#: Something does not work, or will not; something is odd, or will be trouble.
ERROR, WARNING = "error", "warning"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is out of step."""

    #: What it is about, for people and unique within its check: "server 6f1c... (web-1)".
    subject: str
    what: str
    #: How that comes about, or what it leads to.
    why: str
    severity: str = ERROR
    #: What mending does, or what an operator can do where that is not done here.
    remedy: str = ""
    #: Writes what puts it right, into the transaction that it was found in.
    mend: Callable[[Transaction], None] | None = None
    #: The same for what is not in the store; it looks again itself.
    cure: Callable[[], Awaitable[None]] | None = None

    @property
    def can_be_repaired(self) -> bool:
        return self.mend is not None or self.cure is not None


@dataclass(frozen=True, slots=True)
class Check:
    """Looks at the store alone. `find` is plain, and quick for a fleet of any size: it is run on the event loop."""

    name: str                                                # "compute.quota"
    title: str                                               # what holds where it finds nothing
    find: Callable[[Transaction], Iterable[Finding]]


@dataclass(frozen=True, slots=True)
class Probe:
    """Looks at something else: files, etcd's members, certificates."""

    name: str
    title: str
    look: Callable[[], Awaitable[Iterable[Finding]]]


def ledgers(tx: Transaction, service: str, used: Mapping[str, Mapping[str, int]]) -> Iterator[Finding]:
    """The ledgers of a service that are not what a recount says: project -> resource -> amount.

    Every change of what is counted writes the ledger, so what is mended was counted on the same state.
    """
    known = {ledger.project_id: ledger for ledger in tx.rows(quota.LEDGER) if ledger.service == service}
    for project in sorted(known.keys() | used.keys()):
        ledger, counted = known.get(project), {name: amount for name, amount in used.get(project, {}).items() if amount}
        charged = {name: amount for name, amount in ledger.used.items() if amount} if ledger is not None else {}
        if charged == counted:
            continue
        wrong = ", ".join(f"{name} {charged.get(name, 0)} instead of {counted.get(name, 0)}"
                          for name in sorted(charged.keys() | counted.keys()) if charged.get(name, 0) != counted.get(name, 0))

        def mend(tx: Transaction, project: str = project, counted: Mapping[str, int] = counted) -> None:
            new = tx.get(quota.LEDGER, service, project) or QuotaLedger(service=service, project_id=project)
            new.used.clear()
            new.used.update(counted)
            tx.put(quota.LEDGER, new)

        yield Finding(f"project {project}", f"its ledger of {service} says {wrong}",
                      "It is refused what it has room for, or given what it has not.", remedy="Write down what was counted.",
                      mend=mend)
