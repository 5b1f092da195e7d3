"""The journal over a real etcd: that it has every change and its author, whatever stops on the way, and nothing secret."""
import asyncio
import contextlib
import json
import os
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from control.audit import journal as journal_module
from control.audit import reading
from control.audit.documents import Documents, is_secret
from control.audit.journal import ORIGIN, Journal, state
from control.audit.required import keep_required
from control.kernel.acting import Author, author
from control.kernel.database import Database
from control.kernel.errors import Unavailable
from control.kernel.etcd_client import rpc_pb2
from control.kernel.etcd_store import EtcdStore
from control.kernel.store import Record
from control.kinds import KINDS
from protos.identity.v1.records_pb2 import TokenKey, UserRecord
from protos.identity.v1.users_pb2 import User
from protos.internal.v1.audit_pb2 import AuditOrigin
from tests.conftest import Etcd
from tests.kernel.conftest import THING, thing

pytestmark = pytest.mark.etcd


@pytest.fixture
async def etcd_store(own_etcd: Etcd) -> AsyncIterator[EtcdStore]:
    """A store without history: a journal begins with the first revision."""
    await own_etcd.ready()
    store = own_etcd.store()
    yield store
    await store.close()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "audit"


@pytest.fixture
async def database(etcd_store: EtcdStore) -> AsyncIterator[Database]:
    made = Database(etcd_store, [THING])
    task = asyncio.create_task(made.cache.run())
    await made.cache.ready.wait()
    yield made
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


@contextlib.asynccontextmanager
async def writing(store: EtcdStore, directory: Path, kinds: Any = (THING,)) -> AsyncIterator[Journal]:
    journal = Journal(store, directory, kinds)
    task = asyncio.create_task(journal.run())
    try:
        yield journal
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def changes(directory: Path) -> list[dict[str, Any]]:
    return [entry for entry in reading.entries(directory) if entry["type"] == "change"]


async def caught_up(directory: Path, done: Callable[[], bool], within: float = 15) -> None:
    async with asyncio.timeout(within):
        while not done():
            await asyncio.sleep(0.02)


async def put(database: Database, name: str, who: str = "", **used: int) -> None:
    token = author.set(Author(who, f"req-{name}", "project", "/test.Things/Put") if who else Author())
    try:
        await database.transact(lambda tx: tx.put(THING, thing(name, **used)))
    finally:
        author.reset(token)


async def test_each_change_is_written_with_its_author_and_what_was_before(
        database: Database, etcd_store: EtcdStore, directory: Path) -> None:
    async with writing(etcd_store, directory):
        await put(database, "a", "user:u1", cores=1)
        await put(database, "a", "agent:h1", cores=2)
        author.set(Author("user:u2", "req-gone"))
        await database.transact(lambda tx: tx.delete(THING, "a"))
        await caught_up(directory, lambda: len(changes(directory)) == 3)
    made, changed, gone = changes(directory)
    assert (made["actor"], made["request"], made["rpc"], made["project"]) == ("user:u1", "req-a", "/test.Things/Put", "project")
    assert made["before"] is None and made["after"] == {"project_id": "a", "used": {"cores": 1}}
    assert changed["actor"] == "agent:h1" and changed["before"] == made["after"] and changed["after"]["used"] == {"cores": 2}
    assert gone["actor"] == "user:u2" and gone["before"] == changed["after"] and gone["after"] is None
    assert [entry["key"] for entry in (made, changed, gone)] == ["/test/things/a"] * 3 and gone["id"] == "a"
    assert reading.verify(directory).holds
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in directory.glob("audit-*"))


async def test_changes_that_travel_together_keep_their_own_authors(
        database: Database, etcd_store: EtcdStore, directory: Path) -> None:
    async with writing(etcd_store, directory):
        await asyncio.gather(*(put(database, f"n{number}", f"user:{number}", cores=number + 1) for number in range(200)))
        await caught_up(directory, lambda: len(changes(directory)) == 200)
    rows = changes(directory)
    assert len({row["revision"] for row in rows}) < 200, "none of them travelled together"
    for row in rows:
        assert row["id"] == f"n{row['actor'].removeprefix('user:')}" and row["request"] == f"req-{row['id']}"
        assert row["after"]["used"]["cores"] == int(row["id"][1:]) + 1


