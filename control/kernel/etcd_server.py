"""The supervised etcd: how a member is started, and when it is ready.

It listens on one address, loopback where it is alone, lets in nobody but the control plane and its peers (a host's
certificate is of the same authority, and opens nothing here), and its data directory is its own (0700). Whoever supervises
processes starts it; nothing here holds one.
"""
import asyncio
import datetime
import os
import platform
import shutil
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from control.kernel.config import in_url
from control.kernel.errors import Unavailable
from control.kernel.etcd_client import AioRpcError, Client, rpc_pb2
from control.kernel.pki import LEAF_LIFE, Credentials, ensure_leaf


@dataclass(frozen=True, slots=True)
class Config:
    """One member."""

    data_dir: Path
    credentials: Credentials               # its own, for server and client use: see server_credentials()
    client_port: int = 2379
    peer_port: int = 2380
    address: str = "127.0.0.1"
    name: str = "brume"
    binary: str = "etcd"
    #: Bytes of database at which etcd refuses writes. Records are small: a thousand hosts with a hundred thousand
    #: servers are about 1 GiB with an hour's history.
    quota_bytes: int = 4 << 30
    #: How often a watch hears the revision when nothing under its prefix changes.
    progress_interval: str = "1m"
    #: The cluster that it joins, name -> peer URL, itself among them; none: it founds one. Counts at its first start only.
    joins: Mapping[str, str] = field(default_factory=dict)

    @property
    def endpoint(self) -> str:
        return f"https://{in_url(self.address)}:{self.client_port}"

    @property
    def peer_url(self) -> str:
        return f"https://{in_url(self.address)}:{self.peer_port}"

    @property
    def has_data(self) -> bool:
        return (self.data_dir / "member").exists()


#: The name that a certificate must hold for to be let in, whatever it is called.
CLIENT = "control"


def server_credentials(directory: Path, address: str = "127.0.0.1", life: datetime.timedelta = LEAF_LIFE) -> Credentials:
    """The member's certificate, made where it is missing. Peers are clients of each other, so it is for both uses."""
    return ensure_leaf(directory, "etcd", [address, "127.0.0.1", "localhost", CLIENT], server=True, client=True, life=life)


def client_credentials(directory: Path, name: str = CLIENT, life: datetime.timedelta = LEAF_LIFE) -> Credentials:
    """A certificate that the member lets in, made where it is missing."""
    return ensure_leaf(directory, name, [CLIENT], client=True, life=life)


def prepare(config: Config) -> None:
    """Make the data directory; raise Unavailable, saying what to do, where etcd could not start."""
    binary(config)
    for what, port in (("client", config.client_port), ("peer", config.peer_port)):
        with socket.socket(socket.AF_INET6 if ":" in config.address else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((config.address, port))
            except OSError as error:
                raise Unavailable("etcd.port", f"etcd's {what} port {config.address}:{port} cannot be used ({error.strerror}): "
                                  f"stop what listens there (ss -ltnp 'sport = {port}') or choose another port") from error
    config.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    config.data_dir.chmod(0o700)


def binary(config: Config) -> str:
    """The path of etcd. Raises Unavailable where there is none."""
    path = shutil.which(config.binary)
    if path is None:
        raise Unavailable("etcd.binary", f"there is no {config.binary} on this machine's PATH: apt-get install etcd-server")
    return path


def command(config: Config) -> list[str]:
    """The process to run, with environment(). Raises Unavailable where there is no etcd."""
    client, peer = config.endpoint, config.peer_url
    tls = config.credentials
    cluster = config.joins or {config.name: peer}
    return [
        binary(config),
        f"--name={config.name}",
        f"--data-dir={config.data_dir}",
        f"--listen-client-urls={client}", f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}", f"--initial-advertise-peer-urls={peer}",
        "--initial-cluster=" + ",".join(f"{name}={url}" for name, url in cluster.items()), "--initial-cluster-token=brume",
        f"--initial-cluster-state={'existing' if config.joins else 'new'}",
        # Its gateway for JSON is a client that --client-cert-allowed-hostname shuts out, and nobody's.
        "--enable-grpc-gateway=false",
        "--client-cert-auth", f"--client-cert-allowed-hostname={CLIENT}",
        f"--cert-file={tls.certificate}", f"--key-file={tls.key}", f"--trusted-ca-file={tls.ca}",
        "--peer-client-cert-auth", "--peer-cert-allowed-cn=etcd",
        f"--peer-cert-file={tls.certificate}", f"--peer-key-file={tls.key}",
        f"--peer-trusted-ca-file={tls.ca}",
        # Maintenance compacts; this is for a cloud whose leader is away for long.
        "--auto-compaction-mode=periodic", "--auto-compaction-retention=1h",
        f"--quota-backend-bytes={config.quota_bytes}",
        # The raft log is kept in memory up to twice this many entries; fewer means more frequent snapshots.
        "--snapshot-count=10000",
        f"--experimental-watch-progress-notify-interval={config.progress_interval}",
        "--logger=zap", "--log-outputs=stderr", "--log-level=warn",
    ]


def environment() -> dict[str, str]:
    """This process's environment without ETCD_* (etcd refuses to start where one of them repeats a flag)."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ETCD_")}
    if platform.machine() != "x86_64":
        kept["ETCD_UNSUPPORTED_ARCH"] = {"aarch64": "arm64"}.get(platform.machine(), platform.machine())
    return kept


async def wait_ready(endpoints: Sequence[str], credentials: Credentials | None = None, timeout: float = 15.0) -> None:
    """Return once etcd has a leader and answers a linearizable read. Raises Unavailable with the reason after `timeout`."""
    give_up = time.monotonic() + timeout
    reason: Exception | None = None
    while (left := give_up - time.monotonic()) > 0:
        client = Client(endpoints, credentials, patience=0)
        try:
            await client.call(lambda member: member.kv.Range, rpc_pb2.RangeRequest(key=b"ready", count_only=True),
                              deadline=min(left, 1.0))
            return
        except (Unavailable, AioRpcError) as error:
            reason = error
        finally:
            await client.close()
        await asyncio.sleep(0.05)
    raise Unavailable("etcd.not_ready", f"etcd was not ready after {timeout:g} s; its log says more. {reason}") from reason
