"""The servicer of what servers run on: zones, hypervisors and services, as Nova shows them, over kernel.fleet.

A host's agent is its hypervisor and its nova-compute; closing the service closes the host to new servers. Nova's numbers
for ids, from before microversion 2.53, are made from the UUIDs.
"""
import json
import uuid

from google.protobuf.empty_pb2 import Empty
from google.protobuf.struct_pb2 import Struct, Value

from control.compute import aggregates, limits
from control.compute.model import SERVER
from control.kernel import clock, fleet, listing
from control.kernel.database import Database, Transaction
from control.kernel.errors import Conflict, Invalid, NotFound
from control.kernel.replicas import REPLICA
from control.kernel.rpc import Call
from protos.compute.v1 import hosts_pb2 as pb
from protos.internal.v1.fleet_pb2 import HostRecord

#: What every replica does itself, by the names that Nova's clients know.
OWN_BINARIES = ("nova-conductor", "nova-scheduler")


class Hosts:
    """Servicer of compute.v1.Hosts."""

    def __init__(self, database: Database):
        self._database = database

    def _replicas(self) -> list[str]:
        """The host names of the control plane's replicas that live."""
        return sorted({replica.host_name for replica in self._database.cache.all(REPLICA)})

    def _hosts(self) -> list[HostRecord]:
        return sorted(self._database.cache.all(fleet.HOST), key=lambda host: host.name)

    # Zones

    async def ListZones(self, request: pb.ListZonesRequest, call: Call) -> pb.ListZonesResponse:
        hosts = self._hosts()
        zones = {fleet.DEFAULT_ZONE: False}
        for host in hosts:
            zone = fleet.zone_of(self._database, host)
            zones[zone] = zones.get(zone, False) or (host.up and not host.disabled)
        return pb.ListZonesResponse(zones=[pb.Zone(name=name, state=pb.ZoneState(available=available))
                                           for name, available in sorted(zones.items())])

    async def ListZonesDetail(self, request: pb.ListZonesRequest, call: Call) -> pb.ListZonesResponse:
        answer = await self.ListZones(request, call)
        now = clock.now().ToDatetime().isoformat(timespec="microseconds")
        for zone in answer.zones:
            zone.hosts.update({host.name: {"nova-compute": {
                "available": not host.disabled, "active": host.up,
                "updated_at": host.updated_at.ToDatetime().isoformat(timespec="microseconds")}}
                for host in self._hosts() if fleet.zone_of(self._database, host) == zone.name})
        internal = answer.zones.add(name="internal", state=pb.ZoneState(available=True))
        internal.hosts.update({replica: {
            binary: {"available": True, "active": True, "updated_at": now} for binary in OWN_BINARIES}
            for replica in self._replicas()})
        return answer

    # Hypervisors

    async def ListHypervisors(self, request: pb.ListHypervisorsRequest, call: Call) -> pb.ListHypervisorsResponse:
        page, marker = self._page(request, call)
        rows = [pb.HypervisorSummary(
            id=_id(host.id, call), hypervisor_hostname=host.name, state=_state(host), status=_status(host),
            servers=self._servers(host) if request.with_servers else ()) for host in page]
        return pb.ListHypervisorsResponse(hypervisors=rows, next_page_marker=marker)

    async def ListHypervisorsDetail(self, request: pb.ListHypervisorsRequest, call: Call) -> pb.ListHypervisorsDetailResponse:
        page, marker = self._page(request, call)
        return pb.ListHypervisorsDetailResponse(
            hypervisors=[self.hypervisor(host, call, request.with_servers) for host in page], next_page_marker=marker)

    async def GetHypervisor(self, request: pb.GetHypervisorRequest, call: Call) -> pb.HypervisorResponse:
        for host in self._hosts():
            if request.hypervisor_id in (host.id, str(_number(host.id))):
                return pb.HypervisorResponse(hypervisor=self.hypervisor(host, call, request.with_servers))
        raise NotFound("compute.hypervisor", f"Hypervisor with ID '{request.hypervisor_id[:80]}' could not be found.")

    async def GetHypervisorStatistics(self, request: pb.GetHypervisorStatisticsRequest,
                                      call: Call) -> pb.HypervisorStatisticsResponse:
        total = pb.HypervisorStatistics()
        for host in self._hosts():
            one = self.hypervisor(host, call, with_servers=False)
            total.count += 1
            for name in ("vcpus", "vcpus_used", "memory_mb", "memory_mb_used", "free_ram_mb", "local_gb", "local_gb_used",
                         "free_disk_gb", "disk_available_least", "current_workload", "running_vms"):
                setattr(total, name, getattr(total, name) + getattr(one, name))
        return pb.HypervisorStatisticsResponse(hypervisor_statistics=total)

    def _page(self, request: pb.ListHypervisorsRequest, call: Call) -> tuple[list[HostRecord], str]:
        pattern = request.hypervisor_hostname_pattern
        hosts = [host for host in self._hosts() if pattern in host.name]
        if pattern and not hosts:
            raise NotFound("compute.hypervisor", f"No hypervisor matching '{pattern[:80]}' could be found.")
        return listing.page(hosts, limit=request.limit, marker=request.marker, sort=[(lambda host: host.name, False)])

    def _servers(self, host: HostRecord) -> list[pb.HypervisorServer]:
        return [pb.HypervisorServer(uuid=server.id, name=server.name)
                for server in self._database.cache.by(SERVER, "host", host.name)]

    def hypervisor(self, host: HostRecord, call: Call, with_servers: bool) -> pb.Hypervisor:
        """A host as a hypervisor's details."""
        have = host.inventory
        usage = self._database.get(fleet.USAGE, host.id)
        vcpus, ram, disk = (usage.used.get(name, 0) if usage is not None else 0 for name in fleet.HOST_CLASSES)
        return pb.Hypervisor(
            id=_id(host.id, call), hypervisor_hostname=host.name, state=_state(host), status=_status(host),
            servers=self._servers(host) if with_servers else (), hypervisor_type=have.hypervisor_type,
            hypervisor_version=have.hypervisor_version, host_ip=have.address,
            service=pb.HypervisorService(id=_id(_service_id("nova-compute", host.name), call), host=host.name,
                                         disabled_reason=host.disabled_reason or None),
            cpu_info=_cpu_info(host, call), vcpus=have.vcpus, vcpus_used=vcpus, memory_mb=have.ram_mib, memory_mb_used=ram,
            free_ram_mb=have.ram_mib - ram, local_gb=have.disk_gib, local_gb_used=disk, free_disk_gb=have.disk_gib - disk,
            disk_available_least=have.disk_gib - disk, running_vms=self._database.cache.count(SERVER, "host", host.name))

    # Services

    async def ListServices(self, request: pb.ListServicesRequest, call: Call) -> pb.ListServicesResponse:
        own = [pb.Service(id=_id(_service_id(binary, replica), call), binary=binary, host=replica, zone="internal",
                          status="enabled", state="up", updated_at=clock.now())
               for replica in self._replicas() for binary in OWN_BINARIES]
        services = own + [self._service(host, call) for host in self._hosts()]
        return pb.ListServicesResponse(services=[
            service for service in services
            if request.host in ("", service.host) and request.binary in ("", service.binary)])

    def _service(self, host: HostRecord, call: Call) -> pb.Service:
        return pb.Service(
            id=_id(_service_id("nova-compute", host.name), call), binary="nova-compute", host=host.name,
            zone=fleet.zone_of(self._database, host), status=_status(host), state=_state(host),
            updated_at=host.updated_at if host.HasField("updated_at") else None, disabled_reason=host.disabled_reason or None,
            forced_down=host.forced_down)

    async def UpdateService(self, request: pb.UpdateServiceRequest, call: Call) -> pb.ServiceResponse:
        if request.status not in ("enabled", "disabled") and (request.HasField("status") or not request.HasField("forced_down")):
            raise Invalid("compute.service.status", f"status is 'enabled' or 'disabled', not {request.status[:40]!r}.")
        if request.HasField("disabled_reason") and request.status != "disabled":
            raise Invalid("compute.service.reason", "disabled_reason goes with the status 'disabled' only.")
        host = self._host_of_service(request.service_id)
        if request.HasField("status"):
            host = await self._switch(host.name, request.status == "disabled", request.disabled_reason)
        if request.HasField("forced_down"):
            host = await self._force_down(host.name, request.forced_down)
        return pb.ServiceResponse(service=self._service(host, call))

    async def DeleteService(self, request: pb.DeleteServiceRequest, call: Call) -> Empty:
        name = self._host_of_service(request.service_id).name

        def decide(tx: Transaction) -> None:
            host = tx.require(fleet.HOST, name)
            if host.up:
                raise Conflict("compute.service.up", f"Host {name} is up: stop its agent first.")
            servers = tx.rows(SERVER, "host", name)
            left = [server.id for server in servers if not server.desired.deleted]
            if left:
                raise Conflict("compute.service.servers", f"Host {name} has {len(left)} servers, {left[0]} among them: delete "
                                                          "them first.")
            aggregates.forget(tx, name)
            fleet.delete_host(tx, host, leaving={server.id for server in servers})

        await self._database.transact(decide)
        return Empty()

    def _host_of_service(self, service_id: str) -> HostRecord:
        """The host whose nova-compute has an id. Raises NotFound, or Invalid for another service's id."""
        for host in self._hosts():
            if service_id in (identifier := _service_id("nova-compute", host.name), str(_number(identifier))):
                return host
        if service_id in {_service_id(binary, replica) for replica in self._replicas() for binary in OWN_BINARIES}:
            raise Invalid("compute.service.binary", "Only nova-compute services can be enabled, disabled and deleted.")
        raise NotFound("compute.service", f"Service {service_id[:80]} could not be found.")

    async def EnableService(self, request: pb.SwitchServiceRequest, call: Call) -> pb.SwitchServiceResponse:
        return await self._switch_by_name(request, False)

    async def DisableService(self, request: pb.SwitchServiceRequest, call: Call) -> pb.SwitchServiceResponse:
        return await self._switch_by_name(request, True)

    async def DisableServiceWithReason(self, request: pb.SwitchServiceRequest, call: Call) -> pb.SwitchServiceResponse:
        return await self._switch_by_name(request, True)

    async def _switch_by_name(self, request: pb.SwitchServiceRequest, disabled: bool) -> pb.SwitchServiceResponse:
        self._check_named(request.binary, request.host)
        host = await self._switch(request.host, disabled, request.disabled_reason)
        return pb.SwitchServiceResponse(service=pb.SwitchServiceResponse.Switched(
            host=host.name, binary="nova-compute", status=_status(host), disabled_reason=host.disabled_reason or None))

    def _check_named(self, binary: str, host: str) -> None:
        if binary != "nova-compute" or self._database.get(fleet.HOST, host) is None:
            raise NotFound("compute.service", f"There is no service {binary[:80]!r} on a host {host[:80]!r}.")

    async def _switch(self, name: str, disabled: bool, reason: str) -> HostRecord:
        """Close a host to new servers, or open it."""
        reason = limits.text(reason, "disabled_reason")

        def decide(tx: Transaction) -> HostRecord:
            host = tx.require(fleet.HOST, name)
            host.disabled, host.disabled_reason = disabled, reason if disabled else ""
            tx.put(fleet.HOST, host)
            return host

        return await self._database.transact(decide)

    async def ForceServiceDown(self, request: pb.ForceServiceDownRequest, call: Call) -> pb.ForceServiceDownResponse:
        if not request.HasField("forced_down"):
            raise Invalid("compute.service.forced_down", "forced_down is required.")
        self._check_named(request.binary, request.host)
        host = await self._force_down(request.host, request.forced_down)
        return pb.ForceServiceDownResponse(service=pb.ForceServiceDownResponse.Forced(
            host=host.name, binary="nova-compute", forced_down=host.forced_down))

    async def _force_down(self, name: str, forced: bool) -> HostRecord:
        """Take an operator's word that a host is off, which fences it; or take it back."""
        def decide(tx: Transaction) -> HostRecord:
            host = tx.require(fleet.HOST, name)
            if host.forced_down == forced:
                return host
            host.forced_down = forced
            if forced and not fleet.lost_for_good(host):
                fleet.fence(host, clock.now())
            tx.put(fleet.HOST, host)
            return host

        return await self._database.transact(decide)

    # What there is none of

    async def ListExtensions(self, request: pb.ListExtensionsRequest, call: Call) -> pb.ListExtensionsResponse:
        return pb.ListExtensionsResponse()


def _state(host: HostRecord) -> str:
    return "up" if host.up else "down"


def _status(host: HostRecord) -> str:
    return "disabled" if host.disabled else "enabled"


def _service_id(binary: str, host: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_DNS, f"{binary}.{host}"))


def _number(identifier: str) -> int:
    """A number that goes with a UUID, for microversions that want one."""
    return int(identifier.replace("-", "")[:7] or "0", 16)


def _id(identifier: str, call: Call) -> Value:
    if call.microversion is not None and call.microversion < (2, 53):
        return Value(number_value=_number(identifier))
    return Value(string_value=identifier)


def _cpu_info(host: HostRecord, call: Call) -> Value:
    info = {"arch": host.inventory.architecture, "model": host.inventory.cpu_model}
    if call.microversion is not None and call.microversion < (2, 28):
        return Value(string_value=json.dumps(info))
    fields = Struct()
    fields.update(info)
    return Value(struct_value=fields)
