"""`brume audit`: what was changed, when, by whom; and whether the journal that says so is whole."""
import json
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from control.audit import reading
from control.audit.cadf import event
from control.audit.journal import state
from control.cli import processes
from control.cli.steps import progress_bar
from control.kernel import config as settings

_directory = click.option("--journal", "directory", type=click.Path(exists=True, file_okay=False, path_type=Path),
                          help="A journal's directory.  [default: the one in the state directory]")
_as_json = click.option("--json", "as_json", is_flag=True, help="As JSON.")


@click.group()
def audit() -> None:
    """Look at the audit journal: who changed what, from what, to what."""


def _filters(command: Callable) -> Callable:
    for option in (click.option("--since", metavar="TIME", default="", help="From a time on: 2026-01-31 or 2026-01-31T12:00."),
                   click.option("--request", default="", metavar="ID", help="Of one request: req-..."),
                   click.option("--actor", default="", help="Of a user's id, or user:ID, agent:HOST, reconciler:NAME..."),
                   click.option("--id", "thing", default="", help="Of one thing."),
                   click.option("--kind", default="", help="Of a kind: ServerRecord, compute.v1.ServerRecord."),
                   _directory):
        command = option(command)
    return click.pass_obj(command)


@audit.command()
@click.option("-n", "--last", type=click.IntRange(1), help="Only the last ones.")
@_as_json
@_filters
def show(state_dir: Path | None, directory: Path | None, as_json: bool, last: int | None, **filters: str) -> None:
    """Show changes. In JSON each is one line, with what was before and after."""
    rows: Iterator[dict[str, Any]] | list[dict[str, Any]] = _selected(_journal(state_dir, directory), **filters)
    if last:
        rows = list(deque(rows, maxlen=last))
    if as_json:
        for entry in rows:
            click.echo(json.dumps(entry))
        return
    console = Console(highlight=False)
    table = Table("time", "actor", "request", "kind", "id", "change", box=None)
    for entry in rows:
        table.add_row(entry["time"], entry["actor"] or "unknown", entry["request"] or "-", entry["kind"].rpartition(".")[2],
                      entry["id"], _summary(entry))
    console.print(table)


@audit.command()
@click.option("--anchor", "anchors", multiple=True, metavar="HASH", help="A hash that the journal must have; may be repeated.")
@click.option("--against", type=click.Path(exists=True, file_okay=False, path_type=Path), metavar="DIRECTORY",
              help="Compare with another replica's journal, too.")
@_directory
@_as_json
@click.pass_obj
def verify(state_dir: Path | None, directory: Path | None, anchors: tuple[str, ...], against: Path | None, as_json: bool) -> None:
    """Check that nothing in the journal was changed, removed or put in. Exit status 1 when something was.

    Whoever rewrites the journal up to its end is found out by a hash that you kept elsewhere (--anchor; `brume audit head`
    prints today's) or by the journal of another replica (--against), and by nothing else.
    """
    journal = _journal(state_dir, directory)
    with progress_bar("verify", reading.size(journal), quiet=as_json) as advance:
        verdict = reading.verify(journal, anchors, advance)
    comparison = None
    if against:
        with progress_bar("compare", reading.size(journal) + reading.size(against), quiet=as_json) as advance:
            comparison = reading.compare(journal, against, advance)
    holds = verdict.holds and (comparison is None or comparison.agrees)
    if as_json:
        click.echo(json.dumps({"holds": holds, "files": verdict.files, "entries": verdict.entries, "first": verdict.first,
                               "head": verdict.head, "gaps": verdict.gaps, "missing_anchors": verdict.missing_anchors,
                               "problems": verdict.problems, "more_problems": verdict.more_problems,
                               **({"compared": comparison.compared, "differences": comparison.differences}
                                  if comparison else {})}))
    else:
        for problem in verdict.problems:
            click.echo(problem)
        if verdict.more_problems:
            click.echo(f"and {verdict.more_problems} more")
        for anchor in verdict.missing_anchors:
            click.echo(f"the journal has no entry with the hash {anchor}: it was rewritten, or cut off at an end")
        for difference in comparison.differences if comparison else ():
            click.echo(difference)
        if comparison and not comparison.compared:
            click.echo("the two journals have no change in common")
        click.echo(f"{'The journal is whole' if holds else 'THE JOURNAL DOES NOT HOLD'}: {verdict.entries} entries from number "
                   f"{max(verdict.first, 0)} on in {verdict.files} files, {verdict.gaps} gaps, head {verdict.head}"
                   + (f"; {comparison.compared} changes compared" if comparison else ""))
    if not holds:
        sys.exit(1)


@audit.command()
@_directory
@_as_json
@click.pass_obj
def head(state_dir: Path | None, directory: Path | None, as_json: bool) -> None:
    """Print the hash of the journal's last entry: keep it elsewhere, and give it to `verify --anchor` later."""
    journal = _journal(state_dir, directory)
    now = state(journal)
    if as_json:
        click.echo(json.dumps({"head": now["head"], "sequence": now["sequence"] - 1, "revision": now["revision"],
                               "fault": now["fault"], "seconds_old": round(time.time() - now["time"], 1)}))
        return
    click.echo(now["head"])
    if now["fault"]:
        click.echo(f"the journal is not being written: {now['fault']}", err=True)


@audit.command()
@click.option("--cadf", is_flag=True, required=True, help="As CADF events (DSP0262), one JSON object a line.")
@_filters
def export(state_dir: Path | None, directory: Path | None, cadf: bool, **filters: str) -> None:
    """Print changes in the shape that a collector of audit trails takes."""
    name = settings.load(state_dir).name
    for entry in _selected(_journal(state_dir, directory), **filters):
        click.echo(json.dumps(event(entry, name)))


def _journal(state_dir: Path | None, directory: Path | None) -> Path:
    """The journal that was named, or this machine's: of several replicas here, the first one's."""
    config = settings.load(state_dir)
    journal = directory or (processes.replica_configs(config)[0] if config.replicas_here > 1 else config).audit_dir
    reading.size(journal)
    return journal


def _selected(journal: Path, kind: str, thing: str, actor: str, request: str, since: str) -> Iterator[dict[str, Any]]:
    for entry in reading.entries(journal):
        if (entry["type"] == "change" and entry["time"] >= since
                and (not kind or kind in (entry["kind"], entry["kind"].rpartition(".")[2]))
                and (not thing or thing in (entry["id"], entry["key"]))
                and (not actor or actor in (entry["actor"], entry["actor"].partition(":")[2]))
                and (not request or entry["request"] == request)):
            yield entry


def _summary(entry: dict[str, Any]) -> str:
    before, after = entry["before"], entry["after"]
    if before is None or after is None:
        return "deleted" if after is None else "found" if "since" in entry else "created"
    return ", ".join(sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))) or "rewritten"
