"""Serves roles and which of them imply which. An implication never leads back to where it began."""
import uuid

from google.protobuf.empty_pb2 import Empty

from control.identity import access
from control.identity.holdings import expand
from control.identity.model import (
    IMPLICATION,
    PROJECT,
    ROLE,
    apply_update,
    check_name,
    check_resource,
    missing,
    new_resource,
    rename,
    require,
    require_domain,
    take_name,
)
from control.identity.removal import refuse_immutable, remove_role
from control.kernel.database import Database, Transaction
from control.kernel.errors import Invalid
from control.kernel.listing import page, select
from control.kernel.rpc import Call
from protos.identity.v1 import roles_pb2 as pb
from protos.identity.v1.records_pb2 import Implication


class Roles:
    """identity.v1.Roles."""

    def __init__(self, db: Database):
        self._db = db

    async def CreateRole(self, request: pb.CreateRoleRequest, call: Call) -> pb.CreateRoleResponse:
        role = new_resource(request.role)
        role.id = uuid.uuid4().hex
        check_name("role", role.name)
        check_resource(role)

        def decide(transaction: Transaction) -> None:
            if role.domain_id:
                require_domain(transaction, role.domain_id)
                transaction.guard_exists(PROJECT, role.domain_id)
            take_name(transaction, "role", role.domain_id, role.name, role.id)
            transaction.put(ROLE, role)

        await self._db.transact(decide)
        return pb.CreateRoleResponse(role=role)

    async def ListRoles(self, request: pb.ListRolesRequest, call: Call) -> pb.ListRolesResponse:
        access.require_reader(call, "list_roles")
        roles = self._db.cache.all(ROLE)
        if not any(parameter.key == "domain_id" for parameter in request.filters):
            roles = [role for role in roles if not role.domain_id]
        return listed(select(roles, request.filters), request.limit, request.marker)

    async def GetRole(self, request: pb.GetRoleRequest, call: Call) -> pb.GetRoleResponse:
        access.require_reader(call, "get_role")
        return pb.GetRoleResponse(role=require(self._db, ROLE, request.role_id))

    async def UpdateRole(self, request: pb.UpdateRoleRequest, call: Call) -> pb.UpdateRoleResponse:
        def decide(transaction: Transaction) -> pb.Role:
            role = require(transaction, ROLE, request.role_id)
            if set(request.update_mask.paths) - {"options"}:
                refuse_immutable("role", role)
            before = role.name
            apply_update(role, request.role, request.update_mask.paths, ("domain_id",))
            check_name("role", role.name)
            check_resource(role)
            rename(transaction, "role", role.domain_id, before, role.name, role.id)
            transaction.put(ROLE, role)
            return role

        return pb.UpdateRoleResponse(role=await self._db.transact(decide))

    async def DeleteRole(self, request: pb.DeleteRoleRequest, call: Call) -> Empty:
        await remove_role(self._db, request.role_id)
        return Empty()

    # Implications

    async def ListRoleInferences(self, request: pb.ListRoleInferencesRequest, call: Call) -> pb.ListRoleInferencesResponse:
        access.require_reader(call, "list_role_inference_rules")
        priors = sorted({row.prior_role_id for row in self._db.cache.all(IMPLICATION)})
        found = (self._inferences(role_id) for role_id in priors if self._db.get(ROLE, role_id) is not None)
        return pb.ListRoleInferencesResponse(role_inferences=[rule for rule in found if rule.implies])

    async def ListImpliedRoles(self, request: pb.ListImpliedRolesRequest, call: Call) -> pb.ListImpliedRolesResponse:
        access.require_reader(call, "list_implied_roles")
        require(self._db, ROLE, request.prior_role_id)
        return pb.ListImpliedRolesResponse(role_inference=self._inferences(request.prior_role_id))

    async def CreateImpliedRole(self, request: pb.CreateImpliedRoleRequest, call: Call) -> pb.ImpliedRoleResponse:
        def decide(transaction: Transaction) -> pb.RoleInference:
            prior = require(transaction, ROLE, request.prior_role_id)
            implied = require(transaction, ROLE, request.implied_role_id)
            if implied.name == "admin" and not implied.domain_id:
                raise Invalid("identity.implication.admin", f"Invalid implied role: {implied.id} cannot be implied.")
            if implied.domain_id and not prior.domain_id:
                raise access.forbidden("identity.implication.domain", f"the role {implied.name} is private to a domain, and "
                                                                      f"{prior.name} is none's")
            if prior.id == implied.id or prior.id in {role.id for role in expand(self._db, [implied.id])}:
                raise Invalid("identity.implication.circle",
                              f"Invalid implied role: {implied.name} implies {prior.name} already.")
            for role in (prior, implied):
                transaction.guard_exists(ROLE, role.id)
            transaction.put(IMPLICATION, Implication(prior_role_id=prior.id, implied_role_id=implied.id))
            return pb.RoleInference(prior_role=_summary(prior), implies=_summary(implied))

        return pb.ImpliedRoleResponse(role_inference=await self._db.transact(decide, serial="identity/implications"))

    async def GetImpliedRole(self, request: pb.GetImpliedRoleRequest, call: Call) -> pb.ImpliedRoleResponse:
        access.require_reader(call, "get_implied_role")
        return pb.ImpliedRoleResponse(role_inference=self._inference(request.prior_role_id, request.implied_role_id))

    async def CheckImpliedRole(self, request: pb.CheckImpliedRoleRequest, call: Call) -> Empty:
        access.require_reader(call, "check_implied_role")
        self._inference(request.prior_role_id, request.implied_role_id)
        return Empty()

    async def DeleteImpliedRole(self, request: pb.DeleteImpliedRoleRequest, call: Call) -> Empty:
        def decide(transaction: Transaction) -> None:
            self._inference(request.prior_role_id, request.implied_role_id)
            transaction.delete(IMPLICATION, request.prior_role_id, request.implied_role_id)

        await self._db.transact(decide)
        return Empty()

    def _inference(self, prior_id: str, implied_id: str) -> pb.RoleInference:
        prior, implied = require(self._db, ROLE, prior_id), require(self._db, ROLE, implied_id)
        if self._db.get(IMPLICATION, prior_id, implied_id) is None:
            raise missing("implied role", f"{prior_id} implies {implied_id}")
        return pb.RoleInference(prior_role=_summary(prior), implies=_summary(implied))

    def _inferences(self, prior_id: str) -> pb.RoleInferences:
        implied = (self._db.get(ROLE, row.implied_role_id) for row in self._db.cache.by(IMPLICATION, "prior", prior_id))
        return pb.RoleInferences(prior_role=_summary(require(self._db, ROLE, prior_id)),
                                 implies=[_summary(role) for role in implied if role is not None])


def listed(roles: list[pb.Role], limit: int = 0, marker: str = "") -> pb.ListRolesResponse:
    """One page of roles, by name."""
    rows, next_marker = page(roles, limit=limit, marker=marker, sort=[(lambda role: role.name, False)])
    return pb.ListRolesResponse(roles=rows, next_page_marker=next_marker)


def _summary(role: pb.Role) -> pb.RoleSummary:
    return pb.RoleSummary(id=role.id, name=role.name)
