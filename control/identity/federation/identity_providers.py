"""Serves identity providers. What disables or deletes one ends the tokens of its users with the same commit."""
import uuid
from urllib.parse import quote

from google.protobuf.empty_pb2 import Empty

from control.identity.federation.records import change, check_description, check_id, taken
from control.identity.model import (
    ENTRY,
    IDENTITY_PROVIDER,
    PROJECT,
    free_name,
    new_resource,
    require,
    require_domain,
    take_name,
)
from control.identity.removal import remove_identity_provider
from control.kernel import clock
from control.kernel.database import Database, Transaction
from control.kernel.errors import Conflict, Invalid
from control.kernel.listing import page, select
from control.kernel.rpc import Call
from protos.identity.v1 import identity_providers_pb2 as pb
from protos.identity.v1.projects_pb2 import Project
from protos.identity.v1.records_pb2 import IdentityProviderRecord, ProjectRecord

MAX_REMOTE_IDS, MAX_REMOTE_ID = 32, 255

#: Minutes; a year.
MAX_TTL = 366 * 24 * 60


class IdentityProviders:
    """identity.v1.IdentityProviders."""

    def __init__(self, db: Database):
        self._db = db

    async def CreateIdentityProvider(self, request: pb.CreateIdentityProviderRequest, call: Call) -> pb.IdentityProviderResponse:
        provider = pb.IdentityProvider(enabled=False)
        provider.MergeFrom(request.identity_provider)
        provider.id = request.idp_id
        check_id("identity provider", provider.id)
        provider.ClearField("links")
        _check(provider)
        own_domain_id = uuid.uuid4().hex

        def decide(transaction: Transaction) -> None:
            if transaction.get(IDENTITY_PROVIDER, provider.id) is not None:
                raise taken("identity provider", provider.id)
            if request.identity_provider.domain_id:
                require_domain(transaction, provider.domain_id)
                transaction.guard_exists(PROJECT, provider.domain_id)
            else:
                provider.domain_id = own_domain_id
                _make_domain(transaction, provider)
            _take_remote_ids(transaction, provider)
            # Tokens of a provider that had the id before are none of this one's.
            transaction.put(IDENTITY_PROVIDER, IdentityProviderRecord(identity_provider=provider, revoked_before=clock.now()))

        await self._db.transact(decide)
        return pb.IdentityProviderResponse(identity_provider=_shown(provider))

    async def ListIdentityProviders(self, request: pb.ListIdentityProvidersRequest,
                                    call: Call) -> pb.ListIdentityProvidersResponse:
        providers = [record.identity_provider for record in self._db.cache.all(IDENTITY_PROVIDER)]
        rows, marker = page(select(providers, request.filters), limit=request.limit, marker=request.marker)
        return pb.ListIdentityProvidersResponse(identity_providers=map(_shown, rows), next_page_marker=marker)

    async def GetIdentityProvider(self, request: pb.GetIdentityProviderRequest, call: Call) -> pb.IdentityProviderResponse:
        record = require(self._db, IDENTITY_PROVIDER, request.idp_id)
        return pb.IdentityProviderResponse(identity_provider=_shown(record.identity_provider))

    async def UpdateIdentityProvider(self, request: pb.UpdateIdentityProviderRequest, call: Call) -> pb.IdentityProviderResponse:
        def decide(transaction: Transaction) -> pb.IdentityProvider:
            record = require(transaction, IDENTITY_PROVIDER, request.idp_id)
            provider, was_enabled = record.identity_provider, record.identity_provider.enabled
            before = set(provider.remote_ids)
            change(provider, request.identity_provider, request.update_mask.paths, ("id", "domain_id"))
            if not provider.HasField("enabled"):
                provider.enabled = was_enabled
            _check(provider)
            for remote_id in before - set(provider.remote_ids):
                free_name(transaction, "remote id", "", remote_id, provider.id)
            _take_remote_ids(transaction, provider)
            if was_enabled and not provider.enabled:
                record.revoked_before.CopyFrom(clock.now())
            transaction.put(IDENTITY_PROVIDER, record)
            return provider

        return pb.IdentityProviderResponse(identity_provider=_shown(await self._db.transact(decide)))

    async def DeleteIdentityProvider(self, request: pb.DeleteIdentityProviderRequest, call: Call) -> Empty:
        def disable(transaction: Transaction) -> None:
            record = require(transaction, IDENTITY_PROVIDER, request.idp_id)
            record.identity_provider.enabled = False
            transaction.put(IDENTITY_PROVIDER, record)

        await self._db.transact(disable)           # nobody comes in while its users go
        await remove_identity_provider(self._db, request.idp_id)
        return Empty()


def _check(provider: pb.IdentityProvider) -> None:
    check_description(provider)
    if len(provider.remote_ids) > MAX_REMOTE_IDS or len(set(provider.remote_ids)) != len(provider.remote_ids):
        raise Invalid("identity.idp.remote_ids", f"Invalid input for field 'remote_ids': at most {MAX_REMOTE_IDS}, each once.")
    if any(not 1 <= len(remote_id) <= MAX_REMOTE_ID for remote_id in provider.remote_ids):
        raise Invalid("identity.idp.remote_ids",
                      f"Invalid input for field 'remote_ids': each has 1 to {MAX_REMOTE_ID} characters.")
    if not 0 <= provider.authorization_ttl <= MAX_TTL:
        raise Invalid("identity.idp.authorization_ttl",
                      f"Invalid input for field 'authorization_ttl': 0 to {MAX_TTL} minutes.")


def _make_domain(transaction: Transaction, provider: pb.IdentityProvider) -> None:
    domain = new_resource(Project(name=provider.domain_id, is_domain=True,
                                  description=f"Auto generated federated domain for Identity Provider: {provider.id}"))
    domain.id = provider.domain_id
    take_name(transaction, "domain", "", domain.name, domain.id)
    transaction.put(PROJECT, ProjectRecord(project=domain))


def _take_remote_ids(transaction: Transaction, provider: pb.IdentityProvider) -> None:
    for remote_id in provider.remote_ids:
        entry = transaction.get(ENTRY, "remote id", "", remote_id)
        if entry is not None and entry.id != provider.id:
            raise Conflict("identity.idp.remote_id", f"Duplicate remote ID: {remote_id}")
        take_name(transaction, "remote id", "", remote_id, provider.id)


def _shown(provider: pb.IdentityProvider) -> pb.IdentityProvider:
    path = f"/OS-FEDERATION/identity_providers/{quote(provider.id, safe='')}"
    shown = pb.IdentityProvider(links=pb.IdentityProviderLinks(self=path, protocols=f"{path}/protocols"))
    shown.MergeFrom(provider)
    return shown
