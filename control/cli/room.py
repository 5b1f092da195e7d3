"""What room a cloud has on this machine: in etcd, on its disks; and whether the audit journal is written."""
import asyncio
import dataclasses
import time
from typing import Any

from control.audit.journal import state
from control.audit.required import SILENCE
from control.cli import processes
from control.kernel import disks
from control.kernel.config import Config
from control.kernel.errors import Unavailable
from control.kernel.etcd_maintenance import WARN_SHARE

#: Seconds that etcd has to answer.
PATIENCE = 2.0


def look(config: Config) -> dict[str, Any]:
    """`etcd`: a row per member that answers; `disks`: one per file system; `journals`; `problems`: what to act on, in words."""
    here = processes.replica_configs(config) if config.replicas_here > 1 else [config]
    members = _etcd(config) if config.runs_control else []
    found = disks.look([config.state_dir, *(one.path(part) for one in here for part in ("etcd", "images", "audit")),
                        config.path("agent")])
    journals = {str(one.audit_dir): state(one.audit_dir) for one in here} if config.runs_control else {}
    problems = []
    for member in members:
        if member["full"]:
            problems.append(f"etcd at {member['endpoint']} is full, nothing can be changed: maintenance makes room, unless the "
                            "state itself has outgrown etcd_quota_mib")
        elif member["share"] >= WARN_SHARE:
            problems.append(f"etcd at {member['endpoint']} uses {member['share']:.0%} of its quota: raise etcd_quota_mib")
    problems += [f"{disk.path}: {disk.free >> 20} MiB of {disk.total >> 20} MiB are free: make room"
                 for disk in found if disk.low]
    for path, now in journals.items():
        if now["fault"] or time.time() - now["time"] > SILENCE:
            problems.append(f"the audit journal in {path} is not being written: {now['fault'] or 'it gives no sign of life'}")
    return {"etcd": members, "disks": [{**dataclasses.asdict(disk), "path": str(disk.path), "low": disk.low} for disk in found],
            "journals": journals, "problems": problems}



def _etcd(config: Config) -> list[dict[str, Any]]:
    from control.kernel import etcd_maintenance, etcd_server
    from control.kernel.etcd_client import AioRpcError, Client

    async def ask() -> list[dict[str, Any]]:
        client = Client(config.etcd_endpoints, etcd_server.client_credentials(config.pki_dir), patience=PATIENCE)
        try:
            rooms = await etcd_maintenance.rooms(client, config.etcd_quota_mib << 20)
        finally:
            await client.close()
        return [{**dataclasses.asdict(room), "share": round(room.share, 3)} for room in rooms]

    if not (config.pki_dir / "ca.key").exists():
        return []
    try:
        return asyncio.run(ask())
    except (Unavailable, AioRpcError):
        return []
