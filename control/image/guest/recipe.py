"""What the small guest is made of: Debian packages, kernel modules and files, as data."""
from importlib import resources

#: The kernel package is what this one depends on.
KERNEL_METAPACKAGE = "linux-image-cloud-amd64"

#: Packages whose programs the guest has, with every library that these need.
PACKAGES = ("busybox", "dropbear-bin", "libc6", "libcrypt1", "libgmp10", "libtomcrypt1", "libtommath1", "zlib1g")

#: Files out of the packages: where found, to where in the guest. Libraries are found below usr/lib and lib alike.
PROGRAMS = {"bin/busybox": "bin/busybox", "usr/sbin/dropbear": "usr/sbin/dropbear"}
LIBRARIES = ("libc.so.6", "libcrypt.so.1", "libgmp.so.10", "libresolv.so.2", "libtomcrypt.so.1", "libtommath.so.1", "libz.so.1")
LOADER = "ld-linux-x86-64.so.2"

#: Kernel modules, those that they need come before them by themselves: for disk and network, loaded first; the power button and
#: randomness, loaded when the network is on its way; and for a config drive, when there is one.
MODULES = {"first": ("virtio_pci", "virtio_net"), "then": ("virtio_blk", "virtio-rng", "button", "evdev"), "drive": ("isofs",)}

#: Files of the guest that this package holds: name here, path there.
SCRIPTS = {"init.sh": "init", "metadata.sh": "etc/metadata", "nic-added.sh": "etc/nic-added", "udhcpc.sh": "etc/udhcpc",
           "uevent.sh": "etc/uevent", "user-data.sh": "etc/user-data"}

DIRECTORIES = ("bin", "dev", "etc", "etc/acpi", "etc/acpi/PWRF", "etc/dropbear", "lib", "lib/modules", "lib/x86_64-linux-gnu",
               "lib64", "proc", "root", "root/.ssh", "run", "sbin", "sys", "tmp", "usr", "usr/bin", "usr/sbin", "var")

#: path: (mode, content)
FILES = {
    "etc/acpi/PWRF/00000080": (0o755, "#!/bin/sh\nexec poweroff\n"),
    "etc/group": (0o644, "root:x:0:\n"),
    "etc/hosts": (0o644, "127.0.0.1 localhost\n::1 localhost\n"),
    "etc/passwd": (0o644, "root:x:0:0:root:/root:/bin/sh\n"),
    "etc/shells": (0o644, "/bin/sh\n"),
}

#: The boot loader's whole configuration. What is off costs time under emulation and protects nothing in this guest.
SYSLINUX = """default guest
prompt 0
timeout 0
label guest
 kernel vmlinuz
 append initrd=initrd.gz console=tty0 console=ttyS0 quiet mitigations=off no_timer_check cryptomgr.notests
"""


def script(name: str) -> bytes:
    """A file of the guest that this package holds."""
    return resources.files(__package__).joinpath(name).read_bytes()
