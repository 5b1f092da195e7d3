"""Whether a guest really runs under KVM here: found out by running one, since the device may be there and of no use.

The answer is kept until the machine boots again.
"""
import os
import pwd
import select
import subprocess
import tempfile
import time
from pathlib import Path

#: Seconds that the guest has. It needs 0.2; where it hangs at its first instruction, all of it is waited for, once a boot.
LIMIT = 5.0

#: A boot sector that goes where kernels go: protected mode, iret there, paging, long mode, iretq there; then it writes 0x15
#: to port 0x501, and QEMU exits with 0x15 * 2 + 1. A guest that stays in real mode runs where no kernel does.
_GUEST = bytes.fromhex(
    "fa31c08ed88ed0bc007c660f0116d07c0f20c00c010f22c066ea207c0000080066b810008ed88ec08ed0bc007c00009c6a08"
    "68387c0000cfbf001000000f22df31c0b9000c0000f3abc7050010000003200000c7050020000003300000c7050030000083"
    "0000000f20e083c8200f22e0b9800000c00f320d000100000f300f20c00d000000800f22c0ea907c000018006a1068007c00"
    "009c6a1868a17c000048cf66ba0105b015eef4ebfd0f1f4400000000000000000000ffff0000009acf00ffff00000092cf00"
    "ffff0000009aaf001f00b07c0000").ljust(510, b"\0") + b"\x55\xaa"
_EXIT_STATUS = 0x15 * 2 + 1

_FAILURE = b"KVM internal error"

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def unusable(directory: Path, user: str = "root") -> str:
    """Why guests run by `user` cannot have KVM, in a sentence; "" when they can. Keeps the answer in `directory`."""
    boot, kept = _BOOT_ID.read_text().strip(), directory / "kvm"
    question = f"{boot} {user}"
    try:
        asked, _, answer = kept.read_text().partition("\n")
        if asked == question:
            return answer
    except OSError:
        pass
    answer = _try(user)
    directory.mkdir(parents=True, exist_ok=True)
    unfinished = kept.with_name(f"kvm.{os.getpid()}")
    unfinished.write_text(f"{question}\n{answer}")
    unfinished.rename(kept)
    return answer


def _try(user: str) -> str:
    if not os.path.exists("/dev/kvm"):
        return "no KVM: /dev/kvm is not there; guests are emulated, which is slow"
    identity: dict[str, object] = {}
    if os.geteuid() == 0 and user != "root":
        account = pwd.getpwnam(user)
        identity = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": os.getgrouplist(user, account.pw_gid)}
    with tempfile.NamedTemporaryFile() as written, open(written.name, "rb") as guest:
        written.write(_GUEST)
        written.flush()
        arguments = ["qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-m", "16", "-no-reboot",
                     "-machine", "pc,accel=kvm", "-cpu", "host", "-device", "isa-debug-exit,iobase=0x501,iosize=2",
                     "-add-fd", f"fd={guest.fileno()},set=1", "-drive", "file=/dev/fdset/1,format=raw,if=floppy,readonly=on"]
        try:
            process = subprocess.Popen(arguments, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                                       pass_fds=[guest.fileno()], **identity)  # type: ignore[call-overload]
        except OSError as error:
            return f"no KVM: QEMU could not be started ({error})"
        said = _listen(process)
    if process.returncode == _EXIT_STATUS:
        return ""
    reason = said.splitlines()[0][:160] if said.strip() else f"a guest under it did nothing for {LIMIT:.0f} s"
    return f"no KVM: /dev/kvm is there, but no guest runs on it ({reason}); guests are emulated, which is slow"


def _listen(process: subprocess.Popen[bytes]) -> str:
    """What QEMU says until it ends, fails, or its time is over; it has ended afterwards."""
    said, until = b"", time.monotonic() + LIMIT
    assert process.stderr
    with process:
        while (left := until - time.monotonic()) > 0 and select.select([process.stderr], [], [], left)[0]:
            data = os.read(process.stderr.fileno(), 4096)
            said += data
            if not data or _FAILURE in said:    # after a failure inside KVM, QEMU waits for somebody to look at the guest
                break
        else:
            process.kill()
        if _FAILURE in said:
            process.kill()
    return said.decode(errors="replace")
