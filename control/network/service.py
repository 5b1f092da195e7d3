"""The network service put together: its kinds, its servicers, and what compute and hosts ask of it."""

from google.protobuf.descriptor import ServiceDescriptor

from control.kernel.database import Database
from control.network import model
from control.network.addressing import Proposals
from control.network.bootstrap import bootstrap
from control.network.checks import checks
from control.network.discovery import Discovery
from control.network.floating_ips import FloatingIps
from control.network.groups import SecurityGroupRules, SecurityGroups
from control.network.labels import Tags
from control.network.networks import Networks
from control.network.observer import Observer
from control.network.ports import Ports
from control.network.projection import Projection
from control.network.quotas import Quotas
from control.network.reconciler import Reconciler
from control.network.routers import Routers
from control.network.server_ports import ServerPorts
from control.network.subnets import Subnets
from control.network.watchables import watchables
from protos.network.v1 import (
    discovery_pb2,
    floatingips_pb2,
    networks_pb2,
    ports_pb2,
    quotas_pb2,
    routers_pb2,
    security_groups_pb2,
    subnets_pb2,
    tags_pb2,
)

__all__ = ["KINDS", "Observer", "Projection", "Reconciler", "ServerPorts", "bootstrap", "checks", "servicers", "watchables"]

KINDS = model.KINDS


def servicers(database: Database) -> list[tuple[object, ServiceDescriptor]]:
    """What the dispatcher shall serve."""
    proposals = Proposals()
    return [
        (Networks(database, proposals), networks_pb2.DESCRIPTOR.services_by_name["Networks"]),
        (Subnets(database, proposals), subnets_pb2.DESCRIPTOR.services_by_name["Subnets"]),
        (Ports(database, proposals), ports_pb2.DESCRIPTOR.services_by_name["Ports"]),
        (Routers(database, proposals), routers_pb2.DESCRIPTOR.services_by_name["Routers"]),
        (FloatingIps(database, proposals), floatingips_pb2.DESCRIPTOR.services_by_name["FloatingIps"]),
        (SecurityGroups(database), security_groups_pb2.DESCRIPTOR.services_by_name["SecurityGroups"]),
        (SecurityGroupRules(database), security_groups_pb2.DESCRIPTOR.services_by_name["SecurityGroupRules"]),
        (Quotas(database), quotas_pb2.DESCRIPTOR.services_by_name["Quotas"]),
        (Tags(database), tags_pb2.DESCRIPTOR.services_by_name["Tags"]),
        (Discovery(database, proposals), discovery_pb2.DESCRIPTOR.services_by_name["Discovery"]),
    ]
