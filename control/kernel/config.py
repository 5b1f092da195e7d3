"""A cloud's settings: defaults, then what an earlier `brume up` was told, then the configuration file, then flags.

The settings that a cloud was brought up with are kept in its state directory, so every later command needs only that.
"""
import ipaddress
import json
import os
import re
import socket
import tomllib
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from control.kernel.errors import Invalid

DEFAULT_STATE_DIR = Path("/var/lib/brume")

#: Names of the parts' certificates, which no host may have: whoever has one is the part.
PARTS = frozenset({"agents", "ca", "control", "etcd"})


@dataclass(frozen=True)
class ReplicaPlace:
    """Where a replica of the control plane and its etcd member live: an entry of [[replicas]]."""

    name: str
    address: str
    #: The machine is a hypervisor host, too.
    agent: bool = False


@dataclass(frozen=True)
class Config:
    """Settings of one cloud. Paths are absolute; ports are TCP on `listen`, 0 for none."""

    state_dir: Path = DEFAULT_STATE_DIR
    #: Prefix of everything that the cloud makes on its hosts: namespaces, tables, aliases of links. 1 to 12 characters.
    name: str = "brume"
    #: Address that clients reach: REST on `port`, gRPC on `port` + 1. Loopback by default.
    listen: str = "127.0.0.1"
    port: int = 5000
    #: Address that agents reach, on `port` + 2.
    agent_listen: str = "127.0.0.1"
    #: As clients write it; "" for http(s)://<listen>:<port>.
    public_url: str = ""
    region: str = "RegionOne"
    #: TLS for clients: paths of PEM files, both or none.
    certificate: str = ""
    key: str = ""
    #: etcd's members, "https://host:port"; none: each replica runs one of its own on `port` + 3, with its peers on `port` + 4.
    etcd: tuple[str, ...] = ()
    #: The machines that run the control plane; none: this one does. A machine finds itself by its host name.
    replicas: tuple[ReplicaPlace, ...] = ()
    #: Replicas on this machine, each in a network namespace of its own with an address of `replica_cidr`; 1: as this machine is.
    replicas_here: int = 1
    replica_cidr: str = "172.24.3.0/24"
    #: Life of the certificates that the cloud makes for its parts; each is renewed in its last third.
    certificate_days: float = 365.0
    #: Range of the public network, routed by the host.
    public_cidr: str = "172.24.4.0/24"
    #: Range of the demo project's network.
    private_cidr: str = "10.0.0.0/24"
    #: Name of this host; "" for the machine's.
    host: str = ""
    #: Where other hosts reach this one; "" for `agent_listen`.
    host_address: str = ""
    availability_zone: str = ""
    #: "" to choose; "simulated" for hosts that only pretend.
    hypervisor: str = ""
    libvirt_uri: str = ""
    #: Over-commit.
    cpu_allocation_ratio: float = 4.0
    ram_allocation_ratio: float = 1.0
    disk_allocation_ratio: float = 1.0
    #: "pack" or "spread".
    placement_policy: str = "spread"
    #: "manual", or "auto": servers of a host that falls silent are started elsewhere on their own, and agents stop their guests
    #: when they hear from no replica of the control plane for 12 seconds. For clouds of three replicas: see docs/operations.md.
    evacuation: str = "manual"
    #: A program and its arguments that cuts the power of the host whose name is added, and ends with 0 when that is off for
    #: certain. With evacuation = "auto", run before a silent host counts as fenced.
    fence_command: tuple[str, ...] = ()
    #: MiB of each host that servers do not get.
    reserved_ram_mib: int = 512
    #: Bytes that one image may have.
    max_image_size: int = 64 * 2**30
    #: How long a call that is made again with its idempotency key is answered as before.
    idempotency_key_hours: int = 24
    log_level: str = "INFO"
    #: "text" for people, "json" for what collects logs: one object per line.
    log_format: str = "text"
    #: Address of /metrics, /healthz and /readyz, which ask nobody who they are: the control plane's on `port` + 5, the agent's on
    #: `port` + 6. "": none.
    metrics_listen: str = "127.0.0.1"
    #: OpenTelemetry collector that takes traces by OTLP over HTTP, "http://host:4318"; "": that of OTEL_EXPORTER_OTLP_ENDPOINT.
    otlp_endpoint: str = ""
    #: Rules that override the defaults of who may do what, in oslo.policy's language; "" for policy.yaml in the state directory.
    policy_file: str = ""
    #: MiB that etcd's database may have; then it takes no more writes until maintenance has made room. Of an etcd of yours, what
    #: it was started with (--quota-backend-bytes). A hundred thousand servers with their history are about 1 GiB.
    etcd_quota_mib: int = 4096
    #: Days that the audit journal's files are kept; 0: for ever.
    audit_keep_days: int = 0
    #: Change nothing while the audit journal is not being written (its disk is full, its process is gone).
    audit_required: bool = False
    #: Section of the identity service: [identity.domains.<name>] for each domain whose users are an LDAP directory's.
    identity: dict[str, Any] = field(default_factory=dict)
    #: Security compliance, under Keystone's names and, in a file, in its section [security_compliance]. 0 and "" ask nothing.
    #: Wrong passwords in a row that lock a user, and for how many seconds.
    lockout_failure_attempts: int = 10
    lockout_duration: int = 1800
    password_expires_days: int = 0
    #: How many passwords in a row, the present one among them, must differ.
    unique_last_password_count: int = 0
    #: Days that a user keeps a password that they chose.
    minimum_password_age: int = 0
    #: What a password must match, and how users are told.
    password_regex: str = ""
    password_regex_description: str = ""
    #: A password that somebody else chose has to be changed before anything else.
    change_password_upon_first_use: bool = False
    disable_user_account_days_inactive: int = 0

    @property
    def url(self) -> str:
        """The cloud's root as clients write it, without a slash at its end."""
        if self.public_url:
            return self.public_url.rstrip("/")
        host = self.replicas[0].address if self.replicas else \
            socket.gethostname() if self.listen in ("0.0.0.0", "::") else self.listen
        return f"{'https' if self.certificate else 'http'}://{in_url(host)}:{self.port}"

    @property
    def auth_url(self) -> str:
        return f"{self.url}/v3"

    @property
    def grpc_port(self) -> int:
        return self.port + 1

    @property
    def agent_port(self) -> int:
        return self.port + 2

    @property
    def agent_address(self) -> str:
        """Where agents and other replicas reach this one."""
        host = socket.gethostname() if self.agent_listen in ("0.0.0.0", "::") else self.agent_listen
        return f"[{host}]:{self.agent_port}" if ":" in host else f"{host}:{self.agent_port}"

    @property
    def places(self) -> tuple[ReplicaPlace, ...]:
        """All replicas of a cloud that has several, here or on other machines."""
        if self.replicas_here == 1:
            return self.replicas
        first = ipaddress.ip_network(self.replica_cidr).network_address
        return tuple(ReplicaPlace(f"replica-{number}", str(first + number)) for number in range(1, self.replicas_here + 1))

    @property
    def place(self) -> ReplicaPlace | None:
        """This machine's own entry of [[replicas]]."""
        return next((place for place in self.replicas if place.name == self.host_name), None)

    @property
    def runs_control(self) -> bool:
        return not self.replicas or self.place is not None

    @property
    def runs_agent(self) -> bool:
        return not self.replicas or self.place is None or self.place.agent

    @property
    def etcd_endpoints(self) -> tuple[str, ...]:
        """The members to ask, this replica's own first."""
        if self.etcd:
            return self.etcd
        addresses = [place.address for place in sorted(self.places, key=lambda place: place != self.place)]
        return tuple(f"https://{in_url(address)}:{self.port + 3}" for address in addresses or ["127.0.0.1"])

    @property
    def agent_endpoints(self) -> tuple[str, ...]:
        """Where agents find the replicas."""
        addresses = [place.address for place in self.places] or [self.agent_listen]
        return tuple(f"{in_url(address)}:{self.agent_port}" for address in addresses)

    @property
    def pki_dir(self) -> Path:
        """The authority and the certificates of this machine's parts."""
        return self.path("pki")

    @property
    def audit_dir(self) -> Path:
        """The audit journal of this machine."""
        return self.path("audit")

    @property
    def policy_path(self) -> Path:
        return Path(self.policy_file) if self.policy_file else self.path("policy.yaml")

    @property
    def host_name(self) -> str:
        return self.host or socket.gethostname()

    def path(self, *parts: str) -> Path:
        """A path in the state directory."""
        return self.state_dir.joinpath(*parts)

    def check(self) -> "Config":
        """This, if it makes sense. Raises Invalid, naming the setting."""
        if not (1 <= len(self.name) <= 12 and self.name.isascii() and self.name.replace("-", "").isalnum()):
            raise Invalid("config.name", f"name {self.name!r} must be 1 to 12 letters, digits or hyphens")
        if not 1 <= self.port <= 65529:
            raise Invalid("config.port", f"port {self.port} must be 1 to 65529: the seven ports from it on are used")
        if bool(self.certificate) != bool(self.key):
            raise Invalid("config.certificate", "certificate and key go together: give both or none")
        for path in filter(None, (self.certificate, self.key)):
            if not os.access(path, os.R_OK):
                raise Invalid("config.certificate", f"{path} cannot be read")
        if self.host_name in PARTS or self.host_name.startswith("control-"):
            raise Invalid("config.host", f"no host may be called {self.host_name!r}, as a part of the cloud is: give it another "
                                         "name in this cloud with --host")
        if self.replicas_here not in (1, 3, 5):
            raise Invalid("config.replicas_here", f"replicas {self.replicas_here} must be 1, 3 or 5: a majority must live")
        if self.replicas_here > 1 and (self.replicas or self.etcd):
            raise Invalid("config.replicas_here", "several replicas on this machine have their own etcd and stand alone: "
                                                  "leave out [[replicas]] and etcd, or --replicas")
        try:
            network = ipaddress.ip_network(self.replica_cidr)
        except ValueError as error:
            raise Invalid("config.replica_cidr", f"replica_cidr {self.replica_cidr!r}: {error}") from error
        if network.version != 4 or network.prefixlen > 28:
            raise Invalid("config.replica_cidr", f"replica_cidr {self.replica_cidr} must be an IPv4 range of /28 or more")
        if len({place.name for place in self.replicas}) < len(self.replicas) or \
                len({place.address for place in self.replicas}) < len(self.replicas):
            raise Invalid("config.replicas", "no two replicas can have one name or one address")
        if not 0.0001 <= self.certificate_days <= 3650:
            raise Invalid("config.certificate_days", f"certificate_days {self.certificate_days} must be 0.0001 to 3650")
        if self.placement_policy not in ("pack", "spread"):
            raise Invalid("config.placement_policy", f"placement_policy {self.placement_policy!r} must be pack or spread")
        if self.evacuation not in ("manual", "auto"):
            raise Invalid("config.evacuation", f"evacuation {self.evacuation!r} must be manual or auto")
        if self.fence_command and not os.path.isabs(self.fence_command[0]):
            raise Invalid("config.fence_command", f"fence_command {self.fence_command[0]!r} must be an absolute path")
        if self.log_format not in ("text", "json"):
            raise Invalid("config.log_format", f"log_format {self.log_format!r} must be text or json")
        if self.hypervisor not in ("", "simulated"):
            raise Invalid("config.hypervisor", f"hypervisor {self.hypervisor!r} must be empty or simulated")
        for name in ("lockout_failure_attempts", "password_expires_days", "unique_last_password_count", "minimum_password_age",
                     "disable_user_account_days_inactive"):
            if not 0 <= getattr(self, name) <= 100_000:
                raise Invalid(f"config.{name}", f"{name} {getattr(self, name)} must be 0 to 100000")
        if not 16 <= self.etcd_quota_mib <= 102_400:
            raise Invalid("config.etcd_quota_mib", f"etcd_quota_mib {self.etcd_quota_mib} must be 16 to 102400")
        if not 0 <= self.audit_keep_days <= 100_000:
            raise Invalid("config.audit_keep_days", f"audit_keep_days {self.audit_keep_days} must be 0 to 100000")
        if not 1 <= self.idempotency_key_hours <= 10_000:
            raise Invalid("config.idempotency_key_hours", "idempotency_key_hours must be 1 to 10000")
        if self.lockout_duration < 1:
            raise Invalid("config.lockout_duration", f"lockout_duration {self.lockout_duration} must be at least 1 second")
        try:
            re.compile(self.password_regex)
        except re.error as error:
            raise Invalid("config.password_regex", f"password_regex {self.password_regex!r}: {error}") from error
        return self


