"""Small honest neighbours of compute, a host whose agent does what it is told, and a world that holds them together.

The store is real (in memory) and so are placement, gateway and dispatcher; what is faked keeps its state in that store too, so
that a transaction that fails leaves none of it behind.
"""
import asyncio
import contextlib
import hashlib
from collections import Counter
from collections.abc import AsyncIterator, Sequence

from control.compute import service as compute
from control.compute.maintenance import Draining
from control.compute.model import DECISION, SERVER, SERVER_GROUP, leaving
from control.compute.neighbours import Address, PortRequest
from control.compute.observer import Observer
from control.compute.placing import Placing
from control.compute.projection import Projection
from control.compute.reconciler import Settling
from control.compute.relocation import Relocating
from control.gateway.app import Gateway
from control.kernel import fleet, quota, replicas
from control.kernel.cache import Kind
from control.kernel.caller import Caller
from control.kernel.clock import now
from control.kernel.database import Database, Transaction
from control.kernel.errors import Exhausted, Invalid, Unauthenticated, Unavailable
from control.kernel.rpc import Dispatcher
from control.kernel.store import Store
from control.placement.host_providers import HostProviders
from control.placement.live import LiveFleet
from control.placement.placer import FleetPlacer
from protos.image.v1.images_pb2 import Image
from protos.internal.v1.fleet_pb2 import HostRecord
from protos.internal.v1.hosts_pb2 import Gone, HostServer, Inventory, NetworkMember, ObservedServer
from tests.api.client import Client, Reply
from tests.upgrade.later_store import LaterStore

PORT = Kind("/fake/ports/", NetworkMember, id_of=lambda port: (port.port_id,), indexes={"device": lambda port: (port.device_id,)})

CALLERS = {
    "admin": Caller("admin-user", project_id="admin-project", roles=frozenset({"admin", "member", "reader"})),
    "demo": Caller("demo-user", project_id="demo-project", roles=frozenset({"member", "reader"})),
    "other": Caller("other-user", project_id="other-project", roles=frozenset({"member", "reader"})),
    "reader": Caller("read-user", project_id="demo-project", roles=frozenset({"reader"})),
}


class Tokens:
    """A token is a name of CALLERS."""

    async def authenticate(self, token: str) -> Caller:
        if token not in CALLERS:
            raise Unauthenticated("token", "The request you have made requires authentication.")
        return CALLERS[token]


class FakePorts:
    """Networks "net-1" and "net-2", each port with the next address; a project has 50 ports at most."""

    def __init__(self, database: Database):
        self._database = database
        self.down: set[str] = set()        # servers whose ports are not reported up

    def create(self, transaction: Transaction, caller: Caller, server_id: str, hostname: str, wanted: Sequence[PortRequest],
               security_groups: Sequence[str]) -> list[str]:
        if set(security_groups) - {"default", "web"}:
            raise Invalid("network.group", f"Unable to find security_group with name or id {security_groups[0]!r}")
        taken = len(transaction.rows(PORT))
        if wanted and taken + len(wanted) > 50:
            raise Exhausted("quota.network", "Quota exceeded for port: requested 1, already used 50 of 50")
        ids = []
        for index, want in enumerate(wanted):
            if want.network_id not in ("net-1", "net-2"):
                raise Invalid("network.network", f"Network {want.network_id} could not be found.")
            port_id = f"{server_id}:{index}"
            transaction.put(PORT, NetworkMember(port_id=port_id, device_id=server_id, hostname=want.network_id,
                                                mac=f"fa:16:3e:00:00:{taken + index:02x}"))
            ids.append(port_id)
        return ids

    def automatic(self, caller: Caller) -> list[PortRequest]:
        return [PortRequest("net-1")]

    def bind(self, transaction: Transaction, server_id: str, host: str) -> None:
        for port in transaction.rows(PORT, "device", server_id):
            copy = NetworkMember()
            copy.CopyFrom(port)
            copy.host = host
            transaction.put(PORT, copy)

    def release(self, transaction: Transaction, server_id: str) -> None:
        for port in transaction.rows(PORT, "device", server_id):
            transaction.delete(PORT, port.port_id)

    def ids(self, server_id: str) -> list[str]:
        return sorted(port.port_id for port in self._database.cache.by(PORT, "device", server_id))

    def addresses(self, server_id: str) -> list[Address]:
        return [Address(network=port.hostname, ip=f"10.0.0.{int(port.mac[-2:], 16) + 2}", version=4, mac=port.mac, type="fixed",
                        port_id=port.port_id, network_id=port.hostname, subnet_id="sub-1", port_state="ACTIVE")
                for port in self._database.cache.by(PORT, "device", server_id)]

    def security_groups(self, server_id: str) -> list[str]:
        return ["default"] if self.ids(server_id) else []

    def bound(self, transaction: Transaction):
        return [(port.port_id, port.device_id, port.host) for port in transaction.rows(PORT)]

    def wired(self, server_id: str, reads: Transaction | None = None) -> bool:
        return server_id not in self.down


