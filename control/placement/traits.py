"""The servicer of traits, and of those of a provider."""
from collections.abc import Iterable

from google.protobuf.empty_pb2 import Empty

from control.kernel.database import Database, Transaction
from control.kernel.errors import Invalid, NotFound
from control.kernel.fleet import PROVIDER, TRAIT
from control.kernel.rpc import Call
from control.placement import custom_names, ledger, trees
from control.placement.model import MAX_TRAITS, STANDARD_TRAITS
from protos.internal.v1.fleet_pb2 import Provider
from protos.placement.v1 import traits_pb2 as pb


class Traits:
    def __init__(self, database: Database):
        self._db = database

    async def ListTraits(self, request: pb.ListTraitsRequest, call: Call) -> pb.ListTraitsResponse:
        custom = {record.name: record for record in self._db.cache.all(TRAIT)}
        names: Iterable[str] = STANDARD_TRAITS | custom.keys()
        if request.name:
            operator, colon, value = request.name.partition(":")
            if not colon or operator not in ("in", "startswith"):
                raise Invalid("query.name", "Badly formatted name parameter. Expected name query string parameter in form: "
                                            f'?name=[in|startswith]:[name1,name2|prefix]. Got: "{request.name[:80]}"')
            wanted = frozenset(value.split(","))
            names = [name for name in names if (name in wanted if operator == "in" else name.startswith(value))]
        if request.associated:
            if request.associated.lower() not in ("true", "false"):
                raise Invalid("query.associated", 'The query parameter "associated" only accepts "true" or "false"')
            used = {name for provider in self._db.cache.all(PROVIDER) for name in provider.traits}
            names = [name for name in names if (name in used) == (request.associated.lower() == "true")]
        return pb.ListTraitsResponse(traits=sorted(names))

    async def GetTrait(self, request: pb.GetTraitRequest, call: Call) -> pb.TraitResponse:
        if not custom_names.exists(self._db, TRAIT, request.name):
            raise NotFound("trait.missing", f"No such trait(s): {request.name[:255]}.")
        record = self._db.get(TRAIT, request.name)
        return pb.TraitResponse(name=request.name, last_modified=record.created_at if record is not None else None)

    async def PutTrait(self, request: pb.GetTraitRequest, call: Call) -> pb.TraitResponse:
        record, created = await custom_names.create(self._db, TRAIT, request.name)
        call.status = 201 if created else 204
        return pb.TraitResponse(name=record.name, last_modified=record.created_at)

    async def DeleteTrait(self, request: pb.GetTraitRequest, call: Call) -> Empty:
        await custom_names.delete(self._db, TRAIT, request.name)
        return Empty()

    async def ListProviderTraits(self, request: pb.ProviderTraitsRequest, call: Call) -> pb.ProviderTraitsResponse:
        return self._response(trees.require(self._db, request.uuid))

    async def ReplaceProviderTraits(self, request: pb.ReplaceProviderTraitsRequest, call: Call) -> pb.ProviderTraitsResponse:
        wanted = sorted(set(request.traits))
        if len(wanted) > MAX_TRAITS or any(not 1 <= len(name) <= 255 for name in wanted):
            raise Invalid("provider.traits", f"A provider has at most {MAX_TRAITS} traits of 1 to 255 characters.")

        def decide(tx: Transaction) -> Provider:
            provider = trees.require(tx, request.uuid)
            trees.expect(tx, provider, request.resource_provider_generation)
            _set(tx, provider, wanted)
            ledger.check_size(tx)
            return provider

        return self._response(await self._db.transact(decide))

    async def DeleteProviderTraits(self, request: pb.ProviderTraitsRequest, call: Call) -> Empty:
        await self._db.transact(lambda tx: _set(tx, trees.require(tx, request.uuid), []))
        return Empty()

    def _response(self, provider: Provider) -> pb.ProviderTraitsResponse:
        return pb.ProviderTraitsResponse(traits=provider.traits, last_modified=provider.updated_at,
                                         resource_provider_generation=trees.generation(self._db, provider))


def _set(tx: Transaction, provider: Provider, wanted: list[str]) -> None:
    """Give a provider other traits, and another generation where they are others."""
    if wanted == list(provider.traits):
        return
    custom_names.take_up(tx, TRAIT, set(wanted) - set(provider.traits))
    provider.traits[:] = wanted
    trees.changed(tx, provider)
