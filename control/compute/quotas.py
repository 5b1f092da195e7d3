"""The servicer of quotas, limits and usage: what a project may have, has, and had. Reads the ledgers; charges nothing."""
from collections.abc import Iterable, Mapping
from typing import Any

from google.protobuf.empty_pb2 import Empty
from google.protobuf.timestamp_pb2 import Timestamp

from control.compute import access, limits, model
from control.compute.model import DEFAULT_QUOTAS, SERVER
from control.kernel import clock, listing, quota
from control.kernel.database import Database, Transaction
from control.kernel.errors import Invalid
from control.kernel.rpc import Call
from protos.compute.v1 import quotas_pb2 as pb
from protos.compute.v1.records_pb2 import ServerRecord
from protos.internal.v1.quota_pb2 import QuotaLedger

#: Seconds of usage that are shown when no span is named.
DEFAULT_SPAN = 28 * 24 * 3600

#: Rows of server usage in one answer at most.
MAX_USAGES = 10_000


class Quotas:
    """Servicer of compute.v1.Quotas."""

    def __init__(self, database: Database):
        self._database = database

    def _ledger(self, project_id: str) -> QuotaLedger:
        return quota.ledger_of(self._database, model.QUOTA, project_id)

    # Quota sets

    async def GetQuotaSet(self, request: pb.GetQuotaSetRequest, call: Call) -> pb.QuotaSetResponse:
        project = access.project_for(call.caller, request.project_id)
        return pb.QuotaSetResponse(quota_set=_quota_set(self._ledger(project), project))

    async def GetQuotaDefaults(self, request: pb.GetQuotaSetRequest, call: Call) -> pb.QuotaSetResponse:
        return pb.QuotaSetResponse(quota_set=_quota_set(QuotaLedger(), request.project_id))

    async def GetQuotaDetail(self, request: pb.GetQuotaSetRequest, call: Call) -> pb.QuotaDetailResponse:
        project = access.project_for(call.caller, request.project_id)
        ledger = self._ledger(project)
        return pb.QuotaDetailResponse(quota_set=pb.QuotaDetailSet(id=project, **{
            name: pb.QuotaDetail(limit=most, in_use=ledger.used.get(name, 0)) for name, most in _limits(ledger).items()}))

    async def UpdateQuotaSet(self, request: pb.UpdateQuotaSetRequest, call: Call) -> pb.QuotaSetResponse:
        project = limits.name(request.project_id, "project")
        wanted = {field.name: value for field, value in request.quota_set.ListFields() if field.name in DEFAULT_QUOTAS}

        def decide(tx: Transaction) -> QuotaLedger:
            ledger = tx.get(quota.LEDGER, model.QUOTA, project) or QuotaLedger(service=model.QUOTA, project_id=project)
            for resource, most in wanted.items():
                used = ledger.used.get(resource, 0)
                if not -1 <= most <= 2**31 - 1:
                    raise Invalid("compute.quota.limit", f"Quota limit {most} for {resource} must be from -1 (no limit) to "
                                                         f"{2**31 - 1}.")
                if 0 <= most < used and not request.quota_set.force:
                    raise Invalid("compute.quota.limit", f"Quota limit {most} for {resource} must be greater than or equal "
                                                         f"to already used and reserved {used}. Give force to set it anyway.")
                ledger.limits[resource] = most
            tx.put(quota.LEDGER, ledger)
            return ledger

        ledger = await self._database.transact(decide, serial=quota.serial(model.QUOTA, project))
        answer = _quota_set(ledger, project)
        answer.ClearField("id")
        return pb.QuotaSetResponse(quota_set=answer)

    async def DeleteQuotaSet(self, request: pb.GetQuotaSetRequest, call: Call) -> Empty:
        def decide(tx: Transaction) -> None:
            ledger = tx.get(quota.LEDGER, model.QUOTA, request.project_id)
            if ledger is not None:
                ledger.limits.clear()
                tx.put(quota.LEDGER, ledger)

        await self._database.transact(decide, serial=quota.serial(model.QUOTA, request.project_id))
        return Empty()

    async def GetQuotaClass(self, request: pb.GetQuotaClassRequest, call: Call) -> pb.QuotaClassResponse:
        return pb.QuotaClassResponse(quota_class_set=_quota_set(QuotaLedger(), request.class_name))

    # Limits

    async def GetLimits(self, request: pb.GetLimitsRequest, call: Call) -> pb.LimitsResponse:
        ledger = self._ledger(access.project_for(call.caller, request.tenant_id))
        most, used = _limits(ledger), ledger.used
        return pb.LimitsResponse(limits=pb.Limits(absolute=pb.AbsoluteLimits(
            instances_max=most["instances"], cores_max=most["cores"], ram_max=most["ram"],
            server_metadata_max=most["metadata_items"], key_pairs_max=most["key_pairs"], server_groups_max=most["server_groups"],
            server_group_members_max=most["server_group_members"], instances_used=used.get("instances", 0),
            cores_used=used.get("cores", 0), ram_used=used.get("ram", 0),
            server_groups_used=used.get("server_groups", 0), image_metadata_max=most["metadata_items"],
            personality_max=most["injected_files"], personality_size_max=most["injected_file_content_bytes"],
            floating_ips_max=-1, security_groups_max=-1, security_group_rules_max=-1)))

    # Usage

    async def ListUsage(self, request: pb.ListUsageRequest, call: Call) -> pb.ListUsageResponse:
        start, end = _span(request)
        projects: dict[str, list[ServerRecord]] = {}
        for server in self._database.cache.all(SERVER):
            if server.created_at.seconds <= end.seconds:
                projects.setdefault(server.project_id, []).append(server)
        rows = [pb.Usage(tenant_id=project) for project in projects]
        page, marker = listing.page(rows, limit=request.limit, marker=request.marker, id_of=lambda row: row.tenant_id)
        detailed = request.detailed in ("1", "true", "True")
        usages = [_usage(row.tenant_id, projects[row.tenant_id], start, end, detailed) for row in page]
        return pb.ListUsageResponse(tenant_usages=usages, next_page_marker=marker)

    async def GetUsage(self, request: pb.GetUsageRequest, call: Call) -> pb.GetUsageResponse:
        project = access.project_for(call.caller, request.project_id)
        start, end = _span(request)
        servers = [server for server in self._database.cache.by(SERVER, "project", project)
                   if server.created_at.seconds <= end.seconds]
        return pb.GetUsageResponse(tenant_usage=_usage(project, servers, start, end, detailed=True) if servers else pb.Usage(
            tenant_id=project, start=start, stop=end))


