"""Serves registered limits and limits of projects and domains (the flat model): kept here, counted by the services that ask."""
import uuid

from google.protobuf.empty_pb2 import Empty

from control.identity import access
from control.identity.model import (
    ENTRY,
    LIMIT,
    MAX_DESCRIPTION,
    PROJECT,
    REGION,
    REGISTERED_LIMIT,
    SERVICE,
    limit_entry,
    require,
    require_domain,
)
from control.kernel.database import Database, Transaction
from control.kernel.errors import Conflict, Invalid
from control.kernel.listing import page, select
from control.kernel.rpc import Call
from protos.identity.v1 import limits_pb2 as pb

#: Limits in one request, characters of a resource's name, and the greatest limit.
MAX_AT_ONCE, MAX_NAME, MAX_LIMIT = 30, 255, 2**31 - 1

AnyLimit = pb.RegisteredLimit | pb.Limit


class Limits:
    """identity.v1.Limits."""

    def __init__(self, db: Database):
        self._db = db

    async def CreateRegisteredLimits(self, request: pb.CreateRegisteredLimitsRequest,
                                     call: Call) -> pb.CreateRegisteredLimitsResponse:
        limits = [_new(wanted, wanted.default_limit, wanted.HasField("default_limit"))
                  for wanted in _some(request.registered_limits)]

        def decide(transaction: Transaction) -> None:
            for limit in limits:
                self._take(transaction, limit)
                transaction.put(REGISTERED_LIMIT, limit)

        await self._db.transact(decide)
        return pb.CreateRegisteredLimitsResponse(registered_limits=limits)

    async def ListRegisteredLimits(self, request: pb.ListRegisteredLimitsRequest, call: Call) -> pb.ListRegisteredLimitsResponse:
        rows, marker = page(select(self._db.cache.all(REGISTERED_LIMIT), request.filters), limit=request.limit,
                            marker=request.marker)
        return pb.ListRegisteredLimitsResponse(registered_limits=rows, next_page_marker=marker)

    async def GetRegisteredLimit(self, request: pb.GetRegisteredLimitRequest, call: Call) -> pb.GetRegisteredLimitResponse:
        return pb.GetRegisteredLimitResponse(registered_limit=require(self._db, REGISTERED_LIMIT, request.registered_limit_id))

    async def UpdateRegisteredLimit(self, request: pb.UpdateRegisteredLimitRequest,
                                    call: Call) -> pb.UpdateRegisteredLimitResponse:
        def decide(transaction: Transaction) -> pb.RegisteredLimit:
            limit = require(transaction, REGISTERED_LIMIT, request.registered_limit_id)
            before = limit_entry(limit)
            _change(limit, request.registered_limit, request.update_mask.paths,
                    ("service_id", "region_id", "resource_name", "default_limit", "description"))
            _check(limit, limit.default_limit, limit.HasField("default_limit"))
            if limit_entry(limit) != before:
                self._refuse_used(transaction, before.name)
                transaction.delete(ENTRY, before.noun, before.scope, before.name)
                self._take(transaction, limit)
            transaction.put(REGISTERED_LIMIT, limit)
            return limit

        return pb.UpdateRegisteredLimitResponse(registered_limit=await self._db.transact(decide))

    async def DeleteRegisteredLimit(self, request: pb.DeleteRegisteredLimitRequest, call: Call) -> Empty:
        def decide(transaction: Transaction) -> None:
            entry = limit_entry(require(transaction, REGISTERED_LIMIT, request.registered_limit_id))
            self._refuse_used(transaction, entry.name)
            transaction.delete(REGISTERED_LIMIT, request.registered_limit_id)
            transaction.delete(ENTRY, entry.noun, entry.scope, entry.name)

        await self._db.transact(decide)
        return Empty()

    # Limits of projects and domains

    async def CreateLimits(self, request: pb.CreateLimitsRequest, call: Call) -> pb.CreateLimitsResponse:
        limits = [_new(wanted, wanted.resource_limit, wanted.HasField("resource_limit")) for wanted in _some(request.limits)]

        def decide(transaction: Transaction) -> None:
            for limit in limits:
                self._take(transaction, limit)
                registered = transaction.get(ENTRY, "registered limit", "", limit_entry(limit).name)
                if registered is None:
                    raise access.forbidden("identity.limit.unregistered", f"no limit of {limit.resource_name} is registered for "
                                                                          f"the service and region")
                transaction.guard_exists(REGISTERED_LIMIT, registered.id)
                transaction.put(LIMIT, limit)

        await self._db.transact(decide)
        return pb.CreateLimitsResponse(limits=limits)

    async def ListLimits(self, request: pb.ListLimitsRequest, call: Call) -> pb.ListLimitsResponse:
        rows = (limit for limit in self._db.cache.all(LIMIT) if _visible(limit, call))
        found, marker = page(select(rows, request.filters), limit=request.limit, marker=request.marker)
        return pb.ListLimitsResponse(limits=found, next_page_marker=marker)

    async def GetLimit(self, request: pb.GetLimitRequest, call: Call) -> pb.GetLimitResponse:
        limit = require(self._db, LIMIT, request.limit_id)
        if not _visible(limit, call):
            raise access.denied("get_limit")
        return pb.GetLimitResponse(limit=limit)

    async def UpdateLimit(self, request: pb.UpdateLimitRequest, call: Call) -> pb.UpdateLimitResponse:
        def decide(transaction: Transaction) -> pb.Limit:
            limit = require(transaction, LIMIT, request.limit_id)
            _change(limit, request.limit, request.update_mask.paths, ("resource_limit", "description"))
            _check(limit, limit.resource_limit, limit.HasField("resource_limit"))
            transaction.put(LIMIT, limit)
            return limit

        return pb.UpdateLimitResponse(limit=await self._db.transact(decide))

    async def DeleteLimit(self, request: pb.DeleteLimitRequest, call: Call) -> Empty:
        def decide(transaction: Transaction) -> None:
            entry = limit_entry(require(transaction, LIMIT, request.limit_id))
            transaction.delete(LIMIT, request.limit_id)
            transaction.delete(ENTRY, entry.noun, entry.scope, entry.name)

        await self._db.transact(decide)
        return Empty()

    async def GetLimitModel(self, request: pb.GetLimitModelRequest, call: Call) -> pb.GetLimitModelResponse:
        return pb.GetLimitModelResponse(model=pb.LimitModel(
            name="flat", description="Limit enforcement and validation does not take project hierarchy into consideration."))

    def _take(self, transaction: Transaction, limit: AnyLimit) -> None:
        """Take the place of a new limit. Raises Invalid for what it names and is not there, Conflict where the place is taken."""
        if transaction.get(SERVICE, limit.service_id) is None:
            raise Invalid("identity.limit.service", f"Could not find service: {limit.service_id}.")
        transaction.guard_exists(SERVICE, limit.service_id)
        if limit.region_id:
            if transaction.get(REGION, limit.region_id) is None:
                raise Invalid("identity.limit.region", f"Could not find region: {limit.region_id}.")
            transaction.guard_exists(REGION, limit.region_id)
        if isinstance(limit, pb.Limit):
            if bool(limit.project_id) == bool(limit.domain_id):
                raise Invalid("identity.limit.owner", "Invalid input for field 'limits': exactly one of project_id and domain_id "
                                                      "is required.")
            if limit.project_id:
                require(transaction, PROJECT, limit.project_id)
            else:
                require_domain(transaction, limit.domain_id)
            transaction.guard_exists(PROJECT, limit.project_id or limit.domain_id)
        entry = limit_entry(limit)
        if transaction.get(ENTRY, entry.noun, entry.scope, entry.name) is not None:
            raise Conflict("identity.limit.duplicate", f"Conflict occurred attempting to store {entry.noun} - there is one of "
                                                       f"{limit.resource_name} for the service and region.")
        transaction.put(ENTRY, entry)

    def _refuse_used(self, transaction: Transaction, place: str) -> None:
        if any(limit_entry(limit).name == place for limit in transaction.rows(LIMIT)):
            raise access.forbidden("identity.limit.used", "there are limits of projects or domains that differ from it")


