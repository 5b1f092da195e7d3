"""Identity's kinds, and the plain rules of its resources: names, limits, what an update changes.

Nothing here awaits, reads a clock or draws an id.
"""
import re
from collections.abc import Iterable
from typing import Any, TypeVar

from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Value

from control.kernel.cache import Kind
from control.kernel.database import Database, Transaction
from control.kernel.errors import Conflict, Invalid, NotFound
from protos.identity.v1.catalog_pb2 import Endpoint, Region, Service
from protos.identity.v1.directories_pb2 import DirectoryEntry
from protos.identity.v1.domains_pb2 import Domain
from protos.identity.v1.endpoint_filters_pb2 import EndpointGroup
from protos.identity.v1.groups_pb2 import Group
from protos.identity.v1.limits_pb2 import Limit, RegisteredLimit
from protos.identity.v1.mappings_pb2 import Mapping
from protos.identity.v1.oauth1_records_pb2 import AccessTokenRecord, ConsumerRecord, RequestToken, SignedRequestMark
from protos.identity.v1.policies_pb2 import Policy
from protos.identity.v1.projects_pb2 import Project
from protos.identity.v1.protocols_pb2 import Protocol
from protos.identity.v1.records_pb2 import (
    AccessRuleRecord,
    ApplicationCredentialRecord,
    Assignment,
    CredentialRecord,
    DomainConfigRecord,
    EndpointGrant,
    Entry,
    IdentityProviderRecord,
    Implication,
    Login,
    Membership,
    PolicyPlace,
    ProjectRecord,
    Revocation,
    TokenKey,
    UserRecord,
    VaultKey,
)
from protos.identity.v1.roles_pb2 import Role
from protos.identity.v1.service_providers_pb2 import ServiceProvider
from protos.identity.v1.trusts_pb2 import Trust

M = TypeVar("M", bound=Message)

DEFAULT_DOMAIN = "default"

#: Characters that a name may have at most, by noun.
NAME_LIMITS = {"user": 255, "project": 64, "domain": 64, "group": 64, "role": 255, "service": 255, "application credential": 255,
               "endpoint group": 255}
MAX_DESCRIPTION = 65535
MAX_EXTRA = 32 * 1024          # bytes, names and values together
MAX_TAGS, MAX_TAG = 80, 255
MAX_DEPTH = 5                  # of projects, the domain counted


def _assignment_id(assignment: Assignment) -> tuple[str, ...]:
    parts = (assignment.actor_type, assignment.actor_id, assignment.target_type, assignment.target_id, assignment.role_id)
    return (*parts, "inherited") if assignment.inherited else parts


def pair(actor: tuple[str, str], place: tuple[str, str, bool]) -> str:
    """Index value of everything that an actor (type, id) has in a place (type, id, inherited)."""
    return f"{actor[0]}/{actor[1]}@{place[0]}/{place[1]}{'/inherited' if place[2] else ''}"


PROJECT = Kind("/identity/projects/", ProjectRecord, id_of=lambda record: (record.project.id,), indexes={
    "domain": lambda record: (record.project.domain_id,) if record.project.domain_id else (),
    "parent": lambda record: (record.project.parent_id,) if record.project.parent_id else (),
    "acts_as": lambda record: ("domain" if record.project.is_domain else "project",)})
USER = Kind("/identity/users/", UserRecord, id_of=lambda record: (record.user.id,), indexes={
    "domain": lambda record: (record.user.domain_id,),
    "idp": lambda record: [identity.idp_id for identity in record.user.federated]})
GROUP = Kind("/identity/groups/", Group, indexes={"domain": lambda group: (group.domain_id,)})
MEMBER = Kind("/identity/members/", Membership, id_of=lambda member: (member.group_id, member.user_id), indexes={
    "group": lambda member: (member.group_id,), "user": lambda member: (member.user_id,),
    "idp": lambda member: (member.idp_id,) if member.idp_id else ()})
ROLE = Kind("/identity/roles/", Role, indexes={"domain": lambda role: (role.domain_id,)})
IMPLICATION = Kind("/identity/implications/", Implication, id_of=lambda row: (row.prior_role_id, row.implied_role_id), indexes={
    "prior": lambda row: (row.prior_role_id,), "implied": lambda row: (row.implied_role_id,)})
ASSIGNMENT = Kind("/identity/assignments/", Assignment, id_of=_assignment_id, indexes={
    "actor": lambda row: (f"{row.actor_type}/{row.actor_id}",),
    "target": lambda row: (f"{row.target_type}/{row.target_id}",),
    "role": lambda row: (row.role_id,),
    "pair": lambda row: (pair((row.actor_type, row.actor_id), (row.target_type, row.target_id, row.inherited)),)})
