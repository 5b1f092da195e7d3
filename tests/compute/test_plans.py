"""What-ifs know what servers and flavors ask for, beyond the amounts that are held."""
from control.compute import service as compute
from control.kernel.caller import Caller
from control.kernel.rpc import Call
from control.placement.live import LiveFleet
from control.placement.scheduling import Scheduling
from protos.placement.v1 import scheduling_pb2 as pb
from tests.compute.fakes import make, world

CALL = Call(caller_or_none=Caller(user_id="u", project_id="p", roles=frozenset({"admin"})))


async def test_plans_add_by_flavor_and_drain_servers_with_all_that_they_ask_for():
    async with world(hosts=2) as w:
        scheduling = Scheduling(w.database, LiveFleet(w.database, compute.Demands(w.database)))
        by_id, by_name = [await scheduling.PlanAdd(pb.PlanAddRequest(flavor=flavor, count=100), CALL)
                          for flavor in ("1", "small")]
        assert by_id == by_name and 0 < sum(by_id.placed.values()) < 100 and "RAM" in by_id.refused[0].reason
        server = await make(w.client())
        await w.settle()
        host = w.database.require(compute.model.SERVER, server).host
        plan = await scheduling.PlanDrain(pb.PlanDrainRequest(hosts=[host]), CALL)
        [move] = plan.moves
        assert move.server and move.consumer_id == server and move.source == host != move.target
