"""The cloud that tempest is run against: one of its own, or one that runs already; and what tempest has to know of it."""
import configparser
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from control.cli import credentials
from control.cli.images import build_guest, ensure_image
from control.cli.session import Session
from control.kernel import config as settings
from control.kernel.config import Config

BRUME = [sys.executable, "-m", "control.cli.main"]

#: The cloud of its own: it is made for the run and taken down after it.
STATE_DIR, NAME, PORT, PUBLIC = Path("/var/tmp/brume-conformance"), "brumeconf", 5500, "172.24.100.0/24"

#: Its settings.
SETTINGS = Path(__file__).resolve().parent / "cloud.toml"

#: Made beside what a new cloud has: tempest rebuilds and resizes from one image and flavor to another.
OTHER = "tempest-other"


@contextmanager
def own(*, keep: bool) -> Iterator[Path]:
    """The state directory of a cloud that was brought up for this run; it goes afterwards unless it is to be kept."""
    brume = [*BRUME, "--state-dir", str(STATE_DIR)]
    subprocess.run([*brume, "up", "--json", "--port", str(PORT), "--name", NAME, "--public-cidr", PUBLIC,
                    "--config", str(SETTINGS)],
                   check=True, stdout=subprocess.DEVNULL)
    try:
        yield STATE_DIR
    finally:
        if not keep:
            subprocess.run([*brume, "down", "--purge", "--yes"], check=True, stdout=subprocess.DEVNULL)


def describe(state_dir: Path) -> configparser.ConfigParser:
    """tempest.conf for this cloud. Makes a second image and a second flavor there, once."""
    config = settings.load(state_dir)
    login = credentials.ensure(config)["admin"]
    session = login.session(config)
    image, flavor, network = _image(session, "tiny"), _flavor(session, "m1.tiny"), _public(session)
    told = configparser.ConfigParser(interpolation=None)
    told.read_dict({
        "DEFAULT": {"log_file": "tempest.log"},
        "auth": {"use_dynamic_credentials": True, "admin_username": login.user, "admin_password": login.password,
                 "admin_project_name": login.project, "admin_domain_name": "Default", "tempest_roles": "member"},
        "identity": {"uri_v3": config.auth_url, "auth_version": "v3", "region": config.region, "v3_endpoint_type": "public",
                     "user_lockout_failure_attempts": config.lockout_failure_attempts,
                     "user_lockout_duration": config.lockout_duration,
                     "user_unique_last_password_count": config.unique_last_password_count},
        # The tests wait until a lock ends: only where that is soon.
        "identity-feature-enabled": {"api_v3": True, "trust": True, "access_rules": True, "federation": True,
                                     "security_compliance": config.lockout_duration < 60},
        "compute": {"image_ref": image["id"], "image_ref_alt": _other_image(config, session), "flavor_ref": flavor["id"],
                    "flavor_ref_alt": _other_flavor(session, flavor), "max_microversion": "latest", "build_interval": 1,
                    "build_timeout": 120},
        # Not there yet: resize, shelving, suspending, rescue, migration, snapshots and consoles.
        "compute-feature-enabled": dict.fromkeys(
            ("resize", "shelve", "shelve_migrate", "suspend", "rescue", "cold_migration", "live_migration", "snapshot",
             "vnc_console", "console_output", "personality", "attach_encrypted_volume", "swap_volume"), False),
        "image": {"build_timeout": 60, "build_interval": 1, "image_path": "", "http_image": ""},
        "image-feature-enabled": {"import_image": False, "image_format_enforcement": True},
        "network": {"public_network_id": network["id"], "floating_network_name": network["name"],
                    "project_network_cidr": "10.201.0.0/16", "build_interval": 1},
        "network-feature-enabled": {"ipv6": True, "port_security": False,
                                    "api_extensions": ",".join(_extensions(session))},
        "validation": {"run_validation": False},
        "service_available": {"cinder": False, "swift": False, "horizon": False, "nova": True, "neutron": True, "glance": True},
        "oslo_concurrency": {"lock_path": "locks"}})
    return told


def _extensions(session: Session) -> list[str]:
    return [extension["alias"] for extension in session.request("GET", "network", "/v2.0/extensions")["extensions"]]


def _public(session: Session) -> Any:
    return session.request("GET", "network", "/v2.0/networks?router:external=True")["networks"][0]


def _image(session: Session, name: str) -> Any:
    return session.request("GET", "image", f"/v2/images?name={name}")["images"][0]


def _flavor(session: Session, name: str) -> Any:
    flavors = session.request("GET", "compute", "/flavors/detail?is_public=None")["flavors"]
    return next((flavor for flavor in flavors if flavor["name"] == name), None)


def _other_flavor(session: Session, like: dict) -> str:
    """A flavor a little larger than the first one, as some tests grow a server."""
    found = _flavor(session, OTHER) or session.request("POST", "compute", "/flavors", {"flavor": {
        "name": OTHER, "vcpus": like["vcpus"], "ram": like["ram"] + 64, "disk": like["disk"] + 1}})["flavor"]
    return found["id"]


def _other_image(config: Config, session: Session) -> str:
    """The small guest once more."""
    return ensure_image(session, build_guest(config).disk, OTHER, "public", "qcow2", {"min_ram": 128})
