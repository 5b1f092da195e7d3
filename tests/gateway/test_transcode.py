"""The transcoder writes what the reference does, for every type of ours and the toys', and is not led astray by bytes.

Only the order of a map's keys may differ: the reference has the one in memory, the transcoder the one on the wire.
"""
import importlib
import json
import random
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, struct_pb2, timestamp_pb2
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass
from hypothesis import given, settings
from hypothesis import strategies as st
from toycompute.v1 import kinds_pb2 as kinds
from toycompute.v1 import servers_pb2 as toy

from control.gateway import codec
from control.gateway.apis import EVERYTHING, Family, number
from control.gateway.codec import Codec
from control.gateway.context import Context
from control.gateway.links import Relation
from tests.gateway import draw

ROOT = Path(__file__).parents[2]
RELATIONS = {name: [Relation("inventories", 0), Relation("usages", number("2.10"))] for name in ("ruled", "resource_providers")}
CODECS = {family: Codec(family, RELATIONS) for family in Family.values()}


def types():
    """Every message type of protos/ and the toys, those within others included."""
    files = [".".join(path.relative_to(ROOT).with_suffix("").parts) + "_pb2" for path in ROOT.glob("protos/**/*.proto")]
    toys = ROOT / "tests/gateway/protos"
    files += [".".join(path.relative_to(toys).with_suffix("").parts) + "_pb2" for path in toys.glob("**/*.proto")]
    waiting = [descriptor for name in sorted(files)
               for descriptor in importlib.import_module(name).DESCRIPTOR.message_types_by_name.values()]
    while waiting:
        descriptor = waiting.pop()
        if not descriptor.GetOptions().map_entry:
            yield descriptor
        waiting += descriptor.nested_types


def is_covered(descriptor):
    """Whether the reference writes a type."""
    try:
        CODECS[Family.NOVA].encoders.of(descriptor)
    except ValueError:
        return False
    return True


TYPES = [descriptor for descriptor in types() if is_covered(descriptor)]
KINDS = [kinds.Singles, kinds.Lists, kinds.Maps, kinds.Wrapped, kinds.Ruled, kinds.Page, toy.EchoMessage, toy.Server]


def contexts(some):
    return Context(
        version=some.choice([0, number("2.1"), number("2.10"), number("2.60"), number("2.61"), EVERYTHING]),
        base=some.choice(["", "http://cloud:5000", 'http://"\\é']), mount=some.choice(["", "/compute"]), prefix="/v2.1",
        extra=some.choice([{}, {}, {"links": {"next": None}, "x": [1]}]),
        fields=some.choice([frozenset()] * 4 + [frozenset({"id", "name", "string", "links"}), frozenset({"text", "é"})]))


def told(data):
    """JSON with its numbers' own spelling; its bytes, since the order of keys may differ."""
    return json.loads(data, parse_float=str, parse_int=str), sorted(data)


def agree(message, context, family=Family.NOVA):
    """Check that both write a message in the same way, or cannot."""
    encoder = CODECS[family].encoders.of(message.DESCRIPTOR)
    check(message, encoder, context)
    return encoder


def check(message, encoder, context):
    try:
        expected = codec.encode_slowly(message, encoder, context)
    except (ValueError, OverflowError, OSError):
        with pytest.raises(ValueError):
            encoder.table.transcode(message.SerializeToString(), context)
        return
    if not encoder.table.covers(context):
        context.extra, context.fields = {}, frozenset()
        expected = codec.encode_slowly(message, encoder, context)
    assert told(encoder.table.transcode(message.SerializeToString(), context)) == told(expected)


def transcoded(message_type, data, context=None):
    return json.loads(CODECS[Family.NOVA].encoders.of(message_type.DESCRIPTOR).table.transcode(data, context or Context()))


def test_every_type_that_the_reference_writes_has_a_table():
    assert len(TYPES) > 100
    for descriptor in TYPES:
        for family, each in CODECS.items():
            assert each.encoders.of(descriptor).table is not None, (descriptor.full_name, family)


def test_every_type_is_written_as_by_the_reference():
    some = random.Random(1)
    for descriptor in TYPES:
        for family in Family.values():
            agree(draw.message(some, descriptor, 4), contexts(some), family)


@settings(max_examples=300, deadline=None)
@given(st.randoms(use_true_random=False), st.sampled_from(TYPES), st.sampled_from(Family.values()))
def test_any_message_is_written_as_by_the_reference(some, descriptor, family):
    agree(draw.message(some, descriptor, 5), contexts(some), family)


