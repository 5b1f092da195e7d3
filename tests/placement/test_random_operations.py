"""Whatever is done in whatever order: no capacity is exceeded, usages equal a recount of allocations, nothing is left behind."""
import asyncio
import contextlib
import uuid
from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from control.gateway.app import Gateway
from control.kernel import fleet
from control.kernel.database import Database
from control.kernel.rpc import Dispatcher
from control.kernel.store import MemoryStore
from control.placement import service
from control.placement.live import LiveFleet
from control.placement.neighbours import NoServers
from tests.api.client import Client, Reply
from tests.placement.conftest import Tokens

CLASSES = ("VCPU", "DISK_GB", "CUSTOM_GPU")
CONSUMERS = [str(uuid.UUID(int=number)) for number in range(1, 5)]

totals = st.dictionaries(st.sampled_from(CLASSES), st.integers(1, 6), max_size=3)
amounts = st.dictionaries(st.sampled_from(CLASSES), st.integers(1, 4), min_size=1, max_size=2)
numbers = st.integers(0, 100)


class Placement(RuleBasedStateMachine):
    """The service through its gateway, beside a model of dicts."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.parents: dict[str, str] = {}                              # by provider; "" for a root
        self.totals: dict[str, dict[str, int]] = {}                    # by provider and class
        self.held: dict[str, dict[str, dict[str, int]]] = {}           # by consumer, provider and class
        self.runner.run(self.start())
        assert self.send("PUT", "/resource_classes/CUSTOM_GPU").status == 201

    async def start(self) -> None:
        self.database = Database(MemoryStore(), fleet.KINDS)
        dispatcher = Dispatcher(Tokens())
        for servicer, descriptor in service.servicers(self.database, LiveFleet(self.database, NoServers())):
            dispatcher.add(servicer, descriptor)
        self.client = Client(Gateway(dispatcher), {"x-auth-token": "admin", "openstack-api-version": "placement 1.39"})
        self.following = asyncio.ensure_future(self.database.cache.run())
        await self.database.cache.ready.wait()

    def teardown(self) -> None:
        async def stop() -> None:
            self.following.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self.following
        self.runner.run(stop())
        self.runner.close()

    def send(self, verb: str, path: str, body=None) -> Reply:
        return self.runner.run(self.client(verb, f"/placement{path}", json_body=body))

    def chosen(self, number: int) -> str:
        return list(self.parents)[number % len(self.parents)]

    def used(self, held=None) -> dict[str, Counter]:
        found: dict[str, Counter] = {}
        for providers in (self.held if held is None else held).values():
            for provider, of in providers.items():
                found.setdefault(provider, Counter()).update(of)
        return found

    def generation(self, provider: str) -> int:
        return self.send("GET", f"/resource_providers/{provider}").json["generation"]

    def consumer_generation(self, consumer: str) -> int | None:
        return self.send("GET", f"/allocations/{consumer}").json.get("consumer_generation")

    # Providers

    @rule(number=numbers, below=st.booleans())
    def create(self, number: int, below: bool) -> None:
        parent = self.chosen(number) if below and self.parents else ""
        made = self.send("POST", "/resource_providers", {"name": uuid.uuid4().hex, "parent_provider_uuid": parent or None})
        if made.status == 400:
            assert self.depth(parent) >= 10
            return
        self.parents[made.json["uuid"]], self.totals[made.json["uuid"]] = parent, {}

    def depth(self, provider: str) -> int:
        return 1 + self.depth(self.parents[provider]) if provider else 0

    def is_below(self, provider: str, top: str) -> bool:
        return provider == top or (provider != "" and self.is_below(self.parents[provider], top))

    @precondition(lambda self: self.parents)
    @rule(number=numbers)
    def delete(self, number: int) -> None:
        provider = self.chosen(number)
        status = self.send("DELETE", f"/resource_providers/{provider}").status
        busy = provider in self.parents.values() or bool(self.used().get(provider))
        assert status == (409 if busy else 204)
        if not busy:
            del self.parents[provider], self.totals[provider]

    @precondition(lambda self: self.parents)
    @rule(number=numbers, other=numbers, to_root=st.booleans())
    def move(self, number: int, other: int, to_root: bool) -> None:
        provider, parent = self.chosen(number), "" if to_root else self.chosen(other)
        name = self.send("GET", f"/resource_providers/{provider}").json["name"]
        answer = self.send("PUT", f"/resource_providers/{provider}", {"name": name, "parent_provider_uuid": parent or None})
        if parent and self.is_below(parent, provider):
            assert answer.status == 400
        elif answer.status == 400:
            assert "levels" in answer.json["errors"][0]["detail"]
        else:
            self.parents[provider] = parent

    # Inventories

    @precondition(lambda self: self.parents)
    @rule(number=numbers, wanted=totals, age=st.sampled_from([0, 0, 0, 1]))
    def inventory(self, number: int, wanted: dict, age: int) -> None:
        provider = self.chosen(number)
        status = self.send("PUT", f"/resource_providers/{provider}/inventories", {
            "resource_provider_generation": self.generation(provider) - age,
            "inventories": {name: {"total": total} for name, total in wanted.items()}}).status
        lost = self.used().get(provider, Counter()).keys() - wanted.keys()
        assert status == (409 if lost or age else 200)
        if status == 200:
            self.totals[provider] = wanted

    # Allocations

    def fits(self, held: dict) -> bool:
        before, after = self.used(), self.used(held)
        return all(name in self.totals[provider]
                   and (amount <= self.totals[provider][name] or amount <= before.get(provider, Counter())[name])
                   for provider, of in after.items() for name, amount in of.items() if of != before.get(provider))

    @precondition(lambda self: self.parents)
    @rule(consumer=st.sampled_from(CONSUMERS), wanted=st.dictionaries(numbers, amounts, max_size=2),
          age=st.sampled_from([0, 0, 0, 1]))
    def allocate(self, consumer: str, wanted: dict, age: int) -> None:
        providers = {self.chosen(number): of for number, of in wanted.items()}
        generation = self.consumer_generation(consumer)
        generation = generation if not age else (generation or 0) + 1
        status = self.send("PUT", f"/allocations/{consumer}", body(providers, generation)).status
        held = {**self.held, consumer: providers}
        assert status == (409 if age or not self.fits(held) else 204)
        if status == 204:
            self.held = {each: of for each, of in held.items() if of}

    @precondition(lambda self: self.parents)
    @rule(first=st.sampled_from(CONSUMERS), second=st.sampled_from(CONSUMERS), number=numbers, more=amounts)
    def hand_over(self, first: str, second: str, number: int, more: dict) -> None:
        """One gets what another gives back, which may be the last there is; the other gets something else."""
        if first == second:
            return
        held = {**self.held, first: {self.chosen(number): more}, second: self.held.get(first, {})}
        status = self.send("POST", "/allocations", {
            each: body(held[each], self.consumer_generation(each)) for each in (first, second)}).status
        assert status == (204 if self.fits(held) else 409)
        if status == 204:
            self.held = {each: of for each, of in held.items() if of}

    @rule(consumer=st.sampled_from(CONSUMERS))
    def release(self, consumer: str) -> None:
        assert self.send("DELETE", f"/allocations/{consumer}").status == (204 if consumer in self.held else 404)
        self.held.pop(consumer, None)

    @precondition(lambda self: len(self.parents) > 1)
    @rule(number=numbers, other=numbers)
    def reshape(self, number: int, other: int) -> None:
        """All that one provider has moves to another, with what is allocated of it."""
        source, target = self.chosen(number), self.chosen(other)
        if source == target:
            return
        stocks = {source: {}, target: {**self.totals[source], **self.totals[target]}}
        held = {consumer: merged(providers, source, target) for consumer, providers in self.held.items() if source in providers}
        status = self.send("POST", "/reshaper", {
            "inventories": {provider: {"resource_provider_generation": self.generation(provider),
                                       "inventories": {name: {"total": total} for name, total in stocks[provider].items()}}
                            for provider in stocks},
            "allocations": {each: body(providers, self.consumer_generation(each)) for each, providers in held.items()}}).status
        was, self.totals = self.totals, {**self.totals, **stocks}
        fits = self.fits({**self.held, **held})
        assert status == (204 if fits else 409)
        if fits:
            self.held |= held
        else:
            self.totals = was

    # What always holds

    @invariant()
    def usages_and_allocations_are_the_models(self) -> None:
        cache, used = self.database.cache, self.used()
        records = {usage.provider_uuid: dict(usage.used) for usage in cache.all(fleet.USAGE)}
        recount: dict[str, Counter] = {}
        for allocation in cache.all(fleet.ALLOCATION):
            for provider, of in allocation.providers.items():
                recount.setdefault(provider, Counter()).update(of.resources)
        assert {provider: of for provider, of in records.items() if of} == recount == used
        assert {each.consumer_uuid for each in cache.all(fleet.ALLOCATION)} == self.held.keys()
        assert records.keys() <= self.parents.keys()

    @invariant()
    def trees_are_the_models_and_their_roots_are_right(self) -> None:
        cache = self.database.cache
        records = {provider.uuid: provider for provider in cache.all(fleet.PROVIDER)}
        assert {provider: record.parent_uuid for provider, record in records.items()} == self.parents
        for provider, record in records.items():
            top = provider
            while self.parents[top]:
                top = self.parents[top]
            assert record.root_uuid == top
        assert {name.uuid for name in cache.all(fleet.PROVIDER_NAME)} == records.keys()
        assert len(cache.all(fleet.PROVIDER_NAME)) == len(records)


def body(providers: dict, generation: int | None) -> dict:
    return {"allocations": {provider: {"resources": of} for provider, of in providers.items()}, "project_id": "p", "user_id": "u",
            "consumer_generation": generation, "consumer_type": "INSTANCE"}


def merged(providers: dict, source: str, target: str) -> dict:
    """The same amounts with the target in the source's place."""
    rest = {provider: of for provider, of in providers.items() if provider != source}
    return {**rest, target: dict(Counter(rest.get(target, {})) + Counter(providers[source]))}


TestPlacement = Placement.TestCase
TestPlacement.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
