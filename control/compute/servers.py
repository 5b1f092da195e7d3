"""The servers' servicer: each call checks, decides in one commit and answers; reconciler and agents do the rest.

A create of many servers is committed in portions that fit a transaction, each whole in itself: a server comes with its ports
and its quota charge or not at all. What fits the quota between min_count and max_count is made; where a later portion fails
the ones before it are deleted again, and a crash in between leaves plain servers that their owner sees.
"""
import functools
import secrets
import uuid
from collections.abc import Callable

from google.protobuf.empty_pb2 import Empty
from google.protobuf.field_mask_pb2 import FieldMask

from control.compute import history, limits, model, query, server_groups
from control.compute.access import find_server
from control.compute.demand import Settings
from control.compute.model import SERVER
from control.compute.neighbours import Console, Images, Placer, Ports
from control.compute.new_server import Draft, draft
from control.compute.removal import abandon
from control.compute.view import Views
from control.kernel import clock, fleet, quota
from control.kernel.caller import Caller
from control.kernel.database import Database, Transaction
from control.kernel.errors import Conflict, Denied, Error, Exhausted, Invalid, NotFound
from control.kernel.rpc import Call
from control.kernel.store import MAX_BYTES, MAX_OPERATIONS
from protos.compute.v1 import servers_pb2 as pb
from protos.compute.v1.records_pb2 import Relocation, ServerFault, ServerRecord

#: Console lines in one answer at most.
MAX_LINES = 100_000


