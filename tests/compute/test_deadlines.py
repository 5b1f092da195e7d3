"""A server does not stay on its way: at its deadline it says what it waited for, and what comes late counts all the same."""

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from control.compute import deadlines, model
from control.compute.checks import Checks
from control.compute.deadlines import PASSING
from control.compute.model import SERVER
from control.kernel import fleet
from control.kernel.clock import now
from protos.compute.v1.records_pb2 import SeenServer, ServerRecord
from protos.internal.v1.hosts_pb2 import ObservedServer
from tests.compute.fakes import World, act, make, show, world


def later(seconds: float) -> Timestamp:
    moment = now()
    moment.seconds += int(seconds)
    return moment


async def fault_of(cloud: World, server_id: str) -> str:
    answer = await show(cloud.client("admin"), server_id)
    return answer["fault"]["message"] if "fault" in answer else ""


async def expire(cloud: World, server_id: str, seconds: float) -> None:
    """What the reconciler does for a server so many seconds from now."""
    await cloud.settling(now=lambda: later(seconds)).reconcile(server_id)


def test_every_passing_state_has_an_owner_and_a_deadline():
    tasks = set()
    for settled in SeenServer.Settled.values():
        for power in (model.RUNNING, model.STOPPED):
            for domain in ObservedServer.Domain.values():
                for host in ("", "h1"):
                    for soft in (False, True):
                        for reboots in (0, 1):
                            server = ServerRecord(host=host)
                            server.seen.settled, server.seen.domain = settled, domain
                            server.desired.power, server.desired.reboots, server.desired.reboot_soft = power, reboots, soft
                            tasks.add(model.derive(server).task_state)
    assert tasks - {""} == PASSING.keys()
    assert {passing.owner for passing in PASSING.values()} == {deadlines.SCHEDULER, deadlines.AGENT, deadlines.NETWORK}
    assert all(60 <= passing.seconds <= 3900 for passing in PASSING.values())


async def test_a_server_that_its_host_does_not_start_fails_when_its_time_is_over_and_says_why():
    async with world() as cloud:
        server_id = await make(cloud.client())
        await cloud.reconcile()
        limit = PASSING["spawning"].seconds
        assert 0 < await cloud.settling().reconcile(server_id) <= limit          # to be looked at when it is over
        await expire(cloud, server_id, limit - 30)
        assert (await show(cloud.client(), server_id))["status"] == "BUILD"
        await expire(cloud, server_id, limit + 1)
        answer = await show(cloud.client(), server_id)
        assert answer["status"] == "ERROR" and answer["OS-EXT-STS:task_state"] is None
        assert answer["fault"]["message"] == f"Its host did not report within {limit} s that it was started."
        assert "node-1" not in str(answer["fault"])
        record = cloud.database.require(SERVER, server_id)
        assert "Host node-1 did not report" in record.fault.details and "is attached" in record.fault.details
        actions = await cloud.client()("GET", f"/servers/{server_id}/os-instance-actions")
        assert actions.json["instanceActions"][0]["message"] == "Error"


async def test_the_fault_names_a_host_that_is_away():
    async with world() as cloud:
        server_id = await make(cloud.client())
        await cloud.reconcile()

        def away(tx) -> None:
            host = tx.require(fleet.HOST, "node-1")
            host.up = False
            tx.put(fleet.HOST, host)

        await cloud.database.transact(away)
        await expire(cloud, server_id, 1801)
        assert "its agent is not attached since" in cloud.database.require(SERVER, server_id).fault.details


@pytest.mark.parametrize("late", ["delete", "report", "reboot"])
async def test_after_its_deadline_a_server_can_be_deleted_or_tried_again_and_a_late_report_counts(late: str):
    async with world() as cloud:
        demo = cloud.client()
        server_id = await make(demo)
        await cloud.reconcile()
        await expire(cloud, server_id, 1801)
        assert await fault_of(cloud, server_id)
        match late:
            case "delete":
                assert (await demo("DELETE", f"/servers/{server_id}")).status == 204
                await cloud.settle()
                assert not cloud.database.rows(SERVER)
            case "report":
                await cloud.settle()
                assert (await show(demo, server_id))["status"] == "ACTIVE" and not await fault_of(cloud, server_id)
            case "reboot":
                assert await act(demo, server_id, reboot={"type": "HARD"}) == 202
                assert (await show(demo, server_id))["status"] != "ERROR"
                await cloud.settle()
                assert (await show(demo, server_id))["status"] == "ACTIVE"
        cloud.check()


