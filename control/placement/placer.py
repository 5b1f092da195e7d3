"""Chooses hosts for servers from the present state, and keeps what they hold: the scheduler's door to the store.

A placement stands on the revision that its commit is compared with: the usage of every provider that it takes something of.
"""
import asyncio
import contextlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace

from control.kernel import fleet
from control.kernel.database import Transaction
from control.kernel.errors import Conflict
from control.kernel.fleet import Placed, Refused, Wanted
from control.placement import ledger
from control.placement.live import LiveFleet
from protos.internal.v1.fleet_pb2 import Allocation
from scheduler import plans
from scheduler.types import Placement, Refusal, Request

#: What a server is as a consumer.
INSTANCE = "INSTANCE"


class FleetPlacer:
    """Placement over kernel.fleet (control.compute.neighbours.Placer, by shape)."""

    def __init__(self, live: LiveFleet):
        self._live = live

    def place(self, transaction: Transaction, wanted: Sequence[Wanted], leaving: Collection[str] = ()) -> list[Placed | Refused]:
        """A host for each, in order, each seeing the allocations of those before it; allocated in the transaction."""
        with self._without(leaving):
            answers = self._answers(wanted)
        fleet.guard_aggregates(transaction)
        for need, answer in zip(wanted, answers, strict=True):
            if isinstance(answer, Placement):
                ledger.replace(transaction, [ledger.allocation(
                    need.request.id, need.project_id, need.user_id, INSTANCE,
                    {part.row: dict(part.amounts) for part in answer.held if part.amounts})], checked=False)
                transaction.guard_exists(fleet.HOST, answer.host)
        return list(map(_said, answers))

    def dry_run(self, wanted: Sequence[Wanted]) -> list[Placed | Refused]:
        """What `place` would answer. Nothing is allocated."""
        return list(map(_said, self._answers(wanted)))

    def take_over(self, transaction: Transaction, server_id: str, move_id: str) -> None:
        """Give a server what its move holds, in the place of what it held before."""
        held = transaction.require(fleet.ALLOCATION, move_id)
        held.consumer_uuid = server_id
        ledger.replace(transaction, [Allocation(consumer_uuid=move_id), held], checked=False)

    async def plan_drain(self, host: str) -> dict[str, str]:
        """Where each consumer of a host could go, if all leave it now, in the order in which they should."""
        twin = self._live.what_if()
        if host not in twin.hosts:
            return {}
        plan = await asyncio.to_thread(plans.drain, twin, [host])
        return {move.consumer: move.target for move in plan.moves}

    @contextlib.contextmanager
    def _without(self, leaving: Collection[str]) -> Iterator[None]:
        """The live fleet with nobody on some hosts, for as long as it takes."""
        hosts = self._live.current()
        left = [(hosts.request(consumer), name, hosts.held(consumer))
                for name in leaving if name in hosts.hosts for consumer in hosts.on(name)]
        for request, _, _ in left:
            hosts.release(request.id)
        try:
            yield
        finally:
            for request, name, held in left:
                hosts.hold(request, name, held)

    def release(self, transaction: Transaction, server_id: str) -> None:
        """Give back what a server holds; nothing where it holds nothing."""
        ledger.release(transaction, server_id)

    def hold(self, transaction: Transaction, wanted: Wanted, host: str) -> None:
        """Allocate again what a server needs of the host that it is on, whether or not there is room.

        Raises NotFound for a host that is none, Conflict where the shape has groups: which parts of the host served them is not
        known any more.
        """
        if wanted.request.shape.groups:
            raise Conflict("allocation.groups", f"Server {wanted.request.id} has NUMA cells or devices of its own, and nobody "
                                                "knows which any more: delete it, and make it anew.")
        record = transaction.require(fleet.HOST, host)
        transaction.guard_exists(fleet.HOST, host)
        ledger.replace(transaction, [ledger.allocation(wanted.request.id, wanted.project_id, wanted.user_id, INSTANCE,
                                                       {record.id: dict(wanted.request.shape.amounts)})], checked=False)

    def _answers(self, wanted: Sequence[Wanted]) -> list[Placement | Refusal]:
        hosts = self._live.current()
        for need in wanted:
            if need.group is not None and hosts.groups.get(need.group.id) != need.group:
                hosts.set_group(need.group)
        return hosts.dry_run([self._expected(need.request) for need in wanted], explain=True)

    def _expected(self, request: Request) -> Request:
        """With when it will end, where servers are packed: those of one host shall leave it together."""
        if self._live.lives is None or request.until or request.shape.policy != "pack":
            return request
        return replace(request, until=self._live.lives.expected(request.id))


def _said(answer: Placement | Refusal) -> Placed | Refused:
    if isinstance(answer, Refusal):
        return Refused(answer)
    assert answer.choice is not None, "it was asked to explain"
    return Placed(answer.host, answer.choice)
