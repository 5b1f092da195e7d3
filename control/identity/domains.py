"""Serves domains, which are kept as projects that act as domains."""
import uuid

from google.protobuf.empty_pb2 import Empty

from control.identity import access
from control.identity.model import (
    PROJECT,
    apply_update,
    check_name,
    check_resource,
    domain_of,
    new_resource,
    rename,
    require_domain,
    take_name,
)
from control.identity.removal import refuse_immutable, remove_domain
from control.kernel import clock
from control.kernel.database import Database, Transaction
from control.kernel.listing import page, select
from control.kernel.rpc import Call
from protos.identity.v1 import domains_pb2 as pb
from protos.identity.v1.projects_pb2 import Project
from protos.identity.v1.records_pb2 import ProjectRecord


class Domains:
    """identity.v1.Domains."""

    def __init__(self, db: Database):
        self._db = db

    async def CreateDomain(self, request: pb.CreateDomainRequest, call: Call) -> pb.CreateDomainResponse:
        domain, identifier = new_resource(request.domain), uuid.uuid4().hex
        check_name("domain", domain.name)
        check_resource(domain)
        project = Project(id=identifier, name=domain.name, description=domain.description, enabled=domain.enabled, is_domain=True,
                          tags=domain.tags, options=domain.options)
        for key, value in domain.extra.items():
            project.extra[key].CopyFrom(value)

        def decide(transaction: Transaction) -> None:
            take_name(transaction, "domain", "", domain.name, identifier)
            transaction.put(PROJECT, ProjectRecord(project=project))

        await self._db.transact(decide)
        return pb.CreateDomainResponse(domain=domain_of(project))

    async def ListDomains(self, request: pb.ListDomainsRequest, call: Call) -> pb.ListDomainsResponse:
        access.require_reader(call, "list_domains")
        domains = [domain_of(record.project) for record in self._db.cache.by(PROJECT, "acts_as", "domain")]
        rows, marker = page(select(domains, request.filters), limit=request.limit, marker=request.marker,
                            sort=[(lambda domain: domain.name, False)])
        return pb.ListDomainsResponse(domains=rows, next_page_marker=marker)

    async def GetDomain(self, request: pb.GetDomainRequest, call: Call) -> pb.GetDomainResponse:
        if request.domain_id not in (call.caller.project_domain_id, call.caller.domain_id):
            access.require_reader(call, "get_domain")
        return pb.GetDomainResponse(domain=domain_of(require_domain(self._db, request.domain_id).project))

    async def UpdateDomain(self, request: pb.UpdateDomainRequest, call: Call) -> pb.UpdateDomainResponse:
        def decide(transaction: Transaction) -> ProjectRecord:
            record = require_domain(transaction, request.domain_id)
            if set(request.update_mask.paths) - {"options"}:
                refuse_immutable("domain", record.project)
            before, was_enabled = record.project.name, record.project.enabled
            apply_update(record.project, request.domain, request.update_mask.paths)
            check_name("domain", record.project.name)
            check_resource(record.project)
            rename(transaction, "domain", "", before, record.project.name, record.project.id)
            if was_enabled and not record.project.enabled:
                record.revoked_before.CopyFrom(clock.now())
            transaction.put(PROJECT, record)
            return record

        return pb.UpdateDomainResponse(domain=domain_of((await self._db.transact(decide)).project))

    async def DeleteDomain(self, request: pb.DeleteDomainRequest, call: Call) -> Empty:
        domain = require_domain(self._db, request.domain_id).project
        refuse_immutable("domain", domain)
        if domain.enabled:
            raise access.forbidden("identity.domain.enabled", "cannot delete a domain that is enabled, please disable it first")
        await remove_domain(self._db, request.domain_id)
        return Empty()
