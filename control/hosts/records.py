"""What is written of a host when its agent comes, is missed, is fenced, and is let in again. Each is one small commit.

Every one of them rewrites the host's record, so of two that are decided on the same state one is decided again.
"""
import logging

from control.hosts.neighbours import Inventories
from control.kernel import clock, fleet
from control.kernel.database import Transaction
from control.kernel.errors import Conflict
from protos.internal.v1.fleet_pb2 import HostRecord
from protos.internal.v1.hosts_pb2 import Hello

log = logging.getLogger(__name__)


def attach(transaction: Transaction, hello: Hello, inventories: Inventories, replica: str, automatic: bool) -> HostRecord:
    """An agent came to this replica. Its host is up, unless it was fenced since: then once it is readmitted.

    Where all that is so already, it is confirmed and not written.

    Args:
      automatic: agents get leases.

    Raises Conflict while an operator says that the host is off.
    """
    host = transaction.get(fleet.HOST, hello.host)
    if host is None:
        host = HostRecord(name=hello.host, id=inventories.new_id(transaction, hello.host), created_at=clock.now())
    if host.forced_down:
        raise Conflict("host.forced_down", f"An operator forced host {host.name} down: its agent is let in when that is taken "
                                           "back (openstack compute service set --up).")
    before = HostRecord()
    before.CopyFrom(host)
    host.inventory.CopyFrom(hello.inventory)
    host.replica, host.leased = replica, hello.leased and automatic
    if host.epoch <= hello.epoch:
        host.epoch = hello.epoch
        _let_in(host)
    if host == before:
        transaction.guard_unchanged(fleet.HOST, host.name)
    else:
        host.updated_at.CopyFrom(clock.now())
        transaction.put(fleet.HOST, host)
    inventories.refresh(transaction, host)
    return host


def readmit(transaction: Transaction, name: str, replica: str, epoch: int) -> bool:
    """A host that was fenced holds nothing any more that is not its own; whether that still says something."""
    host = transaction.get(fleet.HOST, name)
    if host is None or host.replica != replica or host.epoch != epoch or host.up:
        return False
    _let_in(host)
    host.updated_at.CopyFrom(clock.now())
    transaction.put(fleet.HOST, host)
    return True


def leased(transaction: Transaction, name: str, replica: str) -> None:
    """An agent says that its guests are bound by their lease."""
    host = transaction.get(fleet.HOST, name)
    if host is not None and host.replica == replica and not host.leased:
        host.leased = True
        transaction.put(fleet.HOST, host)


def down(transaction: Transaction, name: str, replica: str) -> bool:
    """A host that a replica held is missed; whether it was that replica's still."""
    host = transaction.get(fleet.HOST, name)
    if host is None or host.replica != replica or not (host.up or host.replica):
        return False
    host.up, host.replica = False, ""
    host.updated_at.CopyFrom(clock.now())
    transaction.put(fleet.HOST, host)
    return True


def fence(transaction: Transaction, name: str) -> bool:
    """Nothing runs on a host that is down; whether that was not known."""
    host = transaction.get(fleet.HOST, name)
    if host is None or host.up or host.replica or host.HasField("fenced_at"):
        return False
    fleet.fence(host, clock.now())
    transaction.put(fleet.HOST, host)
    return True


def strangers(transaction: Transaction, name: str, server_ids: list[str]) -> None:
    """An agent says which servers of this cloud run there that the state does not know; it leaves them alone."""
    host = transaction.get(fleet.HOST, name)
    if host is None or list(host.strangers) == server_ids:
        return
    if server_ids:
        log.warning("host %s: runs servers that the state does not know: %s", name, ", ".join(server_ids))
    host.strangers[:] = server_ids
    transaction.put(fleet.HOST, host)


def _let_in(host: HostRecord) -> None:
    host.up = True
    host.ClearField("fenced_at")
