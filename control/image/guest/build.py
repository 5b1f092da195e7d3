"""Builds the small guest: a qcow2 disk, and its kernel and initial RAM disk for images that boot without a boot loader.

The same packages give the same bytes, so a result is kept under a name made of them and built once.
"""
import gzip
import hashlib
import logging
import os
import re
import shutil
import stat
import struct
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from control.image.guest import cpio, recipe

log = logging.getLogger(__name__)

#: Program -> the Debian package that has it.
TOOLS = {"apt-cache": "apt", "apt-get": "apt", "dpkg-deb": "dpkg", "mkfs.vfat": "dosfstools", "mcopy": "mtools",
         "syslinux": "syslinux", "qemu-img": "qemu-utils"}

#: Seconds for one tool; the longest is the download of 30 MB.
DEADLINE = 600

_ENVIRONMENT = {"LC_ALL": "C", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "SOURCE_DATE_EPOCH": "0", "MTOOLS_SKIP_CHECK": "1"}


class BuildError(Exception):
    """Why the guest cannot be built, and what to do about it."""


@dataclass(frozen=True, slots=True)
class Guest:
    """The files of one build."""

    disk: Path          # qcow2
    kernel: Path
    ramdisk: Path
    version: str        # of the kernel, for people


def build(cache: Path) -> Guest:
    """The guest made of the packages that apt offers now, from `cache` if it was built before. Takes some 5 seconds.

    Raises BuildError where a tool is missing, the packages cannot be had, or a step fails.
    """
    missing = sorted({package for tool, package in TOOLS.items() if shutil.which(tool, path=_ENVIRONMENT["PATH"]) is None})
    if missing:
        raise BuildError(f"the guest is built with Debian's own tools and these packages are missing: {' '.join(missing)}. "
                         f"Install them with: apt-get install {' '.join(missing)}")
    kernel = _kernel_package()
    offered = _offered([kernel, *recipe.PACKAGES])
    result = cache / _name(offered)
    if not result.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="building.", dir=cache) as scratch:
            made = _make(Path(scratch), offered, kernel)
            try:
                made.rename(result)
            except OSError:
                if not result.exists():      # else somebody else was faster
                    raise
        log.info("built the small guest in %s", result)
    return Guest(result / "guest.qcow2", result / "vmlinuz", result / "initrd.gz", kernel.removeprefix("linux-image-"))


def _kernel_package() -> str:
    said = _run(["apt-cache", "depends", "--important", recipe.KERNEL_METAPACKAGE], "asking apt for the kernel")
    match = re.search(r"Depends: (linux-image-\S+)", said)
    if match is None:
        raise BuildError(f"apt knows no package {recipe.KERNEL_METAPACKAGE}: this must be a Debian machine; run `apt-get update`")
    return match[1]


def _offered(packages: Sequence[str]) -> dict[str, str]:
    """File name -> checksum of each package as apt would download it, sorted."""
    said = _run(["apt-get", "download", "--print-uris", *packages], "asking apt for the guest's packages (try `apt-get update`)")
    offered = dict(sorted((match[1], match[2]) for match in re.finditer(r"^'\S+' (\S+\.deb) \d+ (\S+)$", said, re.MULTILINE)))
    if len(offered) != len(packages):
        raise BuildError(f"apt offers {len(offered)} of the guest's {len(packages)} packages: run `apt-get update`")
    return offered


def _name(offered: Mapping[str, str]) -> str:
    """The result's directory: what went into it, packages and recipe."""
    digest = hashlib.sha256(repr(sorted(offered.items())).encode())
    for part in (__file__, recipe.__file__, cpio.__file__):
        digest.update(Path(part).read_bytes())
    for name in recipe.SCRIPTS:
        digest.update(recipe.script(name))
    return f"guest-{digest.hexdigest()[:16]}"


def _make(scratch: Path, offered: Mapping[str, str], kernel: str) -> Path:
    """Build in a scratch directory; the directory that has the result."""
    debs, root, out = scratch / "debs", scratch / "root", scratch / "out"
    for directory in (debs, root, out):
        directory.mkdir()
    packages = [name.partition("_")[0] for name in offered]
    _run(["apt-get", "download", "-q", "-o", "APT::Sandbox::User=root", *packages], "downloading the guest's packages", cwd=debs)
    for name in offered:
        if not (debs / name).exists():
            raise BuildError(f"apt downloaded another version than {name} just now: try again")
        _run(["dpkg-deb", "--extract", str(debs / name), str(root)], f"unpacking {name}")
    vmlinuz = next(root.glob("boot/vmlinuz-*")).read_bytes()
    ramdisk = gzip.compress(cpio.pack(_entries(root)), 9, mtime=0)
    (out / "vmlinuz").write_bytes(vmlinuz)
    (out / "initrd.gz").write_bytes(ramdisk)
    (out / "packages.txt").write_text("".join(f"{name} {checksum}\n" for name, checksum in offered.items()))
    _make_disk(scratch, out)
    log.info("the guest has kernel %s, %d bytes, and a RAM disk of %d", kernel, len(vmlinuz), len(ramdisk))
    return out


