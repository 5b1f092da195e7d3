"""Builds what the source tree does not hold: Python modules and comments from protos/, and the Cython kernels."""
import json
import os
import tempfile
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent.resolve()
DEBUG = bool(os.environ.get("SCHEDULER_DEBUG"))      # bounds checks in the kernels; CI runs the tests so once


def compile_protos() -> None:
    """Generate *_pb2 modules beside every .proto that is newer than its module, and the comments of them all."""
    protos = sorted(ROOT.glob("protos/**/*.proto"))
    for made in ROOT.glob("protos/**/*_pb2*.py*"):       # of a proto that went, and would be loaded beside its successor
        if not made.with_name(made.name.split("_pb2")[0] + ".proto").exists():
            made.unlink()
    wanted = [path for path in protos
              if not (made := path.with_name(path.stem + "_pb2.py")).exists()
              or made.stat().st_mtime < path.stat().st_mtime]
    if wanted:
        run_protoc(["--python_out=.", "--grpc_python_out=.", "--pyi_out=."], wanted)
    comments = ROOT / "protos" / "comments.json"
    if wanted or not comments.exists():
        comments.write_text(json.dumps(comments_of(protos), indent=0, sort_keys=True, ensure_ascii=False))


def run_protoc(options: list[str], protos: list[Path]) -> None:
    """Run protoc from the root of the tree, so that paths in it are the names of the protos."""
    import google.api
    import grpc_tools
    from grpc_tools import protoc

    googleapis = Path(next(iter(google.api.__path__))).parents[1]
    well_known = Path(grpc_tools.__file__).parent / "_proto"
    here = os.getcwd()
    os.chdir(ROOT)
    try:
        status = protoc.main(["protoc", "-I.", f"-I{googleapis}", f"-I{well_known}", *options,
                              *(str(path.relative_to(ROOT)) for path in protos)])
    finally:
        os.chdir(here)
    if status:
        raise SystemExit(f"protoc failed with status {status}")


def comments_of(protos: list[Path]) -> dict[str, str]:
    """The comment of everything that has one, by full name: Python's descriptors do not keep them."""
    from google.protobuf.descriptor_pb2 import FileDescriptorSet

    with tempfile.NamedTemporaryFile(suffix=".binpb") as made:
        run_protoc([f"--descriptor_set_out={made.name}", "--include_source_info"], protos)
        files = FileDescriptorSet.FromString(Path(made.name).read_bytes()).file
    found = {}
    for file in files:
        for location in file.source_code_info.location:
            lines = [line.removeprefix(" ") for line in location.leading_comments.strip().splitlines()]
            name = full_name(file, location.path) if lines else ""
            if name:
                found[name] = "\n".join(lines)
    return found


def full_name(file, path) -> str:
    """The full name of what a path of source info leads to; "" for what has none, such as options."""
    names, node = [file.package], file
    for number, index in zip(path[::2], path[1::2], strict=False):
        field = node.DESCRIPTOR.fields_by_number.get(number)
        if field is None or field.name not in ("service", "method", "message_type", "nested_type", "enum_type", "field", "value",
                                               "oneof_decl"):
            return ""
        node = getattr(node, field.name)[index]
        names.append(node.name)
    return ".".join(names) if len(path) and len(path) % 2 == 0 else ""


class BuildPy(build_py):
    def run(self):
        compile_protos()
        super().run()


KERNELS = [Extension("scheduler._engine", ["scheduler/_engine.pyx"], include_dirs=["scheduler"]),
           Extension("scheduler._state", ["scheduler/_state.pyx"]),
           Extension("scheduler._structs", ["scheduler/_structs.pyx"]),
           Extension("control.gateway._transcode", ["control/gateway/_transcode.pyx"])]
for kernel in KERNELS:
    kernel.extra_compile_args = ["-O3", "-ffp-contract=off"]

setup(
    ext_modules=cythonize(
        KERNELS, force=DEBUG,
        compiler_directives={"language_level": 3, "boundscheck": DEBUG, "wraparound": DEBUG}),
    cmdclass={"build_py": BuildPy},
)
