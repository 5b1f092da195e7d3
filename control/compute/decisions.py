"""Placement decisions: why a server went where it is or nowhere, kept beside it for people to read; and dry runs.

What names hosts is for admins. A decision is written in the commit that it tells of.
"""
from collections.abc import Iterator, Mapping

from google.protobuf.timestamp_pb2 import Timestamp

from control.compute import model
from control.compute.access import find_server
from control.compute.demand import Settings
from control.compute.neighbours import Images, Placed, Placer, Ports, Refused
from control.compute.new_server import Draft, draft
from control.compute.wanted import wanted
from control.kernel import clock, fleet
from control.kernel.caller import Caller
from control.kernel.database import Database, Transaction
from control.kernel.errors import Invalid, NotFound
from control.kernel.rpc import Call
from protos.compute.v1 import placement_decisions_pb2 as pb
from protos.compute.v1.records_pb2 import ServerRecord
from protos.compute.v1.servers_pb2 import CreateServerRequest
from scheduler.types import UNITS, Choice, Fix, Scored

#: Servers of one dry run at most: each is looked at on the event loop, with its reasons.
MOST_DRY = 100

#: A constraint that a fix leaves out -> what a user would do.
ADVICE: Mapping[str, str] = {
    "hosts to avoid": "leave out the hint different_host", "the server group": "leave the server group",
    "the host asked for": "name no host, and no server by the hint same_host",
    "the zone": "name another availability zone, or none",
    "the aggregates": "take a flavor that asks for no such aggregates",
    "the traits": "take a flavor and an image that ask for other traits",
    "the NUMA and device groups": "take a flavor without NUMA cells, devices and groups of resources"}


def decision_of(answer: Placed | Refused, *, hosts: int, revision: int, now: Timestamp,
                server_id: str = "") -> pb.PlacementDecision:
    """A decision as it is kept, with all that admins see."""
    decision = pb.PlacementDecision(decided_at=now, hosts=hosts, revision=revision, server_id=server_id or None)
    if isinstance(answer, Placed):
        choice = answer.choice
        decision.fits, decision.host, decision.candidates, decision.policy = True, answer.host, choice.candidates, choice.policy
        decision.explanation = _reason(choice, hosts)
        decision.winner.CopyFrom(_scored(choice.winner))
        if choice.runner_up is not None:
            decision.runner_up.CopyFrom(_scored(choice.runner_up))
        return decision
    refusal = answer.refusal
    decision.explanation, decision.policy = refusal.reason(), refusal.request.shape.policy
    decision.ruled_out.update(refusal.ruled_out)
    decision.lacks.update(refusal.lacks)
    decision.fixes.extend(map(_fix, refusal.fixes))
    if refusal.nearest:
        decision.nearest = refusal.nearest
    return decision


def view(decision: pb.PlacementDecision, caller: Caller) -> pb.PlacementDecision:
    """A decision as a caller may see it."""
    shown = pb.PlacementDecision()
    shown.CopyFrom(decision)
    if not caller.is_admin:
        for name in ("host", "nearest", "winner", "runner_up", "revision"):
            shown.ClearField(name)  # type: ignore[arg-type]
    return shown


def _reason(choice: Choice, hosts: int) -> str:
    text = f"{choice.candidates} of {hosts} host{'s' if hosts > 1 else ''} could take it; "
    if choice.runner_up is None:
        return f"{text}there was no choice."
    if choice.runner_up.score == choice.winner.score:
        return f"{text}several were equally good by the policy {choice.policy}, and the first of them was taken."
    left = "least" if choice.policy == "pack" else "most"
    return f"{text}the best by the policy {choice.policy}, as a rule the one with the {left} left free, was taken."


def _scored(scored: Scored) -> pb.HostScore:
    return pb.HostScore(host=scored.host, score=scored.score, terms=[
        pb.HostScore.Term(resource_class=term.resource, left_ppm=term.left_ppm, weight=term.weight) for term in scored.terms])


def _fix(fix: Fix) -> pb.PlacementFix:
    advice = [ADVICE.get(constraint, f"do without {constraint}") for constraint in fix.drop]
    if fix.lower:
        most = " and ".join(f"at most {amount} {UNITS.get(name, name)}" for name, amount in fix.lower)
        advice.append(f"take a flavor with {most}")
    text = " and ".join(advice)
    return pb.PlacementFix(text=f"{text[:1].upper()}{text[1:]}.", without=fix.drop, at_most=dict(fix.lower))


class PlacementDecisions:
    """Servicer of compute.v1.PlacementDecisions."""

    def __init__(self, database: Database, ports: Ports, images: Images, placer: Placer, settings: Settings):
        self._database = database
        self._ports = ports
        self._images = images
        self._placer = placer
        self._settings = settings

    async def GetPlacementDecision(self, request: pb.GetPlacementDecisionRequest, call: Call) -> pb.PlacementDecisionResponse:
        server = find_server(self._database, call.caller, request.server_id)
        decision = self._database.get(model.DECISION, server.id)
        if decision is None:
            raise NotFound("compute.placement_decision", f"Nothing is decided on the place of instance {server.id} yet.")
        return pb.PlacementDecisionResponse(placement_decision=view(decision, call.caller))

    async def DryRunPlacement(self, request: CreateServerRequest, call: Call) -> pb.DryRunPlacementResponse:
        plan = draft(request, call.caller, self._database, self._images, self._ports, self._settings)
        if plan.most > MOST_DRY:
            raise Invalid("compute.placement_decision.count", f"A dry run is of at most {MOST_DRY} servers, not {plan.most}.")
        tx = Transaction(self._database.cache)                       # never committed
        answers = self._placer.dry_run([wanted(tx, server, self._settings) for server in _servers(plan)])
        hosts, now = len(tx.rows(fleet.HOST)), clock.now()
        decisions = [decision_of(answer, hosts=hosts, revision=self._database.cache.revision, now=now) for answer in answers]
        return pb.DryRunPlacementResponse(fits=all(decision.fits for decision in decisions),
                                          decisions=[view(decision, call.caller) for decision in decisions])


def _servers(plan: Draft) -> Iterator[ServerRecord]:
    """The servers of a draft, under ids that stand for themselves alone."""
    for index in range(plan.most):
        server = plan.nth(index, f"dry-run-{index}")
        server.created_at.CopyFrom(clock.now())
        yield server