ENTRY = Kind("/identity/entries/", Entry, id_of=lambda entry: (entry.noun, entry.scope, entry.name))
SERVICE = Kind("/identity/services/", Service)
ENDPOINT = Kind("/identity/endpoints/", Endpoint, indexes={
    "service": lambda endpoint: (endpoint.service_id,), "region": lambda endpoint: (endpoint.region_id,)})
REGION = Kind("/identity/regions/", Region, indexes={"parent": lambda region: (region.parent_region_id,)})
CREDENTIAL = Kind("/identity/application-credentials/", ApplicationCredentialRecord,
                  id_of=lambda record: (record.application_credential.id,),
                  indexes={"user": lambda record: (record.application_credential.user_id,),
                           "project": lambda record: (record.application_credential.project_id,)})
ACCESS_RULE = Kind("/identity/access-rules/", AccessRuleRecord, id_of=lambda record: (record.access_rule.id,), indexes={
    "user": lambda record: (record.user_id,)})
#: How users log in: not what tokens are worth, so a change of one leaves what is known of tokens.
LOGIN = Kind("/identity/logins/", Login, id_of=lambda login: (login.user_id,))
TOKEN_KEY = Kind("/identity/token-keys/", TokenKey)
VAULT_KEY = Kind("/identity/vault-keys/", VaultKey)
SECRET = Kind("/identity/credentials/", CredentialRecord, id_of=lambda record: (record.credential.id,), indexes={
    "user": lambda record: (record.credential.user_id,), "project": lambda record: (record.credential.project_id,)})
TRUST = Kind("/identity/trusts/", Trust, indexes={
    "trustor": lambda trust: (trust.trustor_user_id,), "trustee": lambda trust: (trust.trustee_user_id,),
    "project": lambda trust: (trust.project_id,), "source": lambda trust: (trust.redelegated_trust_id,)})
POLICY = Kind("/identity/policies/", Policy)
POLICY_PLACE = Kind("/identity/policy-places/", PolicyPlace,
                    id_of=lambda place: (place.endpoint_id or "-", place.service_id or "-", place.region_id or "-"),
                    indexes={"policy": lambda place: (place.policy_id,), "endpoint": lambda place: (place.endpoint_id,),
                             "service": lambda place: (place.service_id,), "region": lambda place: (place.region_id,)})
ENDPOINT_GROUP = Kind("/identity/endpoint-groups/", EndpointGroup)
ENDPOINT_GRANT = Kind("/identity/endpoint-grants/", EndpointGrant,
                      id_of=lambda grant: (grant.project_id, grant.what, grant.id),
                      indexes={"project": lambda grant: (grant.project_id,),
                               "given": lambda grant: (f"{grant.what}/{grant.id}",)})
REGISTERED_LIMIT = Kind("/identity/registered-limits/", RegisteredLimit, indexes={
    "service": lambda limit: (limit.service_id,), "region": lambda limit: (limit.region_id,)})
LIMIT = Kind("/identity/limits/", Limit, indexes={
    "project": lambda limit: (limit.project_id or limit.domain_id,),
    "service": lambda limit: (limit.service_id,)})
DOMAIN_CONFIG = Kind("/identity/domain-configs/", DomainConfigRecord, id_of=lambda record: (record.domain_id,))
IDENTITY_PROVIDER = Kind("/identity/identity-providers/", IdentityProviderRecord,
                         id_of=lambda record: (record.identity_provider.id,),
                         indexes={"domain": lambda record: (record.identity_provider.domain_id,)})
PROTOCOL = Kind("/identity/protocols/", Protocol, id_of=lambda protocol: (protocol.idp_id, protocol.id), indexes={
    "idp": lambda protocol: (protocol.idp_id,)})
MAPPING = Kind("/identity/mappings/", Mapping)
SERVICE_PROVIDER = Kind("/identity/service-providers/", ServiceProvider)
#: Whom the public ids of directories' users and groups stand for.
DIRECTORY_ENTRY = Kind("/identity/directory-entries/", DirectoryEntry, indexes={"domain": lambda entry: (entry.domain_id,)})
CONSUMER = Kind("/identity/consumers/", ConsumerRecord, id_of=lambda record: (record.consumer.id,))
REQUEST_TOKEN = Kind("/identity/request-tokens/", RequestToken, indexes={
    "consumer": lambda token: (token.consumer_id,), "project": lambda token: (token.project_id,),
    "user": lambda token: (token.authorizing_user_id,)})
