"""The secrets that a cloud makes for itself, and the files that point clients at it. All are 0600.

A password is made once and kept; clouds.yaml and openrc are written anew from it whenever the cloud comes up.
"""
import secrets
from dataclasses import dataclass

import yaml

from control.cli.session import Session
from control.kernel.config import Config, write_private


@dataclass(frozen=True, slots=True)
class Login:
    """One user of the new cloud: `cloud` is its entry in clouds.yaml."""

    cloud: str
    user: str
    project: str
    password: str

    def session(self, config: Config) -> Session:
        return Session(config, self.user, self.password, self.project)


def ensure(config: Config) -> dict[str, Login]:
    """The logins of admin and demo; makes what is missing."""
    return {user: Login("brume" if user == "admin" else f"brume-{user}", user, user, _password(config, user))
            for user in ("admin", "demo")}


def write_client_files(config: Config, logins: dict[str, Login]) -> None:
    """clouds.yaml for every login, openrc for the admin."""
    clouds: dict[str, dict] = {}
    for login in logins.values():
        auth: dict[str, str] = {
            "auth_url": config.auth_url, "username": login.user, "password": login.password,
            "project_name": login.project, "user_domain_id": "default", "project_domain_id": "default"}
        clouds[login.cloud] = {"auth": auth, "region_name": config.region, "identity_api_version": 3,
                               **({"cacert": config.certificate} if config.certificate else {})}
    write_private(config.path("clouds.yaml"), yaml.safe_dump({"clouds": clouds}, sort_keys=False).encode())
    lines = [f"export OS_{key.upper()}={value}" for key, value in clouds["brume"]["auth"].items()]
    lines += [f"export OS_REGION_NAME={config.region}", "export OS_IDENTITY_API_VERSION=3"]
    if config.certificate:
        lines.append(f"export OS_CACERT={config.certificate}")
    write_private(config.path("openrc"), ("\n".join(lines) + "\n").encode())


def _password(config: Config, user: str) -> str:
    path = config.path(f"{user}.password")
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        password = secrets.token_urlsafe(18)
        write_private(path, f"{password}\n".encode())
        return password
