"""One policy rule: parsed by oslo.policy, compiled to a plain function of caller and target.

A rule without a target is answered from a table per (roles, scope).
"""
import ast
import functools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from control.kernel.caller import Caller
from control.kernel.errors import Invalid

#: A rule's characters and nesting at most.
MAX_RULE, MAX_DEPTH = 8192, 40

#: Verdicts remembered per rule. One takes 200 bytes.
REMEMBERED = 1000

Target = Mapping[str, Any]
Test = Callable[[Caller, Target], bool]

NO_TARGET: Target = {}

#: What a rule can ask of the caller, and whether the answer is the same for all of the same roles and kind of scope.
_ATTRIBUTES: dict[str, Callable[[Caller], Any]] = {
    "user_id": lambda caller: caller.user_id, "user": lambda caller: caller.user_id,
    "user_domain_id": lambda caller: caller.user_domain_id,
    "project_id": lambda caller: caller.project_id or None, "tenant": lambda caller: caller.project_id or None,
    "tenant_id": lambda caller: caller.project_id or None, "token.project.id": lambda caller: caller.project_id or None,
    "project_domain_id": lambda caller: caller.project_domain_id or None,
    "token.project.domain.id": lambda caller: caller.project_domain_id or None,
    "domain_id": lambda caller: caller.domain_id or None, "token.domain.id": lambda caller: caller.domain_id or None,
    "token.user.id": lambda caller: caller.user_id, "token.user.domain.id": lambda caller: caller.user_domain_id,
    "system_scope": lambda caller: "all" if caller.system else None,
    "is_admin": lambda caller: caller.is_admin, "is_admin_project": lambda caller: True,
}
_BY_SCOPE = frozenset({"project_id", "domain_id", "system_scope", "is_admin", "is_admin_project", "tenant", "tenant_id",
                       "project_domain_id", "token.project.id", "token.domain.id", "token.project.domain.id"})


@dataclass(eq=False)
class Part:
    """One check of a rule: its text, how it is answered, and what it is made of."""

    text: str
    test: Test
    parts: list["Part"] = field(default_factory=list)
    by_scope: bool = True          # depends on roles and the ids of the scope alone
    needs_target: bool = False
    depth: int = field(init=False)

    def __post_init__(self) -> None:
        self.depth = 1 + max((part.depth for part in self.parts), default=0)
        if self.depth > MAX_DEPTH:
            raise Invalid("policy.rule", f"a rule is nested more than {MAX_DEPTH} deep at {self.text}")


@dataclass(eq=False)
class Rule:
    """A compiled rule."""

    name: str
    text: str
    part: Part
    verdicts: dict[tuple, bool] = field(default_factory=dict)

    def allows(self, caller: Caller, target: Target = NO_TARGET) -> bool:
        if not self.part.by_scope:
            return self.part.test(caller, target)
        key = (caller.roles, caller.project_id, caller.domain_id, caller.system)
        verdict = self.verdicts.get(key)
        if verdict is None:
            if len(self.verdicts) >= REMEMBERED:
                self.verdicts.clear()
            verdict = self.verdicts[key] = self.part.test(caller, target)
        return verdict




def compile_rule(name: str, texts: Mapping[str, str], made: dict[str, Rule], above: tuple[str, ...] = ()) -> Rule:
    """A rule made of its text, and those that it asks; all are kept in `made`, and taken from it.

    Raises KeyError where there is none, Invalid where it has no meaning.
    """
    if name in made:
        return made[name]
    from oslo_policy import _checks, _parser
    _checks.extension_checks = {}      # else it loads every plug-in's package, for checks that ask other servers

    text = texts[name]
    if name in above:
        raise Invalid("policy.rule", f"the rule {name} asks itself")
    if len(above) > MAX_DEPTH:
        raise Invalid("policy.rule", f"the rule {above[0]} is nested more than {MAX_DEPTH} deep")
    if len(text) > MAX_RULE:
        raise Invalid("policy.rule", f"the rule {name} is longer than {MAX_RULE} characters")
    for word in text.split():
        bare = word.strip("()")
        if bare and bare not in ("@", "!") and bare.lower() not in ("and", "or", "not") and ":" not in bare:
            raise Invalid("policy.rule", f"the rule {name} has {word!r}, which is no check (kind:match)")
        if bare.startswith(("http:", "https:")):
            raise Invalid("policy.rule", f"the rule {name} asks another server, which no rule here can")
    state = _parser.ParseState()
    try:
        for token in _parser._parse_tokenize(text or "@"):
            state.shift(token)
        tree = state.result
    except (ValueError, RecursionError) as error:
        raise Invalid("policy.rule", f"the rule {name} cannot be parsed: {text[:200]!r}") from error

    def part(check: Any) -> Part:
        match check:
            case _checks.TrueCheck():
                return Part("@", lambda caller, target: True)
            case _checks.FalseCheck():
                return Part("!", lambda caller, target: False)
            case _checks.NotCheck():
                return _not(part(check.rule))
            case _checks.AndCheck():
                return _all([part(each) for each in check.rules])
            case _checks.OrCheck():
                return _any([part(each) for each in check.rules])
            case _checks.RuleCheck():
                if check.match not in texts:
                    raise Invalid("policy.rule", f"the rule {name} asks the rule {check.match}, which does not exist")
                asked = compile_rule(check.match, texts, made, (*above, name)).part
                return Part(str(check), asked.test, [asked], asked.by_scope, asked.needs_target)
            case _checks.RoleCheck():
                return _role(check.match)
            case _:
                return _generic(name, check.kind, check.match)

    made[name] = rule = Rule(name, text, part(tree))
    return rule


