"""`brume certificate` and `brume join`: how a machine becomes part of a cloud that another one began.

A bundle is a tar file with what the machine needs in its state directory: certificates, and its settings. A replica's holds
the authority's key, since every replica signs; a host's holds nothing but the host's own. Whoever has a bundle can be that
machine, so it is 0600 and belongs nowhere once it was joined.
"""
import dataclasses
import datetime
import io
import ipaddress
import json
import re
import tarfile
from pathlib import Path

import click

from control.cli import processes
from control.kernel import config as settings
from control.kernel.config import Config, ReplicaPlace, write_private

#: Bytes that a bundle may have: some certificates and settings.
MAX_BUNDLE = 1 << 20

#: What a bundle may hold. Anything else in it is refused.
_MEMBERS = re.compile(r"cloud\.json|policy\.yaml|etcd\.joined|seeded|(admin|demo)\.password"
                      r"|pki/[a-zA-Z0-9*][a-zA-Z0-9.*-]*\.(crt|key)")


@click.group()
def certificate() -> None:
    """Write the certificates of another machine of the cloud into a file, for `brume join` there."""


@certificate.command()
@click.argument("name")
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="The file.  [default: NAME.tar]")
@click.pass_obj
def replica(state_dir: Path | None, name: str, output: Path | None) -> None:
    """For the machine of one of [[replicas]]. Whoever has the file has the cloud: it holds the authority's key."""
    config = settings.load(state_dir)
    if name not in (place.name for place in config.replicas):
        raise click.ClickException(f"[[replicas]] has no {name}: add it to the settings with its address, and run `brume up "
                                   "--config` with them here first")
    _write_bundle(output or Path(f"{name}.tar"), _replica_files(config, _as_machine(config, name)))


@certificate.command()
@click.argument("name")
@click.option("--address", default="", help="Where other hosts reach it.")
@click.option("--availability-zone", default="", help="The zone that its servers are in.")
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="The file.  [default: NAME.tar]")
@click.pass_obj
def host(state_dir: Path | None, name: str, address: str, availability_zone: str, output: Path | None) -> None:
    """For a hypervisor host: its agent may attach under this name, and do nothing else."""
    from control.kernel import pki
    config = settings.load(state_dir)
    if not config.replicas and ipaddress.ip_address(config.agent_listen).is_loopback:
        raise click.ClickException(f"agents of other machines cannot reach {config.agent_listen}: set agent_listen to an address "
                                   "of this machine, and run `brume up --config` with it first")
    places = config.replicas or (ReplicaPlace(config.host_name, config.agent_listen),)
    if name in (place.name for place in places):
        raise click.ClickException(f"{name} is a replica: agent = true in its entry of [[replicas]] makes it a host, too")
    there = Config(host=name, host_address=address, availability_zone=availability_zone, name=config.name, port=config.port,
                   hypervisor=config.hypervisor, replicas=tuple(ReplicaPlace(place.name, place.address) for place in places))
    own, key = pki.issue(config.pki_dir, name, life=datetime.timedelta(days=config.certificate_days))
    _write_bundle(output or Path(f"{name}.tar"), {
        "cloud.json": settings.saved(there.check()), "pki/ca.crt": config.path("pki", "ca.crt").read_bytes(),
        f"pki/{name}.crt": own, f"pki/{name}.key": key})


@click.command()
@click.argument("bundle", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.pass_obj
def join(state_dir: Path | None, bundle: Path) -> None:
    """Take up what `brume certificate` wrote for this machine; then `brume up` starts what it is for the cloud."""
    config = settings.load(state_dir)
    files = _read_bundle(bundle)
    own = config.path("pki", "ca.crt")
    if own.exists() and own.read_bytes() != files["pki/ca.crt"]:
        raise click.ClickException(f"{config.state_dir} belongs to another cloud: `brume down --purge` it first, or choose "
                                   "another with --state-dir")
    if processes.supervisor_pid(config):
        raise click.ClickException("this machine's part of the cloud runs: `brume down` it first")
    config.state_dir.mkdir(mode=0o711, parents=True, exist_ok=True)
    for name, data in files.items():
        write_private(config.path(name), data)
    joined = json.loads(files["cloud.json"])
    click.echo(f"This machine is {joined['host']} of the cloud {joined.get('name', 'brume')}: `brume up` starts its part.")


def prepare_replica_here(config: Config, own: Config) -> None:
    """Make the state directory of a replica on this machine, as a bundle would; the first takes over what one alone had."""
    first = own.place == config.places[0]
    for part in ("etcd", "images", "audit") if first else ():
        if config.path(part).exists() and not own.path(part).exists():
            own.state_dir.mkdir(mode=0o711, exist_ok=True)
            config.path(part).rename(own.path(part))
    for name, data in _replica_files(config, own).items():
        if name != "etcd.joined" or not first:
            write_private(own.path(name), data)


def _as_machine(config: Config, name: str) -> Config:
    """The cloud's settings as another replica's machine has them."""
    default = Config()
    own = {key: getattr(default, key) for key in settings.OWN_ADDRESS
           if config.place and getattr(config, key) == config.place.address}
    return dataclasses.replace(config, host=name, availability_zone=default.availability_zone,
                               libvirt_uri=default.libvirt_uri, **own)


def _replica_files(config: Config, own: Config) -> dict[str, bytes]:
    """What a replica's state directory holds at first; `own` are its settings."""
    # There is a cluster to join, and a cloud that has its first flavors and image.
    files = {"cloud.json": settings.saved(own), "etcd.joined": b"", "seeded": b"flavors\nimage\n"}
    files |= {f"pki/{name}": config.path("pki", name).read_bytes() for name in ("ca.crt", "ca.key")}
    for name in ("admin.password", "demo.password", "policy.yaml"):      # all that bootstrapping may need, whoever does it
        if config.path(name).exists() and not (name == "policy.yaml" and own.policy_file):
            files[name] = config.path(name).read_bytes()
    return files


def _write_bundle(path: Path, files: dict[str, bytes]) -> None:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode, entry.mtime = len(content), 0o600, int(datetime.datetime.now().timestamp())
            tar.addfile(entry, io.BytesIO(content))
    write_private(path, data.getvalue())
    click.echo(f"{path}: carry it to the machine by a way that nobody reads along (scp), `brume join` it there, then delete it.")


def _read_bundle(path: Path) -> dict[str, bytes]:
    """Name -> content. Raises ClickException for anything that `brume certificate` does not write."""
    files: dict[str, bytes] = {}
    if path.stat().st_size > MAX_BUNDLE:
        raise click.ClickException(f"{path} is too large for a bundle")
    try:
        with tarfile.open(path, "r:") as tar:
            for entry in tar:
                content = tar.extractfile(entry) if entry.isreg() else None
                if content is None or not _MEMBERS.fullmatch(entry.name):
                    raise click.ClickException(f"{path} is no bundle of `brume certificate`: it holds {entry.name!r}")
                files[entry.name] = content.read()
    except tarfile.TarError as error:
        raise click.ClickException(f"{path} is no bundle of `brume certificate`: {error}") from error
    if not {"cloud.json", "pki/ca.crt"} <= files.keys():
        raise click.ClickException(f"{path} is no bundle of `brume certificate`: settings or the authority are missing")
    return files
