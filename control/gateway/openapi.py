"""One OpenAPI 3.1 document per API, of the same rules that the gateway routes by: what it says is what is done.

Calls that a body key or the microversion tells apart stand on one path as one operation, with oneOf or anyOf for what differs.
"""
from collections.abc import Iterable, Sequence
from typing import Any

from google.protobuf.descriptor import FieldDescriptor

from control.gateway.apis import Api, field_options, rest_options
from control.gateway.comments import comment, summary
from control.gateway.errors import codes, responses
from control.gateway.microversions import service_name
from control.gateway.routes import Rule
from control.gateway.schemas import ANSWER, CREATE, INPUT, Schema, Schemas, bounds, or_null
from control.kernel.idempotency import HEADER, REPLAYED
from control.kernel.naming import field_name

#: Headers that OpenAPI describes elsewhere, or that HTTP itself sees to.
_NOT_PARAMETERS = frozenset({"accept", "content-type", "authorization", "content-length", "host", "x-auth-token"})

_FORMS: dict[str, Schema] = {"google.protobuf.Timestamp": {"type": "string", "format": "date-time"},
                             "google.protobuf.Value": {"type": "string"}}


def document(api: Api, rules: Iterable[Rule]) -> dict[str, Any]:
    """The document of an API.

    Args:
      rules: every rule of the listener; those of other APIs are left out.
    """
    schemas = Schemas(api.family)
    paths: dict[str, dict[str, Any]] = {}
    names: dict[str, str] = {}           # a path with its parameters' names taken out -> the path as it stands in `paths`
    found: dict[tuple[str, str], list[Rule]] = {}
    for rule in rules:
        if rule.api is api:
            shape = "/".join("{}" if part.startswith("{") else part for part in rule.path.split("/"))
            names.setdefault(shape, "/".join(_segment(part) for part in rule.path.split("/")))
            found.setdefault((names[shape], rule.verb), []).append(rule)
    used: set[str] = set()
    for (path, verb), same in sorted(found.items()):
        if verb.lower() in ("get", "put", "post", "delete", "options", "head", "patch", "trace"):    # OpenAPI knows no COPY
            paths.setdefault(api.mount + path, {})[verb.lower()] = _operation(same, path, schemas, used)
    services = {rule.method.descriptor.containing_service.name: rule.method.descriptor.containing_service
                for same in found.values() for rule in same}
    return {
        "openapi": "3.1.0",
        "info": {"title": f"Brume: {api.type}", "version": api.versions[-1].id if api.versions else "1",
                 "description": _about(api)},
        "servers": [{"url": "/"}],
        "security": [{"token": []}],
        "tags": [{"name": name, "description": comment(service)} for name, service in sorted(services.items())],
        "paths": paths,
        "components": {
            "schemas": dict(sorted(schemas.components.items())),
            "responses": responses(api.family),
            "securitySchemes": {"token": {"type": "apiKey", "in": "header", "name": "X-Auth-Token",
                                          "description": "A token of POST /v3/auth/tokens."}},
        },
    }


def _about(api: Api) -> str:
    text = f"What OpenStack calls {api.name}, made from the protos that gRPC serves." if api.name else "Made from the protos."
    for alias, prefix in api.aliases.items():
        text += f" {alias} is another spelling of {prefix}, without microversions."
    for version in api.versions:
        if version.max_version:
            text += f" Microversions of {version.path}: {version.min_version} to {version.max_version}."
    return text


def _segment(part: str) -> str:
    """A segment as OpenAPI writes it: {object=**} as {object}."""
    return "{" + part[1:-1].split("=")[0] + "}" if part.startswith("{") else part


def _operation(rules: Sequence[Rule], path: str, schemas: Schemas, used: set[str]) -> dict[str, Any]:
    """The operation of all rules of one path and verb."""
    first, service = rules[0], rules[0].method.descriptor.containing_service
    texts = [comment(rule.method.descriptor) for rule in rules]
    name = f"{service.name}.{first.method.descriptor.name}" if len(rules) == 1 else f"{service.name}.{first.verb}:{path}"
    while name in used:
        name += "+"
    used.add(name)
    made: dict[str, Any] = {"operationId": name, "tags": [service.name]}
    if len(rules) == 1:
        made |= {"summary": summary(texts[0]), "description": texts[0], **_versions(first)}
    else:
        made["summary"] = "Carries out one of several actions" if any(rule.action for rule in rules) else summary(texts[0])
        made["description"] = "\n".join(f"- {_title(rule)}: {text}" for rule, text in zip(rules, texts, strict=True))
    if all(rule.method.policy == "public" for rule in rules):
        made["security"] = [{}, {"token": []}]
    else:
        made["x-brume-policy"] = {rule.method.descriptor.name: rule.method.policy for rule in rules}
    parameters = _parameters(rules, path, schemas)
    if parameters:
        made["parameters"] = parameters
    if body := _bodies(rules, schemas):
        made["requestBody"] = body
    made["responses"] = _answers(rules, schemas)
    return made