async def test_a_running_server_whose_ports_are_never_wired_fails_and_comes_up_when_they_are():
    async with world() as cloud:
        server_id = await make(cloud.client())
        cloud.ports.down.add(server_id)
        await cloud.reconcile()
        await cloud.agents["node-1"].step()
        assert (await show(cloud.client("admin"), server_id))["OS-EXT-STS:task_state"] == "networking"
        await expire(cloud, server_id, PASSING["networking"].seconds + 1)
        assert await fault_of(cloud, server_id) == "Its host did not report within 600 s that its ports were wired."
        await cloud.agents["node-1"].step()                   # says again that it runs: that is not what was waited for
        assert (await show(cloud.client(), server_id))["status"] == "ERROR"
        cloud.ports.down.clear()
        await cloud.settling().reconcile(server_id)
        assert (await show(cloud.client(), server_id))["status"] == "ACTIVE"


@pytest.mark.parametrize(("action", "task"), [("os_stop", "powering-off"), ("reboot", "rebooting_hard")])
async def test_a_wish_that_is_not_met_in_time_is_a_fault_until_it_is_met(action: str, task: str):
    async with world() as cloud:
        demo = cloud.client()
        server_id = await make(demo)
        await cloud.settle()
        assert await act(demo, server_id, **{action: {"type": "HARD"} if action == "reboot" else None}) == 202
        assert (await show(demo, server_id))["OS-EXT-STS:task_state"] == task
        await expire(cloud, server_id, PASSING[task].seconds + 1)
        assert (await show(demo, server_id))["status"] == "ERROR"
        await cloud.agents["node-1"].step()
        await cloud.settle()
        assert (await show(demo, server_id))["status"] == ("ACTIVE" if action == "reboot" else "SHUTOFF")


async def test_what_the_agent_says_is_wrong_stands_in_place_of_what_was_waited_for():
    async with world() as cloud:
        server_id = await make(cloud.client())
        await cloud.reconcile()
        await expire(cloud, server_id, 1801)
        cloud.agents["node-1"].trouble[server_id] = "no such image"
        await cloud.agents["node-1"].step()
        assert await fault_of(cloud, server_id) == "no such image"


@pytest.mark.parametrize("state", ["unplaced", "refused", "placed", "running", "stopped", "faulty", "overdue", "rebooting",
                                   "deleting", "hostless"])
async def test_a_server_can_be_deleted_in_every_state(state: str):
    async with world(hosts=0 if state == "unplaced" else 1) as cloud:
        demo = cloud.client()
        server_id = await make(demo, **({"flavorRef": "big"} if state == "refused" else {}))
        if state == "refused":
            await make(demo, flavorRef="big")
        if state != "unplaced":
            await cloud.reconcile()
        match state:
            case "running" | "hostless":
                await cloud.settle()
            case "stopped":
                await cloud.settle()
                await act(demo, server_id, os_stop=None)
                await cloud.settle()
            case "faulty":
                cloud.agents["node-1"].trouble[server_id] = "no"
                await cloud.settle()
            case "overdue":
                await expire(cloud, server_id, 1801)
            case "rebooting":
                await cloud.settle()
                await act(demo, server_id, reboot={"type": "HARD"})
            case "deleting":
                assert (await demo("DELETE", f"/servers/{server_id}")).status == 204
        if state == "hostless":
            await cloud.database.transact(lambda tx: fleet.delete_host(tx, tx.require(fleet.HOST, "node-1"), {server_id}))
        for server in (await demo("GET", "/servers")).json["servers"]:
            assert (await demo("DELETE", f"/servers/{server['id']}")).status == 204
        if state == "hostless":
            cloud.agents.clear()
        for agent in cloud.agents.values():
            agent.trouble.clear()
        await cloud.settle()
        assert not cloud.database.rows(SERVER)
        cloud.check()


async def test_a_server_whose_host_is_down_stays_deleting_and_the_doctor_says_why():
    async with world() as cloud:
        demo = cloud.client()
        server_id = await make(demo)
        await cloud.settle()

        def away(tx) -> None:
            host = tx.require(fleet.HOST, "node-1")
            host.up = False
            tx.put(fleet.HOST, host)

        await cloud.database.transact(away)
        assert (await demo("DELETE", f"/servers/{server_id}")).status == 204
        await expire(cloud, server_id, 10**6)
        assert cloud.database.require(SERVER, server_id).desired.deleted and not await fault_of(cloud, server_id)
        checks = Checks(cloud.ports, cloud.placer, now=lambda: later(3600))
        found = await cloud.database.transact(lambda tx: list(checks.passing(tx)))
        assert [finding.why for finding in found] == ["Host node-1 is down. Its quota and addresses stay taken."]


async def test_a_state_that_no_reconciler_ends_is_a_finding():
    async with world() as cloud:
        await make(cloud.client())
        await cloud.reconcile()
        for seconds, count in ((1700, 0), (1800 + 30, 0), (2000, 1)):
            checks = Checks(cloud.ports, cloud.placer, now=lambda seconds=seconds: later(seconds))
            assert len(await cloud.database.transact(lambda tx, checks=checks: list(checks.passing(tx)))) == count


