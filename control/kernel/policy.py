"""Who may do what: one rule per rpc, in oslo.policy's language, and the operator's file that overrides rules.

A rule is compiled once (kernel.rules). A change of the file is taken whole or not at all.

Rules: named ones (NAMED), and one for each rpc, whose default is what its `policy` option says: a name, or an expression.
What a rule can ask of the caller: user_id, user_domain_id, project_id, project_domain_id, domain_id, system_scope,
is_admin, and Keystone's spellings of them; of the target: fields of the request, and what the service knows of the thing
that the request is about ("target.user.domain_id").
"""
import asyncio
import logging
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message

from control.kernel.caller import Caller
from control.kernel.errors import Invalid
from control.kernel.rules import NO_TARGET, Part, Rule, Target, compile_rule
from protos.brume.v1 import options_pb2

log = logging.getLogger(__name__)

#: Rules that rpcs name; the file may override these too. "public" is asked of nobody, "peer" of a certificate instead.
NAMED = {
    "public": "@",
    "authenticated": "@",
    "admin": "role:admin",
    "admin_or_service": "rule:admin or role:service",
    "member": "rule:admin or (role:member and not project_id:None)",
    "reader": "rule:member or (role:reader and not project_id:None)",
    "system_reader": "rule:admin or (role:reader and system_scope:all)",
    "self_or_system_reader": "rule:system_reader or user_id:%(user_id)s",
    "self_or_admin": "rule:admin or user_id:%(user_id)s",
    "domain_reader": "rule:system_reader or (role:reader and domain_id:%(target.domain_id)s)",
    "domain_manager": "rule:admin or (role:manager and domain_id:%(target.domain_id)s)",
    "self_or_domain_reader": "rule:domain_reader or user_id:%(user_id)s",
}

#: The file's bytes at most.
MAX_FILE = 1024 * 1024

#: Seconds between two looks at the file.
INTERVAL = 1.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """How one check came out, and those that it is made of."""

    text: str
    allowed: bool
    parts: tuple["Verdict", ...] = ()


class Policy:
    """All rules of a cloud."""

    def __init__(self) -> None:
        self.defaults: dict[str, str] = dict(NAMED)
        self.overrides: dict[str, str] = {}
        self._rules: dict[str, Rule] = {}

    def add(self, name: str, text: str) -> None:
        """Know a rule by its default: another rule's name, or an expression. Raises Invalid where it is neither."""
        text = f"rule:{text}" if text in NAMED else text
        if ":" not in text and text not in ("@", "!"):
            raise Invalid("policy.rule", f"{text!r} is neither an expression nor one of {', '.join(NAMED)}")
        if self.defaults.setdefault(name, text) != text:
            raise Invalid("policy.rule", f"the rule {name} has two defaults: {self.defaults[name]!r} and {text!r}")

    def rule(self, name: str) -> Rule:
        """A rule as it stands now. Raises KeyError where there is none."""
        rule = self._rules.get(name)
        if rule is None:
            rule = compile_rule(name, self.texts(), self._rules)
        return rule

    def texts(self) -> dict[str, str]:
        return self.defaults | self.overrides

    def is_override(self, name: str) -> bool:
        return name in self.overrides

    def take(self, overrides: Mapping[str, str]) -> None:
        """Put other overrides in the place of the present ones. Raises Invalid, and keeps those, where one has no meaning."""
        texts = self.defaults | dict(overrides)
        rules: dict[str, Rule] = {}
        for name in texts:
            compile_rule(name, texts, rules)
        self.overrides, self._rules = dict(overrides), rules

    def explain(self, name: str, caller: Caller, target: Target = NO_TARGET) -> Verdict:
        """How a rule comes out for a caller, with every check that it is made of."""
        def judged(part: Part) -> Verdict:
            return Verdict(part.text, part.test(caller, target), tuple(judged(each) for each in part.parts))

        return judged(self.rule(name).part)


class PolicyFile:
    """The operator's overrides: read at start, and again whenever the file changes."""

    def __init__(self, policy: Policy, path: Path):
        self._policy = policy
        self._path = path
        self._seen: tuple[int, ...] | None = None

    def load(self) -> None:
        """Take what the file says now; no file is no override. Raises Invalid, and changes nothing, where it has no meaning."""
        self._seen = self._stamp()
        self._policy.take(read(self._path, self._policy.defaults))

    async def watch(self) -> None:
        """Take every change of the file, until cancelled. A broken file leaves the rules as they are, with a warning."""
        while True:
            await asyncio.sleep(INTERVAL)
            if self._stamp() == self._seen:
                continue
            try:
                self.load()
                log.info("%s: %d rules are overridden", self._path, len(self._policy.overrides))
            except Invalid as error:
                log.warning("%s; the rules stay as they were", error)

    def _stamp(self) -> tuple[int, ...] | None:
        try:
            status = self._path.stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size, status.st_ino, status.st_mode, status.st_uid


