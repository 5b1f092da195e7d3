"""A server's state as a total function: every combination of what is wanted, seen and placed, and what each report leads to."""
import itertools

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from control.compute import model
from control.compute.model import derive, observe
from control.kernel.errors import Conflict
from protos.compute.v1.records_pb2 import SeenServer, ServerRecord
from protos.internal.v1.hosts_pb2 import HostServer, ObservedServer

NOW = Timestamp(seconds=1_800_000_000)
DOMAINS = ObservedServer.Domain.values()
SETTLED = SeenServer.Settled.values()

STATUSES = {"BUILD", "ACTIVE", "SHUTOFF", "REBOOT", "HARD_REBOOT", "ERROR"}
VM_STATES = {"building", "active", "stopped", "error"}
TASKS = {"", "scheduling", "networking", "spawning", "powering-on", "powering-off", "rebooting", "rebooting_hard", "deleting",
         "waiting-for-host"}


def server(*, settled=SeenServer.ACTIVE, power=model.RUNNING, domain=ObservedServer.RUNNING, pending=0, soft=False, deleted=False,
           fault=False, host="node-1", generation=1, seen_generation=1) -> ServerRecord:
    record = ServerRecord(id="s", project_id="p", host=host)
    record.desired.power, record.desired.deleted, record.desired.reboots = power, deleted, 3 + pending
    record.desired.reboot_soft, record.desired.generation = soft, generation
    record.seen.domain, record.seen.settled, record.seen.reboots = domain, settled, 3
    record.seen.generation = seen_generation
    if settled:
        record.launched_at.CopyFrom(NOW)
    if fault:
        record.fault.code = 500
    return record


ALL = [dict(zip(("settled", "power", "domain", "pending", "soft", "deleted", "fault", "host", "up"), values, strict=True))
       for values in itertools.product(SETTLED, (model.RUNNING, model.STOPPED), DOMAINS, (0, 1), (False, True), (False, True),
                                       (False, True), ("", "node-1"), (False, True))]


def test_the_state_of_every_combination_is_one_that_nova_has():
    for case in ALL:
        up = case["up"]
        state = derive(server(**{key: value for key, value in case.items() if key != "up"}), up)
        assert state.status in STATUSES and state.vm_state in VM_STATES and state.task_state in TASKS, case
        assert state.power_state in (0, 1, 3, 4, 6)
        if case["deleted"]:
            assert state.task_state in ("deleting", "waiting-for-host"), case
        elif case["fault"]:
            assert (state.status, state.vm_state, state.task_state) == ("ERROR", "error", ""), case
        if state.task_state == "waiting-for-host":
            assert case["host"] and not up, case


#: (settled, wanted power, domain seen, reboot pending: "", "soft" or "hard") -> (status, task_state), on a host that is up.
A, S, N = SeenServer.ACTIVE, SeenServer.STOPPED, SeenServer.SETTLED_UNSPECIFIED
R, X = HostServer.RUNNING, HostServer.STOPPED
ON, PAUSED, OFF = ObservedServer.RUNNING, ObservedServer.PAUSED, ObservedServer.SHUTOFF
DEAD, GONE, NEVER = ObservedServer.CRASHED, ObservedServer.MISSING, ObservedServer.DOMAIN_UNSPECIFIED

TABLE = {
    **{(N, power, domain, reboot): ("BUILD", "networking" if domain == ON else "spawning")
       for power in (R, X) for domain in DOMAINS for reboot in ("", "soft", "hard")},
    **{(A, R, domain, ""): ("ACTIVE", "") for domain in (ON, PAUSED)},
    **{(A, R, domain, ""): ("ACTIVE", "powering-on") for domain in (OFF, DEAD, GONE, NEVER)},
    **{(A, X, domain, reboot): ("ACTIVE", "powering-off") for domain in DOMAINS for reboot in ("", "soft", "hard")},
    **{(S, X, domain, reboot): ("SHUTOFF", "") for domain in DOMAINS for reboot in ("", "soft", "hard")},
    **{(S, R, domain, ""): ("SHUTOFF", "powering-on") for domain in DOMAINS},
    **{(settled, R, domain, "soft"): ("REBOOT", "rebooting") for settled in (A, S) for domain in DOMAINS},
    **{(settled, R, domain, "hard"): ("HARD_REBOOT", "rebooting_hard") for settled in (A, S) for domain in DOMAINS},
}


def test_the_table_names_every_combination():
    assert set(TABLE) == set(itertools.product(SETTLED, (R, X), DOMAINS, ("", "soft", "hard")))


@pytest.mark.parametrize("settled", SETTLED)
def test_the_state_is_what_the_table_says(settled):
    for (row_settled, power, domain, reboot), expected in TABLE.items():
        if row_settled == settled:
            state = derive(server(settled=settled, power=power, domain=domain, pending=bool(reboot), soft=reboot == "soft"))
            assert (state.status, state.task_state) == expected, (settled, power, domain, reboot)


def test_without_a_host_a_server_is_being_scheduled():
    assert derive(server(settled=N, host="", domain=NEVER)).task_state == "scheduling"