def _title(rule: Rule) -> str:
    versions = _versions(rule).get("x-openstack-microversion", {})
    text = " ".join(f"{key} {version}" for key, version in versions.items())
    return (rule.action or rule.method.descriptor.name) + (f" ({text})" if text else "")


def _versions(rule: Rule) -> dict[str, Any]:
    rest = rest_options(rule.method.descriptor)
    found = bounds(rest.since, rest.until)
    return {"x-openstack-microversion": found} if found else {}


def _parameters(rules: Sequence[Rule], path: str, schemas: Schemas) -> list[dict[str, Any]]:
    """Path, query and header parameters of an operation, each once."""
    made: dict[tuple[str, str], dict[str, Any]] = {}
    names = [part[1:-1] for part in path.split("/") if part.startswith("{")]
    for name, chain in zip(names, rules[0].binding.path, strict=True):
        schema = schemas.field(chain[-1], INPUT)
        if schema.get("type") == "string" and "enum" not in schema:
            schema["minLength"] = 1
        made["path", name] = {"name": name, "in": "path", "required": True, **_described(schema)}
    for rule in rules:
        for chain, name in _query(rule):
            parameter = _text_parameter(name, "query", chain[-1], schemas)
            made.setdefault(("query", name), parameter)
        if (rest := rule.binding.rest_of_query) is not None:
            made.setdefault(("query", rest.name), {
                "name": rest.name, "in": "query", "style": "form", "explode": True, "description": comment(rest),
                "schema": {"type": "object", "additionalProperties": {"type": "string"}}})
        for name, field in rule.binding.headers:
            if name not in _NOT_PARAMETERS and not name.endswith("*"):
                name = field_options(field).header
                made.setdefault(("header", name), _text_parameter(name, "header", field, schemas))
        if _may_be_repeated(rule):
            made.setdefault(("header", HEADER), {
                "name": HEADER, "in": "header", "schema": {"type": "string", "pattern": "^[ -~]{1,255}$"},
                "description": "Makes the request safe to send again: with the same key it takes effect once, and is answered as "
                               "the first time; another request with this key is refused (409). Best is a random UUID.",
                "example": "0b5cbd5f-1f0e-4d57-9c3b-0f3f5f2e7a51"})
        if (version := rule.api.version_of(rule.path)) is not None:
            name, service = "OpenStack-API-Version", service_name(rule.api)
            made.setdefault(("header", name), {
                "name": name, "in": "header", "description": f"Microversion; without it {version.min_version}.",
                "schema": {"type": "string", "pattern": f"^{service} (latest|[1-9]\\.[0-9]{{1,3}})$"},
                "example": f"{service} {version.max_version}"})
    return list(made.values())


def _may_be_repeated(rule: Rule) -> bool:
    """Whether a call is told to take idempotency keys. All that change something do; of the others, HTTP says it already."""
    return rule.verb == "POST" and rule.method.policy != "public" and not rule.method.client_streaming


def _query(rule: Rule) -> Iterable[tuple[list[FieldDescriptor], str]]:
    """The parameters of a query by the name that REST gives them; their proto names are taken too, and not written."""
    if rule.verb in ("GET", "HEAD", "DELETE") or rule.binding.body:
        for name, (chain, _, _) in rule.binding.query.items():
            if name == ".".join(field_name(field) for field in chain):
                yield chain, name


def _text_parameter(name: str, where: str, field: FieldDescriptor, schemas: Schemas) -> dict[str, Any]:
    schema = schemas.field(field, INPUT)
    if field.message_type is not None:
        schema |= _FORMS[field.message_type.full_name]
    if field.type == field.TYPE_BOOL:
        schema["type"] = "boolean"
    made = {"name": name, "in": where, **_described(schema)}
    if field.is_repeated and where == "query":
        made |= {"style": "form", "explode": True}
    return made


def _described(schema: Schema) -> dict[str, Any]:
    """A parameter's schema, with what is said of it beside it."""
    text = schema.pop("description", "")
    versions = schema.pop("x-openstack-microversion", None)
    made: dict[str, Any] = {"schema": schema}
    if text:
        made["description"] = text
    if versions:
        made["x-openstack-microversion"] = versions
    return made


def _bodies(rules: Sequence[Rule], schemas: Schemas) -> dict[str, Any] | None:
    """What an operation's body may be."""
    content: dict[str, list[Schema]] = {}
    for rule in rules:
        binding = rule.binding
        if not (binding.body or rule.action):
            continue
        consumes = list(rest_options(rule.method.descriptor).consumes)
        if binding.is_raw:
            field = binding.body_field
            assert field is not None
            text = field.type == field.TYPE_STRING
            types = consumes or ["text/plain" if text else "application/octet-stream"]
            schema: Schema = {"type": "string"} if text else {"type": "string", "format": "binary"}
        else:
            types, schema = consumes or ["application/json"], _json_body(rule, schemas)
        for media in types:
            content.setdefault(media, []).append(schema)
    if not content:
        return None
    has_actions = all(rule.action for rule in rules)
    key = "oneOf" if has_actions else "anyOf"
    return {"content": {media: {"schema": each[0] if len(each) == 1 and key == "anyOf" else {key: each}}
                        for media, each in content.items()},
            "required": has_actions}


