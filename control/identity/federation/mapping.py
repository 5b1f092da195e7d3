"""The mapping language: from what an identity provider says of somebody to who they are here. Pure.

It is Keystone's, so that mappings move here as they are. Where Keystone passes several values on as the text of a Python
list and reads that text again, values stay values here: nothing that a provider says is ever parsed.
"""
import ast
import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import regex

from control.kernel.errors import Error, Invalid

VERSIONS = ("1.0", "2.0")

#: Characters of a regular expression, and of a value that one is tried on.
MAX_PATTERN, MAX_SEARCHED = 1000, 4096

#: Seconds that an expression may look for itself in a value: a careless one can take for ever, and whoever logs in knows a value.
SEARCH_TIMEOUT = 0.1

#: Groups, projects or roles that one text of a rule may stand for. More is refused: a provider says too much.
MAX_EXPANDED = 200

Values = Mapping[str, Sequence[str]]


class Unmapped(Error):
    """The rules make nobody of what a provider says; the text is for the operator's log."""


@dataclass(frozen=True, slots=True)
class Domain:
    """A domain, by id or by name."""

    id: str = ""
    name: str = ""


@dataclass(frozen=True, slots=True)
class User:
    """Who somebody is. `id` and `name` are never both empty; without a domain it is the provider's."""

    id: str = ""
    name: str = ""
    email: str = ""
    local: bool = False                # one of the cloud's own users rather than the provider's
    domain: Domain | None = None


@dataclass(frozen=True, slots=True)
class Group:
    """A group, by id, or by name and domain."""

    id: str = ""
    name: str = ""
    domain: Domain | None = None


@dataclass(frozen=True, slots=True)
class Project:
    """A project to have, made where it is not there, with the user's roles on it. Without a domain it is the provider's."""

    name: str
    roles: tuple[str, ...]
    domain: Domain | None = None


@dataclass(frozen=True, slots=True)
class Mapped:
    """What the rules say of somebody: each thing once, in the order of the rules."""

    user: User
    groups: tuple[Group, ...] = ()
    projects: tuple[Project, ...] = ()