class FakeImages:
    def __init__(self) -> None:
        self._images = {
            "img": Image(id="img", name="guest", status=Image.ACTIVE, disk_format="qcow2", size=15_000_000, min_ram=64),
            "split": Image(id="split", name="split", status=Image.ACTIVE, disk_format="ami", size=10_000_000),
            "kern": Image(id="kern", name="kern", status=Image.ACTIVE, disk_format="aki", size=5_000_000),
            "rd": Image(id="rd", name="rd", status=Image.ACTIVE, disk_format="ari", size=1_000_000),
            "cd": Image(id="cd", name="cd", status=Image.ACTIVE, disk_format="iso", size=1_000_000)}
        for image in self._images.values():
            image.os_hash_value = hashlib.sha512(image.id.encode()).hexdigest()
        properties = {"kernel_id": "kern", "ramdisk_id": "rd", "os_command_line": "console=ttyS0", "hw_disk_bus": "virtio"}
        for key, value in properties.items():
            self._images["split"].properties[key].string_value = value

    def bootable(self, caller: Caller, image_id: str) -> Image:
        if image_id not in self._images:
            raise Invalid("image", f"Image {image_id} could not be found.")
        return self._images[image_id]


class FakeConsole:
    async def console_log(self, host: str, server_id: str, lines: int) -> bytes:
        if host != "node-1":
            raise Unavailable("host", f"host {host} does not answer")
        return f"last {lines} lines of {server_id}\xff\n".encode("latin-1")


class Agent:
    """A host's agent: makes its domains as the projection wants them, and reports. `trouble` is what a start ends in."""

    def __init__(self, world: "World", host: str):
        self._world = world
        self.host = host
        self.domains: dict[str, int] = {}
        self.disks: set[str] = set()
        self.reboots: dict[str, int] = {}
        self.trouble: dict[str, str] = {}

    async def step(self) -> None:
        """Take one step for each server of the host."""
        for item in list(self._world.projection.objects_for(self.host)):
            await self._step(item.server)

    async def _step(self, wish: HostServer) -> None:
        if wish.power == HostServer.ABSENT:
            self.domains.pop(wish.id, None)
            self.disks.discard(wish.id)
            await self._world.observer.gone(self.host, Gone(key=f"server/{wish.id}"))
            return
        if wish.HasField("arriving"):
            if self._world.copying:
                self.disks.add(wish.id)
                await self.report(wish, arrived=wish.arriving.id)
            return
        self.disks.add(wish.id)
        have = self.domains.get(wish.id, ObservedServer.MISSING)
        if wish.id in self.trouble:
            await self.report(wish, fault=self.trouble[wish.id], fault_final=True)
            return
        if wish.power == HostServer.STOPPED:
            self.domains[wish.id] = ObservedServer.SHUTOFF
        elif wish.reboots > self.reboots.get(wish.id, 0):
            self.reboots[wish.id] = wish.reboots
            self.domains[wish.id] = ObservedServer.RUNNING
        elif have != ObservedServer.RUNNING and not (have == ObservedServer.SHUTOFF and self._off_by_itself(wish)):
            self.domains[wish.id] = ObservedServer.RUNNING
        await self.report(wish)

    def _off_by_itself(self, wish: HostServer) -> bool:
        record = self._world.database.get(SERVER, wish.id)
        return record is not None and record.seen.generation >= wish.generation

    async def report(self, wish: HostServer, **more) -> None:
        seen = ObservedServer(
            id=wish.id, generation=wish.generation, domain=self.domains.get(wish.id, ObservedServer.MISSING),
            reboots=self.reboots.get(wish.id, 0), **more)
        await self._world.database.transact(lambda tx: self._world.observer.observed_server(tx, self.host, seen))


