"""The cloud's private libvirtd, for a machine where none runs: its directories, configuration, namespace and process.

It lives in a mount namespace in which libvirt's directories are ones below the cloud's own, so that it meets no other
libvirtd and leaves nothing behind. Virtual machines are not its children: they outlive it, and the next one finds them.

    python -m agents.hypervisor.libvirtd DIRECTORY          stays as parent: reaps what libvirtd orphans, passes signals on
    python -m agents.hypervisor.libvirtd --exec DIRECTORY   becomes libvirtd; whoever started it must be a sub-reaper
"""
import argparse
import ctypes
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import uuid
from pathlib import Path

from agents.hypervisor import kvm

#: Where a system libvirtd answers.
SYSTEM_SOCKET = Path("/run/libvirt/libvirt-sock")

#: The directories that libvirt was built with, by name below the private one.
PLACES = {"run": Path("/run/libvirt"), "lib": Path("/var/lib/libvirt"), "etc": Path("/etc/libvirt"),
          "cache": Path("/var/cache/libvirt"), "log": Path("/var/log/libvirt")}

#: Longest path of a Unix socket.
SOCKET_PATH_LIMIT = 107

#: The user that Debian's packages make for virtual machines.
GUEST_USER = "libvirt-qemu"

_CLONE_NEWNS = 0x00020000
_MS_RDONLY, _MS_REMOUNT, _MS_BIND, _MS_REC, _MS_PRIVATE = 0x1, 0x20, 0x1000, 0x4000, 0x40000
_PR_SET_CHILD_SUBREAPER = 36


def answers(path: Path) -> bool:
    """Whether something listens on a Unix socket."""
    if len(str(path)) > SOCKET_PATH_LIMIT:
        return False
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(2)
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


def private_socket(directory: Path) -> Path:
    return directory / "run" / "libvirt-sock"


def private_uri(directory: Path) -> str:
    return f"qemu+unix:///system?socket={private_socket(directory)}"


def private_needed(directory: Path) -> bool:
    """Whether the cloud needs a libvirtd of its own: none answers on this machine, or its own in `directory` has domains.

    Then it stays, whatever else was installed since: domains must not be started twice.
    """
    return any((directory / "etc" / "qemu").glob("*.xml")) or not answers(SYSTEM_SOCKET)


def pick_uri(directory: Path) -> str:
    """The libvirtd to use: the private one in `directory` where it is needed, else the system's."""
    return private_uri(directory) if private_needed(directory) else "qemu:///system"


def command(directory: Path) -> list[str]:
    """What a supervisor that is a sub-reaper (PR_SET_CHILD_SUBREAPER, and it reaps) starts. Ends on SIGTERM; guests run on."""
    return [sys.executable, "-m", "agents.hypervisor.libvirtd", "--exec", str(directory)]


def standalone_command(directory: Path) -> list[str]:
    """The same for a supervisor that is none: one more process, which reaps."""
    return [sys.executable, "-m", "agents.hypervisor.libvirtd", str(directory)]


def guest_user(directory: Path) -> str:
    """Whom virtual machines run as: the user made for it, or root where that one could not reach the directory."""
    try:
        user = pwd.getpwnam(GUEST_USER)
    except KeyError:
        return "root"
    return GUEST_USER if all(_may_enter(path, user) for path in (directory, *directory.parents)) else "root"


def _may_enter(directory: Path, user: pwd.struct_passwd) -> bool:
    try:
        status = directory.stat()
    except FileNotFoundError:
        return True            # made later, by us
    if status.st_uid == user.pw_uid:
        return bool(status.st_mode & 0o100)
    if status.st_gid in os.getgrouplist(user.pw_name, user.pw_gid):
        return bool(status.st_mode & 0o010)
    return bool(status.st_mode & 0o001)


