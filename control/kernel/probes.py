"""Whether what the control plane stands on is well: etcd's members, and this machine's certificates."""
import datetime
from collections.abc import Iterable
from pathlib import Path

from cryptography import x509

from control.kernel.errors import Unavailable
from control.kernel.etcd_client import AioRpcError, rpc_pb2
from control.kernel.etcd_store import EtcdStore
from control.kernel.findings import ERROR, WARNING, Finding, Probe

#: Seconds that a member has to answer; bytes of its database, and revisions that it is behind the others, that are worth a word.
ANSWER_WITHIN, LARGE, BEHIND = 3.0, 1 << 30, 10_000

#: Before a certificate ends. They are made anew at a third of their life, four months before.
SOON = datetime.timedelta(days=30)


def probes(store: EtcdStore, pki: Path) -> list[Probe]:
    async def members() -> Iterable[Finding]:
        return await _members(store)

    async def certificates() -> Iterable[Finding]:
        return list(_certificates(pki))

    return [Probe("etcd.members", "All members of etcd answer, without alarm, and follow.", members),
            Probe("pki.certificates", "No certificate of this machine ends soon.", certificates)]


async def _members(store: EtcdStore) -> Iterable[Finding]:
    found, raft = [], dict[str, int]()
    for endpoint in store.client.endpoints:
        try:
            status = await store.client.at(endpoint).maintenance.Status(rpc_pb2.StatusRequest(), timeout=ANSWER_WITHIN)
        except (AioRpcError, Unavailable) as error:
            why = error.details() if isinstance(error, AioRpcError) else str(error)
            found.append(Finding(f"etcd {endpoint}", f"does not answer: {why}",
                                 "Without a majority of members nothing can change.",
                                 remedy="Start it; replace the member where it is lost."))
            continue
        raft[endpoint] = status.raftIndex
        if not status.leader:
            found.append(Finding(f"etcd {endpoint}", "knows no leader", "It is cut off from the others.",
                                 remedy="Look at the network between the members."))
        if status.dbSize > LARGE:
            found.append(Finding(f"etcd {endpoint}", f"its database has {status.dbSize >> 20} MiB, {status.dbSizeInUse >> 20} of "
                                 "them in use", "At its quota it takes no writes.", severity=WARNING,
                                 remedy="Find what grows, or raise --quota-backend-bytes."))
    for endpoint, index in raft.items():
        if max(raft.values()) - index > BEHIND:
            found.append(Finding(f"etcd {endpoint}", f"is {max(raft.values()) - index} entries behind",
                                 "When others fail it has to catch up first.", severity=WARNING,
                                 remedy="Look at its disk and network."))
    try:
        alarms = (await store.client.call(lambda member: member.maintenance.Alarm, rpc_pb2.AlarmRequest())).alarms
        found += [Finding(f"etcd member {alarm.memberID:x}", f"raises the alarm {rpc_pb2.AlarmType.Name(alarm.alarm)}",
                          "Nothing can be written.", remedy="Make room, or replace the member.") for alarm in alarms]
    except (AioRpcError, Unavailable):
        pass                                    # which is said above
    return found


def _certificates(directory: Path) -> Iterable[Finding]:
    now = datetime.datetime.now(datetime.UTC)
    for path in sorted(directory.glob("*.crt")):
        try:
            ends = x509.load_pem_x509_certificate(path.read_bytes()).not_valid_after_utc
        except (OSError, ValueError) as error:
            yield Finding(f"certificate {path}", f"cannot be read: {error}", "What needs it does not start.",
                          remedy="Restore it from a backup, or remove it with its key: it is made anew.")
            continue
        if ends - now < SOON:
            yield Finding(f"certificate {path}", f"{'ended' if ends < now else 'ends'} on {ends:%Y-%m-%d}",
                          "Connections that need it are refused from then on.", severity=ERROR if ends < now else WARNING,
                          remedy="Restart what uses it: it is made anew where the authority is.")
