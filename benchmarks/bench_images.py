"""Upload and download of image data through REST: MB/s of a whole image, hashed twice and synced to disk on its way in.

The real gateway and image service on loopback, in a process of their own; the state is in memory, the data on the disk of the
temporary directory.
"""
import argparse
import asyncio
import http.client
import json
import multiprocessing
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

from control.gateway.app import Gateway
from control.gateway.server import listen, serve
from control.image import service
from control.kernel import quota
from control.kernel.caller import Caller
from control.kernel.database import Database
from control.kernel.rpc import Dispatcher
from control.kernel.store import MemoryStore

PIECE = bytes(range(256)) * 1024          # 256 KiB


class Anyone:
    async def authenticate(self, token: str) -> Caller:
        return Caller(user_id="user", project_id="project", roles=frozenset({"member"}))


def serve_images(folder: str, ready: Connection) -> None:
    async def run() -> None:
        database = Database(MemoryStore(), (*service.KINDS, *quota.KINDS))
        images = service.ImageService(database, Path(folder))
        dispatcher = Dispatcher(Anyone())
        for servicer, descriptor in images.servicers():
            dispatcher.add(servicer, descriptor)
        listener = listen("127.0.0.1", 0)
        async with asyncio.TaskGroup() as group:
            group.create_task(database.cache.run())
            group.create_task(images.run())
            group.create_task(serve(Gateway(dispatcher), "127.0.0.1", 0, listener=listener))
            await database.cache.ready.wait()
            ready.send(listener.getsockname()[1])

    import uvloop
    uvloop.run(run())


def request(port: int, method: str, path: str, body: object = None, size: int = 0) -> tuple[float, bytes]:
    """One call: its seconds, and its answer; data of `size` bytes is sent, and an answer over 1 MiB is only counted."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    headers = {"X-Auth-Token": "t", "Content-Type": "application/json" if body else "application/octet-stream"}
    sent = json.dumps(body).encode() if body else None
    if size:
        headers["Content-Length"] = str(size)
        sent = (PIECE for _ in range(size // len(PIECE)))     # type: ignore[assignment]
    started = time.perf_counter()
    connection.request(method, f"/image{path}", sent, headers)
    answer = connection.getresponse()
    data = b""
    while piece := answer.read(2**20):
        data = piece
    seconds = time.perf_counter() - started
    connection.close()
    if answer.status >= 300:
        raise SystemExit(f"{method} {path}: {answer.status} {data[:500]!r}")
    return seconds, data


def measure(port: int, mib: int) -> dict[str, float]:
    """MB/s of one image's way in and out."""
    size = mib * 2**20
    image = json.loads(request(port, "POST", "/v2/images", {"name": "b", "disk_format": "raw", "container_format": "bare"})[1])
    path = f"/v2/images/{image['id']}"
    upload, _ = request(port, "PUT", f"{path}/file", size=size)
    download, _ = request(port, "GET", f"{path}/file")
    request(port, "DELETE", path)
    return {"mib": mib, "upload_mb_s": round(size / upload / 1e6, 1), "download_mb_s": round(size / download / 1e6, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    parser.add_argument("--quick", action="store_true", help="small images, seconds in all")
    options = parser.parse_args()
    ours, theirs = multiprocessing.Pipe()
    with tempfile.TemporaryDirectory(prefix="brume-bench-") as folder:
        server = multiprocessing.get_context("spawn").Process(target=serve_images, args=(folder, theirs), daemon=True)
        server.start()
        try:
            if not ours.poll(60):
                raise SystemExit("the server did not start")
            port = ours.recv()
            rows = []
            for mib in (16, 64) if options.quick else (16, 256, 1024):
                row = measure(port, mib)
                rows.append(row)
                print(f"{mib:>5} MiB   upload {row['upload_mb_s']:>7} MB/s   download {row['download_mb_s']:>7} MB/s", flush=True)
        finally:
            server.terminate()
            server.join()
    if options.json:
        print(json.dumps({"benchmark": "images", "rows": rows}))


if __name__ == "__main__":
    main()
