"""The comments of the protos, which Python's descriptors do not keep: setup.py writes them down when it compiles."""
import functools
import json
import re
from pathlib import Path
from typing import Any

from protos.brume.v1 import options_pb2

_FILE = Path(options_pb2.__file__).parents[2] / "comments.json"

#: Where a summary ends: a full stop before a new sentence, so that "e.g." and "v2.1" end none.
_SENTENCE = re.compile(r"(?<=[a-z0-9)\"'])\. (?=[A-Z0-9\"])|\.$")


@functools.cache
def _all() -> dict[str, str]:
    try:
        return json.loads(_FILE.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}


def comment(descriptor: Any) -> str:
    """The comment of a service, method, message, field or enum value as one paragraph; "" where it has none."""
    return " ".join(_all().get(_name(descriptor), "").split())


def summary(text: str) -> str:
    """The first sentence of a comment, without its full stop."""
    return _SENTENCE.split(text, maxsplit=1)[0].strip()


def _name(descriptor: Any) -> str:
    """As setup.py has it: the names of all that holds the thing, joined by dots."""
    if hasattr(descriptor, "full_name"):
        return descriptor.full_name
    return f"{descriptor.type.full_name}.{descriptor.name}"      # enum values have none in Python
