"""A private libvirtd, one for all tests, and a driver with tiny real guests."""
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from agents.hypervisor import libvirtd


class Daemon:
    """A private libvirtd below a directory of its own; may be killed and started again."""

    def __init__(self, directory: Path):
        self.directory = directory
        self.uri = libvirtd.private_uri(directory)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        project = os.pathsep.join(filter(None, sys.path))      # it is to be found installed or not
        self.process = subprocess.Popen(libvirtd.standalone_command(self.directory), stdin=subprocess.DEVNULL,
                                        env={**os.environ, "PYTHONPATH": project})
        limit = time.monotonic() + 30
        while not libvirtd.answers(libvirtd.private_socket(self.directory)):
            assert self.process.poll() is None, "libvirtd ended"
            assert time.monotonic() < limit, "libvirtd does not answer"
            time.sleep(0.05)

    def stop(self) -> None:
        assert self.process
        self.process.terminate()
        self.process.wait()

    def kill(self) -> None:
        """End libvirtd itself, and its launcher, as kill -9 does."""
        assert self.process
        pid = int((self.directory / "run" / "libvirtd.pid").read_text())
        os.kill(pid, 9)
        self.process.wait()


@pytest.fixture(scope="session")
def daemon():
    if os.geteuid() != 0 or not shutil.which("libvirtd") or not shutil.which("qemu-system-x86_64"):
        pytest.skip("virtual machines need root, libvirtd and QEMU")
    # Not below pytest's own directory: it is closed to the guests' user, and a socket's path may have 107 characters.
    top = Path(tempfile.mkdtemp(prefix="brume-"))
    top.chmod(0o711)
    daemon = Daemon(top / "libvirt")
    daemon.start()
    yield daemon
    daemon.stop()
    libvirtd.cleanup(daemon.directory)
    shutil.rmtree(top)
