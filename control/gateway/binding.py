"""From path, query, headers and body to the request message of one rule, by tables made at start.

Precedence: the body first, then query and headers, the path last, so nothing that a client sends can replace what its path names.
"""
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from control.gateway import times
from control.gateway.apis import EVERYTHING, field_options, number
from control.gateway.codec import decode, invalid
from control.gateway.context import Context
from control.gateway.decoding import Decoders, Fields, Wrong, binding_fields, from_text, is_plain_message, text_reader
from control.kernel.errors import Invalid, NotFound, UnsupportedMedia
from control.kernel.naming import field_name
from control.kernel.rpc import Method
from protos.brume.v1 import options_pb2

MASK = "update_mask"

Values = Mapping[str, Sequence[str]]


class Binding:
    """How one rule fills its request message. Raises ValueError where the rule and the message do not fit."""

    def __init__(self, method: Method, parameters: Sequence[str], body: str, rest: options_pb2.Rest, decoders: Decoders):
        self._method = method
        descriptor: Descriptor = method.descriptor.input_type
        self.path = [_chain(descriptor, parameter) for parameter in parameters]
        taken = {chain[0].name for chain in self.path if len(chain) == 1}
        self.headers = [(header.lower(), field) for field in descriptor.fields if (header := field_options(field).header)]
        self._has_mask = MASK in descriptor.fields_by_name
        self._strict_query = rest.strict_query
        self._consumes = frozenset(media.lower() for media in rest.consumes)
        self._action = rest.action
        self.body = body
        self.body_fields: list[FieldDescriptor] = []     # what the keys of a body's object may be
        self.body_field: FieldDescriptor | None = None
        self.is_raw = False                              # whether the body is bytes or text rather than JSON
        self._fields: Fields | None = None
        self._path = [([field.name for field in chain[:-1]], chain[-1].name, text_reader(chain[-1])) for chain in self.path]
        if rest.action:
            own = [field for field in binding_fields(descriptor, taken) if field_name(field) == rest.action]
            self._fields = decoders.part(own)
            self.body_fields = own
        elif body == "*":
            self.body_fields = binding_fields(descriptor, taken)
            self._fields = decoders.part(self.body_fields)
        elif body:
            self.body_field = _field(descriptor, body)
            self.is_raw = (self.body_field.type in (FieldDescriptor.TYPE_BYTES, FieldDescriptor.TYPE_STRING)
                           and not self.body_field.is_repeated)
            self._set_body = None if self.is_raw else decoders.setter(self.body_field)
            if is_plain_message(self.body_field):
                self._fields = decoders.of(self.body_field.message_type)
        if method.client_streaming and not self.is_raw:
            raise ValueError(f"{method.name} streams from the client: its rule needs a body of bytes")
        self.query = _query_fields(descriptor, taken | {body}, deep=body != "*" and not rest.action)
        self.rest_of_query = next((field for field in descriptor.fields if field_options(field).query), None)

    def check_media(self, content_type: str) -> None:
        """Raises UnsupportedMedia where the rule names its media types and the body has another."""
        if not self._consumes:
            return
        media = content_type.partition(";")[0].strip().lower()
        if media not in self._consumes:
            raise UnsupportedMedia("body.type", f"The media type {media[:80] or 'of the body'!r} is not supported here; "
                                                f"send {' or '.join(sorted(self._consumes))}.")

    def request(self, values: Sequence[str], query: Values, headers: Mapping[str, str], body: Any, context: Context) -> Message:
        """The request message.

        Args:
          values: the texts of the path's parameters, in their order.
          body: bytes where is_raw, else the parsed JSON.

        Raises:
          Invalid: something in the request is wrong.
          NotFound: the path can name nothing.
        """
        message = self._method.request_type()
        if self.is_raw:
            self.set_data(message, body)
        elif self.body:
            self._bind_body(message, body, context)
        if query:
            self._bind_query(message, query, context)
        self._bind_headers(message, headers)
        for (outer, name, read), text in zip(self._path, values, strict=True):
            inner = message
            for step in outer:
                inner = getattr(inner, step)
            try:
                setattr(inner, name, read(text))
            except Wrong:
                raise NotFound("path", f"There is nothing named {text[:80]!r} here.") from None
        return message

    def set_data(self, message: Message, data: bytes) -> None:
        """Put bytes of a raw body into a message. Raises Invalid where the field is text and they are not."""
        assert self.body_field is not None
        if self.body_field.type == self.body_field.TYPE_BYTES:
            setattr(message, self.body_field.name, data)
            return
        try:
            setattr(message, self.body_field.name, data.decode())
        except UnicodeDecodeError:
            raise Invalid("body.text", "The request body is not text in UTF-8.") from None

    def _bind_body(self, message: Message, value: Any, context: Context) -> None:
        if self._action:
            assert self._fields is not None
            if self._action in self._fields.entries:
                decode({self._action: value[self._action]}, message, self._fields, context)
            return
        if self.body_field is not None:
            assert self._set_body is not None
            if value is None or (value == {} and self.body_field.is_repeated):
                return
            try:
                self._set_body(message, value, context)
            except Wrong as wrong:
                raise invalid(wrong) from None
            except RecursionError:
                raise Invalid("body.depth", "The request body is nested too deeply.") from None
            masked: list[tuple[Fields | None, Any]] = [(self._fields, value)]
        else:
            assert self._fields is not None
            decode(value, message, self._fields, context)
            inner: list[tuple[Fields | None, Any]] = [(entry.fields, item) for key, item in value.items()
                     if (entry := self._fields.entries.get(key)) is not None and entry.fields is not None]
            masked = inner or [(self._fields, value)]
        if self._has_mask:
            paths = [name for fields, item in masked if fields is not None and type(item) is dict for name in fields.names(item)]
            mask = getattr(message, MASK)
            mask.SetInParent()
            mask.paths.extend(dict.fromkeys(paths))

    def _bind_query(self, message: Any, query: Values, context: Context) -> None:
        for key, values in query.items():
            bound = self.query.get(key)
            if bound is None:
                if self.rest_of_query is not None and key:
                    getattr(message, self.rest_of_query.name).add(key=key, values=values)
                elif self._strict_query:
                    raise Invalid(f"query.{key}", f"Additional properties are not allowed ({key!r} was unexpected)")
                continue
            chain, since, until = bound
            if not since <= context.version <= until:
                raise Invalid(f"query.{key}", f"Additional properties are not allowed ({key!r} was unexpected)")
            inner, field = message, chain[-1]
            for outer in chain[:-1]:
                inner = getattr(inner, outer.name)
            try:
                _set_text(inner, field, values)
            except Wrong as wrong:
                raise Invalid(f"query.{key}", f"{key}: {wrong}") from None

    def _bind_headers(self, message: Any, headers: Mapping[str, str]) -> None:
        for name, field in self.headers:
            try:
                if name.endswith("*"):
                    prefix = name[:-1]
                    items = getattr(message, field.name)
                    for key, value in headers.items():
                        if key.startswith(prefix) and len(key) > len(prefix):
                            items[key[len(prefix):]] = value
                elif name in headers:
                    _set_text(message, field, [headers[name]])
            except Wrong as wrong:
                raise Invalid(f"header.{name}", f"{name}: {wrong}") from None


