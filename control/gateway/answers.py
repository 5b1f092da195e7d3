"""From a response message to status, headers and body, as one rule says."""
import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from control.gateway.apis import Api, Family, field_options, in_json, number
from control.gateway.codec import encode
from control.gateway.context import Context
from control.gateway.decoding import is_plain_message
from control.gateway.encoding import NEXT_MARKER, Encode, Encoders
from control.gateway.events import Events, Writers
from control.gateway.links import page_links, segment
from control.kernel.naming import field_name
from control.kernel.rpc import Call, Method
from protos.brume.v1 import options_pb2

#: The hidden field that says when what an answer shows was changed last.
LAST_MODIFIED = "last_modified"

#: What may not stand in a header's value: it would end the header.
_BREAKS = str.maketrans({"\r": " ", "\n": " ", "\0": " "})


@dataclass(slots=True)
class Answer:
    """One HTTP answer. A body of None means that there is none and never will be (204, HEAD)."""

    status: int
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: bytes | None = None


class Answering:
    """How one rule's response message becomes an answer. Raises ValueError where the two do not fit."""

    def __init__(self, method: Method, api: Api, verb: str, response_body: str, rest: options_pb2.Rest, encoders: Encoders,
                 writers: Writers):
        descriptor: Descriptor = method.descriptor.output_type
        self._api = api
        self._verb = verb
        self.body_since = number(rest.body_since)
        self._has_time = LAST_MODIFIED in descriptor.fields_by_name
        self._is_empty = descriptor.full_name == "google.protobuf.Empty"
        self.success = rest.status or (204 if self._is_empty else 200)
        self.status_since = sorted((number(since), status) for since, status in rest.status_since.items())
        self.header_fields = [(field_options(each).header, each) for each in descriptor.fields if field_options(each).header]
        self._may_name_type = any(name.endswith("*") or name.lower() == "content-type" for name, _ in self.header_fields)
        self.location = _template(descriptor, rest.location) if rest.location else None
        self._encode: Encode | None = None
        self.data_field = ""          # of a body of bytes or text, the field that holds it
        self.body_field: FieldDescriptor | None = None     # whose value is the whole body; None: the message is
        self.content_type = "application/json"
        self.rows = ""                # the JSON key of a list's rows
        self._has_marker = NEXT_MARKER in descriptor.fields_by_name
        self.events = Events(method.descriptor, rest.events, writers) if rest.HasField("events") else None
        if self.events is not None:
            self.content_type = "text/event-stream"
        elif response_body:
            body_field = next((each for each in descriptor.fields if response_body in (each.name, field_name(each))), None)
            if body_field is None:
                raise ValueError(f"{method.name}: response_body {response_body!r} is no field of {descriptor.full_name}")
            self._use_field(body_field, rest.produces, encoders)
        elif any(in_json(each) and each.name != NEXT_MARKER for each in descriptor.fields):
            self._encode = encoders.of(descriptor)
            self.rows = self._list_key(descriptor, verb)
        if method.server_streaming and not self.data_field and self.events is None:
            raise ValueError(f"{method.name} streams to the client: its rule needs a response_body of bytes, or events")

    def _use_field(self, body_field: FieldDescriptor, produces: str, encoders: Encoders) -> None:
        if body_field.type in (body_field.TYPE_BYTES, body_field.TYPE_STRING) and not body_field.is_repeated:
            self.data_field = body_field.name
            text = body_field.type == body_field.TYPE_STRING
            self.content_type = produces or ("text/plain; charset=utf-8" if text else "application/octet-stream")
        else:
            self.body_field = body_field
            self._encode = encoders.field(body_field)

    def _list_key(self, descriptor: Descriptor, verb: str) -> str:
        """The JSON key of a list's rows; "" where the answer is no list."""
        shown = [each for each in descriptor.fields if in_json(each)]
        rows = [each for each in shown if each.is_repeated and not _is_map(each)]
        if not rows:
            return ""
        always = (self._api.family == Family.KEYSTONE and verb == "GET" and rows[0].message_type is not None
                  and not any(is_plain_message(each) for each in shown) and "links" not in map(field_name, shown))
        return field_name(rows[0]) if always or self._has_marker else ""

    @property
    def has_body(self) -> bool:
        """Whether an answer other than 204 has a body."""
        return bool(self.data_field) or self._encode is not None or self.events is not None

    def headers(self, message: Any, context: Context) -> list[tuple[str, str]]:
        """The headers that a response message carries, Location among them."""
        found: list[tuple[str, str]] = []
        for name, each in self.header_fields:
            value = getattr(message, each.name)
            if name.endswith("*"):
                found += [(name[:-1] + key.translate(_BREAKS), item.translate(_BREAKS)) for key, item in value.items()]
            elif each.has_presence and not message.HasField(each.name):
                continue
            elif value != "" and not (field_options(each).omit_empty and not value):
                found.append((name, str(value).translate(_BREAKS)))
        if self.location is not None:
            found.append(("Location", context.root + self.location(message)))
        return found

    def status(self, call: Call, context: Context) -> int:
        """The status: the handler's own, else the microversion's, else the rule's."""
        if call.status is not None:
            return call.status
        status = self.success
        for since, newer in self.status_since:
            if context.version >= since:
                status = newer
        return status

    def answer(self, message: Any, call: Call, context: Context, path: str, query: Sequence[tuple[str, str]]) -> Answer:
        """The whole answer of a message.

        Args:
          path, query: the request's, as the client wrote them; links to pages are made of them.
        """
        answer = Answer(self.status(call, context), self.headers(message, context))
        changed = getattr(message, LAST_MODIFIED) if self._has_time and message.HasField(LAST_MODIFIED) else None
        bare = answer.status == 204 or not self.has_body or context.version < self.body_since
        if context.version >= self._api.dated_since and (self._verb == "GET" or changed is not None or not bare):
            moment = changed.seconds if changed is not None else time.time()
            answer.headers += [("Last-Modified", formatdate(moment, usegmt=True)), ("Cache-Control", "no-cache")]
        if answer.status == 204:
            return answer
        if bare:
            answer.body = b""
            return answer
        if self.data_field:
            data = getattr(message, self.data_field)
            answer.body = data.encode() if isinstance(data, str) else data
        else:
            assert self._encode is not None
            if self.rows:
                marker = getattr(message, NEXT_MARKER) if self._has_marker else ""
                context.extra = page_links(self._api.family, self.rows, marker, path, query, context)
            answer.body = encode(message, self._encode, context)
        self.add_type(answer.headers)
        return answer

    def add_type(self, headers: list[tuple[str, str]]) -> None:
        """Name the body's media type, unless the response message did."""
        if not (self._may_name_type and any(name.lower() == "content-type" for name, _ in headers)):
            headers.append(("Content-Type", self.content_type))


def _is_map(each: FieldDescriptor) -> bool:
    return bool(each.message_type is not None and each.message_type.GetOptions().map_entry)


def _template(descriptor: Descriptor, text: str) -> Callable[[Any], str]:
    """What writes a path with response fields in braces, checked against the descriptor."""
    literals, names = [], []
    head, *rest = text.split("{")
    literals.append(head)
    for part in rest:
        name, closed, literal = part.partition("}")
        where: Descriptor | None = descriptor
        for step in name.split("."):
            if not closed or where is None or step not in where.fields_by_name:
                raise ValueError(f"{descriptor.full_name} has no field {name!r}, which the location {text!r} names")
            where = where.fields_by_name[step].message_type
        names.append(name.split("."))
        literals.append(literal)

    def write(message: Any) -> str:
        made = literals[0]
        for steps, literal in zip(names, literals[1:], strict=True):
            made += segment(str(functools.reduce(getattr, steps, message))) + literal
        return made
    return write
