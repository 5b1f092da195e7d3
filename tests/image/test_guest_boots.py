"""The small guest, built from Debian's packages and booted for real under software emulation."""
import contextlib
import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from control.image.guest import cpio
from control.image.guest.build import TOOLS, BuildError, Guest, build

#: Seconds that a boot may take on a machine that is busy with other things; it takes 4 to 6.
PATIENCE = 90

NEEDED = (*TOOLS, "qemu-system-x86_64", "ssh", "genisoimage", "cpio")
pytestmark = [pytest.mark.vm, pytest.mark.skipif(not all(map(shutil.which, NEEDED)), reason=f"needs {', '.join(NEEDED)}")]

# connects one TCP connection of the guest to the metadata server here
RELAY = """#!{python}
import os, select, socket
peer = socket.create_connection(("127.0.0.1", {port}))
while True:
    for ready in select.select([0, peer], [], [])[0]:
        data = os.read(0, 65536) if ready == 0 else peer.recv(65536)
        if not data:
            raise SystemExit
        peer.sendall(data) if ready == 0 else os.write(1, data)
"""


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Guest:
    cache = os.environ.get("BRUME_GUEST_CACHE")
    try:
        return build(Path(cache) if cache else tmp_path_factory.mktemp("guest"))
    except BuildError as error:
        if "apt-get update" in str(error) or "downloading" in str(error):
            pytest.skip(str(error))
        raise


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("key") / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "demo@brume", "-f", path], check=True)
    return path


def meta_data(key: Path) -> bytes:
    return json.dumps({"uuid": "5b8b6ee4-0ac3-4a0c-8dc9-1ecf5a0d7f00", "name": "tiny-vm", "hostname": "tiny-vm.novalocal",
                       "public_keys": {"other": "ssh-ed25519 AAAAother other@key\n", "mine": key.with_suffix(".pub").read_text()},
                       "launch_index": 0}, indent=1).encode()


def user_data(word: str) -> bytes:
    return f"#!/bin/sh\necho user data: {word} on $(hostname)\n".encode()


@contextlib.contextmanager
def metadata_service(key: Path, folder: Path):
    """A metadata service on loopback, and the program that connects the guest to it. The first answer is an error."""
    failures = [503]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answers = {"/openstack/latest/meta_data.json": meta_data(key), "/openstack/latest/user_data": user_data("service")}
            body = answers.get(self.path)
            self.send_response(failures.pop() if failures else 200 if body else 404)
            self.send_header("Content-Length", str(len(body or b"")))
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    relay = folder / "relay.py"
    relay.write_text(RELAY.format(python=sys.executable, port=server.server_port))
    relay.chmod(0o755)
    try:
        yield relay
    finally:
        server.shutdown()
        server.server_close()


