"""What drivers make on disk without a hypervisor: disks, consoles, XML, whether KVM works."""
import os
import struct
import subprocess
from xml.etree import ElementTree

import pytest

from agents.hypervisor import console, disks, kvm, libvirtd
from agents.hypervisor.domain_xml import NAMESPACE, Facts, Files, domain_xml, facts_of, tap_name
from agents.hypervisor.driver import Fault
from protos.internal.v1.hosts_pb2 import BootImage, HostPort
from tests.conformance.check_hypervisor import server

SERVER = server(name='a <name> & "quotes"\nand a line')
PORT = HostPort(id="0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0", mac="fa:16:3e:00:00:01", mtu=1450)


def xml_of(wanted, files, **given):
    arguments = {"kvm": False, "architecture": "x86_64", "has_disk": True, "disk_base_format": "qcow2", **given}
    return ElementTree.fromstring(domain_xml(wanted, [PORT], files, Facts("/somebody", 4, 2), **arguments))


def test_the_domain_is_the_servers_and_remembers_what_was_carried_out(tmp_path):
    xml = xml_of(SERVER, Files(tmp_path))
    assert xml.findtext("uuid") == SERVER.id and xml.findtext("memory") == "64"
    assert facts_of(xml.find(f"metadata/{{{NAMESPACE}}}instance")) == Facts("/somebody", 4, 2)
    assert xml.findtext("title") == 'a <name> & "quotes" and a line'


def test_facts_survive_being_written_alone():
    facts = Facts("/a \"strange\" <place>", 7, 1, starting=True, left=True)
    assert facts_of(ElementTree.fromstring(facts.xml())) == facts


def test_a_port_is_the_tap_that_networking_made(tmp_path):
    interface = xml_of(SERVER, Files(tmp_path)).find("devices/interface")
    assert interface.find("target").attrib == {"dev": "tap0f1e2d3c-4b", "managed": "no"}
    assert interface.find("mac").get("address") == PORT.mac and interface.find("mtu").get("size") == "1450"
    assert len(tap_name(PORT.id)) < 16


def test_image_properties_choose_devices_and_nonsense_is_refused(tmp_path):
    wanted = server()
    wanted.image.properties.update({"hw_disk_bus": "scsi", "hw_vif_model": "e1000"})
    xml = xml_of(wanted, Files(tmp_path))
    assert xml.find("devices/disk/target").attrib == {"dev": "sda", "bus": "scsi"}
    assert xml.find("devices/interface/model").get("type") == "e1000"
    wanted.image.properties["hw_disk_bus"] = "punch cards"
    with pytest.raises(Fault, match="hw_disk_bus='punch cards'"):
        xml_of(wanted, Files(tmp_path))


def test_a_kernel_image_boots_by_its_kernel(tmp_path):
    wanted = server(image=BootImage(kernel=BootImage(id="k"), ramdisk=BootImage(id="r"), kernel_arguments="quiet"))
    system = xml_of(wanted, Files(tmp_path), has_disk=False, disk_base_format="").find("os")
    assert system.findtext("kernel") == str(tmp_path / "kernel") and system.findtext("initrd") == str(tmp_path / "ramdisk")
    assert system.findtext("cmdline") == "quiet" and system.find("boot") is None


def qcow2(*, version=3, backing=0, features=0, encryption=0, size=5 << 20):
    return struct.pack(">4sIQIIQI", b"QFI\xfb", version, backing, 0, 16, size, encryption).ljust(72, b"\0") + struct.pack(
        ">QQQII", features, 0, 0, 4, 104)


def test_a_qcow2_says_its_size():
    assert disks.qcow2_shape(qcow2()).virtual_size == 5 << 20


@pytest.mark.parametrize(("header", "why"), [
    (qcow2(backing=104), "another file"), (qcow2(features=4), "another file"), (qcow2(encryption=2), "encrypted"),
    (b"something else", "not"), (b"", "not")])
def test_a_qcow2_that_is_none_or_opens_other_files_is_refused_for_good(header, why):
    with pytest.raises(Fault, match=why) as caught:
        disks.qcow2_shape(header)
    assert caught.value.final


def test_what_qemu_img_makes_is_read_as_qemu_img_means_it(tmp_path):
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", tmp_path / "image", "7M"], check=True)
    assert disks.shape(tmp_path / "image", "qcow2").virtual_size == 7 << 20


def test_a_disk_is_as_large_as_the_flavor_says_and_never_smaller_than_its_image():
    assert disks.size_for(disks.Shape(5), 2) == 2 << 30
    assert disks.size_for(disks.Shape(513), 0) == 1024
    assert disks.size_for(None, 3) == 3 << 30
    with pytest.raises(Fault, match="at least 3 GiB") as caught:
        disks.size_for(disks.Shape((2 << 30) + 1), 2)
    assert caught.value.final


async def test_an_overlay_names_its_base_in_the_same_directory(tmp_path):
    (tmp_path / "base").write_bytes(bytes(1 << 20))
    await disks.create_overlay(tmp_path / "disk", 1 << 30, tmp_path / "base", "raw")
    said = subprocess.run(["qemu-img", "info", tmp_path / "disk"], capture_output=True, text=True, check=True).stdout
    assert "virtual size: 1 GiB" in said and "backing file: base" in said and "backing file format: raw" in said
    assert sorted(os.listdir(tmp_path)) == ["base", "disk"]


def test_the_last_lines_begin_with_a_whole_character(tmp_path):
    files = Files(tmp_path)
    files.console.write_bytes(b"one\ntwo\nthree\n")
    assert console.last_lines(files, 2) == b"two\nthree\n"
    assert console.last_lines(files, 99) == console.last_lines(files, 0) == b"one\ntwo\nthree\n"
    files.console.write_bytes("é".encode()[1:] + b"nd")
    assert console.last_lines(files, 0) == b"nd"


def test_whether_kvm_works_is_asked_once_a_boot(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(kvm, "_try", lambda user: asked.append(user) or "no KVM: said once")
    assert kvm.unusable(tmp_path, "somebody") == kvm.unusable(tmp_path, "somebody") == "no KVM: said once"
    assert asked == ["somebody"]
    kvm.unusable(tmp_path, "somebody else")
    monkeypatch.setattr(kvm, "_BOOT_ID", tmp_path / "boot")
    (tmp_path / "boot").write_text("another boot\n")
    kvm.unusable(tmp_path, "somebody else")
    assert asked == ["somebody", "somebody else", "somebody else"]


def test_a_private_libvirtd_is_kept_while_it_has_domains(tmp_path, monkeypatch):
    monkeypatch.setattr(libvirtd, "answers", lambda path: path == libvirtd.SYSTEM_SOCKET)
    assert libvirtd.pick_uri(tmp_path) == "qemu:///system"
    (tmp_path / "etc" / "qemu").mkdir(parents=True)
    (tmp_path / "etc" / "qemu" / "brume-1.xml").touch()
    assert libvirtd.pick_uri(tmp_path) == libvirtd.private_uri(tmp_path)


def test_guests_run_as_root_only_where_their_user_cannot_reach_their_files(tmp_path, monkeypatch):
    monkeypatch.setattr(libvirtd, "GUEST_USER", "nobody")
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    assert libvirtd.guest_user(closed) == "root"
    monkeypatch.setattr(libvirtd, "GUEST_USER", "no such user")
    assert libvirtd.guest_user(tmp_path) == "root"
