"""Random messages of any type, and bytes that are nearly messages, from a random.Random (hypothesis has one, too)."""
import random
import struct

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from control.gateway.encoding import is_map

TEXTS = ["", "a", "name", "id", "links", "text", "x" * 7, "x" * 8, "x" * 300, '"', "\\", "a\nb\tc\rd\be\ff", "\0\x01\x1f\x7f",
         "é", "1234567é", "€uro", "\U0001f600", "\ud7ff\ue000\uffff", "a/b c%?&=+~._-",
         "1234567\"", "\u2028</script>", "none", "0"]
DOUBLES = [0.0, -0.0, 1.0, -1.0, 0.1, 1.5, 100.0, 1e15, -1e15, 1e16, 1e17, 2.0 ** 53, 2.0 ** 53 - 1, 2.0 ** 53 + 2, 1e21, 1e22,
           1e300, 5e-324, 1e-5, 1e-4, 0.0001234, 123456789.125,
           1.7976931348623157e308, 2.0 ** 63, float("nan"), float("inf"), float("-inf")]
FLOATS = [0.0, -0.0, 1.0, 0.1, 1.5, 999999.0, 1000000.0, 16777216.0, 3.4028234663852886e38, 1e-45, 1e10, 0.3333333432674408,
          float("nan"), float("inf"), float("-inf")]
BOUNDS = {FieldDescriptor.CPPTYPE_INT32: (-2 ** 31, 2 ** 31 - 1), FieldDescriptor.CPPTYPE_UINT32: (0, 2 ** 32 - 1),
          FieldDescriptor.CPPTYPE_INT64: (-2 ** 63, 2 ** 63 - 1), FieldDescriptor.CPPTYPE_UINT64: (0, 2 ** 64 - 1)}
SECONDS = [0, 1, -1, 59, 86399, 86400, 951782400, 1709164800, 1767225600, -2208988800, -30610224000, 253402300799, 4102444800,
           -30610224001, 253402300800, -62135596800]


def scalar(some: random.Random, field: FieldDescriptor) -> object:
    """A value for a field that is no message; often one that is easily got wrong."""
    if field.enum_type is not None:
        return some.choice([*(value.number for value in field.enum_type.values), 7, -1, 2 ** 31 - 1])
    if field.cpp_type in BOUNDS:
        low, high = BOUNDS[field.cpp_type]
        return max(low, min(high, some.choice([0, 1, -1, 9, 10, 99, 127, 128, low, high, some.randint(low, high)])))
    match field.type:
        case FieldDescriptor.TYPE_BOOL:
            return some.random() < 0.5
        case FieldDescriptor.TYPE_STRING:
            return some.choice(TEXTS)
        case FieldDescriptor.TYPE_BYTES:
            return bytes(some.randrange(256) for _ in range(some.randrange(7)))
        case FieldDescriptor.TYPE_FLOAT:
            return some.choice([*FLOATS, struct.unpack("f", struct.pack("I", some.getrandbits(32)))[0]])
    return some.choice([*DOUBLES, struct.unpack("d", struct.pack("Q", some.getrandbits(64)))[0], some.random() * 1000])


def message(some: random.Random, descriptor: Descriptor, depth: int = 5) -> Message:
    """A message of a type, with some of its fields set, in any order."""
    made = GetMessageClass(descriptor)()
    if descriptor.full_name == "google.protobuf.Timestamp":
        made.seconds = some.choice(SECONDS) + some.choice([0, some.randrange(10 ** 6)])
        made.nanos = some.choice([0, 1, 999, 1000, 123456789, 999999999])
        return made
    density = some.choice([0.1, 0.5, 1.0])
    for field in descriptor.fields:
        if some.random() < density:
            fill(some, made, field, depth)
    return made


def fill(some: random.Random, made: Message, field: FieldDescriptor, depth: int) -> None:
    """Set one field."""
    count = some.choice([0, 1, 2, 3, 12]) if depth > 3 else some.choice([0, 1, 2])
    where = getattr(made, field.name)
    if field.message_type is not None and depth == 0:
        return
    if is_map(field):
        key, item = field.message_type.fields_by_name["key"], field.message_type.fields_by_name["value"]
        for _ in range(count):
            if item.message_type is not None:
                where[scalar(some, key)].CopyFrom(message(some, item.message_type, depth - 1))
            else:
                where[scalar(some, key)] = scalar(some, item)
    elif field.is_repeated:
        for _ in range(count):
            if field.message_type is not None:
                where.add().CopyFrom(message(some, field.message_type, depth - 1))
            else:
                where.append(scalar(some, field))
    elif field.message_type is not None:
        where.SetInParent()
        where.CopyFrom(message(some, field.message_type, depth - 1))
    else:
        setattr(made, field.name, scalar(some, field))


def damaged(some: random.Random, data: bytes) -> bytes:
    """Bytes of a message with something wrong, or only unusual, in them."""
    made = bytearray(data)
    for _ in range(some.choice([1, 1, 2, 5])):
        at = some.randrange(len(made) + 1)
        match some.randrange(5):
            case 0:
                del made[at:]
            case 1:
                made[at:at + 1] = bytes([some.randrange(256)])
            case 2:
                made[at:at] = bytes([some.choice([0x80, 0xFF, 0x00, 0x0B, 0x0C])]) * some.choice([1, 9, 10, 11])
            case 3:
                made += data[:some.randrange(len(data) + 1)]
            case 4:
                del made[at:at + some.randrange(4)]
    return bytes(made)
