"""`brume simulate`: hosts that exist in memory alone, attached to a real control plane; and traces played against its API."""
import contextlib
import json
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.live import Live
from rich.table import Table

from agents.simulation.behaviour import LATENCIES, PROFILES, behaviour
from agents.simulation.fleet import Plan
from agents.simulation.host import Shape
from agents.simulation.run import Processes, running
from control.cli import credentials
from control.cli.replay import Replay, read_trace
from control.kernel import config as settings
from control.kernel import pki
from control.kernel.config import Config

#: The family that all simulated hosts are of: one certificate is for all of it.
FAMILY = "*.sim"

#: Most hosts of one fleet, whose names have five digits.
MAX_HOSTS = 100_000

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


def _shape(text: str) -> tuple[Shape, int]:
    """"64x256x4096:3": vCPUs, GiB of RAM, GiB of disk, weight."""
    sizes, _, weight = text.partition(":")
    try:
        vcpus, ram, disk = (int(part) for part in sizes.split("x"))
        shape = Shape(vcpus, ram * 1024, disk), int(weight or 1)
    except ValueError:
        raise click.BadParameter(f"{text!r} is not VCPUSxRAMxDISK[:WEIGHT], like 64x256x4096:3") from None
    if min(vcpus, ram, shape[1]) < 1 or disk < 0 or max(vcpus, ram, disk, shape[1]) > 1_000_000:
        raise click.BadParameter(f"{text!r}: each is 1 to 1000000")
    return shape


def _shapes(_: click.Context, __: click.Parameter, texts: tuple[str, ...]) -> tuple[tuple[Shape, int], ...]:
    return tuple(map(_shape, texts))


@click.command()
@click.option("--hosts", type=click.IntRange(0, MAX_HOSTS), default=100, show_default=True, help="How many.")
@click.option("--first", type=click.IntRange(0, MAX_HOSTS), default=0,
              help="Number of the first, for a fleet in several commands.")
@click.option("--seed", type=int, default=0, show_default=True, help="What latencies, failures and shapes are drawn from.")
@click.option("--shape", "shapes", multiple=True, callback=_shapes, metavar="VCPUSxRAMxDISK[:WEIGHT]",
              help="Of a host, in GiB; several with weights are mixed.  [default: 64x256x4096]")
@click.option("--zones", default="", metavar="A,B,...", help="Availability zones, dealt out in turn.")
@click.option("--latency", default="", metavar="WORDS", help=f"{', '.join(PROFILES)}, or seconds of {', '.join(LATENCIES)}: "
              "start=0.2..1.5,stop=1.")
@click.option("--failures", default="", metavar="WORDS", help="Parts of starts, stops... that fail, crashes of a running server "
              "and cuts of a host's stream in an hour: start=0.01,crash=0.001/h,stream=0.1/h.")
@click.option("--processes", type=click.IntRange(1, 64), default=1, show_default=True, help="To spread the hosts over.")
@click.option("--endpoints", default="", metavar="HOST:PORT,...",
              help="Replicas, where agents reach them.  [default: this cloud's]")
@click.option("--ca", type=_FILE, help="Of a cloud elsewhere: its authority's certificate (PEM)...")
@click.option("--certificate", type=_FILE, help=f"... a certificate of it for {FAMILY} ...")
@click.option("--key", type=_FILE, help="... and the key.")
@click.option("--duration", type=click.FloatRange(0, min_open=True), help="Seconds after which it ends.  [default: until Ctrl-C]")
@click.option("--replay", "trace", type=_FILE, metavar="TRACE.csv[.gz]",
              help="Ask for the servers of a trace: lines of arrival and lifetime in seconds, vCPUs, MiB of RAM. Ends with it.")
