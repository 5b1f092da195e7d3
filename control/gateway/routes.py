"""The route table: from verb and path to the rule that answers, built once from the dispatcher's methods.

Segments that are written out win over parameters, parameters over tails; where a verb is missing on the better match the
next one is tried. Looking a path up costs its number of segments, however many rules there are.
"""
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from urllib.parse import unquote

from google.api import annotations_pb2, http_pb2

from control.gateway import documents
from control.gateway.answers import Answering
from control.gateway.apis import EVERYTHING, Api, Family, api_of, number, rest_options
from control.gateway.binding import Binding
from control.gateway.codec import Codec
from control.gateway.events import Writers
from control.gateway.faults import WrongMethod
from control.gateway.links import Relation
from control.kernel.errors import Invalid, NotFound
from control.kernel.rpc import Dispatcher, Method

_VERBS = ("get", "put", "post", "delete", "patch")


@dataclass(frozen=True, eq=False)
class Rule:
    """One verb and path of one rpc."""

    api: Api
    method: Method
    verb: str
    path: str              # below the mount: "/v2.1/servers/{server_id}"
    action: str
    since: int
    until: int
    binding: Binding
    answering: Answering


@dataclass(eq=False)
class Endpoint:
    """All that stands on one verb and path: several rules where a body key or the microversion tells them apart."""

    prefix: str            # the version's path as the client writes it: "/v2.1", or its alias
    is_alias: bool
    rules: list[Rule] = field(default_factory=list)

    has_actions: bool = False

    def add(self, rule: Rule) -> None:
        self.rules.append(rule)
        self.has_actions = self.has_actions or bool(rule.action)

    def action(self, body: Any) -> str:
        """The body key that names the action; "" for the rule without one.

        Raises Invalid where there is no such rule and the body does not name just one action.
        """
        named = [rule.action for rule in self.rules if type(body) is dict and rule.action in body]
        if all(rule.action for rule in self.rules):
            if type(body) is not dict or len(body) != 1:
                raise Invalid("action", "The request body must be an object with exactly one key, which names the action.")
            return next(iter(body))
        if named and len(body) != 1:
            raise Invalid("action", f"The key {named[0]!r} stands alone in a request body.")
        return named[0] if named else ""

    def choose(self, version: int, action: str = "") -> Rule:
        """The rule for a microversion and a body key.

        Raises:
          Invalid: there is no such action.
          NotFound: none of the rules is in the microversion.
        """
        is_named = False
        for rule in self.rules:
            if rule.action == action:
                if rule.since <= version <= rule.until:
                    return rule
                is_named = True
        if action and not is_named:
            raise Invalid("action", f"There is no such action: {action[:80]}")
        raise NotFound("microversion", "The resource could not be found in the API version that the request asks for.")


@dataclass(eq=False)
class _Node:
    static: dict[str, "_Node"] = field(default_factory=dict)
    parameter: "_Node | None" = None
    endpoints: dict[str, Endpoint] = field(default_factory=dict)
    tails: dict[str, Endpoint] = field(default_factory=dict)


class Match(NamedTuple):
    """What a verb and path lead to, and the texts of the path's parameters."""

    endpoint: Endpoint
    values: tuple[str, ...]


