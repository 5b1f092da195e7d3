"""`brume doctor` against a control plane of its own on a real etcd."""
import asyncio
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator

import pytest

from control.cli import credentials
from control.kernel import quota
from control.kernel.store import Record
from protos.internal.v1.quota_pb2 import QuotaLedger
from tests.conftest import Etcd, unique
from tests.identity.test_replicas import Plane

pytestmark = pytest.mark.etcd


@pytest.fixture
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Plane, Etcd]]:
    if not shutil.which("etcd"):
        pytest.skip("no etcd here: apt-get install etcd-server")
    own = Etcd(tmp_path_factory.mktemp("doctor"))
    own.start()
    try:
        asyncio.run(own.ready())
        made = Plane(tmp_path_factory.getbasetemp() / unique("plane"), own, own.credentials.ca.parent)
        credentials.ensure(made.config)
        made.start()
        try:
            made.wait()
            yield made, own
        finally:
            made.stop()
    finally:
        own.kill()


def doctor(plane: Plane, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "control.cli.main", "--state-dir", str(plane.config.state_dir), "doctor", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_it_names_what_is_out_of_step_puts_it_right_and_is_silent_then(plane: tuple[Plane, Etcd]):
    control, etcd = plane
    well = doctor(control)
    assert well.returncode == 0 and "All is in step" in well.stdout, well.stdout + well.stderr

    async def drift() -> None:
        store = etcd.store()
        ledger = QuotaLedger(service="compute", project_id="p", used={"cores": 3})
        await store.commit(Record(quota.LEDGER.key_of(ledger), ledger.SerializeToString()))
        await store.close()

    asyncio.run(drift())
    ill = doctor(control)
    assert ill.returncode == 1 and "ERROR compute.quota: project p" in ill.stdout and "cores 3 instead of 0" in ill.stdout
    (finding,) = json.loads(doctor(control, "--json", "--check", "compute.quota").stdout)["findings"]
    assert finding["repairable"] and finding["severity"] == "error"
    mended = doctor(control, "--repair")
    assert mended.returncode == 0 and "Repaired: project p" in mended.stdout, mended.stdout + mended.stderr
    assert doctor(control).returncode == 0
    wrong = doctor(control, "--check", "nothing")
    assert wrong.returncode == 1 and "There is no check 'nothing'" in wrong.stderr
