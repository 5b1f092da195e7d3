"""Servers as QEMU domains of a libvirtd, under KVM where guests really run there and emulated elsewhere.

A domain that is right is never touched. Its UUID is the server's id, its metadata what Brume remembers of it, its files one
directory. Domains of other owners in the same libvirtd are neither seen nor changed.
"""
import asyncio
import contextlib
import logging
import os
import platform
import shutil
from collections.abc import AsyncIterator, Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import libvirt

import agents.metadata
from agents.hypervisor import config_drive, console, disks, kvm, libvirtd
from agents.hypervisor.connection import Connection, is_gone
from agents.hypervisor.domain_xml import NAMESPACE, PREFIX, Facts, Files, domain_xml, facts_of
from agents.hypervisor.driver import Domain, Fault, Images, Say, Wish
from agents.hypervisor.model import Seen
from protos.internal.v1.hosts_pb2 import HostServer, Inventory

log = logging.getLogger(__name__)

#: Seconds after which a guest that was asked to shut down is asked again: one that still boots does not hear the first time.
ASK_AGAIN = 3.0

#: Seconds between two tries to reach a libvirtd that went away.
RECONNECT_EVERY = 1.0

_CONFIG, _LIVE = libvirt.VIR_DOMAIN_AFFECT_CONFIG, libvirt.VIR_DOMAIN_AFFECT_LIVE


