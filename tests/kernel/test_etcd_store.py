"""The store over etcd when etcd crashes, when replies are lost, and what travels in one transaction."""
import asyncio
import contextlib
import os
import random
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from control.kernel import etcd_pages
from control.kernel.errors import Stale, Unavailable
from control.kernel.etcd_client import Client, range_end, rpc_pb2
from control.kernel.etcd_commit import MARKS, _Commit
from control.kernel.etcd_maintenance import Maintenance, rooms
from control.kernel.etcd_store import EtcdStore
from control.kernel.store import MAX_OPERATIONS, Guard, Record
from tests.conformance.check_store import take
from tests.conftest import Etcd, free_port
from tests.kernel.conftest import etcd_leader

pytestmark = pytest.mark.etcd


class Proxy:
    """A TCP relay to etcd that can keep etcd's replies to itself, cut connections, or refuse new ones."""

    def __init__(self, port: int):
        self._to = port
        self.port = free_port()
        self.mute = False
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None

    @property
    def endpoint(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)

    async def stop(self) -> None:
        if self._server:
            self._server.close()
            self._server = None
        self.cut()

    def cut(self) -> None:
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            etcd_reader, etcd_writer = await asyncio.open_connection("127.0.0.1", self._to)
            self._writers |= {writer, etcd_writer}
            await asyncio.gather(self._relay(reader, etcd_writer, replies=False), self._relay(etcd_reader, writer, replies=True))

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, replies: bool) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                if not (replies and self.mute):
                    writer.write(data)
                    await writer.drain()
        writer.transport.abort()


@pytest.fixture
async def proxy(etcd: Etcd) -> AsyncIterator[Proxy]:
    await etcd.ready()
    relay = Proxy(etcd.config.client_port)
    await relay.start()
    yield relay
    await relay.stop()


@pytest.fixture
async def far_store(etcd: Etcd, etcd_store: EtcdStore, proxy: Proxy) -> AsyncIterator[EtcdStore]:
    """A store that reaches etcd through the proxy only."""
    store = etcd.store(proxy.endpoint)
    await store.get("/connected")
    yield store
    await store.close()


async def revision_of(store: EtcdStore, key: str) -> int:
    """The revision of a key once it is there."""
    async with asyncio.timeout(10):
        while not (record := await store.get(key)).revision:
            await asyncio.sleep(0.01)
    return record.revision


# Lost replies

async def test_a_commit_whose_reply_was_lost_succeeds_at_the_revision_that_it_had(etcd_store, far_store, proxy):
    proxy.mute = True
    commit = asyncio.create_task(far_store.commit(Record("/a/x", b"1")))
    revision = await revision_of(etcd_store, "/a/x")
    proxy.mute = False
    proxy.cut()
    assert await commit == revision
    assert (await etcd_store.get("/a/x")).revision == revision


async def test_a_commit_whose_reply_was_lost_succeeds_though_the_key_was_written_again_since(etcd_store, far_store, proxy):
    proxy.mute = True
    commit = asyncio.create_task(far_store.commit(Record("/a/x", b"1"), Record("/a/y", b"1")))
    revision = await revision_of(etcd_store, "/a/x")
    await etcd_store.commit(Record("/a/x", b"2", revision), Record("/a/y", None, revision))
    proxy.mute = False
    proxy.cut()
    assert await commit == revision
    assert (await etcd_store.get("/a/x")).value == b"2"


async def test_a_commit_that_was_not_applied_before_the_cut_is_stale_where_another_wrote_the_same_value(etcd_store, far_store,
                                                                                                        proxy):
    await proxy.stop()
    commit = asyncio.create_task(far_store.commit(Record("/a/x", b"same")))
    await asyncio.sleep(0.1)
    await etcd_store.commit(Record("/a/x", b"same"))
    await proxy.start()
    with pytest.raises(Stale):
        await commit


async def test_a_commit_waits_out_a_short_absence_of_etcd(etcd_store, far_store, proxy):
    await proxy.stop()
    commit = asyncio.create_task(far_store.commit(Record("/a/x", b"1")))
    await asyncio.sleep(0.3)
    await proxy.start()
    assert await commit == (await etcd_store.get("/a/x")).revision


async def test_many_commits_whose_replies_were_lost_each_happen_once(etcd_store, far_store, proxy):
    proxy.mute = True
    commits = [asyncio.create_task(far_store.commit(Record(f"/a/{i:03}", b"1"))) for i in range(300)]
    await revision_of(etcd_store, "/a/000")
    proxy.mute = False
    proxy.cut()
    revisions = await asyncio.gather(*commits)
    records, _ = await etcd_store.scan("/a/")
    assert [record.revision for record in records] == revisions
    assert all(record.created == record.revision for record in records)


