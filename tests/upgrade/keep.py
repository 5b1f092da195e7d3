"""Writes down what this version's records and protos are, for the tests of all later ones: run it when a version is released.

    python -m tests.upgrade.keep

makes tests/upgrade/kept/<version>/records.json, with one record of every kind and what it says, and descriptors.binpb, a
FileDescriptorSet of every proto. Both are data: once a version is released they are never made anew.
"""
import base64
import importlib
import json
import sys
from importlib.metadata import version
from pathlib import Path

from google.protobuf import descriptor_pb2
from google.protobuf.descriptor import FileDescriptor

from control import main
from tests.upgrade.messages import filled, plain

KEPT = Path(__file__).parent / "kept"
ROOT = Path(main.__file__).resolve().parents[1]


def files() -> dict[str, FileDescriptor]:
    """Every proto of the tree and what it imports, by name, each after what it needs."""
    found: dict[str, FileDescriptor] = {}

    def add(file: FileDescriptor) -> None:
        for needed in file.dependencies:
            add(needed)
        found.setdefault(file.name, file)

    for path in sorted((ROOT / "protos").glob("**/*.proto")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        add(importlib.import_module(f"{name}_pb2").DESCRIPTOR)
    return found


def descriptors() -> descriptor_pb2.FileDescriptorSet:
    """All of files() as one set."""
    made = descriptor_pb2.FileDescriptorSet()
    for file in files().values():
        file.CopyToProto(made.file.add())
    return made


def records() -> dict[str, dict[str, object]]:
    """By prefix of its kind: a record's type, key and bytes, and what it says."""
    made = {}
    for kind in main.KINDS:
        message = filled(kind.message)
        made[kind.prefix] = {
            "type": kind.message.DESCRIPTOR.full_name, "key": kind.key_of(message), "says": plain(message),
            "bytes": base64.b64encode(message.SerializeToString(deterministic=True)).decode()}
    return made


def keep(directory: Path) -> None:
    directory.mkdir(parents=True)
    (directory / "descriptors.binpb").write_bytes(descriptors().SerializeToString(deterministic=True))
    (directory / "records.json").write_text(json.dumps(records(), indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    wanted = KEPT / (sys.argv[1] if len(sys.argv) > 1 else version("brume"))
    if wanted.exists():
        sys.exit(f"{wanted} is there: what a released version wrote does not change")
    keep(wanted)
    print(f"kept {len(records())} records and {len(files())} protos in {wanted}")