ACCESS_TOKEN = Kind("/identity/access-tokens/", AccessTokenRecord, id_of=lambda record: (record.access_token.id,), indexes={
    "consumer": lambda record: (record.access_token.consumer_id,), "project": lambda record: (record.access_token.project_id,),
    "user": lambda record: (record.access_token.authorizing_user_id,)})
#: As LOGIN, nothing that tokens' worth hangs on.
SIGNED_REQUEST = Kind("/identity/signed-requests/", SignedRequestMark)
REVOCATION = Kind("/identity/revocations/", Revocation, id_of=lambda revocation: (revocation.audit_id,))

KINDS: tuple[Kind, ...] = (PROJECT, USER, GROUP, MEMBER, ROLE, IMPLICATION, ASSIGNMENT, ENTRY, SERVICE, ENDPOINT, REGION,
                           CREDENTIAL, TOKEN_KEY, REVOCATION, VAULT_KEY, SECRET, TRUST, POLICY, POLICY_PLACE,
                           ENDPOINT_GROUP, ENDPOINT_GRANT, REGISTERED_LIMIT, LIMIT, DOMAIN_CONFIG, ACCESS_RULE, LOGIN,
                           DIRECTORY_ENTRY, IDENTITY_PROVIDER, PROTOCOL, MAPPING, SERVICE_PROVIDER, CONSUMER, REQUEST_TOKEN,
                           ACCESS_TOKEN, SIGNED_REQUEST)

_NOUNS = {id(PROJECT): "project", id(USER): "user", id(GROUP): "group", id(ROLE): "role", id(SERVICE): "service",
          id(ENDPOINT): "endpoint", id(REGION): "region", id(CREDENTIAL): "application credential",
          id(SECRET): "credential", id(TRUST): "trust", id(POLICY): "policy", id(ENDPOINT_GROUP): "endpoint group",
          id(REGISTERED_LIMIT): "registered limit", id(LIMIT): "limit", id(IDENTITY_PROVIDER): "identity provider",
          id(PROTOCOL): "federation protocol", id(MAPPING): "mapping", id(SERVICE_PROVIDER): "service provider"}


# Finding

def missing(noun: str, name: str) -> NotFound:
    """Keystone's text for what is not there, which clients show as it is."""
    return NotFound(f"identity.{noun.replace(' ', '_')}.missing", f"Could not find {noun}: {name}.")


def require(reader: Database | Transaction, kind: Kind[M], *identifier: str) -> M:
    """The message under an id, as the reader hands it out, or NotFound in Keystone's words."""
    message = reader.get(kind, *identifier)
    if message is None:
        raise missing(_NOUNS[id(kind)], identifier[-1])
    return message


def require_domain(reader: Database | Transaction, domain_id: str) -> ProjectRecord:
    record = reader.get(PROJECT, domain_id)
    if record is None or not record.project.is_domain:
        raise missing("domain", domain_id)
    return record


def domain_of(project: Project) -> Domain:
    """A project that acts as a domain, as the domains API shows it."""
    domain = Domain(id=project.id, name=project.name, description=project.description, enabled=project.enabled, tags=project.tags)
    domain.options.CopyFrom(project.options)
    for key, value in project.extra.items():
        domain.extra[key].CopyFrom(value)
    return domain


# Names

def take_name(transaction: Transaction, noun: str, scope: str, name: str, identifier: str) -> None:
    """Take a name for an id in the transaction. Raises Conflict when another id has it."""
    entry = transaction.get(ENTRY, noun, scope, name)
    if entry is not None and entry.id != identifier:
        raise Conflict(f"identity.{noun.replace(' ', '_')}.duplicate",
                       f"Conflict occurred attempting to store {noun} - Duplicate entry found with name {name}"
                       + (f" at domain ID {scope}." if scope and noun in ("user", "project", "group") else "."))
    if entry is None:
        transaction.put(ENTRY, Entry(noun=noun, scope=scope, name=name, id=identifier))


def rename(transaction: Transaction, noun: str, scope: str, before: str, after: str, identifier: str) -> None:
    if before != after:
        take_name(transaction, noun, scope, after, identifier)
        free_name(transaction, noun, scope, before, identifier)


def free_name(transaction: Transaction, noun: str, scope: str, name: str, identifier: str) -> None:
    """Give up a name, where it is this id's: users of identity providers have theirs without taking them."""
    entry = transaction.get(ENTRY, noun, scope, name)
    if entry is not None and entry.id == identifier:
        transaction.delete(ENTRY, noun, scope, name)


def id_by_name(reader: Database | Transaction, noun: str, scope: str, name: str) -> str:
    """The id that has a name; "" for none."""
    entry = reader.get(ENTRY, noun, scope, name)
    return entry.id if entry else ""