async def test_an_etcd_that_is_gone_is_unavailable_with_its_address_and_what_to_do(etcd, etcd_store):
    port = free_port()
    store = etcd.store(f"https://127.0.0.1:{port}", patience=0.2)
    for call in (store.get("/a"), store.scan("/a"), store.commit(Record("/a", b"")), store.grant(5),
                 asyncio.to_thread(store.renewer(), 5)):
        with pytest.raises(Unavailable, match=rf"127\.0\.0\.1:{port}.*[Cc]heck"):
            await call
    await store.close()


async def test_a_client_without_a_certificate_is_refused(etcd, etcd_store):
    client = Client([etcd.endpoint.replace("https", "http")], patience=0)
    with pytest.raises(Unavailable):
        await client.call(lambda member: member.kv.Range, rpc_pb2.RangeRequest(key=b"/"), deadline=1)
    await client.close()


async def test_a_second_endpoint_serves_when_the_first_is_gone(etcd, etcd_store, proxy):
    store = EtcdStore([f"https://127.0.0.1:{free_port()}", proxy.endpoint, etcd.endpoint], etcd.credentials)
    revision = await store.commit(Record("/a/x", b"1"))
    watch = asyncio.create_task(take(store, "/a/", revision, 2))
    await asyncio.sleep(0.2)
    later = await store.commit(Record("/a/y", b"1"))
    await proxy.stop()
    last = await store.commit(Record("/a/z", b"1"))
    assert [batch.revision for batch in await watch] == [later, last]
    await store.close()


# Crashes

async def test_a_watch_resumes_over_a_crash_of_etcd_without_gap_or_repeat(own_etcd: Etcd):
    await own_etcd.ready()
    store = own_etcd.store(patience=15)
    start = await store.commit(Record("/w/start", b""))
    watch = asyncio.create_task(take(store, "/w/", start, 60, seconds=60))
    revisions = []
    for round in range(3):
        for i in range(10):
            revisions.append(await store.commit(Record(f"/w/{round}/{i}", b"")))
        own_etcd.kill()
        own_etcd.start()
        for i in range(10, 20):
            revisions.append(await store.commit(Record(f"/w/{round}/{i}", b"")))
    assert [record.revision for batch in await watch for record in batch.records] == revisions
    await store.close()


async def test_commits_during_crashes_of_etcd_happen_once_or_are_unavailable(own_etcd: Etcd):
    await own_etcd.ready()
    store = own_etcd.store(patience=1)
    outcomes: dict[str, int | None] = {}

    async def write(key: str) -> None:
        try:
            outcomes[key] = await store.commit(Record(key, b""))
        except Unavailable:
            outcomes[key] = None

    async def writer(number: int) -> None:
        for i in range(40):
            await write(f"/a/{number}/{i}")

    writers = [asyncio.create_task(writer(number)) for number in range(8)]
    for _ in range(2):
        await asyncio.sleep(0.1)
        own_etcd.kill()
        await asyncio.sleep(0.3)
        own_etcd.start()
        await own_etcd.ready()
    await asyncio.gather(*writers)
    records = {record.key: record for record in (await store.scan("/a/"))[0]}
    for key, revision in outcomes.items():
        if revision is not None:
            assert records[key].revision == records[key].created == revision
    assert len(outcomes) == 320
    await store.close()


async def test_a_cluster_that_loses_its_leader_loses_no_commit_and_no_change(cluster: list[Etcd]):
    endpoints = [member.endpoint for member in cluster]
    for member in cluster:
        await member.ready()
    store = EtcdStore(endpoints, cluster[0].credentials, patience=15)
    start = await store.commit(Record("/a/start", b""))
    watch = asyncio.create_task(take(store, "/a/", start, 400, seconds=60))

    async def writer(number: int) -> list[int]:
        return [await store.commit(Record(f"/a/{number}/{i}", b"")) for i in range(50)]

    writers = [asyncio.create_task(writer(number)) for number in range(8)]
    await revision_of(store, "/a/0/5")
    (await etcd_leader(store, cluster)).kill()
    committed = sorted(revision for revisions in await asyncio.gather(*writers) for revision in revisions)
    records, _ = await store.scan("/a/")
    assert sorted(record.revision for record in records)[1:] == committed
    assert all(record.created == record.revision for record in records)
    assert [record.revision for batch in await watch for record in batch.records] == committed
    await store.close()


