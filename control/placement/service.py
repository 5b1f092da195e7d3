"""The placement service put together: its servicers over one database."""
from google.protobuf.descriptor import ServiceDescriptor

from control.kernel.database import Database
from control.placement.aggregates import Aggregates
from control.placement.allocation_candidates import AllocationCandidates
from control.placement.allocations import Allocations
from control.placement.checks import checks
from control.placement.inventories import Inventories
from control.placement.live import LiveFleet
from control.placement.reshaper import Reshaper
from control.placement.resource_classes import ResourceClasses
from control.placement.resource_providers import ResourceProviders
from control.placement.scheduling import Scheduling
from control.placement.traits import Traits
from control.placement.usages import Usages
from control.placement.view import View
from control.placement.watchables import watchables
from protos.placement.v1 import (
    aggregates_pb2,
    allocation_candidates_pb2,
    allocations_pb2,
    api_pb2,  # noqa: F401 - the API's own entry
    inventories_pb2,
    reshaper_pb2,
    resource_classes_pb2,
    resource_providers_pb2,
    scheduling_pb2,
    traits_pb2,
    usages_pb2,
)

__all__ = ["checks", "servicers", "watchables"]


def servicers(database: Database, live: LiveFleet) -> list[tuple[object, ServiceDescriptor]]:
    """What the dispatcher shall serve."""
    view = View(database.cache)
    return [
        (ResourceProviders(database, view), resource_providers_pb2.DESCRIPTOR.services_by_name["ResourceProviders"]),
        (Inventories(database), inventories_pb2.DESCRIPTOR.services_by_name["Inventories"]),
        (Traits(database), traits_pb2.DESCRIPTOR.services_by_name["Traits"]),
        (ResourceClasses(database), resource_classes_pb2.DESCRIPTOR.services_by_name["ResourceClasses"]),
        (Aggregates(database), aggregates_pb2.DESCRIPTOR.services_by_name["Aggregates"]),
        (Usages(database), usages_pb2.DESCRIPTOR.services_by_name["Usages"]),
        (Allocations(database), allocations_pb2.DESCRIPTOR.services_by_name["Allocations"]),
        (AllocationCandidates(database, view), allocation_candidates_pb2.DESCRIPTOR.services_by_name["AllocationCandidates"]),
        (Reshaper(database), reshaper_pb2.DESCRIPTOR.services_by_name["Reshaper"]),
        (Scheduling(database, live), scheduling_pb2.DESCRIPTOR.services_by_name["Scheduling"]),
    ]
