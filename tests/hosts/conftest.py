"""The control plane's end of agents' streams, as tests of hosts use it."""
import asyncio
import contextlib
from pathlib import Path

import grpc
import pytest

from control.hosts.service import Hosts
from control.kernel import fleet, pki, replicas, rpc
from control.kernel.database import Database
from control.placement.host_providers import HostProviders
from protos.internal.v1 import hosts_pb2 as pb
from protos.internal.v1 import hosts_pb2_grpc as stubs
from tests.hosts.world import THING, Moves, Nobody, NoImages, Things
from tests.upgrade.later_store import LaterStore


@pytest.fixture
async def world(tmp_path: Path):
    """(database, things, hosts, a function from host name to a stub)"""
    database = Database(store := LaterStore(), [*replicas.KINDS, *fleet.KINDS, THING])
    things = Things(database)
    membership = replicas.Membership(store, replicas.new_record("control", "127.0.0.1:1"))
    hosts = Hosts(database, [things], [things], NoImages(), HostProviders(), membership, Moves())
    dispatcher = rpc.Dispatcher(Nobody())
    dispatcher.add(hosts, pb.DESCRIPTOR.services_by_name["Hosts"])
    server = grpc.aio.server()
    rpc.add_to_grpc(dispatcher, server)
    own = pki.ensure_leaf(tmp_path, "agents", ["127.0.0.1", "localhost"], server=True)
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials(
        [(own.key.read_bytes(), own.certificate.read_bytes())], own.ca.read_bytes(), require_client_auth=True))
    await server.start()
    channels = []

    def stub(host: str) -> stubs.HostsStub:
        leaf = pki.ensure_leaf(tmp_path, host, client=True)
        channel = grpc.aio.secure_channel(f"localhost:{port}", grpc.ssl_channel_credentials(
            leaf.ca.read_bytes(), leaf.key.read_bytes(), leaf.certificate.read_bytes()))
        channels.append(channel)
        return stubs.HostsStub(channel)

    tasks = [asyncio.create_task(database.cache.run()), asyncio.create_task(membership.run()), asyncio.create_task(hosts.run())]
    await database.cache.ready.wait()
    await membership.term()
    yield database, things, hosts, stub
    for channel in channels:
        await channel.close()
    await server.stop(None)
    for task in tasks:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