# Groups

async def test_concurrent_commits_of_different_keys_travel_together(etcd_store):
    revisions = await asyncio.gather(*(etcd_store.commit(Record(f"/a/{i:03}", b"")) for i in range(MAX_OPERATIONS)))
    assert len(set(revisions)) == 1


async def test_a_group_of_one_loser_is_split_in_two_transactions(etcd_store):
    before = await etcd_store.commit(Record("/a/050", b"taken"))
    results = await asyncio.gather(*(etcd_store.commit(Record(f"/a/{i:03}", b"")) for i in range(100)), return_exceptions=True)
    assert isinstance(results.pop(50), Stale)
    assert set(results) == {before + 1}


def groups_of(store: EtcdStore, commits: list[tuple[list[Record], list[Guard]]]) -> list[list[int]]:
    """The groups that commits would travel in, by their numbers."""
    committer = store._committer
    waiting = [_Commit(writes, guards) for writes, guards in commits]
    committer._waiting.extend(waiting)
    groups = []
    while group := committer._take():
        groups.append([waiting.index(commit) for commit in group])
    for commit in waiting:
        commit.answer.cancel()
    return groups


@pytest.mark.parametrize(("one", "other"), [
    (([Record("/a", b"")], []), ([Record("/a", b"")], [])),
    (([Record("/a", b"")], []), ([Record("/b", b"")], [Guard.exists("/a")])),
    (([Record("/b", b"")], [Guard.unchanged("/a", 7)]), ([Record("/a", b"")], [])),
    (([Record("/a/1", b"")], []), ([Record("/b", b"")], [Guard.empty("/a/")])),
    (([Record("/b", b"")], [Guard.empty("/a/")]), ([Record("/a/1", b"")], [])),
    (([Record("/a", b"")], []), ([Record("/b", b"", lease=5)], [])),
    (([Record("/a", b"", lease=5)], []), ([Record("/b", b"")], [])),
    (([Record("/a", b"x" * 1_000_000)], []), ([Record("/b", b"x" * 1_000_000)], [])),
])
async def test_commits_that_touch_each_other_travel_apart(etcd_store, one, other):
    assert groups_of(etcd_store, [one, other]) == [[0], [1]]


async def test_commits_that_share_what_they_read_travel_together(etcd_store):
    fence = Guard.created("/election/x", 5)
    assert groups_of(etcd_store, [([Record("/a", b"")], [fence]), ([Record("/b", b"")], [fence])]) == [[0, 1]]


async def test_what_does_not_fit_waits_while_what_comes_after_it_goes(etcd_store):
    commits = [([Record("/a", b"")], []), ([Record("/a", b"")], []), ([Record("/b", b"")], []), ([Record("/b", b"")], [])]
    assert groups_of(etcd_store, commits) == [[0, 2], [1, 3]]


async def test_a_group_holds_no_more_than_etcd_takes(etcd_store):
    commits = [([Record(f"/a/{i}", b"")], [Guard.exists(f"/b/{i}")]) for i in range(200)]
    full = MAX_OPERATIONS // 2
    full = MAX_OPERATIONS // 2
    assert [len(group) for group in groups_of(etcd_store, commits)] == [full, full, full, 200 - 3 * full]


async def test_a_caller_who_goes_away_takes_its_waiting_commit_along(etcd_store):
    first = asyncio.create_task(etcd_store.commit(Record("/a/x", b"1")))
    second = asyncio.create_task(etcd_store.commit(Record("/a/y", b"1")))
    await asyncio.sleep(0)
    second.cancel()
    await first
    assert (await etcd_store.get("/a/y")).value is None


# Streams, ranges, upkeep

async def test_a_quiet_watch_hears_of_revisions_made_elsewhere(etcd_store):
    start = await etcd_store.commit(Record("/w/a", b""))
    async with asyncio.timeout(20), contextlib.aclosing(etcd_store.watch("/w/", start)) as watch:
        elsewhere = await etcd_store.commit(Record("/other", b""))
        async for batch in watch:
            assert not batch.records
            if batch.revision >= elsewhere:
                break


