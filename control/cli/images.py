"""`brume images`: public cloud images by name, and the small guest where none can be downloaded.

Everything goes through the REST API as the cloud's admin. An image that fails on its way is deleted again.
"""
import contextlib
import hashlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import click
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table

from control.cli import credentials
from control.cli.session import RestError, Session
from control.cli.steps import Steps, console
from control.image import catalogue, download
from control.image.guest.build import BuildError, Guest, build
from control.kernel import config as settings
from control.kernel.config import Config

#: The name of the small guest's image: what `brume demo` boots.
GUEST_NAME = "tiny"

_CHUNK = 1024 * 1024


class Rest(Protocol):
    """The part of a Session that is used here."""

    def request(self, method: str, service: str, path: str, body: Any = None, *,
                headers: dict[str, str] | None = None) -> Any: ...


@click.group()
def images() -> None:
    """Images to make servers from: public ones by name, or the small guest built here."""


_CATALOGUE = click.option("--catalogue", "file", type=click.Path(exists=True, dir_okay=False, path_type=Path),
                          help="Another catalogue file (YAML).")


@images.command("list")
@_CATALOGUE
@click.pass_obj
def list_command(state_dir: Path | None, file: Path | None) -> None:
    """Show the catalogue, and which of its images the cloud has."""
    try:
        present = {image["name"] for image in _all_images(_admin(settings.load(state_dir)))}
    except (RestError, OSError, click.ClickException):
        present = None       # no cloud runs here: the catalogue is shown all the same
    table = Table("Name", "System", "Login", "Disk", "Memory", *(("In the cloud",) if present is not None else ()), box=None)
    rows = [(entry.name, entry.os, entry.user, f"{entry.min_disk} GiB", f"{entry.min_ram} MiB")
            for entry in catalogue.load(file).values()]
    for row in [*rows, (GUEST_NAME, "The small guest (brume images build)", "root", "1 GiB", "128 MiB")]:
        table.add_row(*row, *(("yes" if row[0] in present else "",) if present is not None else ()))
    click.echo(_text(table), nl=False)


@images.command("import")
@click.argument("name")
@click.option("--as", "image_name", metavar="IMAGE", help="Name of the image in the cloud.  [default: NAME]")
@click.option("--private", is_flag=True, help="For the admin's project only, not for all.")
@_CATALOGUE
@click.pass_obj
def import_command(state_dir: Path | None, name: str, image_name: str | None, private: bool, file: Path | None) -> None:
    """Download a public image of the catalogue, check it and upload it to the cloud.

    A download that is cut continues where it was, also in the next run.
    """
    config = settings.load(state_dir)
    session = _admin(config)
    entry = catalogue.find(catalogue.load(file), name)
    with _bars() as bars:
        image_id = import_entry(config, session, entry, image_name or name, "private" if private else "public", bars)
    console.print(f"Image [bold]{image_name or name}[/] is ready; log in to its servers as [bold]{entry.user}[/].")
    click.echo(image_id)


@images.command("build")
@click.pass_obj
def build_command(state_dir: Path | None) -> None:
    """Build the small guest from Debian packages and upload it as the public image "tiny"."""
    config = settings.load(state_dir)
    click.echo(build_and_upload(config, _admin(config), Steps()))


def build_and_upload(config: Config, session: Session, steps: Steps) -> str:
    """Make the small guest an image of the cloud, unless this build is one already; the image's id. Older builds stay."""
    with steps("build the small guest"):
        guest = build_guest(config)
    with steps("upload the small guest"):
        return ensure_image(session, guest.disk, GUEST_NAME, "public", "qcow2", {
            "min_disk": 0, "min_ram": 128, "os_distro": "debian", "os_admin_user": "root",
            "description": f"The small guest of Brume: Linux {guest.version} with busybox and an SSH server"})


def build_guest(config: Config) -> Guest:
    """The small guest's files. Raises click.ClickException with what is to be done."""
    try:
        return build(config.path("guest"))
    except BuildError as error:
        raise click.ClickException(str(error)) from error


def import_entry(config: Config, session: Rest, entry: catalogue.Entry, name: str, visibility: str, bars: Progress) -> str:
    """Download an entry of the catalogue and make it an image; the image's id.

    Raises what download.fetch raises, and RestError where the cloud refuses it.
    """
    session.request("GET", "image", "/v2/images?limit=1")     # before gigabytes come: is there a cloud, and does it know us
    checksum = catalogue.checksum_of(download.fetch_text(entry.checksums), entry.url.rsplit("/", 1)[1])
    path = download.fetch(entry.url, config.path("downloads"), checksum, _show(bars, f"download {entry.name}"))
    image_id = ensure_image(session, path, name, visibility, entry.format, {
        **entry.properties, "os_admin_user": entry.user, "min_disk": entry.min_disk, "min_ram": entry.min_ram,
        "source": entry.url}, _show(bars, f"upload {entry.name}"))
    path.unlink()
    return image_id


def ensure_image(session: Rest, path: Path, name: str, visibility: str, disk_format: str, properties: Mapping[str, Any],
                 progress: download.Progress = lambda done, total: None) -> str:
    """Upload a file as an image unless the cloud has just that; the image's id. Raises RestError."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha512").hexdigest()
    for image in _all_images(session, f"?status=active&os_hash_value={digest}"):
        if image["name"] == name and image["visibility"] == visibility:
            return image["id"]
    image = session.request("POST", "image", "/v2/images", {
        "name": name, "visibility": visibility, "disk_format": disk_format, "container_format": "bare", **properties})
    size = path.stat().st_size
    try:
        session.request("PUT", "image", f"/v2/images/{image['id']}/file", _pieces(path, size, progress), headers={
            "Content-Type": "application/octet-stream", "Content-Length": str(size), "X-OpenStack-Image-Size": str(size)})
    except BaseException:
        with contextlib.suppress(RestError):
            session.request("DELETE", "image", f"/v2/images/{image['id']}")
        raise
    return image["id"]


def _admin(config: Config) -> Session:
    """A session of the cloud's admin. Raises click.ClickException where there is no cloud; makes nothing."""
    if not config.path("admin.password").exists():
        raise click.ClickException(f"there is no cloud in {config.state_dir}: run `brume up` first, or name another --state-dir")
    return credentials.ensure(config)["admin"].session(config)


def _all_images(session: Rest, query: str = "") -> Iterator[dict[str, Any]]:
    """Every image that a query finds, page by page."""
    path = f"/v2/images{query}"
    while path:
        answer = session.request("GET", "image", path)
        yield from answer["images"]
        path = answer.get("next", "")


def _pieces(path: Path, size: int, progress: download.Progress) -> Iterator[bytes]:
    done = 0
    with path.open("rb") as file:
        while data := file.read(_CHUNK):
            yield data
            done += len(data)
            progress(done, size)


def _bars() -> Progress:
    return Progress(TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn(),
                    console=console)


def _show(bars: Progress, what: str) -> Callable[[int, int | None], None]:
    task: list[Any] = []

    def show(done: int, total: int | None) -> None:
        if not task:
            task.append(bars.add_task(what, total=total))
        bars.update(task[0], completed=done, total=total)
    return show


def _text(table: Table) -> str:
    """A table as plain text, for a terminal or a pipe alike."""
    from rich.console import Console
    with (plain := Console(width=120, highlight=False)).capture() as captured:
        plain.print(table)
    return captured.get()
