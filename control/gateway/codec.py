"""The codec: JSON bytes to messages and back, behind two functions.

This is the reference, in plain Python. A faster one may stand behind the same two functions and must give the same bytes.
"""
from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from google.protobuf.message import Message

from control.gateway.context import Context
from control.gateway.decoding import Decoders, Fields, Wrong
from control.gateway.encoding import Encode, Encoders
from control.gateway.links import Relation
from control.kernel.errors import Invalid, TooLarge

#: A JSON body's bytes at most; streams have no limit here.
MAX_BODY = 1024 * 1024


class Codec:
    """The encoding and decoding functions of one API."""

    def __init__(self, family: int, relations: Mapping[str, Sequence[Relation]]):
        self.encoders = Encoders(family, relations)
        self.decoders = Decoders()


def encode(message: Message, encoder: Encode, context: Context) -> bytes:
    """A message as JSON, with the context's further top-level keys and only the fields that it wants of resources."""
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
