"""Public cloud images by name: where each is, how its checksum is found, and who logs in to it."""
import re
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

import yaml

from control.kernel.errors import Invalid, NotFound

#: Length of a checksum in hexadecimal -> hashlib's name for it.
ALGORITHMS = {32: "md5", 64: "sha256", 128: "sha512"}


@dataclass(frozen=True, slots=True)
class Entry:
    """One image of a catalogue file; see catalogue.yaml for what the fields mean."""

    name: str
    os: str
    url: str
    checksums: str
    format: str
    user: str
    min_disk: int
    min_ram: int
    properties: dict[str, str] = field(default_factory=dict)


def load(file: Path | None = None) -> dict[str, Entry]:
    """The entries of a file, or of Brume's own catalogue, by name. Raises Invalid where the file makes no sense."""
    source = file or resources.files(__package__).joinpath("catalogue.yaml")
    try:
        entries = [Entry(**row) for row in yaml.safe_load(source.read_text())]
    except (OSError, TypeError, ValueError, yaml.YAMLError) as error:
        raise Invalid("image.catalogue", f"the catalogue {source} cannot be read: {error}") from error
    return {entry.name: entry for entry in entries}


def find(entries: dict[str, Entry], name: str) -> Entry:
    """The entry of a name. Raises NotFound, naming those that there are."""
    if name not in entries:
        raise NotFound("image.catalogue.missing", f"the catalogue has no image {name!r}; it has {', '.join(sorted(entries))}")
    return entries[name]


def checksum_of(listing: str, file_name: str) -> str:
    """A file's checksum out of a distributor's list.

    Understands `HASH  FILE`, `HASH *FILE`, `SHA256 (FILE) = HASH` and a lone hash, with or without a PGP signature around.
    Raises NotFound where the list does not have the file.
    """
    digest = "[0-9a-fA-F]{32,128}"
    patterns = (rf"^({digest})[ \t]+\*?(?:\./)?{re.escape(file_name)}[ \t]*$",
                rf"^\w+[ \t]*\({re.escape(file_name)}\)[ \t]*=[ \t]*({digest})[ \t]*$",
                rf"\A\s*({digest})\s*\Z")
    for pattern in patterns:
        for match in re.finditer(pattern, listing, re.MULTILINE):
            if len(match[1]) in ALGORITHMS:
                return match[1].lower()
    raise NotFound("image.catalogue.checksum", f"the distributor's list of checksums does not have {file_name}")
