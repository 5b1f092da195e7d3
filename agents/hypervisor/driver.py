"""What an agent asks of a hypervisor: verbs that are safe to repeat.

A verb that fails raises Fault with a sentence for the server's owner; anything else it raises is a bug.
"""
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from agents.hypervisor.model import Seen
from protos.internal.v1.hosts_pb2 import BootImage, HostNetwork, HostPort, HostServer, Inventory

#: Says what is being done, for whoever waits: "fetching image".
Say = Callable[[str], None]


class Fault(Exception):
    """Why a wish cannot be met, in a sentence for users. Final: trying again is no use."""

    def __init__(self, text: str, *, final: bool = False):
        super().__init__(text)
        self.final = final


class Outage(Fault):
    """The hypervisor itself does not answer: it concerns every server of the host, and is never final for one."""


@dataclass(frozen=True, slots=True)
class Domain:
    """What the host has for one server."""

    seen: Seen
    generation: int = 0        # of the last wish that was carried out
    reboots: int = 0           # as counted in that wish


MISSING = Domain(Seen.MISSING)


@dataclass(frozen=True, slots=True)
class Wish:
    """A server with what its domain is made from. The ports are in the order of its interfaces, the networks by id."""

    server: HostServer
    ports: Sequence[HostPort] = ()
    networks: Mapping[str, HostNetwork] = field(default_factory=dict)


class Images(Protocol):
    """Where a driver gets the files that it makes disks from."""

    async def place(self, image: BootImage, path: Path) -> None:
        """Make `path` (not there yet) the image's bytes, checked. The file is shared: never write to it. Raises Fault."""


class Hypervisor(Protocol):
    async def inventory(self) -> Inventory:
        """What the host has to give. Raises Fault while the hypervisor does not answer."""

    async def observe(self, server_ids: Collection[str] | None = None) -> dict[str, Domain]:
        """The domains there are, of these servers or (None) of all; one that is not there is left out."""

    async def ensure_running(self, wish: Wish, say: Say) -> None:
        """Have the server's domain run, and remember its generation and reboots; a running one is not touched otherwise.

        Makes disks that are not there yet, keeps those that are. The ports' taps must exist.
        """

    async def ensure_stopped(self, server: HostServer, grace: float) -> None:
        """Have the domain off, asking the guest first and waiting up to `grace` seconds (0: at once); remember its generation."""

    async def reboot(self, wish: Wish, grace: float) -> None:
        """Stop as ensure_stopped does and start again, with the server's present wish; remember generation and reboots."""

    async def ensure_gone(self, server_id: str) -> None:
        """Leave neither a domain nor a file of the server."""

    async def console_log(self, server_id: str, lines: int) -> bytes:
        """The last lines (0: all that is kept) that the guest wrote to its console; whole UTF-8 characters."""

    def disk(self, server_id: str) -> AsyncIterator[bytes]:
        """The root disk of a server that is off, as another host's take_disk wants it, in chunks of at most 1 MiB; none where
        there is no disk. Raises Fault while the domain is on."""

    async def take_disk(self, server: HostServer, chunks: AsyncIterator[bytes], say: Say) -> None:
        """Have the disk that another host had, in the place of any other, whole or not at all; without chunks there is to be
        none. No domain is made. What the disk stands on is there afterwards, so that a start needs nothing more.

        Raises Fault, a final one where this host cannot have it, and what `chunks` raises.
        """

    # Live migration belongs here: a verb that sends a running domain to a waiting one, for servers whose disks both hosts see.

    def events(self) -> AsyncIterator[str]:
        """Ids of servers whose domain may have changed, as it happens; "" when any may have. Until cancelled."""
