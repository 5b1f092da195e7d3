"""The chain, whatever is done to it: any change of any line but a whole rewrite is found, and where."""
import itertools
import json
import os
import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from control.audit import reading
from control.audit.cadf import event
from control.audit.chain import FIRST, Chain, files


def entry(number: int) -> dict:
    return {"type": "change", "era": "e", "revision": number, "index": 1, "of": 1,
            "time": f"2026-01-01T00:00:{number % 60:02}.000Z",
            "actor": "user:u", "project": "p", "request": f"req-{number}", "rpc": "/x.Y/Z", "kind": "compute.v1.ServerRecord",
            "key": f"/compute/servers/{number}", "id": str(number), "before": None, "after": {"n": number, "text": '"hash":"ü'}}


def journal(directory: Path, count: int, max_file: int = 2000) -> list[Path]:
    chain = Chain(directory, max_file)
    for number in range(count):
        chain.append([entry(number)], "2026-01-01")
    chain.close()
    return files(directory)


def test_a_journal_of_many_files_is_whole_and_each_begins_with_the_last_ones_hash(tmp_path: Path) -> None:
    paths = journal(tmp_path, 40)
    assert len(paths) > 5
    verdict = reading.verify(tmp_path)
    assert verdict.holds and verdict.first == 0 and verdict.entries == 40 + len(paths)
    lines = [path.read_bytes().splitlines() for path in paths]
    for before, after in itertools.pairwise(lines):
        assert json.loads(after[0])["previous"] == json.loads(before[-1])["hash"]
    assert json.loads(lines[0][0])["previous"] == FIRST
    assert json.loads(lines[-1][-1])["hash"] == verdict.head == Chain(tmp_path).head


def test_another_day_begins_another_file(tmp_path: Path) -> None:
    chain = Chain(tmp_path)
    for day in ("2026-01-01", "2026-01-01", "2026-01-02"):
        chain.append([entry(1)], day)
    assert len(files(tmp_path)) == 2 and reading.verify(tmp_path).holds


def test_retention_leaves_a_chain_that_holds_from_its_first_file_on(tmp_path: Path) -> None:
    paths = journal(tmp_path, 40)
    for path in paths[:3]:
        os.utime(path, (1, 1))
    chain = Chain(tmp_path)
    assert chain.prune(before=1000) == paths[:3]
    verdict = reading.verify(tmp_path)
    assert verdict.holds and verdict.first == int(paths[3].stem.removeprefix("audit-")) > 0
    chain.append([entry(41)], "2026-01-01")
    assert reading.verify(tmp_path).holds


@pytest.mark.parametrize("damage", [b"garbage\n", b'{"half": \n', b"\n\n", b"\xff\xfe\n"])
def test_a_damaged_end_is_kept_to_be_seen_and_the_journal_goes_on_in_a_new_file(tmp_path: Path, damage: bytes) -> None:
    [path] = journal(tmp_path, 5, max_file=10**6)
    with path.open("ab") as file:
        file.write(damage)
    before = path.read_bytes()
    chain = Chain(tmp_path)
    assert chain.last is not None and chain.last["revision"] == 4
    chain.append([entry(5)], "2026-01-01")
    assert path.read_bytes() == before and len(files(tmp_path)) == 2
    verdict = reading.verify(tmp_path)
    assert not verdict.holds and all(problem.startswith(path.name) for problem in verdict.problems)
    chain.close()
    Chain(tmp_path).append([entry(6)], "2026-01-01")
    assert reading.verify(tmp_path).entries == 9


def test_a_journal_of_nothing_but_damage_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "audit-000000000000.jsonl"
    path.write_bytes(b"garbage\n")
    Chain(tmp_path).append([entry(1)], "2026-01-01")
    assert path.read_bytes() == b"garbage\n" and len(files(tmp_path)) == 2 and files(tmp_path)[0] == path


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32), what=st.sampled_from(["byte", "remove", "double", "swap", "file"]))
def test_whatever_is_changed_in_the_middle_is_found(tmp_path_factory: pytest.TempPathFactory, seed: int, what: str) -> None:
    some, directory = random.Random(seed), tmp_path_factory.mktemp("journal")
    paths = journal(directory, 20)
    path = some.choice(paths[:-1])
    lines = path.read_bytes().splitlines(keepends=True)
    place = some.randrange(len(lines))
    match what:
        case "byte":
            line = bytearray(lines[place])
            at = some.randrange(len(line) - 1)
            line[at] = (line[at] + some.randrange(1, 256)) % 256
            lines[place] = bytes(line)
        case "remove":
            del lines[place]
        case "double":
            lines.insert(place, lines[place])
        case "swap":
            other = (place + 1) % len(lines)
            lines[place], lines[other] = lines[other], lines[place]
        case "file":
            if path == paths[0]:
                path = paths[1]         # the first ones may go: retention removes them
            path.unlink()
    if what != "file":
        path.write_bytes(b"".join(lines))
    verdict = reading.verify(directory)
    assert not verdict.holds
    if what not in ("file", "remove"):
        assert any(path.name in problem for problem in verdict.problems)


def test_a_journal_that_was_cut_off_at_its_end_is_found_by_an_anchor_alone(tmp_path: Path) -> None:
    path = journal(tmp_path, 10, max_file=10**6)[0]
    anchor = reading.verify(tmp_path).head
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-3]))
    assert reading.verify(tmp_path).holds
    assert reading.verify(tmp_path, [anchor]).missing_anchors == [anchor]


def test_an_entry_is_a_cadf_event(tmp_path: Path) -> None:
    journal(tmp_path, 1)
    made = event(list(reading.entries(tmp_path))[1], "brume")
    assert made["typeURI"].endswith("/event") and made["action"] == "create" and made["outcome"] == "success"
    assert made["initiator"] == {"id": "u", "typeURI": "service/security/account/user", "project_id": "p", "request_id": "req-0"}
    assert made["target"] == {"id": "0", "typeURI": "service/compute/compute.v1.ServerRecord"}
    assert made == event(list(reading.entries(tmp_path))[1], "brume"), "the id of an event stays the same"
