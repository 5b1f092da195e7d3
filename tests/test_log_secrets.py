"""The check that nothing secret is logged finds what it shall find, and fails a session where it does."""
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.log_secrets import Watch

ROOT = Path(__file__).resolve().parents[1]
TOKEN = "gAAAAABpsecretsecretsecretsecretsecretsecretsecretsecret"


def watching(*, headers: dict[str, str] | None = None, body: object = None) -> Watch:
    watch = Watch()
    watch.note_message(headers or {}, json.dumps(body).encode())
    return watch


@pytest.mark.parametrize(("headers", "body", "secret"), [
    ({"X-Auth-Token": TOKEN}, None, TOKEN), ({"x-subject-token": TOKEN}, None, f"token={TOKEN}"),
    ({"X-Auth-Token": TOKEN}, None, TOKEN[:24]),
    ({}, {"auth": {"identity": {"password": {"user": {"name": "demo", "password": "open sesame"}}}}}, "open sesame"),
    ({}, {"auth": {"identity": {"token": {"id": TOKEN}}}}, TOKEN),
    ({}, {"auth": {"identity": {"totp": {"user": {"passcode": "a12345"}}}}}, "a12345"),
    ({}, {"user": {"original_password": "s3same"}}, "s3same"),
    ({}, {"application_credential": {"secret": "a secret of mine"}}, "a secret of mine"),
    ({}, {"credential": {"type": "totp", "blob": "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ"}}, "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ"),
    ({}, {"credential": {"type": "ec2", "blob": json.dumps({"access": "a", "secret": "0123456789abcdef0123456789abcdef"})}},
     "0123456789abcdef0123456789abcdef"),
    ({}, {"config": {"ldap": {"password": "r3ader"}}}, "r3ader")])
def test_a_secret_that_was_sent_or_got_is_found_in_what_is_logged(headers, body, secret):
    watch = watching(headers=headers, body=body)
    watch.log("nothing here")
    assert watch.findings() == []
    watch.log(f"the call failed: {{'it': '{secret}'}}")
    assert watch.findings() == [f"the call failed: {{'it': '{secret}'}}"]


def test_a_secret_is_found_though_it_was_used_after_it_was_logged():
    watch = Watch()
    watch.log(f"token {TOKEN}")
    watch.note(TOKEN)
    assert len(watch.findings()) == 1


def test_a_consumers_secret_is_found():
    watch = Watch()
    watch.note_message({}, "oauth_token=abc&oauth_token_secret=0123456789abcdef0123456789abcdef&oauth_expires_at=1")
    watch.log("got 0123456789abcdef0123456789abcdef")
    assert len(watch.findings()) == 1


def test_files_of_other_processes_are_looked_into(tmp_path: Path):
    watch = watching(body={"password": "open sesame"})
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "control.log").write_text("fine\nlogin with open sesame\n")
    watch.read(tmp_path / "log")
    assert watch.findings() == ["control.log: login with open sesame"]


def test_words_that_are_no_secrets_are_passed_over():
    watch = watching(headers={"X-Other": TOKEN}, body={"user": {"name": "a long name of somebody", "password": "demo"}})
    watch.log(f"demo said {TOKEN}: a long name of somebody")
    assert watch.findings() == []


@pytest.mark.parametrize(("logged", "status"), [("password", 1), ("user_name", 0)])
def test_a_session_that_logs_a_secret_fails(tmp_path: Path, logged: str, status: int):
    (tmp_path / "test_it.py").write_text(
        "import logging\nfrom tests.log_secrets import WATCH\n\n\ndef test_a_login():\n"
        "    login = {'user_name': 'somebody in particular', 'password': 'open sesame'}\n"
        "    import json; WATCH.note_message({}, json.dumps(login))\n"
        f"    logging.getLogger('control.identity').debug('login of %s', login['{logged}'])\n")
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-p", "tests.log_secrets", "-p", "no:cacheprovider",
                           "--rootdir", str(tmp_path), "-c", "/dev/null", str(tmp_path / "test_it.py")], cwd=ROOT,
                          capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == status, done.stdout + done.stderr
    assert ("have secrets in them" in done.stdout) == bool(status)
    assert ("test_it.py::test_a_login: control.identity DEBUG login of open sesame" in done.stdout) == bool(status)
