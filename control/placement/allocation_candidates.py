"""The servicer of allocation candidates: asks the view's forest, and writes what it says as the microversion has it."""
import functools

from google.protobuf.struct_pb2 import ListValue

from control.kernel.database import Database
from control.kernel.rpc import Call
from control.placement import candidates, query
from control.placement.candidates import Candidate, Node, Request
from control.placement.view import View
from protos.placement.v1 import allocation_candidates_pb2 as pb
from protos.placement.v1.allocations_pb2 import ListedAllocation, ProviderReference


class AllocationCandidates:
    def __init__(self, database: Database, view: View):
        self._db = database
        self._view = view

    async def ListAllocationCandidateLists(self, request: pb.ListAllocationCandidatesRequest,
                                           call: Call) -> pb.AllocationCandidateListsResponse:
        wanted, found = self._find(request, call)
        return pb.AllocationCandidateListsResponse(
            provider_summaries=self._summaries(wanted, found, call),
            allocation_requests=[pb.AllocationRequestList(allocations=[
                ListedAllocation(resource_provider=ProviderReference(uuid=uuid), resources=amounts)
                for uuid, amounts in candidate.amounts.items()]) for candidate in found])

    async def ListAllocationCandidates(self, request: pb.ListAllocationCandidatesRequest,
                                       call: Call) -> pb.AllocationCandidatesResponse:
        wanted, found = self._find(request, call)
        answer = pb.AllocationCandidatesResponse(provider_summaries=self._summaries(wanted, found, call))
        for candidate in found:
            shown = answer.allocation_requests.add()
            for uuid, amounts in candidate.amounts.items():
                shown.allocations[uuid].resources.update(amounts)
            if query.minor(call) >= 34:
                for suffix, uuids in candidate.mappings.items():
                    listed: ListValue = shown.mappings[suffix]
                    listed.extend(uuids)
        return answer

    def _find(self, request: pb.ListAllocationCandidatesRequest, call: Call) -> tuple[Request, list[Candidate]]:
        wanted = query.request({each.key: each.values for each in request.parameters}, query.minor(call))
        query.check_names(self._db, list(wanted.groups.values()), wanted.root_required | wanted.root_forbidden)
        return wanted, candidates.find(self._view.forest, wanted)

    def _summaries(self, wanted: Request, found: list[Candidate], call: Call) -> dict[str, pb.ProviderSummary]:
        """The providers that candidates take of, from 1.29 on with all of their trees."""
        version, forest = query.minor(call), self._view.forest
        uuids = dict.fromkeys(uuid for candidate in found for uuid in candidate.amounts)
        if wanted.nested:
            roots = dict.fromkeys(forest.nodes[uuid].root for uuid in uuids)
            uuids = dict.fromkeys(uuid for root in roots for uuid in forest.trees[root])
        classes = None if version >= 27 else {name for group in wanted.groups.values() for name in group.resources}
        return {uuid: _summary(forest.nodes[uuid], classes, version) for uuid in uuids}


@functools.lru_cache(1000)
def _sorted(traits: frozenset[str]) -> tuple[str, ...]:
    return tuple(sorted(traits))


def _summary(node: Node, classes: set[str] | None, version: int) -> pb.ProviderSummary:
    return pb.ProviderSummary(
        resources={name: pb.ClassSummary(capacity=stock.capacity, used=stock.used) for name, stock in node.stocks.items()
                   if classes is None or name in classes},
        traits=_sorted(node.traits) if version >= 17 else (), parent_provider_uuid=node.parent or None,
        root_provider_uuid=node.root)
