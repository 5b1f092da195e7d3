"""Any bytes through the transcoder: an error, or exactly what the reference writes of what a parser reads.

    python tests/fuzz/fuzz_transcode.py [libFuzzer's options] [corpus directories]

The first byte of an input chooses the type, the second the context, the rest is the message. See `make fuzz`.
"""
# ruff: noqa: E402 - what is imported last is made by the conftest
import importlib
import json
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
importlib.import_module("tests.gateway.conftest")       # compiles the toys

from google.protobuf.message import DecodeError
from toycompute.v1 import kinds_pb2 as kinds
from toycompute.v1 import servers_pb2 as toy

from control.gateway import codec
from control.gateway.apis import EVERYTHING, Family, number
from control.gateway.codec import Codec
from control.gateway.context import Context
from protos.compute.v1 import servers_pb2
from tests.gateway import draw

KINDS = [kinds.Singles, kinds.Lists, kinds.Maps, kinds.Wrapped, kinds.Ruled, kinds.Page, toy.EchoMessage, toy.Server,
         servers_pb2.ListServersDetailResponse]
CONTEXTS = [(Family.NOVA, Context()), (Family.KEYSTONE, Context(version=number("2.10"), base="http://cloud:5000")),
            (Family.NEUTRON, Context(fields=frozenset({"id", "string", "name"}), mount="/network", prefix="/v2.0")),
            (Family.CINDER, Context(version=EVERYTHING))]
#: What the transcoder refuses and a parser passes over: groups in unknown fields, and varints that lose bits.
STRICTER = ("a group", "a varint of more than 64 bits")
ENCODERS = [[Codec(family, {}).encoders.of(kind.DESCRIPTOR) for kind in KINDS] for family, _ in CONTEXTS]


def check(data: bytes) -> None:
    """One input. Raises AssertionError where the two differ."""
    if len(data) < 2:
        return
    which, where = data[0] % len(KINDS), data[1] % len(CONTEXTS)
    encoder, context, wire = ENCODERS[where][which], CONTEXTS[where][1], data[2:]
    try:
        ours = encoder.table.transcode(wire, context) if encoder.table.covers(context) else None
    except ValueError as error:
        ours = error
    try:
        expected = codec.encode_slowly(KINDS[which].FromString(wire), encoder, context)
    except (DecodeError, ValueError, OverflowError, OSError):
        if isinstance(ours, bytes):      # what is wrong is in a field that is not written
            json.loads(ours)
        return
    if isinstance(ours, ValueError):
        assert str(ours).startswith(STRICTER), ours
    elif ours is not None:
        assert told(ours) == told(expected), (ours, expected)


def told(data: bytes) -> tuple[object, list[int]]:
    return json.loads(data, parse_float=str, parse_int=str), sorted(data)


def mutate(data: bytes, max_size: int, seed: int) -> bytes:
    """A new message, a damaged one, or libFuzzer's own way."""
    import atheris
    some = random.Random(seed)
    way = some.randrange(4)
    if way == 0 or len(data) < 2:
        which = some.randrange(len(KINDS))
        message = draw.message(some, KINDS[which].DESCRIPTOR, some.randrange(1, 5))
        made = bytes([which, some.randrange(4)]) + message.SerializeToString()
    elif way == 1:
        made = data[:2] + draw.damaged(some, data[2:])
    else:
        return atheris.Mutate(data, max_size)
    return made[:max_size]


if __name__ == "__main__":
    import atheris

    from control.gateway import encoding
    for name in ("any_value", "any_struct", "any_list", "plain_number", "shortest_float32"):
        setattr(encoding, name, atheris.instrument_func(getattr(encoding, name)))
    atheris.Setup(sys.argv, check, custom_mutator=mutate)
    atheris.Fuzz()