def test_every_field_alone_is_written_as_by_the_reference():
    some = random.Random(2)
    for descriptor in TYPES:
        for field in descriptor.fields:
            try:
                encoder = CODECS[Family.NEUTRON].encoders.field(field)
            except ValueError:
                continue
            context = contexts(some)
            context.extra = {}
            check(draw.message(some, descriptor, 3), encoder, context)


@settings(max_examples=300, deadline=None)
@given(st.randoms(use_true_random=False), st.sampled_from(KINDS))
def test_damaged_bytes_are_an_error_or_what_a_parser_makes_of_them(some, kind):
    data = draw.damaged(some, draw.message(some, kind.DESCRIPTOR, 3).SerializeToString())
    encoder = CODECS[Family.NOVA].encoders.of(kind.DESCRIPTOR)
    try:
        ours = encoder.table.transcode(data, Context())
    except ValueError:
        return
    try:
        message = kind.FromString(data)
    except DecodeError:        # in a field that is not written, or before the value that counts
        json.loads(ours)
        return
    assert told(ours) == told(codec.encode_slowly(message, encoder, Context()))


@pytest.mark.parametrize("kind", KINDS)
def test_every_beginning_of_a_message_is_an_error_or_a_message(kind):
    data = draw.message(random.Random(3), kind.DESCRIPTOR, 3).SerializeToString()[:1500]
    table = CODECS[Family.NOVA].encoders.of(kind.DESCRIPTOR).table
    for end in range(len(data)):
        try:
            made = table.transcode(data[:end], Context())
        except ValueError:
            with pytest.raises(DecodeError):
                kind.FromString(data[:end])
        else:
            json.loads(made)


@pytest.mark.parametrize("data", [
    b"\x0b", b"\x0c", b"\x0b\x0c", b"\x0e", b"\x0f",                                     # groups, types that are none
    b"\x00\x00", b"\x07", b"\x02\x00",                                                    # no number
    b"\x18", b"\x18\x80", b"\x18" + b"\xff" * 9 + b"\x02", b"\x18" + b"\xff" * 11,         # varints: none, cut, too long
    b"\x18" + b"\x80" * 10 + b"\x00", b"\xff" * 10 + b"\x01", b"\xf8\xff\xff\xff\x7f\x00",
    b"\x72", b"\x72\x05ab", b"\x72\xff\xff\xff\xff\x0f", b"\x72\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",      # lengths
    b"\x09\x00", b"\x15\x00\x00\x00", b"\x8a\x01\x01\x18",                                # fixed; inside a message
])
def test_bytes_that_are_no_message_are_an_error(data):
    with pytest.raises(ValueError):
        transcoded(kinds.Singles, data)


@pytest.mark.parametrize("text", [
    b"\xff", b"\xc3", b"\xc0\x80", b"\xe0\x80\x80", b"\xed\xa0\x80", b"\xed\xbf\xbf", b"\xf0\x80\x80\x80", b"\xf4\x90\x80\x80",
    b"\xf8\x88\x80\x80\x80", b"\x80", b"12345678\xe2\x82", b"\xe2\x28\xa1"])
def test_text_that_is_no_utf8_is_an_error_surrogates_included(text):
    for kind in (kinds.Singles, kinds.Named):
        field = b"\x72" if kind is kinds.Singles else b"\x0a"
        with pytest.raises(ValueError, match="not UTF-8"):
            transcoded(kind, field + bytes([len(text)]) + text)
        with pytest.raises(DecodeError):
            kind.FromString(field + bytes([len(text)]) + text)


def test_nan_and_infinity_are_null_as_the_reference_has_them():
    for value in (float("nan"), float("inf"), float("-inf")):
        message = kinds.Singles(double=value, float=value)
        agree(message, Context())
        assert transcoded(kinds.Singles, message.SerializeToString())["double"] is None
        agree(kinds.Wrapped(value=struct_pb2.Value(number_value=value)), Context())


def test_the_last_of_several_values_counts_and_parts_of_messages_are_merged():
    one, two = kinds.Singles(string="a", int32=1, child=kinds.Singles(bool=True)), kinds.Singles(string="b",
                                                                                                 child=kinds.Singles(int64=5))
    data = kinds.Singles(child=one).SerializeToString() + kinds.Singles(child=two).SerializeToString()
    made = transcoded(kinds.Singles, data)["child"]
    assert (made["string"], made["int32"], made["child"]["bool"], made["child"]["int64"]) == ("b", 1, True, 5)


