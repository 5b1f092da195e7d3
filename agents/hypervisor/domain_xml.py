"""A server's wish in libvirt's XML; pure.

The same wish, ports and host always give the same text. What Brume remembers of a domain is in it too, as metadata.
"""
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree.ElementTree import Element, SubElement, tostring

from agents.hypervisor.driver import Fault
from protos.internal.v1.hosts_pb2 import HostPort, HostServer

#: Namespace and prefix of the metadata.
NAMESPACE, PREFIX = "urn:brume:instance:1", "brume"

#: Disk bus by image property hw_disk_bus, with how its devices' names begin.
DISK_BUSES = {"virtio": "vd", "scsi": "sd", "sata": "sd", "ide": "hd"}
VIF_MODELS = frozenset({"virtio", "e1000", "e1000e", "rtl8139", "pcnet", "ne2k_pci"})
MACHINES = re.compile(r"(pc|q35|pc-(i440fx|q35)-[0-9.]{1,8})")

#: MiB of translated code that QEMU keeps per domain under emulation. Its own default is 1 GiB, more than most guests have
#: RAM; too little makes a guest slow to boot, since code is translated again and again.
TRANSLATION_CACHE = 128

#: Characters of a tap's name that a port's id gives: the kernel allows 15.
TAP_ID_LENGTH = 11


@dataclass(frozen=True, slots=True)
class Facts:
    """What a domain's metadata says."""

    owner: str = ""            # directory of the agent that made it
    generation: int = 0
    reboots: int = 0
    starting: bool = False     # a start was begun and is not known to have ended
    left: bool = False         # the guest shut itself down, and libvirtd may have forgotten it

    def attributes(self) -> dict[str, str]:
        flags = {name: "yes" for name in ("starting", "left") if getattr(self, name)}
        return {"owner": self.owner, "generation": str(self.generation), "reboots": str(self.reboots), **flags}

    def xml(self) -> str:
        """The metadata's element, by itself."""
        return tostring(Element("instance", self.attributes()), encoding="unicode")


def facts_of(element: Element) -> Facts:
    """The facts in a metadata element."""
    return Facts(owner=element.get("owner", ""), generation=int(element.get("generation", "0")),
                 reboots=int(element.get("reboots", "0")), starting=element.get("starting") == "yes",
                 left=element.get("left") == "yes")


@dataclass(frozen=True, slots=True)
class Files:
    """A server's files on the host; all in one directory."""

    directory: Path

    base = property(lambda self: self.directory / "base")
    disk = property(lambda self: self.directory / "disk")
    kernel = property(lambda self: self.directory / "kernel")
    ramdisk = property(lambda self: self.directory / "ramdisk")
    config_drive = property(lambda self: self.directory / "config-drive.iso")
    console = property(lambda self: self.directory / "console.log")
    console_before = property(lambda self: self.directory / "console.log.1")


def domain_name(server_id: str) -> str:
    return f"brume-{server_id}"


def tap_name(port_id: str) -> str:
    return "tap" + port_id[:TAP_ID_LENGTH]


def chosen(server: HostServer, name: str, allowed: frozenset[str], default: str) -> str:
    """An image property's value. Raises a final Fault if it is none of those that can be had."""
    value = server.image.properties.get(name) or default
    if value not in allowed:
        raise Fault(f"The image asks for {name}={value!r}; this host has {', '.join(sorted(allowed))}.", final=True)
    return value


