"""What placement asks of other services. main.py passes the real ones in."""
from collections.abc import Mapping
from typing import Protocol

from scheduler.types import Request, ServerGroup, Shape


class Demands(Protocol):
    """Compute: what its servers need of their hosts beside the amounts that they hold."""

    def demand_of(self, server_id: str) -> tuple[Request, ServerGroup | None] | None:
        """What a server that holds something needs, and its group; None for what is no server. From the cache, as it is now."""

    def group_of(self, server_id: str) -> ServerGroup | None:
        """The group of a server; None for one without, and for what is no server."""

    def groups(self) -> Mapping[str, ServerGroup]:
        """The group of every server that has one, by the server's id."""

    def life_of(self, server_id: str) -> tuple[str, str, int, int] | None:
        """Of a server its flavor's id, its project's, when it was made and when its hint says that it ends (0: it does not), in
        seconds since 1970; None for what is no server."""

    def shape_of(self, flavor: str) -> Shape | None:
        """What a server of a flavor, by id or name, asks for; None where there is no such flavor.

        Raises Invalid where the flavor asks for what cannot be.
        """


class NoServers:
    """Of a placement service without compute: nothing that is held belongs to a server, and there is no flavor."""

    def demand_of(self, server_id: str) -> None:
        return None

    def group_of(self, server_id: str) -> None:
        return None

    def groups(self) -> dict[str, ServerGroup]:
        return {}

    def life_of(self, server_id: str) -> None:
        return None

    def shape_of(self, flavor: str) -> None:
        return None