def test_a_member_of_a_oneof_ends_the_others_even_one_that_is_not_shown():
    text, inner = kinds.Ruled(text="a").SerializeToString(), kinds.Ruled(inner=kinds.Ruled(maybe="x")).SerializeToString()
    again, unseen = kinds.Ruled(inner=kinds.Ruled(until="y")).SerializeToString(), kinds.Ruled(unseen="u").SerializeToString()
    for data in (text + inner, inner + text, inner + again, inner + text + again, text + unseen, inner + unseen + again):
        agree(kinds.Ruled.FromString(data), Context())
        assert transcoded(kinds.Ruled, data) == transcoded(kinds.Ruled, kinds.Ruled.FromString(data).SerializeToString())
    assert "text" not in transcoded(kinds.Ruled, text + unseen)


@pytest.mark.parametrize("entries", [2, 8, 9, 100])
def test_the_last_entry_of_a_key_counts(entries):
    data = b"".join(kinds.Maps(string={"k": bool(index % 2)}, int32={-7: index}).SerializeToString() for index in range(entries))
    made = transcoded(kinds.Maps, data)
    assert (made["string"], made["int32"]) == ({"k": entries % 2 == 0}, {"-7": float(entries - 1)})


def test_numbers_may_come_packed_or_not_whatever_was_declared():
    assert transcoded(kinds.Lists, b"\x1a\x02\x01\x02\x18\x03\x1a\x00\x92\x01\x01\x05\x90\x01\x06")["int32"] == [1, 2, 3]
    assert transcoded(kinds.Lists, b"\x92\x01\x01\x05\x90\x01\x06")["unpacked"] == [5, 6]
    with pytest.raises(ValueError):
        transcoded(kinds.Lists, b"\x0a\x07" + b"\0" * 7)


def test_fields_of_another_wire_type_and_unknown_ones_are_passed_over():
    made = transcoded(kinds.Named, b"\x08\x05" + b"\x7a\x01x" + b"\x0a\x01n" + b"\xfa\xff\xff\xff\x0f\x00" + b"\x0d\0\0\0\0")
    assert made["name"] == "n"


def test_an_entry_with_unknown_fields_is_unknown_as_a_parser_has_it():
    data = b"\x22\x04\x08\x7f\x10\x01" + b"\x22\x06\x18\x00\x08\x7f\x10\x02"
    agree(kinds.Maps.FromString(data), Context())
    assert transcoded(kinds.Maps, data)["uint64"] == {"127": "SMALL"}


def test_messages_nested_too_deeply_are_an_error():
    data = b""
    for _ in range(128):
        data = b"\x8a\x01" + bytes([len(data) & 0x7F | 0x80, len(data) >> 7]) + data
    with pytest.raises(ValueError, match="deep"):
        transcoded(kinds.Singles, data)


def test_what_the_transcoder_refuses_the_reference_writes():
    deep = kinds.Lists()
    at = deep
    for _ in range(110):
        at = at.children.add()
    encoder = CODECS[Family.NOVA].encoders.of(deep.DESCRIPTOR)
    assert codec.encode(deep, encoder, Context()) == codec.encode_slowly(deep, encoder, Context())


@pytest.mark.parametrize("seconds", draw.SECONDS)
@pytest.mark.parametrize("family", [Family.NOVA, Family.KEYSTONE, Family.CINDER])
def test_moments_are_written_in_the_familys_way(seconds, family):
    for nanos in (0, 999, 1000, 999999999, -1):
        moment = timestamp_pb2.Timestamp(seconds=seconds, nanos=nanos)
        agree(kinds.Wrapped(moment=moment, micros=moment), Context(), family)
    agree(kinds.Wrapped(moment=timestamp_pb2.Timestamp(seconds=2 ** 62)), Context(), family)


def test_every_day_of_some_centuries_is_the_calendars():
    for days in range(-400_000, 100_000, 37):
        agree(kinds.Wrapped(moment=timestamp_pb2.Timestamp(seconds=days * 86400 + days % 86400)), Context())


def test_what_no_table_can_say_is_left_to_the_reference():
    file = descriptor_pb2.FileDescriptorProto(name="closed.proto", package="closed", syntax="proto2")
    file.enum_type.add(name="E").value.add(name="A", number=1)
    file.message_type.add(name="M").field.add(name="e", number=1, type=14, label=1, type_name=".closed.E")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    descriptor = pool.FindMessageTypeByName("closed.M")
    encoder = CODECS[Family.NOVA].encoders.of(descriptor)
    assert encoder.table is None
    assert codec.encode(GetMessageClass(descriptor)(e=1), encoder, Context()) == b'{"e":"A"}'
