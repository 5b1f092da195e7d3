"""`brume up`, `down`, `status` and `env`: a whole cloud on this machine, or this machine's part of one.

`up` may be run at any moment and any number of times: it starts what does not run, makes what is missing and touches
nothing that is right. `down` leaves only the state directory, `down --purge` not even that.
"""
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from control.cli import backup, credentials, preflight, processes, room, seed
from control.cli.steps import Steps, console
from control.identity import directory_settings
from control.identity.federation import settings as federation
from control.kernel import config as settings


@click.command()
@click.option("--listen", metavar="ADDRESS", help="Address for clients.  [default: 127.0.0.1]")
@click.option("--port", type=int, help="REST; gRPC, agents, etcd and its peers use the four ports after it.  [default: 5000]")
@click.option("--public-url", metavar="URL", help="The cloud's root as clients reach it, where --listen does not say it.")
@click.option("--certificate", type=click.Path(exists=True, dir_okay=False), help="TLS for clients: certificate chain (PEM).")
@click.option("--key", type=click.Path(exists=True, dir_okay=False), help="TLS for clients: private key (PEM).")
@click.option("--public-cidr", metavar="CIDR", help="Range of the public network.  [default: 172.24.4.0/24]")
@click.option("--replicas", "replicas_here", type=int, metavar="N",
              help="Replicas of the control plane here, each in a network namespace of its own: 1, 3 or 5.  [default: 1]")
