"""One host's agent: holds the objects that the control plane wishes there, makes the host like them, says what it sees.

Knows no transport: `desired` and `answer` take what arrives, `report` is given what is to be said. A server is worked on by one
worker at a time: look, take one step, look again, report. What is at rest costs nothing until an event or the next full look.

Where the host has a lease (agents/lease.py), no guest is touched without it, and all are stopped when it runs out. What an
older epoch left behind goes before the host is readmitted.
"""
import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable
from typing import Protocol

from agents.hypervisor.driver import MISSING, Domain, Fault, Hypervisor, Outage, Wish
from agents.hypervisor.model import Seen, Step, Wanted, next_step, reported, wanted
from agents.lease import Lease
from agents.network.driver import HostNetworking
from agents.telemetry import traces
from agents.telemetry.logs import request_id
from agents.telemetry.timing import Timings
from agents.wiring import Wiring
from agents.work import Worklist
from protos.internal.v1 import hosts_pb2 as pb

log = logging.getLogger(__name__)

#: Seconds between two looks at everything, for what no event announced.
LOOK_EVERY = 60.0

#: Seconds after which it is looked again where the hypervisor did not answer.
LOOK_AGAIN = 2.0

#: How often a start may fail in a row before the server's owner is told that it will not be. With the back-off, half a minute.
TRIES = 8

#: Seconds: a domain that is off again within STEADY after its start waits 1, 2, 4 ... up to MAX_WAIT before the next one.
STEADY, MAX_WAIT = 30.0, 60.0

#: Seconds between two tries to stop a guest whose host has no lease, or to remove one that an older epoch left.
FENCE_EVERY = 0.5

#: Where a guest may do something, or is about to.
_ON = (Seen.RUNNING, Seen.PAUSED, Seen.CRASHED)

#: Says something about one thing; only the last about each counts.
Report = Callable[[str, pb.AgentMessage], None]


class Movers(Protocol):
    """The way of disks between hosts (agents.link.Link, by shape)."""

    def fetch_disk(self, server_id: str, move_id: str) -> AsyncIterator[bytes]:
        """A disk from the host that its server leaves. Raises Fault unless it came whole."""

    async def send_disk(self, move_id: str, chunks: AsyncIterator[bytes]) -> None:
        """Send a disk to who waits for it. Raises Fault."""


