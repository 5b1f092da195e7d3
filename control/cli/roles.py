"""`brume control`, `agent` and `journal`: the roles in the foreground, as `brume up` starts them and operators may."""
import asyncio
import os
import signal
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from control.kernel import config as settings
from control.kernel.config import Config

if TYPE_CHECKING:
    from agents.main import AgentConfig

config_option = click.option("--config", "config_file", type=click.Path(exists=True, dir_okay=False, path_type=Path),
                             help="Settings (TOML).")


@click.command()
@config_option
@click.pass_obj
def control(state_dir: Path | None, config_file: Path | None) -> None:
    """Run one replica of the control plane: the APIs, the reconcilers and the scheduler."""
    from control import main
    config = settings.load(state_dir, config_file)
    if config.path("restore", "manifest.json").exists():
        raise click.ClickException(f"a restored state waits in {config.path('restore')}: `brume up` loads it first")
    _run("control", main.run(config), config)


@click.command()
@config_option
@click.pass_obj
def agent(state_dir: Path | None, config_file: Path | None) -> None:
    """Run the agent of this hypervisor host."""
    from agents import main
    config = settings.load(state_dir, config_file)
    _run("agent", main.run(agent_config(config)), config)


@click.command()
@config_option
@click.pass_obj
def journal(state_dir: Path | None, config_file: Path | None) -> None:
    """Write the audit journal of this machine."""
    config = settings.load(state_dir, config_file)
    _run("journal", _write_journal(config), config)


async def _write_journal(config: Config) -> None:
    from control.audit.journal import NICE, Journal
    from control.kernel import etcd_server
    from control.kernel.etcd_store import EtcdStore
    from control.kinds import KINDS
    os.nice(NICE)
    store = EtcdStore(config.etcd_endpoints, etcd_server.client_credentials(config.pki_dir))
    try:
        await Journal(store, config.audit_dir, KINDS, config.audit_keep_days).run()
    finally:
        await store.close()


def agent_config(config: Config) -> "AgentConfig":
    """The agent's part of a cloud's settings."""
    from importlib.metadata import version

    from agents.main import AgentConfig
    directory = config.pki_dir
    return AgentConfig(
        host=config.host_name, directory=config.path("agent"), libvirt_directory=config.path("libvirt"),
        run_directory=config.path("run", "network"), endpoints=config.agent_endpoints,
        ca=directory / "ca.crt", certificate=directory / f"{config.host_name}.crt", key=directory / f"{config.host_name}.key",
        cloud=config.name, address=config.host_address or config.agent_listen, availability_zone=config.availability_zone,
        hypervisor=config.hypervisor or "libvirt", libvirt_uri=config.libvirt_uri, version=version("brume"),
        metrics=(config.metrics_listen, config.port + 6) if config.metrics_listen else None)


def _run(name: str, role: Coroutine[Any, Any, None], config: Config) -> None:
    """Run a role until SIGTERM or SIGINT, which cancel it."""
    from agents.telemetry import logs, traces
    from control.kernel import collector

    logs.set_up(config.log_level, config.log_format)
    traces.set_up(f"brume-{name}", config.otlp_endpoint, f"{config.host_name}/{os.getpid()}")

    async def until_told() -> None:
        task = asyncio.ensure_future(role)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, task.cancel)
        try:
            await task
        except asyncio.CancelledError:
            if not task.cancelled():
                raise

    collector.relax()
    import uvloop
    try:
        uvloop.run(until_told())
    finally:
        traces.shut_down()