@click.option("--speed", type=click.FloatRange(0.001, 1e6), default=60.0, show_default=True, help="Trace seconds in one second.")
@click.option("--json", "as_json", is_flag=True, help="A line of JSON each second instead of a table.")
@click.pass_obj
def simulate(state_dir: Path | None, hosts: int, first: int, seed: int, shapes: tuple[tuple[Shape, int], ...], zones: str,
             latency: str, failures: str, processes: int, endpoints: str, ca: Path | None, certificate: Path | None,
             key: Path | None, duration: float | None, trace: Path | None, speed: float, as_json: bool) -> None:
    """Attach simulated hosts to a cloud, until Ctrl-C.

    They run the agent that real hosts run, over hypervisors and networks in memory. The same seed gives the same hosts, and the
    n-th start, stop, failure or crash on each of them is always the same. Servers may be placed there at once; when the command
    ends, the hosts are silent, and the cloud writes them down. Their servers are gone with it, and start anew when it comes back.
    """
    try:
        behaviour(latency, failures)
        rows = read_trace(trace) if trace is not None else []
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    config = settings.load(state_dir)
    if not ca:
        if not config.path("pki", "ca.key").exists():
            raise click.ClickException(f"there is no cloud in {config.state_dir}: run `brume up` first, or name another's "
                                       "--endpoints with --ca, --certificate and --key")
        own = pki.ensure_leaf(config.pki_dir, FAMILY, client=True)
        ca, certificate, key = own.ca, own.certificate, own.key
    elif not (certificate and key and endpoints):
        raise click.UsageError("--ca goes with --certificate, --key and --endpoints")
    plan = Plan(
        count=hosts, first=first, seed=seed, shapes=shapes or ((Shape(), 1),), zones=tuple(filter(None, zones.split(","))),
        latency=latency, failures=failures, ca=ca, certificate=certificate, key=key, version=_version(),
        endpoints=tuple(filter(None, endpoints.split(","))) or (f"{config.agent_listen}:{config.agent_port}",))
    for number in (signal.SIGINT, signal.SIGTERM):          # a shell's background command has SIGINT ignored
        signal.signal(number, signal.default_int_handler)
    with running(plan, processes if hosts else 0) as fleet:
        _follow(fleet, duration, as_json, _replay(config, rows, speed) if trace is not None else None)


def _version() -> str:
    from importlib.metadata import version
    return version("brume")


def _replay(config: Config, rows: list[Any], speed: float) -> Replay:
    return Replay(lambda: credentials.ensure(config)["admin"].session(config), rows, speed)


def _follow(fleet: Processes, duration: float | None, as_json: bool, replay: Replay | None) -> None:
    """Show what happens each second, until the time is over, the trace is, or Ctrl-C comes."""
    began = time.monotonic()
    until = began + duration if duration else float("inf")
    console = Console()
    live = Live(console=console, auto_refresh=False, transient=False) if not as_json and console.is_terminal else None
    before: Counter[str] = Counter()
    try:
        with live or contextlib.nullcontext():
            waiting_for_fleet = replay is not None
            while (now := time.monotonic()) < until:
                totals = fleet.totals()
                shown = _shown(totals, before, now - began)
                if waiting_for_fleet and totals["attached"] == totals["hosts"]:
                    waiting_for_fleet = False
                    replay.start()  # type: ignore[union-attr]
                if replay is not None and not waiting_for_fleet:
                    shown |= replay.figures()
                if live:
                    live.update(_table(shown), refresh=True)
                else:
                    click.echo(json.dumps(shown))
                if replay is not None and replay.done:
                    break
                before = totals
                time.sleep(min(1.0, max(0.0, until - now)))
    except KeyboardInterrupt:
        pass
    except RuntimeError as error:
        raise click.ClickException(str(error)) from error
    finally:
        if replay is not None:
            replay.stop()
    if replay is not None:
        click.echo(json.dumps(replay.figures()) if as_json else replay.report())


def _shown(totals: Counter[str], before: Counter[str], seconds: float) -> dict[str, Any]:
    return {"seconds": round(seconds, 1), **{name: totals[name] for name in (
        "hosts", "attached", "running", "stopped", "paused", "starts", "stops", "removes", "failures", "crashes", "cuts")},
        "starts_per_second": totals["starts"] - before["starts"] if before else 0,
        "reconnects": max(0, totals["attaches"] - totals["hosts"])}


def _table(shown: dict[str, Any]) -> Table:
    table = Table(title="Simulated fleet", title_justify="left", show_header=False)
    for name, value in shown.items():
        table.add_row(name.replace("_", " "), f"{value:,}")
    return table