@dataclass(frozen=True, slots=True)
class Condition:
    """One element of "remote"."""

    type: str
    how: str = ""                      # "", "any_one_of", "not_any_of", "whitelist" or "blacklist"
    values: tuple[str, ...] = ()
    patterns: tuple[regex.Pattern[str], ...] | None = None    # in place of values, with "regex"

    @property
    def filters(self) -> bool:
        """Whether "local" can refer to its values."""
        return self.how not in ("any_one_of", "not_any_of")

    def judge(self, said: Sequence[str]) -> tuple[str, ...] | None:
        """The values that "local" can refer to; None where the condition does not hold. Raises Unmapped where nobody can tell."""
        if not said:
            return None
        found = [value for value in said if self._matches(value)] if self.how else []
        match self.how:
            case "":
                return tuple(said)
            case "any_one_of":
                return () if found else None
            case "not_any_of":
                return None if found else ()
            case "whitelist":
                return tuple(found)
        return tuple(value for value in said if value not in found)

    def _matches(self, value: str) -> bool:
        if self.patterns is None:
            return value in self.values
        if len(value) > MAX_SEARCHED:
            raise Unmapped("mapping.regex", f"a value of {self.type} has {len(value)} characters; {MAX_SEARCHED} are searched")
        try:
            return any(pattern.search(value, timeout=SEARCH_TIMEOUT) for pattern in self.patterns)
        except TimeoutError as error:
            raise Unmapped("mapping.regex", f"an expression for {self.type} takes too long; make it simpler") from error


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule: `local` is as it was given, checked."""

    remote: tuple[Condition, ...]
    local: tuple[dict[str, Any], ...]

    def values(self, assertion: Values) -> list[tuple[str, ...]] | None:
        """What {0}, {1} and so on stand for; None where the rule does not apply."""
        found: list[tuple[str, ...]] = []
        for condition in self.remote:
            values = condition.judge(assertion.get(condition.type, ()))
            if values is None:
                return None
            if condition.filters:
                found.append(values)
        return found


@dataclass(frozen=True, slots=True)
class Rules:
    """A mapping, ready to be applied."""

    rules: tuple[Rule, ...]
    version: str = "1.0"

    def apply(self, assertion: Values, remote_user: str = "") -> Mapped:
        """Who an assertion is of.

        Args:
          assertion: what the provider says: values by name; none of the lists is empty.
          remote_user: what a user is called where no rule says so.

        Raises:
          Unmapped: no rule applies, or what the rules say is no user.
        """
        user: User | None = None
        applied = False
        groups: list[Group] = []
        projects: list[Project] = []
        for rule in self.rules:
            values = rule.values(assertion)
            if values is None:
                continue
            for local in rule.local:
                applied = True
                domain = _domain(local.get("domain"), values)
                if "user" in local and user is None:
                    user = self._user(local["user"], values, domain)
                groups += _groups(local, values, domain)
                projects += self._projects(local, values, domain)
        if not applied:
            raise Unmapped("mapping.none", "no rule of the mapping applies")
        user = user or User()
        if not user.id and not user.name:
            if not remote_user:
                raise Unmapped("mapping.user", "the rules name no user")
            user = User(id=remote_user, name=remote_user, email=user.email, local=user.local, domain=user.domain)
        return Mapped(user, tuple(dict.fromkeys(groups)), tuple(dict.fromkeys(projects)))

    def _user(self, given: dict[str, Any], values: list[tuple[str, ...]], default: Domain | None) -> User:
        local = given.get("type") == "local"
        domain = _domain(given.get("domain"), values)
        if self.version == "1.0" and not local:
            domain = None               # always the provider's
        elif self.version != "1.0":
            domain = domain or default
        one = {key: _one(f"user.{key}", given[key], values) for key in ("id", "name", "email") if key in given}
        return User(local=local, domain=domain, **one)

    def _projects(self, local: dict[str, Any], values: list[tuple[str, ...]], default: Domain | None) -> Iterable[Project]:
        for given in local.get("projects", ()):
            roles = tuple(dict.fromkeys(role for each in given["roles"] for role in _expand(each["name"], values)))
            domain = (_domain(given.get("domain"), values) or default) if self.version != "1.0" else None
            for name in _expand(given["name"], values):
                yield Project(name, roles, domain)


def _groups(local: dict[str, Any], values: list[tuple[str, ...]], domain: Domain | None) -> Iterable[Group]:
    if "group" in local:
        given = local["group"]
        if "id" in given:
            yield from (Group(id=identifier) for identifier in _expand(given["id"], values))
        else:
            yield from (Group(name=name, domain=_domain(given["domain"], values)) for name in _expand(given["name"], values))
    for text in _listed(local.get("groups")):
        yield from (Group(name=name, domain=domain) for name in _expand(text, values))
    for text in _listed(local.get("group_ids")):
        yield from (Group(id=identifier) for identifier in _expand(text, values))


def _listed(text: str | None) -> list[str]:
    """The texts of "groups" and "group_ids": a rule may write several as a list in a text."""
    if text is None:
        return []
    if text.startswith("[") and text.endswith("]"):
        try:
            found = ast.literal_eval(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return [text]
        if isinstance(found, list) and all(isinstance(each, str) for each in found):
            return found
    return [text]


def _domain(given: dict[str, str] | None, values: list[tuple[str, ...]]) -> Domain | None:
    if not given:
        return None
    return Domain(**{key: _one(f"domain.{key}", text, values) for key, text in given.items()})


# Substitution

_MARK = re.compile(r"\{\{|\}\}|\{(\d{1,3})\}|[{}]")


def _one(where: str, text: str, values: list[tuple[str, ...]]) -> str:
    """A text that stands for one value. Raises Unmapped where it stands for none or several."""
    found = _expand(text, values)
    if len(found) != 1 or not found[0]:
        raise Unmapped("mapping.values", f"{where} is {text!r}, which the provider's answer gives {len(found)} values")
    return found[0]


def _expand(text: str, values: list[tuple[str, ...]]) -> list[str]:
    """All that a text stands for: one with each value of {0}, {1} and so on; none where one of those has none."""
    marks = sorted({int(mark[1]) for mark in _MARK.finditer(text) if mark[1]})
    count = 1
    for mark in marks:
        count *= len(values[mark])
    if count > MAX_EXPANDED:
        raise Unmapped("mapping.values", f"{text!r} stands for {count} values; {MAX_EXPANDED} are allowed")

    def filled(chosen: dict[int, str]) -> str:
        return _MARK.sub(lambda mark: chosen[int(mark[1])] if mark[1] else mark[0][0], text)

    products = itertools.product(*(values[mark] for mark in marks))
    return list(dict.fromkeys(filled(dict(zip(marks, product, strict=True))) for product in products))


# Reading

def parse(rules: Any, version: str = "1.0") -> Rules:
    """The rules of a mapping. Raises Invalid, naming the place of what means nothing."""
    if version not in VERSIONS:
        raise Invalid("mapping.schema_version", f"schema_version: {version!r} is not one of {', '.join(VERSIONS)}")
    found = []
    for index, given in enumerate(_list("rules", rules, least=1)):
        where = f"rules[{index}]"
        _object(where, given, required=("local", "remote"))
        remote = tuple(_condition(f"{where}.remote[{position}]", each)
                       for position, each in enumerate(_list(f"{where}.remote", given["remote"], least=1)))
        count = sum(condition.filters for condition in remote)
        local = _list(f"{where}.local", given["local"])
        for position, each in enumerate(local):
            _check_local(f"{where}.local[{position}]", each, _Texts(count), version)
        found.append(Rule(remote, tuple(local)))
    return Rules(tuple(found), version)


def _wrong(where: str, what: str) -> Invalid:
    return Invalid(f"mapping.{where}", f"{where}: {what}")


def _list(where: str, given: Any, least: int = 0) -> list[Any]:
    if not isinstance(given, list) or len(given) < least:
        raise _wrong(where, f"expected a list{' with at least one element' if least else ''}")
    return given


def _object(where: str, given: Any, required: Iterable[str] = (), optional: Iterable[str] = ()) -> dict[str, Any]:
    if not isinstance(given, dict):
        raise _wrong(where, "expected an object")
    for key in required:
        if key not in given:
            raise _wrong(where, f"{key!r} is a required property")
    for key in given:
        if key not in {*required, *optional}:
            raise _wrong(where, f"Additional properties are not allowed ({key!r} was unexpected)")
    return given


_HOW = ("any_one_of", "not_any_of", "whitelist", "blacklist")


def _condition(where: str, given: Any) -> Condition:
    _object(where, given, ("type",), (*_HOW, "regex"))
    if not isinstance(given["type"], str) or not given["type"]:
        raise _wrong(f"{where}.type", "expected a string that is not empty")
    how = [key for key in _HOW if key in given]
    if len(how) > 1:
        raise _wrong(where, f"{how[0]!r} cannot be given together with {how[1]!r}")
    regex = given.get("regex", False)
    if not isinstance(regex, bool):
        raise _wrong(f"{where}.regex", "expected a boolean")
    if not how:
        if "regex" in given:
            raise _wrong(where, f"'regex' needs one of {', '.join(map(repr, _HOW))}")
        return Condition(given["type"])
    values = _list(f"{where}.{how[0]}", given[how[0]])
    for position, value in enumerate(values):
        if not isinstance(value, str):
            raise _wrong(f"{where}.{how[0]}[{position}]", "expected a string")
    patterns = tuple(_pattern(f"{where}.{how[0]}[{position}]", value) for position, value in enumerate(values)) if regex else None
    return Condition(given["type"], how[0], tuple(values), patterns)


def _pattern(where: str, text: str) -> regex.Pattern[str]:
    if len(text) > MAX_PATTERN:
        raise _wrong(where, f"a regular expression has at most {MAX_PATTERN} characters")
    try:
        return regex.compile(text)
    except (regex.error, OverflowError, RecursionError) as error:
        raise _wrong(where, f"not a regular expression: {error}") from error


@dataclass(frozen=True, slots=True)
class _Texts:
    """Checks the texts of a rule whose conditions have so many values to refer to."""

    count: int

    def check(self, where: str, given: Any) -> None:
        if not isinstance(given, str) or not given:
            raise _wrong(where, "expected a string that is not empty")
        for mark in _MARK.finditer(given):
            if mark[0] in ("{", "}"):
                raise _wrong(where, f"a single {mark[0]!r}: write {{0}} for a value and {mark[0] * 2!r} for the character")
            if mark[1] and int(mark[1]) >= self.count:
                raise _wrong(where, f"{mark[0]} refers to nothing: 'remote' has {self.count} conditions that give values")

    def all(self, where: str, given: dict[str, Any], keys: Iterable[str]) -> None:
        for key in keys:
            if key in given:
                self.check(f"{where}.{key}", given[key])


def _check_local(where: str, given: Any, texts: _Texts, version: str) -> None:
    _object(where, given, (), ("user", "group", "groups", "group_ids", "domain", "projects"))
    for key in given:
        _CHECKS.get(key, _check_text)(f"{where}.{key}", given[key], texts, version)
    if "groups" in given and "domain" not in given:
        raise _wrong(where, "'groups' needs 'domain' beside it")


def _check_text(where: str, given: Any, texts: _Texts, version: str) -> None:
    texts.check(where, given)


def _check_domain(where: str, given: Any, texts: _Texts, version: str) -> None:
    _object(where, given, (), ("id", "name"))
    if not given:
        raise _wrong(where, "'id' or 'name' is required")
    texts.all(where, given, ("id", "name"))


def _check_user(where: str, given: Any, texts: _Texts, version: str) -> None:
    _object(where, given, (), ("id", "name", "email", "domain", "type"))
    texts.all(where, given, ("id", "name", "email"))
    if "domain" in given:
        _check_domain(f"{where}.domain", given["domain"], texts, version)
    if given.get("type", "ephemeral") not in ("ephemeral", "local"):
        raise _wrong(f"{where}.type", "expected 'ephemeral' or 'local'")


def _check_group(where: str, given: Any, texts: _Texts, version: str) -> None:
    if isinstance(given, dict) and "id" in given:
        _object(where, given, ("id",))
    else:
        _object(where, given, ("name", "domain"))
        _check_domain(f"{where}.domain", given["domain"], texts, version)
    texts.all(where, given, ("id", "name"))


def _check_projects(where: str, given: Any, texts: _Texts, version: str) -> None:
    for position, project in enumerate(_list(where, given)):
        place = f"{where}[{position}]"
        _object(place, project, ("name", "roles"), ("domain",) if version != "1.0" else ())
        texts.all(place, project, ("name",))
        if "domain" in project:
            _check_domain(f"{place}.domain", project["domain"], texts, version)
        for index, role in enumerate(_list(f"{place}.roles", project["roles"], least=1)):
            _object(f"{place}.roles[{index}]", role, ("name",))
            texts.all(f"{place}.roles[{index}]", role, ("name",))


_CHECKS: dict[str, Callable[[str, Any, _Texts, str], None]] = {
    "user": _check_user, "group": _check_group, "domain": _check_domain, "projects": _check_projects}