def _json_body(rule: Rule, schemas: Schemas) -> Schema:
    binding = rule.binding
    kind = CREATE if rule.verb == "POST" or rule.action else INPUT
    if rule.action:
        values = [schemas.field(field, kind) for field in binding.body_fields if field_name(field) == rule.action]
        return {"title": _title(rule), "type": "object", "required": [rule.action], "additionalProperties": False,
                "properties": {rule.action: or_null(values[0]) if values else {}},
                "description": comment(rule.method.descriptor), **_versions(rule)}
    if binding.body_field is not None:
        return schemas.field(binding.body_field, kind)
    return schemas.body(binding.body_fields, kind) | _versions(rule)


def _answers(rules: Sequence[Rule], schemas: Schemas) -> dict[str, Any]:
    """Every answer that an operation may have, by status."""
    made: dict[str, dict[str, Any]] = {}
    bodies: dict[tuple[str, str], list[Schema]] = {}
    for rule in rules:
        answering, rest = rule.answering, rest_options(rule.method.descriptor)
        for status in dict.fromkeys([answering.success, *(newer for _, newer in answering.status_since), *rest.other_status]):
            answer = made.setdefault(str(status), {"description": _described_status(status), "headers": _headers(rule)})
            answer["headers"] |= _headers(rule)
            schema = None if status == 204 or rule.verb == "HEAD" else _answer_schema(rule, schemas)
            if schema is not None and rest.body_since:
                with_body, without = _body_of(rule, status)
                schema = schema if with_body else None
                if with_body and without:
                    answer["description"] += f" There is a body from microversion {rest.body_since} on."
            if schema is not None:
                bodies.setdefault((str(status), answering.content_type.partition(";")[0]), []).append(schema)
    for (code, media), each in bodies.items():
        unique = [schema for index, schema in enumerate(each) if schema not in each[:index]]
        made[code].setdefault("content", {})[media] = {"schema": unique[0] if len(unique) == 1 else {"anyOf": unique}}
    has_versions = rules[0].api.version_of(rules[0].path) is not None
    takes_media = any(rest_options(rule.method.descriptor).consumes for rule in rules)
    for status in codes(has_versions=has_versions, takes_media=takes_media):
        made.setdefault(str(status), {"$ref": f"#/components/responses/{status}"})
    return dict(sorted(made.items()))


def _body_of(rule: Rule, status: int) -> tuple[bool, bool]:
    """Whether answers of a status are with a body at some microversions, and without one at some."""
    answering, body_since = rule.answering, rule.answering.body_since
    if status in rest_options(rule.method.descriptor).other_status:
        return True, True
    starts = [(0, answering.success), *answering.status_since]
    ends = [since for since, _ in starts[1:]]
    spans = [(since, end) for (since, each), end in zip(starts, [*ends, None], strict=True) if each == status]
    return any(end is None or end > body_since for _, end in spans), any(since < body_since for since, _ in spans)


def _described_status(status: int) -> str:
    return {200: "Done.", 201: "Made.", 202: "Accepted: it is being done.", 204: "Done; there is no body.",
            206: "A part of the body.", 300: "Several choices."}.get(status, "Done.")


def _headers(rule: Rule) -> dict[str, Any]:
    made: dict[str, Any] = {"x-openstack-request-id": {"schema": {"type": "string", "pattern": "^req-[0-9a-f-]{36}$"},
                                                       "description": "Names the request in the cloud's logs."}}
    if _may_be_repeated(rule):
        made[REPLAYED] = {"schema": {"const": "true"}, "description": "The request was answered before, and this is that answer."}
    if rule.answering.location is not None:
        made["Location"] = {"schema": {"type": "string", "format": "uri"}, "description": "Where the new thing is."}
    for name, field in rule.answering.header_fields:
        if not name.endswith("*") and name.lower() != "content-type":
            made[name] = {"schema": {"type": "string"}, "description": comment(field)}
    return made


def _answer_schema(rule: Rule, schemas: Schemas) -> Schema | None:
    """The schema of a JSON or text answer; None where there is no body."""
    answering, descriptor = rule.answering, rule.method.descriptor.output_type
    if answering.data_field:
        return {}
    if answering.body_field is not None:
        schema = schemas.field(answering.body_field, ANSWER)
        return or_null(schema) if answering.body_field.has_presence else schema
    if not answering.has_body:
        return None
    return schemas.answer(descriptor, answering.rows)
