"""Deletes a thing together with what depends on it, however much that is.

A crash in between leaves the thing with fewer dependents; deleting it again goes on from there.
"""
from collections.abc import Callable

from control.identity.access import forbidden
from control.identity.model import (
    ACCESS_RULE,
    ACCESS_TOKEN,
    ASSIGNMENT,
    CONSUMER,
    CREDENTIAL,
    DIRECTORY_ENTRY,
    DOMAIN_CONFIG,
    ENDPOINT_GRANT,
    ENTRY,
    GROUP,
    IDENTITY_PROVIDER,
    IMPLICATION,
    LIMIT,
    LOGIN,
    MEMBER,
    POLICY_PLACE,
    PROJECT,
    PROTOCOL,
    REGISTERED_LIMIT,
    REQUEST_TOKEN,
    ROLE,
    SECRET,
    TRUST,
    USER,
    free_name,
    limit_entry,
    missing,
    require,
)
from control.kernel.cache import Kind
from control.kernel.database import Database, Transaction
from protos.identity.v1.projects_pb2 import Project
from protos.identity.v1.roles_pb2 import Role

#: Dependents deleted in one commit; etcd takes 128 operations.
CHUNK = 100

Dependents = list[tuple[Kind, tuple[str, ...]]]


async def remove(db: Database, check: Callable[[Transaction], None], dependents: Callable[[], Dependents],
                 delete: Callable[[Transaction], None]) -> None:
    """Delete all dependents and, with the last of them, the thing itself.

    `check` raises where the thing must not be deleted; `delete` writes its own deletion. A dependent whose making raced
    with the deletion is swept afterwards: since making one requires the thing to exist, no other can follow.
    """
    def step(transaction: Transaction) -> bool:
        check(transaction)
        found = dependents()
        for kind, parts in found[:CHUNK]:
            transaction.delete(kind, *parts)
        if len(found) > CHUNK:
            return False
        delete(transaction)
        return True

    def sweep(transaction: Transaction) -> bool:
        found = dependents()
        for kind, parts in found[:CHUNK]:
            transaction.delete(kind, *parts)
        return not found

    while not await db.transact(step):
        pass
    while not await db.transact(sweep):
        pass


def _assignments(db: Database, index: str, value: str) -> Dependents:
    return [(ASSIGNMENT, ASSIGNMENT.id_of(row)) for row in db.cache.by(ASSIGNMENT, index, value)]


def _credentials(db: Database, index: str, value: str) -> Dependents:
    found: Dependents = []
    for record in db.cache.by(CREDENTIAL, index, value):
        credential = record.application_credential
        found += [(CREDENTIAL, (credential.id,)), (ENTRY, ("application credential", credential.user_id, credential.name))]
    return found


def _secrets(db: Database, index: str, value: str) -> Dependents:
    return [(SECRET, (record.credential.id,)) for record in db.cache.by(SECRET, index, value)]


def _trusts(db: Database, index: str, value: str) -> Dependents:
    return [found for trust in db.cache.by(TRUST, index, value) for found in ((TRUST, (trust.id,)), *trusts_below(db, trust.id))]


def trusts_below(db: Database, trust_id: str) -> Dependents:
    """The trusts that were made from one, and from those."""
    return _trusts(db, "source", trust_id)


def _delegations(db: Database, index: str, value: str) -> Dependents:
    """The request tokens and access tokens of a consumer, a user or a project."""
    return [*((REQUEST_TOKEN, (row.id,)) for row in db.cache.by(REQUEST_TOKEN, index, value)),
            *((ACCESS_TOKEN, (row.access_token.id,)) for row in db.cache.by(ACCESS_TOKEN, index, value))]


def limits(db: Database, index: str, value: str) -> Dependents:
    """Limits with the keys that hold their places."""
    return [found for limit in db.cache.by(LIMIT, index, value)
            for found in ((LIMIT, (limit.id,)), (ENTRY, ENTRY.id_of(limit_entry(limit))))]