def limit_entry(limit: Limit | RegisteredLimit) -> Entry:
    """The key that a limit takes: there is one for a resource in a region, of everybody or of one project or domain."""
    place = f"{limit.service_id}/{limit.region_id}/{limit.resource_name}"
    if isinstance(limit, RegisteredLimit):
        return Entry(noun="registered limit", scope="", name=place, id=limit.id)
    return Entry(noun="limit", scope=limit.project_id or limit.domain_id, name=place, id=limit.id)


# Limits

def check_name(noun: str, name: str) -> None:
    limit = NAME_LIMITS[noun]
    if not name.strip() or len(name) > limit:
        raise Invalid(f"identity.{noun.replace(' ', '_')}.name",
                      f"Invalid input for field 'name': a {noun}'s name has 1 to {limit} characters and is not blank.")


def check_resource(resource: Any) -> None:
    """The limits that every resource has: its description, tags and the caller's own properties."""
    present = {field.name for field in resource.DESCRIPTOR.fields}
    if "description" in present and len(resource.description) > MAX_DESCRIPTION:
        raise Invalid("identity.description", f"Invalid input for field 'description': at most {MAX_DESCRIPTION} characters.")
    if "tags" in present:
        check_tags(resource.tags)
    if "options" in present and resource.options.ByteSize() > MAX_EXTRA:
        raise Invalid("identity.options", f"Invalid input for field 'options': at most {MAX_EXTRA} bytes.")
    if sum(len(key.encode()) + value.ByteSize() for key, value in resource.extra.items()) > MAX_EXTRA:
        raise Invalid("identity.extra", f"Additional properties have at most {MAX_EXTRA} bytes together.")


_TAG = re.compile(r"[^/,]+")


def check_tags(tags: Iterable[str]) -> None:
    wanted = list(tags)
    if len(wanted) > MAX_TAGS or len(set(wanted)) != len(wanted):
        raise Invalid("identity.tags", f"Invalid input for field 'tags': at most {MAX_TAGS}, each once.")
    for tag in wanted:
        if len(tag) > MAX_TAG or not _TAG.fullmatch(tag):
            raise Invalid("identity.tag", f"Invalid input for field 'tags': {tag!r} is not 1 to {MAX_TAG} characters without "
                                          f"'/' and ','.")


# Changing

#: What the service itself decides, whoever sends it.
_GIVEN = frozenset({"id", "links", "password_expires_at", "parents", "subtree", "federated"})


def new_resource(wanted: M) -> M:
    """A copy of what the caller sent, without what is not theirs to say."""
    resource = type(wanted)()
    resource.CopyFrom(wanted)
    for name in _GIVEN:
        if name in resource.DESCRIPTOR.fields_by_name:
            resource.ClearField(name)
    drop_links(resource)
    if "enabled" in resource.DESCRIPTOR.fields_by_name and not resource.HasField("enabled"):
        resource.enabled = True  # type: ignore[attr-defined]
    if "options" in resource.DESCRIPTOR.fields_by_name:
        resource.options.SetInParent()  # type: ignore[attr-defined]
    return resource


def apply_update(resource: Any, wanted: Any, paths: Iterable[str], immutable: Iterable[str] = ()) -> None:
    """Change the fields of a resource that an update names; its own properties are merged, one set to null stays as null.

    Raises Invalid when a field of `immutable` would change.
    """
    for path in paths:
        field = resource.DESCRIPTOR.fields_by_name.get(path)
        if field is None or path == "extra" or path in _GIVEN - {"id"}:
            continue
        if path == "id" or path in immutable:
            if getattr(wanted, path) not in ("", getattr(resource, path)):
                raise Invalid(f"identity.immutable.{path}", f"Cannot change {path}: it is fixed once the resource is made.")
            continue
        if path in ("name", "enabled") and not (wanted.name if path == "name" else wanted.HasField(path)):
            raise Invalid(f"identity.{path}", f"Invalid input for field '{path}': it cannot be empty.")
        resource.ClearField(path)
        if field.is_repeated:
            getattr(resource, path).extend(getattr(wanted, path))
        elif field.message_type:
            getattr(resource, path).CopyFrom(getattr(wanted, path))
        elif not field.has_presence or wanted.HasField(path):
            setattr(resource, path, getattr(wanted, path))
    for key, value in wanted.extra.items():
        resource.extra[key].CopyFrom(value)
    drop_links(resource)


def drop_links(resource: Any) -> None:
    """Clients send back the links that they were shown: these are ours."""
    if "links" in getattr(resource, "extra", ()):
        del resource.extra["links"]


def text(value: str) -> Value:
    """A property's value that is a text."""
    return Value(string_value=value)
