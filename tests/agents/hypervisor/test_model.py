"""Which step comes next: the whole table, and what stands around it."""
import itertools

import pytest

from agents.hypervisor.model import NEXT_STEP, Seen, Step, Wanted, next_step, reported, wanted
from protos.internal.v1.hosts_pb2 import HostServer, ObservedServer

RUNNING, STOPPED, ABSENT = HostServer.RUNNING, HostServer.STOPPED, HostServer.ABSENT


def test_the_table_has_an_answer_for_everything_that_may_be_wanted_and_seen():
    assert NEXT_STEP.keys() == set(itertools.product(Wanted, Seen))


def test_every_way_ends_at_rest_when_each_step_does_what_it_says():
    effect = {Step.START: Seen.RUNNING, Step.REBOOT: Seen.RUNNING, Step.STOP: Seen.OFF}
    for power, seen, generation, reboots in itertools.product((RUNNING, STOPPED), Seen, (0, 1), (0, 1)):
        server = HostServer(power=power, generation=1, reboots=1)
        for _ in range(3):
            step = next_step(server, seen, generation, reboots)
            if step is Step.REST:
                break
            seen, generation, reboots = effect.get(step, seen), 1, 1
        assert next_step(server, seen, generation, reboots) is Step.REST


@pytest.mark.parametrize(("server", "meant"), [
    (HostServer(power=RUNNING, generation=4, reboots=2), Wanted.RUN),
    (HostServer(power=RUNNING, generation=5, reboots=2), Wanted.RUN_ANEW),
    (HostServer(power=RUNNING, generation=5, reboots=3), Wanted.REBOOT),
    (HostServer(power=STOPPED, generation=5, reboots=3), Wanted.STOP),
    (HostServer(power=ABSENT, generation=5), Wanted.REMOVE),
])
def test_a_wish_is_read_against_what_was_carried_out(server, meant):
    assert wanted(server, 4, 2) is meant


def test_a_guest_that_left_is_not_started_again_until_somebody_wishes_it():
    server = HostServer(power=RUNNING, generation=4)
    assert next_step(server, Seen.LEFT, 4, 0) is Step.REST
    server.generation = 5
    assert next_step(server, Seen.LEFT, 4, 0) is Step.START


def test_a_newer_generation_of_what_is_so_already_is_only_noted():
    assert next_step(HostServer(power=RUNNING, generation=5), Seen.RUNNING, 4, 0) is Step.NOTE
    assert next_step(HostServer(power=STOPPED, generation=5), Seen.OFF, 4, 0) is Step.NOTE


def test_a_stopped_server_without_a_domain_is_reported_as_off():
    assert reported(HostServer(power=STOPPED), Seen.MISSING) == ObservedServer.SHUTOFF
    assert reported(HostServer(power=RUNNING), Seen.MISSING) == ObservedServer.MISSING
    assert all(reported(HostServer(power=RUNNING), seen) for seen in Seen)