class Routes:
    """The route table of one listener."""

    def __init__(self, dispatcher: Dispatcher):
        """Raises LookupError for a REST method in a package without an API, ValueError for a rule its messages do not fit."""
        self._root = _Node()
        self.rules: list[Rule] = []
        self.apis: list[Api] = []
        packages: dict[str, Api] = {}
        written: list[tuple[Api, Method, str, str, http_pb2.HttpRule]] = []
        for method in dispatcher.methods.values():
            for rule in _http_rules(method):
                package = method.descriptor.containing_service.file.package
                if package not in packages:
                    packages[package] = _known(self.apis, api_of(method.descriptor.containing_service))
                verb, path = _pattern(rule)
                written.append((packages[package], method, verb, path, rule))
        self._codecs = {api: Codec(api.family, _relations(api, written)) for api in self.apis}
        self._writers = Writers(packages, self._codecs)
        for api, method, verb, path, rule in written:
            try:
                self._add(self._rule(api, method, verb, path, rule))
            except ValueError as error:
                raise ValueError(f"{method.name}, {verb} {path}: {error}") from error
        self._mounts = {api.mount: api for api in self.apis}
        self._documents = {api.mount + path: (api, path, version)
                           for api in self.apis for path, version in documents.paths(api).items()}
        self._collections = {api: _collections(api, self.rules) for api in self.apis}

    def find(self, verb: str, path: str) -> Match:
        """What answers a verb on a path, which is as it came: percent-encoded, the mount included.

        HEAD is answered by GET's rule where it has none of its own. A slash at the end means nothing, but in Glance's
        family, where an empty id stands behind it.

        Raises:
          NotFound: nothing has that path.
          WrongMethod: something has, but not with that verb.
        """
        segments = path.split("/")[1:]
        nothing = not segments[-1] and ((api := self.api_at(path)) is None or api.family != Family.GLANCE)
        length = len(segments) - nothing
        allowed: set[str] = set()
        if "%" in path:
            try:
                segments = [unquote(segment, errors="strict") for segment in segments]
            except UnicodeDecodeError:
                raise NotFound("path", "The resource could not be found.") from None
        for wanted in (verb, "GET") if verb == "HEAD" else (verb,):
            match = _search(self._root, wanted, segments, length, 0, (), allowed)
            if match is not None:
                return match
        if allowed:
            raise WrongMethod(verb, allowed | ({"HEAD"} if "GET" in allowed else set()))
        raise NotFound("path", "The resource could not be found.")

    def api_at(self, path: str) -> Api | None:
        """The API whose mount a path is below; the one at the root for what is below no other."""
        return self._mounts.get("/" + path.split("/", 2)[1]) or self._mounts.get("")

    def document(self, path: str, base: str) -> tuple[Api, int, bytes] | None:
        """The version document at a path: its API, status and body; None where there is none."""
        found = self._documents.get(path.rstrip("/"))
        if found is None:
            return None
        api, below, version = found
        return api, *documents.document(api, below, version, base, self._collections[api])

    def _rule(self, api: Api, method: Method, verb: str, path: str, rule: http_pb2.HttpRule) -> Rule:
        rest = rest_options(method.descriptor)
        codec = self._codecs[api]
        parameters = [part[1:-1].split("=")[0] for part in path.split("/") if part.startswith("{")]
        made = Rule(api, method, verb, path, rest.action, number(rest.since), number(rest.until) or EVERYTHING,
                    Binding(method, parameters, rule.body, rest, codec.decoders),
                    Answering(method, api, verb, rule.response_body, rest, codec.encoders, self._writers))
        self.rules.append(made)
        return made

    def _add(self, rule: Rule) -> None:
        api = rule.api
        self._insert(rule, rule.path, api.prefix_of(rule.path), False)
        for alias, prefix in api.aliases.items():
            if rule.path == prefix or rule.path.startswith(prefix + "/"):
                self._insert(rule, alias + rule.path[len(prefix):], alias, True)

    def _insert(self, rule: Rule, path: str, prefix: str, is_alias: bool) -> None:
        node = self._root
        parts = [part for part in (rule.api.mount + path).split("/")[1:] if part]
        endpoints = None
        for position, part in enumerate(parts):
            if not part.startswith("{"):
                node = node.static.setdefault(part, _Node())
                continue
            _, _, pattern = part[1:-1].partition("=")
            if not part.endswith("}") or pattern not in ("", "*", "**") or (pattern == "**" and position != len(parts) - 1):
                raise ValueError(f"the segment {part!r} is none of name, {{name}} and, at the end, {{name=**}}")
            if pattern == "**":
                endpoints = node.tails
            else:
                node.parameter = node.parameter or _Node()
                node = node.parameter
        endpoints = node.endpoints if endpoints is None else endpoints
        endpoint = endpoints.setdefault(rule.verb, Endpoint(prefix, is_alias))
        for other in endpoint.rules:
            if other.action == rule.action and other.since <= rule.until and rule.since <= other.until:
                raise ValueError(f"{other.method.name} has the same verb, path, action and microversions")
        endpoint.add(rule)


def _search(node: _Node, verb: str, segments: list[str], length: int, position: int, values: tuple[str, ...],
            allowed: set[str]) -> Match | None:
    """The best match below a node for a path of so many segments, of which a tail takes all; `allowed` gets the others' verbs."""
    if position == length:
        endpoint = node.endpoints.get(verb)
        if endpoint is not None:
            return Match(endpoint, values)
        allowed.update(node.endpoints)
        return None
    segment = segments[position]
    below = node.static.get(segment)
    match = _search(below, verb, segments, length, position + 1, values, allowed) if below is not None else None
    if match is None and node.parameter is not None and segment:
        match = _search(node.parameter, verb, segments, length, position + 1, (*values, segment), allowed)
    if match is None and node.tails and segment:
        if verb in node.tails:
            return Match(node.tails[verb], (*values, "/".join(segments[position:])))
        allowed.update(node.tails)
    return match


def _http_rules(method: Method) -> Iterable[http_pb2.HttpRule]:
    options = method.descriptor.GetOptions()
    if not options.HasExtension(annotations_pb2.http):
        return []
    rule = options.Extensions[annotations_pb2.http]
    return [rule, *rule.additional_bindings]


def _pattern(rule: http_pb2.HttpRule) -> tuple[str, str]:
    kind = rule.WhichOneof("pattern")
    if kind == "custom":
        return rule.custom.kind.upper(), rule.custom.path
    if kind not in _VERBS:
        raise ValueError("a google.api.http rule without a verb and path")
    return kind.upper(), getattr(rule, kind)


def _known(apis: list[Api], api: Api) -> Api:
    """The API of that mount, which several packages may share."""
    for other in apis:
        if other.mount == api.mount:
            return other
    apis.append(api)
    return api


def _relations(api: Api, written: Iterable[tuple[Api, Method, str, str, http_pb2.HttpRule]]) -> dict[str, list[Relation]]:
    """The collections below each resource, for the family that links to them: "GET /resource_providers/{id}/inventories"."""
    found: dict[str, list[Relation]] = {}
    for owner, method, verb, path, _ in written:
        parts = path.removeprefix(api.prefix_of(path)).split("/")[1:]
        if owner is api and verb == "GET" and len(parts) == 3 and parts[1].startswith("{") and not parts[2].startswith("{"):
            rest = rest_options(method.descriptor)
            found.setdefault(parts[0], []).append(Relation(parts[2], number(rest.linked_since or rest.since)))
    return found


def _collections(api: Api, rules: Iterable[Rule]) -> list[documents.Collection]:
    """What can be listed, for the family whose version document says so."""
    if api.family != Family.NEUTRON:
        return []
    found = {}
    for rule in rules:
        name = rule.path.removeprefix(api.prefix_of(rule.path) + "/")
        if rule.api is api and rule.verb == "GET" and "/" not in name:
            rows = rule.method.descriptor.output_type.fields_by_name.get(name.replace("-", "_"))
            singular = name[:-3] + "y" if name.endswith("ies") else name.removesuffix("s")
            if rows is not None and rows.is_repeated:
                found[name] = documents.Collection(name, singular, rule.path)
    return list(found.values())