async def test_a_catching_up_watch_gets_large_revisions_whole(etcd_store):
    start = await etcd_store.commit(Record("/w/a", b""))
    revisions = [await etcd_store.commit(*(Record(f"/w/{i}/{j}", b"x" * 14_000) for j in range(100))) for i in range(6)]
    batches = await take(etcd_store, "/w/", start, 600)
    counts: dict[int, list[int]] = {}
    for number, batch in enumerate(batches):
        for record in batch.records:
            counts.setdefault(record.revision, []).append(number)
    assert sorted(counts) == revisions
    assert all(len(numbers) == 100 and len(set(numbers)) == 1 for numbers in counts.values())


@pytest.mark.parametrize(("prefix", "end"), [(b"/a/", b"/a0"), (b"", b"\0"), (b"a\xff", b"b"), (b"\xff", b"\0")])
def test_the_end_of_a_prefix_is_the_first_key_after_it(prefix, end):
    assert range_end(prefix) == end


async def test_maintenance_forgets_history_beyond_what_it_keeps(etcd_store):
    first = await etcd_store.commit(Record("/w/a", b""))
    for i in range(50):
        await etcd_store.commit(Record(f"/w/{i}", b""))
    await Maintenance(etcd_store, keep_revisions=10).step()
    [batch] = await take(etcd_store, "/w/", first, 1)
    assert batch.compacted
    assert (await take(etcd_store, "/w/", batch.revision, 5))[0].records


async def test_maintenance_keeps_what_is_young(etcd_store):
    first = await etcd_store.commit(Record("/w/a", b""))
    await etcd_store.commit(Record("/w/b", b""))
    maintenance = Maintenance(etcd_store)
    await maintenance.step()
    await maintenance.step()
    assert (await take(etcd_store, "/w/", first, 1))[0].records


async def test_maintenance_sweeps_marks_of_clients_that_are_gone(etcd, etcd_store):
    gone = etcd.store()
    await gone.commit(Record("/a/x", b""))
    await gone.close()
    await etcd_store.commit(Record("/a/y", b""))
    maintenance = Maintenance(etcd_store)
    await maintenance.step()
    before = {record.key for record in (await etcd_store.scan(MARKS))[0]}
    await etcd_store.commit(Record("/a/z", b""))
    await maintenance.step()
    after = {record.key for record in (await etcd_store.scan(MARKS))[0]}
    assert len(before) == 2
    assert len(after & before) <= 1
    await etcd_store.commit(Record("/a/swept", b""))


@pytest.fixture
async def small_etcd(own_etcd: Etcd) -> AsyncIterator[EtcdStore]:
    """An etcd of 16 MiB."""
    own_etcd.kill()
    object.__setattr__(own_etcd.config, "quota_bytes", 16 << 20)
    own_etcd.start()
    await own_etcd.ready()
    store = own_etcd.store(patience=2)
    yield store
    await store.close()


async def fill(store: EtcdStore, key: str = "/a/x") -> int:
    """Write one key until etcd is full; its last revision."""
    revision = (await store.get(key)).revision
    with pytest.raises(Unavailable, match="no space for changes") as full:
        for _ in range(40):
            revision = await store.commit(Record(key, b"x" * 1_000_000, revision))
    assert full.value.reason == "store.full" and full.value.http == 503
    return revision


async def test_a_full_etcd_is_read_and_watched_and_takes_no_lease(small_etcd: EtcdStore):
    before = await small_etcd.commit(Record("/a/before", b"1"))
    lease = await small_etcd.grant(30)
    revision = await fill(small_etcd)
    assert (await small_etcd.get("/a/before")).revision == before
    assert len((await small_etcd.scan("/a/"))[0]) == 2
    assert (await take(small_etcd, "/a/", before, 1))[0].records[-1].key == "/a/x"
    assert await asyncio.to_thread(small_etcd.renewer(), lease), "who leads goes on to lead"
    with pytest.raises(Unavailable, match="no space"):
        await small_etcd.grant(30)
    with pytest.raises(Unavailable, match="no space"):
        await small_etcd.commit(Record("/a/x", None, revision))
    [room] = await rooms(small_etcd.client, 16 << 20)
    assert room.full and room.share > 0.9


async def test_maintenance_frees_an_etcd_that_ran_out_of_space(small_etcd: EtcdStore):
    await fill(small_etcd)
    await Maintenance(small_etcd).step()
    await small_etcd.commit(Record("/a/y", b"1"))
    [room] = await rooms(small_etcd.client, 16 << 20)
    assert not room.full and room.share < 0.3


