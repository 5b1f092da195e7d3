"""Messages as plain data: every field that is set, by its name in the proto, with a keyed hash for what is secret.

The same message always gives the same data, on every replica, so that journals can be compared.
"""
import base64
import hmac
from collections.abc import Callable
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from protos.brume.v1 import options_pb2

_AS_JSON = {"google.protobuf.Struct", "google.protobuf.Value", "google.protobuf.ListValue", "google.protobuf.Duration",
            "google.protobuf.FieldMask"}


class Documents:
    """Makes plain data of messages. `key`: of the hashes that stand for secrets."""

    def __init__(self, key: bytes):
        self._key = key
        self._plans: dict[FieldDescriptor, tuple[str, Callable[[Any], Any]]] = {}

    def of(self, message: Message) -> dict[str, Any]:
        """The set fields of a message."""
        document = {}
        for field, value in message.ListFields():
            plan = self._plans.get(field)
            if plan is None:
                plan = self._plans[field] = (field.name, self._plan(field))
            document[plan[0]] = plan[1](value)
        return document

    def _plan(self, field: FieldDescriptor) -> Callable[[Any], Any]:
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            if is_secret(field):
                return lambda entries: {str(key): self._redacted(field, repr(entries[key])) for key in sorted(entries)}
            one = self._one(field.message_type.fields_by_name["value"])
            return lambda entries: {str(key): one(entries[key]) for key in sorted(entries)}
        one = (lambda value: self._redacted(field, value)) if is_secret(field) else self._one(field)
        return (lambda values: [one(value) for value in values]) if field.is_repeated else one

    def _one(self, field: FieldDescriptor) -> Callable[[Any], Any]:
        match field.type:
            case FieldDescriptor.TYPE_MESSAGE if field.message_type.full_name == "google.protobuf.Timestamp":
                return lambda value: value.ToJsonString()
            case FieldDescriptor.TYPE_MESSAGE if field.message_type.full_name in _AS_JSON:
                return MessageToDict
            case FieldDescriptor.TYPE_MESSAGE:
                return self.of
            case FieldDescriptor.TYPE_ENUM:
                names = {number: value.name for number, value in field.enum_type.values_by_number.items()}
                return lambda number: names.get(number, number)
            case FieldDescriptor.TYPE_BYTES:
                return lambda value: base64.b64encode(value).decode()
        return lambda value: value

    def _redacted(self, field: FieldDescriptor, value: Any) -> str:
        """The same for the same value of the same field; tells nothing else to who has not the key."""
        data = value if isinstance(value, bytes) else (value.SerializeToString(deterministic=True)
                                                       if isinstance(value, Message) else str(value).encode())
        return "redacted:" + hmac.digest(self._key, field.full_name.encode() + b"\0" + data, "sha256").hex()[:32]


def is_secret(field: FieldDescriptor) -> bool:
    """Whether a field's values must not be written down in clear."""
    return field.GetOptions().Extensions[options_pb2.secret]
