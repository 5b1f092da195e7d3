"""The codec: JSON bytes to messages and back, behind two functions.

Answers are written by the transcoder's tables from messages' own bytes. encoding.py says what they must be: it is what the
tables are tested against, and what writes the few things that they do not cover.
"""
from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import EncodeError, Message

from control.gateway._transcode import Table
from control.gateway.context import Context
from control.gateway.decoding import Decoders, Fields, Wrong
from control.gateway.encoding import Encode, Encoders
from control.gateway.links import Relation
from control.gateway.tables import Tables, Uncovered
from control.kernel.errors import Invalid, TooLarge

#: A JSON body's bytes at most; streams have no limit here.
MAX_BODY = 1024 * 1024


class Encoder:
    """How one type, or one field of it, is written: called, it is the reference; `table` is None where only that covers it."""

    __slots__ = ("_reference", "table")

    def __init__(self, reference: Encode, table: Table | None):
        self._reference = reference
        self.table = table

    def __call__(self, message: Message, context: Context) -> Any:
        return self._reference(message, context)


class FastEncoders(Encoders):
    """The encoding functions of one API, each with its table."""

    def __init__(self, family: int, relations: Mapping[str, Sequence[Relation]]):
        super().__init__(family, relations)
        self._tables = Tables(family, relations)

    def of(self, descriptor: Descriptor) -> Encode:
        reference = super().of(descriptor)
        try:
            return Encoder(reference, self._tables.of(descriptor))
        except Uncovered:
            return Encoder(reference, None)

    def field(self, field: FieldDescriptor) -> Encode:
        reference = super().field(field)
        try:
            return Encoder(reference, self._tables.field(field))
        except Uncovered:
            return Encoder(reference, None)


class Codec:
    """The encoding and decoding functions of one API."""

    def __init__(self, family: int, relations: Mapping[str, Sequence[Relation]]):
        self.encoders = FastEncoders(family, relations)
        self.decoders = Decoders()


def encode(message: Message, encoder: Encode, context: Context) -> bytes:
    """A message as JSON, with the context's further top-level keys and only the fields that it wants of resources."""
    if isinstance(encoder, Encoder) and encoder.table is not None and encoder.table.covers(context):
        try:
            return encoder.table.transcode(message.SerializeToString(), context)
        except (ValueError, EncodeError):       # too deep, or a time that no calendar has
            pass
    return encode_slowly(message, encoder, context)


def encode_slowly(message: Message, encoder: Encode, context: Context) -> bytes:
    """The same by the reference."""
    value = encoder(message, context)
    if context.fields and type(value) is dict:
        value = {key: _project(item, context.fields) for key, item in value.items()}
    if context.extra and type(value) is dict:
        value |= {key: item for key, item in context.extra.items() if key not in value}
    return orjson.dumps(value)


def _project(value: Any, wanted: frozenset[str]) -> Any:
    if type(value) is list:
        return [_project(item, wanted) for item in value]
    if type(value) is dict:
        return {key: item for key, item in value.items() if key in wanted}
    return value


def parse(body: bytes) -> Any:
    """The JSON value of a body; {} for an empty one.

    Raises:
      TooLarge: the body is over MAX_BODY.
      Invalid: it is no JSON in UTF-8.
    """
    if len(body) > MAX_BODY:
        raise TooLarge("body.size", f"The request body is larger than {MAX_BODY} bytes.")
    if not body or body.isspace():
        return {}
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Invalid("body.json", f"The request body is not valid JSON: {error}") from None


def decode(value: Any, message: Message, fields: Fields, context: Context) -> None:
    """Set a message's fields from a parsed body. Raises Invalid, naming the path of the place."""
    try:
        fields.fill(message, value, context)
    except Wrong as wrong:
        raise invalid(wrong) from None
    except RecursionError:
        raise Invalid("body.depth", "The request body is nested too deeply.") from None


def invalid(wrong: Wrong) -> Invalid:
    """The error that a caller gets for a wrong value."""
    return Invalid(f"body.{wrong.path}" if wrong.path else "body", str(wrong))
