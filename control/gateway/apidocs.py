"""Writes docs/api: a page per service, with its calls as REST and gRPC have them, from the protos' comments and options.

    python -m control.gateway.apidocs docs/api
"""
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from google.api import annotations_pb2, http_pb2
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor, ServiceDescriptor

from control.gateway.apis import Api, api_of, field_options, in_json, rest_options
from control.gateway.comments import comment, summary
from control.gateway.schemas import named, spellings
from control.kernel.naming import field_name
from protos.brume.v1 import options_pb2

_ROOT = Path(options_pb2.__file__).parents[3]
_TYPES = {FieldDescriptor.CPPTYPE_STRING: "string", FieldDescriptor.CPPTYPE_BOOL: "boolean",
          FieldDescriptor.CPPTYPE_ENUM: "string", FieldDescriptor.CPPTYPE_DOUBLE: "number",
          FieldDescriptor.CPPTYPE_FLOAT: "number"}
_WELL_KNOWN = {"Timestamp": "time", "Value": "any", "Struct": "object", "ListValue": "list", "Empty": "object",
               "FieldMask": "string", "StringValue": "string", "BoolValue": "boolean"}


def pages() -> dict[str, str]:
    """Every page by its file's name."""
    made, index = {}, ["# APIs", "", "Made from the protos by `python -m control.gateway.apidocs docs/api`.", "",
                       "| service | API | what it has |", "|---|---|---|"]
    for service in _services():
        api = api_of(service)
        name = f"{service.full_name}.md"
        made[name] = "\n".join(_page(service, api))
        index.append(f"| [{service.full_name}]({name}) | {api.type} | {_cell(summary(comment(service)))} |")
    made["README.md"] = "\n".join(index) + "\n"
    return made


def write(folder: Path) -> None:
    """Write the pages, and remove those of services that are no more."""
    folder.mkdir(parents=True, exist_ok=True)
    wanted = pages()
    for path in folder.glob("*.md"):
        if path.name not in wanted:
            path.unlink()
    for name, text in wanted.items():
        (folder / name).write_text(text, encoding="utf-8")


def _services() -> Iterator[ServiceDescriptor]:
    for path in sorted(_ROOT.glob("protos/*/v1/*.proto")):
        if (path.parent / "api.proto").exists():
            module = importlib.import_module(".".join(path.relative_to(_ROOT).with_suffix("").parts) + "_pb2")
            yield from module.DESCRIPTOR.services_by_name.values()


def _page(service: ServiceDescriptor, api: Api) -> Iterator[str]:
    yield from (f"# {service.full_name}", "", comment(service), "",
                f"Catalog type `{api.type}`; REST below `{api.mount or '/'}`.", "")
    for method in service.methods:
        yield from (f"## {method.name}", "", comment(method), "")
        rest = rest_options(method)
        for rule in _rules(method):
            kind = rule.WhichOneof("pattern")
            verb, path = (rule.custom.kind, rule.custom.path) if kind == "custom" else (kind.upper(), getattr(rule, kind))
            yield f"    {verb} {api.mount}{path}" + (f'    {{"{rest.action}": …}}' if rest.action else "")
        yield from ("", " · ".join(_facts(method, rest)), "")
        for title, message, answer in (("Request", method.input_type, False), ("Answer", method.output_type, True)):
            if rows := list(_rows(message, answer)):
                yield from (f"**{title}**", "", "| field | type | |", "|---|---|---|", *rows, "")


def _facts(method: MethodDescriptor, rest: options_pb2.Rest) -> Iterator[str]:
    empty = method.output_type.full_name == "google.protobuf.Empty"
    statuses = [rest.status or (204 if empty else 200), *rest.status_since.values(), *rest.other_status]
    yield "Status " + ", ".join(str(status) for status in dict.fromkeys(statuses))
    yield f"policy `{method.GetOptions().Extensions[options_pb2.policy]}`"
    if bounds := _bounds(rest):
        yield f"microversions {bounds}"
    if rest.consumes:
        yield "body " + ", ".join(f"`{media}`" for media in rest.consumes)
    if rest.HasField("events"):
        yield "answered as server-sent events (`text/event-stream`)"
    if rest.location:
        yield f"Location `{rest.location}`"


def _rules(method: MethodDescriptor) -> list[http_pb2.HttpRule]:
    options = method.GetOptions()
    if not options.HasExtension(annotations_pb2.http):
        return []
    rule = options.Extensions[annotations_pb2.http]
    return [rule, *rule.additional_bindings]


def _rows(message: Any, answer: bool, prefix: str = "", above: tuple[str, ...] = ()) -> Iterator[str]:
    """A table's rows: the fields of a message, and of the messages in it to three levels."""
    for field in message.fields:
        options = field_options(field)
        if options.hidden or (not in_json(field) and not options.header and not options.query) or field.name == "update_mask":
            continue
        text = comment(field)
        if not answer and text.startswith("Output only"):
            continue
        own_name = "*" if options.flatten or options.query else field_name(field)
        name = f"header {options.header}" if options.header else prefix + own_name
        remarks = [text] if text else []
        if field.enum_type is not None:
            remarks.append(f"One of {', '.join(f'`{each}`' for each in spellings(field.enum_type) if each)}.")
        if bounds := _bounds(options):
            remarks.append(f"Microversions {bounds}.")
        if options.nullable:
            remarks.append("May be null.")
        yield f"| `{name}` | {_type(field)} | {_cell(' '.join(remarks))} |"
        inner = named(field.message_type, options.wrap).message_type if options.wrap else field.message_type
        own = inner is not None and not inner.full_name.startswith("google.") and not inner.GetOptions().map_entry
        if own and len(above) < 3 and inner.full_name not in above and not options.query:
            step = f"{prefix}{field_name(field)}{'[]' if field.is_repeated else ''}."
            yield from _rows(inner, answer, step, (*above, inner.full_name))


def _bounds(options: Any) -> str:
    """ "from 2.2 to 2.50", or what of it there is."""
    return " ".join(f"{word} {version}" for word, version in (("from", options.since), ("to", options.until)) if version)


def _type(field: FieldDescriptor) -> str:
    inner = field.message_type
    if inner is not None and inner.GetOptions().map_entry:
        return f"map of {_type(inner.fields_by_name['value'])}"
    if inner is not None:
        one = _WELL_KNOWN.get(inner.name, "integer") if inner.full_name.startswith("google.protobuf.") else "object"
    else:
        one = "bytes" if field.type == field.TYPE_BYTES else _TYPES.get(field.cpp_type, "integer")
    return f"list of {one}" if field.is_repeated else one


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    write(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/api"))
