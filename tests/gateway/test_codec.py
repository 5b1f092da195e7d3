"""The codec agrees with protobuf's own JSON where the two mean the same, and keeps its limits."""
import base64
import json

import pytest
from google.protobuf import json_format, struct_pb2
from hypothesis import example, given, settings
from hypothesis import strategies as st
from toycompute.v1 import servers_pb2 as toy

from control.gateway import codec
from control.gateway.apis import EVERYTHING, Family, number
from control.gateway.codec import Codec
from control.gateway.context import Context
from control.gateway.decoding import MAX_DEPTH, from_text
from control.gateway.encoding import any_value
from control.kernel.errors import Invalid, TooLarge

CODEC = Codec(Family.NOVA, {})
ENCODE = CODEC.encoders.of(toy.EchoMessage.DESCRIPTOR)
FIELDS = CODEC.decoders.of(toy.EchoMessage.DESCRIPTOR)


def encoded(message, context=None):
    return codec.encode(message, ENCODE, context or Context())


def decoded(value, version=EVERYTHING):
    message = toy.EchoMessage()
    codec.decode(value, message, FIELDS, Context(version=version))
    return message


texts = st.text(alphabet=st.characters(codec="utf-8"), max_size=8)
doubles = st.floats(allow_nan=False, allow_infinity=False)
int32 = st.integers(-2 ** 31, 2 ** 31 - 1)
anything = st.recursive(st.none() | st.booleans() | st.integers(-2 ** 53, 2 ** 53) | doubles | texts,
                        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=8)
inners = st.deferred(lambda: st.builds(toy.EchoMessage.Inner, text=texts, number=int32, children=st.lists(inners, max_size=2)))


@st.composite
def messages(draw):
    """An EchoMessage with anything in it that is readable JSON."""
    def some(strategy):
        return draw(st.none() | strategy)

    message = toy.EchoMessage(
        text=draw(texts), flag=draw(st.booleans()), small=draw(int32), natural=draw(st.integers(0, 2 ** 32 - 1)),
        real=draw(doubles), single=draw(st.floats(width=32, allow_nan=False, allow_infinity=False)),
        data=draw(st.binary(max_size=6)), colour=draw(st.integers(0, 2)), inner=some(inners),
        texts=draw(st.lists(texts, max_size=3)),
        numbers=draw(st.lists(int32, max_size=3)), inners=draw(st.lists(inners, max_size=2)),
        colours=draw(st.lists(st.integers(1, 2), max_size=3)),
        labels=draw(st.dictionaries(texts, texts, max_size=3)), named=draw(st.dictionaries(texts, inners, max_size=2)),
        indexed=draw(st.dictionaries(int32, st.booleans(), max_size=2)), maybe=some(texts), maybe_number=some(int32),
        large=draw(st.integers(-2 ** 63, 2 ** 63 - 1)), huge=draw(st.integers(0, 2 ** 64 - 1)), left=some(texts))
    setattr(message, "from", draw(texts))
    if draw(st.booleans()):
        json_format.ParseDict(draw(anything.filter(lambda value: value is not None)), message.any)
    if draw(st.booleans()):
        message.moment.seconds = draw(st.integers(-2_000_000_000, 4_000_000_000))
    if draw(st.booleans()):
        message.wrapped.value = draw(texts)
    return message


@settings(max_examples=200, deadline=None)
@given(messages())
@example(toy.EchoMessage(any=struct_pb2.Value(number_value=-0.0)))
def test_what_is_encoded_decodes_to_the_same_message(message):
    assert decoded(codec.parse(encoded(message))) == message


@settings(max_examples=200, deadline=None)
@given(messages())
def test_encoding_agrees_with_protobufs_own_where_both_mean_the_same(message):
    ours = json.loads(encoded(message))
    theirs = json_format.MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
    for key in ("large", "huge"):
        theirs[key] = int(theirs[key])
    theirs["colour"] = theirs["colour"].replace("NONE", "")
    assert ours.keys() == theirs.keys()
    for key in ours.keys() - {"real", "single"}:
        assert ours[key] == theirs[key], key
    assert float(theirs["real"]) == ours["real"]
    assert ours["single"] == pytest.approx(float(theirs["single"]), rel=1e-6, abs=1e-45)


@settings(max_examples=200, deadline=None)
@given(anything)
def test_decoding_any_json_gives_a_message_or_an_invalid(value):
    try:
        message = decoded({"any": value, "inner": value, "labels": value})
    except Invalid as error:
        assert str(error)
    else:
        assert message.IsInitialized()


@given(anything)
def test_any_value_comes_back_as_it_was(value):
    assert any_value(json_format.ParseDict(value, struct_pb2.Value())) == value


def nested(levels: int):
    value = "leaf"
    for level in range(levels):
        value = {"a": value} if level % 2 else [value]
    return value


def test_values_are_nested_as_deep_as_records_can_be_read_again():
    message = decoded({"any": nested(MAX_DEPTH)})
    wrapped = struct_pb2.Struct()
    wrapped.fields["a"].struct_value.fields["b"].CopyFrom(message.any)
    assert struct_pb2.Struct.FromString(wrapped.SerializeToString()) == wrapped
    with pytest.raises(Invalid, match=f"any: nested more than {MAX_DEPTH} levels deep"):
        decoded({"any": nested(MAX_DEPTH + 1)})


def test_recursive_messages_end_in_an_error_and_not_in_the_stack():
    value = {}
    for _ in range(1000):
        value = {"children": [value]}
    with pytest.raises(Invalid, match="nested too deeply"):
        decoded({"inner": value})
    with pytest.raises(Invalid):
        codec.parse(b"[" * 100_000)


def test_a_body_over_the_limit_is_refused():
    codec.parse(b'"' + b"x" * (codec.MAX_BODY - 2) + b'"')
    with pytest.raises(TooLarge):
        codec.parse(b'"' + b"x" * (codec.MAX_BODY - 1) + b'"')


def test_integral_doubles_are_integers_in_values_and_floats_in_double_fields():
    assert encoded(decoded({"any": 2.0, "real": 2})).count(b"2.0") == 1
    assert b'"any":1e+300' in encoded(decoded({"any": 1e300})) or b'"any":1e300' in encoded(decoded({"any": 1e300}))


def test_bytes_are_base64_text():
    assert json.loads(encoded(toy.EchoMessage(data=b"\xff\x00")))["data"] == base64.b64encode(b"\xff\x00").decode()


def test_a_keyword_may_name_a_field():
    assert json.loads(encoded(decoded({"from": "here"})))["from"] == "here"


def test_microversions_compare_by_number_and_not_by_text():
    assert number("2.9") < number("2.10") < number("2.96") < number("3.0") < EVERYTHING


def test_numbers_in_paths_and_queries_are_strict():
    field = toy.EchoMessage.DESCRIPTOR.fields_by_name["small"]
    assert from_text(field, "-12") == -12
    for text in ("", "-", "1.5", "0x10", "1_000", "9" * 30, "--1", " 1"):
        with pytest.raises(Exception, match=r"expected an integer|out of range"):
            from_text(field, text)
