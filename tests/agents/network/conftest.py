"""A cloud of the test's own on this machine's kernel, that leaves nothing behind."""
import os
import shutil
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.agents.network.lab import Lab, leftovers


@pytest.fixture
async def lab() -> AsyncIterator[Lab]:
    if os.geteuid() != 0:
        pytest.skip("needs root: it makes links and namespaces")
    # below /run, where dnsmasq may go when it is no longer root
    run_dir = Path(f"/run/brume-test-{uuid.uuid4().hex[:8]}")
    made = Lab(run_dir)
    try:
        yield made
    finally:
        for undo in made.undo:
            undo()
        await made.networking.teardown()
        await made.networking.close()
        for guest in made.guests:
            guest.remove()
        shutil.rmtree(run_dir, ignore_errors=True)
        assert leftovers(made.cloud) == []
