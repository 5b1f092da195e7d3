"""Fetches a file over HTTP and gives it out only if it has the checksum that it should have.

What came before a cut is kept and continued, in the same run and in the next: its name holds the checksum, so a file that
the distributor has replaced meanwhile is begun anew.
"""
import hashlib
import http.client
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from control.image.catalogue import ALGORITHMS
from control.kernel.errors import Invalid, Unavailable

#: Seconds without a byte after which a connection is given up.
SILENCE = 30.0
#: Connections in a row that may bring nothing new; each waits a little longer than the one before.
ATTEMPTS = 5
#: Bytes of a list of checksums at most.
MAX_LISTING = 4 * 1024 * 1024

_CHUNK = 1024 * 1024

Progress = Callable[[int, int | None], None]


def fetch_text(url: str) -> str:
    """A small text. Raises Unavailable."""
    try:
        with _open(url, 0) as answer:
            return answer.read(MAX_LISTING).decode("utf-8", "replace")
    except (OSError, http.client.HTTPException) as error:
        raise _unreachable(url, error) from error


def fetch(url: str, folder: Path, checksum: str, progress: Progress, *, pause: float = 1.0) -> Path:
    """The file at `url`, complete and checked, in `folder`.

    Args:
      checksum: in hexadecimal; its length says which algorithm.
      progress: told the bytes that are here and all that there will be, when known.
      pause: seconds before the second connection.

    Raises:
      Unavailable: the server cannot be reached, or the connection breaks again and again; what came is kept.
      Invalid: the file has another checksum; it is deleted.
    """
    folder.mkdir(parents=True, exist_ok=True)
    whole = folder / f"{checksum[:16]}-{Path(urlsplit(url).path).name}"
    if whole.exists() and _digest(whole, checksum) == checksum:
        return whole
    part = whole.with_name(f"{whole.name}.part")
    fruitless = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            if _continue(url, part, before, progress):
                break
            cause: Exception | None = None
        except urllib.error.HTTPError as error:
            raise _unreachable(url, error) from error
        except (OSError, http.client.HTTPException) as error:
            cause = error
        after = part.stat().st_size if part.exists() else 0
        fruitless = 0 if after > before else fruitless + 1
        if fruitless >= ATTEMPTS or (fruitless and not after):
            raise _unreachable(url, cause) from cause
        time.sleep(pause * (1 + fruitless))
    found = _digest(part, checksum)
    if found != checksum:
        part.unlink()
        raise Invalid("image.download.checksum",
                      f"{url} has the {ALGORITHMS[len(checksum)]} {found}, its distributor's list says {checksum}: "
                      "nothing was imported and the file was deleted")
    part.replace(whole)
    return whole


def _continue(url: str, part: Path, have: int, progress: Progress) -> bool:
    """Append what one connection brings; whether the file is complete."""
    try:
        answer = _open(url, have)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:       # nothing behind what is here
            return True
        raise
    with answer:
        if answer.status != 206:
            have = 0
        length = answer.headers.get("Content-Length", "")
        total = have + int(length) if length.isdecimal() else None
        with part.open("r+b" if have else "wb") as file:
            file.seek(have)
            progress(have, total)
            while data := answer.read1(_CHUNK):
                file.write(data)
                have += len(data)
                progress(have, total)
        return total is None or have == total


def _open(url: str, start: int) -> http.client.HTTPResponse:
    if urlsplit(url).scheme not in ("http", "https"):
        raise Invalid("image.download.url", f"{url} is neither http nor https")
    request = urllib.request.Request(url, headers={"User-Agent": "brume"})  # noqa: S310 - the scheme was checked
    if start:
        request.add_header("Range", f"bytes={start}-")
    return urllib.request.urlopen(request, timeout=SILENCE, context=ssl.create_default_context())  # noqa: S310


def _digest(path: Path, like: str) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, ALGORITHMS[len(like)]).hexdigest()


def _unreachable(url: str, cause: Exception | None) -> Unavailable:
    reason = getattr(cause, "reason", None) or cause or "the connection ends before the file does"
    code = f"{cause.code} " if isinstance(cause, urllib.error.HTTPError) else ""
    return Unavailable("image.download", f"cannot download {url}: {code}{reason}. Where images cannot be downloaded, "
                                         "`brume images build` makes a small one from Debian packages")