def test_a_task_on_a_silent_host_waits_for_it_and_rest_does_not():
    assert derive(server(power=X), host_up=False).task_state == "waiting-for-host"
    assert derive(server(), host_up=False).task_state == ""


@pytest.mark.parametrize("settled", SETTLED)
def test_every_report_leads_to_rest_or_to_a_state_with_something_to_do(settled):
    """Whatever is seen: reported once more with the same content it changes nothing."""
    for power, domain, pending, current, deleted in itertools.product((R, X), DOMAINS, (0, 1), (False, True), (False, True)):
        record = server(settled=settled, power=power, pending=pending, domain=NEVER, generation=2, deleted=deleted)
        report = ObservedServer(id="s", generation=2 if current else 1, domain=domain, reboots=3)
        observe(record, report, True, NOW)
        assert not observe(record, report, True, NOW)
        assert derive(record).task_state in TASKS
        if deleted:
            assert derive(record).task_state == "deleting"


def test_a_guest_that_stops_itself_is_wanted_stopped_from_then_on():
    record = server()
    assert observe(record, ObservedServer(id="s", generation=1, domain=OFF, reboots=3), True, NOW)
    assert (record.desired.power, record.desired.generation) == (X, 2)
    assert derive(record).status == "SHUTOFF" and derive(record).task_state == ""


@pytest.mark.parametrize("report", [
    ObservedServer(id="s", generation=1, domain=DEAD, reboots=3),
    ObservedServer(id="s", generation=1, domain=GONE, reboots=3),
    ObservedServer(id="s", generation=0, domain=OFF, reboots=3),
    ObservedServer(id="s", generation=1, domain=OFF, reboots=2),
    ObservedServer(id="s", generation=1, domain=OFF, reboots=3, step="starting"),
], ids=["crashed", "missing", "of an older wish", "in the middle of a reboot", "being worked on"])
def test_a_server_that_did_not_stop_by_itself_stays_wanted(report):
    record = server()
    if report.reboots < 3:
        record.seen.reboots = 2
    observe(record, report, True, NOW)
    assert record.desired.power == R


def test_a_late_report_of_the_time_before_a_start_does_not_stop_the_server_again():
    record = server(settled=S, power=X, domain=OFF)
    model.want_power(record, R)
    observe(record, ObservedServer(id="s", generation=1, domain=OFF, reboots=3), True, NOW)
    assert record.desired.power == R and derive(record).task_state == "powering-on"
    observe(record, ObservedServer(id="s", generation=2, domain=OFF, reboots=3), True, NOW)
    assert record.desired.power == R, "seen before it was started"
    observe(record, ObservedServer(id="s", generation=2, domain=ON, reboots=3), True, NOW)
    assert derive(record) == model.State("ACTIVE", "active", "", 1)


def test_a_fault_counts_when_it_is_final_and_of_the_present_wish():
    record = server(settled=N, domain=NEVER, generation=2)
    observe(record, ObservedServer(id="s", generation=2, fault="no route to the image", fault_final=False), True, NOW)
    assert derive(record).status == "BUILD"
    observe(record, ObservedServer(id="s", generation=1, fault="bad image", fault_final=True), True, NOW)
    assert derive(record).status == "BUILD"
    observe(record, ObservedServer(id="s", generation=2, fault="bad image", fault_final=True), True, NOW)
    assert derive(record).status == "ERROR" and record.fault.message == "bad image"
    observe(record, ObservedServer(id="s", generation=2, domain=ON, reboots=3), True, NOW)
    assert derive(record).status == "ACTIVE", "the host took it back"


def test_what_an_admin_set_is_not_taken_back_by_a_host():
    record = server(fault=True)
    observe(record, ObservedServer(id="s", generation=1, domain=ON, reboots=3), True, NOW)
    assert derive(record).status == "ERROR"


ALLOWED = {("start", "stopped"), ("stop", "active"), ("stop", "error"), ("reboot_soft", "active"), ("reboot_hard", "active"),
           ("reboot_hard", "stopped"), ("reboot_hard", "error")}


def test_actions_are_allowed_in_their_states_only():
    states = {"active": server(), "stopped": server(settled=S, power=X, domain=OFF), "error": server(fault=True),
              "building": server(settled=N, domain=NEVER)}
    for action, (name, record) in itertools.product(("start", "stop", "reboot_soft", "reboot_hard"), states.items()):
        if (action, name) in ALLOWED:
            model.check_action(record, action)
        else:
            with pytest.raises(Conflict, match="Cannot"):
                model.check_action(record, action)
        for blocked in (server(deleted=True), server(fault=True, host="")):
            with pytest.raises(Conflict):
                model.check_action(blocked, action)


def test_a_flavor_without_a_disk_takes_the_images_size():
    record = ServerRecord()
    record.image.size = 3 * 2**30 + 1
    assert model.disk_of(record) == 4
    record.flavor.disk_gib, record.flavor.ephemeral_gib, record.flavor.swap_mib = 10, 5, 1500
    assert model.disk_of(record) == 17
