"""Encryption of a stream under a passphrase: AES-256-GCM in frames, the key by scrypt.

The header names salt and nonce prefix; frame i has the nonce prefix | i | last?, so frames cannot be left out, moved or cut
off without its showing (the STREAM construction: "Online Authenticated-Encryption and its Nonce-Reuse Misuse-Resistance",
Hoang, Reyhanitabar, Rogaway, Vizar 2015).
"""
import os
from pathlib import Path
from typing import BinaryIO

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from control.kernel.errors import Invalid

MAGIC = b"BRUMEBK1"
SALT, PREFIX, TAG = 16, 7, 16
#: Bytes of plain text in a frame.
FRAME = 1 << 20
#: Cost of a guess at the passphrase: 128 MiB and a good part of a second.
COST = 2**17
#: Characters that a passphrase has at least.
SHORTEST = 12


def passphrase(file: Path) -> bytes:
    """The first line of a file. Raises Invalid where it cannot be read or is too short."""
    try:
        text = file.read_text().split("\n", 1)[0].strip()
    except (OSError, UnicodeDecodeError) as error:
        raise Invalid("backup.passphrase", f"the passphrase in {file} cannot be read: {error}") from error
    if len(text) < SHORTEST:
        raise Invalid("backup.passphrase", f"the passphrase in {file} must have {SHORTEST} characters or more")
    return text.encode()


class Sealing:
    """Encrypts what is written to it; close() ends it, and not the file below."""

    def __init__(self, file: BinaryIO, secret: bytes):
        self._file = file
        self._header = MAGIC + os.urandom(SALT + PREFIX)
        self._cipher = _cipher(secret, self._header)
        self._number = 0
        self._held = bytearray()
        file.write(self._header)

    def write(self, data: bytes) -> int:
        self._held += data
        while len(self._held) > FRAME:           # one is always kept: the last is sealed as such
            self._seal(bytes(self._held[:FRAME]), last=False)
            del self._held[:FRAME]
        return len(data)

    def close(self) -> None:
        self._seal(bytes(self._held), last=True)
        self._held.clear()

    def _seal(self, data: bytes, last: bool) -> None:
        self._file.write(self._cipher.encrypt(_nonce(self._header, self._number, last), data, self._header))
        self._number += 1


class Opening:
    """Decrypts what is read from it. Raises Invalid where the passphrase is wrong, or the file is not as it was written."""

    def __init__(self, file: BinaryIO, secret: bytes):
        self._file = file
        self._header = file.read(len(MAGIC) + SALT + PREFIX)
        if len(self._header) != len(MAGIC) + SALT + PREFIX or not self._header.startswith(MAGIC):
            raise Invalid("backup.sealed", "the file is no encrypted backup")
        self._cipher = _cipher(secret, self._header)
        self._number = 0
        self._next = file.read(FRAME + TAG)
        self._held = b""

    def read(self, size: int) -> bytes:
        """Up to `size` bytes; fewer only at the end."""
        parts = []
        while size > 0 and (self._held or self._open()):
            parts.append(self._held[:size])
            self._held = self._held[size:]
            size -= len(parts[-1])
        return b"".join(parts)

    def _open(self) -> bool:
        if not self._next:
            return False
        frame, self._next = self._next, self._file.read(FRAME + TAG)
        try:
            self._held = self._cipher.decrypt(_nonce(self._header, self._number, not self._next), frame, self._header)
        except InvalidTag as error:
            raise Invalid("backup.sealed", "the backup is damaged or cut off" if self._number else
                          "the passphrase is wrong, or the backup is damaged") from error
        self._number += 1
        return bool(self._held)


def is_sealed(file: BinaryIO) -> bool:
    """Whether a file that was just opened is an encrypted backup; it is at its beginning again afterwards."""
    found = file.read(len(MAGIC)) == MAGIC
    file.seek(0)
    return found


def _cipher(secret: bytes, header: bytes) -> AESGCM:
    return AESGCM(Scrypt(salt=header[len(MAGIC):len(MAGIC) + SALT], length=32, n=COST, r=8, p=1).derive(secret))


def _nonce(header: bytes, number: int, last: bool) -> bytes:
    return header[-PREFIX:] + number.to_bytes(4, "big") + bytes([last])