async def test_a_commit_of_several_records_is_one_author_and_a_job_is_known_by_its_coroutine(
        database: Database, etcd_store: EtcdStore, directory: Path) -> None:
    async def keep_sweeping() -> None:
        await database.transact(lambda tx: [tx.put(THING, thing(name)) for name in ("x", "y", "z")])

    async with writing(etcd_store, directory):
        await asyncio.create_task(keep_sweeping())
        await caught_up(directory, lambda: len(changes(directory)) == 3)
    rows = changes(directory)
    assert {row["actor"].rpartition(".")[2] for row in rows} == {"keep_sweeping"} and len({row["revision"] for row in rows}) == 1
    assert [(row["index"], row["of"]) for row in rows] == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize("remembered", [0, 200, 2**20])
async def test_what_was_before_is_the_same_whether_it_is_remembered_or_asked_for(
        database: Database, etcd_store: EtcdStore, directory: Path, monkeypatch: pytest.MonkeyPatch, remembered: int) -> None:
    monkeypatch.setattr(journal_module, "RECENT_BYTES", remembered)
    async with writing(etcd_store, directory):
        for turn in range(4):
            for name in "abcdef":
                await put(database, name, f"user:{name}", **({"cores": turn} if turn != 2 else {}))
            await caught_up(directory, lambda turn=turn: len(changes(directory)) == 6 * (turn + 1))   # type: ignore[misc]
        await database.transact(lambda tx: tx.delete(THING, "b"))
        await put(database, "b", "user:b", cores=9)
        await caught_up(directory, lambda: len(changes(directory)) == 26)
    for name in "abcdef":
        rows = [row for row in changes(directory) if row["id"] == name]
        assert [row["before"] for row in rows] == [None, *(row["after"] for row in rows[:-1])]
        assert [row["after"]["used"] for row in rows[:4] if row["after"].get("used")] == [{"cores": n} for n in (0, 1, 3)]


async def test_it_goes_on_where_it_stopped_and_writes_nothing_twice(
        database: Database, etcd_store: EtcdStore, directory: Path) -> None:
    await put(database, "before", "user:1")
    async with writing(etcd_store, directory):
        await caught_up(directory, lambda: len(changes(directory)) == 1)
    for number in range(5):
        await put(database, "meanwhile", "user:2", cores=number + 1)
    async with writing(etcd_store, directory):
        await put(database, "after", "user:3")
        await caught_up(directory, lambda: len(changes(directory)) == 7)
        await asyncio.sleep(0.3)
    rows = changes(directory)
    assert [row["id"] for row in rows] == ["before", *["meanwhile"] * 5, "after"]
    assert [row["before"] and row["before"].get("used", {}).get("cores") for row in rows[1:6]] == [None, 1, 2, 3, 4]
    assert reading.verify(directory).holds


@pytest.mark.parametrize("cut", range(0, 900, 60))
async def test_a_crash_in_the_middle_of_a_write_costs_nothing(
        database: Database, etcd_store: EtcdStore, directory: Path, cut: int) -> None:
    async with writing(etcd_store, directory):
        await database.transact(lambda tx: [tx.put(THING, thing(name)) for name in ("x", "y", "z")])
        await caught_up(directory, lambda: len(changes(directory)) == 3)
    [path] = directory.glob("audit-*")
    os.truncate(path, max(path.stat().st_size - cut, 0))
    async with writing(etcd_store, directory):
        await put(database, "w", "user:1")
        await caught_up(directory, lambda: len(changes(directory)) == 4)
        await asyncio.sleep(0.1)
    assert [row["id"] for row in changes(directory)] == ["x", "y", "z", "w"]
    assert reading.verify(directory).holds


