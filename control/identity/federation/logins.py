"""Serves logins through identity providers: from a provider's token to one of ours."""
import logging
import re
from typing import Any

from control.identity import access
from control.identity.authentication import Proof, Scope
from control.identity.federation.assertion import assertion_of
from control.identity.federation.mapping import Unmapped
from control.identity.federation.mappings import rules_of
from control.identity.federation.providers import Providers
from control.identity.federation.shadow import Shadows
from control.identity.issuing import Issuer
from control.identity.model import IDENTITY_PROVIDER, MAPPING, PROTOCOL, require
from control.identity.sessions import refused
from control.identity.tokens import Tokens
from control.kernel.database import Database
from control.kernel.errors import Denied, Invalid
from control.kernel.rpc import Call
from protos.identity.v1 import tokens_pb2
from protos.identity.v1.domains_pb2 import ListDomainsResponse
from protos.identity.v1.federated_logins_pb2 import LogInFederatedRequest
from protos.identity.v1.identity_providers_pb2 import IdentityProvider
from protos.identity.v1.projects_pb2 import ListProjectsResponse
from protos.identity.v1.protocols_pb2 import Protocol
from protos.identity.v1.records_pb2 import TokenPayload

log = logging.getLogger(__name__)

_BEARER = re.compile(r"bearer +(\S+) *", re.IGNORECASE)


class FederatedLogins:
    """identity.v1.FederatedLogins."""

    def __init__(self, db: Database, tokens: Tokens, issuer: Issuer, providers: Providers):
        self._db = db
        self._tokens = tokens
        self._issuer = issuer
        self._providers = providers
        self._shadows = Shadows(db)

    async def LogInFederated(self, request: LogInFederatedRequest, call: Call) -> tokens_pb2.IssueTokenResponse:
        provider, protocol = self.reached(request.idp_id, request.protocol_id)
        judge = self._providers.get(provider.id)
        if judge is None:
            raise access.forbidden("federation.settings", f"the cloud's configuration has no identity provider {provider.id}")
        given = _BEARER.fullmatch(request.authorization)
        if given is None:
            raise refused("auth.federation.bearer")
        return await self.log_in(provider, protocol, await judge.claims(given[1]))

    async def ListFederatedProjects(self, request: tokens_pb2.ListReachableProjectsRequest, call: Call) -> ListProjectsResponse:
        return await self._tokens.ListReachableProjects(request, call)

    async def ListFederatedDomains(self, request: tokens_pb2.ListReachableDomainsRequest, call: Call) -> ListDomainsResponse:
        return await self._tokens.ListReachableDomains(request, call)

    def reached(self, idp_id: str, protocol_id: str) -> tuple[IdentityProvider, Protocol]:
        """A provider and its protocol. Raises NotFound, or Denied for a provider that is disabled."""
        provider = require(self._db, IDENTITY_PROVIDER, idp_id).identity_provider
        protocol = require(self._db, PROTOCOL, idp_id, protocol_id)
        if not provider.enabled:
            raise Denied("federation.disabled", f"Identity Provider {idp_id} is disabled")
        return provider, protocol

    async def log_in(self, provider: IdentityProvider, protocol: Protocol,
                     claims: dict[str, Any]) -> tokens_pb2.IssueTokenResponse:
        """A token without scope for whoever has these claims of a provider. Raises Unauthenticated where they are nobody here."""
        assertion = assertion_of(claims)
        if provider.remote_ids:
            said = assertion.get(protocol.remote_id_attribute or "iss", ())
            if not set(said).intersection(provider.remote_ids):
                log.warning("identity provider %s: %s %s is none of its remote ids", provider.id,
                            protocol.remote_id_attribute or "iss", [value[:200] for value in said])
                raise Denied("federation.remote_id",
                             "Incoming identity provider identifier not included among the accepted identifiers.")
        kept = self._db.get(MAPPING, protocol.mapping_id)
        try:
            if kept is None:
                raise Unmapped("mapping.missing", f"the mapping {protocol.mapping_id} is gone")
            mapped = rules_of(kept).apply(assertion, remote_user=next(iter(assertion.get("sub", ())), ""))
            user_id = await self._shadows.settle(provider, protocol.id, mapped)
        except (Unmapped, Invalid) as error:
            log.warning("identity provider %s, protocol %s, mapping %s: %s", provider.id, protocol.id, protocol.mapping_id, error)
            raise refused("auth.federation.mapping") from error
        proof = Proof(user_id, {TokenPayload.FEDERATED}, federation=(provider.id, protocol.id))
        return await self._issuer.issue(proof, Scope(), explicit=True, catalog=False)
