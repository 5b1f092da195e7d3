"""Whether anything secret is ever logged: all that the tests use as a secret is looked for in all that was logged meanwhile.

What clients send and get as passwords, tokens, secrets, passcodes and seeds is noted by itself (`note_message`, and every HTTP
request of the library requests); what is logged in the tests' own process is kept, and log files of other processes are given to
`read`. The session ends with an error where one is in the other, even if it is cut short.
"""
import json
import logging
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest
import requests

#: Properties of JSON whose values are secrets, and headers that are.
PROPERTIES = frozenset({"password", "original_password", "secret", "passcode", "adminpass", "admin_pass", "private_key",
                        "oauth_token_secret", "oauth_verifier"})
HEADERS = frozenset({"x-auth-token", "x-subject-token", "openstack-auth-receipt"})

#: Types of credentials whose blobs are secrets.
BLOBS = frozenset({"ec2", "totp"})

#: Of a long secret, so many characters give it away.
TELLING = 20

#: Loggers that are listened to down to DEBUG: ours, and those of libraries that see secrets (of oauthlib a server's parts).
LOGGERS = ("control", "agents", "scheduler", "ldap3", "uvicorn", "oauthlib.oauth1.rfc5849.endpoints",
           "oauthlib.oauth1.rfc5849.signature")

#: Clients that tests run in their own process tell their user what they were called with: not ours to keep.
CLIENTS = ("osc_lib", "openstackclient", "cliff", "keystoneauth")

#: Between where a line is from and the line.
_MARK = "\x1f"

_WORD = re.compile(rf"[A-Za-z0-9_-]{{{TELLING},}}")
_TOKEN = re.compile(rf"[A-Za-z0-9_-]{{{TELLING},}}=*\Z")


class Watch:
    """Secrets, and what was logged."""

    def __init__(self) -> None:
        self._long: dict[str, str] = {}          # by their first characters
        self._short: set[str] = set()
        self._lines = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 - as long as the session

    def note(self, secret: Any) -> None:
        """Know a secret. Words that any text may have are none to look for, nor what tests make of one letter."""
        if not isinstance(secret, str) or len(set(secret)) < 3:
            return
        if _TOKEN.match(secret):
            self._long[secret[:TELLING]] = secret
        elif len(secret) >= 8 or (len(secret) >= 5 and re.search(r"\d", secret) and re.search(r"[A-Za-z]", secret)):
            self._short.add(secret)

    def note_message(self, headers: Mapping[str, str], body: Any) -> None:
        """Know the secrets of a request or an answer."""
        for name, value in headers.items():
            if name.lower() in HEADERS:
                self.note(value)
        text = body.decode(errors="replace") if isinstance(body, bytes) else body
        if not isinstance(text, str) or len(text) > 1_000_000:
            return
        if text.startswith("oauth_token="):
            self.note(parse_qs(text).get("oauth_token_secret", [""])[0])
            return
        try:
            self._walk(json.loads(text), "")
        except (ValueError, RecursionError):
            return

    def _walk(self, value: Any, key: str) -> None:
        if isinstance(value, list):
            for item in value:
                self._walk(item, key)
        elif isinstance(value, dict):
            if key == "token" and set(value) == {"id"}:
                self.note(value["id"])
            kind, blob = value.get("type"), value.get("blob")
            if isinstance(kind, str) and kind in BLOBS and isinstance(blob, str):
                self._blob(blob)
            for name, item in value.items():
                if name.lower() in PROPERTIES:
                    self.note(item)
                self._walk(item, name)

    def _blob(self, blob: str) -> None:
        try:
            self._walk(json.loads(blob), "")
        except ValueError:
            self.note(blob)

    def log(self, text: str, where: str = "") -> None:
        """Keep what was logged. `where` is not looked into: the name of a test may have its parameters in it."""
        for line in text.splitlines():
            self._lines.write(f"{where}{_MARK}{line}\n")

    def read(self, path: Path) -> None:
        """Look into a log file, or all of a directory, of another process."""
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                for line in file.read_text(errors="replace").splitlines():
                    self.log(line, file.name)

    def findings(self) -> list[str]:
        """The lines that have a secret in them."""
        self._lines.seek(0)
        words = "|".join(re.escape(secret) for secret in sorted(self._short))
        short = re.compile(rf"(?<!\w)(?:{words})(?!\w)") if words else None
        found = []
        for kept in self._lines:
            where, _, line = kept.rstrip("\n").partition(_MARK)
            if any(word.group()[:TELLING] in self._long for word in _WORD.finditer(line)) or (short and short.search(line)):
                found.append(f"{where}: {line}" if where else line)
        return found


class _Handler(logging.Handler):
    def __init__(self, watch: Watch):
        super().__init__(logging.DEBUG)
        self._watch = watch
        self.setFormatter(logging.Formatter("%(name)s %(levelname)s %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        if record.name.startswith(CLIENTS):
            return
        test = os.environ.get("PYTEST_CURRENT_TEST", "").rpartition(" ")[0]
        self._watch.log(self.format(record), test)


#: The session's.
WATCH = Watch()


@pytest.fixture(scope="session", autouse=True)
def nothing_secret_is_logged() -> Iterator[None]:
    """Fails the session where a secret was logged."""
    handler, send = _Handler(WATCH), requests.Session.send
    levels = {name: logging.getLogger(name).level for name in LOGGERS}

    def noted(session: requests.Session, request: requests.PreparedRequest, **options: Any) -> requests.Response:
        WATCH.note_message(request.headers, request.body)
        answer = send(session, request, **options)
        if not options.get("stream"):
            WATCH.note_message(answer.headers, answer.content)
        return answer

    requests.Session.send = noted  # type: ignore[method-assign]
    logging.getLogger().addHandler(handler)
    for name in LOGGERS:
        logging.getLogger(name).setLevel(logging.DEBUG)
    try:
        yield
    finally:
        requests.Session.send = send  # type: ignore[method-assign]
        logging.getLogger().removeHandler(handler)
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
    found = WATCH.findings()
    assert not found, f"{len(found)} lines of the logs have secrets in them:\n" + "\n".join(line[:300] for line in found[:20])