def load(state_dir: Path | None = None, file: Path | None = None, **flags: Any) -> Config:
    """The settings of a cloud. Flags that are None say nothing.

    Raises Invalid where a file cannot be read, has an unknown key, or a value makes no sense.
    """
    state_dir = Path(state_dir or os.environ.get("BRUME_STATE_DIR") or DEFAULT_STATE_DIR).absolute()
    settings = _saved(state_dir) | (_toml(file) if file else {})
    settings |= {key: value for key, value in flags.items() if value is not None}
    known = {item.name: item for item in fields(Config) if item.name != "state_dir"}
    for key in settings:
        if key not in known:
            raise Invalid(f"config.{key}", f"unknown setting {key!r}; there are {', '.join(sorted(known))}")
        default = getattr(Config(), key)
        if key == "replicas":
            settings[key] = tuple(_place(item) for item in settings[key])
        elif isinstance(default, tuple):
            settings[key] = tuple(settings[key])
        elif not isinstance(settings[key], (int, float) if isinstance(default, float) else type(default)):
            raise Invalid(f"config.{key}", f"{key} must be a {type(default).__name__}, not {settings[key]!r}")
    config = replace(Config(state_dir=state_dir), **settings)
    if config.place:        # one file serves all machines, so each listens where the file says that it is
        own: dict[str, Any] = {key: config.place.address for key in OWN_ADDRESS if key not in settings}
        config = replace(config, **own)
    return config.check()


