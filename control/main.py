"""One replica of the control plane, wired: the only place that knows every service.

Start: the cache follows the store, what a new cloud needs is made, the listeners open. Stop (cancellation): the listeners
finish what they have begun, leadership is given up, connections close.
"""
import asyncio
import dataclasses
import logging
import os
import socket
from collections.abc import Sequence
from pathlib import Path

import grpc
from google.protobuf.descriptor import ServiceDescriptor

from control import metrics
from control.compute import service as compute
from control.gateway import server as http
from control.gateway.app import Gateway
from control.hosts.service import Hosts
from control.identity import asking, directories, directory_settings
from control.identity import service as identity
from control.identity.directory_logins import DirectoryAuthenticator, DirectoryPasswords
from control.identity.federation import settings as federation
from control.identity.federation.providers import Providers
from control.image import service as image
from control.kernel import etcd_server, fleet, pki, quota, rpc
from control.kernel.cache import Kind
from control.kernel.config import Config
from control.kernel.database import Database
from control.kernel.election import Election
from control.kernel.etcd_maintenance import Maintenance
from control.kernel.etcd_store import EtcdStore
from control.kernel.policy import PolicyFile
from control.kernel.store import Guard
from control.network import service as network
from control.placement import service as placement
from control.placement.host_providers import HostProviders
from control.placement.live import LiveFleet
from control.placement.lives import Lives
from control.placement.placer import FleetPlacer
from control.readiness import Readiness
from control.watch import service as watch
from protos.internal.v1 import hosts_pb2
from telemetry import listener

log = logging.getLogger(__name__)

#: Seconds that calls in progress have to end when a listener stops.
GRACE = 5.0

KINDS: tuple[Kind, ...] = (*quota.KINDS, *fleet.KINDS, *identity.KINDS, *image.KINDS, *compute.KINDS, *network.KINDS)


class Replica:
    """Everything that one control process has, built from its settings."""

    def __init__(self, config: Config, store: EtcdStore):
        self.config = config
        self.store = store
        self.database = Database(store, KINDS)
        self.directories = directories.Directories(self.database, directory_settings.read(config.identity))
        self.providers = Providers(federation.read(config.identity))
        self.authenticator = DirectoryAuthenticator(self.database, self.directories)
        self.images = image.ImageService(self.database, config.path("images"), config.max_image_size)
        self.ports = network.ServerPorts(self.database)
        self.settings = compute.Settings(policy=config.placement_policy)
        demands = compute.Demands(self.database, self.settings)
        self.fleet = LiveFleet(self.database, demands, Lives(demands) if config.placement_policy == "pack" else None)
        self.placer = FleetPlacer(self.fleet)
        self.hosts = Hosts(
            self.database, images=self.images, inventories=HostProviders(
                ratios={fleet.VCPU: config.cpu_allocation_ratio, fleet.MEMORY_MB: config.ram_allocation_ratio,
                        fleet.DISK_GB: config.disk_allocation_ratio},
                reserved={fleet.VCPU: 0, fleet.MEMORY_MB: config.reserved_ram_mib, fleet.DISK_GB: 0}),
            projections=[compute.Projection(self.database, self.ports), network.Projection(self.database)],
            observers=[network.Observer(self.database), compute.Observer(self.database, self.ports, self.placer)])
        self.dispatcher = rpc.Dispatcher(self.authenticator, revision=lambda: self.database.cache.revision)
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
                *watch.servicers(self.database, self.watches, self.dispatcher.admit)]

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

    async def lead(self, fence: Guard) -> None:
        """The work of one replica at a time."""
        async with asyncio.TaskGroup() as group:
            servers = compute.Reconciler(self.database, self.ports, self.placer, [fence], settings=self.settings)
            group.create_task(servers.controller().run())
            group.create_task(network.Reconciler(self.database, [fence]).controller().run())
            group.create_task(identity.keep_rotating(self.database))
            group.create_task(identity.keep_sweeping(self.database))
            group.create_task(Maintenance(self.store).run())


async def run(config: Config) -> None:
    """Be a replica until cancelled. Raises kernel errors, or CannotListen, where it cannot start."""
    store = EtcdStore(config.etcd_endpoints, etcd_server.client_credentials(config.pki_dir))
    replica = Replica(config, store)
    election = Election(store, "control", f"{socket.gethostname()}/{os.getpid()}")
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(replica.database.cache.run())
            await replica.database.cache.ready.wait()
            await replica.bootstrap()
            group.create_task(replica.hosts.run())
            group.create_task(replica.images.run())
            group.create_task(replica.watches.run())
            group.create_task(replica.policy_file.watch())
            group.create_task(election.lead(replica.lead))
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
        server.add_secure_port(address, _own_certificate(config))
    else:
        server.add_insecure_port(address)
    await _serve(server)


async def _serve_agents(replica: Replica) -> None:
    """The listener for agents: mutual TLS with the cloud's own authority."""
    config = replica.config
    own = pki.ensure_leaf(config.pki_dir, "agents", [config.agent_listen, "localhost"], server=True)
    credentials = grpc.ssl_server_credentials([(own.key.read_bytes(), own.certificate.read_bytes())], own.ca.read_bytes(),
                                              require_client_auth=True)
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", rpc.MAX_MESSAGE)])
    rpc.add_to_grpc(replica.for_agents, server)
    server.add_secure_port(_address(config.agent_listen, config.agent_port), credentials)
    await _serve(server)


def _own_certificate(config: Config) -> grpc.ServerCredentials:
    return grpc.ssl_server_credentials([(Path(config.key).read_bytes(), Path(config.certificate).read_bytes())])


async def _serve(server: grpc.aio.Server) -> None:
    await server.start()
    try:
        await server.wait_for_termination()
    finally:
        await server.stop(GRACE)


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _secret(config: Config, user: str) -> str:
    return config.path(f"{user}.password").read_text().strip()
