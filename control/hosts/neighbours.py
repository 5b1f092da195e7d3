"""What the hosts service asks of the services whose things live on hosts. main.py passes the real ones in."""
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Protocol

from control.kernel.cache import Change
from control.kernel.database import Transaction
from control.kernel.interfaces import DiskMove
from protos.internal.v1.fleet_pb2 import HostRecord
from protos.internal.v1.hosts_pb2 import Gone, HostObject, ObservedPort, ObservedServer, Query, Reply

#: One object that a host shall have: its key, its version, and what makes it when it is needed. While the version is the same, so
#: is the object; None: unknown.
Part = tuple[str, int | None, Callable[[], HostObject]]


class Projection(Protocol):
    """One service's part of what hosts shall be like, computed from the cache alone."""

    def hosts_of(self, change: Change) -> Iterable[str]:
        """The hosts whose objects a change may have touched. Quick, no I/O; naming one too many costs little."""

    def shared_by(self, change: Change) -> Iterable[str]:
        """Names of what a change touches that many hosts may share and none waits for: they hear of it a little later."""

    def hosts_sharing(self, name: str) -> Iterable[str]:
        """The hosts that share a thing that `shared_by` named."""

    def parts_for(self, host: str) -> Iterable[Part]:
        """Every object of this service that the host shall have now."""


class Observer(Protocol):
    """Where a service learns what agents see. Each call may come again with the same content: write only what changed.

    The first two join the transaction that takes in what an agent said at once, ports before servers; a text that they return is
    logged when it is committed.
    """

    def observed_server(self, transaction: Transaction, host: str, server: ObservedServer) -> str: ...

    def observed_port(self, transaction: Transaction, host: str, port: ObservedPort) -> str: ...

    async def gone(self, host: str, gone: Gone) -> None: ...


class Inventories(Protocol):
    """Where what hosts have to give is written down, in the commit that writes the host."""

    def new_id(self, transaction: Transaction, name: str) -> str:
        """The id of a host that was not there before. Raises Conflict where its name is taken."""

    def refresh(self, transaction: Transaction, host: HostRecord) -> None:
        """Take over what a host's inventory says; nothing where that is known."""


class DiskMoves(Protocol):
    """Which disks are to be copied."""

    def disk_move(self, server_id: str) -> DiskMove | None:
        """The move whose disk is to be copied now; None for none."""


class Membership(Protocol):
    """This replica among the others (control.kernel.replicas.Membership, by shape)."""

    @property
    def id(self) -> str: ...

    def sure(self) -> int:
        """A number of the present term while no other replica can see this one gone; else 0. Each term has another one."""


class OtherReplicas(Protocol):
    async def ask_host(self, replica_id: str, host: str, query: Query) -> Reply:
        """A host's answer, by way of the replica that its agent is attached to. Raises Unavailable."""


class ImageFiles(Protocol):
    def read_file(self, file: str, start: int = 0, length: int | None = None) -> AsyncIterator[bytes]:
        """The bytes of a file of image data that lies on this replica. Raises NotFound."""


class ImageBytes(Protocol):
    def read(self, sha512: str) -> AsyncIterator[bytes]:
        """An active image's bytes in chunks of at most 1 MiB. Raises NotFound where no active image has that hash."""
