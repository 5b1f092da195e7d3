"""`brume etcd`: the members of the cloud's etcd cluster, for clouds of several replicas."""
import asyncio
import contextlib
import os
import shutil
import signal
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from control.cli import processes
from control.cli.steps import Steps
from control.kernel import config as settings
from control.kernel.config import Config

#: Seconds that a new member waits for the others at its first start, before the supervisor starts it again.
JOIN_WITHIN = 30.0


@click.group()
def etcd() -> None:
    """See and mend etcd's cluster, which holds all of the cloud's state."""


@etcd.command(hidden=True)
@click.pass_obj
def run(state_dir: Path | None) -> None:
    """Become this replica's member; the supervisor runs it."""
    from control.kernel import etcd_members, etcd_server
    config = settings.load(state_dir)
    member = processes.etcd_config(config)
    if not member.has_data and processes.etcd_marker(config).exists():
        places = {place.name: f"https://{settings.in_url(place.address)}:{config.port + 4}" for place in config.places}
        member = replace(member, joins=_with_client(
            config.etcd_endpoints[1:],
            lambda client: etcd_members.join(client, member.name, member.peer_url, places, JOIN_WITHIN), config))
    member.data_dir.mkdir(mode=0o700, exist_ok=True)
    argv = etcd_server.command(member)
    os.execve(argv[0], argv, etcd_server.environment())  # noqa: S606 - of our own making, without a shell


@etcd.command("list")
@click.pass_obj
def list_(state_dir: Path | None) -> None:
    """Show the members, and which of them answer."""
    from control.kernel import etcd_members
    from control.kernel.etcd_client import AioRpcError, rpc_pb2
    config = settings.load(state_dir)

    async def look(client: Any) -> Table:
        table = Table("name", "peers reach it at", "state", "database (MiB)")
        for member in await etcd_members.members(client):
            state, size = ("learner" if member.isLearner else "voter") if member.name else "added, never started", "-"
            for endpoint in member.clientURLs:
                try:
                    status = await client.at(endpoint).maintenance.Status(rpc_pb2.StatusRequest(), timeout=2.0)
                    state, size = "leader" if status.leader == member.ID else state, f"{status.dbSize / 2**20:.1f}"
                except AioRpcError:
                    state += ", does not answer"
            table.add_row(member.name or "-", ", ".join(member.peerURLs), state, size)
        return table

    Console().print(_with_client(config.etcd_endpoints, look, config))


@etcd.command("remove")
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def remove(state_dir: Path | None, name: str, yes: bool) -> None:
    """Take the member of a replica that is gone for good out of the cluster."""
    config = settings.load(state_dir)
    if not yes:
        click.confirm(f"Take {name} out of etcd's cluster?", abort=True)
    _remove(config, name)


@etcd.command("replace")
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def replace_(state_dir: Path | None, name: str, yes: bool) -> None:
    """Make the member of a replica anew, with the others' data: its own are lost or damaged.

    On the replica's own machine, or on any other replica when that machine is lost.
    """
    config = settings.load(state_dir)
    here = next((one for one in (processes.replica_configs(config) if config.replicas_here > 1 else [config])
                 if one.place and one.place.name == name), None)
    if not yes:
        click.confirm(f"Throw away the etcd data of {name}, if it has any, and have it fetch the others'?", abort=True)
    steps = Steps()
    with steps(f"take {name} out of the cluster"):
        _remove(config, name)
    if here is None:
        click.echo(f"Now `brume certificate replica {name}` here, and on {name}: `brume join` with its file, then `brume up`.")
        return
    with steps("throw away its data"):
        lost = here.path("etcd.lost")
        shutil.rmtree(lost, ignore_errors=True)
        with contextlib.suppress(FileNotFoundError):
            here.path("etcd").rename(lost)
        processes.etcd_marker(here).touch(mode=0o600)
        suffix = f"-{[place.name for place in config.places].index(name) + 1}" if config.replicas_here > 1 else ""
        if pid := next((row["pid"] for row in processes.status(config) if row["name"] == f"etcd{suffix}"), 0):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(lost, ignore_errors=True)
    if processes.supervisor_pid(config):
        with steps("fetch the others' data"):
            processes.wait_for_members(config)


def _remove(config: Config, name: str) -> None:
    from control.kernel import etcd_members
    from control.kernel.errors import NotFound
    place = next((place for place in config.places if place.name == name), None)
    if place is None:
        there = ", ".join(each.name for each in config.places) or "none"
        raise click.ClickException(f"there is no replica {name}; there are {there}")
    url = f"https://{settings.in_url(place.address)}:{config.port + 4}"
    others = tuple(endpoint for endpoint in config.etcd_endpoints if f"//{settings.in_url(place.address)}:" not in endpoint)
    with contextlib.suppress(NotFound):
        _with_client(others, lambda client: etcd_members.remove(client, name, url), config)


def _with_client(endpoints: tuple[str, ...], work: Callable[[Any], Awaitable[Any]], config: Config) -> Any:
    """What `work` returns of a client of these members. Raises ClickException where the cluster refuses."""
    from control.kernel import etcd_server
    from control.kernel.etcd_client import AioRpcError, Client
    if not endpoints:
        raise click.ClickException("there is no other member of etcd's cluster: it is a cluster of one")

    async def act() -> Any:
        client = Client(endpoints, etcd_server.client_credentials(config.pki_dir))
        try:
            return await work(client)
        finally:
            await client.close()

    try:
        return asyncio.run(act())
    except AioRpcError as error:
        raise click.ClickException(f"etcd refuses: {error.details()}") from error
