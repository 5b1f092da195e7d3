"""`brume doctor`: what is out of step in the cloud and why; with --repair what can be put right is."""
import json
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import click

from control.cli import credentials
from control.kernel import config as settings


@click.command()
@click.option("--repair", is_flag=True, help="Put right what can be. Each repair looks again first.")
@click.option("--check", "checks", multiple=True, metavar="NAME", help="Only this check; may be repeated.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@click.pass_obj
def doctor(state_dir: Path | None, repair: bool, checks: tuple[str, ...], as_json: bool) -> None:
    """Say what is out of step in the cloud, and why. Ends with status 1 where anything is, or is left."""
    config = settings.load(state_dir)
    if not config.path("admin.password").exists():
        raise click.ClickException(f"there is no cloud in {config.state_dir}: run `brume up` first, or name another --state-dir")
    admin = credentials.ensure(config)["admin"].session(config)
    if repair:
        report = admin.request("POST", "doctor", "/v1/repairs", {"checks": list(checks)})
    else:
        query = urlencode([("check", name) for name in checks])
        report = admin.request("GET", "doctor", "/v1/findings" + (f"?{query}" if query else ""))
    if as_json:
        click.echo(json.dumps(report, indent=1))
    else:
        _print(report)
    sys.exit(1 if report["findings"] else 0)


def _print(report: dict[str, Any]) -> None:
    for finding in report.get("repaired", ()):
        click.echo(f"Repaired: {finding['subject']}: {finding['what']}.")
    for finding in report["findings"]:
        click.echo(f"{finding['severity'].upper()} {finding['check']}: {finding['subject']}: {finding['what']}.\n"
                   f"    {finding['why']}\n    {'--repair' if finding['repairable'] else 'To do'}: {finding['remedy']}")
    count = len(report["findings"])
    if count:
        click.echo(f"{count} {'thing is' if count == 1 else 'things are'} out of step.")
    elif "checks" in report:
        click.echo(f"All is in step: {len(report['checks'])} checks found nothing.")
    else:
        click.echo("All is in step.")
