"""Puts the identity service together: its kinds, its servicers, who checks tokens, and what a new cloud starts with."""
import dataclasses

from google.protobuf.descriptor import ServiceDescriptor

from control.identity.access_rules import AccessRules
from control.identity.access_tokens import AccessTokens
from control.identity.application_credentials import ApplicationCredentials
from control.identity.assignments import Assignments
from control.identity.authentication import Authentication
from control.identity.bootstrap import bootstrap
from control.identity.catalog import Catalog
from control.identity.compliance import Compliance
from control.identity.consumers import Consumers
from control.identity.credentials import Credentials
from control.identity.domain_configs import DomainConfigs
from control.identity.domains import Domains
from control.identity.ec2 import Ec2Credentials
from control.identity.endpoint_filters import EndpointFilters
from control.identity.federation.identity_providers import IdentityProviders
from control.identity.federation.logins import FederatedLogins
from control.identity.federation.mappings import Mappings
from control.identity.federation.protocols import Protocols
from control.identity.federation.providers import Providers
from control.identity.federation.service_providers import ServiceProviders
from control.identity.federation.shadow import keep_sweeping
from control.identity.federation.web_logins import WebLogins
from control.identity.groups import Groups, Memberships
from control.identity.issuing import Issuer
from control.identity.limits import Limits
from control.identity.model import DEFAULT_DOMAIN, KINDS, id_by_name
from control.identity.passwords import Passwords
from control.identity.policies import Policies
from control.identity.projects import Projects
from control.identity.roles import Roles
from control.identity.sealing import Sealer, keep_rotating, rotate
from control.identity.sessions import TokenAuthenticator
from control.identity.targets import Targets
from control.identity.tokens import Tokens
from control.identity.trusts import Trusts
from control.identity.users import Users
from control.identity.watchables import watchables
from control.kernel.database import Database
from protos.identity.v1 import (
    api_pb2,
    application_credentials_pb2,
    assignments_pb2,
    catalog_pb2,
    credentials_pb2,
    domain_configs_pb2,
    domains_pb2,
    ec2_pb2,
    endpoint_filters_pb2,
    federated_logins_pb2,
    groups_pb2,
    identity_providers_pb2,
    limits_pb2,
    mappings_pb2,
    memberships_pb2,
    oauth1_pb2,
    policies_pb2,
    projects_pb2,
    protocols_pb2,
    roles_pb2,
    service_providers_pb2,
    tokens_pb2,
    trusts_pb2,
    users_pb2,
    web_logins_pb2,
)

__all__ = ["API", "KINDS", "Compliance", "Passwords", "TokenAuthenticator", "bootstrap", "keep_rotating",
           "keep_sweeping", "project_id", "rotate", "servicers", "watchables"]

#: The file whose option says how REST sees the service.
API = api_pb2.DESCRIPTOR


def servicers(db: Database, authenticator: TokenAuthenticator,
              passwords: Passwords | None = None, compliance: Compliance | None = None,
              providers: Providers | None = None) -> list[tuple[object, ServiceDescriptor]]:
    """Every servicer with the descriptor of what it serves. `authenticator` is the one that the dispatcher has."""
    passwords = passwords or Passwords()
    authentication = Authentication(db, passwords, authenticator, compliance)
    issuer = Issuer(db, Sealer(db))
    tokens = Tokens(db, authentication, authenticator, issuer)
    providers = providers or Providers({})
    federated = FederatedLogins(db, tokens, issuer, providers)
    made = [
        (tokens, tokens_pb2, "Tokens"),
        (Domains(db), domains_pb2, "Domains"),
        (Projects(db), projects_pb2, "Projects"),
        (Users(db, passwords, authentication), users_pb2, "Users"),
        (Groups(db), groups_pb2, "Groups"),
        (Memberships(db), memberships_pb2, "Memberships"),
        (Roles(db), roles_pb2, "Roles"),
        (Assignments(db), assignments_pb2, "Assignments"),
        (Catalog(db), catalog_pb2, "Catalog"),
        (Credentials(db), credentials_pb2, "Credentials"),
        (Ec2Credentials(db, authenticator, issuer), ec2_pb2, "Ec2Credentials"),
        (Trusts(db, authenticator), trusts_pb2, "Trusts"),
        (Policies(db), policies_pb2, "Policies"),
        (EndpointFilters(db), endpoint_filters_pb2, "EndpointFilters"),
        (Limits(db), limits_pb2, "Limits"),
        (DomainConfigs(db, dataclasses.asdict(compliance) if compliance else None), domain_configs_pb2, "DomainConfigs"),
        (ApplicationCredentials(db, passwords, authenticator), application_credentials_pb2, "ApplicationCredentials"),
        (AccessRules(db), application_credentials_pb2, "AccessRules"),
        (IdentityProviders(db), identity_providers_pb2, "IdentityProviders"),
        (Protocols(db), protocols_pb2, "Protocols"),
        (Mappings(db), mappings_pb2, "Mappings"),
        (ServiceProviders(db), service_providers_pb2, "ServiceProviders"),
        (federated, federated_logins_pb2, "FederatedLogins"),
        (WebLogins(db, federated, providers), web_logins_pb2, "WebLogins"),
        (Consumers(db), oauth1_pb2, "Consumers"),
        (AccessTokens(db), oauth1_pb2, "AccessTokens"),
    ]
    targets = Targets(db)
    for servicer, _, _ in made:
        setattr(servicer, "policy_target", targets)  # noqa: B010 - what the dispatcher looks for on every servicer
    return [(servicer, module.DESCRIPTOR.services_by_name[name]) for servicer, module, name in made]


def project_id(db: Database, name: str) -> str:
    """The id of a project of the default domain; "" where there is none."""
    return id_by_name(db, "project", DEFAULT_DOMAIN, name)
