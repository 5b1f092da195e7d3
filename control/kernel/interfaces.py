"""What is said about a server's network interfaces between the one who has servers and the one who has networks."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PortRequest:
    """One interface of a server: an existing port, or a new one on a network (with an address, if given).

    One that names neither is for the network that the project gets when it asks for any.
    """

    network_id: str = ""
    port_id: str = ""
    fixed_ip: str = ""


@dataclass(frozen=True, slots=True)
class Address:
    """One address of a server, as its `addresses` show it."""

    network: str  # name
    ip: str
    version: int  # 4 or 6
    mac: str
    type: str  # "fixed" or "floating"
    port_id: str
    network_id: str = ""
    subnet_id: str = ""        # "" for a floating one
    port_state: str = ""       # "ACTIVE" or "DOWN"


@dataclass(frozen=True, slots=True)
class DiskMove:
    """A server's disk on its way from one host to another. The id is the move's."""

    id: str
    source: str
    target: str
