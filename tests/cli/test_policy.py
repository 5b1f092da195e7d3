"""`brume policy`: all rules, and what overrides them."""
import json
import subprocess
import sys
from pathlib import Path

BRUME = [sys.executable, "-m", "control.cli.main"]


def test_list_has_every_services_rules_with_their_overrides(tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text("compute:servers:create: role:builder\n")
    file.chmod(0o600)
    done = subprocess.run([*BRUME, "--state-dir", str(tmp_path), "policy", "list", "--json"], capture_output=True, text=True,
                          check=True)
    rules = {row["rule"]: row for row in json.loads(done.stdout)}
    assert rules["compute:servers:create"] == {"rule": "compute:servers:create", "default": "rule:member",
                                               "override": "role:builder"}
    for name in ("identity:create_user", "network:networks:create", "image:images:list", "admin"):
        assert rules[name]["default"] and rules[name]["override"] is None
    text = subprocess.run([*BRUME, "--state-dir", str(tmp_path), "policy", "list", "servers:create"], capture_output=True,
                          text=True, check=True).stdout
    assert "compute:servers:create" in text and "overridden: role:builder" in text


def test_a_broken_file_is_told_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text("compute:servers:create: role:builder or\n")
    file.chmod(0o600)
    done = subprocess.run([*BRUME, "--state-dir", str(tmp_path), "policy", "list"], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "line 1" in done.stderr and "Traceback" not in done.stderr
