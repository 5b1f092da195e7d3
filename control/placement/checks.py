"""What must agree among providers, their names, their usages and what is allocated of them."""
from collections import Counter
from collections.abc import Iterator

from control.kernel.database import Transaction
from control.kernel.findings import Check, Finding
from control.kernel.fleet import ALLOCATION, HOST, PROVIDER, PROVIDER_NAME, USAGE
from control.placement import ledger
from protos.internal.v1.fleet_pb2 import Allocation, ProviderName, Usage


def checks() -> list[Check]:
    return [Check("placement.usage", "The usage of each provider is the sum of what is allocated of it.", usages),
            Check("placement.providers", "Allocations are of providers that there are.", providers),
            Check("placement.names", "Each provider has its name, and each name its provider.", names),
            Check("placement.hosts", "Each host has its root provider.", hosts)]


def usages(tx: Transaction) -> Iterator[Finding]:
    sums: dict[str, Counter[str]] = {}
    for allocation in tx.rows(ALLOCATION):
        for uuid, amounts in allocation.providers.items():
            sums.setdefault(uuid, Counter()).update(amounts.resources)
    known = {usage.provider_uuid: usage for usage in tx.rows(USAGE)}
    for provider in tx.rows(PROVIDER):
        usage, right = known.pop(provider.uuid, None), dict(sums.get(provider.uuid, {}))
        said = dict(usage.used) if usage is not None else {}
        if said != right:
            def mend(tx: Transaction, uuid: str = provider.uuid, right: dict[str, int] = right) -> None:
                new = tx.get(USAGE, uuid) or Usage(provider_uuid=uuid)
                new.used.clear()
                new.used.update(right)
                new.generation += 1
                tx.guard_unchanged(PROVIDER, uuid)
                tx.put(USAGE, new)

            yield Finding(f"provider {provider.uuid} ({provider.name})", f"its usage says {_said(said)}, its allocations make "
                          f"{_said(right)}", "Servers are refused that fit, or placed where there is no room.",
                          remedy="Write down the sum of the allocations.", mend=mend)
    for uuid in known:
        def drop(tx: Transaction, uuid: str = uuid) -> None:
            tx.guard_unchanged(PROVIDER, uuid)
            tx.delete(USAGE, uuid)

        yield Finding(f"usage {uuid}", "its provider is gone", "A usage goes with its provider.", remedy="Delete it.", mend=drop)


def providers(tx: Transaction) -> Iterator[Finding]:
    known = {provider.uuid for provider in tx.rows(PROVIDER)}
    for allocation in tx.rows(ALLOCATION):
        gone = sorted(set(allocation.providers) - known)
        if gone:
            def mend(tx: Transaction, consumer: str = allocation.consumer_uuid, gone: list[str] = gone) -> None:
                left = Allocation()
                left.CopyFrom(tx.require(ALLOCATION, consumer))
                for uuid in gone:
                    tx.guard_unchanged(PROVIDER, uuid)
                    del left.providers[uuid]
                ledger.replace(tx, [left], checked=False)

            yield Finding(f"consumer {allocation.consumer_uuid}", f"holds something of {', '.join(gone)}, which are gone",
                          "It is counted nowhere.", remedy="Give back what it holds of them.", mend=mend)


def names(tx: Transaction) -> Iterator[Finding]:
    known = {name.name: name.uuid for name in tx.rows(PROVIDER_NAME)}
    owners = {}
    for provider in tx.rows(PROVIDER):
        owners[provider.name] = provider.uuid
        if known.get(provider.name) != provider.uuid:
            def mend(tx: Transaction, name: str = provider.name, uuid: str = provider.uuid) -> None:
                tx.guard_unchanged(PROVIDER, uuid)
                tx.put(PROVIDER_NAME, ProviderName(name=name, uuid=uuid))

            yield Finding(f"provider {provider.uuid}", f"its name {provider.name} is written to "
                          f"{known.get(provider.name, 'nobody')}", "Another provider could get the same name.",
                          remedy="Write the name down for it.", mend=mend)
    for name, uuid in known.items():
        if name not in owners:
            def drop(tx: Transaction, name: str = name, uuid: str = uuid) -> None:
                tx.guard_unchanged(PROVIDER, uuid)
                tx.delete(PROVIDER_NAME, name)

            yield Finding(f"provider name {name}", f"belongs to {uuid}, which is gone or has another",
                          "No provider can have the name.", remedy="Free the name.", mend=drop)


def hosts(tx: Transaction) -> Iterator[Finding]:
    for host in tx.rows(HOST):
        if tx.get(PROVIDER, host.id) is None:
            yield Finding(f"host {host.name}", "it has no root provider", "Nothing can be placed on it.",
                          remedy="Restart its agent: the provider is made when it attaches.")


def _said(amounts: dict[str, int]) -> str:
    return ", ".join(f"{name} {amount}" for name, amount in sorted(amounts.items())) or "nothing"
