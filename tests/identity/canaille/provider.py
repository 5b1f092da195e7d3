"""A real OpenID Connect provider on a loopback port: canaille, in an environment of its own, with keys that tests sign with."""
import html
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urljoin, urlsplit

import jwt
import requests
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.conftest import free_port

HERE = Path(__file__).resolve().parent
ENVIRONMENT = HERE.parents[2] / ".venv-canaille"
PYTHON = ENVIRONMENT / "bin" / "python"

DEVICE_FLOW = "urn:ietf:params:oauth:grant-type:device_code"
SCOPE = "openid profile email groups"
CALLBACK, WEB_CALLBACK = "http://127.0.0.1:9/callback", "/v3/auth/OS-FEDERATION/redirect"

#: Passwords by user, members by group, and secrets by client: the cloud's own, and another one's.
PEOPLE = {"alice": "wonder land", "bob": "bu1lder", "eve": "3avesdrop"}
GROUPS = {"devs": ["alice", "bob"], "ops": ["alice"], "strange": ["eve"]}
CLIENTS = {"brume": "s3cret-of-brume", "other": "s3cret-of-another"}


def install() -> None:
    """canaille in an environment of its own, in the versions of requirements.txt; nothing to do where it is there."""
    wanted, marker = (HERE / "requirements.txt").read_text(), ENVIRONMENT / ".installed"
    if marker.exists() and marker.read_text() == wanted:
        return
    if not PYTHON.exists():
        subprocess.run([sys.executable, "-m", "venv", str(ENVIRONMENT)], check=True)
    subprocess.run([str(PYTHON), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--requirement",
                    str(HERE / "requirements.txt")], check=True)
    marker.write_text(wanted)


class Key:
    """A private key that tokens can be signed with."""

    def __init__(self, kid: str):
        self.kid = kid
        self.private = rsa.generate_private_key(65537, 2048)

    def jwk(self) -> dict[str, str]:
        members = jwt.algorithms.RSAAlgorithm.to_jwk(self.private, as_dict=True)
        return {name: value for name, value in members.items() if isinstance(value, str)} | {"kid": self.kid}

    def sign(self, claims: dict[str, Any], algorithm: str = "RS256", **header: Any) -> str:
        return jwt.encode(claims, self.private, algorithm=algorithm, headers={"kid": self.kid} | header)


class Canaille:
    """One canaille process; it may be stopped, as a provider that is silent, and go on."""

    def __init__(self, directory: Path):
        self._directory = directory
        self.port, self.cloud_port = free_port(), free_port()       # its own, and the cloud's that browsers come back to
        self._redirects = [CALLBACK, *(f"http://{host}{WEB_CALLBACK}" for host in
                                       (f"127.0.0.1:{self.cloud_port}", "cloud.example:5000"))]
        self.keys = [Key("first")]
        self.issuer = f"http://127.0.0.1:{self.port}"
        self.secret_file = directory / "client.secret"
        self.secret_file.write_text(CLIENTS["brume"] + "\n")
        self.start()

    def start(self) -> None:
        grants = ["password", "client_credentials", "authorization_code", "refresh_token", DEVICE_FLOW]
        wanted = {"port": self.port, "keys": [key.jwk() for key in self.keys],
                  "users": [{"user_name": name, "password": password} for name, password in PEOPLE.items()], "groups": GROUPS,
                  "clients": [{"client_id": name, "client_secret": secret, "grant_types": grants, "response_types": ["code"],
                               "redirect_uris": self._redirects, "scope": SCOPE.split(),
                               "token_endpoint_auth_method": "client_secret_basic", "id_token_signed_response_alg": "RS256"}
                              for name, secret in CLIENTS.items()]}
        told = self._directory / "wanted.json"
        told.write_text(json.dumps(wanted))
        with told.open() as given, (self._directory / "canaille.log").open("ab") as log:
            self.process = subprocess.Popen([str(PYTHON), str(HERE / "serve.py")], stdin=given, stdout=log, stderr=log)
        for _ in range(400):
            try:
                requests.get(f"{self.issuer}/.well-known/openid-configuration", timeout=5).raise_for_status()
                return
            except requests.ConnectionError:
                if self.process.poll() is not None:
                    break
                time.sleep(0.05)
        raise RuntimeError(f"canaille does not start: {(self._directory / 'canaille.log').read_text()[-2000:]}")

    def options(self, **changes: Any) -> dict[str, Any]:
        """Settings of a cloud that trusts it."""
        return {"issuer": self.issuer, "client_id": "brume", "client_secret_file": str(self.secret_file)} | changes

    def ask(self, grant: str, client: str = "brume", **form: str) -> dict[str, Any]:
        """What the token endpoint answers to a client."""
        reply = requests.post(f"{self.issuer}/oauth/token", auth=(client, CLIENTS[client]), timeout=10,
                              data={"grant_type": grant, "scope": SCOPE} | form)
        assert reply.status_code == 200, reply.text
        return reply.json()

    def token(self, name: str, client: str = "brume") -> str:
        """An access token of a user; of canaille's, a JWT."""
        return self.ask("password", client, username=name, password=PEOPLE[name])["access_token"]

    def opaque_token(self, client: str = "brume") -> str:
        """An access token of a client's own; of canaille's, a random text."""
        return self.ask("client_credentials", client)["access_token"]

    def revoke(self, token: str, client: str = "brume") -> None:
        requests.post(f"{self.issuer}/oauth/revoke", auth=(client, CLIENTS[client]), data={"token": token},
                      timeout=10).raise_for_status()

    def code(self, name: str) -> str:
        """An authorization code, as a user in a browser brings it to the client."""
        query = urlencode({"response_type": "code", "client_id": "brume", "redirect_uri": CALLBACK, "scope": SCOPE,
                           "state": "x", "nonce": "y"})
        return parse_qs(urlsplit(self.browse(f"{self.issuer}/oauth/authorize?{query}", name)).query)["code"][0]

    def browse(self, url: str, name: str) -> str:
        """Follow an authorization request in a browser, log in as a user, and say where the provider sends them then."""
        browser = requests.Session()
        reply = browser.get(url, timeout=10, allow_redirects=False)
        for _ in range(12):
            if reply.is_redirect:
                target = urljoin(reply.url, reply.headers["location"])
                if not target.startswith(self.issuer):
                    return target
                reply = browser.get(target, timeout=10, allow_redirects=False)
                continue
            assert reply.status_code == 200, (reply.status_code, reply.url, reply.text[-3000:])
            fields = dict(re.findall(r'<input[^>]*name="([^"]+)"[^>]*value="([^"]*)"', reply.text))
            form = {key: html.unescape(value) for key, value in fields.items() if key == "csrf_token"}
            form |= {"login": name, "password": PEOPLE[name], "answer": "accept"}
            reply = browser.post(reply.url, data=form, timeout=10, allow_redirects=False)
        raise AssertionError(f"canaille asks for ever: {reply.url}")

    def consent(self, user_code: str, name: str) -> None:
        """What a user does on another device."""
        requests.post(f"{self.issuer}/device/{user_code}/{name}", timeout=10).raise_for_status()

    def claims(self, **changes: Any) -> dict[str, Any]:
        """Claims of a good token of alice's, to be signed; a change to None leaves one out."""
        now = int(time.time())
        good = {"iss": self.issuer, "aud": ["brume"], "sub": "alice", "iat": now, "exp": now + 600, "email": "alice@idp.test",
                "name": "Alice", "groups": ["devs", "ops"]}
        return {key: value for key, value in (good | changes).items() if value is not None}

    def silence(self) -> None:
        """It keeps its connections and answers nothing."""
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
