"""What clients ask beside the nouns themselves: extensions, agents, zones, how full networks are, the automatic topology."""

import ipaddress
from collections.abc import Callable

from google.protobuf.empty_pb2 import Empty
from google.protobuf.struct_pb2 import Value

from control.kernel import fleet, quota
from control.kernel.caller import Caller
from control.kernel.database import Database, Transaction
from control.kernel.listing import select
from control.kernel.rpc import Call
from control.network import topology
from control.network.addressing import Proposals
from control.network.model import ALLOCATION, NETWORK, SERVICE, SUBNET, TOPOLOGY, absent
from protos.internal.v1.fleet_pb2 import HostRecord
from protos.network.v1 import discovery_pb2 as pb
from protos.network.v1.discovery_pb2 import Agent, AvailabilityZone, Extension, NetworkIpAvailability, SubnetIpAvailability
from protos.network.v1.networks_pb2 import Network
from protos.network.v1.records_pb2 import TopologyRecord
from protos.network.v1.subnets_pb2 import Subnet

_DATE = "2026-01-01T00:00:00-00:00"

#: Alias, name and description of what is served; no client is promised what is not.
EXTENSIONS = [
    Extension(alias=alias, name=name, description=text, updated=_DATE)
    for alias, name, text in (
        ("agent", "agent", "The hosts that carry the network."),
        ("allowed-address-pairs", "Allowed Address Pairs", "Sources that a port may send from beside its own."),
        ("auto-allocated-topology", "Auto Allocated Topology Services", "A network for whoever asks for any."),
        ("availability_zone", "Availability Zone", "Zones of hosts."),
        ("binding", "Port Binding", "Where a port is."),
        ("dns-integration", "DNS Integration", "Names of ports and floating IPs."),
        ("ext-gw-mode", "Neutron L3 Configurable external gateway mode", "Routers with and without source NAT."),
        ("external-net", "Neutron external network", "Networks that lead outside."),
        ("extraroute", "Neutron Extra Route", "Routes of routers."),
        ("extraroute-atomic", "Atomically add/remove extra routes", "Routes added and removed one by one."),
        ("fip-port-details", "Floating IP Port Details Extension", "What a floating IP leads to."),
        ("net-mtu", "Network MTU", "Largest packet of a network."),
        ("net-mtu-writable", "Network MTU (writable)", "Largest packet of a network, chosen."),
        ("network-ip-availability", "Network IP Availability", "How many addresses are in use."),
        ("network_availability_zone", "Network Availability Zone", "Zones of networks."),
        ("pagination", "Pagination support", "Pages of lists."),
        ("port-security", "Port Security", "Anti-spoofing per port."),
        ("project-id", "project_id field enabled", "project_id beside tenant_id."),
        ("provider", "Provider Network", "What carries a network, for admins."),
        ("quota_details", "Quota details management support", "What projects use of their quotas."),
        ("quotas", "Quota management support", "What projects may use."),
        ("quota-check-limit", "Quota engine limit check", "Limits refused below what is used."),
        ("router", "Neutron L3 Router", "Routers and floating IPs."),
        ("router_availability_zone", "Router Availability Zone", "Zones of routers."),
        ("security-group", "security-group", "Rules for traffic."),
        ("sorting", "Sorting support", "Lists in order."),
        ("standard-attr-description", "standard-attr-description", "A description on everything."),
        ("standard-attr-revisions", "Resource revision numbers", "A revision on everything."),
        ("standard-attr-tag", "Tag support for resources with standard attribute", "Labels on everything."),
        ("standard-attr-timestamp", "Resource timestamps", "Times on everything."),
        ("subnet-external-network", "Subnet belongs to an external network", "Subnets of external networks, for all to see."),
    )
]