def _not(inner: Part) -> Part:
    test = inner.test
    return Part(f"not {inner.text}", lambda caller, target: not test(caller, target), [inner], inner.by_scope, inner.needs_target)


def _all(parts: list[Part]) -> Part:
    tests = tuple(part.test for part in parts)

    def every(caller: Caller, target: Target) -> bool:
        for test in tests:           # noqa: SIM110 - a generator costs four times as much, on every call
            if not test(caller, target):
                return False
        return True

    return Part("all of", every, parts,
                all(part.by_scope for part in parts), any(part.needs_target for part in parts))


def _any(parts: list[Part]) -> Part:
    tests = tuple(part.test for part in parts)

    def some(caller: Caller, target: Target) -> bool:
        for test in tests:           # noqa: SIM110 - as above
            if test(caller, target):
                return True
        return False

    return Part("any of", some, parts,
                all(part.by_scope for part in parts), any(part.needs_target for part in parts))


@functools.lru_cache(maxsize=1000)
def _lower(roles: frozenset[str]) -> frozenset[str]:
    return frozenset(role.lower() for role in roles)


def _role(wanted: str) -> Part:
    if "%(" in wanted:
        def asked(caller: Caller, target: Target) -> bool:
            match = _filled(wanted, target)
            return match is not None and match.lower() in _lower(caller.roles)
        return Part(f"role:{wanted}", asked, by_scope=False, needs_target=True)
    lower = wanted.lower()
    return Part(f"role:{wanted}", lambda caller, target: lower in _lower(caller.roles))


def _generic(rule: str, kind: str, wanted: str) -> Part:
    """`kind` is what the caller has, or a literal; `wanted` what it shall be, with %(names)s of the target."""
    text, filled = f"{kind}:{wanted}", "%(" in wanted
    if filled:
        try:
            _ = wanted % _Anything()
        except (ValueError, TypeError) as error:
            raise Invalid("policy.rule", f"the rule {rule} has {text!r}: names of the target are written %(name)s") from error
    try:
        literal: Any = str(ast.literal_eval(kind))
    except (ValueError, SyntaxError):
        literal = None
    attribute = _ATTRIBUTES.get(kind)
    if literal is None and attribute is None:
        raise Invalid("policy.rule", f"the rule {rule} asks {kind!r} of the caller; there are role, rule, "
                                     f"{', '.join(_ATTRIBUTES)}")

    def test(caller: Caller, target: Target) -> bool:
        if filled and attribute is not None and attribute(caller) is None:
            return False             # what the caller has not is like nothing that a target has
        match = _filled(wanted, target) if filled else wanted
        return match is not None and match == (str(attribute(caller)) if attribute is not None else literal)

    return Part(text, test, by_scope=not filled and (literal is not None or kind in _BY_SCOPE), needs_target=filled)


_WHOLE = re.compile(r"%\(([^()]+)\)s\Z")


def _filled(text: str, target: Target) -> str | None:
    try:
        if (whole := _WHOLE.match(text)) is not None:
            return str(target[whole[1]])
        return text % target
    except (KeyError, TypeError, ValueError):
        return None


class _Anything(dict[str, str]):
    def __missing__(self, key: str) -> str:
        return ""