class LibvirtHypervisor:
    """driver.Hypervisor over libvirt; `async with` it.

    Args:
      uri: of libvirtd; see libvirtd.pick_uri.
      directory: for the domains' files; also whose the domains are, in their metadata.
      images: where disks' bases come from.
      kvm_directory: where it is kept whether KVM works: the private libvirtd's, which asks the same.
    """

    def __init__(self, uri: str, directory: Path, images: Images, kvm_directory: Path):
        self._directory = directory
        self._kvm_directory = kvm_directory
        self._images = images
        self._connection = Connection(uri, self._on_event)
        self._facts: dict[str, Facts] = {}             # by server, of our domains; read once, written through
        self._starting: set[str] = set()               # being started by us right now
        self._killed: set[str] = set()                 # QEMU was told to end by the host, which is no guest's wish
        self._off: dict[str, asyncio.Event] = {}       # somebody waits for these to be off
        self._changed: asyncio.Queue[str] = asyncio.Queue()
        self._no_kvm: str | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> "LibvirtHypervisor":
        self._directory.mkdir(parents=True, exist_ok=True)
        self._directory.chmod(0o711)                   # guests' user goes through, and sees nothing on the way
        self._tasks = [asyncio.create_task(self._stay_connected()), asyncio.create_task(self._cap_consoles())]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.to_thread(self._connection.close)

    # Looking

    async def inventory(self) -> Inventory:
        cpu_model, version = await self._connection.call(_capacity)
        no_kvm = await self._why_no_kvm()
        ram = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return Inventory(vcpus=len(os.sched_getaffinity(0)), ram_mib=ram >> 20,
                         disk_gib=shutil.disk_usage(self._directory).total // disks.GIB,
                         hypervisor_type="QEMU" if no_kvm else "KVM", hypervisor_version=version,
                         architecture=platform.machine(), cpu_model=cpu_model, notice=no_kvm)

    async def observe(self, server_ids: Collection[str] | None = None) -> dict[str, Domain]:
        if server_ids is None:
            return await self._connection.call(self._look_at_all)
        return await self._connection.call(self._look_at, server_ids)

    def _look_at_all(self, connection: Any) -> dict[str, Domain]:
        found = {domain.UUIDString(): self._look(domain) for domain in connection.listAllDomains()}
        for server_id in self._facts.keys() - found.keys():
            del self._facts[server_id]
        return {server_id: domain for server_id, domain in found.items() if domain is not None}

    def _look_at(self, connection: Any, server_ids: Collection[str]) -> dict[str, Domain]:
        found = {}
        for server_id in server_ids:
            if (domain := _lookup(connection, server_id)) and (seen := self._look(domain)):
                found[server_id] = seen
        return found

    def _look(self, domain: Any) -> Domain | None:
        """What a libvirt domain is, or None if it is not ours or went away just now."""
        server_id = domain.UUIDString()
        try:
            facts = self._facts.get(server_id) or _read_facts(domain)
            if facts.owner != str(self._directory):
                return None
            state, reason = domain.state()
        except libvirt.libvirtError as error:
            if is_gone(error):
                return None
            raise
        self._facts[server_id] = facts
        seen = _seen(state, reason, facts, killed=server_id in self._killed)
        if seen is Seen.RUNNING and facts.starting and server_id not in self._starting:
            self._write_facts(domain, replace(facts, starting=False))  # it ended well, unseen
        if seen is Seen.LEFT and not facts.left:
            # libvirtd forgets why a domain is off when it ends; the guest's own wish is to outlive that
            self._write_facts(domain, replace(facts, left=True))
        return Domain(seen, facts.generation, facts.reboots)

    # Changing

    async def ensure_running(self, wish: Wish, say: Say) -> None:
        server = wish.server
        match (await self._seen(server.id)):
            case Seen.RUNNING:
                await self._note(server)
            case Seen.PAUSED:
                say("resuming")
                await self._act(server.id, lambda domain: domain.resume(), "resumed")
                await self._note(server)
            case seen:
                if seen is Seen.CRASHED:
                    await self._act(server.id, lambda domain: domain.destroy(), "stopped")
                await self._start(wish, say)

    async def ensure_stopped(self, server: HostServer, grace: float) -> None:
        await self._stop(server.id, grace)
        await self._note(server)

    async def reboot(self, wish: Wish, grace: float) -> None:
        await self._stop(wish.server.id, grace)
        await self._start(wish, lambda _: None)

    async def ensure_gone(self, server_id: str) -> None:
        await self._act(server_id, lambda domain: domain.destroy() if domain.isActive() else None, "stopped")
        await self._act(server_id, _undefine, "removed")
        self._facts.pop(server_id, None)
        self._killed.discard(server_id)
        if (directory := self._files(server_id).directory).exists():
            await asyncio.to_thread(shutil.rmtree, directory)

    async def console_log(self, server_id: str, lines: int) -> bytes:
        return await asyncio.to_thread(console.last_lines, self._files(server_id), lines)

    async def events(self) -> AsyncIterator[str]:
        while True:
            yield await self._changed.get()

    async def release(self, grace: float) -> None:
        """Stop and forget every domain of ours, and keep its disks: what `brume down` does."""
        async def one(server_id: str) -> None:
            await self._stop(server_id, grace)
            await self._act(server_id, _undefine, "removed")
            self._facts.pop(server_id, None)

        await asyncio.gather(*map(one, await self.observe()))

    async def disk(self, server_id: str) -> AsyncIterator[bytes]:
        if await self._seen(server_id) in (Seen.RUNNING, Seen.PAUSED, Seen.CRASHED):
            raise Fault("The server's disk is in use: it is not off.")
        path = self._files(server_id).disk
        if path.exists():
            async for data in disks.chunks_of(path):
                yield data

    async def take_disk(self, server: HostServer, chunks: AsyncIterator[bytes], say: Say) -> None:
        files = self._files(server.id)
        files.directory.mkdir(exist_ok=True)
        files.directory.chmod(0o711)
        has_base = bool(server.image.sha512)
        if has_base:
            await self._make_link(server.image, files.base, say)
        say("copying the disk")
        try:
            base = files.base.name if has_base else ""
            if not await disks.write(files.disk, chunks, lambda path: disks.check_overlay(path, base)):
                files.disk.unlink(missing_ok=True)
        except OSError as error:
            raise Fault(f"The disk could not be written: {error.strerror}") from error

    async def _start(self, wish: Wish, say: Say) -> None:
        server, files = wish.server, self._files(wish.server.id)
        files.directory.mkdir(exist_ok=True)
        files.directory.chmod(0o711)
        has_disk, base_format = await self._make_disk(server, files, say)
        if server.image.HasField("kernel"):
            await self._make_link(server.image.kernel, files.kernel, say)
        if server.image.HasField("ramdisk"):
            await self._make_link(server.image.ramdisk, files.ramdisk, say)
        if server.config_drive:
            await config_drive.write(agents.metadata.files(server, wish.ports, wish.networks), files.config_drive)
        say("starting")
        facts = Facts(str(self._directory), server.generation, server.reboots, starting=True)
        xml = domain_xml(server, wish.ports, files, facts, kvm=not await self._why_no_kvm(), architecture=platform.machine(),
                         has_disk=has_disk, disk_base_format=base_format)
        try:
            await self._connection.call(self._define_and_create, server.id, xml, facts)
        except libvirt.libvirtError as error:
            raise Fault(f"The virtual machine could not be started: {_first_line(error)}") from error

    def _define_and_create(self, connection: Any, server_id: str, xml: str, facts: Facts) -> None:
        self._killed.discard(server_id)
        self._starting.add(server_id)
        try:
            domain = connection.defineXML(xml)
            self._facts[server_id] = facts
            domain.create()
            self._write_facts(domain, replace(facts, starting=False))
        finally:
            self._starting.discard(server_id)

    async def _make_disk(self, server: HostServer, files: Files, say: Say) -> tuple[bool, str]:
        """Have the root disk; whether there is one, and the format of its base ("" for none)."""
        image = server.image if server.image.sha512 else None
        if image is None and not server.disk_gib:
            return False, ""
        base_format = "" if image is None else "raw" if image.disk_format == "ami" else image.disk_format
        if image is not None:
            await self._make_link(image, files.base, say)
        if not files.disk.exists():
            say("making the disk")
            shape = disks.shape(files.base, image.disk_format) if image else None
            size = disks.size_for(shape, server.disk_gib)
            await disks.create_overlay(files.disk, size, files.base if image else None, base_format)
        return True, base_format

    async def _make_link(self, image: Any, path: Path, say: Say) -> None:
        if not path.exists():  # noqa: ASYNC240 - as quick as a stat is
            say("fetching image")
            await self._images.place(image, path)

    async def _stop(self, server_id: str, grace: float) -> None:
        """Have the domain off: the guest is asked, and asked again, for `grace` seconds, then its power is cut."""
        off = self._off[server_id] = asyncio.Event()
        try:
            until = asyncio.get_running_loop().time() + grace
            while (seen := await self._seen(server_id)) in (Seen.RUNNING, Seen.PAUSED, Seen.CRASHED):
                left = until - asyncio.get_running_loop().time()
                if left <= 0 or seen is not Seen.RUNNING:
                    await self._act(server_id, lambda domain: domain.destroy(), "stopped")
                    return
                with contextlib.suppress(Fault):       # a guest that cannot be asked is not waited for any less
                    await self._act(server_id, lambda domain: domain.shutdownFlags(libvirt.VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN),
                                    "asked to shut down")
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(min(left, ASK_AGAIN)):
                        await off.wait()
                off.clear()
        finally:
            del self._off[server_id]

    async def _seen(self, server_id: str) -> Seen:
        domain = (await self.observe([server_id])).get(server_id)
        return domain.seen if domain else Seen.MISSING

    async def _note(self, server: HostServer) -> None:
        """Remember what was carried out, in the domain if there is one."""
        def write(domain: Any) -> None:
            facts = self._facts.get(server.id) or _read_facts(domain)
            wanted = replace(facts, generation=server.generation, reboots=server.reboots)
            if wanted != facts:
                self._write_facts(domain, wanted)

        await self._act(server.id, write, "updated")

    async def _act(self, server_id: str, action: Callable[[Any], object], what: str) -> None:
        """Do something to our domain if it is there. What fails because it is so already is no failure."""
        def act(connection: Any) -> None:
            domain = _lookup(connection, server_id)
            if domain is None or self._look(domain) is None:
                return
            try:
                action(domain)
            except libvirt.libvirtError as error:
                if error.get_error_code() != libvirt.VIR_ERR_OPERATION_INVALID and not is_gone(error):
                    raise

        try:
            await self._connection.call(act)
        except libvirt.libvirtError as error:
            raise Fault(f"The virtual machine could not be {what}: {_first_line(error)}") from error

    def _write_facts(self, domain: Any, facts: Facts) -> None:
        flags = _CONFIG | (_LIVE if domain.isActive() else 0)
        domain.setMetadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, facts.xml(), PREFIX, NAMESPACE, flags)
        self._facts[domain.UUIDString()] = facts

    # Running

    def _files(self, server_id: str) -> Files:
        return Files(self._directory / server_id)

    async def _why_no_kvm(self) -> str:
        if self._no_kvm is None:
            user = libvirtd.guest_user(self._kvm_directory)
            self._no_kvm = await asyncio.to_thread(kvm.unusable, self._kvm_directory, user)
        return self._no_kvm

    def _on_event(self, server_id: str, event: int, detail: int) -> None:
        if event == libvirt.VIR_DOMAIN_EVENT_SHUTDOWN and detail == libvirt.VIR_DOMAIN_EVENT_SHUTDOWN_HOST:
            self._killed.add(server_id)
        if event in (libvirt.VIR_DOMAIN_EVENT_STOPPED, -1):
            for waiting in ([server_id] if server_id else list(self._off)):
                if waiting in self._off:
                    self._off[waiting].set()
        self._changed.put_nowait(server_id)

    async def _stay_connected(self) -> None:
        """Open a lost connection again, since events come by it."""
        lost = self._connection.lost
        while True:
            await lost.wait()
            try:
                await self._connection.call(lambda connection: connection.isAlive())
            except (Fault, libvirt.libvirtError):
                await asyncio.sleep(RECONNECT_EVERY)

    async def _cap_consoles(self) -> None:
        while True:
            await asyncio.sleep(console.LOOK_EVERY)
            for server_id in list(self._facts):
                try:
                    console.cap(self._files(server_id))
                except OSError as error:
                    log.warning("server %s: its console log cannot be cut: %s", server_id, error)


