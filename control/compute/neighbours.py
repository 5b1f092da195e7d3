"""What compute asks of other services inside its own decisions. main.py passes the real ones in.

A verb that takes a transaction reads and writes through it, so that a server, its ports, its allocation and its quota charge
are one commit.
"""
from collections.abc import Collection, Iterable, Sequence
from typing import Protocol

from control.kernel.caller import Caller
from control.kernel.database import Transaction
from control.kernel.fleet import Placed, Refused, Wanted
from control.kernel.interfaces import Address, PortRequest
from control.kernel.watchable import Related
from protos.image.v1.images_pb2 import Image

__all__ = ["Address", "Console", "Images", "Placed", "Placer", "PortRequest", "Ports", "Refused", "Wanted"]


class Ports(Protocol):
    """The network service, as far as servers need it."""

    def create(self, transaction: Transaction, caller: Caller, server_id: str, hostname: str,
               wanted: Sequence[PortRequest], security_groups: Sequence[str]) -> list[str]:
        """Make or adopt the ports of a new server, in order; their ids. Charges the network quota of new ones.

        Security groups are names or ids of the caller's project; none given: "default".
        Raises Invalid (unknown network, port or group, an address outside the subnet), Conflict (a port or address in use,
        no address left), Exhausted (quota).
        """

    def automatic(self, caller: Caller) -> list[PortRequest]:
        """The networks that a server gets when none is named ("auto"). Raises Conflict if that is not plain: several
        to choose from; none and none can be made."""

    def bind(self, transaction: Transaction, server_id: str, host: str) -> None:
        """Say which host a server's ports are on; "" for none."""

    def release(self, transaction: Transaction, server_id: str) -> None:
        """Delete the ports that were made for a server and let the adopted ones go."""

    def ids(self, server_id: str) -> list[str]:
        """A server's ports, in the order of its interfaces."""

    def addresses(self, server_id: str) -> list[Address]:
        """Every fixed and floating address of a server's ports."""

    def security_groups(self, server_id: str) -> list[str]:
        """Names of the security groups on any of the server's ports."""

    def shown_with_servers(self) -> Sequence[Related]:
        """The records behind addresses() and security_groups(), with servers' ids as keys: a change of one is one of theirs."""

    def wired(self, server_id: str, reads: Transaction | None = None) -> bool:
        """Whether every port of the server was reported up by its host."""

    def bound(self, transaction: Transaction) -> Iterable[tuple[str, str, str]]:
        """Every port that is a server's: its id, the server's, and the host that it is on ("" for none)."""


class Placer(Protocol):
    """Placement: chooses hosts from the present state and keeps the allocations."""

    def place(self, transaction: Transaction, wanted: Sequence[Wanted], leaving: Collection[str] = ()) -> list[Placed | Refused]:
        """A host for each, in order, each seeing the allocations of those before it; allocated in the transaction, in the place
        of what it held before.

        Args:
          leaving: hosts that all servers leave: who is there binds none of its server group.

        The commit is refused if a host that was taken goes meanwhile, or an aggregate changes.
        """

    def take_over(self, transaction: Transaction, server_id: str, move_id: str) -> None:
        """Give a server what its move holds, in the place of what it held before."""

    async def plan_drain(self, host: str) -> dict[str, str]:
        """Where each server of a host could go, if all leave it now, in the order in which they should; what fits nowhere is left
        out."""

    def dry_run(self, wanted: Sequence[Wanted]) -> list[Placed | Refused]:
        """What `place` would answer, from the cache as it is now. Nothing is allocated."""

    def release(self, transaction: Transaction, server_id: str) -> None:
        """Give back what a server holds; nothing where it holds nothing."""

    def hold(self, transaction: Transaction, wanted: Wanted, host: str) -> None:
        """Allocate again what a server needs of the host that it is on, whether or not there is room. Raises NotFound for a
        host that is none, Conflict where the server's shape says more than amounts, so that nobody knows what it had."""


class Images(Protocol):
    """The image service, as far as servers need it."""

    def bootable(self, caller: Caller, image_id: str) -> Image:
        """An image that the caller may boot. Raises Invalid if it is not there for them, or not active."""


class Console(Protocol):
    """The way to a host's agent."""

    async def console_log(self, host: str, server_id: str, lines: int) -> bytes:
        """The last lines (0: all that is kept) of a server's console. Raises Unavailable if the host does not answer."""