class ComputeClient(Client):
    """A client of the compute endpoint: paths are below /compute/v2.1."""

    async def __call__(self, verb: str, target: str, **more) -> Reply:
        return await super().__call__(verb, f"/compute/v2.1{target}", **more)


class World:
    """A cloud with compute in it; made by `async with world() as it`."""

    def __init__(self, store: Store):
        self.store = store
        self.database = Database(store, (*compute.KINDS, *fleet.KINDS, *quota.KINDS, *replicas.KINDS, PORT))
        self.ports, self.images = FakePorts(self.database), FakeImages()
        self.placer = FleetPlacer(LiveFleet(self.database, compute.Demands(self.database)))
        self.projection = Projection(self.database, self.ports)
        self.observer = Observer(self.database, self.ports, self.placer)
        self.agents: dict[str, Agent] = {}
        self.lost: dict[str, Agent] = {}
        self.settings = compute.Settings()
        self.copying = True                # disks that move arrive
        self.dispatcher = Dispatcher(Tokens())
        for servicer, descriptor in compute.servicers(self.database, self.ports, self.images, FakeConsole(), self.placer):
            self.dispatcher.add(servicer, descriptor)
        self.gateway = Gateway(self.dispatcher)

    def client(self, who: str = "demo", microversion: str = "2.96") -> Client:
        headers = {"x-auth-token": who}
        if microversion:
            headers["openstack-api-version"] = f"compute {microversion}"
        return ComputeClient(self.gateway, headers)

    async def add_host(self, name: str = "node-1", vcpus: int = 8, ram_mib: int = 16384, disk_gib: int = 100,
                       up: bool = True) -> Agent:
        inventory = Inventory(
            vcpus=vcpus, ram_mib=ram_mib, disk_gib=disk_gib, hypervisor_type="QEMU", hypervisor_version=7002000,
            architecture="x86_64", cpu_model="qemu64", address="192.0.2.1")
        number = len(self.agents) + len(self.lost) + 1
        record = HostRecord(name=name, id=f"00000000-0000-4000-8000-{number:012d}", up=up, updated_at=now(), inventory=inventory)

        def attach(tx: Transaction) -> None:
            tx.put(fleet.HOST, record)
            HostProviders().refresh(tx, record)

        await self.database.transact(attach)
        self.agents[name] = Agent(self, name)
        return self.agents[name]

    async def set_host(self, name: str, **fields) -> None:
        """Change a host's record, as the hosts service does."""
        def decide(tx: Transaction) -> None:
            record = tx.require(fleet.HOST, name)
            for key, value in fields.items():
                setattr(record, key, value)
            if fields.get("up"):
                record.ClearField("fenced_at")
            tx.put(fleet.HOST, record)

        await self.database.transact(decide)

    async def lose(self, name: str) -> None:
        """A host falls silent and is fenced; its agent does nothing more."""
        def decide(tx: Transaction) -> None:
            record = tx.require(fleet.HOST, name)
            fleet.fence(record, now())
            tx.put(fleet.HOST, record)

        await self.database.transact(decide)
        self.lost[name] = self.agents.pop(name)

    async def find(self, name: str) -> Agent:
        """A host that was lost comes back: its agent removes what is not its host's, and is let in."""
        agent = self.agents[name] = self.lost.pop(name)
        await self.set_host(name, replica="control")
        wished = {item.server.id for item in self.projection.objects_for(name)}
        agent.domains = {server_id: seen for server_id, seen in agent.domains.items() if server_id in wished}
        agent.disks &= wished
        await self.set_host(name, up=True)
        return agent

    def placing(self, **more) -> Placing:
        return Placing(self.database, self.ports, self.placer, **more)

    def settling(self, **more) -> Settling:
        return Settling(self.database, self.ports, self.placer, **more)

    def relocating(self, **more) -> Relocating:
        return Relocating(self.database, self.ports, self.placer, **{"settings": self.settings, **more})

    def draining(self, **more) -> Draining:
        return Draining(self.database, self.placer, **more)

    async def lead(self) -> None:
        """The reconcilers as leaders run them, until cancelled."""
        await asyncio.gather(*(reconciler.controller().run() for reconciler in (
            self.placing(), self.settling(), self.relocating(), self.draining())))

    async def reconcile(self) -> None:
        """Until nothing is left to do for the reconcilers now."""
        for _ in range(20):
            revision = self.database.cache.revision
            for reconciler in (self.placing(), self.settling(), self.relocating(), self.draining()):
                for key in reconciler.all_keys():
                    await reconciler.reconcile(key)
            if self.database.cache.revision == revision:
                return
        raise AssertionError("the reconcilers do not come to rest")

    async def settle(self) -> None:
        """Until reconciler and agents are at rest."""
        for _ in range(20):
            revision = self.database.cache.revision
            await self.reconcile()
            for agent in self.agents.values():
                await agent.step()
            if self.database.cache.revision == revision:
                return
        raise AssertionError("the world does not come to rest")

    def check(self) -> None:
        """The invariants of the whole: ledgers equal a recount, nothing is left without its server."""
        used: dict[str, dict[str, int]] = {}
        servers = {server.id: server for server in self.database.cache.all(SERVER)}
        for server in servers.values():
            mine = used.setdefault(server.project_id, {"instances": 0, "cores": 0, "ram": 0})
            mine["instances"] += 1
            mine["cores"] += server.flavor.vcpus
            mine["ram"] += server.flavor.ram_mib
        for group in self.database.cache.all(SERVER_GROUP):
            mine = used.setdefault(group.project_id, {})
            mine["server_groups"] = mine.get("server_groups", 0) + 1
        for ledger in self.database.cache.all(quota.LEDGER):
            if ledger.service == "compute":
                expected = used.pop(ledger.project_id, {})
                assert {name: amount for name, amount in ledger.used.items() if amount} == expected
        assert not used, "servers that no ledger knows"
        for port in self.database.cache.all(PORT):
            assert port.device_id in servers, "a port without its server"
            assert port.host == servers[port.device_id].host
        hosts = {host.name: host.id for host in self.database.cache.all(fleet.HOST)}
        held = {each.consumer_uuid: list(each.providers) for each in self.database.cache.all(fleet.ALLOCATION)}
        placed = {server.id: server for server in servers.values() if server.host}
        moves = {server.relocation.id: server for server in servers.values() if leaving(server)}
        for move_id, server in moves.items():
            assert held.pop(move_id) == [hosts[server.relocation.target]], "a server that leaves has room at its target"
        assert held.keys() == placed.keys()
        assert all(held[identifier] == [hosts[server.host]] for identifier, server in placed.items() if server.host in hosts)
        recount: dict[str, Counter[str]] = {}
        for each in self.database.cache.all(fleet.ALLOCATION):
            for provider, amounts in each.providers.items():
                recount.setdefault(provider, Counter()).update(amounts.resources)
        for usage in self.database.cache.all(fleet.USAGE):
            assert dict(usage.used) == recount.get(usage.provider_uuid, {})
        assert {row.server_id for row in self.database.cache.all(DECISION)} <= set(servers), "a decision without its server"


