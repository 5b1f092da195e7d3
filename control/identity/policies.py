"""Serves policy documents, and where each applies. They are kept for other services: what they say does not count here."""
import uuid

from google.protobuf.empty_pb2 import Empty

from control.identity import access
from control.identity.model import ENDPOINT, POLICY, POLICY_PLACE, REGION, SERVICE, missing, new_resource, require
from control.identity.removal import remove
from control.kernel.database import Database, Transaction
from control.kernel.errors import Invalid
from control.kernel.listing import page, select
from control.kernel.rpc import Call
from protos.identity.v1 import policies_pb2 as pb
from protos.identity.v1.catalog_pb2 import Endpoint, ListEndpointsResponse
from protos.identity.v1.records_pb2 import PolicyPlace

MAX_TYPE, MAX_BLOB, MAX_EXTRA = 255, 256 * 1024, 32 * 1024

#: Regions above one another that are looked at.
MAX_REGIONS = 100


class Policies:
    """identity.v1.Policies."""

    def __init__(self, db: Database):
        self._db = db

    async def CreatePolicy(self, request: pb.CreatePolicyRequest, call: Call) -> pb.CreatePolicyResponse:
        policy = new_resource(request.policy)
        policy.id = uuid.uuid4().hex
        _check(policy)
        await self._db.transact(lambda transaction: transaction.put(POLICY, policy))
        return pb.CreatePolicyResponse(policy=policy)

    async def ListPolicies(self, request: pb.ListPoliciesRequest, call: Call) -> pb.ListPoliciesResponse:
        access.require_reader(call, "list_policies")
        rows, marker = page(select(self._db.cache.all(POLICY), request.filters), limit=request.limit, marker=request.marker)
        return pb.ListPoliciesResponse(policies=rows, next_page_marker=marker)

    async def GetPolicy(self, request: pb.GetPolicyRequest, call: Call) -> pb.GetPolicyResponse:
        access.require_reader(call, "get_policy")
        return pb.GetPolicyResponse(policy=require(self._db, POLICY, request.policy_id))

    async def UpdatePolicy(self, request: pb.UpdatePolicyRequest, call: Call) -> pb.UpdatePolicyResponse:
        def decide(transaction: Transaction) -> pb.Policy:
            policy = require(transaction, POLICY, request.policy_id)
            if "type" in request.update_mask.paths:
                policy.type = request.policy.type
            if "blob" in request.update_mask.paths:
                policy.blob.CopyFrom(request.policy.blob)
            for key, value in request.policy.extra.items():
                if key != "links":
                    policy.extra[key].CopyFrom(value)
            _check(policy)
            transaction.put(POLICY, policy)
            return policy

        return pb.UpdatePolicyResponse(policy=await self._db.transact(decide))

    async def DeletePolicy(self, request: pb.DeletePolicyRequest, call: Call) -> Empty:
        def check(transaction: Transaction) -> None:
            require(transaction, POLICY, request.policy_id)

        await remove(self._db, check, lambda: [(POLICY_PLACE, POLICY_PLACE.id_of(place)) for place in
                                               self._db.cache.by(POLICY_PLACE, "policy", request.policy_id)],
                     lambda transaction: transaction.delete(POLICY, request.policy_id))
        return Empty()

    # Where they apply

    async def ApplyPolicy(self, request: pb.ApplyPolicyRequest, call: Call) -> Empty:
        def decide(transaction: Transaction) -> None:
            place = self._place(transaction, request)
            for kind, identifier in ((POLICY, place.policy_id), (ENDPOINT, place.endpoint_id), (SERVICE, place.service_id),
                                     (REGION, place.region_id)):
                if identifier:
                    transaction.guard_exists(kind, identifier)
            transaction.put(POLICY_PLACE, place)

        await self._db.transact(decide)
        return Empty()

    async def CheckPolicyPlace(self, request: pb.CheckPolicyPlaceRequest, call: Call) -> Empty:
        access.require_reader(call, "check_policy_association")
        self._require_placed(self._db, self._place(self._db, request))
        return Empty()

    async def WithdrawPolicy(self, request: pb.WithdrawPolicyRequest, call: Call) -> Empty:
        def decide(transaction: Transaction) -> None:
            place = self._place(transaction, request)
            self._require_placed(transaction, place)
            transaction.delete(POLICY_PLACE, *POLICY_PLACE.id_of(place))

        await self._db.transact(decide)
        return Empty()

    async def ListPolicyEndpoints(self, request: pb.ListPolicyEndpointsRequest, call: Call) -> ListEndpointsResponse:
        access.require_reader(call, "list_endpoints_for_policy")
        require(self._db, POLICY, request.policy_id)
        return ListEndpointsResponse(endpoints=[endpoint for endpoint in self._db.cache.all(ENDPOINT)
                                                if self._effective(endpoint) == request.policy_id])

    async def GetEndpointPolicy(self, request: pb.GetEndpointPolicyRequest, call: Call) -> pb.GetPolicyResponse:
        access.require_reader(call, "get_policy_for_endpoint")
        policy_id = self._effective(require(self._db, ENDPOINT, request.endpoint_id))
        if not policy_id:
            raise missing("policy", f"of endpoint {request.endpoint_id}")
        return pb.GetPolicyResponse(policy=require(self._db, POLICY, policy_id))

    def _place(self, reader: Database | Transaction, request) -> PolicyPlace:
        """The place that a request names. Raises NotFound for what is not there."""
        require(reader, POLICY, request.policy_id)
        for kind, identifier in ((ENDPOINT, request.endpoint_id), (SERVICE, request.service_id), (REGION, request.region_id)):
            if identifier:
                require(reader, kind, identifier)  # type: ignore[misc]
        if bool(request.endpoint_id) == bool(request.service_id) or (request.region_id and not request.service_id):
            raise Invalid("identity.policy.place", "Exactly one of endpoint_id and service_id is required.")
        return PolicyPlace(endpoint_id=request.endpoint_id, service_id=request.service_id, region_id=request.region_id,
                           policy_id=request.policy_id)

    def _require_placed(self, reader: Database | Transaction, place: PolicyPlace) -> None:
        found = reader.get(POLICY_PLACE, *POLICY_PLACE.id_of(place))
        if found is None or found.policy_id != place.policy_id:
            raise missing("policy association", place.policy_id)

    def _effective(self, endpoint: Endpoint) -> str:
        """The id of the policy that counts for an endpoint; "" for none."""
        places = [PolicyPlace(endpoint_id=endpoint.id)]
        region_id = endpoint.region_id
        for _ in range(MAX_REGIONS):
            if not region_id:
                break
            places.append(PolicyPlace(service_id=endpoint.service_id, region_id=region_id))
            region = self._db.get(REGION, region_id)
            region_id = region.parent_region_id if region else ""
        places.append(PolicyPlace(service_id=endpoint.service_id))
        found = (self._db.get(POLICY_PLACE, *POLICY_PLACE.id_of(place)) for place in places)
        return next((place.policy_id for place in found if place is not None), "")


def _check(policy: pb.Policy) -> None:
    if not 1 <= len(policy.type) <= MAX_TYPE:
        raise Invalid("identity.policy.type", f"Invalid input for field 'type': 1 to {MAX_TYPE} characters.")
    if not policy.HasField("blob") or policy.blob.ByteSize() > MAX_BLOB:
        raise Invalid("identity.policy.blob", f"Invalid input for field 'blob': it is required and has at most {MAX_BLOB} bytes.")
    if sum(len(key.encode()) + value.ByteSize() for key, value in policy.extra.items()) > MAX_EXTRA:
        raise Invalid("identity.extra", f"Additional properties have at most {MAX_EXTRA} bytes together.")
