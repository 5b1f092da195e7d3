"""Runs every identity command of the `openstack` client against a cloud, and says of each whether it works.

`make commands` is this with the client that the lock file pins and with Debian 12's, on a cloud of its own. A command counts as
working when all that it was asked here came out as it should; one that the client has and this tour leaves out makes it fail.
"""
import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.conformance.tempest import cloud  # noqa: E402

#: Debian 12's client, in an environment of its own.
DEBIAN = ROOT / ".venv-openstackclient"
DEBIAN_PINS = Path(__file__).resolve().parent / "openstackclient-debian12.txt"

GROUP = "openstack.identity.v3"


class Failed(Exception):
    """A command came out otherwise than it should."""


@dataclass
class Client:
    """One `openstack` client, logged in as the cloud's admin; and what became of the commands that it was given."""

    program: Path
    state_dir: Path
    said: dict[str, list[str]] = field(default_factory=dict)      # by command: what went wrong; [] where nothing did

    def commands(self) -> list[str]:
        groups = json.loads(self._run("command", "list", "--group", GROUP, "-f", "json").stdout)
        names = [name for group in groups for name in
                 (group["Commands"] if isinstance(group["Commands"], list) else group["Commands"].splitlines())]
        return sorted(name for name in names if name)

    def do(self, command: str, *arguments: str, login: tuple[str, ...] = (), fails: bool | None = False,
           says: str = "") -> str:
        """What a command prints. Raises Failed.

        Args:
          login: options of the client itself, in place of the admin's.
          fails: what its exit status says; None: it may be either, and what was done is looked at afterwards.
          says: what it tells on standard error, where its exit status is 0 whatever it finds.
        """
        done = self._run(*login, *command.split(), *arguments, cloud="" if login else "brume")
        said = self.said.setdefault(command, [])
        if (fails is not None and (done.returncode != 0) != fails) or "Traceback" in done.stderr or says not in done.stderr:
            said.append(f"{' '.join((command, *arguments))}: exit status {done.returncode}: {done.stderr.strip()[-600:]}")
            raise Failed(said[-1])
        return done.stdout

    def get(self, command: str, *arguments: str, login: tuple[str, ...] = ()) -> Any:
        """What a command shows, as JSON; the keys of one thing are spelled as in the API: some commands write "Project ID"."""
        found = json.loads(self.do(command, *arguments, "-f", "json", login=login))
        return {key.lower().replace(" ", "_"): value for key, value in found.items()} if isinstance(found, dict) else found

    def expect(self, command: str, right: bool, what: str) -> None:
        """Note where the world is not as a command should have made it."""
        if not right:
            self.said.setdefault(command, []).append(what)

    def _run(self, *arguments: str, cloud: str = "brume") -> subprocess.CompletedProcess[str]:
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("OS_", "PYTHON"))}
        environment |= {"OS_CLIENT_CONFIG_FILE": str(self.state_dir / "clouds.yaml"), "PYTHONWARNINGS": "ignore"}
        if cloud:
            environment["OS_CLOUD"] = cloud
        return subprocess.run([str(self.program), *arguments], capture_output=True, text=True, env=environment, timeout=120,
                              check=False)


