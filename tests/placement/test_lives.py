"""A cloud that packs learns how long servers live, and puts those together that will leave together."""
from control.kernel.fleet import Placed, Wanted
from control.placement.live import LiveFleet
from control.placement.lives import Lives
from control.placement.neighbours import NoServers
from control.placement.placer import FleetPlacer
from scheduler.types import Request, Shape, amounts
from tests.placement.test_placer import add_host, database  # noqa: F401 - a fixture

DAY = 86_400


class Servers(NoServers):
    """Servers called FLAVOR-NUMBER, made when they were first asked for."""

    def __init__(self):
        self.now = 1_000_000
        self.born: dict[str, int] = {}
        self.hints: dict[str, int] = {}

    def life_of(self, server_id: str) -> tuple[str, str, int, int]:
        return server_id.split("-")[0], "p", self.born.setdefault(server_id, self.now), self.hints.get(server_id, 0)


def wanted(server_id: str, ram: int = 256, only: str = "", policy: str = "pack") -> Wanted:
    shape = Shape(amounts({"VCPU": 1, "MEMORY_MB": ram}), policy=policy)
    return Wanted(Request(server_id, shape, only=frozenset({only}) if only else None), None, "p", "u")


async def put(database, placer, server_id: str, **more) -> str:  # noqa: F811
    [answer] = await database.transact(lambda tx: placer.place(tx, [wanted(server_id, **more)]))
    assert isinstance(answer, Placed)
    return answer.host


async def learn(database, placer, servers) -> None:  # noqa: F811
    """Thirty servers of each flavor come and go: short ones after minutes, long ones after five days."""
    for flavor, life in (("short", 400), ("long", 5 * DAY)):
        for number in range(30):
            await put(database, placer, f"{flavor}-{number}")
            servers.now += life
            await database.transact(lambda tx, i=f"{flavor}-{number}": placer.release(tx, i))
            placer.dry_run([])


async def test_a_long_lived_server_goes_to_long_lived_ones_though_another_host_is_fuller(database):  # noqa: F811
    servers = Servers()
    live = LiveFleet(database, servers, Lives(servers, lambda: servers.now))
    placer = FleetPlacer(live)
    for name in ("a", "b"):
        await add_host(database, name)
    await learn(database, placer, servers)
    await put(database, placer, "long-old", only="a")
    await put(database, placer, "short-many", only="b", ram=2048)
    assert await put(database, placer, "long-new") == "a"
    assert await put(database, placer, "short-new") == "b", "which fits anywhere, so the fuller host"


async def test_without_lives_and_where_servers_are_spread_size_alone_counts(database):  # noqa: F811
    servers = Servers()
    live = LiveFleet(database, servers, Lives(servers, lambda: servers.now))
    for name in ("a", "b"):
        await add_host(database, name)
    placer, plain = FleetPlacer(live), FleetPlacer(LiveFleet(database, servers))
    servers.hints["long-old"] = servers.now + 9 * DAY
    await put(database, placer, "long-old", only="a")
    await put(database, placer, "short-many", only="b", ram=2048)
    servers.hints["long-new"] = servers.now + 8 * DAY
    assert [answer.host for answer in placer.dry_run([wanted("long-new")])] == ["a"]
    assert [answer.host for answer in plain.dry_run([wanted("long-new")])] == ["b"]
    assert [answer.host for answer in placer.dry_run([wanted("long-new", policy="spread")])] == ["a"]


def test_who_outlives_what_was_expected_is_expected_to_end_later():
    servers = Servers()
    lives = Lives(servers, lambda: servers.now)
    until = lives.began("short-1")
    assert until == servers.now + 3600, "as nothing is known yet"
    assert list(lives.outlived()) == []
    servers.now = until
    [(server_id, later)] = lives.outlived()
    assert server_id == "short-1" and later > servers.now
    lives.ended("short-1")
    servers.now = later
    assert list(lives.outlived()) == []


def test_a_hint_that_has_passed_is_no_longer_believed():
    servers = Servers()
    servers.hints["short-1"] = servers.now - 10
    assert Lives(servers, lambda: servers.now).began("short-1") > servers.now
