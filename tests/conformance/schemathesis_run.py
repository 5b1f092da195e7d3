"""Calls every operation of a cloud's OpenAPI documents with what schemathesis makes up, as an admin.

No answer may be a 5xx, nor have a status, media type, header or body that its document does not have. `make schemas CASES=10000`
is this with a cloud of its own, whose hosts are simulated.
"""
import argparse
import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import requests

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT))

from control.cli import credentials  # noqa: E402
from control.kernel import config as settings  # noqa: E402

ENVIRONMENT = ROOT / ".venv-schemas"
WANTED = "schemathesis==4.32.5"
BRUME = [sys.executable, "-m", "control.cli.main"]
STATE_DIR, NAME, PORT, PUBLIC = Path("/var/tmp/brume-schemas"), "brumeschemas", 5600, "172.24.102.0/24"

CHECKS = ("not_a_server_error", "status_code_conformance", "content_type_conformance", "response_headers_conformance",
          "response_schema_conformance")
DOCUMENTS = {"placement": "/placement", "image": "/image", "network": "/network", "compute": "/compute", "identity": ""}


def install() -> str:
    """The path of schemathesis, in an environment of its own; made where it is not there."""
    marker, program = ENVIRONMENT / ".installed", ENVIRONMENT / "bin" / "schemathesis"
    if not marker.exists() or marker.read_text() != WANTED:
        subprocess.run([sys.executable, "-m", "venv", str(ENVIRONMENT)], check=True)
        subprocess.run([str(ENVIRONMENT / "bin" / "python"), "-m", "pip", "install", "--quiet",
                        "--disable-pip-version-check", WANTED], check=True)
        marker.write_text(WANTED)
    return str(program)


@contextlib.contextmanager
def own_cloud() -> Iterator[Path]:
    """The state directory of a cloud with one simulated host, which goes afterwards."""
    brume = [*BRUME, "--state-dir", str(STATE_DIR)]
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
        file.write('hypervisor = "simulated"\n')
        file.flush()
        subprocess.run([*brume, "up", "--json", "--no-seed", "--port", str(PORT), "--name", NAME, "--public-cidr", PUBLIC,
                        "--config", file.name], check=True, stdout=subprocess.DEVNULL)
    try:
        yield STATE_DIR
    finally:
        subprocess.run([*brume, "down", "--purge", "--yes"], check=True, stdout=subprocess.DEVNULL)


class Cloud:
    """A running cloud, as its admin sees it."""

    def __init__(self, state_dir: Path):
        config = settings.load(state_dir)
        self.url = config.auth_url.removesuffix("/v3")
        login = credentials.ensure(config)["admin"]
        domain = {"id": "default"}
        answer = requests.post(f"{config.auth_url}/auth/tokens", timeout=30, json={"auth": {
            "identity": {"methods": ["password"], "password": {
                "user": {"name": login.user, "password": login.password, "domain": domain}}},
            "scope": {"project": {"name": login.project, "domain": domain}}}})
        answer.raise_for_status()
        self.token, self.body = answer.headers["X-Subject-Token"], answer.json()["token"]

    def document(self, name: str) -> dict[str, Any]:
        return self._get(DOCUMENTS[name] + "/openapi.json")

    def there(self) -> dict[str, list[str]]:
        """The ids in every collection that is listed without a parameter, by the last segment of its path."""
        found: dict[str, list[str]] = {}
        for name in DOCUMENTS:
            for path, verbs in self.document(name)["paths"].items():
                if "get" not in verbs or "{" in path or path.endswith("/auth/tokens"):
                    continue
                answer = self._get(path)
                values = answer.values() if isinstance(answer, dict) else []
                rows = next((value for value in values if isinstance(value, list)), [])
                ids = [row.get("id") or row.get("uuid") for row in rows if isinstance(row, dict)]
                found.setdefault(path.rpartition("/")[2], []).extend(each for each in ids if isinstance(each, str))
        return found

    def kept(self) -> list[str]:
        return [self.body["user"]["id"], self.body["project"]["id"], "default", *(role["id"] for role in self.body["roles"])]

    def _get(self, path: str) -> Any:
        answer = requests.get(self.url + path, headers={"X-Auth-Token": self.token}, timeout=30)
        return answer.json() if answer.ok and "json" in answer.headers.get("content-type", "") else {}


def run(program: str, cloud: Cloud, name: str, examples: int, seed: int) -> dict[str, Any]:
    """One document's calls: how many there were, how many of them were answered as it says, and what schemathesis said."""
    told = {"kept": cloud.kept(), "there": cloud.there(), "seed": seed}
    environment = os.environ | {"BRUME_SCHEMAS": json.dumps(told), "SCHEMATHESIS_HOOKS": "schemathesis_hooks",
                                "PYTHONPATH": str(HERE)}
    done = subprocess.run(
        [program, "run", f"{cloud.url}{DOCUMENTS[name]}/openapi.json", "-H", f"X-Auth-Token: {cloud.token}",
         "--checks", ",".join(CHECKS), "--phases", "examples,coverage,fuzzing,stateful", "--max-examples", str(examples),
         "--no-shrink", "--continue-on-failure", "--generation-database", "none", "--suppress-health-check", "all",
         "--seed", str(seed), "--warnings", "off", "--output-sanitize", "true"],
        env=environment, cwd=tempfile.gettempdir(), capture_output=True, text=True, check=False)
    cases = re.search(r"(\d+) generated", done.stdout)
    wrong = re.search(r"generated, (\d+) found", done.stdout)
    count = int(cases[1]) if cases else 0
    return {"cases": count, "passed": count - int(wrong[1] if wrong else 0), "code": done.returncode,
            "text": done.stdout + done.stderr}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10_000, help="at least so many calls, over all documents")
    parser.add_argument("--state-dir", type=Path, help="a cloud that runs; without it, one is made and taken down")
    parser.add_argument("--only", nargs="+", choices=list(DOCUMENTS), default=list(DOCUMENTS))
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    program, wrong, total = install(), 0, 0
    with contextlib.ExitStack() as stack:
        cloud = Cloud(options.state_dir or stack.enter_context(own_cloud()))
        operations = {name: sum(len(verbs) for verbs in cloud.document(name)["paths"].values()) for name in options.only}
        examples = max(10, options.cases // max(1, sum(operations.values())))
        for name in options.only:
            found = run(program, cloud, name, examples, options.seed)
            total += found["cases"]
            print(f"{name}: {operations[name]} operations, {found['cases']} cases, {found['passed']} answered as described",
                  flush=True)
            if found["code"]:
                wrong += 1
                print(found["text"])
    print(f"{total} cases; {'all answers are as the documents say' if not wrong else f'{wrong} documents do not hold'}")
    return 1 if wrong or total < options.cases else 0


if __name__ == "__main__":
    sys.exit(main())