class Agent:
    """Makes one host like its objects.

    Args:
      stop_seconds, reboot_seconds: that a guest has to shut down when it is stopped, or rebooted softly, before its power is
        cut. The image property os_shutdown_timeout overrides the first.
      workers: servers that are worked on at a time.
      lease: the host's; without one its guests may always run.
    """

    def __init__(self, hypervisor: Hypervisor, networking: HostNetworking, report: Report, *, stop_seconds: float = 60.0,
                 reboot_seconds: float = 120.0, workers: int = 32, lease: Lease | None = None):
        self._hypervisor = hypervisor
        self._lease = lease or Lease()
        self.movers: Movers | None = None                   # to be set where servers may come from other hosts and leave for them
        self._arrived: dict[str, str] = {}                  # server -> the move whose disk is here
        self._wiping: asyncio.Task[None] | None = None
        self._report = report
        self._stop_seconds = stop_seconds
        self._reboot_seconds = reboot_seconds
        self._objects: dict[str, pb.HostObject] = {}
        self._wiring = Wiring(networking, self._objects, self._report_port)
        #: Of steps, by what was done and how it came out.
        self.timings = Timings()
        self._servers = Worklist(self._work, workers, expected=(Fault,))
        self._given_up: dict[str, tuple[int, str]] = {}     # server -> generation that cannot be met, and why
        self._starts: dict[str, tuple[float, int]] = {}     # server -> when it was started last, and early ends in a row
        self._refused: set[tuple[str, int]] = set()         # old generations that were logged
        self._attached = asyncio.Event()                    # a snapshot came, and not everything was looked at since

    # What arrives

    def desired(self, desired: pb.Desired) -> None:
        """Take in a snapshot of all objects, or what changed."""
        if not self._lease.holds():
            return                     # they come again, when the guests are stopped
        before = dict(self._objects)
        arrived = {thing.key: thing for thing in desired.upserts if not self._is_old(thing)}
        if desired.snapshot:
            kept = arrived.keys() | {thing.key for thing in desired.upserts}
            for key in before.keys() - kept:
                del self._objects[key]
        for key in desired.removed:
            self._objects.pop(key, None)
        self._objects.update(arrived)

        self._wiring.touch()           # servers are among what it takes: their metadata is served on the network
        for key in (self._objects if desired.snapshot else arrived):
            if _is_server(key):
                if key in before and before[key].server.generation < self._objects[key].server.generation:
                    self._servers.restart(key)
                else:
                    self._servers.add(key)
        for key in before.keys() - self._objects.keys():
            if _is_server(key):
                self._forget(key)
        if desired.snapshot:
            for port_id in self._wiring.wired:
                if f"port/{port_id}" in self._objects:
                    self._report_port(port_id, True)
            if self._wiping is not None:
                self._wiping.cancel()
            if self._lease.granted_epoch > self._lease.epoch:
                self._wiping = asyncio.create_task(self._wipe(self._lease.granted_epoch))
            self._attached.set()

    def counts(self) -> dict[str, int]:
        """How many servers there are here, and of how many something is to be done."""
        return {"servers": sum(map(_is_server, self._objects)), "at work": self._servers.depth}

    async def answer(self, query: pb.Query) -> pb.Reply:
        """Answer a question that only the host can."""
        try:
            match query.WhichOneof("query"):
                case "console_log":
                    asked = query.console_log
                    if f"server/{asked.server_id}" not in self._objects:
                        return pb.Reply(id=query.id, error=f"Server {asked.server_id} is not on this host.")
                    return pb.Reply(id=query.id, data=await self._hypervisor.console_log(asked.server_id, asked.lines))
                case "disk":
                    await self._send(query.disk)
                    return pb.Reply(id=query.id)
            return pb.Reply(id=query.id, error="The host's agent does not know the question: it is older than the control plane.")
        except (Fault, OSError) as error:
            return pb.Reply(id=query.id, error=str(error))

    @property
    def idle(self) -> bool:
        """Whether nothing is being done, nor to be done again."""
        return self._servers.idle

    async def run(self) -> None:
        """Work until cancelled. Virtual machines run on afterwards."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._keep_lease())
                group.create_task(self._wiring.run())
                group.create_task(self._follow_events())
                group.create_task(self._look_around())
        finally:
            if self._wiping is not None:
                self._wiping.cancel()
            await self._servers.close()

    # Servers

    async def _work(self, key: str) -> float | None:
        thing = self._objects.get(key)
        if thing is None or not self._lease.holds():
            return None
        server = thing.server
        request_id.set(" ".join(server.request_ids) or "-")        # of this key's own task
        if server.HasField("arriving"):
            await self._arrive(key, server)
            return None
        domain = await self._look(server.id)
        if domain.generation > server.generation:
            self._refuse(key, server.generation, domain.generation)
            return None
        step = next_step(server, domain.seen, domain.generation, domain.reboots)
        given_up, why = self._given_up.get(key, (-1, ""))
        if given_up == server.generation and step in (Step.START, Step.REBOOT):
            self._report_server(server, domain, fault=why, final=True)
            return None
        if step is Step.START and (seconds := self._early_end(server, domain)):
            self._report_server(server, domain, step="waiting to start again")
            return seconds
        if step not in (Step.REST, Step.NOTE):
            log.info("server %s: %s (%s)", server.id, step.value, domain.seen.value)
        started, outcome = time.perf_counter(), "ok"
        try:
            with traces.span(f"server {step.value}", parent=server.traceparent, server__id=server.id):
                await self._carry_out(step, server, domain)
        except Fault as fault:
            outcome = "Fault"
            self._report_fault(key, step, server, await self._look_after(server.id, domain), fault)
            if fault.final:
                log.warning("server %s: %s", server.id, fault)
                return None
            raise
        finally:
            self.timings.add((step.value, outcome), time.perf_counter() - started)
        if step is Step.REMOVE:
            self._report(key, pb.AgentMessage(gone=pb.Gone(key=key)))
            return None
        if step is not Step.REST:
            domain = await self._look(server.id)
        if next_step(server, domain.seen, domain.generation, domain.reboots) is not Step.REST:
            return 0.0
        self._given_up.pop(key, None)
        self._report_server(server, domain)
        return None

    async def _arrive(self, key: str, server: pb.HostServer) -> None:
        """Have the disk of a server that comes here, and say so. Nothing of it runs here yet."""
        def say(doing: str) -> None:
            self._report_server(server, MISSING, step=doing)

        move_id = server.arriving.id
        if self._arrived.get(server.id) != move_id:
            try:
                if self.movers is None:
                    raise Fault("This host's agent cannot take disks from others.", final=True)
                log.info("server %s: its disk comes from another host", server.id)
                await self._hypervisor.take_disk(server, self.movers.fetch_disk(server.id, move_id), say)
            except Fault as fault:
                self._report_server(server, MISSING, step="" if fault.final else "waiting to try again", fault=str(fault),
                                    final=fault.final)
                if not fault.final:
                    raise
                log.warning("server %s: %s", server.id, fault)
                return
            self._arrived[server.id] = move_id
        self._report(key, pb.AgentMessage(server=pb.ObservedServer(id=server.id, arrived=move_id)))

    async def _send(self, asked: pb.DiskQuery) -> None:
        """Send the disk of a server that is to be off here. Raises Fault."""
        thing = self._objects.get(f"server/{asked.server_id}")
        if thing is None or thing.server.power != pb.HostServer.STOPPED or self.movers is None:
            raise Fault(f"Server {asked.server_id} is not about to leave this host.")
        await self.movers.send_disk(asked.move_id, self._hypervisor.disk(asked.server_id))

    async def _carry_out(self, step: Step, server: pb.HostServer, domain: Domain) -> None:
        """Take a step. Raises Fault, also where the host's own files are the trouble: its disk is full, or broken."""
        try:
            await self._take(step, server, domain)
        except OSError as error:
            raise Fault(f"The host's disk does not take what the server needs: {error.strerror or error}.") from error

    async def _take(self, step: Step, server: pb.HostServer, domain: Domain) -> None:
        def say(doing: str) -> None:
            self._report_server(server, domain, step=doing)

        if not self._lease.holds():
            raise Fault("The host's lease has run out.")
        match step:
            case Step.NOTE if server.power == pb.HostServer.STOPPED:
                await self._hypervisor.ensure_stopped(server, 0)
            case Step.NOTE:
                await self._hypervisor.ensure_running(self._wish(server), say)
            case Step.START:
                say("wiring")
                await self._wiring.ready(server.port_ids)
                await self._hypervisor.ensure_running(self._wish(server), say)
                self._started(server.id)
            case Step.REBOOT:
                say("rebooting")
                await self._wiring.ready(server.port_ids)
                await self._hypervisor.reboot(self._wish(server), self._reboot_seconds if server.reboot_soft else 0)
                self._started(server.id)
            case Step.STOP:
                say("stopping")
                await self._hypervisor.ensure_stopped(server, self._grace(server))
            case Step.REMOVE:
                say("removing")
                await self._hypervisor.ensure_gone(server.id)

    async def _look(self, server_id: str) -> Domain:
        return (await self._hypervisor.observe([server_id])).get(server_id, MISSING)

    async def _look_after(self, server_id: str, before: Domain) -> Domain:
        """What is seen after a failure; what was seen before it, if the host cannot even say that."""
        try:
            return await self._look(server_id)
        except Fault:
            return before

    def _wish(self, server: pb.HostServer) -> Wish:
        """A server with its ports and networks. Raises Fault while one of its ports has not arrived."""
        ports = [self._objects[key].port for port_id in server.port_ids if (key := f"port/{port_id}") in self._objects]
        if len(ports) < len(server.port_ids):
            raise Fault("A port of the server has not reached this host.")
        networks = {thing.network.id: thing.network for thing in self._objects.values() if thing.HasField("network")}
        return Wish(server, ports, networks)

    def _grace(self, server: pb.HostServer) -> float:
        try:
            return min(max(0.0, float(server.image.properties["os_shutdown_timeout"])), 3600.0)
        except (KeyError, ValueError):
            return self._stop_seconds

    def _started(self, server_id: str) -> None:
        _, ends = self._starts.get(server_id, (0.0, 0))
        self._starts[server_id] = (asyncio.get_running_loop().time(), ends)

    def _early_end(self, server: pb.HostServer, domain: Domain) -> float:
        """Seconds to wait before a domain is started that ended, unasked, soon after its last start; 0 to start it now."""
        at, ends = self._starts.get(server.id, (0.0, 0))
        if not at or domain.seen is Seen.MISSING or wanted(server, domain.generation, domain.reboots) is not Wanted.RUN:
            self._starts.pop(server.id, None)
            return 0.0
        now = asyncio.get_running_loop().time()
        wait = min(2.0 ** ends, MAX_WAIT)
        if now - at > max(STEADY, wait):
            self._starts.pop(server.id, None)
            return 0.0
        if now - at < wait:
            return wait - (now - at)
        self._starts[server.id] = (at, ends + 1)
        return 0.0

    def _is_old(self, thing: pb.HostObject) -> bool:
        """Whether a server's wish is older than the one that is held; it is refused then."""
        held = self._objects.get(thing.key)
        if held is None or not thing.HasField("server") or thing.server.generation >= held.server.generation:
            return False
        self._refuse(thing.key, thing.server.generation, held.server.generation)
        return True

    def _refuse(self, key: str, generation: int, newest: int) -> None:
        if (key, generation) not in self._refused:
            self._refused.add((key, generation))
            log.warning("%s: generation %d is refused, %d was carried out already", key, generation, newest)

    def _forget(self, key: str) -> None:
        self._given_up.pop(key, None)
        self._arrived.pop(key.partition("/")[2], None)
        self._starts.pop(key.partition("/")[2], None)
        self._refused = {refused for refused in self._refused if refused[0] != key}

    # Running

    async def _follow_events(self) -> None:
        async for server_id in self._hypervisor.events():
            if not server_id:
                for key in list(filter(_is_server, self._objects)):
                    self._servers.add(key)
            elif (thing := self._objects.get(f"server/{server_id}")) and thing.server.power != pb.HostServer.ABSENT:
                self._servers.add(thing.key)       # one that is to go is looked at until it has gone, events or not

    async def _look_around(self) -> None:
        """Look at everything after a snapshot and now and then: servers that are not as wished, domains that nobody wishes, the
        network."""
        unwished: set[str] = set()
        await self._attached.wait()
        while True:
            self._attached.clear()
            self._wiring.touch()
            try:
                found = await self._hypervisor.observe()
            except Fault as fault:
                log.warning("%s", fault)
                await asyncio.sleep(LOOK_AGAIN)
                self._attached.set()
                continue
            for key, thing in self._objects.items():
                if _is_server(key):
                    domain = found.pop(thing.server.id, MISSING)
                    if next_step(thing.server, domain.seen, domain.generation, domain.reboots) is not Step.REST:
                        self._servers.add(key)
            for server_id in found.keys() - unwished:
                log.warning("server %s runs here and the control plane does not know it: left alone", server_id)
            unwished = set(found)
            self._report("strangers", pb.AgentMessage(strangers=pb.Strangers(server_ids=sorted(unwished))))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_EVERY):
                    await self._attached.wait()

    # Fencing

    async def _keep_lease(self) -> None:
        """Whenever the lease runs out: forget what was wished, stop every guest, and only then let anything else go on."""
        while True:
            await self._lease.lapse()
            log.warning("the lease of this host has run out: its guests are stopped")
            for key in list(filter(_is_server, self._objects)):
                del self._objects[key]
                self._forget(key)
            dropping = asyncio.create_task(self._servers.drop())     # may wait for a start, and other guests shall not
            while True:
                last = dropping.done()
                if await self._all_off() and last:
                    break
                await (asyncio.sleep(FENCE_EVERY) if last else asyncio.wait({dropping}, timeout=FENCE_EVERY))
            log.warning("no guest runs on this host")
            self._lease.ended()

    async def _all_off(self) -> bool:
        """Cut the power of all that runs; whether nothing does now. What was carried out of their wishes stays noted."""
        async def cut(server_id: str, domain: Domain) -> None:
            try:
                await self._hypervisor.ensure_stopped(
                    pb.HostServer(id=server_id, generation=domain.generation, reboots=domain.reboots), 0)
            except Fault as fault:
                log.error("server %s could not be stopped, though this host has no lease: %s", server_id, fault)

        try:
            async with asyncio.TaskGroup() as group:
                for server_id, domain in (await self._hypervisor.observe()).items():
                    if domain.seen in _ON:
                        group.create_task(cut(server_id, domain))
            return all(domain.seen not in _ON for domain in (await self._hypervisor.observe()).values())
        except Fault as fault:
            log.error("it cannot be seen what runs, though this host has no lease: %s", fault)
            return False

    async def _wipe(self, epoch: int) -> None:
        """Remove what the snapshot does not name, which runs elsewhere by now; then ask to be readmitted."""
        await self._servers.drop(unless=self._objects.keys())        # a start that goes on has not left anything to be seen yet
        while True:
            try:
                left = [server_id for server_id in await self._hypervisor.observe() if f"server/{server_id}" not in self._objects]
                for server_id in left:
                    log.warning("server %s: removed, it left this host when the host was fenced", server_id)
                    await self._hypervisor.ensure_gone(server_id)
                if not left:
                    break
            except Fault as fault:
                log.warning("what was here before the host was fenced cannot be removed: %s", fault)
                await asyncio.sleep(FENCE_EVERY)
        self._lease.readmitted(epoch)
        self._report("readmit", pb.AgentMessage(readmit=pb.Readmit(epoch=epoch)))

    # What is said

    def _report_server(self, server: pb.HostServer, domain: Domain, *, step: str = "", fault: str = "",
                       final: bool = False) -> None:
        """Say what is seen. The generation is the wish's once it came to rest, for better or worse; until then the last one's."""
        resting = not step and (final or not fault)
        self._report(f"server/{server.id}", pb.AgentMessage(server=pb.ObservedServer(
            id=server.id, generation=server.generation if resting else domain.generation, domain=reported(server, domain.seen),
            reboots=domain.reboots, step=step, fault=fault, fault_final=final)))

    def _report_fault(self, key: str, step: Step, server: pb.HostServer, domain: Domain, fault: Fault) -> None:
        tried_enough = self._servers.failures(key) + 1 >= TRIES and not isinstance(fault, Outage)
        if step in (Step.START, Step.REBOOT) and (fault.final or tried_enough):
            self._given_up[key] = (server.generation, str(fault))
            fault.final = True
            self._report_server(server, domain, fault=str(fault), final=True)
        else:
            fault.final = False
            self._report_server(server, domain, step="waiting to try again", fault=str(fault))

    def _report_port(self, port_id: str, up: bool) -> None:
        self._report(f"port/{port_id}", pb.AgentMessage(port=pb.ObservedPort(id=port_id, up=up)))


def _is_server(key: str) -> bool:
    return key.startswith("server/")