def _capacity(connection: Any) -> tuple[str, int]:
    """CPU model and version of the hypervisor."""
    model = ElementTree.fromstring(connection.getCapabilities()).findtext("host/cpu/model")  # noqa: S314 - libvirtd's own words
    return model or connection.getInfo()[0], connection.getVersion()


def _first_line(error: libvirt.libvirtError) -> str:
    """What an owner may read of an error; QEMU's whole command line may follow."""
    return str(error).partition("\n")[0][:300]


def _lookup(connection: Any, server_id: str) -> Any:
    try:
        return connection.lookupByUUIDString(server_id)
    except libvirt.libvirtError as error:
        if is_gone(error):
            return None
        raise


def _read_facts(domain: Any) -> Facts:
    try:
        text = domain.metadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, NAMESPACE)
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN_METADATA:
            return Facts()
        raise
    return facts_of(ElementTree.fromstring(text))  # noqa: S314 - libvirtd's own words


def _undefine(domain: Any) -> None:
    domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE | libvirt.VIR_DOMAIN_UNDEFINE_NVRAM
                         | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA)


def _seen(state: int, reason: int, facts: Facts, *, killed: bool) -> Seen:
    match state:
        case libvirt.VIR_DOMAIN_RUNNING | libvirt.VIR_DOMAIN_BLOCKED | libvirt.VIR_DOMAIN_SHUTDOWN:
            return Seen.RUNNING
        case libvirt.VIR_DOMAIN_PAUSED | libvirt.VIR_DOMAIN_PMSUSPENDED:
            return Seen.PAUSED
        case libvirt.VIR_DOMAIN_CRASHED:
            return Seen.CRASHED
    if facts.starting or killed:
        return Seen.OFF
    return Seen.LEFT if facts.left or reason == libvirt.VIR_DOMAIN_SHUTOFF_SHUTDOWN else Seen.OFF
