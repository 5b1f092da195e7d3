"""The supervised etcd: how it is started, when it is ready, and the upkeep that etcd leaves to its user.

It listens on loopback only, speaks to nobody without a certificate of this cloud, and its data directory is its own
(0700). Whoever supervises processes starts it; nothing here holds one.
"""
import asyncio
import os
import platform
import shutil
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from control.kernel.errors import Unavailable
from control.kernel.etcd_client import AioRpcError, Client, rpc_pb2
from control.kernel.pki import Credentials, ensure_leaf


@dataclass(frozen=True, slots=True)
class Config:
    """One member, alone in its cluster."""

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

    @property
    def endpoint(self) -> str:
        return f"https://{self.address}:{self.client_port}"


def server_credentials(directory: Path, address: str = "127.0.0.1") -> Credentials:
    """The member's certificate, made where it is missing. Etcd is a client of itself, so it is for both uses."""
    return ensure_leaf(directory, "etcd", [address, "127.0.0.1", "localhost"], server=True, client=True)


def client_credentials(directory: Path, name: str = "control") -> Credentials:
    """A certificate that the member lets in, made where it is missing."""
    return ensure_leaf(directory, name, client=True)


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
    client, peer = config.endpoint, f"https://{config.address}:{config.peer_port}"
    tls = config.credentials
    return [
        binary(config),
        f"--name={config.name}",
        f"--data-dir={config.data_dir}",
        f"--listen-client-urls={client}", f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}", f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster={config.name}={peer}", "--initial-cluster-token=brume",
        "--client-cert-auth", f"--cert-file={tls.certificate}", f"--key-file={tls.key}", f"--trusted-ca-file={tls.ca}",
        "--peer-client-cert-auth", f"--peer-cert-file={tls.certificate}", f"--peer-key-file={tls.key}",
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