def of_endpoint(db: Database, endpoint_id: str) -> Dependents:
    """What an endpoint takes along: that projects were given it, and policies for it."""
    return [*((ENDPOINT_GRANT, ENDPOINT_GRANT.id_of(grant)) for grant in
              db.cache.by(ENDPOINT_GRANT, "given", f"endpoint/{endpoint_id}")),
            *((POLICY_PLACE, POLICY_PLACE.id_of(place)) for place in db.cache.by(POLICY_PLACE, "endpoint", endpoint_id))]


def of_service(db: Database, service_id: str) -> Dependents:
    """What a service takes along beside its endpoints: limits of its resources, and policies for it."""
    registered = [found for limit in db.cache.by(REGISTERED_LIMIT, "service", service_id)
                  for found in ((REGISTERED_LIMIT, (limit.id,)), (ENTRY, ENTRY.id_of(limit_entry(limit))))]
    return [*limits(db, "service", service_id), *registered,
            *((POLICY_PLACE, POLICY_PLACE.id_of(place)) for place in db.cache.by(POLICY_PLACE, "service", service_id))]


async def remove_user(db: Database, user_id: str) -> None:
    def delete(transaction: Transaction) -> None:
        user = require(transaction, USER, user_id).user
        transaction.delete(USER, user_id)
        free_name(transaction, "user", user.domain_id, user.name, user_id)

    await remove(db, lambda transaction: _require(transaction, USER, user_id), lambda: [
        *_assignments(db, "actor", f"user/{user_id}"),
        *((MEMBER, (row.group_id, user_id)) for row in db.cache.by(MEMBER, "user", user_id)),
        *((ACCESS_RULE, (row.access_rule.id,)) for row in db.cache.by(ACCESS_RULE, "user", user_id)),
        *([(LOGIN, (user_id,))] if db.get(LOGIN, user_id) else []),
        *_credentials(db, "user", user_id), *_secrets(db, "user", user_id),
        *_trusts(db, "trustor", user_id), *_trusts(db, "trustee", user_id),
        *_delegations(db, "user", user_id)], delete)


async def remove_group(db: Database, group_id: str) -> None:
    def delete(transaction: Transaction) -> None:
        group = require(transaction, GROUP, group_id)
        transaction.delete(GROUP, group_id)
        transaction.delete(ENTRY, "group", group.domain_id, group.name)

    await remove(db, lambda transaction: _require(transaction, GROUP, group_id), lambda: [
        *_assignments(db, "actor", f"group/{group_id}"),
        *((MEMBER, (group_id, row.user_id)) for row in db.cache.by(MEMBER, "group", group_id))], delete)


async def remove_project(db: Database, project_id: str) -> None:
    def check(transaction: Transaction) -> None:
        project = require(transaction, PROJECT, project_id).project
        refuse_immutable("domain" if project.is_domain else "project", project)
        if project.is_domain and project.enabled:
            raise forbidden("identity.project.domain", "cannot delete an enabled project that acts as a domain")
        if db.cache.count(PROJECT, "parent", project_id):
            raise forbidden("identity.project.leaf",
                            f"cannot delete the project {project_id} since it is not a leaf in the hierarchy")
        transaction.guard_empty(ENTRY, "child", project_id)

    def delete(transaction: Transaction) -> None:
        project = require(transaction, PROJECT, project_id).project
        transaction.delete(PROJECT, project_id)
        transaction.delete(ENTRY, "domain" if project.is_domain else "project", project.domain_id, project.name)
        if project.parent_id and project.parent_id != project.domain_id:
            transaction.delete(ENTRY, "child", project.parent_id, project_id)
        if project.is_domain:
            for noun in ("user", "group", "project", "role"):
                transaction.guard_empty(ENTRY, noun, project_id)

    target = "domain" if (found := db.get(PROJECT, project_id)) and found.project.is_domain else "project"
    await remove(db, check, lambda: [
        *_assignments(db, "target", f"{target}/{project_id}"), *_credentials(db, "project", project_id),
        *_secrets(db, "project", project_id), *_trusts(db, "project", project_id), *limits(db, "project", project_id),
        *_delegations(db, "project", project_id),
        *((ENDPOINT_GRANT, ENDPOINT_GRANT.id_of(grant)) for grant in db.cache.by(ENDPOINT_GRANT, "project", project_id)),
        *([(DOMAIN_CONFIG, (project_id,))] if db.get(DOMAIN_CONFIG, project_id) else [])], delete)