def _set_text(message: Any, field: FieldDescriptor, values: Sequence[str]) -> None:
    """Set a field from the texts that a query or a header gives for it; a single one takes the last."""
    if field.is_repeated:
        getattr(message, field.name).extend([from_text(field, value) for value in values])
        return
    text = values[-1]
    if field.message_type is not None:
        _MESSAGES[field.message_type.full_name](getattr(message, field.name), text)
    elif field.type != field.TYPE_BOOL or text.lower() not in ("none", "null"):
        setattr(message, field.name, from_text(field, text))


def _set_time(message: Any, text: str) -> None:
    try:
        message.CopyFrom(times.parse(text))
    except ValueError:
        raise Wrong("expected a time such as 2026-01-31T12:00:00Z") from None


def _set_value(message: Any, text: str) -> None:
    message.string_value = text


#: Messages that a query parameter or header can be.
_MESSAGES: dict[str, Callable[[Any, str], None]] = {"google.protobuf.Timestamp": _set_time, "google.protobuf.Value": _set_value}


def _field(descriptor: Descriptor, name: str) -> FieldDescriptor:
    """A field by its proto or JSON name."""
    for field in descriptor.fields:
        if name in (field.name, field_name(field)):
            return field
    raise ValueError(f"{descriptor.full_name} has no field {name!r}, which a REST rule names")


def _chain(descriptor: Descriptor, path: str) -> list[FieldDescriptor]:
    """The fields that a dotted path leads through, to a scalar one."""
    chain: list[FieldDescriptor] = []
    for name in path.split("."):
        if chain:
            descriptor = chain[-1].message_type
        chain.append(_field(descriptor, name))
    if chain[-1].message_type is not None or chain[-1].is_repeated:
        raise ValueError(f"{chain[-1].full_name} stands in a path and must be a single scalar")
    return chain


def _query_fields(descriptor: Descriptor, taken: set[str], deep: bool) -> dict[str, tuple[list[FieldDescriptor], int, int]]:
    """What each query parameter sets: by JSON name and by proto name, "outer.inner" for a field of a message."""
    found: dict[str, tuple[list[FieldDescriptor], int, int]] = {}
    for field in binding_fields(descriptor, taken):
        if field_name(field) in taken:
            continue
        options = field_options(field)
        bounds = number(options.since), number(options.until) or EVERYTHING
        names = {field.name, field_name(field)}
        if field.message_type is None or (field.message_type.full_name in _MESSAGES and not field.is_repeated and deep):
            found |= {name: ([field], *bounds) for name in names}
        elif deep and is_plain_message(field):
            for key, (chain, since, until) in _query_fields(field.message_type, set(), deep=False).items():
                found |= {f"{name}.{key}": ([field, *chain], max(since, bounds[0]), min(until, bounds[1])) for name in names}
    return found