class Discovery:
    def __init__(self, database: Database, proposals: Proposals):
        self._database = database
        self._proposals = proposals

    async def ListExtensions(self, request: pb.ListExtensionsRequest, call: Call) -> pb.ListExtensionsResponse:
        return pb.ListExtensionsResponse(extensions=EXTENSIONS)

    async def ShowExtension(self, request: pb.ShowExtensionRequest, call: Call) -> pb.ShowExtensionResponse:
        for extension in EXTENSIONS:
            if extension.alias == request.alias:
                return pb.ShowExtensionResponse(extension=extension)
        raise absent("extension", request.alias)

    async def ListAgents(self, request: pb.ListAgentsRequest, call: Call) -> pb.ListAgentsResponse:
        hosts = sorted(self._database.cache.all(fleet.HOST), key=lambda host: host.name)
        agents = [_agent(self._database, host) for host in hosts]
        return pb.ListAgentsResponse(agents=select(agents, request.filters))

    async def ShowAgent(self, request: pb.ShowAgentRequest, call: Call) -> pb.ShowAgentResponse:
        for host in self._database.cache.all(fleet.HOST):
            if host.id == request.id:
                return pb.ShowAgentResponse(agent=_agent(self._database, host))
        raise absent("agent", request.id)

    async def ListAvailabilityZones(
        self, request: pb.ListAvailabilityZonesRequest, call: Call
    ) -> pb.ListAvailabilityZonesResponse:
        up: dict[str, bool] = {}
        for host in self._database.cache.all(fleet.HOST):
            zone = fleet.zone_of(self._database, host)
            up[zone] = host.up or up.get(zone, False)
        zones = [
            AvailabilityZone(name=name, resource=resource, state="available" if available else "unavailable")
            for name, available in sorted(up.items())
            for resource in ("network", "router")
        ]
        return pb.ListAvailabilityZonesResponse(availability_zones=select(zones, request.filters))

    async def ListNetworkIpAvailabilities(
        self, request: pb.ListNetworkIpAvailabilitiesRequest, call: Call
    ) -> pb.ListNetworkIpAvailabilitiesResponse:
        rows = [self._fill(network) for network in self._database.cache.all(NETWORK)]
        return pb.ListNetworkIpAvailabilitiesResponse(network_ip_availabilities=select(rows, request.filters))

    async def ShowNetworkIpAvailability(
        self, request: pb.ShowNetworkIpAvailabilityRequest, call: Call
    ) -> pb.ShowNetworkIpAvailabilityResponse:
        network = self._database.get(NETWORK, request.network_id)
        if network is None:
            raise absent("network", request.network_id)
        return pb.ShowNetworkIpAvailabilityResponse(network_ip_availability=self._fill(network))

    async def ShowAutoAllocatedTopology(
        self, request: pb.ShowAutoAllocatedTopologyRequest, call: Call
    ) -> pb.ShowAutoAllocatedTopologyResponse:
        project_id = _project(call.caller, request.project)
        dry = "dry-run" in request.fields

        def decide(tx: Transaction) -> str:
            if dry:
                topology.default_external(tx)
                return "dry-run=pass"
            return topology.ensure(tx, self._proposals, call.caller, project_id).network_id

        found = await self._database.transact(decide, serial=quota.serial(SERVICE, project_id))
        return pb.ShowAutoAllocatedTopologyResponse(
            auto_allocated_topology=pb.AutoAllocatedTopology(id=found, project_id=project_id, tenant_id=project_id)
        )

    async def DeleteAutoAllocatedTopology(self, request: pb.DeleteAutoAllocatedTopologyRequest, call: Call) -> Empty:
        project_id = _project(call.caller, request.project)

        def within(step: Callable[[Transaction, TopologyRecord], None]) -> Callable[[Transaction], None]:
            def decide(tx: Transaction) -> None:
                record = tx.get(TOPOLOGY, project_id)
                if record is None:
                    raise absent("topology", project_id)
                step(tx, record)

            return decide

        for step in (topology.disconnect, topology.drop):
            await self._database.transact(within(step), serial=quota.serial(SERVICE, project_id))
        return Empty()

    def _fill(self, network: Network) -> NetworkIpAvailability:
        cache = self._database.cache
        fill = NetworkIpAvailability(
            network_id=network.id, network_name=network.name, project_id=network.project_id, tenant_id=network.project_id
        )
        total = 0
        for subnet in cache.by(SUBNET, "network", network.id):
            used, size = cache.count(ALLOCATION, "subnet", subnet.id) + bool(subnet.dhcp_ip), _size(subnet)
            total += size
            fill.used_ips += used
            fill.subnet_ip_availability.append(
                SubnetIpAvailability(
                    subnet_id=subnet.id,
                    subnet_name=subnet.name,
                    cidr=subnet.cidr,
                    ip_version=subnet.ip_version,
                    total_ips=Value(number_value=size),
                    used_ips=used,
                )
            )
        fill.total_ips.number_value = total
        return fill


def _size(subnet: Subnet) -> int:
    return sum(
        int(ipaddress.ip_address(pool.end)) - int(ipaddress.ip_address(pool.start)) + 1 for pool in subnet.allocation_pools
    )


def _agent(database: Database, host: HostRecord) -> Agent:
    agent = Agent(
        id=host.id,
        agent_type="Brume agent",
        binary="brume-agent",
        host=host.name,
        availability_zone=fleet.zone_of(database, host),
        admin_state_up=not host.disabled,
        alive=host.up,
        description=host.inventory.notice,
        created_at=host.created_at,
        started_at=host.created_at,
        heartbeat_timestamp=host.updated_at,
        resources_synced=host.up,
    )
    agent.configurations.SetInParent()
    return agent


def _project(caller: Caller, named: str) -> str:
    """The project that a path means. Raises NotFound for a foreign one."""
    project_id = caller.project_id if named in ("None", "null", "") else named
    if not project_id or len(project_id) > 64 or (project_id != caller.project_id and not caller.is_admin):
        raise absent("project", named)
    return project_id