async def test_a_replica_that_leads_nothing_frees_a_full_etcd_too(small_etcd: EtcdStore, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("control.kernel.etcd_maintenance.GUARD_EVERY", 0.2)
    guard = asyncio.create_task(Maintenance(small_etcd).guard())
    await fill(small_etcd)
    async with asyncio.timeout(15):
        while True:
            with contextlib.suppress(Unavailable):
                await small_etcd.commit(Record("/a/y", b"1"))
                break
    assert await small_etcd.grant(30)
    guard.cancel()


async def test_history_is_given_up_before_writes_are_and_operators_are_told(small_etcd: EtcdStore,
                                                                            caplog: pytest.LogCaptureFixture):
    maintenance = Maintenance(small_etcd, quota=10 << 20)      # so small a database grows in leaps: some are left to it
    revision = 0
    for _ in range(100):                # several times what it may hold
        revision = await small_etcd.commit(Record("/a/x", b"x" * 400_000, revision))
        await asyncio.sleep(0.15)       # etcd counts in batches
        await maintenance.step()
    told = [record.getMessage() for record in caplog.records if "of its quota" in record.getMessage()]
    assert told == [], "history makes room by itself"
    number = 0
    while not told and number < 90:     # the state itself, now
        number += 1
        await small_etcd.commit(Record(f"/b/{number}", b"x" * 200_000))
        await asyncio.sleep(0.15)
        await maintenance.step()
        told = [record.getMessage() for record in caplog.records if "of its quota" in record.getMessage()]
    assert len(told) == 1 and "raise etcd_quota_mib" in told[0]


async def test_a_full_disk_stops_etcd_and_it_goes_on_when_there_is_room(tmp_path: Path):
    if os.geteuid():
        pytest.skip("mounting a small file system needs root")
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=160m", "tmpfs", str(place)], check=True)
    etcd = Etcd(place)
    try:
        etcd.start()
        await etcd.ready()
        store = etcd.store(patience=1)
        kept: dict[str, int] = {"/a/first": await store.commit(Record("/a/first", b"1"))}
        filler = place / "filler"
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(b"\0" * 65536)
        unknown = ""
        for number in range(200):
            try:
                kept[f"/a/{number}"] = await store.commit(Record(f"/a/{number}", b"x" * 1_000_000))
            except Unavailable as error:
                assert error.http == 503
                unknown = f"/a/{number}"
                break
        assert unknown, "the disk is full and etcd takes writes for ever"
        filler.unlink()
        etcd.kill()             # as the supervisor does with what has ended or hangs
        etcd.start()
        await etcd.ready()
        records = {record.key: record.revision for record in (await store.scan("/a/"))[0]}
        records.pop(unknown, None)
        assert records == kept, "what was acknowledged is there, and nothing else"
        await store.commit(Record("/a/after", b"1"))
        await store.close()
    finally:
        etcd.kill()
        subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.parametrize("page", [4, 9, 40])
async def test_whatever_keys_there_are_a_scan_has_each_once_and_in_order(etcd_store: EtcdStore, monkeypatch, page: int):
    monkeypatch.setattr(etcd_pages, "PAGE", page)
    draw = random.Random(page)
    keys = {f"/{draw.choice(['a', 'ab', 'a/b', 'z'])}/{draw.getrandbits(24):06x}" for _ in range(150)}
    keys |= {f"/dense/{number:04}" for number in range(90)} | {"/", "/a", "/a/", "/zz\u00ff", "0", "/~"}
    for key in keys:
        await etcd_store.commit(Record(key, b""))
    for prefix in ("", "/", "/a", "/a/", "/a/b/", "/dense/00", "/z", "/none/", "/~", "/zz\u00ff"):
        records, _ = await etcd_store.scan(prefix)
        expected = sorted((key for key in keys if key.startswith(prefix)), key=str.encode)
        assert [record.key for record in records if not record.key.startswith("marks/")] == expected


async def test_the_walks_of_a_scan_grow_with_the_keys_and_no_faster(etcd_store: EtcdStore, monkeypatch):
    monkeypatch.setattr(etcd_pages, "PAGE", 10)
    for start in range(0, 2000, 100):
        await etcd_store.commit(*(Record(f"/{'one' if number % 2 else 'two'}/{number * 7919 % 65536:04x}", b"")
                                  for number in range(start, start + 100)))
    walked, asked = 0, 0
    async for response in etcd_pages.pages(etcd_store.client, "/"):
        walked, asked = walked + response.count, asked + 1
    assert asked < 3 * 200 and walked < 20 * 2000, (asked, walked)          # to the end each time: 200,000
