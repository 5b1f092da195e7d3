"""Runs tempest against a cloud, says what holds per service, and whether all still passes that passed before.

`make conformance` is this with a cloud of its own. What is run: all of tempest.api.identity, its like in Keystone's own plugin,
and interop.txt. What passes stands in passing.txt, why a test is skipped in skips.yaml; `--check` fails when a test of the first
does not pass or one is skipped without a reason.
"""
import argparse
import contextlib
import fnmatch
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
sys.path.insert(0, str(ROOT))

from tests.conformance.tempest import cloud  # noqa: E402

ENVIRONMENT = ROOT / ".venv-tempest"
PYTHON = ENVIRONMENT / "bin" / "python"
PLUGIN = "keystone_tempest_plugin."
IDENTITY = ("tempest.api.identity.", f"{PLUGIN}tests.api.identity.")
STATUSES = ("passed", "failed", "skipped")

#: Seconds that one test may take: a guest under emulation boots within a few.
TEST_TIMEOUT = 180


def install() -> None:
    """tempest in an environment of its own, in the version of requirements.txt; nothing to do where it is there."""
    wanted, marker = (HERE / "requirements.txt").read_text(), ENVIRONMENT / ".installed"
    if marker.exists() and marker.read_text() == wanted:
        return
    if not PYTHON.exists():
        subprocess.run([sys.executable, "-m", "venv", str(ENVIRONMENT)], check=True)
    subprocess.run([str(PYTHON), "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
                    "--requirement", str(HERE / "requirements.txt")], check=True)
    marker.write_text(wanted)


def lines(name: str) -> list[str]:
    """A list's entries, without comments."""
    path = HERE / name
    return [line for line in path.read_text().splitlines() if line and not line.startswith("#")] if path.exists() else []


def service(test: str) -> str:
    """identity of tempest.api.identity.v3...."""
    return test.removeprefix(f"{PLUGIN}tests.").removeprefix("tempest.").split(".")[1]


class Tempest:
    """One working directory of tempest."""

    def __init__(self, directory: Path, state_dir: Path):
        self._directory = directory
        for part in ("etc", "locks"):
            (directory / part).mkdir(exist_ok=True)
        with (directory / "etc" / "tempest.conf").open("w") as file:
            cloud.describe(state_dir).write(file)
        package = next((ENVIRONMENT / "lib").glob("python3*/site-packages/tempest"))
        (directory / ".stestr.conf").write_text(
            f"[DEFAULT]\ntest_path={package}/test_discover\ntop_dir={package}\ngroup_regex=([^\\.]*\\.)*\n")
        self._stestr("init", check=True)

    def tests(self) -> dict[str, str]:
        """Every test's name, and its id: with its attributes in brackets, as stestr wants it."""
        found = self._stestr("list", stdout=subprocess.PIPE, text=True, check=True).stdout.split()
        return {test.partition("[")[0]: test for test in found if test.startswith(("tempest.", PLUGIN))}

    def run(self, ids: Iterable[str]) -> list[dict[str, Any]]:
        """The outcomes of these tests. The run's own output goes to standard error."""
        (self._directory / "wanted").write_text("\n".join(ids) + "\n")
        self._stestr("run", "--load-list", "wanted", "--concurrency", "2", stdout=sys.stderr, check=False)
        stream = self._stestr("last", "--subunit", stdout=subprocess.PIPE, check=False).stdout
        told = subprocess.run([str(PYTHON), str(HERE / "outcomes.py")], input=stream, stdout=subprocess.PIPE, check=True).stdout
        return [json.loads(line) for line in told.splitlines()]

    def _stestr(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[Any]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("OS_", "PYTHON"))}
        environment |= {"TEMPEST_CONFIG_DIR": str(self._directory / "etc"), "OS_TEST_TIMEOUT": str(TEST_TIMEOUT)}
        return subprocess.run([str(ENVIRONMENT / "bin" / "stestr"), *arguments], cwd=self._directory, env=environment, **options)


