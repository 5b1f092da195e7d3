"""Server-sent events: a stream of messages as text/event-stream, each written as the API that it is of writes it.

An object that goes to many clients is written once for all who want it alike.
"""
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson
from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor

from control.gateway.apis import Api
from control.gateway.codec import Codec, encode
from control.gateway.context import Context
from control.gateway.microversions import negotiate
from control.kernel.errors import Error
from control.kernel.naming import enum_spelling
from control.kernel.rpc import Call
from protos.brume.v1 import options_pb2

#: No proxy is to keep events back.
HEADERS = [("Content-Type", "text/event-stream"), ("Cache-Control", "no-store"), ("X-Accel-Buffering", "no")]

#: How soon a client is to connect again: milliseconds.
RETRY = b"retry: 1000\n\n"

#: Objects whose JSON is kept, for other clients that are told the same.
REMEMBERED = 1000


class Writers:
    """How every API of the listener writes its messages."""

    def __init__(self, packages: Mapping[str, Api], codecs: Mapping[Api, Codec]):
        self.packages = packages
        self._codecs = codecs
        self._written: OrderedDict[tuple[str, bytes, int, str], bytes] = OrderedDict()

    def json(self, held: Any, contexts: Mapping[str, Context]) -> bytes:
        """The JSON of what a google.protobuf.Any holds."""
        name = held.TypeName()
        descriptor = descriptor_pool.Default().FindMessageTypeByName(name)
        context = contexts[descriptor.file.package]
        key = (name, held.value, context.version, context.base)
        text = self._written.get(key)
        if text is None:
            message = message_factory.GetMessageClass(descriptor).FromString(key[1])
            codec = self._codecs[self.packages[descriptor.file.package]]
            text = self._written[key] = encode(message, codec.encoders.of(descriptor), context)
            if len(self._written) > REMEMBERED:
                self._written.popitem(last=False)
        return text


@dataclass(frozen=True, slots=True)
class Writing:
    """How one client is told."""

    events: "Events"
    contexts: Mapping[str, Context]

    def event(self, message: Any) -> bytes:
        return self.events.write(message, self.contexts)


class Events:
    """How one rpc's messages become events. Raises ValueError where its option names what is not there."""

    def __init__(self, method: MethodDescriptor, options: options_pb2.Events, writers: Writers):
        fields = method.output_type.fields_by_name
        for name in (options.type, options.id, options.data):
            if name not in fields:
                raise ValueError(f"{method.full_name}: the option events names {name!r}, which is no field of the response")
        kind: FieldDescriptor = fields[options.type]
        if kind.enum_type is None or fields[options.data].message_type.full_name != "google.protobuf.Any":
            raise ValueError(f"{method.full_name}: events need an enum as type and a google.protobuf.Any as data")
        self._type, self._id, self._data = options.type, options.id, options.data
        self._names = {value.number: enum_spelling(value).encode() for value in kind.enum_type.values}
        self._writers = writers

    def writing(self, headers: Mapping[str, str], call: Call) -> Writing:
        """How a client is told that sent these headers; the call learns the microversions. Raises as negotiate() does."""
        contexts, versions = {}, {}
        for package, api in self._writers.packages.items():
            chosen = negotiate(api, api.endpoint + "/", False, headers)
            versions[package] = chosen.pair
            contexts[package] = Context(version=chosen.number, base=call.base_url, mount=api.mount, prefix=api.endpoint)
        call.microversions = versions
        return Writing(self, contexts)

    def write(self, message: Any, contexts: Mapping[str, Context]) -> bytes:
        data = self._writers.json(getattr(message, self._data), contexts) if message.HasField(self._data) else b"{}"
        number = getattr(message, self._id)
        tail = b"\nid: %d\n\n" % number if number else b"\n\n"
        return b"event: " + self._names[getattr(message, self._type)] + b"\ndata: " + data + tail


def failure(error: Error) -> bytes:
    """An error as the last event: what the status, headers and body of an answer would have said."""
    more = {name.lower().removeprefix("x-brume-").replace("-", "_"): value for name, value in error.headers
            if name.lower().startswith("x-brume-")}
    data = orjson.dumps({"code": error.http, "reason": error.reason, "message": str(error), **more})
    return b"event: ERROR\ndata: " + data + b"\n\n"
