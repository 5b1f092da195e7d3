"""Makes what a new cloud cannot do without: its first domain, roles, users and catalog. Safe to repeat, and to run twice at once.

What exists is left as it is, but for endpoints, whose addresses follow the cloud's.
"""
import itertools
import logging
import uuid
from collections.abc import Iterable
from urllib.parse import urljoin

from control.identity.catalog import INTERFACES
from control.identity.holdings import SYSTEM
from control.identity.model import (
    ASSIGNMENT,
    DEFAULT_DOMAIN,
    ENDPOINT,
    ENTRY,
    IMPLICATION,
    PROJECT,
    REGION,
    ROLE,
    SERVICE,
    USER,
    id_by_name,
    take_name,
    text,
)
from control.identity.passwords import Passwords
from control.identity.sealing import first_key
from control.kernel.database import Database, Transaction
from protos.identity.v1.catalog_pb2 import Endpoint, Region, Service
from protos.identity.v1.projects_pb2 import Project
from protos.identity.v1.records_pb2 import Assignment, Entry, Implication, ProjectRecord, UserRecord
from protos.identity.v1.roles_pb2 import Role
from protos.identity.v1.users_pb2 import User

log = logging.getLogger(__name__)

#: Each implies the next one.
ROLES = ("admin", "manager", "member", "reader")

#: Ids of services and endpoints are made from their names in this name space, so that every replica makes the same ones.
NAMES = uuid.UUID("6f0f3d0e-8f6b-4c7e-9c0a-3a1d8f3f5b61")


async def bootstrap(db: Database, *, admin_password: str, demo_password: str, public_url: str, region: str = "RegionOne",
                    endpoints: Iterable[tuple[str, str, str]] = (), passwords: Passwords | None = None) -> None:
    """Make what is missing.

    Args:
      admin_password, demo_password: of the users admin and demo if they are made now; a user that exists keeps theirs.
      endpoints: (type, name, url) of each service; a url that is a path is below `public_url`.
    """
    await db.cache.ready.wait()
    hasher = passwords or Passwords()
    try:
        hashes = {name: "" if id_by_name(db, "user", DEFAULT_DOMAIN, name) else await hasher.hash(password)
                  for name, password in (("admin", admin_password), ("demo", demo_password))}
    finally:
        if passwords is None:
            hasher.close()
    await db.transact(lambda transaction: _names(transaction, hashes))
    addresses = [(type, name, urljoin(public_url.rstrip("/") + "/", url.lstrip("/")) if "://" not in url else url)
                 for type, name, url in endpoints]
    for address in addresses:
        await db.transact(lambda transaction, address=address: _address(transaction, region, *address))  # type: ignore[misc]


def _names(transaction: Transaction, hashes: dict[str, str]) -> None:
    first_key(transaction)
    if transaction.get(PROJECT, DEFAULT_DOMAIN) is None:
        domain = Project(id=DEFAULT_DOMAIN, name="Default", description="The default domain", enabled=True, is_domain=True)
        domain.options.SetInParent()
        take_name(transaction, "domain", "", domain.name, domain.id)
        transaction.put(PROJECT, ProjectRecord(project=domain))
    roles = [_role(transaction, name) for name in ROLES]
    for prior, implied in itertools.pairwise(roles):
        if transaction.get(IMPLICATION, prior, implied) is None:
            transaction.put(IMPLICATION, Implication(prior_role_id=prior, implied_role_id=implied))
    for name, role_id in (("admin", roles[0]), ("demo", roles[2])):
        if not hashes[name]:
            continue
        project_id = _project(transaction, name)
        user_id = _user(transaction, name, project_id, hashes[name])
        targets = [("project", project_id)]
        if name == "admin":
            targets += [("domain", DEFAULT_DOMAIN), SYSTEM]
        for target_type, target_id in targets:
            transaction.put(ASSIGNMENT, Assignment(actor_type="user", actor_id=user_id, target_type=target_type,
                                                   target_id=target_id, role_id=role_id))


def _role(transaction: Transaction, name: str) -> str:
    if found := id_by_name(transaction, "role", "", name):
        return found
    role = Role(id=uuid.uuid4().hex, name=name)
    role.options["immutable"] = True
    take_name(transaction, "role", "", name, role.id)
    transaction.put(ROLE, role)
    return role.id


def _project(transaction: Transaction, name: str) -> str:
    if found := id_by_name(transaction, "project", DEFAULT_DOMAIN, name):
        return found
    project = Project(id=uuid.uuid4().hex, name=name, domain_id=DEFAULT_DOMAIN, parent_id=DEFAULT_DOMAIN, enabled=True,
                      is_domain=False)
    project.options.SetInParent()
    take_name(transaction, "project", DEFAULT_DOMAIN, name, project.id)
    transaction.put(PROJECT, ProjectRecord(project=project))
    return project.id


def _user(transaction: Transaction, name: str, project_id: str, encoded: str) -> str:
    if found := id_by_name(transaction, "user", DEFAULT_DOMAIN, name):
        return found
    user = User(id=uuid.uuid4().hex, name=name, domain_id=DEFAULT_DOMAIN, enabled=True, default_project_id=project_id)
    user.options.SetInParent()
    if name == "admin":
        user.options["ignore_lockout_failure_attempts"] = True     # or anybody could keep the operator out
    user.extra["description"].CopyFrom(text("Made when the cloud was set up"))
    take_name(transaction, "user", DEFAULT_DOMAIN, name, user.id)
    transaction.put(USER, UserRecord(user=user, password_hash=encoded))
    log.info("user %s: made", name)
    return user.id


def _address(transaction: Transaction, region: str, type: str, name: str, url: str) -> None:
    """One service with its three endpoints. Writes what differs alone."""
    if transaction.get(REGION, region) is None:
        transaction.put(REGION, Region(id=region))
    service_id = uuid.uuid5(NAMES, f"{type}/{name}").hex
    if transaction.get(SERVICE, service_id) is None:
        transaction.put(SERVICE, Service(id=service_id, type=type, name=name, enabled=True))
    for interface in INTERFACES:
        endpoint_id = uuid.uuid5(NAMES, f"{type}/{name}/{interface}/{region}").hex
        before = transaction.get(ENDPOINT, endpoint_id)
        if before is None:
            transaction.put(ENTRY, Entry(noun="in-region", scope=region, name=endpoint_id, id=endpoint_id))
            before = Endpoint(id=endpoint_id, interface=interface, region_id=region, region=region, service_id=service_id,
                              enabled=True)
        if before.url != url:
            before.url = url
            transaction.put(ENDPOINT, before)
