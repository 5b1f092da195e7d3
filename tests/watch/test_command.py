"""`brume watch` as an operator runs it: a process of its own that connects again by itself."""
import asyncio
import contextlib
import json
import sys

import pytest

from control.kernel import config as settings
from control.kernel.errors import Unavailable

pytestmark = pytest.mark.etcd


@contextlib.asynccontextmanager
async def brume(cloud, *arguments: str):
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "control.cli.main", "--state-dir", str(cloud.replica.config.state_dir), "watch", *arguments,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env={"PYTHONUNBUFFERED": "1", "PATH": "/usr/bin"})
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def line(process) -> str:
    return (await asyncio.wait_for(process.stdout.readline(), 20)).decode().rstrip()


async def test_it_goes_on_where_it_was_when_its_connection_ends(cloud):
    settings.save(cloud.replica.config)
    client = cloud.client(await cloud.token("admin"))
    revision = cloud.replica.database.cache.revision
    async with brume(cloud, "networks", "--json", "--from", str(revision)) as process:
        for name in ("one", "two", "three"):
            made = (await client("POST", "/network/v2.0/networks", json_body={"network": {"name": name}})).json["network"]
            event = json.loads(await line(process))
            assert (event["type"], event["object"]) == ("ADDED", made) and event["revision"] > revision
            for group in cloud.replica.watches._groups[cloud.replica.watches.watchables["networks"]].values():
                for reader in group.readers:
                    reader.end(Unavailable("watch.stopping", "as a replica that stops says"))


async def test_it_shows_a_line_for_each_object_and_says_what_is_wrong(cloud):
    settings.save(cloud.replica.config)
    async with brume(cloud, "users") as process:
        words = sorted([(await line(process)).split() for _ in range(2)], key=lambda words: words[-1])
        assert words[0][::2] == ["ADDED", "admin"]
    for arguments, words in ((["volumes"], "cannot be watched"), (["networks", "--from", "9" * 12], "none of this cloud's")):
        async with brume(cloud, *arguments) as process:
            _, errors = await asyncio.wait_for(process.communicate(), 20)
            assert process.returncode == 1 and words in errors.decode()
