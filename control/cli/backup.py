"""`brume backup` and `brume restore`: all that a cloud is in one file, and a cloud of it again, with its running servers."""
import asyncio
import contextlib
import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from control.backup import archive, making, restoring, sealing
from control.backup.state import NOT_HEARD
from control.cli import processes
from control.cli.steps import Steps, console, progress_bar
from control.kernel import config as settings
from control.kernel.config import Config
from control.kernel.errors import Unavailable

#: Seconds that an agent has to say what runs on its host that it was not told of.
HEARD_WITHIN = 30.0

_passphrase = click.option("--passphrase", type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="FILE",
                           help="File whose first line is the passphrase of an encrypted backup.")
_as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


class _Backup(click.Group):
    """`brume backup FILE` makes one; `brume backup verify FILE` checks one."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ("-h", "--help"):
            args = ["make", *args]
        return super().parse_args(ctx, args)


@click.group(cls=_Backup)
def backup() -> None:
    """Write all of a running cloud into one file: `brume backup FILE`; check one: `brume backup verify FILE`.

    The file has everything that opens the cloud: keep it as you keep its passwords, or encrypt it.
    """


@backup.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--encrypt", type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="PASSPHRASE_FILE",
              help="Encrypt it under the passphrase in the first line of a file.")
@click.option("--no-images", is_flag=True, help="Leave out the data of images.")
@click.option("--force", is_flag=True, help="Replace FILE where it is there.")
@_as_json
@click.pass_obj
def make(state_dir: Path | None, file: Path, encrypt: Path | None, no_images: bool, force: bool, as_json: bool) -> None:
    """Write a backup of the running cloud to FILE."""
    config = settings.load(state_dir)
    if not (config.pki_dir / "ca.crt").exists():
        raise click.ClickException(f"there is no cloud in {config.state_dir}: name another with --state-dir")
    if file.exists() and not force:
        raise click.ClickException(f"{file} is there already: name another, or give --force")
    with contextlib.ExitStack() as stack:
        try:
            manifest = asyncio.run(making.make(
                config, file, sealing.passphrase(encrypt) if encrypt else None, images=not no_images,
                replicas=[one.state_dir for one in processes.replica_configs(config)] if config.replicas_here > 1 else (),
                begin=lambda total: stack.enter_context(progress_bar("backup", total, quiet=as_json))))
        except OSError as error:
            raise click.ClickException(f"{file}: {error.strerror or error}; nothing is left of it") from error
    _say(manifest, file, "has", as_json)


@backup.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@_passphrase
@_as_json
def verify(file: Path, passphrase: Path | None, as_json: bool) -> None:
    """Check that every part of a backup is there and is what it was."""
    with progress_bar("verify", file.stat().st_size, quiet=as_json) as advance:
        manifest = archive.verify(file, sealing.passphrase(passphrase) if passphrase else None, advance)
    _say(manifest, file, "is whole:", as_json)


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@_passphrase
@click.option("--replicas", type=click.Choice(["1", "3", "5"]), help="Replicas on this machine.  [default: as in the backup]")
@click.option("--replace", is_flag=True, help="Replace the cloud in the state directory, and keep it aside. Its processes are "
              "stopped, its servers run on.")
@_as_json
@click.pass_obj
def restore(state_dir: Path | None, file: Path, passphrase: Path | None, replicas: str | None, replace: bool,
            as_json: bool) -> None:
    """Make a cloud of a backup, in an empty state directory. `brume up` starts it, and adopts the servers that run."""
    place = Path(state_dir or os.environ.get("BRUME_STATE_DIR") or settings.DEFAULT_STATE_DIR).absolute()
    steps = Steps(quiet=as_json)
    there = Config(state_dir=place)
    if replace and processes.supervisor_pid(there):
        with steps("stop the cloud's processes; its servers run on"):
            processes.stop_supervisor(there)
    elif not processes.wait_for_lock(there, 0.0):
        raise click.ClickException(f"the cloud in {place} runs: give --replace to stop it and put the backup in its place")
    with progress_bar("restore", 2 * file.stat().st_size, quiet=as_json) as advance:
        manifest, aside = restoring.unpack(file, sealing.passphrase(passphrase) if passphrase else None, place, replace=replace,
                                           progress=advance)
    config = settings.load(place, replicas_here=int(replicas) if replicas else None)
    settings.save(config)
    if config.etcd:
        with steps("load the state into etcd"):
            asyncio.run(restoring.load_pending(config))
    if as_json:
        click.echo(json.dumps({**making.describe(manifest), "state_dir": str(place), "replaced": str(aside) if aside else None}))
        return
    console.print(f"The cloud of {manifest['made_at']} is in {place}"
                  + (f", what was there in {aside}" if aside else "") + ". `brume up` starts it. Users log in anew.")


def load_restored(config: Config, steps: Steps) -> bool:
    """Load the state of a restore that waits for it, with nothing but etcd running; whether there was one."""
    if restoring.pending(config) is None:
        return False
    with steps("load the restored state"), _running_etcd(config):
        asyncio.run(restoring.load_pending(config))
    return True


@contextlib.contextmanager
def _running_etcd(config: Config) -> Iterator[None]:
    """The member that founds the cloud's etcd, as its supervisor would start it; the others join it later."""
    member = next(each for each in processes.plan(config) if each["name"].startswith("etcd"))
    inside = ["nsenter", f"--net={member['namespace']}"] if member.get("namespace") else []
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ETCD_")}
    with config.path("log", f"{member['name']}.log").open("ab") as log:
        process = subprocess.Popen([*inside, *member["argv"]], env=environment | member["environment"],
                                   stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        yield
    except Unavailable as error:
        raise click.ClickException(f"{error}\n{processes.log_ends(config, member['name'])}") from error
    finally:
        process.terminate()
        process.wait()


def strangers(config: Config) -> dict[str, list[str]]:
    """Servers that run and that the state does not know, by host: made after the backup that it was restored from."""
    async def read() -> dict[str, list[str]]:
        from control.kernel import etcd_server, fleet
        from control.kernel.etcd_store import EtcdStore
        store = EtcdStore(config.etcd_endpoints, etcd_server.client_credentials(config.pki_dir))
        try:
            records, _ = await store.scan(fleet.HOST.prefix)
        finally:
            await store.close()
        hosts = [fleet.HOST.message.FromString(record.value) for record in records if record.value is not None]
        return {host.name: list(host.strangers) for host in hosts if host.strangers}
    return asyncio.run(read())


def strangers_heard(config: Config) -> dict[str, list[str]]:
    """As strangers(), once this machine's own agent has said what runs here, or HEARD_WITHIN is over."""
    limit = time.monotonic() + HEARD_WITHIN
    while True:
        found = strangers(config)
        if NOT_HEARD not in found.get(config.host_name, ()) or time.monotonic() > limit:
            return found
        time.sleep(0.3)


def _say(manifest: dict[str, Any], file: Path, verb: str, as_json: bool) -> None:
    said = making.describe(manifest)
    if as_json:
        click.echo(json.dumps({**said, "file": str(file)}))
        return
    click.echo(f"{file} {verb} the cloud {said['cloud']} at {said['made_at']} (revision {said['revision']}), "
               f"{sum(said['records'].values())} records, {said['images']} images, {said['bytes'] / 2**20:.1f} MiB in "
               f"{said['parts']} parts")