async def test_what_etcd_forgot_meanwhile_is_a_gap_with_the_differences(
        database: Database, etcd_store: EtcdStore, directory: Path) -> None:
    for name in ("stays", "changes", "goes"):
        await put(database, name, "user:1", cores=1)
    async with writing(etcd_store, directory):
        await caught_up(directory, lambda: len(changes(directory)) == 3)
    await put(database, "changes", "user:2", cores=2)
    await put(database, "new", "user:2", cores=3)
    await database.transact(lambda tx: tx.delete(THING, "goes"))
    _, now = await etcd_store.scan("/")
    await etcd_store.client.call(lambda member: member.kv.Compact, rpc_pb2.CompactionRequest(revision=now, physical=True))
    async with writing(etcd_store, directory):
        await caught_up(directory, lambda: len(changes(directory)) == 6)
        await put(database, "later", "user:3")
        await caught_up(directory, lambda: any(row["id"] == "later" for row in changes(directory)))
    found = {row["id"]: row["after"] for row in changes(directory)[3:-1]}
    assert found == {"goes": None, "changes": {"project_id": "changes", "used": {"cores": 2}},
                     "new": {"project_id": "new", "used": {"cores": 3}}}
    verdict = reading.verify(directory)
    assert verdict.holds and verdict.gaps == 1


async def test_a_change_by_none_of_the_clouds_parts_says_so_and_so_does_a_lease(
        database: Database, etcd_store: EtcdStore, directory: Path) -> None:
    async with writing(etcd_store, directory):
        await etcd_store.client.call(lambda member: member.kv.Put, rpc_pb2.PutRequest(
            key=b"/test/things/planted", value=thing("planted").SerializeToString()))
        lease = await etcd_store.grant(60)
        await etcd_store.commit(Record("/test/things/leased", thing("leased").SerializeToString(), lease=lease))
        await etcd_store.revoke(lease)
        await caught_up(directory, lambda: len(changes(directory)) == 3)
    planted, leased, ended = changes(directory)
    assert planted["actor"] == "outside" and leased["actor"].startswith("control")
    assert ended["actor"] == "lease" and ended["before"] == {"project_id": "leased"}


async def test_what_an_earlier_release_wrote_has_an_unknown_author(etcd_store: EtcdStore, directory: Path) -> None:
    for number, left in enumerate((b"\xff" * 20, b"")):          # marks said nothing but a random number
        await etcd_store.client.call(lambda member: member.kv.Txn, rpc_pb2.TxnRequest(success=[
            rpc_pb2.RequestOp(request_put=rpc_pb2.PutRequest(key=key, value=value)) for key, value in (
                (f"/test/things/{number}".encode(), thing(str(number)).SerializeToString()), (b"marks/old/0", left))]))
    async with writing(etcd_store, directory):
        await caught_up(directory, lambda: len(changes(directory)) == 2)
    assert [(row["actor"], row["id"]) for row in changes(directory)] == [("unknown", "0"), ("unknown", "1")]


async def test_the_journals_of_two_replicas_agree_and_show_what_one_hides(
        database: Database, own_etcd: Etcd, etcd_store: EtcdStore, directory: Path) -> None:
    one, two = directory / "one", directory / "two"
    other = own_etcd.store()
    async with writing(etcd_store, one):
        await put(database, "a", "user:1")
        await caught_up(one, lambda: len(changes(one)) == 1)
        async with writing(other, two):
            await asyncio.gather(*(put(database, f"n{number}", f"user:{number}") for number in range(50)))
            await put(database, "b", "user:1", cores=1)
            await caught_up(two, lambda: len(changes(two)) == 52)
        await caught_up(one, lambda: len(changes(one)) == 52)
    await other.close()
    comparison = reading.compare(one, two)
    assert comparison.agrees and comparison.compared == 52
    # Somebody with the means rewrites all of one journal from a line on: its chain is whole again.
    from control.audit.chain import FIRST, hash_of
    head, lines = FIRST, []
    [path] = two.glob("audit-*")
    anchor = state(two)["head"]
    for line in path.read_bytes().splitlines():
        entry = json.loads(line)
        del entry["hash"]
        if entry["type"] == "change" and entry["id"] == "b":
            entry["actor"] = "user:somebody-else"
        body = json.dumps(entry).encode()
        head = hash_of(head, body)
        lines.append(body[:-1] + b',"hash":"' + head.encode() + b'"}\n')
    path.write_bytes(b"".join(lines))
    assert reading.verify(two).holds, "a rewritten chain is whole"
    assert reading.verify(two, [anchor]).missing_anchors == [anchor]
    assert reading.compare(one, two).differences == [f"/test/things/b at revision {changes(one)[-1]['revision']}: actor"]


