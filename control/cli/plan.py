"""`brume plan`: what would happen to the cloud's hosts, asked of the scheduler by gRPC, and done where it can be.

A plan changes nothing; --apply does what it says, unless the cloud moved since.
"""
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click
import grpc
from google.protobuf.json_format import MessageToDict
from rich.console import Console
from rich.table import Table

from control.cli import credentials
from control.kernel import config as settings
from control.kernel.config import Config
from control.kernel.errors import Unavailable
from protos.identity.v1 import tokens_pb2, tokens_pb2_grpc
from protos.placement.v1 import scheduling_pb2 as pb
from protos.placement.v1 import scheduling_pb2_grpc

#: Seconds that one call may take.
TIMEOUT = 60.0


@click.group()
def plan() -> None:
    """What-if: drain hosts, add servers, over-commit, balance, consolidate. Nothing changes without --apply."""


def _options(command: Callable) -> Callable:
    for option in (click.option("--apply", "applied", is_flag=True, help="Do it, if the cloud is still as it was."),
                   click.option("--json", "as_json", is_flag=True, help="As JSON.")):
        command = option(command)
    return click.pass_obj(command)


@plan.command()
@click.argument("hosts", nargs=-1)
@click.option("--aggregate", default="", metavar="ID", help="All hosts of an aggregate.")
@click.option("--zone", default="", help="All hosts of an availability zone.")
@_options
def drain(state_dir: Path | None, hosts: tuple[str, ...], aggregate: str, zone: str, applied: bool, as_json: bool) -> None:
    """Say where all on HOSTS would go if these were closed."""
    _show(state_dir, "PlanDrain", pb.PlanDrainRequest(hosts=hosts, aggregate=aggregate, zone=zone), applied, as_json)


@plan.command()
@click.option("--flavor", default="", help="A flavor, by name or id.")
@click.option("--vcpus", type=click.IntRange(0), default=0)
@click.option("--ram", type=click.IntRange(0), default=0, metavar="MIB")
@click.option("--disk", type=click.IntRange(0), default=0, metavar="GIB")
@click.option("--count", type=click.IntRange(1, 100_000), required=True, help="How many.")
@click.option("--group-policy", default="", help="Of a server group that they are all in: anti-affinity, affinity...")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@click.pass_obj
def add(state_dir: Path | None, flavor: str, vcpus: int, ram: int, disk: int, count: int, group_policy: str,
        as_json: bool) -> None:
    """Say how many more there is room for, where they would go, and why no more."""
    amounts = {name: amount for name, amount in (("VCPU", vcpus), ("MEMORY_MB", ram), ("DISK_GB", disk)) if amount}
    if bool(flavor) == bool(amounts):
        raise click.UsageError("give --flavor, or some of --vcpus, --ram and --disk")
    shape = None if flavor else pb.Shape(amounts=amounts)
    request = pb.PlanAddRequest(flavor=flavor, shape=shape, count=count, group_policy=group_policy)
    _show(state_dir, "PlanAdd", request, False, as_json)


@plan.command()
@click.argument("resource_class", metavar="CLASS")
@click.argument("value", type=click.FloatRange(0, 1e6, min_open=True), metavar="RATIO")
@click.option("--host", "hosts", multiple=True, help="One host; may be repeated.  [default: all that have the class]")
@_options
def ratio(state_dir: Path | None, resource_class: str, value: float, hosts: tuple[str, ...], applied: bool,
          as_json: bool) -> None:
    """Say which hosts would hold more than they have if CLASS (VCPU, MEMORY_MB...) were over-committed by RATIO."""
    _show(state_dir, "PlanRatio", pb.PlanRatioRequest(resource_class=resource_class, ratio=value, hosts=hosts), applied, as_json)


@plan.command()
@click.option("--moves", type=click.IntRange(1, 1000), default=100, show_default=True, help="At most.")
@click.option("--threshold", type=click.FloatRange(0, 100), default=10.0, show_default=True, help="Percent above the mean load.")
@_options
def balance(state_dir: Path | None, moves: int, threshold: float, applied: bool, as_json: bool) -> None:
    """Say which few moves even out the hosts' loads."""
    request = pb.PlanBalanceRequest(most_moves=moves, threshold_ppm=round(threshold * 10_000))
    _show(state_dir, "PlanBalance", request, applied, as_json)