def domain_xml(server: HostServer, ports: Sequence[HostPort], files: Files, facts: Facts, *, kvm: bool, architecture: str,
               has_disk: bool, disk_base_format: str) -> str:
    """The whole domain. Raises a final Fault for image properties that no domain can have.

    Args:
      has_disk: files.disk is there; disk_base_format: of files.base behind it, "" for none.
    """
    machine = server.image.properties.get("hw_machine_type") or "pc"
    if not MACHINES.fullmatch(machine):
        raise Fault(f"The image asks for hw_machine_type={machine!r}; this host has pc and q35.", final=True)
    bus = chosen(server, "hw_disk_bus", frozenset(DISK_BUSES) - ({"ide"} if "q35" in machine else frozenset()), "virtio")
    vif = chosen(server, "hw_vif_model", VIF_MODELS, "virtio")

    domain = Element("domain", type="kvm" if kvm else "qemu")
    _text(domain, "uuid", server.id)
    _text(domain, "name", domain_name(server.id))
    if title := " ".join(server.name.split()):
        _text(domain, "title", title)
    instance = SubElement(SubElement(domain, "metadata"), f"{PREFIX}:instance", {f"xmlns:{PREFIX}": NAMESPACE})
    instance.attrib.update(facts.attributes())
    _text(domain, "memory", str(server.ram_mib), unit="MiB")
    _text(domain, "vcpu", str(server.vcpus))

    system = SubElement(domain, "os")
    _text(system, "type", "hvm", arch=architecture, machine=machine)
    if server.image.HasField("kernel"):
        _text(system, "kernel", str(files.kernel))
        if server.image.HasField("ramdisk"):
            _text(system, "initrd", str(files.ramdisk))
        _text(system, "cmdline", server.image.kernel_arguments or "root=/dev/vda console=tty0 console=ttyS0")
    else:
        SubElement(system, "boot", dev="hd")

    features = SubElement(domain, "features")
    SubElement(features, "acpi")
    SubElement(features, "apic")
    if not kvm:
        _text(SubElement(features, "tcg"), "tb-cache", str(TRANSLATION_CACHE), unit="MiB")
    # The emulator's own default lacks what distributions since 2021 ask of a CPU; all that it can do costs nothing more.
    SubElement(domain, "cpu", mode="host-passthrough" if kvm else "maximum", check="none")
    clock = SubElement(domain, "clock", offset="utc")
    SubElement(clock, "timer", name="rtc", tickpolicy="catchup")
    SubElement(clock, "timer", name="pit", tickpolicy="delay")
    SubElement(clock, "timer", name="hpet", present="no")
    for event, action in (("on_poweroff", "destroy"), ("on_reboot", "restart"), ("on_crash", "destroy")):
        _text(domain, event, action)
    sleep = SubElement(domain, "pm")
    SubElement(sleep, "suspend-to-mem", enabled="no")
    SubElement(sleep, "suspend-to-disk", enabled="no")

    devices = SubElement(domain, "devices")
    SubElement(devices, "controller", type="usb", model="none")     # a USB controller wakes an idle QEMU all the time
    if bus == "scsi":
        SubElement(devices, "controller", type="scsi", model="virtio-scsi")
    if has_disk:
        disk = SubElement(devices, "disk", type="file", device="disk")
        SubElement(disk, "driver", name="qemu", type="qcow2", cache="writeback", discard="unmap")
        SubElement(disk, "source", file=str(files.disk))
        if disk_base_format:
            _backing(disk, files.base, disk_base_format)
        SubElement(disk, "target", dev=DISK_BUSES[bus] + "a", bus=bus)
    if server.config_drive:
        # A virtio disk and no CD-ROM: cloud kernels have neither an IDE nor a SATA driver.
        drive = SubElement(devices, "disk", type="file", device="disk")
        SubElement(drive, "driver", name="qemu", type="raw")
        SubElement(drive, "source", file=str(files.config_drive))
        SubElement(drive, "target", dev="vdz", bus="virtio")
        SubElement(drive, "readonly")
    for port in ports:
        interface = SubElement(devices, "interface", type="ethernet")
        SubElement(interface, "mac", address=port.mac)
        SubElement(interface, "target", dev=tap_name(port.id), managed="no")
        SubElement(interface, "model", type=vif)
        if port.mtu:
            SubElement(interface, "mtu", size=str(port.mtu))
    serial = SubElement(devices, "serial", type="pty")
    SubElement(serial, "log", file=str(files.console), append="on")
    SubElement(serial, "target", port="0")
    SubElement(devices, "input", type="keyboard", bus="ps2")
    graphics = SubElement(devices, "graphics", type="vnc")
    SubElement(graphics, "listen", type="socket")
    video = SubElement(devices, "video")
    SubElement(video, "model", type="vga")
    rng = SubElement(devices, "rng", model="virtio")
    _text(rng, "backend", "/dev/urandom", model="random")
    SubElement(devices, "memballoon", model="virtio", freePageReporting="on")
    return tostring(domain, encoding="unicode")


def _text(parent: Element, tag: str, text: str, **attributes: str) -> Element:
    element = SubElement(parent, tag, attributes)
    element.text = text
    return element


def _backing(disk: Element, path: Path, image_format: str) -> None:
    """Name the disk's base, so that libvirt neither probes it nor changes whose it is: other disks share it."""
    backing = SubElement(disk, "backingStore", type="file")
    SubElement(backing, "format", type=image_format)
    source = SubElement(backing, "source", file=str(path))
    SubElement(source, "seclabel", model="dac", relabel="no")
    SubElement(backing, "backingStore")
