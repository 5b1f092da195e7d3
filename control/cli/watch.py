"""`brume watch`: what changes of a kind of resources, line by line; it connects again by itself and misses nothing."""
import contextlib
import http.client
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import click

from control.cli import credentials
from control.cli.session import RestError, Session
from control.kernel import config as settings

#: Seconds before the next try to connect.
PAUSE = 1.0

#: Statuses after which another try makes sense: no answer, too many watches or too slow, a replica that stops.
_PASSING = frozenset({0, 401, 429, 502, 503, 504})


@click.command()
@click.argument("kind")
@click.option("--project", default="", metavar="ID", help="What this project would list.  [default: what all projects have]")
@click.option("--from", "revision", type=click.IntRange(0), default=0, metavar="REVISION",
              help="Changes after a list's X-Brume-Revision.  [default: first what there is]")
@click.option("--microversion", default="", metavar="'API X.Y'", help="As OpenStack-API-Version, such as 'compute 2.96'.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per line.")
@click.pass_obj
def watch(state_dir: Path | None, kind: str, project: str, revision: int, microversion: str, as_json: bool) -> None:
    """Show what changes of KIND: servers, networks, ports, images, hypervisors, users..."""
    config = settings.load(state_dir)
    if not config.path("admin.password").exists():
        raise click.ClickException(f"there is no cloud in {config.state_dir}: run `brume up` first, or name another --state-dir")
    session = credentials.ensure(config)["admin"].session(config)
    query = {"project_id": project} if project else {"all_projects": "true"}
    headers = {"OpenStack-API-Version": microversion} if microversion else {}
    with contextlib.suppress(KeyboardInterrupt):
        for event in events(session, kind, query, headers, revision):
            click.echo(json.dumps(event) if as_json else _line(event))


def events(session: Session, kind: str, query: dict[str, str], headers: dict[str, str], revision: int, *,
           pause: Callable[[float], None] = time.sleep) -> Iterator[dict[str, Any]]:
    """Every event, {"type", "revision", "object"}, for ever; bookmarks are kept to oneself.

    Raises RestError where trying again is no use: the revision is too old, the kind is none.
    """
    connected = False
    while True:
        try:
            path = f"/{quote(kind, safe='')}?{urlencode({**query, 'from_revision': str(revision)})}"
            with session.open("watch", path, headers) as answer:
                connected = True
                for name, number, value in parsed(answer):
                    if name == "ERROR":
                        raise RestError(value["code"], value["message"])
                    if name != "BOOKMARK":
                        yield {"type": name, "revision": number, "object": value}
                    revision = number or revision
        except RestError as error:
            if error.status not in _PASSING or not connected:
                raise
        except (OSError, http.client.HTTPException):
            pass
        pause(PAUSE)


def parsed(lines: Any) -> Iterator[tuple[str, int, Any]]:
    """(type, revision or 0, data) of each event of a text/event-stream."""
    fields: dict[str, str] = {}
    for line in lines:
        name, _, value = line.decode().rstrip("\r\n").partition(": ")
        if name:
            fields[name] = value
            continue
        if "data" in fields:
            yield fields.get("event", ""), int(fields.get("id", 0)), json.loads(fields["data"])
        fields = {}


def _line(event: dict[str, Any]) -> str:
    shown = event["object"].get("keypair", event["object"])
    name = shown.get("name") or shown.get("hypervisor_hostname") or ""
    state = shown.get("status") or shown.get("state") or ""
    return f"{event['type']:<9}{shown.get('id') or shown.get('uuid') or '':<37}{state:<10}{name}".rstrip()
