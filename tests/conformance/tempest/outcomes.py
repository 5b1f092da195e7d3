"""Reads a subunit stream on standard input; prints one JSON object a test: id, status, seconds and what it said.

Run by tempest's own interpreter, which has the subunit library.
"""
import json
import sys
from datetime import datetime

import testtools
from subunit import ByteStreamToStreamResult

#: Characters of a failure that are kept: its end says what went wrong.
LIMIT = 6000


def text_of(details: dict) -> str:
    """Why a test was skipped, or the end of how it failed."""
    wanted = [details[name] for name in ("reason", "traceback") if name in details] or list(details.values())
    parts = [content.as_text() for content in wanted if content.content_type.type == "text"]
    return "\n".join(parts).strip()[-LIMIT:]


def seconds(timestamps: list[datetime | None]) -> float:
    first, last = timestamps
    return round((last - first).total_seconds(), 3) if first and last else 0.0


def show(test: dict) -> None:
    print(json.dumps({"id": test["id"], "status": test["status"], "seconds": seconds(test["timestamps"]),
                      "text": text_of(test["details"])}))


if __name__ == "__main__":
    result = testtools.StreamToDict(show)
    result.startTestRun()
    ByteStreamToStreamResult(sys.stdin.buffer, non_subunit_name="stdout").run(result)
    result.stopTestRun()