def _entries(root: Path) -> dict[str, cpio.Entry]:
    """Everything in the RAM disk, out of the unpacked packages."""
    entries = {path: cpio.directory(0o700 if path.startswith("root") else 0o755) for path in recipe.DIRECTORIES}
    entries["dev/console"] = cpio.Entry(stat.S_IFCHR | 0o600, device=(5, 1))
    for source, path in recipe.PROGRAMS.items():
        entries[path] = cpio.file((root / source).read_bytes(), 0o755)
    for library in recipe.LIBRARIES:
        entries[f"lib/x86_64-linux-gnu/{library}"] = cpio.file(_find(root, library), 0o755)
    entries[f"lib64/{recipe.LOADER}"] = cpio.file(_find(root, recipe.LOADER), 0o755)
    for name, path in recipe.SCRIPTS.items():
        entries[path] = cpio.file(recipe.script(name), 0o755)
    for path, (mode, text) in recipe.FILES.items():
        entries[path] = cpio.file(text.encode(), mode)
    modules = {path.stem: _unsigned(path.read_bytes()) for path in root.glob("lib/modules/*/kernel/**/*.ko")}
    loaded: list[str] = []
    for moment, wanted in recipe.MODULES.items():
        order = [name for name in _load_order(modules, wanted) if name not in loaded]
        loaded.extend(order)
        entries[f"lib/modules/{moment}"] = cpio.file("".join(f"{name}\n" for name in order).encode())
    entries.update((f"lib/modules/{name}.ko", cpio.file(modules[name])) for name in loaded)
    return entries


def _find(root: Path, name: str) -> bytes:
    for folder in ("lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu", "lib64"):
        path = root / folder / name
        if path.is_file():
            return path.read_bytes()
    raise BuildError(f"{name} is in none of the guest's packages: the recipe does not know this release of Debian")


def _unsigned(module: bytes) -> bytes:
    """A kernel module without its signature: the guest's kernel takes 30 ms for each one that it verifies in emulation.

    See the kernel's include/linux/module_signature.h: signature, 12 bytes of which the last 4 are its length, magic text.
    """
    magic = b"~Module signature appended~\n"
    if not module.endswith(magic):
        return module
    end = len(module) - len(magic) - 12
    (length,) = struct.unpack_from(">I", module, end + 8)
    return module[:end - length]


def _load_order(modules: Mapping[str, bytes], wanted: Sequence[str]) -> list[str]:
    """The wanted modules, each after those that it says it needs. One that the kernel has built in is left out."""
    order: list[str] = []
    names = {name.replace("-", "_"): name for name in modules}

    def add(name: str) -> None:
        name = names.get(name.replace("-", "_"), "")
        if not name or name in order:
            return
        needed = re.search(rb"\0depends=([^\0]*)\0", b"\0" + modules[name])
        for other in (needed[1].decode() if needed else "").split(","):
            add(other)
        order.append(name)

    for name in wanted:
        add(name)
    return order


def _make_disk(scratch: Path, out: Path) -> None:
    """A FAT disk with boot loader, kernel and RAM disk, as qcow2."""
    raw, config = scratch / "disk.raw", scratch / "syslinux.cfg"
    config.write_text(recipe.SYSLINUX)
    content = sum((out / name).stat().st_size for name in ("vmlinuz", "initrd.gz"))
    with raw.open("wb") as disk:
        disk.truncate(-(-(content + 2 * 2**20) // 2**20) * 2**20)
    _run(["mkfs.vfat", "-F", "16", "--invariant", "-n", "GUEST", str(raw)], "making the guest's file system")
    _run(["syslinux", "--install", str(raw)], "installing the guest's boot loader", cwd=scratch)
    for path in (config, out / "vmlinuz", out / "initrd.gz"):
        os.utime(path, (315532800, 315532800))      # the first moment that FAT knows
        _run(["mcopy", "-m", "-i", str(raw), str(path), f"::{path.name}"], "filling the guest's disk")
    _run(["qemu-img", "convert", "-O", "qcow2", str(raw), str(out / "guest.qcow2")], "converting the guest's disk")


def _run(command: Sequence[str], purpose: str, cwd: Path | None = None) -> str:
    """Run a tool; what it prints."""
    try:
        done = subprocess.run(command, cwd=cwd, env=_ENVIRONMENT, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                              timeout=DEADLINE, check=False)
    except subprocess.TimeoutExpired as error:
        raise BuildError(f"{purpose}: {command[0]} took longer than {DEADLINE} seconds") from error
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or "it said nothing").splitlines()[-1]
        raise BuildError(f"{purpose}: {command[0]} failed with status {done.returncode}: {last}")
    return done.stdout
