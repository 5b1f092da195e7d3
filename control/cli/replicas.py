"""`brume replicas`: which processes of the control plane live, what release each runs, and what it leads."""
import asyncio
import json
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from control.kernel import config as settings
from control.kernel import etcd_server
from control.kernel.config import Config
from control.kernel.etcd_store import EtcdStore
from control.kernel.replicas import LEADERSHIP, REPLICA
from protos.internal.v1.replicas_pb2 import Leadership, ReplicaRecord

#: Seconds that etcd has to answer.
PATIENCE = 3.0


@click.command()
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@click.option("--config", "config_file", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Settings (TOML).")
@click.pass_obj
def replicas(state_dir: Path | None, as_json: bool, config_file: Path | None) -> None:
    """List the replicas of the control plane that live, with the shards of roles that each leads."""
    records, leaders = asyncio.run(_read(settings.load(state_dir, config_file)))
    rows = [{"id": record.id, "host": record.host_name, "address": record.address, "version": record.version,
             "started_at": record.started_at.ToJsonString(), "leads": _leads(record.id, leaders)} for record in records]
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    table = Table("host", "address", "version", "started", "leads")
    for row in rows:
        leads = ", ".join(f"{role} {' '.join(map(str, shards))}" for role, shards in row["leads"].items())  # type: ignore[attr-defined]
        table.add_row(str(row["host"]), str(row["address"]), str(row["version"]), str(row["started_at"])[:19], leads)
    Console().print(table)


async def _read(config: Config) -> tuple[list[ReplicaRecord], list[Leadership]]:
    store = EtcdStore(config.etcd_endpoints, etcd_server.client_credentials(config.pki_dir), patience=PATIENCE)
    try:
        records = [ReplicaRecord.FromString(record.value or b"") for record in (await store.scan(REPLICA.prefix))[0]]
        leaders = [Leadership.FromString(record.value or b"") for record in (await store.scan(LEADERSHIP.prefix))[0]]
    finally:
        await store.close()
    return sorted(records, key=lambda record: record.host_name), leaders


def _leads(replica_id: str, leaders: list[Leadership]) -> dict[str, list[int]]:
    """The shards that a replica leads, by role."""
    own: dict[str, list[int]] = {}
    for each in sorted(leaders, key=lambda each: (each.role, each.shard)):
        if each.replica_id == replica_id:
            own.setdefault(each.role, []).append(each.shard)
    return own