def prepare(directory: Path) -> bool:
    """Make the private directories and configuration; whether KVM is to be hidden, since no guest runs on it.

    Raises SystemExit with a sentence where it cannot work.
    """
    if os.geteuid() != 0:
        raise SystemExit("libvirtd: virtual machines need root; run as root, or use a hypervisor that is simulated.")
    if shutil.which("libvirtd") is None:
        raise SystemExit("libvirtd: not installed; on Debian: apt-get install libvirt-daemon-system qemu-system-x86.")
    if len(str(private_socket(directory))) > SOCKET_PATH_LIMIT:
        raise SystemExit(f"libvirtd: {private_socket(directory)} is longer than the {SOCKET_PATH_LIMIT} characters that a "
                         "socket's path may have: choose a shorter state directory.")
    for name in PLACES:
        (directory / name).mkdir(parents=True, exist_ok=True, mode=0o755)
    directory.chmod(0o711)
    user = guest_user(directory)
    hide_kvm = os.path.exists("/dev/kvm") and bool(kvm.unusable(directory, user))
    identity = directory / "host-uuid"
    if not identity.exists():
        identity.write_text(str(uuid.uuid4()))
    _write(directory / "etc" / "libvirtd.conf", f'''
        host_uuid = "{identity.read_text().strip()}"
        unix_sock_group = "root"
        unix_sock_ro_perms = "0700"
        unix_sock_rw_perms = "0700"
        unix_sock_admin_perms = "0700"
        auth_unix_ro = "none"
        auth_unix_rw = "none"
        log_level = 3
        log_outputs = "3:file:{PLACES["log"]}/libvirtd.log"
        max_workers = 8
        min_workers = 2
        prio_workers = 2
        ''')
    _write(directory / "etc" / "qemu.conf", f'''
        user = "{user}"
        group = "{"kvm" if user == GUEST_USER else "root"}"
        dynamic_ownership = 1
        remember_owner = 0
        security_driver = "none"
        security_default_confined = 0
        stdio_handler = "file"
        cgroup_controllers = [ ]
        vnc_auto_unix_socket = 1
        namespaces = [ {"" if hide_kvm else '"mount"'} ]
        ''')
    # Guests reach their monitors and consoles below here; libvirt itself makes what is inside.
    for name in ("lib", "run", "cache", "log"):
        (directory / name).chmod(0o711)
    return hide_kvm


def _write(path: Path, text: str) -> None:
    path.write_text("".join(line.strip() + "\n" for line in text.strip().splitlines()))


def enter_namespace(directory: Path, *, hide_kvm: bool) -> None:
    """Move this process into a mount namespace where libvirt's directories are the private ones."""
    libc = ctypes.CDLL(None, use_errno=True)

    def call(what: str, result: int) -> None:
        if result:
            raise SystemExit(f"libvirtd: {what}: {os.strerror(ctypes.get_errno())}")

    def mount(source: str, target: str, flags: int) -> None:
        call(f"mounting {target}", libc.mount(source.encode(), target.encode(), None, flags, None))

    call("a mount namespace of its own", libc.unshare(_CLONE_NEWNS))
    mount("none", "/", _MS_REC | _MS_PRIVATE)
    for name, place in PLACES.items():
        if not place.is_dir():
            place.mkdir(parents=True)
            if name == "run":
                (directory / "made-run-directory").touch()
        mount(str(directory / name), str(place), _MS_BIND)
    if hide_kvm:
        # Where the device can be written to, libvirt takes it as usable, and asks QEMU anew at each step of each start
        # why it does not say so: 6 s a start instead of 0.3. So it is a file that root cannot write to either. (libvirt's
        # own mount namespace for each guest cannot take this mount along, and is switched off with it.)
        nothing = directory / "no-kvm"
        nothing.touch(mode=0)
        mount(str(nothing), "/dev/kvm", _MS_BIND)
        mount(str(nothing), "/dev/kvm", _MS_BIND | _MS_REMOUNT | _MS_RDONLY)


def cleanup(directory: Path) -> None:
    """Remove what a private libvirtd made outside its directory; once it has ended."""
    marker = directory / "made-run-directory"
    if not marker.exists() or _is_mounted_anywhere(PLACES["run"]):
        return                 # taken away, it would be so in the other's namespace too
    try:
        PLACES["run"].rmdir()
    except OSError:
        return                 # somebody else's now
    marker.unlink()


def _is_mounted_anywhere(place: Path) -> bool:
    """Whether something is mounted at a place in any process's namespace."""
    for mounts in Path("/proc").glob("[0-9]*/mountinfo"):
        try:
            if any(line.split(" ", 5)[4] == str(place) for line in mounts.read_text().splitlines()):
                return True
        except OSError:
            continue           # it has just ended
    return False


def become_subreaper() -> None:
    """Have orphans below this process become its children, so that it can reap them."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise SystemExit(f"libvirtd: no sub-reaper: {os.strerror(ctypes.get_errno())}")


def serve(directory: Path, arguments: list[str]) -> int:
    """Run libvirtd below this process until it ends; its exit status. libvirtd waits for helpers that it orphaned to
    vanish, so somebody must reap them: a machine's init may not."""
    become_subreaper()
    daemon = subprocess.Popen(arguments)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda received, _: daemon.send_signal(received))
    while True:
        pid, status = os.wait()
        if pid == daemon.pid:
            return os.waitstatus_to_exitcode(status)


def main() -> int:
    parser = argparse.ArgumentParser(description="Runs a private libvirtd.")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--exec", action="store_true", help="become libvirtd; the parent reaps")
    options = parser.parse_args()
    directory = options.directory.resolve()
    enter_namespace(directory, hide_kvm=prepare(directory))
    (directory / "run" / "libvirtd.pid").unlink(missing_ok=True)
    arguments = ["libvirtd", "--pid-file", str(PLACES["run"] / "libvirtd.pid")]
    if options.exec:
        os.execvp(arguments[0], arguments)  # noqa: S606 - no shell
    return serve(directory, arguments)


if __name__ == "__main__":
    sys.exit(main())