@plan.command()
@click.option("--moves", type=click.IntRange(1, 1000), default=100, show_default=True, help="At most.")
@_options
def consolidate(state_dir: Path | None, moves: int, applied: bool, as_json: bool) -> None:
    """Say which hosts a number of moves would empty."""
    _show(state_dir, "PlanConsolidate", pb.PlanConsolidateRequest(most_moves=moves), applied, as_json)


def _show(state_dir: Path | None, name: str, request: Any, applied: bool, as_json: bool) -> None:
    with _scheduler(settings.load(state_dir)) as call:
        made = call(name, request)
        if as_json:
            click.echo(json.dumps(MessageToDict(made, preserving_proto_field_name=True), indent=1))
        else:
            _print(made)
        if applied:
            done = call("ApplyPlan", pb.ApplyPlanRequest(plan=made))
            click.echo(f"Done at revision {done.revision}: {done.closed} hosts closed, {done.changed} changed, {done.moved} "
                       "consumers moved.", err=as_json)


@contextmanager
def _scheduler(config: Config) -> Iterator[Callable[[str, Any], Any]]:
    """Calls of the scheduler as the cloud's admin. Raises Unavailable, or ClickException with what the cloud says."""
    if not config.path("admin.password").exists():
        raise click.ClickException(f"there is no cloud in {config.state_dir}: run `brume up` first, or name another --state-dir")
    admin = credentials.ensure(config)["admin"]
    host = urlsplit(config.url).hostname or "localhost"
    address = f"{f'[{host}]' if ':' in host else host}:{config.grpc_port}"
    channel = (grpc.secure_channel(address, grpc.ssl_channel_credentials(Path(config.certificate).read_bytes()))
               if config.certificate else grpc.insecure_channel(address))
    domain = tokens_pb2.AuthDomain(id="default")
    user = tokens_pb2.AuthUser(name=admin.user, domain=domain, password=admin.password)
    request = tokens_pb2.IssueTokenRequest(auth=tokens_pb2.Auth(identity=tokens_pb2.AuthIdentity(
        methods=["password"], password=tokens_pb2.PasswordMethod(user=user))))
    try:
        issued = tokens_pb2_grpc.TokensStub(channel).IssueToken(request, timeout=TIMEOUT)
        stub = scheduling_pb2_grpc.SchedulingStub(channel)
        metadata = (("x-auth-token", issued.subject_token),)
        yield lambda name, message: getattr(stub, name)(message, timeout=TIMEOUT, metadata=metadata)
    except grpc.RpcError as error:
        if error.code() == grpc.StatusCode.UNAVAILABLE:
            raise Unavailable("cli.grpc", f"{address} does not answer: {error.details()}") from error
        raise click.ClickException(error.details()) from error
    finally:
        channel.close()


def _print(made: pb.Plan) -> None:
    if made.closed:
        click.echo(f"To close: {', '.join(made.closed)}")
    for change in made.ratios:
        click.echo(f"{change.resource_class} by {change.ratio:g}, hosts: {len(change.hosts)}")
    if made.moves:
        _table(("Consumer", "From", "To", ""), [(move.consumer_id, move.source, move.target, "server" if move.server else "")
                                                for move in made.moves])
    if made.placed:
        _table(("Host", "New"), [(name, str(count)) for name, count in sorted(made.placed.items())])
        click.echo(f"{sum(made.placed.values())} fit.")
    for refusal in made.refused:
        click.echo(f"No place for {refusal.count}: {refusal.reason}")
    if made.overfull:
        click.echo(f"More held than there is: {', '.join(made.overfull)}")
    if not (made.moves or made.placed or made.refused or made.overfull):
        click.echo("Nothing has to move.")


def _table(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    table = Table(*columns, box=None)
    for row in rows:
        table.add_row(*row)
    Console(highlight=False).print(table)
