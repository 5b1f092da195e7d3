"""Any bytes as a request's body: an error for the caller, or a message that both encoders write alike and that reads as itself.

    python tests/fuzz/fuzz_decode.py [libFuzzer's options] [corpus directories]

The first byte of an input chooses the type, the rest is the body. See `make fuzz`.
"""
# ruff: noqa: E402 - what is imported last is made by the conftest
import importlib
import json
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
importlib.import_module("tests.gateway.conftest")       # compiles the toys

from toycompute.v1 import kinds_pb2 as kinds
from toycompute.v1 import servers_pb2 as toy

from control.gateway import codec
from control.gateway.apis import Family
from control.gateway.codec import Codec
from control.gateway.context import Context
from control.kernel.errors import Invalid, TooLarge
from protos.compute.v1 import servers_pb2
from protos.identity.v1 import users_pb2
from protos.network.v1 import networks_pb2
from tests.gateway import draw

KINDS = [toy.EchoMessage, toy.CreateServerRequest, servers_pb2.CreateServerRequest, kinds.Singles, kinds.Lists, kinds.Maps,
         kinds.Wrapped, kinds.Ruled, users_pb2.CreateUserRequest, networks_pb2.CreateNetworkRequest]
CODEC = Codec(Family.KEYSTONE, {})
TOKENS = [b"null", b"{}", b"[]", b'""', b"1e400", b"-0", b"1.5", b"9" * 25, b"true", b'"\\ud800"', b'"a":', b",", b"[["]
ENCODERS = [CODEC.encoders.of(kind.DESCRIPTOR) for kind in KINDS]
FIELDS = [CODEC.decoders.of(kind.DESCRIPTOR) for kind in KINDS]


def check(data: bytes) -> None:
    """One input. Raises whatever is no error for a caller, and AssertionError where what was read is written wrongly."""
    if not data:
        return
    which = data[0] % len(KINDS)
    message, context = KINDS[which](), Context()
    try:
        codec.decode(codec.parse(data[1:]), message, FIELDS[which], context)
    except (Invalid, TooLarge) as error:
        str(error).encode()
        return
    ours = codec.encode(message, ENCODERS[which], context)
    assert json.loads(ours) == json.loads(codec.encode_slowly(message, ENCODERS[which], context))
    if KINDS[which] in (kinds.Singles, kinds.Lists, toy.CreateServerRequest):
        again = KINDS[which]()
        codec.decode(codec.parse(ours), again, FIELDS[which], context)
        assert json.loads(codec.encode(again, ENCODERS[which], context)) == json.loads(ours)


def mutate(data: bytes, max_size: int, seed: int) -> bytes:
    """A body made of a new message, a token of JSON set somewhere, or libFuzzer's own way."""
    import atheris
    some = random.Random(seed)
    way = some.randrange(4)
    if way == 0 or not data:
        which = some.randrange(len(KINDS))
        message = draw.message(some, KINDS[which].DESCRIPTOR, some.randrange(1, 4))
        try:
            made = bytes([which]) + codec.encode_slowly(message, ENCODERS[which], Context())
        except (ValueError, OverflowError, OSError):
            return data
    elif way == 1:
        at, end = sorted((some.randrange(1, len(data) + 1), some.randrange(1, len(data) + 1)))
        token = some.choice(TOKENS)
        made = data[:at] + token + data[min(end, at + 6):]
    else:
        return atheris.Mutate(data, max_size)
    return made[:max_size]


if __name__ == "__main__":
    import atheris

    from control.gateway import decoding
    for name in ("fill_value", "_fill_struct", "_fill_list", "_fill_timestamp", "_lenient_boolean", "_bytes"):
        setattr(decoding, name, atheris.instrument_func(getattr(decoding, name)))
    decoding.Fields.fill = atheris.instrument_func(decoding.Fields.fill)
    atheris.Setup(sys.argv, check, custom_mutator=mutate)
    atheris.Fuzz()
