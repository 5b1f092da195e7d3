"""Hashes and verifies passwords off the event loop, a few at a time.

A guess costs the same whether or not the user exists: what has no hash is verified against one that nothing matches.
"""
import asyncio
import ctypes
import secrets
from concurrent.futures import ThreadPoolExecutor

from argon2 import PasswordHasher
from argon2.exceptions import Argon2Error, InvalidHashError

from control.kernel.errors import Invalid, Unavailable

#: argon2id as OWASP's cheat sheet of 2025 has it: 19 MiB, two passes, one lane. More memory costs a login in latency and
#: the process in peak memory (WORKERS times as much); less helps whoever steals the hashes.
MEMORY_KIB, PASSES, LANES = 19 * 1024, 2, 1

#: Hashes at once, and callers that may wait for one. A longer queue only makes logins time out instead of being refused.
WORKERS, QUEUE = 2, 64

MAX_BYTES = 1024

#: Seconds after the last hash until its memory goes back to the system. Sooner costs hashes half as much again in page faults.
QUIET = 5.0


class Passwords:
    """argon2id in a thread pool. `hasher` is for tests that make many users."""

    def __init__(self, hasher: PasswordHasher | None = None):
        self._hasher = hasher or PasswordHasher(time_cost=PASSES, memory_cost=MEMORY_KIB, parallelism=LANES)
        self._pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="passwords")
        self._waiting = 0
        self._quiet: asyncio.TimerHandle | None = None
        self._nobody = self._hasher.hash(secrets.token_urlsafe(32))

    async def hash(self, password: str) -> str:
        """The encoded hash of a new password. Raises Invalid where it is empty or too long."""
        if not password or len(password.encode()) > MAX_BYTES:
            raise Invalid("identity.password", f"Invalid input for field 'password': 1 to {MAX_BYTES} bytes.")
        return await self._run(self._hasher.hash, password)

    async def verify(self, encoded: str, password: str) -> bool:
        """Whether a password is the one that was hashed. `encoded` "": no, after as much work as otherwise."""
        if len(password.encode()) > MAX_BYTES:
            return False
        matches = await self._run(self._matches, encoded or self._nobody, password)
        return bool(encoded) and matches

    def outdated(self, encoded: str) -> bool:
        """Whether a hash was made with other parameters than today's."""
        return self._hasher.check_needs_rehash(encoded)

    def _matches(self, encoded: str, password: str) -> bool:
        try:
            return self._hasher.verify(encoded, password)
        except (Argon2Error, InvalidHashError):
            return False

    async def _run(self, function, *arguments):
        if self._waiting >= QUEUE + WORKERS:
            raise Unavailable("identity.passwords.busy", "Too many logins at once: try again in a moment.")
        loop = asyncio.get_running_loop()
        self._waiting += 1
        try:
            return await loop.run_in_executor(self._pool, function, *arguments)
        finally:
            self._waiting -= 1
            if self._quiet is not None:
                self._quiet.cancel()
            self._quiet = loop.call_later(QUIET, self._give_back)

    def _give_back(self) -> None:
        if not self._waiting:
            self._pool.submit(_trim)

    def close(self) -> None:
        if self._quiet is not None:
            self._quiet.cancel()
        self._pool.shutdown(wait=False, cancel_futures=True)
        _trim()


def _trim() -> None:
    """Return the memory of past hashes to the system, which the C library keeps for the next ones."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)            # glibc's
    if trim is not None:
        trim(0)
