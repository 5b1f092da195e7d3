"""Serves service providers: other clouds that users of this one may log in to."""
from urllib.parse import urlsplit

from google.protobuf.empty_pb2 import Empty

from control.identity.federation.records import change, check_description, check_id, taken
from control.identity.model import SERVICE_PROVIDER, require
from control.kernel.database import Database, Transaction
from control.kernel.errors import Invalid
from control.kernel.listing import page, select
from control.kernel.rpc import Call
from protos.identity.v1 import service_providers_pb2 as pb

MAX_URL = 255


class ServiceProviders:
    """identity.v1.ServiceProviders."""

    def __init__(self, db: Database):
        self._db = db

    async def CreateServiceProvider(self, request: pb.CreateServiceProviderRequest, call: Call) -> pb.ServiceProviderResponse:
        provider = pb.ServiceProvider(enabled=False, relay_state_prefix="ss:mem:")
        provider.MergeFrom(request.service_provider)
        provider.id = request.sp_id
        check_id("service provider", provider.id)
        _check(provider)

        def decide(transaction: Transaction) -> None:
            if transaction.get(SERVICE_PROVIDER, provider.id) is not None:
                raise taken("service provider", provider.id)
            transaction.put(SERVICE_PROVIDER, provider)

        await self._db.transact(decide)
        return pb.ServiceProviderResponse(service_provider=provider)

    async def ListServiceProviders(self, request: pb.ListServiceProvidersRequest, call: Call) -> pb.ListServiceProvidersResponse:
        rows, marker = page(select(self._db.cache.all(SERVICE_PROVIDER), request.filters), limit=request.limit,
                            marker=request.marker)
        return pb.ListServiceProvidersResponse(service_providers=rows, next_page_marker=marker)

    async def GetServiceProvider(self, request: pb.GetServiceProviderRequest, call: Call) -> pb.ServiceProviderResponse:
        return pb.ServiceProviderResponse(service_provider=require(self._db, SERVICE_PROVIDER, request.sp_id))

    async def UpdateServiceProvider(self, request: pb.UpdateServiceProviderRequest, call: Call) -> pb.ServiceProviderResponse:
        def decide(transaction: Transaction) -> pb.ServiceProvider:
            provider = require(transaction, SERVICE_PROVIDER, request.sp_id)
            was_enabled = provider.enabled
            change(provider, request.service_provider, request.update_mask.paths)
            if not provider.HasField("enabled"):
                provider.enabled = was_enabled
            _check(provider)
            transaction.put(SERVICE_PROVIDER, provider)
            return provider

        return pb.ServiceProviderResponse(service_provider=await self._db.transact(decide))

    async def DeleteServiceProvider(self, request: pb.DeleteServiceProviderRequest, call: Call) -> Empty:
        def decide(transaction: Transaction) -> None:
            require(transaction, SERVICE_PROVIDER, request.sp_id)
            transaction.delete(SERVICE_PROVIDER, request.sp_id)

        await self._db.transact(decide)
        return Empty()


def _check(provider: pb.ServiceProvider) -> None:
    check_description(provider)
    if len(provider.relay_state_prefix) > MAX_URL:
        raise Invalid("identity.sp.relay_state_prefix",
                      f"Invalid input for field 'relay_state_prefix': at most {MAX_URL} characters.")
    for name in ("auth_url", "sp_url"):
        if not _is_url(getattr(provider, name)):
            raise Invalid(f"identity.sp.{name}", f"Invalid input for field '{name}': it is required, an http or https URL of at "
                                                 f"most {MAX_URL} characters.")


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
    except ValueError:
        return False
    return len(text) <= MAX_URL and parts.scheme in ("http", "https") and bool(parts.hostname) and text.isprintable()