@contextlib.asynccontextmanager
async def world(store: Store | None = None, hosts: int = 1) -> AsyncIterator[World]:
    """A world with hosts node-1, node-2 ... and flavors "1" (1 CPU, 512 MiB, 1 GiB) and "big" (8 CPUs)."""
    it = World(store or LaterStore())
    following = asyncio.create_task(it.database.cache.run())
    try:
        await it.database.cache.ready.wait()
        replica = replicas.new_record("control-1", "control-1:5002")
        await it.database.transact(lambda tx: tx.put(replicas.REPLICA, replica))
        for index in range(hosts):
            await it.add_host(f"node-{index + 1}")
        admin = it.client("admin")
        for flavor in ({"id": "1", "name": "small", "vcpus": 1, "ram": 512, "disk": 1},
                       {"id": "big", "name": "big", "vcpus": 8, "ram": 1024, "disk": 1}):
            if (await admin("GET", f"/flavors/{flavor['id']}")).status == 404:
                assert (await admin("POST", "/flavors", json_body={"flavor": flavor})).status == 200
        yield it
    finally:
        following.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await following


async def make(client: Client, name: str = "vm", **fields) -> str:
    """Create a server through REST; its id."""
    reply = await client("POST", "/servers", json_body={"server": {
        "name": name, "imageRef": "img", "flavorRef": "1", "networks": "auto", **fields}})
    assert reply.status == 202, reply.body
    return reply.json["server"]["id"]


async def show(client: Client, server_id: str) -> dict:
    reply = await client("GET", f"/servers/{server_id}")
    assert reply.status == 200, reply.body
    return reply.json["server"]


async def act(client: Client, server_id: str, **action) -> int:
    (name, body), = action.items()
    return (await client("POST", f"/servers/{server_id}/action", json_body={name.replace("os_", "os-"): body})).status
