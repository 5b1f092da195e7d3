"""The config drive: what the metadata service tells a guest, on a disk labelled config-2, for guests that ask no network."""
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from agents.hypervisor import command
from agents.hypervisor.driver import Fault

#: Programs that write ISO 9660, all with mkisofs' options; the first that is there is taken.
WRITERS = ("genisoimage", "xorrisofs", "mkisofs")


async def write(files: Mapping[str, bytes], path: Path) -> None:
    """Make the drive at `path` from files by relative path, whole or not at all. Raises Fault when the host cannot."""
    writer = next((found for name in WRITERS if (found := shutil.which(name))), None)
    if writer is None:
        raise Fault(f"This host has no program to write a config drive: it needs one of {', '.join(WRITERS)}.")
    unfinished = path.with_name(path.name + ".part")
    with tempfile.TemporaryDirectory(dir=path.parent) as tree:
        _lay_out(files, Path(tree))
        error = await command.run(writer, "-quiet", "-J", "-r", "-V", "config-2", "-o", str(unfinished), tree)
    if error:
        raise Fault(f"The config drive could not be written: {error}")
    unfinished.rename(path)


def _lay_out(files: Mapping[str, bytes], tree: Path) -> None:
    for name, data in files.items():
        file = tree / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
