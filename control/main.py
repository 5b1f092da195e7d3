"""One replica of the control plane, wired: the only place that knows every service.

Start: the cache follows the store, what a new cloud needs is made, the listeners open. Stop (cancellation): leadership is given
up and agents are sent elsewhere at once, the listeners take nothing new and finish what they have begun, then the cache and the
store end.
"""
import asyncio
import dataclasses
import datetime
import functools
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import grpc
from google.protobuf.descriptor import ServiceDescriptor

from agents.telemetry import listener
from control import metrics
from control.audit.required import keep_required
from control.compute import service as compute
from control.doctor.service import Doctor
from control.gateway import server as http
from control.gateway.app import Gateway
from control.hosts import checks as hosts
from control.hosts.liveness import Fencing
from control.hosts.peers import PeerCalls
from control.hosts.service import Hosts
from control.identity import asking, directories, directory_settings
from control.identity import service as identity
from control.identity.directory_logins import DirectoryAuthenticator, DirectoryPasswords
from control.identity.federation import settings as federation
from control.identity.federation.providers import Providers
from control.image import service as image
from control.kernel import disks, etcd_server, fleet, idempotency, pki, probes, replicas, rpc, tls
from control.kernel.config import Config
from control.kernel.database import Database
from control.kernel.etcd_maintenance import Maintenance
from control.kernel.etcd_store import EtcdStore
from control.kernel.idempotency import IdempotencyKeys
from control.kernel.peers import Peers
from control.kernel.policy import PolicyFile
from control.kernel.renewal import Renewal
from control.kernel.roles import SHARDS, Role, Roles, Shard
from control.kinds import KINDS
from control.network import service as network
from control.placement import service as placement
from control.placement.host_providers import HostProviders
from control.placement.live import LiveFleet
from control.placement.lives import Lives
from control.placement.placer import FleetPlacer
from control.readiness import Readiness
from control.watch import service as watch
from protos.internal.v1 import hosts_pb2, peers_pb2

log = logging.getLogger(__name__)

#: Seconds that calls in progress have to end when a listener stops.
GRACE = 5.0