def _some(limits) -> list:
    if not 1 <= len(limits) <= MAX_AT_ONCE:
        raise Invalid("identity.limits", f"Invalid input: 1 to {MAX_AT_ONCE} limits at once.")
    return list(limits)


def _new(wanted, amount: int, given: bool):
    """A limit as it was sent, with an id of its own."""
    limit = type(wanted)()
    limit.CopyFrom(wanted)
    limit.id = uuid.uuid4().hex
    _check(limit, amount, given)
    return limit


def _check(limit: AnyLimit, amount: int, given: bool) -> None:
    if not given or not -1 <= amount <= MAX_LIMIT:
        raise Invalid("identity.limit.amount", f"Invalid input: a limit is -1 to {MAX_LIMIT}, and required.")
    if not 1 <= len(limit.resource_name) <= MAX_NAME or "/" in limit.resource_name:
        raise Invalid("identity.limit.resource_name",
                      f"Invalid input for field 'resource_name': 1 to {MAX_NAME} characters without '/'.")
    if len(limit.description) > MAX_DESCRIPTION:
        raise Invalid("identity.description", f"Invalid input for field 'description': at most {MAX_DESCRIPTION} characters.")
    if limit.HasField("region_id") and not limit.region_id:
        limit.ClearField("region_id")


def _change(limit: AnyLimit, wanted: AnyLimit, paths, changeable: tuple[str, ...]) -> None:
    for path in paths:
        if path in changeable:
            limit.ClearField(path)  # type: ignore[arg-type]
            if not limit.DESCRIPTOR.fields_by_name[path].has_presence or wanted.HasField(path):  # type: ignore[arg-type]
                setattr(limit, path, getattr(wanted, path))
        elif path not in ("id", "links") and getattr(wanted, path) != getattr(limit, path):
            raise Invalid(f"identity.immutable.{path}", f"Cannot change {path}: it is fixed once the limit is made.")


def _visible(limit: pb.Limit, call: Call) -> bool:
    caller = call.caller
    return access.reads_all(caller) or (limit.project_id or limit.domain_id) in (
        set(filter(None, (caller.project_id, caller.domain_id))))
