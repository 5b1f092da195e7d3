"""`brume backup` and `brume restore` on an etcd that the operator runs: it is read while it runs, and loaded at once."""
import asyncio
import hashlib
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from control.cli.main import main
from control.image.model import IMAGE
from control.kernel import config as settings
from control.kernel.config import Config
from control.kernel.etcd_store import EtcdStore
from control.kernel.store import Record
from protos.image.v1.images_pb2 import Image
from protos.image.v1.records_pb2 import ImageRecord
from tests.conftest import Etcd, empty

pytestmark = pytest.mark.etcd


def brume(state_dir: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["--state-dir", str(state_dir), *arguments])


def on(etcd: Etcd, work: Callable[[EtcdStore], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        await etcd.ready()
        store = etcd.store()
        try:
            return await work(store)
        finally:
            await store.close()
    return asyncio.run(run())


@pytest.fixture
def cloud(own_etcd: Etcd, tmp_path: Path) -> Config:
    """A cloud's state directory, and an etcd beside it that has an image's record and another."""
    config = Config(state_dir=tmp_path, etcd=(own_etcd.endpoint,), name="kept")
    settings.save(config)
    (tmp_path / "admin.password").write_text("secret\n")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "file").write_bytes(b"image data")
    image = ImageRecord(image=Image(id="i", status=Image.ACTIVE, os_hash_value=hashlib.sha512(b"image data").hexdigest()),
                        file="file", directory_id="d")
    on(own_etcd, lambda store: store.commit(Record(IMAGE.key("i"), image.SerializeToString()), Record("/test/a", b"1")))
    return config


def test_a_cloud_on_an_etcd_of_ones_own_is_backed_up_and_restored_into_it(cloud: Config, own_etcd: Etcd, tmp_path: Path) -> None:
    file, place = tmp_path / "b", tmp_path / "again"
    made = brume(cloud.state_dir, "backup", str(file), "--json")
    assert made.exit_code == 0, made.output
    assert json.loads(made.stdout)["records"] == {"image/images": 1, "test/a": 1} and json.loads(made.stdout)["images"] == 1
    assert "is there already" in brume(cloud.state_dir, "backup", str(file)).output
    assert "is whole: the cloud kept" in brume(cloud.state_dir, "backup", "verify", str(file)).output
    full = brume(place, "restore", str(file))
    assert full.exit_code == 1 and "etcd has a state already" in full.output
    asyncio.run(empty(own_etcd))
    done = brume(place, "restore", str(file), "--replace", "--json")
    assert done.exit_code == 0, done.output
    assert on(own_etcd, lambda store: store.get("/test/a")).value == b"1"
    image = ImageRecord.FromString(on(own_etcd, lambda store: store.get(IMAGE.key("i"))).value)
    assert image.directory_id == (place / "images" / "directory-id").read_text().strip()
    assert (place / "images" / "file").read_bytes() == b"image data" and not (place / "restore").exists()
    assert settings.load(place).name == "kept" and (place / "admin.password").read_text() == "secret\n"


def test_damaged_or_missing_image_data_is_no_backup(cloud: Config, tmp_path: Path) -> None:
    file, data = tmp_path / "b", cloud.state_dir / "images" / "file"
    data.write_bytes(b"image dat4")
    said = brume(cloud.state_dir, "backup", str(file))
    assert said.exit_code == 1 and "is damaged" in said.output and not file.exists()
    data.unlink()
    said = brume(cloud.state_dir, "backup", str(file))
    assert said.exit_code == 1 and "--no-images" in said.output and not file.exists()
    assert brume(cloud.state_dir, "backup", str(file), "--no-images").exit_code == 0
