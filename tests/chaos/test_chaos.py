"""A minute of chaos on a real cloud of three replicas: nothing is lost, doubled, orphaned or stuck."""
import os
import shutil

import pytest

from tests.chaos import faults, run
from tests.chaos.setting import NAME
from tests.e2e.cloud import leftovers

#: Always the same faults, so that a failure can be had again: python -m tests.chaos.run --seed 3 --minutes 1.
SEED, SECONDS = 3, 60.0


def test_a_plan_is_the_same_each_time_and_is_over_before_the_end():
    processes = ["etcd-1", "control-1", "fleet"]
    plan = faults.plan(7, 300, processes)
    assert plan == faults.plan(7, 300, processes) != faults.plan(8, 300, processes)
    assert len({step.fault for step in plan}) > 5 and all(step.at + step.lasts <= 270 for step in plan)


def test_a_minute_under_fire_ends_with_nothing_lost_doubled_orphaned_or_stuck():
    if os.geteuid() != 0 or not all(map(shutil.which, ("gcc", "nft", "haproxy", "fsfreeze"))):
        pytest.skip("it needs root, gcc, nft, haproxy and fsfreeze")
    report = run.run(SEED, SECONDS, clients=6, hosts=12)
    assert report.wrong == []
    assert report.operations["create ok"] > 20 and sum(report.faults.values()) >= 8
    assert leftovers(NAME) == []
