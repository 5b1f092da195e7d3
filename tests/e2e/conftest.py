"""One cloud for all end-to-end tests of a run: brought up by `brume up`, taken down by `brume down --purge`."""
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.cloud import Cloud
from tests.log_secrets import WATCH


@pytest.fixture(scope="session")
def cloud() -> Iterator[Cloud]:
    if os.geteuid() != 0:
        pytest.skip("a whole cloud needs root: virtual machines and networks")
    # A short path: sockets of libvirt and QEMU below it must fit into 108 bytes.
    state_dir = Path(tempfile.mkdtemp(prefix="brume-", dir="/var/tmp"))
    cloud = Cloud(state_dir)
    try:
        cloud.up()
        yield cloud
    finally:
        for secret in state_dir.glob("*.password"):
            WATCH.note(secret.read_text().strip())
        WATCH.read(state_dir / "log")
        keep = os.environ.get("BRUME_KEEP_LOGS")
        if keep and (state_dir / "log").exists():
            shutil.copytree(state_dir / "log", keep, dirs_exist_ok=True)
        cloud.brume("down", "--purge", "--yes", check=False)
        shutil.rmtree(state_dir, ignore_errors=True)
