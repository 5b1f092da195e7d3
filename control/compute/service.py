"""The compute service put together: its kinds, its servicers, and what runs beside them."""
from google.protobuf.descriptor import ServiceDescriptor

from control.compute import model
from control.compute.aggregates import Aggregates
from control.compute.checks import Checks
from control.compute.decisions import PlacementDecisions
from control.compute.demand import Settings
from control.compute.flavors import Flavors
from control.compute.history import InstanceActions
from control.compute.hosts import Hosts
from control.compute.keypairs import KeyPairs
from control.compute.maintenance import Draining, Maintenance
from control.compute.neighbours import Console, Images, Placer, Ports
from control.compute.observer import Observer
from control.compute.parts import ServerParts
from control.compute.placing import Placing
from control.compute.projection import Projection
from control.compute.quotas import Quotas, bootstrap
from control.compute.reconciler import Settling
from control.compute.relocation import Relocating
from control.compute.server_groups import ServerGroups
from control.compute.servers import Servers
from control.compute.wanted import Demands
from control.compute.watchables import watchables
from control.kernel.database import Database
from protos.compute.v1 import (
    actions_pb2,
    aggregates_pb2,
    flavors_pb2,
    hosts_pb2,
    keypairs_pb2,
    maintenance_pb2,
    placement_decisions_pb2,
    quotas_pb2,
    server_groups_pb2,
    server_parts_pb2,
    servers_pb2,
)

__all__ = ["KINDS", "Checks", "Demands", "Draining", "Observer", "Placing", "Projection", "Relocating", "Settings", "Settling",
           "bootstrap", "servicers", "watchables"]

KINDS = model.KINDS


def servicers(database: Database, ports: Ports, images: Images, console: Console, placer: Placer,
              settings: Settings | None = None) -> list[tuple[object, ServiceDescriptor]]:
    """What the dispatcher shall serve."""
    settings = settings or Settings()
    return [
        (Servers(database, ports, images, console, placer, settings), servers_pb2.DESCRIPTOR.services_by_name["Servers"]),
        (PlacementDecisions(database, ports, images, placer, settings),
         placement_decisions_pb2.DESCRIPTOR.services_by_name["PlacementDecisions"]),
        (ServerGroups(database), server_groups_pb2.DESCRIPTOR.services_by_name["ServerGroups"]),
        (Aggregates(database), aggregates_pb2.DESCRIPTOR.services_by_name["Aggregates"]),
        (ServerParts(database, ports), server_parts_pb2.DESCRIPTOR.services_by_name["ServerParts"]),
        (InstanceActions(database), actions_pb2.DESCRIPTOR.services_by_name["InstanceActions"]),
        (Flavors(database), flavors_pb2.DESCRIPTOR.services_by_name["Flavors"]),
        (KeyPairs(database), keypairs_pb2.DESCRIPTOR.services_by_name["KeyPairs"]),
        (Quotas(database), quotas_pb2.DESCRIPTOR.services_by_name["Quotas"]),
        (Hosts(database), hosts_pb2.DESCRIPTOR.services_by_name["Hosts"]),
        (Maintenance(database), maintenance_pb2.DESCRIPTOR.services_by_name["Maintenance"]),
    ]
