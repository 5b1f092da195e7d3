"""`brume plan` against a served scheduler: it logs in as the cloud's admin, shows plans and applies them."""
import asyncio
import json
import sys
from pathlib import Path

import grpc

from control.cli.main import COMMANDS
from control.identity import service as identity
from control.kernel import config as settings
from control.kernel import fleet, rpc
from control.kernel.database import Database
from control.kernel.fleet import HOST
from control.kernel.store import MemoryStore
from control.placement.live import LiveFleet
from control.placement.neighbours import NoServers
from control.placement.scheduling import Scheduling
from protos.placement.v1 import scheduling_pb2 as pb
from tests.identity.conftest import PASSWORDS, Cloud
from tests.placement.test_scheduling import CALL, add_host, homes, vcpus


class Served(Cloud):
    """Identity, and the scheduler beside it."""

    def __init__(self) -> None:
        super().__init__(MemoryStore())
        self.db = Database(self.db.store, (*identity.KINDS, *fleet.KINDS))
        self.authenticator = identity.TokenAuthenticator(self.db)
        self.dispatcher = rpc.Dispatcher(self.authenticator)
        for servicer, descriptor in identity.servicers(self.db, self.authenticator, self.passwords):
            self.dispatcher.add(servicer, descriptor)
        self.scheduling = Scheduling(self.db, LiveFleet(self.db, NoServers()))
        self.dispatcher.add(self.scheduling, pb.DESCRIPTOR.services_by_name["Scheduling"])


async def brume(state_dir: Path, *arguments: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "control.cli.main", "--state-dir", str(state_dir), "plan", *arguments,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE)
    out, err = await process.communicate()
    return process.returncode or 0, out.decode(), err.decode()


async def test_plans_are_shown_and_applied(tmp_path: Path) -> None:
    assert COMMANDS["plan"] == "plan"
    cloud = Served()
    task = asyncio.create_task(cloud.db.cache.run())
    await cloud.db.cache.ready.wait()
    await cloud.bootstrap()
    server = grpc.aio.server()
    rpc.add_to_grpc(cloud.dispatcher, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        settings.save(settings.Config(state_dir=tmp_path, port=port - 1))
        settings.write_private(tmp_path / "admin.password", PASSWORDS["admin"].encode())
        await add_host(cloud.db, "a", VCPU=8)
        await add_host(cloud.db, "b", VCPU=4)
        await cloud.scheduling.Schedule(pb.ScheduleRequest(shapes=[vcpus(2, policy="first")], shape_of=[0, 0]), CALL)
        code, out, err = await brume(tmp_path, "drain", "a", "--json")
        assert code == 0, err
        assert {move["target"] for move in json.loads(out)["moves"]} == {"b"} and set(homes(cloud.db).values()) == {"a"}
        code, out, err = await brume(tmp_path, "add", "--vcpus", "4", "--count", "5")
        assert code == 0 and "2 fit." in out and "No place for 3" in out and "vCPU" in out, err
        code, out, err = await brume(tmp_path, "ratio", "VCPU", "0.25")
        assert code == 0 and "More held than there is: a" in out, err
        for verb in ("balance", "consolidate"):
            assert (await brume(tmp_path, verb))[0] == 0
        code, out, err = await brume(tmp_path, "drain", "a", "--apply")
        assert code == 0 and "1 hosts closed" in out and "2 consumers moved" in out, err
        assert set(homes(cloud.db).values()) == {"b"} and cloud.db.require(HOST, "a").disabled
        code, out, err = await brume(tmp_path, "drain", "nowhere")
        assert code == 1 and "nowhere could not be found" in err and "Traceback" not in err
    finally:
        await server.stop(None)
        task.cancel()
