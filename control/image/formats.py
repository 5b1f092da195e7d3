"""What a disk image is, from its first bytes: refuses what is not what was declared or would lead to another file of the host.

An own parser of headers, because the tools that know these formats open what a header names. Sources: QEMU's
docs/interop/qcow2.txt, VMware's "Virtual Disk Format 5.0", Microsoft's "VHD Image Format Specification".
"""
import re
import struct

from control.kernel.errors import Invalid

#: Bytes of the beginning that inspection needs: an ISO 9660 descriptor stands at 32 KiB, a VMDK's text within the first 16.
HEAD = 64 * 1024
#: Bytes of the end: the footer of a VHD of fixed size.
TAIL = 512

DISK_FORMATS = ("raw", "qcow2", "iso", "vmdk", "vdi", "vhd", "vhdx", "ploop", "ami", "aki", "ari")
CONTAINER_FORMATS = ("bare", "ovf", "ova", "docker", "compressed", "ami", "aki", "ari")

#: Containers whose data is not the disk itself: never inspected, so never booted.
WRAPPED = frozenset({"ova", "docker", "compressed"})

#: Formats without a header of their own.
PLAIN = frozenset({"raw", "ami", "aki", "ari", "ploop"})

_QCOW2_DIRTY, _QCOW2_CORRUPT, _QCOW2_EXTERNAL = 1 << 0, 1 << 1, 1 << 2
_QCOW2_COMPRESSION, _QCOW2_EXTENDED_L2 = 1 << 3, 1 << 4
_QCOW2_KNOWN = _QCOW2_DIRTY | _QCOW2_CORRUPT | _QCOW2_EXTERNAL | _QCOW2_COMPRESSION | _QCOW2_EXTENDED_L2

#: Kinds of VMDK that are one file; every other kind names files of the host.
_VMDK_ALONE = ("monolithicSparse", "streamOptimized")


def detect(head: bytes) -> str:
    """The format whose header the data begins with; "" where it has none that is known."""
    if head.startswith(b"QFI\xfb"):
        return "qcow2"
    if head.startswith((b"KDMV", b"COWD")) or head[:512].lstrip().lower().startswith(b"# disk descriptorfile"):
        return "vmdk"
    if head.startswith(b"vhdxfile"):
        return "vhdx"
    if head.startswith(b"conectix"):
        return "vhd"
    if head[64:68] == b"\x7f\x10\xda\xbe":
        return "vdi"
    if head.startswith(b"QED\0"):
        return "qed"
    if head[32769:32774] == b"CD001":
        return "iso"
    return ""


def check(head: bytes, declared: str) -> None:
    """Raise Invalid where data that begins with `head` may not be stored as `declared`. `head` has HEAD bytes or is all."""
    found = detect(head)
    if declared in PLAIN:
        # an ISO image is a fine raw disk, and names no other file
        if found and found != "iso":
            raise _refused(f"the data is {found}, the image's disk_format says {declared}: "
                           f"create the image with --disk-format {found}, or convert the data with qemu-img")
    elif declared == "vhd":
        if found not in ("vhd", ""):       # one of fixed size has its mark at the end: see virtual_size
            raise _mismatch(declared, found)
    elif found != declared:
        raise _mismatch(declared, found)
    if found == "qcow2":
        _check_qcow2(head)
    elif found == "vmdk":
        _check_vmdk(head)


def virtual_size(head: bytes, tail: bytes, size: int, declared: str) -> int | None:
    """Bytes of the disk in complete data that passed check(); None where its format does not tell.

    Raises Invalid where only the end shows that the data is not what was declared.
    """
    match declared:
        case "qcow2":
            return struct.unpack_from(">Q", head, 24)[0]
        case "vmdk":
            return struct.unpack_from("<Q", head, 12)[0] * 512
        case "vdi" if len(head) >= 376:
            return struct.unpack_from("<Q", head, 368)[0]
        case "vhd":
            footer = head if head.startswith(b"conectix") else tail
            if not footer.startswith(b"conectix") or len(footer) < 56:
                raise _mismatch(declared, "")
            return struct.unpack_from(">Q", footer, 48)[0]
        case "raw" | "iso" | "ami":
            return size
    return None


def _check_qcow2(head: bytes) -> None:
    if len(head) < 72:
        raise _refused("the qcow2 header is incomplete")
    version, backing_offset = struct.unpack_from(">IQ", head, 4)
    encryption = struct.unpack_from(">I", head, 32)[0]
    if version not in (2, 3):
        raise _refused(f"qcow2 version {version} is not known, only 2 and 3 are")
    if backing_offset:
        raise _refused("the qcow2 image has a backing file, so it is not complete by itself: "
                       "flatten it first with `qemu-img convert -O qcow2 IMAGE COMPLETE`")
    if encryption:
        raise _refused("the qcow2 image is encrypted, and no server could open it")
    if version == 3:
        if len(head) < 104:
            raise _refused("the qcow2 header is incomplete")
        features = struct.unpack_from(">Q", head, 72)[0]
        if features & _QCOW2_EXTERNAL:
            raise _refused("the qcow2 image keeps its data in an external file: "
                           "put it in one file with `qemu-img convert -O qcow2 IMAGE COMPLETE`")
        if features & ~_QCOW2_KNOWN:
            raise _refused(f"the qcow2 image has incompatible features that are not known: {features & ~_QCOW2_KNOWN:#x}")
        if features & _QCOW2_CORRUPT:
            raise _refused("the qcow2 image is marked as corrupt: repair it with `qemu-img check -r all IMAGE`")


def _check_vmdk(head: bytes) -> None:
    if not head.startswith(b"KDMV") or len(head) < 512:
        raise _refused("the VMDK is not a single sparse file: convert it to qcow2 with qemu-img")
    offset, length = (number * 512 for number in struct.unpack_from("<QQ", head, 28))
    text = head[offset:offset + length].split(b"\0")[0] if offset >= 512 and offset + length <= len(head) else b""
    kind = re.search(rb'^\s*createType\s*=\s*"([^"]*)"', text, re.MULTILINE | re.IGNORECASE)
    if kind is None or kind[1].decode("latin-1") not in _VMDK_ALONE:
        raise _refused(f"a VMDK must be of type {' or '.join(_VMDK_ALONE)}: other types name files of the host. "
                       "Convert it to qcow2 with qemu-img")
    extents = re.findall(rb"^\s*(?:RW|RDONLY|NOACCESS)\s+\d+\s+(\w+)", text, re.MULTILINE)
    if len(extents) != 1 or extents[0].upper() != b"SPARSE":
        raise _refused("the VMDK has more than its own extent: convert it to qcow2 with qemu-img")


def _mismatch(declared: str, found: str) -> Invalid:
    return _refused(f"the data is {found or 'of no known format'}, the image's disk_format says {declared}")


def _refused(text: str) -> Invalid:
    return Invalid("image.data.format", f"The image data is refused: {text}.")