class Tour:
    """Every command at least once; each noun is a chapter, which stops where a command fails and leaves the others alone."""

    def __init__(self, client: Client, auth_url: str, directory: Path):
        self.client = client
        self._auth_url = auth_url
        self._directory = directory
        self._mark = uuid.uuid4().hex[:6]

    def run(self) -> None:
        for chapter in (self.domains, self.projects, self.users, self.groups, self.roles, self.catalog, self.endpoint_groups,
                        self.limits, self.policies, self.credentials, self.application_credentials, self.trusts, self.consumers,
                        self.federation, self.service_providers, self.tokens):
            try:
                chapter()
            except Failed:
                continue                            # it is noted
            except Exception as error:              # a client that shows something else than this tour expects
                self.client.expect(chapter.__name__, False, f"{type(error).__name__}: {error}")

    def name(self, noun: str) -> str:
        return f"commands-{self._mark}-{noun}"

    def file(self, name: str, content: Any) -> str:
        path = self._directory / name
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return str(path)

    @contextlib.contextmanager
    def a(self, noun: str, *arguments: str, name: str = "") -> Iterator[dict[str, Any]]:
        """A thing for as long as it is needed."""
        made = self.client.get(f"{noun} create", *arguments, *([name] if name else []))
        try:
            yield made
        finally:
            with contextlib.suppress(Failed):
                self.client.do(f"{noun} delete", made["id"])

    def login(self, name: str, password: str, *scope: str) -> tuple[str, ...]:
        return ("--os-auth-url", self._auth_url, "--os-identity-api-version", "3", "--os-username", name, "--os-password",
                password, "--os-user-domain-id", "default", *scope)

    def listed(self, command: str, wanted: str, *arguments: str, key: str = "ID") -> None:
        rows = self.client.get(command, *arguments)
        self.client.expect(command, wanted in [row[key] for row in rows], f"{wanted} is not among {len(rows)} rows")

    def shown(self, command: str, thing: str, *arguments: str, **wanted: Any) -> dict[str, Any]:
        found = self.client.get(command, *arguments, thing)
        for key, value in wanted.items():
            is_so = found.get(key) == value if key != "tags" else sorted(found.get(key, [])) == value    # a set to old clients
            self.client.expect(command, is_so, f"{key} is {found.get(key)!r}, not {value!r}")
        return found

    def domains(self) -> None:
        do, name = self.client.do, self.name("domain")
        made = self.client.get("domain create", "--description", "first", "--enable", name)
        self.listed("domain list", made["id"])
        self.listed("domain list", made["id"], "--name", name)
        do("domain set", "--description", "second", name)
        self.shown("domain show", name, description="second", enabled=True)
        do("domain set", "--name", name + "-2", made["id"])
        self.shown("domain show", made["id"], name=name + "-2")
        do("domain delete", name + "-2", fails=True)
        do("domain set", "--disable", name + "-2")
        self.listed("domain list", made["id"])
        do("domain delete", name + "-2")
        do("domain show", made["id"], fails=True)

    def projects(self) -> None:
        do, name = self.client.do, self.name("project")
        with self.a("project", "--domain", "default", "--description", "first", "--property", "colour=red", "--tag", "one",
                    name=name) as made:
            with self.a("project", "--parent", name, "--disable", name=name + "-child") as child:
                self.shown("project show", child["id"], parent_id=made["id"], enabled=False)
                tree = self.client.get("project show", "--children", made["id"])
                self.client.expect("project show", child["id"] in str(tree["subtree"]), "--children does not show the child")
                self.listed("project list", child["id"], "--parent", made["id"])
            self.listed("project list", made["id"], "--domain", "default", "--long")
            self.listed("project list", made["id"], "--tags", "one")
            self.listed("project list", made["id"], "--sort", "name:asc")
            do("project set", "--description", "second", "--property", "size=big", "--tag", "two", "--disable", name)
            self.shown("project show", name, description="second", enabled=False, colour="red", size="big", tags=["one", "two"])
            do("project set", "--remove-tag", "one", "--enable", "--name", name + "-2", name)
            self.shown("project show", name + "-2", "--domain", "default", id=made["id"], tags=["two"], enabled=True)
        do("project show", made["id"], fails=True)

    def users(self) -> None:
        do, name = self.client.do, self.name("user")
        with self.a("project", name=self.name("home")) as home, self.a(
                "user", "--domain", "default", "--password", "first pass", "--email", "a@example.org", "--description", "someone",
                "--project", self.name("home"), "--enable", "--ignore-password-expiry", name=name) as made:
            self.shown("user show", name, "--domain", "default", id=made["id"], email="a@example.org", description="someone",
                       default_project_id=home["id"])
            self.listed("user list", made["id"], "--long", "--domain", "default")
            do("user set", "--email", "b@example.org", "--description", "nobody", "--name", name + "-2", name)
            self.shown("user show", made["id"], name=name + "-2", email="b@example.org", description="nobody")
            do("role add", "--user", made["id"], "--project", home["id"], "member")
            self.listed("user list", made["id"], "--project", home["id"])
            do("user set", "--password", "second pass", "--enable-lock-password", made["id"])
            own = self.login(name + "-2", "second pass")
            do("user password set", "--original-password", "second pass", "--password", "third pass", login=own, fails=True)
            do("user set", "--disable-lock-password", made["id"])
            do("user password set", "--original-password", "second pass", "--password", "third pass", login=own)
            self.client.get("token issue", login=self.login(name + "-2", "third pass"))
            do("token issue", login=own, fails=True)
            do("user set", "--disable", made["id"])
            do("token issue", login=self.login(name + "-2", "third pass"), fails=True)
        do("user show", made["id"], fails=True)

    def groups(self) -> None:
        do, name = self.client.do, self.name("group")
        with self.a("user", name=self.name("member")) as user, self.a(
                "group", "--domain", "default", "--description", "first", name=name) as made:
            do("group add user", name, user["name"])
            do("group contains user", name, user["name"])
            self.listed("user list", user["id"], "--group", name)
            self.listed("group list", made["id"], "--user", user["name"])
            self.listed("group list", made["id"], "--domain", "default", "--long")
            do("group set", "--description", "second", "--name", name + "-2", name)
            self.shown("group show", name + "-2", "--domain", "default", id=made["id"], description="second")
            do("group remove user", name + "-2", user["name"])
            do("group contains user", name + "-2", user["name"], says="not in group")
        do("group show", made["id"], fails=True)

    def roles(self) -> None:
        do, name = self.client.do, self.name("role")
        with contextlib.ExitStack() as stack:
            made = stack.enter_context(self.a("role", "--description", "first", name=name))
            implied = stack.enter_context(self.a("role", name=name + "-implied"))
            user = stack.enter_context(self.a("user", name=self.name("holder")))
            group = stack.enter_context(self.a("group", name=self.name("holders")))
            project = stack.enter_context(self.a("project", name=self.name("place")))
            self.listed("role list", made["id"])
            do("role set", "--description", "second", "--name", name + "-2", "--immutable", name)
            self.shown("role show", name + "-2", description="second")
            do("role set", "--name", name, name + "-2", fails=True)
            do("role set", "--no-immutable", name + "-2")
            self.client.get("implied role create", name + "-2", "--implied-role", name + "-implied")
            self.listed("implied role list", name + "-implied", key="Implied Role Name")
            places = [("--user", user["id"], "--project", project["id"]), ("--group", group["id"], "--project", project["id"]),
                      ("--user", user["id"], "--domain", "default"),
                      ("--group", group["id"], "--domain", "default", "--inherited"),
                      ("--user", user["id"], "--system", "all"), ("--group", group["id"], "--system", "all")]
            for place in places:
                do("role add", *place, made["id"])
            self.listed("role assignment list", made["id"], "--user", user["id"], "--project", project["id"], key="Role")
            self.listed("role assignment list", name + "-implied", "--user", user["id"], "--effective", "--names", key="Role")
            self.listed("role assignment list", made["id"], "--system", "all", key="Role")
            self.listed("role assignment list", made["id"], "--domain", "default", "--group", group["id"], "--inherited",
                        key="Role")
            self.listed("role assignment list", made["id"], "--role", made["id"], key="Role")
            for place in places:
                do("role remove", *place, made["id"])
            rows = self.client.get("role assignment list", "--role", made["id"])
            self.client.expect("role remove", rows == [], f"{len(rows)} assignments are left")
            do("implied role delete", name + "-2", "--implied-role", name + "-implied")
            with self.a("domain", "--disable", name=self.name("roles")) as domain:
                own = self.client.get("role create", "--domain", domain["id"], name + "-own")
                self.listed("role list", own["id"], "--domain", domain["id"])
                do("role delete", "--domain", domain["id"], name + "-own")
            self.client.expect("role create", implied["name"] == name + "-implied", "another name")
        do("role show", made["id"], fails=True)

    def catalog(self) -> None:
        do, name = self.client.do, self.name("region")
        self.client.get("region create", "--description", "first", name)
        self.client.get("region create", "--parent-region", name, name + "-below")
        do("region set", "--description", "second", name)
        self.shown("region show", name, description="second")
        self.listed("region list", name + "-below", "--parent-region", name, key="Region")
        with self.a("project", name=self.name("seer")) as project, self.a(
                "service", "--name", self.name("service"), "--description", "first", "--enable", self.name("test")) as service:
            do("service set", "--name", self.name("service-2"), "--description", "second", "--type", self.name("tested"),
               service["id"])
            self.shown("service show", service["id"], name=self.name("service-2"), description="second", type=self.name("tested"))
            self.listed("service list", service["id"], "--long")
            endpoint = self.client.get("endpoint create", "--region", name, "--enable", service["id"], "internal",
                                       "http://127.0.0.1:9/$(project_id)s")
            do("endpoint set", "--url", "http://127.0.0.1:10", "--interface", "public", "--region", name + "-below",
               endpoint["id"])
            self.shown("endpoint show", endpoint["id"], url="http://127.0.0.1:10", interface="public", region_id=name + "-below")
            self.listed("endpoint list", endpoint["id"], "--service", service["id"], "--interface", "public")
            self.listed("endpoint list", endpoint["id"], "--region", name + "-below")
            do("endpoint add project", endpoint["id"], project["id"])
            self.listed("endpoint list", endpoint["id"], "--project", project["id"])
            do("endpoint remove project", endpoint["id"], project["id"])
            self.listed("catalog list", self.name("tested"), key="Type")
            self.client.expect("catalog show", self.client.get("catalog show", self.name("tested"))["id"] == service["id"],
                               "another service")
            do("endpoint set", "--disable", endpoint["id"])
            do("catalog show", self.name("tested"), says="not found")
            do("endpoint delete", endpoint["id"])
            do("endpoint show", endpoint["id"], fails=True)
            do("service set", "--disable", service["id"])
        do("service show", service["id"], fails=True)
        for region in (name + "-below", name):
            do("region delete", region)
        do("region show", name, fails=True)

    def endpoint_groups(self) -> None:
        do, name = self.client.do, self.name("endpoint-group")
        with self.a("project", name=self.name("chosen")) as project:
            made = self.client.get("endpoint group create", "--description", "first", name,
                                   self.file("filters.json", {"interface": "public"}))
            do("endpoint group set", "--description", "second", "--name", name + "-2", "--filters",
               self.file("others.json", {"interface": "internal"}), name)
            self.shown("endpoint group show", name + "-2", id=made["id"], description="second", filters={"interface": "internal"})
            do("endpoint group add project", made["id"], project["id"])
            self.listed("endpoint group list", made["id"])
            self.listed("endpoint group list", made["id"], "--project", project["id"])
            self.listed("endpoint group list", project["id"], "--endpointgroup", made["id"])
            do("endpoint group remove project", made["id"], project["id"])
            do("endpoint group delete", name + "-2")
            do("endpoint group show", made["id"], fails=True)

    def limits(self) -> None:
        do, resource = self.client.do, self.name("things")
        service = next(row["ID"] for row in self.client.get("service list") if row["Type"] == "compute")
        registered = self.client.get("registered limit create", "--service", service, "--region", "RegionOne", "--default-limit",
                                     "10", "--description", "first", resource)
        do("registered limit set", "--default-limit", "20", "--description", "second", registered["id"])
        self.shown("registered limit show", registered["id"], default_limit=20, description="second")
        self.listed("registered limit list", registered["id"], "--service", service, "--resource-name", resource)
        with self.a("project", name=self.name("limited")) as project:
            limit = self.client.get("limit create", "--project", project["id"], "--service", service, "--region", "RegionOne",
                                    "--resource-limit", "5", "--description", "first", resource)
            do("limit set", "--resource-limit", "6", "--description", "second", limit["id"])
            self.shown("limit show", limit["id"], resource_limit=6, description="second", project_id=project["id"])
            self.listed("limit list", limit["id"], "--service", service, "--project", project["id"])
            do("registered limit delete", registered["id"], fails=True)
            do("limit delete", limit["id"])
            do("limit show", limit["id"], fails=True)
        do("registered limit delete", registered["id"])
        do("registered limit show", registered["id"], fails=True)

    def policies(self) -> None:
        do = self.client.do
        made = self.client.get("policy create", "--type", "application/json", self.file("rules.json", {"a": "role:b"}))
        do("policy set", "--rules", self.file("more.json", {"a": "role:c"}), "--type", "text/json", made["id"])
        found = self.shown("policy show", made["id"], type="text/json")
        self.client.expect("policy show", "role:c" in str(found), "the rules are not those that were set")
        self.listed("policy list", made["id"], "--long")
        do("policy delete", made["id"])
        do("policy show", made["id"], fails=True)

    def credentials(self) -> None:
        do = self.client.do
        with self.a("user", name=self.name("owner")) as user, self.a("project", name=self.name("vault")) as project:
            made = self.client.get("credential create", "--type", "cert", "--project", project["id"], user["id"], "first")
            do("credential set", "--user", user["id"], "--type", "cert", "--data", "second", "--project", project["id"],
               made["id"])
            self.shown("credential show", made["id"], blob="second", user_id=user["id"], type="cert")
            self.listed("credential list", made["id"], "--user", user["id"], "--type", "cert")
            do("credential delete", made["id"])
            do("credential show", made["id"], fails=True)
            do("role add", "--user", user["id"], "--project", project["id"], "member")
            keys = self.client.get("ec2 credentials create", "--project", project["id"], "--user", user["id"])
            self.listed("ec2 credentials list", keys["access"], "--user", user["id"], key="Access")
            self.shown("ec2 credentials show", keys["access"], "--user", user["id"], secret=keys["secret"])
            do("ec2 credentials delete", "--user", user["id"], keys["access"])
            do("ec2 credentials show", "--user", user["id"], keys["access"], fails=True)

    def application_credentials(self) -> None:
        do, name, path = self.client.do, self.name("app"), f"/v2.1/servers/{self._mark}"
        made = self.client.get("application credential create", "--secret", "s3cret", "--role", "member", "--expiration",
                               "2099-01-01T00:00:00", "--description", "first", "--unrestricted", "--access-rules",
                               self.file("rules.json", [{"service": "compute", "method": "GET", "path": path}]), name)
        self.shown("application credential show", name, id=made["id"], description="first")
        self.listed("application credential list", made["id"])
        rules = self.client.get("access rule list")
        rule = next(row["ID"] for row in rules if row["Path"] == path)
        self.shown("access rule show", rule, path=path, method="GET", service="compute")
        do("access rule delete", rule, fails=True)
        do("application credential delete", name)
        do("application credential show", made["id"], fails=True)
        do("access rule delete", rule)
        with contextlib.suppress(Failed):
            self.client.get("application credential create", "--restricted", name)
            do("application credential delete", name)

    def trusts(self) -> None:
        do = self.client.do
        me = self.client.get("token issue")
        with self.a("user", name=self.name("trustee")) as trustee:
            made = self.client.get("trust create", "--project", me["project_id"], "--role", "member", "--impersonate",
                                   "--expiration", "2099-01-01T00:00:00", me["user_id"], trustee["id"])
            found = self.shown("trust show", made["id"], trustee_user_id=trustee["id"], project_id=me["project_id"])
            impersonates = found.get("impersonation", found.get("is_impersonation"))       # as the client's version writes it
            self.client.expect("trust show", impersonates is True, f"impersonation is {impersonates!r}")
            self.listed("trust list", made["id"])
            do("trust delete", made["id"])
            do("trust show", made["id"], fails=True)

    def consumers(self) -> None:
        do = self.client.do
        made = self.client.get("consumer create", "--description", "first")
        do("consumer set", "--description", "second", made["id"])
        self.shown("consumer show", made["id"], description="second")
        self.listed("consumer list", made["id"])
        signing = ("--consumer-key", made["id"], "--consumer-secret", made["secret"])
        wish = self.client.get("request token create", *signing, "--project", self.client.get("token issue")["project_id"])
        verifier = self.client.get("request token authorize", "--request-key", wish["id"], "--role", "member")["oauth_verifier"]
        held = self.client.get("access token create", *signing, "--request-key", wish["id"], "--request-secret", wish["secret"],
                               "--verifier", verifier)
        delegated = ("--os-auth-type", "v3oauth1", "--os-auth-url", self._auth_url, "--os-identity-api-version", "3",
                     "--os-consumer-key", made["id"], "--os-consumer-secret", made["secret"], "--os-access-key", held["id"],
                     "--os-access-secret", held["secret"])
        self.client.get("token issue", login=delegated)
        do("consumer delete", made["id"])
        do("token issue", login=delegated, fails=True)
        do("consumer show", made["id"], fails=True)

    def federation(self) -> None:
        do, idp, mapping = self.client.do, self.name("idp"), self.name("mapping")
        rules = [{"local": [{"user": {"name": "{0}"}}], "remote": [{"type": "sub"}]}]
        other = f"{mapping}-2"
        do("mapping create", "--rules", self.file("first.json", rules), mapping)
        do("mapping create", "--rules", self.file("first.json", rules), other)
        rules[0]["remote"] = [{"type": "email"}]
        do("mapping set", "--rules", self.file("second.json", rules), mapping)
        found = self.shown("mapping show", mapping, id=mapping)
        self.client.expect("mapping show", "email" in str(found), "the rules are not those that were set")
        self.listed("mapping list", mapping)
        with self.a("domain", name=self.name("idp-domain")) as domain:
            do("identity provider create", "--remote-id", f"https://{idp}", "--domain", domain["id"], "--description", "first",
               "--enable", idp)
            do("identity provider set", "--description", "second", "--remote-id", f"https://{idp}/2", "--disable", idp)
            self.shown("identity provider show", idp, id=idp, description="second", enabled=False)
            self.listed("identity provider list", idp)
            of = ("--identity-provider", idp)
            do("federation protocol create", *of, "--mapping", mapping, "openid")
            do("federation protocol set", *of, "--mapping", other, "openid", fails=None)     # newer clients do it and end with 1
            self.shown("federation protocol show", "openid", *of, id="openid", mapping=other)
            self.listed("federation protocol list", "openid", *of, key="id")
            do("federation protocol delete", *of, "openid")
            do("federation protocol show", *of, "openid", fails=True)
            do("identity provider delete", idp)
            do("identity provider show", idp, fails=True)
            do("domain set", "--disable", domain["id"])
        do("mapping delete", mapping, other)
        do("mapping show", mapping, fails=True)
        do("federation project list")
        do("federation domain list")

    def service_providers(self) -> None:
        do, name = self.client.do, self.name("sp")
        do("service provider create", "--auth-url", "https://sp.example/v3", "--service-provider-url", "https://sp.example/ecp",
           "--description", "first", "--disable", name)
        do("service provider set", "--description", "second", "--auth-url", "https://sp.example/auth", "--enable", name)
        self.shown("service provider show", name, id=name, description="second", enabled=True)
        self.listed("service provider list", name)
        do("service provider delete", name)
        do("service provider show", name, fails=True)

    def tokens(self) -> None:
        token = self.client.get("token issue")["id"]
        held = ("--os-auth-type", "token", "--os-auth-url", self._auth_url, "--os-identity-api-version", "3", "--os-token", token)
        self.client.do("catalog list", login=(*held, "--os-project-name", "admin", "--os-project-domain-id", "default"))
        self.client.do("token revoke", token)
        self.client.do("catalog list", login=held, fails=True)