def rule_name(method: MethodDescriptor) -> str:
    """The name of an rpc's rule: its policy_name option, else its package, service and rpc: "compute:servers:create_server".

    Identity's are Keystone's own: "identity:create_user".
    """
    given = method.GetOptions().Extensions[options_pb2.policy_name]
    if given:
        return given
    package = method.containing_service.file.package.split(".")[0]
    if package == "identity":
        return f"identity:{_snake(method.name)}"
    service, call = _snake(method.containing_service.name), _snake(method.name)
    noun = service[:-1] if service.endswith("s") else service
    verb, _, rest = call.partition("_")
    rest = "_".join(part for part in (rest.removeprefix(service) if rest.startswith(service) else
                                      rest.removeprefix(noun)).split("_") if part)
    return f"{package}:{service}:{verb}{'_' + rest if rest else ''}"


def rules_of(service: ServiceDescriptor) -> Iterator[tuple[str, str]]:
    """(rule, default) of every rpc of a service that asks a rule at all."""
    for method in service.methods:
        policy = method.GetOptions().Extensions[options_pb2.policy]
        if policy and policy != "peer":
            yield rule_name(method), policy


def read(path: Path, known: Mapping[str, str]) -> dict[str, str]:
    """The overrides in a file; {} where there is none. Raises Invalid, naming the line, where it has no meaning."""
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            data = file.read(MAX_FILE + 1)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise Invalid("policy.file", f"{path} cannot be read: {error.strerror}") from error
    if status.st_uid not in (0, os.geteuid()) or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise Invalid("policy.file", f"{path} can be written by others: chown it to root and chmod it to 0600")
    if len(data) > MAX_FILE:
        raise Invalid("policy.file", f"{path} is larger than {MAX_FILE} bytes")
    try:
        root = yaml.compose(data, yaml.SafeLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        raise Invalid("policy.file", f"{path}{f', line {mark.line + 1}' if mark else ''}: "
                                     f"{getattr(error, 'problem', None) or 'it is not YAML'}") from error
    if root is None:
        return {}
    if not isinstance(root, yaml.MappingNode):
        raise Invalid("policy.file", f"{path}, line {root.start_mark.line + 1}: it must be a mapping of rules")
    overrides: dict[str, str] = {}
    lines: dict[str, int] = {}
    for key, value in root.value:
        lines[key.value] = line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode) or key.value in overrides:
            raise Invalid("policy.file", f"{path}, line {line}: each rule has a name of its own")
        overrides[key.value] = _text_of(path, key.value, value)
    texts = dict(known) | overrides
    made: dict[str, Rule] = {}
    for name in overrides:
        try:
            compile_rule(name, texts, made)
        except Invalid as error:
            raise Invalid("policy.rule", f"{path}, line {lines[name]}: {error}") from error
    unused = set(overrides) - set(known) - {name for text in texts.values() for name in _REFERENCE.findall(text)}
    for name in sorted(unused):
        log.warning("%s, line %d: no call and no other rule asks %s", path, lines[name], name)
    return overrides


_REFERENCE = re.compile(r"\brule:([^\s()]+)")


def _text_of(path: Path, name: str, node: yaml.Node) -> str:
    """A rule's text: a text, or the older list of lists (any of, all of)."""
    if isinstance(node, yaml.ScalarNode) and node.tag in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:null"):
        return "" if node.tag.endswith("null") else node.value
    if isinstance(node, yaml.SequenceNode):
        rows = [row.value if isinstance(row, yaml.SequenceNode) else [row] for row in node.value]
        if all(isinstance(each, yaml.ScalarNode) for row in rows for each in row):
            return " or ".join("(" + " and ".join(each.value for each in row) + ")" for row in rows if row) or "@"
    raise Invalid("policy.file", f"{path}, line {node.start_mark.line + 1}: the rule {name} must be a text")


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


# Targets

Finder = Callable[[Message, Caller, str], Any]


class RequestTarget(Mapping[str, Any]):
    """What a request is about: its fields ("user_id", "user.domain_id"), and what its service finds out ("target. ...")."""

    def __init__(self, request: Any, caller: Caller, find: Finder | None = None):
        self._request, self._caller, self._find = request, caller, find

    def __getitem__(self, key: str) -> Any:
        found: Any = None
        if isinstance(self._request, Message):
            if key.startswith("target.") and self._find is not None:
                found = self._find(self._request, self._caller, key.removeprefix("target."))
            elif not key.startswith("target."):
                found = self._request
                for name in key.split("."):
                    if not isinstance(found, Message) or name.startswith("_") or not name.islower():
                        raise KeyError(key)          # fields are in lower case, a message's own methods are not
                    found = getattr(found, name, None)
        if found is None or isinstance(found, Message):
            raise KeyError(key)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0
