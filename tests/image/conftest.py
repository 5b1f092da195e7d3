"""A running image service: the real gateway on a loopback port over the store's twin, for clients that block."""
import asyncio
import contextlib
import threading
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from control.gateway.app import Gateway
from control.gateway.server import listen, serve
from control.image import service
from control.kernel import quota
from control.kernel.caller import Caller
from control.kernel.database import Database
from control.kernel.errors import Unauthenticated
from control.kernel.rpc import Dispatcher
from tests.upgrade.later_store import LaterStore

PATCH = "application/openstack-images-v2.1-json-patch"


class Tokens:
    """Authenticates "<project>" as a member of that project, and "admin" as the cloud's admin in project admin."""

    async def authenticate(self, token: str) -> Caller:
        if token not in ("admin", "one", "two"):
            raise Unauthenticated("token.invalid", "The request you have made requires authentication.")
        return Caller(user_id=f"user-{token}", project_id=token, roles=frozenset({"admin"} if token == "admin" else {"member"}))


class Client(requests.Session):
    """One project's HTTP client of the image API."""

    def __init__(self, url: str, token: str):
        super().__init__()
        self.url = url
        self.headers["X-Auth-Token"] = token

    def request(self, method: str, path: str, *arguments: Any, **options: Any) -> requests.Response:  # type: ignore[override]
        return super().request(method, path if "://" in path else self.url + path, *arguments, timeout=60, **options)

    def create(self, **fields: Any) -> dict[str, Any]:
        answer = self.post("/v2/images", json={"name": "i", "disk_format": "raw", "container_format": "bare", **fields})
        assert answer.status_code == 201, answer.text
        return answer.json()

    def upload(self, image_id: str, data: Any, **headers: str) -> requests.Response:
        return self.put(f"/v2/images/{image_id}/file", data=data, headers={"Content-Type": "application/octet-stream", **headers})

    def show(self, image_id: str) -> dict[str, Any]:
        answer = self.get(f"/v2/images/{image_id}")
        assert answer.status_code == 200, answer.text
        return answer.json()

    def names(self, query: str = "") -> list[str]:
        answer = self.get(f"/v2/images?{query}")
        assert answer.status_code == 200, answer.text
        return [image["name"] for image in answer.json()["images"]]

    def change(self, image_id: str, *operations: dict[str, Any], media: str = PATCH) -> requests.Response:
        return self.patch(f"/v2/images/{image_id}", json=operations, headers={"Content-Type": media})


class Cloud:
    """One replica with an image service, in a thread of its own."""

    def __init__(self, folder: Path, store: LaterStore | None = None, max_size: int = 2**30):
        self._started = threading.Event()
        self.folder = folder
        self.store = store or LaterStore()
        self.max_size = max_size
        self._listener = listen("127.0.0.1", 0)
        self.url = "http://{}:{}/image".format(*self._listener.getsockname())
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)
        self._thread.start()
        assert self._started.wait(10)
        self.admin, self.one, self.two = (Client(self.url, token) for token in ("admin", "one", "two"))

    async def _run(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self.database = Database(self.store, (*service.KINDS, *quota.KINDS))
        self.images = service.ImageService(self.database, self.folder, self.max_size)
        dispatcher = Dispatcher(Tokens())
        for servicer, descriptor in self.images.servicers():
            dispatcher.add(servicer, descriptor)
        tasks = [asyncio.create_task(work) for work in (self.database.cache.run(), self.images.run(), serve(
            Gateway(dispatcher), "127.0.0.1", 0, listener=self._listener))]
        await self.database.cache.ready.wait()
        self._started.set()
        await self._stop.wait()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def run(self, work: Coroutine) -> Any:
        """What a coroutine gives, run in the replica's loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(30)

    def used(self, project: str) -> dict[str, int]:
        ledger = quota.ledger_of(self.database, "image", project)
        return {name: amount for name, amount in ledger.used.items() if amount}

    def files(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir() if path.name != "directory-id")

    def until(self, check: Any) -> None:
        """Wait until the background work has made something true."""
        for _ in range(500):
            if check():
                return
            threading.Event().wait(0.02)
        raise AssertionError("it did not come true")

    def restarted(self) -> "Cloud":
        """A new process over what the old one, now stopped, left in the store and in the directory."""
        self.stop()
        store = LaterStore()             # one of its own: events belong to the loop that waited for them
        store._records, store._revision = dict(self.store._records), self.store._revision
        return Cloud(self.folder, store, self.max_size)

    def stop(self) -> None:
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(20)


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[Cloud]:
    running = Cloud(tmp_path / "images")
    yield running
    running.stop()