#: Settings that are a replica's own address unless they are given.
OWN_ADDRESS = ("listen", "agent_listen", "host_address")


def _place(item: Any) -> ReplicaPlace:
    known = {entry.name: type(entry.default) for entry in fields(ReplicaPlace)} | {"name": str, "address": str}
    if not isinstance(item, dict) or not {"name", "address"} <= item.keys() <= known.keys() or \
            not all(isinstance(value, known[key]) for key, value in item.items()):
        raise Invalid("config.replicas", "an entry of [[replicas]] has a name, an address and perhaps agent = true, "
                                         f"not {item!r}")
    if not re.fullmatch(r"[a-zA-Z0-9][a-zA-Z0-9.-]{0,62}", item["name"]):
        raise Invalid("config.replicas", f"the replica's name {item['name']!r} must be a host name of 1 to 63 characters")
    try:
        ipaddress.ip_address(item["address"])
    except ValueError as error:
        raise Invalid("config.replicas", f"the address of replica {item['name']}: {error}") from error
    return ReplicaPlace(**item)


def save(config: Config) -> None:
    """Keep the settings that differ from the defaults in the state directory."""
    write_private(config.path("cloud.json"), saved(config))


def saved(config: Config) -> bytes:
    """What cloud.json has of these settings: those that differ from the defaults."""
    own = {key: config.place.address for key in OWN_ADDRESS} if config.place else {}
    plain = {key: value for key, value in asdict(config).items()
             if key != "state_dir" and value != getattr(Config(), key) and value != own.get(key)}
    return json.dumps(plain, indent=1).encode()


def in_url(address: str) -> str:
    """An address as URLs and "host:port" have it."""
    return f"[{address}]" if ":" in address else address


def write_private(path: Path, data: bytes) -> None:
    """Replace a file's content whole, readable by its owner alone."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def _saved(state_dir: Path) -> dict[str, Any]:
    try:
        return json.loads((state_dir / "cloud.json").read_bytes())
    except FileNotFoundError:
        return {}
    except PermissionError as error:
        raise Invalid("config.state", f"{state_dir} belongs to another user: "
                                      "run as root, or name your own with --state-dir") from error
    except ValueError as error:
        raise Invalid("config.state", f"{state_dir / 'cloud.json'} is damaged ({error}): mend or remove it") from error


def _toml(file: Path) -> dict[str, Any]:
    try:
        settings = tomllib.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise Invalid("config.file", f"{file}: {error}") from error
    section = settings.pop("security_compliance", {})
    return settings | (section if isinstance(section, dict) else {"security_compliance": section})
