"""`brume drain` and `brume undrain`: a host is emptied for maintenance, and opened again."""
import json
import sys
import time
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from control.cli import credentials
from control.cli.session import RestError, Session
from control.kernel import config as settings

#: Seconds between two looks at how far a drain is.
LOOK_EVERY = 1.0


@click.command()
@click.argument("host")
@click.option("--reason", default="", help='Shown with the closed host.  [default: "drained"]')
@click.option("--at-once", type=click.IntRange(1, 100), default=None, help="Servers on their way at a time.  [default: 4]")
@click.option("--wait", is_flag=True, help="Until the host is empty. Exit status 1 where what is left has no place elsewhere.")
@click.option("--json", "as_json", is_flag=True, help="As JSON; with --wait the last word.")
@click.pass_obj
def drain(state_dir: Path | None, host: str, reason: str, at_once: int | None, wait: bool, as_json: bool) -> None:
    """Close HOST and have all its servers leave it: each is stopped, its disk copied, and started elsewhere.

    Says how far it is when it is asked again. `brume plan drain HOST` says beforehand where they would go.
    """
    admin = _admin(state_dir)
    path = f"/os-hosts/{host}/drain"
    asked = {key: value for key, value in (("reason", reason), ("at_once", at_once)) if value}
    known = _known(admin, path)
    if known is None or asked:
        known = admin.request("POST", "compute", path, {"drain": ({"reason": known["reason"]} if known else {}) | asked})["drain"]
    if wait and as_json:
        known = _until_idle(admin, path, known, lambda _: None)
    elif wait:
        known = _with_a_bar(admin, path, known)
    if as_json:
        click.echo(json.dumps(known, indent=1))
    else:
        _print(known)
    if wait and known["status"] != "done":
        sys.exit(1)


@click.command()
@click.argument("host")
@click.pass_obj
def undrain(state_dir: Path | None, host: str) -> None:
    """Open HOST to new servers again. What has not begun to leave it stays."""
    _admin(state_dir).request("DELETE", "compute", f"/os-hosts/{host}/drain")


def _admin(state_dir: Path | None) -> Session:
    config = settings.load(state_dir)
    if not config.path("admin.password").exists():
        raise click.ClickException(f"there is no cloud in {config.state_dir}: run `brume up` first, or name another --state-dir")
    return credentials.ensure(config)["admin"].session(config)


def _known(admin: Session, path: str) -> dict[str, Any] | None:
    """The drain of a host that is being drained, or was and is not open again."""
    try:
        return admin.request("GET", "compute", path)["drain"]
    except RestError as error:
        if error.status != 404:
            raise
        return None


def _with_a_bar(admin: Session, path: str, known: dict[str, Any]) -> dict[str, Any]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
               TextColumn("{task.fields[now]}"))
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(f"drain {known['host']}", total=known["total"], now="")

        def show(drain: dict[str, Any]) -> None:
            steps = [server["step"] for server in drain["servers"]]
            now = ", ".join(f"{steps.count(step)} {step}" for step in dict.fromkeys(steps))
            progress.update(task, completed=drain["done"], total=drain["total"], now=now)

        return _until_idle(admin, path, known, show)


def _until_idle(admin: Session, path: str, known: dict[str, Any], show: Any) -> dict[str, Any]:
    """Look until nothing is on its way any more; what was seen last."""
    while True:
        show(known)
        if known["status"] != "running":
            return known
        time.sleep(LOOK_EVERY)
        known = admin.request("GET", "compute", path)["drain"]


def _print(known: dict[str, Any]) -> None:
    click.echo(f"Host {known['host']} ({known['reason']}): {known['status']}, {known['done']} of {known['total']} servers have "
               "left.")
    if known["servers"]:
        table = Table("Server", "Step", "To", "Problem", box=None)
        for server in known["servers"]:
            table.add_row(server["server_id"], server["step"], server["target"], server["problem"])
        Console(highlight=False).print(table)