async def test_after_a_restore_the_journal_goes_on_in_a_new_era(
        database: Database, etcd_store: EtcdStore, directory: Path) -> None:
    async with writing(etcd_store, directory):
        await put(database, "a", "user:1")
        await caught_up(directory, lambda: len(changes(directory)) == 1)
    record = await etcd_store.get(ORIGIN)
    origin = AuditOrigin.FromString(record.value or b"")
    origin.era = "another"
    await etcd_store.commit(Record(ORIGIN, origin.SerializeToString(), record.revision))
    async with writing(etcd_store, directory):
        await put(database, "b", "user:2")
        await caught_up(directory, lambda: any(row["id"] == "b" for row in changes(directory)))
    assert [entry["era"] for entry in reading.entries(directory) if entry["type"] == "era"] == ["another"]
    assert reading.verify(directory).holds


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    if os.geteuid():
        pytest.skip("mounting a small file system needs root")
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], check=True)
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


async def test_a_full_disk_stops_the_journal_with_an_alarm_and_it_catches_up(
        database: Database, etcd_store: EtcdStore, small_disk: Path, caplog: pytest.LogCaptureFixture,
        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "PAUSE", 0.1)
    directory = small_disk / "audit"
    required = asyncio.create_task(keep_required(database, directory))
    async with writing(etcd_store, directory):
        await caught_up(directory, lambda: not state(directory)["fault"])
        await caught_up(directory, lambda: not database.refusing)
        await put(database, "first", "user:1")
        await caught_up(directory, lambda: len(changes(directory)) == 1)
        filler = small_disk / "filler"
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(b"\0" * 4096)
        required.cancel()
        for number in range(40):
            await put(database, f"n{number}", "user:2", **{f"resource{i}": i + 1 for i in range(20)})
        await caught_up(directory, lambda: "AUDIT JOURNAL STOPPED" in caplog.text)
        assert "No space left" in caplog.text
        filler.unlink()
        await caught_up(directory, lambda: len(changes(directory)) == 41)
    assert reading.verify(directory).holds


async def test_where_it_is_required_nothing_changes_without_it(
        database: Database, etcd_store: EtcdStore, directory: Path) -> None:
    required = asyncio.create_task(keep_required(database, directory))
    try:
        await caught_up(directory, lambda: bool(database.refusing))
        with pytest.raises(Unavailable, match="audit journal is not being written"):
            await put(database, "a", "user:1")
        async with writing(etcd_store, directory):
            await caught_up(directory, lambda: not database.refusing)
            await put(database, "a", "user:1")
    finally:
        required.cancel()


# Secrets

def test_what_opens_something_is_a_keyed_hash() -> None:
    record = UserRecord(user=User(id="u", name="n"), password_hash="$argon2id$x", former_password_hashes=["a", "b"])
    one, other = Documents(b"one").of(record), Documents(b"other").of(record)
    assert one["user"] == {"id": "u", "name": "n"}
    assert one["password_hash"].startswith("redacted:") and "argon" not in json.dumps(one)
    assert len(set(one["former_password_hashes"])) == 2
    assert one["password_hash"] != other["password_hash"], "without the key its hash cannot be guessed at"
    record.password_hash = "$argon2id$y"
    assert Documents(b"one").of(record)["password_hash"] != one["password_hash"], "a change shows"
    assert Documents(b"one").of(TokenKey(key=b"k"))["key"].startswith("redacted:")


#: Bytes and speaking names that are no secrets.
HARMLESS = {"compute.v1.KeyPairRecord.public_key", "internal.v1.PublicKey.data"}


def test_every_field_of_a_record_that_may_be_secret_is_marked() -> None:
    words = ("password", "secret", "private", "sealed", "passphrase", "token_value", "blob", "verifier", "user_data")
    unmarked = []
    for field in {field for kind in KINDS for field in fields(kind.message.DESCRIPTOR, set())}:
        suspicious = field.type == FieldDescriptor.TYPE_BYTES or (
            field.type == FieldDescriptor.TYPE_STRING and any(word in field.name for word in words))
        if suspicious and not is_secret(field) and field.full_name not in HARMLESS:
            unmarked.append(field.full_name)
    assert unmarked == []


def fields(message: Descriptor, seen: set[str]) -> Iterator[FieldDescriptor]:
    if message.full_name in seen or message.full_name.startswith("google."):
        return
    seen.add(message.full_name)
    for field in message.fields:
        yield field
        if field.message_type is not None:
            yield from fields(field.message_type, seen)


