"""Providers with their capacity and use, decoded once and kept current from the cache's changes, for lists and candidates."""
import functools
from collections.abc import Iterable

from control.kernel.cache import Cache, Change
from control.kernel.fleet import PROVIDER, USAGE
from control.placement.candidates import Forest, Node, Stock
from control.placement.model import SHARING, capacity, generation
from protos.internal.v1.fleet_pb2 import Provider, Usage


class View:
    """A forest that follows a cache. Between two awaits it is as current as the cache is."""

    def __init__(self, cache: Cache):
        self._cache = cache
        self.forest = Forest()
        for provider in cache.all(PROVIDER):
            self._refresh(provider.uuid)
        self._listening = cache.listening(self._on_change, PROVIDER, USAGE)
        self._listening.__enter__()

    def close(self) -> None:
        self._listening.__exit__(None, None, None)

    def _on_change(self, change: Change) -> None:
        if change.kind is PROVIDER:
            self._refresh((change.after or change.before).uuid)  # type: ignore[union-attr]
        elif change.kind is USAGE:
            self._use((change.after or change.before).provider_uuid)  # type: ignore[union-attr]

    def _refresh(self, uuid: str) -> None:
        provider = self._cache.get(PROVIDER, uuid)
        if provider is None:
            self.forest.remove(uuid)
        else:
            self.forest.put(node_of(provider, self._cache.get(USAGE, uuid)))

    def _use(self, uuid: str) -> None:
        """Take over what is used of a provider, by far the most frequent change."""
        node, provider, usage = self.forest.nodes.get(uuid), self._cache.get(PROVIDER, uuid), self._cache.get(USAGE, uuid)
        if node is None or provider is None:
            return
        for name, stock in node.stocks.items():
            stock.used = usage.used.get(name, 0) if usage is not None else 0
        node.generation = generation(provider, usage)


def node_of(provider: Provider, usage: Usage | None) -> Node:
    """A provider as the search for candidates sees it."""
    used = usage.used if usage is not None else {}
    traits = _names(tuple(provider.traits))
    return Node(
        provider.uuid, provider.name, provider.parent_uuid, provider.root_uuid, generation(provider, usage),
        {name: Stock(capacity(have), used.get(name, 0), have.min_unit, have.max_unit, have.step_size)
         for name, have in provider.inventories.items()},
        traits, frozenset(provider.aggregates), SHARING in traits)


@functools.lru_cache(1000)
def _names(names: Iterable[str]) -> frozenset[str]:
    """Hosts of one make have the same hundred traits: one set for all of them."""
    return frozenset(names)
