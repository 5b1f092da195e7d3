"""A cloud's settings: defaults, then what an earlier `brume up` was told, then the configuration file, then flags.

The settings that a cloud was brought up with are kept in its state directory, so every later command needs only that.
"""
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
    #: etcd's members, "https://host:port"; none: the cloud runs one of its own on `port` + 3.
    etcd: tuple[str, ...] = ()
    #: Range of the public network, routed by the host.
    public_cidr: str = "172.24.4.0/24"
    #: Range of the demo project's network.
    private_cidr: str = "10.0.0.0/24"
    #: Name of this host; "" for the machine's.
    host: str = ""
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
    #: MiB of each host that servers do not get.
    reserved_ram_mib: int = 512
    #: Bytes that one image may have.
    max_image_size: int = 64 * 2**30
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
        host = socket.gethostname() if self.listen in ("0.0.0.0", "::") else self.listen
        return f"{'https' if self.certificate else 'http'}://{f'[{host}]' if ':' in host else host}:{self.port}"

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
    def etcd_endpoints(self) -> tuple[str, ...]:
        return self.etcd or (f"https://127.0.0.1:{self.port + 3}",)

    @property
    def pki_dir(self) -> Path:
        """The authority and the certificates of this machine's parts."""
        return self.path("pki")

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
        if self.placement_policy not in ("pack", "spread"):
            raise Invalid("config.placement_policy", f"placement_policy {self.placement_policy!r} must be pack or spread")
        if self.log_format not in ("text", "json"):
            raise Invalid("config.log_format", f"log_format {self.log_format!r} must be text or json")
        if self.hypervisor not in ("", "simulated"):
            raise Invalid("config.hypervisor", f"hypervisor {self.hypervisor!r} must be empty or simulated")
        for name in ("lockout_failure_attempts", "password_expires_days", "unique_last_password_count", "minimum_password_age",
                     "disable_user_account_days_inactive"):
            if not 0 <= getattr(self, name) <= 100_000:
                raise Invalid(f"config.{name}", f"{name} {getattr(self, name)} must be 0 to 100000")
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
        if isinstance(default, tuple):
            settings[key] = tuple(settings[key])
        elif not isinstance(settings[key], (int, float) if isinstance(default, float) else type(default)):
            raise Invalid(f"config.{key}", f"{key} must be a {type(default).__name__}, not {settings[key]!r}")
    return replace(Config(state_dir=state_dir), **settings).check()


def save(config: Config) -> None:
    """Keep the settings that differ from the defaults in the state directory."""
    plain = {key: value for key, value in asdict(config).items()
             if key != "state_dir" and value != getattr(Config(), key)}
    write_private(config.path("cloud.json"), json.dumps(plain, indent=1).encode())


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