def outcomes(wanted: Iterable[str], told: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """What became of each test. What became of a class's set-up (a skip, a failure) became of all its tests."""
    became: dict[str, dict[str, Any]] = {}
    classes: dict[str, dict[str, Any]] = {}
    for test in told:
        name = test["id"].partition("[")[0]
        status = {"success": "passed", "skip": "skipped"}.get(test["status"], "failed")
        entry = {"status": status, "seconds": test["seconds"], "text": test["text"]}
        if name.startswith(("setUpClass (", "tearDownClass (")):
            if status != "passed":
                classes[name.partition("(")[2].rstrip(")")] = entry
        else:
            became[name] = entry
    missing = {"status": "failed", "seconds": 0.0, "text": "tempest has no such test, or it did not run"}
    return {name: became.get(name) or classes.get(name.rpartition(".")[0]) or missing for name in wanted}


def reason(test: str, reasons: dict[str, str]) -> str:
    return next((why for pattern, why in reasons.items() if fnmatch.fnmatchcase(test, pattern)), "")


def table(found: dict[str, dict[str, Any]]) -> Table:
    shown = Table("service", *STATUSES, "all")
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for test, outcome in found.items():
        counts[service(test)][outcome["status"]] += 1
    for name, count in sorted(counts.items()):
        shown.add_row(name, *(str(count[status]) for status in STATUSES), str(count.total()))
    total = sum(counts.values(), Counter())
    shown.add_section()
    shown.add_row("all", *(str(total[status]) for status in STATUSES), str(total.total()))
    return shown


def complaints(found: dict[str, dict[str, Any]], reasons: dict[str, str]) -> list[str]:
    """Why `--check` fails: empty where it does not."""
    said = [f"{test} passed before: now {found[test]['status']}" for test in lines("passing.txt")
            if test in found and found[test]["status"] != "passed"]
    return said + [f"{test} is skipped without a reason in skips.yaml: {outcome['text']}" for test, outcome in found.items()
                   if outcome["status"] == "skipped" and not reason(test, reasons)]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--state-dir", type=Path, help="a cloud that runs; without it, one is made and taken down")
    parser.add_argument("--keep", action="store_true", help="leave the cloud that was made, and use it again next time")
    parser.add_argument("--only", nargs="+", default=[], metavar="PART",
                        help="services (identity), or any part of a test's name")
    parser.add_argument("--passing", action="store_true", help="run only what stands in passing.txt")
    parser.add_argument("--check", action="store_true", help="fail where something of passing.txt does not pass")
    parser.add_argument("--write", action="store_true", help="add to passing.txt what passes now")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    return parser.parse_args()


def main() -> int:
    options = arguments()
    install()
    reasons: dict[str, str] = yaml.safe_load((HERE / "skips.yaml").read_text()) or {}
    with contextlib.ExitStack() as stack:
        state_dir = options.state_dir or stack.enter_context(cloud.own(keep=options.keep))
        tempest = Tempest(Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="brume-tempest-"))), state_dir)
        known = tempest.tests()
        wanted = [test for test in known if test.startswith(IDENTITY)]
        wanted += [test for test in lines("interop.txt") if test not in wanted]
        if options.passing:
            passing = set(lines("passing.txt"))
            wanted = [test for test in wanted if test in passing]
        wanted = [test for test in wanted if not options.only or any(part in test for part in options.only)]
        found = outcomes(wanted, tempest.run(known[test] for test in wanted if test in known))
    if options.write:
        passed = {test for test, outcome in found.items() if outcome["status"] == "passed"}
        (HERE / "passing.txt").write_text("\n".join(sorted(passed | set(lines("passing.txt")))) + "\n")
    for test, outcome in found.items():
        outcome["reason"] = reason(test, reasons) if outcome["status"] == "skipped" else ""
    wrong = complaints(found, reasons) if options.check else []
    if options.json:
        print(json.dumps({"tests": found, "complaints": wrong}))
    else:
        console = Console()
        for test, outcome in found.items():
            if outcome["status"] == "failed":
                console.print(f"failed: {test}", style="red", highlight=False, soft_wrap=True)
                if options.check:
                    console.print(outcome["text"][-1200:], highlight=False, markup=False, soft_wrap=True)
        console.print(table(found))
        for line in wrong:
            console.print(line, style="bold red", highlight=False, soft_wrap=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