class Replica:
    """Everything that one control process has, built from its settings."""

    def __init__(self, config: Config, store: EtcdStore, credentials: pki.Credentials):
        self.config = config
        self.store = store
        self.database = Database(store, KINDS)
        self.roles = (Role("scheduler", self._place), Role("compute.servers", self._settle, SHARDS),
                      Role("network.gateways", self._move_gateways, SHARDS), Role("keeper", self._keep),
                      Role("hosts", self._watch_hosts), Role("compute.relocation", self._relocate))
        self.membership = replicas.Membership(store, replicas.new_record(
            config.host_name, config.agent_address, [role.label for role in self.roles]))
        self.directories = directories.Directories(self.database, directory_settings.read(config.identity))
        self.providers = Providers(federation.read(config.identity))
        self.authenticator = DirectoryAuthenticator(self.database, self.directories)
        self.peers = Peers(self.database, self.membership.id, credentials)
        self.images = image.ImageService(self.database, config.path("images"), config.max_image_size, self.peers)
        self.membership.record.image_directory = self.images.directory_id
        self.ports = network.ServerPorts(self.database)
        self.settings = compute.Settings(policy=config.placement_policy, automatic_evacuation=config.evacuation == "auto")
        demands = compute.Demands(self.database, self.settings)
        self.fleet = LiveFleet(self.database, demands, Lives(demands) if config.placement_policy == "pack" else None)
        self.placer = FleetPlacer(self.fleet)
        servers = compute.Projection(self.database, self.ports)
        self.hosts = Hosts(
            self.database, images=self.images, peers=self.peers, inventories=HostProviders(
                ratios={fleet.VCPU: config.cpu_allocation_ratio, fleet.MEMORY_MB: config.ram_allocation_ratio,
                        fleet.DISK_GB: config.disk_allocation_ratio},
                reserved={fleet.VCPU: 0, fleet.MEMORY_MB: config.reserved_ram_mib, fleet.DISK_GB: 0}),
            membership=self.membership, moves=servers, fencing=Fencing(config.evacuation == "auto", config.fence_command),
            projections=[servers, network.Projection(self.database)],
            observers=[network.Observer(self.database), compute.Observer(self.database, self.ports, self.placer)],
            certify=functools.partial(pki.certify, config.pki_dir, life=_life(config)))
        self.doctor = Doctor(
            self.database, [*placement.checks(), *compute.Checks(self.ports, self.placer, self.settings).all(), *network.checks(),
                            *self.images.checks().all(), *hosts.checks()],
            [*self.images.checks().probes(), *probes.probes(store, config.pki_dir)])
        self.dispatcher = rpc.Dispatcher(self.authenticator, keys=IdempotencyKeys(self.database),
                                         revision=lambda: self.database.cache.revision, caught_up=self.database.catch_up)
        self.watches = watch.Hub(self.database, [
            *identity.watchables(), *image.watchables(), *compute.watchables(self.database, self.ports),
            *network.watchables(self.database), *placement.watchables(self.database)])
        for servicer, service in self._servicers():
            self.dispatcher.add(servicer, service)
        self.policy_file = PolicyFile(self.dispatcher.policy, config.policy_path)
        self.policy_file.load()
        self.ready = Readiness(self.database)
        self.gateway = Gateway(self.dispatcher, config.public_url.rstrip("/") or None, ready=self.ready)
        self.for_agents = rpc.Dispatcher(self.authenticator)
        self.for_agents.add(self.hosts, hosts_pb2.DESCRIPTOR.services_by_name["Hosts"])
        self.for_agents.add(PeerCalls(self.hosts, self.images), peers_pb2.DESCRIPTOR.services_by_name["Peers"])

    def metrics(self) -> tuple[str, bytes]:
        """The media type and the text of all metrics."""
        return metrics.text(self.database, self.store, self.dispatcher, self.for_agents, self.watches)

    def _servicers(self) -> Sequence[tuple[object, ServiceDescriptor]]:
        compliance = identity.Compliance(**{item.name: getattr(self.config, item.name)
                                            for item in dataclasses.fields(identity.Compliance)})
        own = identity.servicers(self.database, self.authenticator, DirectoryPasswords(self.directories), compliance=compliance,
                                  providers=self.providers)
        return [*asking.asking(own, self.database, self.directories),
                *self.images.servicers(),
                *compute.servicers(self.database, self.ports, self.images, self.hosts, self.placer, settings=self.settings),
                *network.servicers(self.database),
                *placement.servicers(self.database, self.fleet),
                *watch.servicers(self.database, self.watches, self.dispatcher.admit),
                *self.doctor.servicers()]

    async def bootstrap(self) -> None:
        """Make what a new cloud needs: its first users, its catalog, its public network."""
        config = self.config
        await identity.bootstrap(
            self.database, admin_password=_secret(config, "admin"), demo_password=_secret(config, "demo"), public_url=config.url,
            region=config.region, endpoints=[(api.type, api.name, api.mount + api.endpoint) for api in self.gateway.routes.apis])
        admin_project_id = identity.project_id(self.database, "admin")
        await compute.bootstrap(self.database, admin_project_id)
        await network.bootstrap(
            self.database, admin_project_id=admin_project_id,
            demo_project_id=identity.project_id(self.database, "demo"),
            public_cidr=config.public_cidr, private_cidr=config.private_cidr)

    # The roles

    async def _place(self, shard: Shard) -> None:
        placing = compute.Placing(self.database, self.ports, self.placer, [shard.fence], settings=self.settings)
        await placing.controller().run()

    async def _settle(self, shard: Shard) -> None:
        await compute.Settling(self.database, self.ports, self.placer, [shard.fence]).controller(shard.has).run()

    async def _move_gateways(self, shard: Shard) -> None:
        await network.Reconciler(self.database, [shard.fence]).controller(shard.has).run()

    async def _watch_hosts(self, shard: Shard) -> None:
        await self.hosts.liveness.lead([shard.fence])

    async def _relocate(self, shard: Shard) -> None:
        relocating = compute.Relocating(self.database, self.ports, self.placer, [shard.fence], settings=self.settings)
        async with asyncio.TaskGroup() as group:
            group.create_task(relocating.controller().run())
            group.create_task(compute.Draining(self.database, self.placer, [shard.fence]).controller().run())

    async def _keep(self, shard: Shard) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(identity.keep_rotating(self.database))
            group.create_task(identity.keep_sweeping(self.database))
            group.create_task(self.images.end_abandoned(shard.fence))
            group.create_task(idempotency.keep_sweeping(
                self.store, datetime.timedelta(hours=self.config.idempotency_key_hours)))
            group.create_task(self.doctor.run())
            group.create_task(Maintenance(self.store, quota=self.config.etcd_quota_mib << 20).run())

    async def take_part(self) -> None:
        """Be listed and lead what falls to this replica. Cancelled, it resigns all of that, and only then leaves the list."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.membership.run())
            await Roles(self.database, self.membership, self.roles).run()


async def run(config: Config) -> None:
    """Be a replica until cancelled. Raises kernel errors, or CannotListen, where it cannot start."""
    credentials = etcd_server.client_credentials(config.pki_dir, life=_life(config))
    store = EtcdStore(config.etcd_endpoints, credentials)
    replica = Replica(config, store, credentials)
    try:
        async with asyncio.TaskGroup() as lasting:          # what calls in progress need ends after them
            lasting.create_task(replica.database.cache.run())
            await replica.database.cache.ready.wait()
            await replica.bootstrap()
            async with asyncio.TaskGroup() as group:
                if config.audit_required:
                    group.create_task(keep_required(replica.database, config.audit_dir))
                group.create_task(Maintenance(store).guard())
                group.create_task(disks.watch(
                    [config.state_dir, config.path("images"), config.path("etcd"), config.audit_dir]))
                group.create_task(replica.hosts.run())
                group.create_task(replica.images.run())
                group.create_task(replica.watches.run())
                group.create_task(replica.policy_file.watch())
                group.create_task(replica.take_part())
                group.create_task(Renewal(_leaves(config), store.client.renew).run())
                group.create_task(http.serve(replica.gateway, config.listen, config.port,
                                             config.certificate or None, config.key or None))
                group.create_task(_serve_grpc(replica))
                group.create_task(_serve_agents(replica))
                if config.metrics_listen:
                    group.create_task(listener.serve(config.metrics_listen, config.port + 5, ready=replica.ready,
                                                     metrics=replica.metrics))
    finally:
        replica.directories.close()
        await replica.providers.close()
        await replica.peers.close()
        await store.close()


async def _serve_grpc(replica: Replica) -> None:
    """The gRPC listener for users, with reflection and health."""
    from grpc_health.v1 import health, health_pb2, health_pb2_grpc
    from grpc_reflection.v1alpha import reflection

    config = replica.config
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", rpc.MAX_MESSAGE)])
    rpc.add_to_grpc(replica.dispatcher, server)
    names = [service.full_name for service in replica.dispatcher.services]
    servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    for name in ("", *names):
        await servicer.set(name, health_pb2.HealthCheckResponse.SERVING)
    reflection.enable_server_reflection([*names, health.SERVICE_NAME, reflection.SERVICE_NAME], server)
    address = _address(config.listen, config.grpc_port)
    if config.certificate:
        server.add_secure_port(address, tls.grpc_server_credentials(Path(config.certificate), Path(config.key)))
    else:
        server.add_insecure_port(address)
    await _serve(server)


async def _serve_agents(replica: Replica) -> None:
    """The listener for agents: mutual TLS with the cloud's own authority."""
    config = replica.config
    own = _agents_leaf(config)
    credentials = tls.grpc_server_credentials(own.certificate, own.key, own.ca)
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", rpc.MAX_MESSAGE)])
    rpc.add_to_grpc(replica.for_agents, server)
    server.add_secure_port(_address(config.agent_listen, config.agent_port), credentials)
    await _serve(server, stopping=replica.hosts.leave)


def _leaves(config: Config) -> list[Callable[[], pki.Credentials]]:
    """The certificates of this replica's parts: its own towards etcd, its listener's for agents, its etcd member's."""
    life = _life(config)
    own = [lambda: etcd_server.client_credentials(config.pki_dir, life=life), lambda: _agents_leaf(config)]
    if not config.etcd:
        address = config.place.address if config.place else "127.0.0.1"
        own.append(lambda: etcd_server.server_credentials(config.pki_dir, address, life))
    return own


def _agents_leaf(config: Config) -> pki.Credentials:
    return pki.ensure_leaf(config.pki_dir, "agents", [config.agent_listen, "localhost"], server=True, life=_life(config))


def _life(config: Config) -> datetime.timedelta:
    return datetime.timedelta(days=config.certificate_days)


async def _serve(server: grpc.aio.Server, stopping: Callable[[], None] = lambda: None) -> None:
    """Serve until cancelled. `stopping` tells long streams to end; calls in progress then have GRACE."""
    await server.start()
    try:
        await server.wait_for_termination()
    finally:
        stopping()
        await server.stop(GRACE)


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _secret(config: Config, user: str) -> str:
    return config.path(f"{user}.password").read_text().strip()
