"""Builds what the source tree does not hold: Python modules from protos/, and the Cython kernels."""
import os
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent.resolve()
DEBUG = bool(os.environ.get("SCHEDULER_DEBUG"))      # bounds checks in the kernels; CI runs the tests so once


def compile_protos() -> None:
    """Generate *_pb2 modules beside every .proto that is newer than its module."""
    import google.api
    import grpc_tools
    from grpc_tools import protoc

    wanted = [path for path in sorted(ROOT.glob("protos/**/*.proto"))
              if not (made := path.with_name(path.stem + "_pb2.py")).exists()
              or made.stat().st_mtime < path.stat().st_mtime]
    if not wanted:
        return
    googleapis = Path(next(iter(google.api.__path__))).parents[1]
    well_known = Path(grpc_tools.__file__).parent / "_proto"
    here = os.getcwd()
    os.chdir(ROOT)
    try:
        status = protoc.main(["protoc", "-I.", f"-I{googleapis}", f"-I{well_known}",
                              "--python_out=.", "--grpc_python_out=.", "--pyi_out=.",
                              *(str(path.relative_to(ROOT)) for path in wanted)])
    finally:
        os.chdir(here)
    if status:
        raise SystemExit(f"protoc failed with status {status}")


class BuildPy(build_py):
    def run(self):
        compile_protos()
        super().run()


KERNELS = [Extension("scheduler._pack", ["scheduler/_pack.pyx"])]
for kernel in KERNELS:
    kernel.extra_compile_args = ["-O3", "-ffp-contract=off"]

setup(
    ext_modules=cythonize(
        KERNELS, force=DEBUG,
        compiler_directives={"language_level": 3, "boundscheck": DEBUG, "wraparound": DEBUG}),
    cmdclass={"build_py": BuildPy},
)