async def remove_consumer(db: Database, consumer_id: str) -> None:
    def check(transaction: Transaction) -> None:
        if transaction.get(CONSUMER, consumer_id) is None:
            raise missing("consumer", consumer_id)

    await remove(db, check, lambda: _delegations(db, "consumer", consumer_id),
                 lambda transaction: transaction.delete(CONSUMER, consumer_id))


async def remove_role(db: Database, role_id: str) -> None:
    def check(transaction: Transaction) -> None:
        refuse_immutable("role", require(transaction, ROLE, role_id))

    def delete(transaction: Transaction) -> None:
        role = require(transaction, ROLE, role_id)
        transaction.delete(ROLE, role_id)
        transaction.delete(ENTRY, "role", role.domain_id, role.name)

    await remove(db, check, lambda: [
        *_assignments(db, "role", role_id),
        *((IMPLICATION, IMPLICATION.id_of(row)) for index in ("prior", "implied")
          for row in db.cache.by(IMPLICATION, index, role_id))], delete)


async def remove_identity_provider(db: Database, idp_id: str) -> None:
    """Delete an identity provider: its users, its protocols, and itself last. Who makes another of the name inherits nothing."""
    for record in db.cache.by(USER, "idp", idp_id):
        await remove_user(db, record.user.id)

    def delete(transaction: Transaction) -> None:
        provider = require(transaction, IDENTITY_PROVIDER, idp_id).identity_provider
        transaction.delete(IDENTITY_PROVIDER, idp_id)
        for remote_id in provider.remote_ids:
            free_name(transaction, "remote id", "", remote_id, idp_id)

    await remove(db, lambda transaction: _require(transaction, IDENTITY_PROVIDER, idp_id), lambda: [
        *((PROTOCOL, PROTOCOL.id_of(row)) for row in db.cache.by(PROTOCOL, "idp", idp_id)),
        *((MEMBER, MEMBER.id_of(row)) for row in db.cache.by(MEMBER, "idp", idp_id))], delete)


async def remove_domain(db: Database, domain_id: str) -> None:
    """Delete a disabled domain: its providers, users, groups, projects from the leaves up, its roles, and itself last."""
    for provider in db.cache.by(IDENTITY_PROVIDER, "domain", domain_id):
        await remove_identity_provider(db, provider.identity_provider.id)
    for record in db.cache.by(USER, "domain", domain_id):
        await remove_user(db, record.user.id)
    for group in db.cache.by(GROUP, "domain", domain_id):
        await remove_group(db, group.id)
    while leaves := [record.project.id for record in db.cache.by(PROJECT, "domain", domain_id)
                     if not db.cache.count(PROJECT, "parent", record.project.id)]:
        for project_id in leaves:
            await remove_project(db, project_id)
    for role in db.cache.by(ROLE, "domain", domain_id):
        await remove_role(db, role.id)
    while entries := db.cache.by(DIRECTORY_ENTRY, "domain", domain_id)[:CHUNK]:
        def forget(transaction: Transaction, rows=tuple(entries)) -> None:
            for row in rows:
                transaction.delete(DIRECTORY_ENTRY, row.id)

        await db.transact(forget)
    await remove_project(db, domain_id)


def refuse_immutable(noun: str, resource: Role | Project) -> None:
    """Raise Denied for a role, a project or a domain that must not change."""
    if "immutable" in resource.options and resource.options["immutable"] is True:
        raise forbidden(f"identity.{noun}.immutable", f"the {noun} {resource.name} is immutable")


def _require(transaction: Transaction, kind: Kind, identifier: str) -> None:
    require(transaction, kind, identifier)