class Machine:
    """One QEMU without KVM."""

    def __init__(self, folder: Path, key: Path, *devices: str, forward: str = ""):
        self._serial, self._monitor, self._key = folder / "serial.log", folder / "monitor", key
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        network = (f"user,id=n0,net=169.254.169.0/24,host=169.254.169.2,dhcpstart=169.254.169.15,dns=169.254.169.3,"
                   f"hostfwd=tcp:127.0.0.1:{self._port}-:22{forward}")
        self._process = subprocess.Popen([
            "qemu-system-x86_64", "-accel", "tcg", "-m", "192", "-display", "none", "-no-reboot",
            "-serial", f"file:{self._serial}", "-monitor", f"unix:{self._monitor},server,nowait",
            "-netdev", network, "-device", "virtio-net-pci,netdev=n0",
            "-netdev", "user,id=n1,net=10.9.8.0/24", "-device", "virtio-net-pci,netdev=n1", *devices],
            stdin=subprocess.DEVNULL)

    def console(self) -> str:
        return self._serial.read_text(errors="replace") if self._serial.exists() else ""

    def wait_for(self, text: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while text not in self.console():
            assert self._process.poll() is None and time.monotonic() < deadline, \
                f"no {text!r} on the console:\n{self.console()[-3000:]}"
            time.sleep(0.1)

    def ssh(self, command: str) -> str:
        deadline = time.monotonic() + PATIENCE
        while True:
            done = subprocess.run(
                ["ssh", "-i", self._key, "-p", str(self._port), "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no", "-o",
                 "UserKnownHostsFile=/dev/null", "-o", "ConnectTimeout=20", "root@127.0.0.1", command],
                capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
            if done.returncode != 255 or time.monotonic() > deadline:
                assert done.returncode == 0, f"{command}: {done.stderr}\n{self.console()[-2000:]}"
                return done.stdout
            time.sleep(0.3)

    def press_power_button(self) -> None:
        with socket.socket(socket.AF_UNIX) as monitor:
            monitor.connect(str(self._monitor))
            self._until_prompt(monitor)
            monitor.sendall(b"system_powerdown\n")
            self._until_prompt(monitor)

    @staticmethod
    def _until_prompt(monitor: socket.socket) -> None:
        """A monitor that is hung up on before it prompts again may not have read the line."""
        said = b""
        while not said.endswith(b"(qemu) "):
            more = monitor.recv(1024)
            assert more, said
            said += more

    def wait_until_off(self) -> None:
        self._process.wait(PATIENCE)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


@contextlib.contextmanager
def running(*arguments: object, **options: str):
    machine = Machine(*arguments, **options)    # type: ignore[arg-type]
    try:
        yield machine
    finally:
        machine.kill()


def test_the_disk_boots_takes_its_key_from_the_metadata_service_and_answers_the_power_button(guest, key, tmp_path):
    disk = tmp_path / "disk.qcow2"
    shutil.copy(guest.disk, disk)
    with metadata_service(key, tmp_path) as relay, \
            running(tmp_path, key, "-drive", f"file={disk},if=virtio,format=qcow2",
                    forward=f",guestfwd=tcp:169.254.169.254:80-cmd:{shlex.quote(str(relay))}") as machine:
        machine.wait_for("guest ready ")
        machine.wait_for("user data: service on tiny-vm")
        assert machine.ssh("hostname").strip() == "tiny-vm"
        addresses = machine.ssh("ip -4 addr; ip route; cat /etc/resolv.conf")
        assert "inet 169.254.169.15/24" in addresses and "inet 10.9.8.15/24" in addresses, "every interface has its address"
        assert "default via 169.254.169.2 dev eth0" in addresses and "nameserver 169.254.169.3" in addresses
        machine.press_power_button()
        machine.wait_until_off()
        assert "guest going down: poweroff" in machine.console()


def test_kernel_and_ramdisk_boot_without_a_disk_take_the_config_drive_and_reboot(guest, key, tmp_path):
    latest = tmp_path / "drive" / "openstack" / "latest"
    latest.mkdir(parents=True)
    (latest / "meta_data.json").write_bytes(meta_data(key))
    (latest / "user_data").write_bytes(user_data("drive"))
    drive = tmp_path / "config.iso"
    subprocess.run(["genisoimage", "-quiet", "-R", "-J", "-V", "config-2", "-o", drive, tmp_path / "drive"], check=True)
    with running(tmp_path, key, "-kernel", str(guest.kernel), "-initrd", str(guest.ramdisk), "-append", "console=ttyS0 quiet",
                 "-drive", f"file={drive},if=virtio,format=raw,readonly=on") as machine:
        machine.wait_for("guest ready ")
        machine.wait_for("user data: drive on tiny-vm")
        assert machine.ssh("hostname").strip() == "tiny-vm"
        machine.ssh("reboot")
        machine.wait_until_off()
        assert "guest going down: reboot" in machine.console()


def test_the_same_packages_give_the_same_bytes_and_are_not_built_twice(guest, tmp_path):
    assert build(guest.disk.parent.parent) == guest
    again = build(tmp_path)
    for name in ("disk", "kernel", "ramdisk"):
        assert getattr(again, name).read_bytes() == getattr(guest, name).read_bytes(), name


def test_a_missing_tool_is_named_with_the_package_that_has_it(monkeypatch, tmp_path):
    real = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name, path=None: None if name in ("mcopy", "syslinux") else real(name, path=path))
    with pytest.raises(BuildError, match="apt-get install mtools syslinux"):
        build(tmp_path)


def test_the_makefile_installs_the_packages_that_the_tools_are_in():
    makefile = (Path(__file__).parents[2] / "Makefile").read_text()
    assert set(TOOLS.values()) - {"apt", "dpkg"} <= set(makefile.replace("\\", " ").split())


def test_an_archive_is_read_back_by_cpio(tmp_path):
    archive = cpio.pack({"b/c": cpio.file(b"content", 0o600), "b": cpio.directory(), "a": cpio.file(b"")})
    subprocess.run(["cpio", "-id", "--quiet"], input=archive, cwd=tmp_path, check=True)
    assert (tmp_path / "b" / "c").read_bytes() == b"content" and (tmp_path / "a").read_bytes() == b""
    assert (tmp_path / "b" / "c").stat().st_mode & 0o777 == 0o600
