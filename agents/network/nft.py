"""nftables through libnftables: a text goes in and is carried out in one transaction, or not at all.

A ruleset names its own version by an empty chain, `v_<digest>`, so that one look at the kernel tells whether it is current.
Blocking; a context belongs to the network namespace that its thread was in when it was made.
"""
import ctypes
import functools
import hashlib
from types import TracebackType

LIBRARY = "libnftables.so.1"


class RulesRefused(Exception):
    """The kernel or the parser would not have the text; nothing of it is in place."""


@functools.cache
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(LIBRARY)
    library.nft_ctx_new.restype = ctypes.c_void_p
    library.nft_ctx_new.argtypes = [ctypes.c_uint32]
    library.nft_ctx_free.argtypes = [ctypes.c_void_p]
    library.nft_run_cmd_from_buffer.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    for function in (library.nft_ctx_buffer_output, library.nft_ctx_buffer_error):
        function.argtypes = [ctypes.c_void_p]
    library.nft_ctx_get_error_buffer.argtypes = [ctypes.c_void_p]
    library.nft_ctx_get_error_buffer.restype = ctypes.c_char_p
    return library


class Nft:
    """A context of the library, in the network namespace of the thread that makes it."""

    def __init__(self) -> None:
        self._library = _library()
        self._context = ctypes.c_void_p(self._library.nft_ctx_new(0))
        if not self._context:
            raise OSError("libnftables gave no context")
        self._library.nft_ctx_buffer_output(self._context)
        self._library.nft_ctx_buffer_error(self._context)

    def __enter__(self) -> "Nft":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._library.nft_ctx_free(self._context)

    def _run(self, text: str) -> str | None:
        """Carry the text out; return None, or why not."""
        if self._library.nft_run_cmd_from_buffer(self._context, text.encode()) == 0:
            return None
        why = self._library.nft_ctx_get_error_buffer(self._context) or b""
        return why.decode(errors="replace").strip() or "no reason given"

    def run(self, text: str) -> None:
        """Raises RulesRefused with the library's words."""
        if (refusal := self._run(text)) is not None:
            raise RulesRefused(refusal)

    def has(self, family: str, table: str, version: str) -> bool:
        """Whether the table's rules are of that version."""
        return self._run(f"list chain {family} {table} {version}") is None

    def drop(self, family: str, table: str) -> None:
        """Remove the table, there or not."""
        self.run(f"table {family} {table}\ndelete table {family} {table}\n")


def replacement(tables: dict[tuple[str, str], list[str]]) -> tuple[str, str]:
    """Return (version, text) of a transaction that replaces the tables, (family, name) -> lines of the body, as one."""
    body = "\n".join(f"{family} {name}\n" + "\n".join(lines) for (family, name), lines in tables.items())
    version = "v_" + hashlib.sha256(body.encode()).hexdigest()[:24]
    text: list[str] = []
    for (family, name), lines in tables.items():
        # named first so that there is something to delete
        text += [f"table {family} {name}", f"delete table {family} {name}", f"table {family} {name} {{",
                 *lines, f"chain {version} {{", "}", "}"]
    return version, "\n".join(text) + "\n"
