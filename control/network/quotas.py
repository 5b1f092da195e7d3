"""Limits of projects: the network's part of the quota ledgers, in Neutron's words."""

from google.protobuf.empty_pb2 import Empty

from control.kernel import quota
from control.kernel.caller import Caller
from control.kernel.database import Database, Transaction
from control.kernel.errors import Conflict, Invalid
from control.kernel.listing import page
from control.kernel.rpc import Call
from control.network.attributes import given
from control.network.model import QUOTA, SERVICE, absent
from protos.internal.v1.quota_pb2 import QuotaLedger
from protos.network.v1 import quotas_pb2 as pb
from protos.network.v1.quotas_pb2 import Quota, QuotaDetails

#: Resources that clients ask for and this cloud has none of.
_NONE = ("rbac_policy", "subnetpool")


class Quotas:
    def __init__(self, database: Database):
        self._database = database

    async def ListQuotas(self, request: pb.ListQuotasRequest, call: Call) -> pb.ListQuotasResponse:
        ledgers = [
            ledger
            for ledger in self._database.cache.all(quota.LEDGER)
            if ledger.service == SERVICE
            and ledger.limits
            and (call.caller.is_admin or ledger.project_id == call.caller.project_id)
        ]
        rows, marker = page(ledgers, limit=request.limit, marker=request.marker, id_of=lambda ledger: ledger.project_id)
        return pb.ListQuotasResponse(quotas=[_shown(ledger) for ledger in rows], next_page_marker=marker)

    async def ShowQuota(self, request: pb.ShowQuotaRequest, call: Call) -> pb.ShowQuotaResponse:
        return pb.ShowQuotaResponse(quota=_shown(self._ledger(call.caller, request.project)))

    async def ShowDefaultQuota(self, request: pb.ShowQuotaRequest, call: Call) -> pb.ShowQuotaResponse:
        project_id = self._ledger(call.caller, request.project).project_id
        return pb.ShowQuotaResponse(quota=_shown(QuotaLedger(project_id=project_id)))

    async def ShowQuotaDetails(self, request: pb.ShowQuotaRequest, call: Call) -> pb.ShowQuotaDetailsResponse:
        ledger = self._ledger(call.caller, request.project)
        details = QuotaDetails()
        for resource in (*QUOTA, *_NONE):
            use = getattr(details, resource)
            use.limit = quota.limit_of(ledger, QUOTA, resource)
            use.used = ledger.used.get(resource, 0)
        return pb.ShowQuotaDetailsResponse(quota=details)

    async def UpdateQuota(self, request: pb.UpdateQuotaRequest, call: Call) -> pb.UpdateQuotaResponse:
        names = given(request.quota, request.update_mask, settable=(*QUOTA, *_NONE, "check_limit", "force"), verb="PUT")
        wanted = {name: getattr(request.quota, name) for name in names if name in QUOTA and request.quota.HasField(name)}
        for name, limit in wanted.items():
            if not -1 <= limit <= 2**31 - 1:
                raise Invalid(f"network.quota.{name}", f"Invalid input for {name}: {limit} is not -1 to {2**31 - 1}.")

        def decide(tx: Transaction) -> QuotaLedger:
            ledger = QuotaLedger()
            ledger.CopyFrom(quota.ledger_of(tx, SERVICE, _checked(request.project)))
            for name, limit in wanted.items():
                used = ledger.used.get(name, 0)
                if request.quota.check_limit and not request.quota.force and 0 <= limit < used:
                    raise Conflict(
                        f"network.quota.{name}",
                        f"Quota limit {limit} for {name} is below what project {ledger.project_id} uses: {used}.",
                    )
                ledger.limits[name] = limit
            tx.put(quota.LEDGER, ledger)
            return ledger

        ledger = await self._database.transact(decide, serial=quota.serial(SERVICE, request.project))
        return pb.UpdateQuotaResponse(quota=_shown(ledger))

    async def DeleteQuota(self, request: pb.DeleteQuotaRequest, call: Call) -> Empty:
        def decide(tx: Transaction) -> None:
            ledger = tx.get(quota.LEDGER, SERVICE, _checked(request.project))
            if ledger is not None and ledger.limits:
                ledger.limits.clear()
                tx.put(quota.LEDGER, ledger)

        await self._database.transact(decide, serial=quota.serial(SERVICE, request.project))
        return Empty()

    def _ledger(self, caller: Caller, project_id: str) -> QuotaLedger:
        """The ledger of a project that the caller may see; "tenant" and "project" are the caller's own, as in Neutron."""
        named = caller.project_id if project_id in ("tenant", "project") else _checked(project_id)
        if named != caller.project_id and not caller.is_admin:
            raise absent("quota", project_id)
        return quota.ledger_of(self._database, SERVICE, named)


def _checked(project_id: str) -> str:
    if not 1 <= len(project_id) <= 64:
        raise absent("quota", project_id)
    return project_id


def _shown(ledger: QuotaLedger) -> Quota:
    shown = Quota(project_id=ledger.project_id, tenant_id=ledger.project_id)
    for resource in (*QUOTA, *_NONE):
        setattr(shown, resource, quota.limit_of(ledger, QUOTA, resource))
    return shown
