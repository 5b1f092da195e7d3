"""The image cache: what is in it is whole, whatever happens on the way."""
import asyncio
import hashlib
import os

import pytest

from agents.hypervisor.driver import Fault
from agents.image.cache import ImageCache
from protos.internal.v1.hosts_pb2 import BootImage

DATA = {name: name.encode() * 1000 for name in ("one", "two", "three")}


def image(name):
    return BootImage(id=name, sha512=hashlib.sha512(DATA[name]).hexdigest(), size=len(DATA[name]))


class Source:
    """Images as the control plane sends them; may cut off or garble."""

    def __init__(self):
        self.fetched = []
        self.cut = 0
        self.garbled = 0
        self.go_on = asyncio.Event()
        self.go_on.set()

    async def fetch(self, sha512):
        self.fetched.append(sha512)
        data = next(data for data in DATA.values() if hashlib.sha512(data).hexdigest() == sha512)
        yield data[:100]
        await self.go_on.wait()
        if self.cut:
            self.cut -= 1
            raise Fault("cut off")
        if self.garbled:
            self.garbled -= 1
            data = data[:100] + b"x" + data[101:]
        yield data[100:]


@pytest.fixture
def source():
    return Source()


@pytest.fixture
def cache(tmp_path, source):
    return ImageCache(tmp_path / "images", source.fetch, limit=4000)


def kept(tmp_path):
    return {name for name in os.listdir(tmp_path / "images")}


async def test_an_image_is_fetched_once_and_shared(tmp_path, cache, source):
    await cache.place(image("one"), tmp_path / "a")
    await cache.place(image("one"), tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == DATA["one"]
    assert (tmp_path / "a").stat().st_ino == (tmp_path / "b").stat().st_ino
    assert len(source.fetched) == 1


async def test_those_who_ask_at_once_share_a_fetch_that_goes_on_when_one_of_them_leaves(tmp_path, cache, source):
    source.go_on.clear()
    first = asyncio.create_task(cache.place(image("one"), tmp_path / "a"))
    second = asyncio.create_task(cache.place(image("one"), tmp_path / "b"))
    while not source.fetched:
        await asyncio.sleep(0)
    first.cancel()
    await asyncio.sleep(0)
    source.go_on.set()
    await second
    assert (tmp_path / "b").read_bytes() == DATA["one"] and len(source.fetched) == 1


async def test_a_cut_fetch_leaves_nothing_and_the_next_begins_again(tmp_path, cache, source):
    source.cut = 1
    with pytest.raises(Fault, match="cut off"):
        await cache.place(image("one"), tmp_path / "a")
    assert kept(tmp_path) == set()
    await cache.place(image("one"), tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == DATA["one"]


async def test_what_an_earlier_agent_left_half_fetched_is_never_used(tmp_path, cache):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / f"{image('one').sha512}.part").write_bytes(b"half")
    await cache.place(image("one"), tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == DATA["one"]
    assert kept(tmp_path) == {image("one").sha512}


async def test_wrong_bytes_are_fetched_again_and_given_up_when_they_stay_wrong(tmp_path, cache, source):
    source.garbled = 1
    await cache.place(image("one"), tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == DATA["one"]
    source.garbled = 99
    with pytest.raises(Fault, match="damaged") as caught:
        await cache.place(image("two"), tmp_path / "b")
    assert caught.value.final and not (tmp_path / "b").exists()


async def test_room_is_made_of_what_no_server_uses_the_longest_unused_first(tmp_path, cache, source):
    for at, name in enumerate(("one", "two")):
        await cache.place(image(name), tmp_path / name)
        os.utime(tmp_path / "images" / image(name).sha512, (at, at))
    (tmp_path / "two").unlink()
    await cache.place(image("three"), tmp_path / "three")
    assert kept(tmp_path) == {image("one").sha512, image("three").sha512}
    assert (tmp_path / "one").read_bytes() == DATA["one"]


@pytest.mark.parametrize("name", ["", "../../etc/passwd", "A" * 128, "a" * 127])
async def test_an_image_without_a_proper_hash_is_refused_for_good(tmp_path, cache, name):
    with pytest.raises(Fault) as caught:
        await cache.place(BootImage(id="odd", sha512=name), tmp_path / "a")
    assert caught.value.final