@click.option("--host", help="This machine's name in the cloud.  [default: its host name]")
@click.option("--name", help="Prefix of what the cloud makes on the host.  [default: brume]")
@click.option("--config", "config_file", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Settings (TOML).")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
@click.option("--no-seed", is_flag=True, help="Leave out the first flavors and the guest image.")
@click.pass_obj
def up(state_dir: Path | None, config_file: Path | None, as_json: bool, no_seed: bool, **flags: Any) -> None:
    """Start a cloud on this machine, or this machine's part of one: what is missing of it."""
    config = settings.load(state_dir, config_file, **flags)
    directory_settings.read(config.identity)          # these raise, naming what makes no sense
    federation.read(config.identity)
    steps = Steps(quiet=as_json)
    before = settings.load(state_dir)
    if config.replicas_here < before.replicas_here:
        raise click.ClickException(f"this cloud has {before.replicas_here} replicas here. To have fewer, back it up, `brume down "
                                   "--purge` it, and restore it into a new one")
    running = processes.supervisor_pid(config)
    if running and (config.replicas_here, config.replicas) != (before.replicas_here, before.replicas):
        with steps("stop processes, for there will be other replicas"):      # servers go on
            processes.stop_supervisor(config)
        running = 0
    since = processes.log_size(config, "agent")
    restored = False
    if not running:
        problems = preflight.check(config) if processes.wait_for_lock(config) else [preflight.Problem(
            "processes of this cloud still run without their supervisor", "end those in "
            f"{config.path('run')}/*.pid, then run `brume up` again")]
        if problems:
            for problem in problems:
                click.echo(f"{problem.what}: {problem.remedy}", err=True)
            sys.exit(1)
        with steps("prepare certificates and passwords"):
            settings.save(config)
            if config.runs_control:
                credentials.ensure(config)
            processes.prepare(config)
        restored = backup.load_restored(config, steps)
        with steps("start processes"):
            processes.start_supervisor(config)
    if config.runs_control:
        logins = credentials.ensure(config)
        credentials.write_client_files(config, logins)
        if config.places:
            with steps("wait for etcd's members"):
                processes.wait_for_members(config)
        with steps("wait for the API"):
            processes.wait_for_api(config)
        if config.runs_agent:
            with steps("wait for the host"):
                processes.wait_for_host(config, logins["admin"].session(config))
        if not no_seed and config.place in (None, *config.replicas[:1]):
            seed.ensure(config, logins["admin"].session(config), steps)
    elif not running:
        with steps("wait until the host is attached"):
            processes.wait_for_attached(config, since)
    unknown = _strangers(config, steps) if restored else {}
    if as_json:
        click.echo(json.dumps({"auth_url": config.auth_url, "clouds_yaml": str(config.path("clouds.yaml")),
                               "openrc": str(config.path("openrc")), "seconds": steps.seconds,
                               "notice": processes.notice(config), **({"unknown_servers": unknown} if restored else {})}))
    else:
        _print_summary(config, steps)
        for host, servers in unknown.items():
            if backup.NOT_HEARD in servers:
                console.print(f"[yellow]{host} has not said yet whether it runs servers that the backup does not know[/]")
            else:
                console.print(f"[yellow]{host} runs servers that the backup does not know, and leaves them alone: "
                              f"{', '.join(servers)}[/]")


@click.command()
@click.option("--purge", is_flag=True, help="Delete the state directory too: all servers, images, users. There is no way back.")
@click.option("--yes", is_flag=True, help="Do not ask before --purge.")
@click.option("--keep-servers", is_flag=True, help="Stop the cloud's own processes only; servers run on.")
@click.pass_obj
def down(state_dir: Path | None, purge: bool, yes: bool, keep_servers: bool) -> None:
    """Stop the cloud and take down all that it made on this host. Its data stay, unless --purge is given."""
    config = settings.load(state_dir)
    if purge and keep_servers:
        raise click.UsageError("--purge deletes the servers' disks: it cannot keep them running")
    if purge and not yes and sys.stdin.isatty():
        click.confirm(f"Delete everything in {config.state_dir}?", abort=True)
    steps = Steps()
    with steps("stop the control plane and the agent"):
        processes.stop_roles(config)
    if not keep_servers:
        with steps("take down servers and networks"):
            processes.teardown_host(config)
    with steps("stop the rest"):
        processes.stop_supervisor(config)
        if not keep_servers:
            processes.clean_up_after_libvirtd(config)
        processes.remove_replica_network(config)
    if purge and config.state_dir.exists():
        with steps(f"delete {config.state_dir}"):
            shutil.rmtree(config.state_dir)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_obj
def status(state_dir: Path | None, as_json: bool) -> None:
    """Show the cloud's processes and certificates on this machine, and whether its API answers.

    Exit status 1 when something is missing.
    """
    config = settings.load(state_dir)
    rows = processes.status(config)
    certificates = processes.certificates(config)
    answers = processes.api_answers(config) if config.runs_control else None
    space = room.look(config)
    if as_json:
        click.echo(json.dumps({"auth_url": config.auth_url, "api": answers, "processes": rows, "certificates": certificates,
                               "space": space}))
    else:
        table = Table("process", "pid", "up for", "memory (MiB)", "log")
        for row in rows:
            table.add_row(row["name"], str(row["pid"] or "-"), f"{row['seconds']:.0f} s" if row["pid"] else "-",
                          f"{row['memory_mib']:.0f}" if row["pid"] else "-", row["log"])
        Console().print(table)
        due = Table("certificate", "expires in")
        for row in certificates:
            due.add_row(row["name"], f"{row['days']:.1f} days")
        Console().print(due)
        for problem in space["problems"]:
            click.echo(problem)
        if answers is not None:
            click.echo(f"{config.auth_url} {'answers' if answers else 'does not answer'}")
    if answers is False or not all(row["pid"] for row in rows):
        sys.exit(1)


@click.command()
@click.option("--demo", is_flag=True, help="As the user demo instead of admin.")
@click.pass_obj
def env(state_dir: Path | None, demo: bool) -> None:
    """Print what points OpenStack clients at the cloud: eval "$(brume env)"."""
    config = settings.load(state_dir)
    clouds = config.path("clouds.yaml")
    if not clouds.exists():
        raise click.ClickException(f"there is no cloud in {config.state_dir}: run `brume up` first")
    click.echo(f"export OS_CLIENT_CONFIG_FILE='{clouds}'\nexport OS_CLOUD={'brume-demo' if demo else 'brume'}")


def _strangers(config: settings.Config, steps: Steps) -> dict[str, list[str]]:
    """What runs on which host that a restored state does not know; "?": its agent has not said so yet."""
    with steps("look for servers that the backup does not know"):
        return backup.strangers_heard(config)


def _print_summary(config: settings.Config, steps: Steps) -> None:
    if not config.runs_control:
        console.print(f"\nHost {config.host_name} of the cloud {config.name} is up; its replicas are "
                      f"{', '.join(f'{place.name} ({place.address})' for place in config.replicas)}.")
        return
    console.print(f"\nThe cloud answers at [bold]{config.auth_url}[/] (gRPC on port {config.grpc_port}); "
                  f"up in {sum(steps.seconds.values()):.1f} s.")
    if notice := processes.notice(config):
        console.print(f"[yellow]{notice}[/]")
    console.print(f"  clouds.yaml   {config.path('clouds.yaml')}  (clouds brume and brume-demo)")
    console.print(f"  openrc        {config.path('openrc')}")
    brume = "brume" if config.state_dir == settings.DEFAULT_STATE_DIR else f"brume --state-dir {config.state_dir}"
    console.print(f'  any client    eval "$({brume} env)"\n  first server  {brume} demo')
