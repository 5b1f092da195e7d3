"""No change of a proto breaks those who have an earlier version: agents, replicas, clients, and records in the store."""
import pytest
from google.protobuf import text_format
from google.protobuf.descriptor_pb2 import FileDescriptorSet

from tests.upgrade.compatibility import breaks
from tests.upgrade.keep import KEPT, descriptors


def ours(files: FileDescriptorSet) -> FileDescriptorSet:
    """Without what others released."""
    return FileDescriptorSet(file=[file for file in files.file if not file.package.startswith("google.")])


@pytest.mark.parametrize("version", sorted(path.name for path in KEPT.iterdir()))
def test_every_proto_can_be_read_by_who_has_the_earlier_ones(version):
    kept = FileDescriptorSet.FromString((KEPT / version / "descriptors.binpb").read_bytes())
    assert list(breaks(ours(kept), ours(descriptors()))) == []


BEFORE = text_format.Parse("""
file {
  package: "a" name: "a.proto"
  message_type {
    name: "M"
    field { name: "one" number: 1 type: TYPE_STRING label: LABEL_OPTIONAL }
    field { name: "two" number: 2 type: TYPE_INT64 label: LABEL_OPTIONAL }
    field { name: "three" number: 3 type: TYPE_ENUM type_name: ".a.M.E" label: LABEL_REPEATED }
    enum_type { name: "E" value { name: "NONE" number: 0 } value { name: "SOME" number: 1 } }
    nested_type { name: "N" }
  }
  service { name: "S" method { name: "Call" input_type: ".a.M" output_type: ".a.M" } }
}""", FileDescriptorSet())


def test_what_is_only_added_breaks_nothing():
    after = FileDescriptorSet()
    after.CopyFrom(BEFORE)
    message = after.file[0].message_type[0]
    message.field.add(name="four", number=4, type="TYPE_BYTES", label="LABEL_OPTIONAL")
    message.enum_type[0].value.add(name="MORE", number=2)
    after.file[0].service[0].method.add(name="Other", input_type=".a.M", output_type=".a.M")
    after.file[0].message_type.add(name="P")
    assert list(breaks(BEFORE, after)) == []


def test_a_field_may_go_if_its_number_and_its_name_stay_taken():
    after = FileDescriptorSet()
    after.CopyFrom(BEFORE)
    message = after.file[0].message_type[0]
    del message.field[1]
    assert list(breaks(BEFORE, after)) == ["a.M.two = 2 is gone, and its number is not reserved"]
    message.reserved_range.add(start=2, end=3)
    assert list(breaks(BEFORE, after)) == ["a.M.two = 2 is gone, and its name is not reserved"]
    message.reserved_name.append("two")
    assert list(breaks(BEFORE, after)) == []


@pytest.mark.parametrize(("change", "complaint"), [
    (lambda file: setattr(file.message_type[0].field[0], "type", 12), "was string, and is one, bytes"),
    (lambda file: setattr(file.message_type[0].field[1], "label", 3), "was int64, and is two, repeated int64"),
    (lambda file: setattr(file.message_type[0].field[2], "type_name", ".a.F"), "was repeated enum .a.M.E"),
    (lambda file: setattr(file.message_type[0].field[0], "name", "uno"), "is called uno"),
    (lambda file: setattr(file.message_type[0].field[1], "number", 7), "two = 2 is gone"),
    (lambda file: setattr(file.message_type[0].field[1], "number", 7), "two = 2 has the number 7 now"),
    (lambda file: setattr(file.message_type[0].field[0], "proto3_optional", True), "was string, and is one, optional string"),
    (lambda file: (file.message_type[0].oneof_decl.add(name="o"), setattr(file.message_type[0].field[0], "oneof_index", 0)),
     "and is one, string of oneof o"),
    (lambda file: file.message_type[0].ClearField("nested_type"), "a.M.N is gone"),
    (lambda file: file.message_type[0].ClearField("enum_type"), "a.M.E is gone"),
    (lambda file: file.message_type[0].enum_type[0].value.pop(), "SOME = 1 is gone"),
    (lambda file: setattr(file.message_type[0].enum_type[0].value[1], "name", "ANY"), "SOME = 1 is called ANY"),
    (lambda file: file.ClearField("service"), "rpc a.S/Call is gone"),
    (lambda file: setattr(file.service[0].method[0], "server_streaming", True), "rpc a.S/Call: server_streaming"),
    (lambda file: setattr(file.service[0].method[0], "input_type", ".a.P"), "rpc a.S/Call: input_type"),
])
def test_what_breaks_is_told(change, complaint):
    after = FileDescriptorSet()
    after.CopyFrom(BEFORE)
    change(after.file[0])
    assert complaint in "\n".join(breaks(BEFORE, after))
