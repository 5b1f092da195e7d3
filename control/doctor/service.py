"""Runs the checks of all services, and their repairs; the servicer of doctor.v1.Doctor."""
import asyncio
import logging
from collections.abc import Iterable, Sequence

from google.protobuf.descriptor import ServiceDescriptor

from control.kernel.database import Database, Transaction
from control.kernel.errors import Error, Invalid, Unavailable
from control.kernel.findings import ERROR, Check, Finding, Probe
from control.kernel.rpc import Call
from protos.doctor.v1 import doctor_pb2 as pb

log = logging.getLogger(__name__)

#: Seconds between two looks at what was found: what was on its way has come by then, as history goes after its server.
CONFIRM_AFTER = 1.0

#: Seconds between the leader's looks at everything.
INTERVAL = 600.0

#: Operations that one commit of repairs is filled to; one more repair may need as many again, and the store takes 127.
BATCH_OPERATIONS = 40

#: How often all checks are made in one repair: what one of them puts right may show another what is wrong.
PASSES = 3

#: Findings of one check in one answer at most; the rest are counted.
MOST = 1000

Found = tuple[str, Finding]             # the check's name, and what it found


class Doctor:
    """All checks of one replica. `counts`: findings by check, when the leader looked last."""

    def __init__(self, database: Database, checks: Sequence[Check], probes: Sequence[Probe]):
        self._db = database
        self._checks = checks
        self._probes = probes
        self._all: list[Check | Probe] = [*checks, *probes]
        self._repairing = asyncio.Lock()
        self.counts: dict[str, int] = {}
        names = [each.name for each in self._all]
        if len(set(names)) < len(names):
            raise ValueError("two checks have one name")

    def servicers(self) -> list[tuple[object, ServiceDescriptor]]:
        """What the dispatcher shall serve."""
        return [(self, pb.DESCRIPTOR.services_by_name["Doctor"])]

    # The rpcs

    async def Examine(self, request: pb.ExamineRequest, call: Call) -> pb.ExamineResponse:
        names = self._names(request.checks)
        revision = self._db.cache.revision
        found = await self.examine(names)
        counts: dict[str, int] = {}
        for name, _ in found:
            counts[name] = counts.get(name, 0) + 1
        return pb.ExamineResponse(findings=_shown(found), revision=revision, checks=[
            pb.Check(name=each.name, title=each.title, found=counts.get(each.name, 0))
            for each in self._all if each.name in names])

    async def Repair(self, request: pb.RepairRequest, call: Call) -> pb.RepairResponse:
        names = self._names(request.checks)
        self._db.apart()                            # a commit for each batch, and files
        repaired = await self.repair(names)
        return pb.RepairResponse(repaired=_shown(repaired), findings=_shown(await self.examine(names)))

    def _names(self, asked: Iterable[str]) -> set[str]:
        known = {each.name for each in self._all}
        if unknown := sorted(set(asked) - known):
            raise Invalid("doctor.check", f"There is no check {unknown[0][:80]!r}; there are {', '.join(sorted(known))}.")
        return set(asked) or known

    # Looking

    async def examine(self, names: set[str]) -> list[Found]:
        """What is out of step, and was a moment later."""
        first = await self._look(names)
        if not first:
            return []
        await asyncio.sleep(CONFIRM_AFTER)
        seen = {(name, finding.subject) for name, finding in first}
        return [(name, finding) for name, finding in await self._look({name for name, _ in first})
                if (name, finding.subject) in seen]

    async def _look(self, names: set[str]) -> list[Found]:
        """What each check finds in a snapshot of its own, and each probe."""
        found: list[Found] = []
        for check in self._checks:
            if check.name in names:
                found += [(check.name, finding) for finding in check.find(Transaction(self._db.cache))]
                await asyncio.sleep(0)              # others have their turn
        for probe in self._probes:
            if probe.name in names:
                found += [(probe.name, finding) for finding in await probe.look()]
        return found

    # Repairing

    async def repair(self, names: set[str]) -> list[Found]:
        """Put right what can be; what that was."""
        done: list[Found] = []
        async with self._repairing:
            for _ in range(PASSES):
                before = len(done)
                for check in self._checks:
                    if check.name in names:
                        done += await self._mend(check)
                if len(done) == before:
                    break
            for probe in self._probes:
                if probe.name in names:
                    done += await self._cure(probe)
        for name, finding in done:
            log.warning("%s: repaired %s: it %s", name, finding.subject, finding.what)
        return done

    async def _mend(self, check: Check) -> list[Found]:
        """Commit a check's repairs, as many at once as fit. Each is decided on what the check finds in that transaction."""
        done: dict[str, Finding] = {}
        tried: set[str] = set()

        def decide(tx: Transaction) -> tuple[dict[str, Finding], set[str]]:
            batch: dict[str, Finding] = {}
            failed: set[str] = set()
            for finding in list(check.find(tx)):
                if finding.mend is None or finding.subject in tried:
                    continue
                writes, guards = tx.writes()
                if batch and len(writes) + len(guards) > BATCH_OPERATIONS:
                    break
                try:
                    finding.mend(tx)
                    batch[finding.subject] = finding
                except Unavailable:
                    raise
                except Error as error:
                    log.warning("%s: %s cannot be repaired: %s", check.name, finding.subject, error)
                    failed.add(finding.subject)
            return batch, failed

        while True:
            batch, failed = await self._db.transact(decide)
            done |= batch
            tried |= failed | batch.keys()
            if not batch:
                return [(check.name, finding) for finding in done.values()]

    @staticmethod
    async def _cure(probe: Probe) -> list[Found]:
        done = []
        for finding in await probe.look():
            if finding.cure is not None:
                try:
                    await finding.cure()
                    done.append((probe.name, finding))
                except (Error, OSError) as error:
                    log.warning("%s: %s cannot be repaired: %s", probe.name, finding.subject, error)
        return done

    # Running

    async def run(self) -> None:
        """Look at everything now and then, and log what is new, until cancelled: a part of the leader's work."""
        known: set[tuple[str, str]] = set()
        while True:
            await asyncio.sleep(INTERVAL)
            try:
                found = await self.examine(self._names(()))
            except Exception:                       # a check that breaks ends neither itself nor the leader's other work
                log.exception("the checks failed")
                continue
            self.counts = {each.name: sum(name == each.name for name, _ in found) for each in self._all}
            for name, finding in found:
                if (name, finding.subject) not in known:
                    level = logging.ERROR if finding.severity == ERROR else logging.WARNING
                    log.log(level, "%s: %s %s. %s", name, finding.subject, finding.what, finding.why)
            known = {(name, finding.subject) for name, finding in found}


def _shown(found: Iterable[Found]) -> list[pb.Finding]:
    counts: dict[str, int] = {}
    shown = []
    for name, finding in found:
        counts[name] = counts.get(name, 0) + 1
        if counts[name] <= MOST:
            shown.append(pb.Finding(
                check=name, subject=finding.subject, what=finding.what, why=finding.why, severity=finding.severity,
                remedy=finding.remedy, repairable=finding.can_be_repaired))
    return shown
