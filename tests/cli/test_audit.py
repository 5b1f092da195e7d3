"""`brume audit` on a journal's files: what it shows, and its exit status."""
import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from control.audit.chain import Chain, files
from control.cli.main import main


def entry(number: int, actor: str, kind: str = "compute.v1.ServerRecord", **more: object) -> dict:
    return {"type": "change", "era": "e", "revision": number, "index": 1, "of": 1, "time": f"2026-01-0{number}T00:00:00.000Z",
            "actor": actor, "project": "p", "request": f"req-{number}", "rpc": "/compute.v1.Servers/CreateServer", "kind": kind,
            "key": f"/compute/servers/s{number}", "id": f"s{number}", "before": None, "after": {"name": "n"}, **more}


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    chain = Chain(tmp_path / "audit")
    chain.append([entry(1, "user:ann"), entry(2, "agent:h1", before={"name": "m"}), entry(3, "user:bob", after=None,
                  before={"name": "n"}), entry(4, "user:ann", kind="identity.v1.UserRecord")], "2026-01-01")
    chain.close()
    return tmp_path


def brume(journal: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["--state-dir", str(journal), "audit", *arguments], catch_exceptions=False)


@pytest.mark.parametrize(("filters", "shown"), [
    ((), [1, 2, 3, 4]), (("--actor", "ann"), [1, 4]), (("--actor", "agent:h1"), [2]), (("--kind", "UserRecord"), [4]),
    (("--id", "s3"), [3]), (("--request", "req-2"), [2]), (("--since", "2026-01-03"), [3, 4]), (("-n", "2"), [3, 4])])
def test_changes_are_found_by_what_is_known_of_them(journal: Path, filters: tuple[str, ...], shown: list[int]) -> None:
    lines = brume(journal, "show", "--json", *filters).stdout.splitlines()
    assert [json.loads(line)["revision"] for line in lines] == shown


def test_a_table_says_what_became_of_each(journal: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    lines = brume(journal, "show").stdout.splitlines()
    assert [line.split()[-1] for line in lines[1:]] == ["created", "name", "deleted", "created"]


def test_a_whole_journal_is_told_from_one_that_was_changed_by_the_exit_status(journal: Path) -> None:
    good = brume(journal, "verify", "--json")
    assert good.exit_code == 0 and json.loads(good.stdout)["entries"] == 5
    assert brume(journal, "verify", "--anchor", json.loads(good.stdout)["head"]).exit_code == 0
    assert "rewritten, or cut off" in brume(journal, "verify", "--anchor", "0" * 64).stdout
    [path] = files(journal / "audit")
    path.write_bytes(path.read_bytes().replace(b"user:bob", b"user:eve"))
    bad = brume(journal, "verify")
    assert bad.exit_code == 1 and "entry 3 is not what it was" in bad.stdout and "DOES NOT HOLD" in bad.stdout


def test_events_for_a_collector_are_one_a_line(journal: Path) -> None:
    events = [json.loads(line) for line in brume(journal, "export", "--cadf").stdout.splitlines()]
    assert [event["action"] for event in events] == ["create", "update", "delete", "create"]
    assert events[1]["initiator"]["typeURI"] == "service/compute/node"


def test_without_a_journal_it_says_so(tmp_path: Path) -> None:
    said = brume(tmp_path, "verify")
    assert said.exit_code == 1 and "no audit journal" in said.output