def tour(program: Path, state_dir: Path) -> Client:
    """A client that has been through every command."""
    from control.kernel import config

    client = Client(program, state_dir)
    with tempfile.TemporaryDirectory() as directory:
        Tour(client, config.load(state_dir).auth_url, Path(directory)).run()
    for name in client.commands():
        if name not in client.said:
            client.said[name] = ["it was not run"]
    return client


def install() -> Path:
    """Debian 12's client; nothing to do where it is there."""
    wanted, marker = DEBIAN_PINS.read_text(), DEBIAN / ".installed"
    if not marker.exists() or marker.read_text() != wanted:
        subprocess.run([sys.executable, "-m", "venv", str(DEBIAN)], check=True)
        subprocess.run([str(DEBIAN / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check", "--requirement",
                        str(DEBIAN_PINS)], check=True)
        marker.write_text(wanted)
    return DEBIAN / "bin" / "openstack"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--state-dir", type=Path, help="a cloud that runs; without it, one is made and taken down")
    parser.add_argument("--client", choices=("lock", "debian12"), help="one of the two; without it, both")
    options = parser.parse_args()
    programs = {"lock": Path(sys.executable).with_name("openstack")}
    if options.client != "lock":
        programs["debian12"] = install()
    if options.client == "debian12":
        del programs["lock"]
    console, wrong = Console(), 0
    with contextlib.ExitStack() as stack:
        state_dir = options.state_dir or stack.enter_context(cloud.own(keep=False))
        shown = Table("client", "version", "commands", "work")
        with ThreadPoolExecutor() as pool:              # at once: nothing that they make has the same name
            clients = dict(zip(programs, pool.map(lambda program: tour(program, state_dir), programs.values()), strict=True))
        for name, client in clients.items():
            program = programs[name]
            version = subprocess.run([str(program), "--version"], capture_output=True, text=True, check=True).stdout.split()[-1]
            for command, said in sorted(client.said.items()):
                for line in said:
                    console.print(f"{name}: {command}: {line}", style="red", highlight=False, markup=False, soft_wrap=True)
            commands = client.commands()
            working = [command for command in commands if client.said.get(command) == []]
            wrong += sum(bool(said) for said in client.said.values())
            shown.add_row(name, version, str(len(commands)), str(len(working)))
        console.print(shown)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