class Servers:
    """Servicer of compute.v1.Servers."""

    def __init__(self, database: Database, ports: Ports, images: Images, console: Console, placer: Placer, settings: Settings):
        self._database = database
        self._ports = ports
        self._images = images
        self._console = console
        self._placer = placer
        self._settings = settings
        self._views = Views(database, ports)

    # Making and unmaking

    async def CreateServer(self, request: pb.CreateServerRequest, call: Call) -> pb.CreateServerResponse:
        plan = draft(request, call.caller, self._database, self._images, self._ports, self._settings)
        servers = await self._create(plan, call)
        if request.server.return_reservation_id:
            return pb.CreateServerResponse(reservation_id=plan.server.reservation_id)
        groups = plan.security_groups or ["default"]
        return pb.CreateServerResponse(server=pb.CreatedServer(
            id=servers[0].id, disk_config=plan.server.disk_config, password=plan.password,
            security_groups=[pb.GroupName(name=name) for name in groups]))

    async def _create(self, plan: Draft, call: Call) -> list[ServerRecord]:
        ids = [str(uuid.uuid4()) for _ in range(plan.most)]
        made: list[ServerRecord] = []
        try:
            while len(made) < plan.most:
                portion = await self._database.transact(
                    functools.partial(self._create_portion, plan=plan, ids=ids[len(made):], call=call),
                    serial=quota.serial(model.QUOTA, plan.server.project_id))
                if not portion:
                    break
                made += portion
        except Error:
            for server in made:
                await self._database.transact(functools.partial(self._mark_deleted, server_id=server.id, call=call))
            raise
        return made

    def _create_portion(self, tx: Transaction, plan: Draft, ids: list[str], call: Call) -> list[ServerRecord]:
        """As many of the servers that are still to be made as quota and one commit hold; [] when there are no more."""
        done = plan.most - len(ids)
        count = min(len(ids), self._room(tx, plan))
        if plan.server.server_group:
            most = server_groups.room(tx, plan.server.server_group, plan.server.project_id)
            count = count if most == quota.UNLIMITED else min(count, most)
            if done + count < plan.least and most != quota.UNLIMITED and most < plan.least - done:
                raise Exhausted("quota.compute", f"Quota exceeded, too many servers in group: {most} more may be in it, "
                                                 f"{plan.least - done} were asked for.")
        if done + count < plan.least:
            quota.charge(tx, model.QUOTA, plan.server.project_id, model.DEFAULT_QUOTAS,
                         **{name: amount * (plan.least - done) for name, amount in model.charge_of(plan.server).items()})
            raise AssertionError("what does not fit is not charged")
        made, size, operations = [], 0, 0
        now = clock.now()
        for index in range(count):
            server = plan.nth(done + index, ids[index])
            server.desired.power, server.desired.generation = model.RUNNING, 1
            server.created_at.CopyFrom(now)
            server.updated_at.CopyFrom(now)
            self._ports.create(tx, call.caller, server.id, server.hostname, plan.ports, plan.security_groups)
            quota.charge(tx, model.QUOTA, server.project_id, model.DEFAULT_QUOTAS, **model.charge_of(server))
            tx.put(SERVER, server)
            history.opened(tx, server, "create", call, now)
            made.append(server)
            records, guards = tx.writes()
            size, size_before = sum(len(record.key) + len(record.value or b"") for record in records), size
            operations, operations_before = len(records) + len(guards), operations
            if 2 * operations - operations_before > MAX_OPERATIONS or 2 * size - size_before > MAX_BYTES:
                break
        return made

    @staticmethod
    def _room(tx: Transaction, plan: Draft) -> int:
        """How many more such servers the project's quota has room for."""
        ledger = quota.ledger_of(tx, model.QUOTA, plan.server.project_id)
        room = plan.most
        for resource, amount in model.charge_of(plan.server).items():
            most = quota.limit_of(ledger, model.DEFAULT_QUOTAS, resource)
            if most != quota.UNLIMITED and amount:
                room = min(room, max(0, most - ledger.used.get(resource, 0)) // amount)
        return room

    async def DeleteServer(self, request: pb.DeleteServerRequest, call: Call) -> Empty:
        await self._database.transact(lambda tx: self._mark_deleted(tx, request.server_id, call))
        return Empty()

    def _mark_deleted(self, tx: Transaction, server_id: str, call: Call) -> None:
        server = find_server(tx, call.caller, server_id)
        model.check_unlocked(server, call.caller.is_admin)
        if not server.desired.deleted:
            model.want_deleted(server)
            self._put(tx, server, "delete", call)

    # Reading

    async def GetServer(self, request: pb.GetServerRequest, call: Call) -> pb.ServerResponse:
        return self._answer(request.server_id, call)

    async def ListServers(self, request: pb.ListServersRequest, call: Call) -> pb.ListServersResponse:
        servers, marker = query.page(request, call.caller, self._database, self._ports, self._views)
        return pb.ListServersResponse(servers=[pb.ServerSummary(id=server.id, name=server.name) for server in servers],
                                      next_page_marker=marker)

    async def ListServersDetail(self, request: pb.ListServersRequest, call: Call) -> pb.ListServersDetailResponse:
        servers, marker = query.page(request, call.caller, self._database, self._ports, self._views)
        response = pb.ListServersDetailResponse(next_page_marker=marker)
        for server in servers:
            self._views.server(server, call, response.servers.add)
        return response

    def _answer(self, server_id: str, call: Call) -> pb.ServerResponse:
        return pb.ServerResponse(server=self._views.server(find_server(self._database, call.caller, server_id), call))

    # Changing

    async def UpdateServer(self, request: pb.UpdateServerRequest, call: Call) -> pb.ServerResponse:
        def decide(tx: Transaction) -> None:
            server = find_server(tx, call.caller, request.server_id)
            if server.desired.deleted:
                raise Conflict("compute.server.state", f"Instance {server.id} is being deleted.")
            if update(server, request.server, request.update_mask):
                server.desired.generation += 1
            server.updated_at.CopyFrom(clock.now())
            tx.put(SERVER, server)

        await self._database.transact(decide)
        return self._answer(request.server_id, call)

    async def UpdateServerBriefly(self, request: pb.UpdateServerRequest, call: Call) -> pb.ChangedServerResponse:
        whole = await self.UpdateServer(request, call)
        return pb.ChangedServerResponse(server=pb.ChangedServer.FromString(whole.server.SerializeToString()))

    async def StartServer(self, request: pb.StartServerRequest, call: Call) -> Empty:
        return await self._act(request.server_id, "start", "start", call, lambda server: model.want_power(server, model.RUNNING))

    async def StopServer(self, request: pb.StopServerRequest, call: Call) -> Empty:
        return await self._act(request.server_id, "stop", "stop", call, lambda server: model.want_power(server, model.STOPPED))

    async def RebootServer(self, request: pb.RebootServerRequest, call: Call) -> Empty:
        how = request.reboot.type.upper()
        if how not in ("SOFT", "HARD"):
            raise Invalid("compute.reboot.type", f"reboot.type is 'SOFT' or 'HARD', not {request.reboot.type[:80]!r}.")
        return await self._act(request.server_id, f"reboot_{how.lower()}", "reboot", call,
                               lambda server: model.want_reboot(server, how == "SOFT"))

    async def _act(self, server_id: str, rule: str, action: str, call: Call, wish: Callable[[ServerRecord], None]) -> Empty:
        """Where `rule` allows it, make a wish and note it as an action."""
        def decide(tx: Transaction) -> None:
            server = find_server(tx, call.caller, server_id)
            model.check_unlocked(server, call.caller.is_admin)
            model.check_action(server, rule)
            wish(server)
            self._put(tx, server, action, call)

        await self._database.transact(decide)
        return Empty()

    async def LockServer(self, request: pb.LockServerRequest, call: Call) -> Empty:
        reason = limits.text(request.lock.locked_reason, "locked_reason")

        def decide(tx: Transaction) -> None:
            server = find_server(tx, call.caller, request.server_id)
            model.check_unlocked(server, call.caller.is_admin or not server.locked_by_admin)
            server.locked, server.locked_reason, server.locked_by_admin = True, reason, self._as_admin(call.caller, server)
            self._put(tx, server, "lock", call, done=True)

        await self._database.transact(decide)
        return Empty()

    async def UnlockServer(self, request: pb.UnlockServerRequest, call: Call) -> Empty:
        def decide(tx: Transaction) -> None:
            server = find_server(tx, call.caller, request.server_id)
            if server.locked_by_admin and not call.caller.is_admin:
                raise Denied("compute.server.locked", f"Instance {server.id} was locked by an admin, who alone may unlock it.")
            server.locked, server.locked_reason, server.locked_by_admin = False, "", False
            self._put(tx, server, "unlock", call, done=True)

        await self._database.transact(decide)
        return Empty()

    @staticmethod
    def _as_admin(caller: Caller, server: ServerRecord) -> bool:
        """An admin in the server's own project locks it as its owner."""
        return caller.is_admin and caller.project_id != server.project_id

    async def ResetServerState(self, request: pb.ResetServerStateRequest, call: Call) -> Empty:
        if request.reset.state not in ("active", "error"):
            raise Invalid("compute.reset.state", f"os-resetState.state is 'active' or 'error', not {request.reset.state[:80]!r}.")

        def decide(tx: Transaction) -> None:
            server = find_server(tx, call.caller, request.server_id)
            if request.reset.state == "active" and server.fault.from_host:
                server.desired.generation += 1       # the host gave up on this one and tries a newer one
            server.ClearField("fault")
            if request.reset.state == "error":
                server.fault.CopyFrom(ServerFault(code=500, message="An admin set this state.", created_at=clock.now()))
            self._put(tx, server, "reset-state", call, done=True)

        await self._database.transact(decide)
        return Empty()

    async def MigrateServer(self, request: pb.MigrateServerRequest, call: Call) -> Empty:
        def decide(tx: Transaction) -> None:
            server = find_server(tx, call.caller, request.server_id)
            model.check_unlocked(server, call.caller.is_admin)
            model.check_action(server, "migrate")
            self._check_target(tx, server, request.migrate.host)
            server.relocation.CopyFrom(Relocation(id=str(uuid.uuid4()), verb=model.MIGRATE, source=server.host,
                                                  requested_host=request.migrate.host, started_at=clock.now()))
            self._put(tx, server, "migrate", call)

        await self._database.transact(decide)
        return Empty()

    async def EvacuateServer(self, request: pb.EvacuateServerRequest, call: Call) -> pb.EvacuateServerResponse:
        asked = request.evacuate
        if asked.on_shared_storage:
            raise Invalid("compute.evacuate.storage", "evacuate.onSharedStorage must be false: disks are on their hosts.")
        password = limits.text(asked.admin_pass, "evacuate.adminPass") or secrets.token_urlsafe(9)
        stopped = call.microversion is not None and call.microversion >= (2, 95)

        def decide(tx: Transaction) -> None:
            server = find_server(tx, call.caller, request.server_id)
            if server.desired.deleted or not server.host:
                why = "it is being deleted" if server.desired.deleted else "it has no host"
                raise Conflict("compute.server.state", f"Cannot 'evacuate' instance {server.id}: {why}.")
            self._check_evacuation(tx, server, asked.host)
            abandon(tx, server, self._placer)
            server.relocation.CopyFrom(Relocation(id=str(uuid.uuid4()), verb=model.EVACUATE, source=server.host,
                                                  requested_host=asked.host, started_at=clock.now()))
            server.ClearField("fault")
            if stopped:
                server.desired.power = model.STOPPED
            self._put(tx, server, "evacuate", call)

        await self._database.transact(decide)
        return pb.EvacuateServerResponse(admin_pass=password)

    @staticmethod
    def _check_evacuation(tx: Transaction, server: ServerRecord, target: str) -> None:
        """Raises Invalid while a server's host may still run it, or where it cannot go to the host that is asked for."""
        host = tx.get(fleet.HOST, server.host)
        if host is not None and not fleet.lost_for_good(host):
            raise Invalid("compute.evacuate.host_in_use",
                          f"Compute service of {server.host} is still in use: unless it is fenced, its guests may run. Force it "
                          "down once it is off for certain.")
        Servers._check_target(tx, server, target)

    @staticmethod
    def _check_target(tx: Transaction, server: ServerRecord, target: str) -> None:
        if target == server.host:
            raise Invalid("compute.server.target", "The target host can't be the same one.")
        if target and tx.get(fleet.HOST, target) is None:
            raise NotFound("compute.host", f"Compute host {target[:255]} could not be found.")

    def _put(self, tx: Transaction, server: ServerRecord, action: str, call: Call, *, done: bool = False) -> None:
        now = clock.now()
        server.updated_at.CopyFrom(now)
        tx.put(SERVER, server)
        history.opened(tx, server, action, call, now, done=done)

    # Console

    async def GetConsoleOutput(self, request: pb.GetConsoleOutputRequest, call: Call) -> pb.GetConsoleOutputResponse:
        server = find_server(self._database, call.caller, request.server_id)
        if not server.host:
            raise Conflict("compute.server.state", f"Instance {server.id} is not ready: it has no host yet.")
        data = await self._console.console_log(server.host, server.id, _lines(request.console))
        return pb.GetConsoleOutputResponse(output=data.decode("utf-8", "replace").replace("\0", ""))


def _lines(console: pb.GetConsoleOutputRequest.Console) -> int:
    """How many lines a console request wants; 0 for all."""
    value = console.length
    match value.WhichOneof("kind"):
        case None | "null_value":
            return 0
        case "number_value" if value.number_value.is_integer():
            wanted = int(value.number_value)
        case "string_value" if value.string_value.lstrip("-").isdecimal() and len(value.string_value) < 12:
            wanted = int(value.string_value)
        case _:
            raise Invalid("compute.console.length", "os-getConsoleOutput.length: expected a number of lines.")
    if wanted < -1:
        raise Invalid("compute.console.length", "os-getConsoleOutput.length: expected -1 (all), 0 or more.")
    return 0 if wanted < 0 else min(wanted, MAX_LINES)


def update(server: ServerRecord, change: pb.ServerUpdate, mask: FieldMask) -> bool:
    """Apply an update's fields; whether the guest's view of the server changed."""
    paths = set(mask.paths) or {field.name for field, _ in change.ListFields()}
    guest = False
    if "name" in paths and (name := limits.name(change.name, "server")) != server.name:
        server.name, guest = name, True
    if "hostname" in paths and (hostname := limits.hostname(change.hostname)) != server.hostname:
        server.hostname, guest = hostname, True
    if "description" in paths:
        server.ClearField("description")
        if change.HasField("description"):
            server.description = limits.text(change.description, "description")
    if "access_ip_v4" in paths:
        server.access_ip_v4 = limits.address(change.access_ip_v4, 4)
    if "access_ip_v6" in paths:
        server.access_ip_v6 = limits.address(change.access_ip_v6, 6)
    if "disk_config" in paths:
        server.disk_config = limits.disk_config(change.disk_config)
    return guest