async def bootstrap(database: Database, project_id: str) -> None:
    """Give the operators' own project no limit of instances, cores and RAM, unless it has a ledger already. Repeatable."""
    def decide(tx: Transaction) -> None:
        if tx.get(quota.LEDGER, model.QUOTA, project_id) is None:
            limits_of = {name: quota.UNLIMITED for name in ("instances", "cores", "ram")}
            tx.put(quota.LEDGER, QuotaLedger(service=model.QUOTA, project_id=project_id, limits=limits_of))

    await database.transact(decide, serial=quota.serial(model.QUOTA, project_id))


def _limits(ledger: QuotaLedger) -> dict[str, int]:
    return {name: quota.limit_of(ledger, DEFAULT_QUOTAS, name) for name in DEFAULT_QUOTAS}


def _quota_set(ledger: QuotaLedger, project: str) -> pb.QuotaSet:
    limits_of: dict[str, Any] = _limits(ledger)
    return pb.QuotaSet(id=project, **limits_of)


def _span(request: pb.ListUsageRequest | pb.GetUsageRequest) -> tuple[Timestamp, Timestamp]:
    end = request.end if request.HasField("end") else clock.now()
    start = request.start if request.HasField("start") else Timestamp(seconds=end.seconds - DEFAULT_SPAN)
    if start.seconds >= end.seconds:
        raise Invalid("compute.usage.span", "Invalid start time. The start time cannot occur after the end time.")
    return start, end


def _usage(project: str, servers: Iterable[ServerRecord], start: Timestamp, end: Timestamp, detailed: bool) -> pb.Usage:
    """What servers used between two moments: each counts from when it was made, or from the start."""
    usage = pb.Usage(tenant_id=project, start=start, stop=end)
    now = clock.now().seconds
    for server in servers:
        hours = max(0, min(end.seconds, now) - max(start.seconds, server.created_at.seconds)) / 3600
        amounts: Mapping[str, int] = {"vcpus": server.flavor.vcpus, "memory_mb": server.flavor.ram_mib,
                                      "local_gb": server.flavor.disk_gib + server.flavor.ephemeral_gib}
        usage.total_hours += hours
        usage.total_vcpus_usage += hours * amounts["vcpus"]
        usage.total_memory_mb_usage += hours * amounts["memory_mb"]
        usage.total_local_gb_usage += hours * amounts["local_gb"]
        if detailed and len(usage.server_usages) < MAX_USAGES:
            usage.server_usages.add(
                instance_id=server.id, name=server.name, tenant_id=project, flavor=server.flavor.name, hours=hours,
                uptime=max(0, now - server.created_at.seconds), started_at=server.created_at, state=model.derive(server).vm_state,
                **amounts)
    return usage
