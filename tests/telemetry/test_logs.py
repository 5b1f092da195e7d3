"""Log lines for people and for what collects them."""
import json
import subprocess
import sys

SCRIPT = """
import logging, sys
from agents.telemetry import logs
logs.set_up("INFO", sys.argv[1])
log = logging.getLogger("a.b")
log.info("no %s", "request")
logs.request_id.set("req-1")
log.warning('with "quotes", and\\nlines')
try:
    1 / 0
except ZeroDivisionError:
    log.exception("failed")
log.debug("not shown")
"""


def lines(form: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", SCRIPT, form], capture_output=True, text=True, check=True)
    assert not done.stdout
    return done.stderr.splitlines()


def test_json_has_one_object_per_line_with_the_request_that_it_is_about():
    first, second, third = map(json.loads, lines("json"))
    assert (first["level"], first["logger"], first["message"]) == ("INFO", "a.b", "no request") and "request_id" not in first
    assert first["time"].endswith("Z") and "T" in first["time"]
    assert (second["message"], second["request_id"]) == ('with "quotes", and\nlines', "req-1")
    assert "ZeroDivisionError" in third["error"] and third["level"] == "ERROR"


def test_text_names_the_request_between_brackets():
    first, second, *_ = lines("text")
    assert first.endswith("INFO a.b [-] no request") and "WARNING a.b [req-1] with" in second
