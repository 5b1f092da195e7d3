"""Conversations in YAML: what a client says, and what it must hear.

A file is a list of {conversation: a sentence, steps: [...]}. A step:
  request: "GET /compute/v2.1/servers"    verb, path and query; ${name} stands for what an earlier step saved
  headers: {...}      json: any JSON as the body, or body: text, or pieces: [text, ...]
  status: 200
  answer: JSON that the answer must contain       exactly: JSON that it must be       text: what its text must contain
  answer_headers: {Name: value}
  save: {name: path.to.value}             from the answer's JSON, or "header Name"
In expectations a mapping says which keys there must be, "~pattern" is a regular expression, "<absent>" a key that must not be
there, "<any>" anything, null included. Lists must have the same length.
"""
import re
from pathlib import Path
from typing import Any

import yaml

from tests.api.client import Client, Reply


def load(path: Path) -> list[tuple[str, list[dict[str, Any]]]]:
    """The conversations of a file, as (name, steps)."""
    return [(each["conversation"], each["steps"]) for each in yaml.safe_load(path.read_text())]


async def run(client: Client, steps: list[dict[str, Any]], variables: dict[str, str] | None = None) -> None:
    """Have a conversation. Raises AssertionError where an answer is not what it must be."""
    known = dict(variables or {})
    for step in steps:
        step = _fill(step, known)
        verb, _, target = step["request"].partition(" ")
        body: Any = [piece.encode() for piece in step["pieces"]] if "pieces" in step else str(step.get("body", "")).encode()
        reply = await client(verb, target, json_body=step.get("json"), body=body,
                             headers={name: str(value) for name, value in step.get("headers", {}).items()})
        try:
            _check(step, reply)
        except AssertionError as error:
            heard = f"{reply.status} {reply.headers}\n{reply.body[:2000]!r}"
            raise AssertionError(f"{step['request']}: {error}\nanswer: {heard}") from None
        for name, where in step.get("save", {}).items():
            known[name] = str(_at(reply, where))


def _check(step: dict[str, Any], reply: Reply) -> None:
    if "status" in step:
        assert reply.status == step["status"], f"status {reply.status}, not {step['status']}"
    for name, value in step.get("answer_headers", {}).items():
        held = reply.headers.get(name.lower(), "<absent>")
        assert _matches(str(value), held), f"header {name} is {held!r}, not {value!r}"
    if "answer" in step:
        _contains(step["answer"], reply.json, "answer")
    if "exactly" in step:
        assert reply.json == step["exactly"], f"answer is not {step['exactly']!r}"
    if "text" in step:
        assert step["text"] in reply.body.decode(), f"the text {step['text']!r} is missing"
    if "whole_text" in step:
        assert reply.body.decode() == step["whole_text"], f"the text is not {step['whole_text']!r}"


def _contains(wanted: Any, held: Any, path: str) -> None:
    if wanted == "<any>":
        return
    if isinstance(wanted, dict):
        assert isinstance(held, dict), f"{path} is {held!r}, not an object"
        for key, value in wanted.items():
            if value == "<absent>":
                assert key not in held, f"{path} has {key!r}"
                continue
            assert key in held, f"{path} has no {key!r}"
            _contains(value, held[key], f"{path}.{key}")
    elif isinstance(wanted, list):
        assert isinstance(held, list) and len(held) == len(wanted), f"{path} is {held!r}, not {len(wanted)} elements"
        for index, (one, other) in enumerate(zip(wanted, held, strict=True)):
            _contains(one, other, f"{path}[{index}]")
    else:
        same = _matches(wanted, held) if isinstance(wanted, str) and isinstance(held, str) else \
            wanted == held and isinstance(wanted, bool) == isinstance(held, bool)
        assert same, f"{path} is {held!r}, not {wanted!r}"


def _matches(wanted: str, held: str) -> bool:
    return re.search(wanted[1:], held) is not None if wanted.startswith("~") else wanted == held


def _at(reply: Reply, where: str) -> Any:
    if where.startswith("header "):
        return reply.headers[where.removeprefix("header ").lower()]
    value = reply.json
    for step in where.split("."):
        value = value[int(step)] if isinstance(value, list) else value[step]
    return value


def _fill(value: Any, known: dict[str, str]) -> Any:
    if isinstance(value, str):
        return re.sub(r"\$\{(\w+)\}", lambda found: known[found[1]], value)
    if isinstance(value, dict):
        return {_fill(key, known): _fill(item, known) for key, item in value.items()}
    return [_fill(item, known) for item in value] if isinstance(value, list) else value
