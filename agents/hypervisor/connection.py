"""A connection to libvirtd that comes back: its blocking calls run in a few threads, its events arrive in the event loop.

There is one event loop of libvirt's in a process, in a thread of its own, begun with the first connection.
"""
import asyncio
import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Concatenate, ParamSpec, TypeVar

import libvirt

from agents.hypervisor.driver import Outage

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

#: Calls at a time. More would only queue in libvirtd; fewer let one slow start hold up all others.
THREADS = 4

#: Seconds between two pings of libvirtd, and how many may go unanswered: then the connection counts as lost.
PING_EVERY, PINGS_LOST = 5, 4

#: What a server's owner is told; the operator finds more in the log.
_OUTAGE = "The host's hypervisor (libvirtd) does not answer at the moment."

_GONE = frozenset({libvirt.VIR_ERR_NO_DOMAIN})
_loop_started = threading.Lock()
_loop_runs = False


def is_gone(error: libvirt.libvirtError) -> bool:
    """Whether an error says that the domain does not exist."""
    return error.get_error_code() in _GONE


class Connection:
    """Calls functions with a libvirt connection, opened when it is needed.

    Args:
      on_event: called in the event loop with a domain's UUID, event and detail (of VIR_DOMAIN_EVENT_ID_LIFECYCLE), or with
        ("", -1, -1) when a new connection was opened, since events may have been missed.
    """

    def __init__(self, uri: str, on_event: Callable[[str, int, int], None]):
        self.uri = uri
        self._on_event = on_event
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="libvirt")
        self._opening = threading.Lock()
        self._connection: Any = None
        self._complaint = ""
        self._loop: asyncio.AbstractEventLoop | None = None
        #: Set when the connection was lost; whoever waits for events opens it again.
        self.lost = asyncio.Event()

    async def call(self, function: Callable[Concatenate[Any, P], T], *arguments: P.args, **named: P.kwargs) -> T:
        """function(connection, ...) in a thread. Raises Outage when libvirtd does not answer; else what the function raises.

        Who is cancelled here still waits for the thread: nothing goes on behind the caller's back.
        """
        self._loop = asyncio.get_running_loop()
        done = self._loop.run_in_executor(self._threads, lambda: self._run(function, *arguments, **named))
        try:
            return await asyncio.shield(done)
        except asyncio.CancelledError:
            await asyncio.wait([done])
            raise

    def _run(self, function: Callable[Concatenate[Any, P], T], *arguments: P.args, **named: P.kwargs) -> T:
        connection = self._open()
        try:
            return function(connection, *arguments, **named)
        except libvirt.libvirtError as error:
            if connection.isAlive() == 1:
                raise
            self._drop(connection)
            raise Outage(_OUTAGE) from error

    def _open(self) -> Any:
        with self._opening:
            if self._connection is not None and self._connection.isAlive() == 1:
                return self._connection
            _start_loop()
            try:
                connection = libvirt.open(self.uri)
            except libvirt.libvirtError as error:
                self._complain(f"libvirtd does not answer at {self.uri}: {error}")
                raise Outage(_OUTAGE) from error
            connection.setKeepAlive(PING_EVERY, PINGS_LOST)
            connection.registerCloseCallback(lambda conn, *_: self._drop(conn), None)
            connection.domainEventRegisterAny(None, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, self._lifecycle, None)
            self._connection = connection
            self._complaint = ""
            self._in_loop(self.lost.clear)
            self._in_loop(self._on_event, "", -1, -1)
            return connection

    def _drop(self, connection: Any) -> None:
        if self._connection is connection:
            self._connection = None
            self._complain(f"libvirtd at {self.uri} went away")
        self._in_loop(self.lost.set)

    def _complain(self, what: str) -> None:
        """Tell the operator, once."""
        if what != self._complaint:
            log.warning("%s", what)
        self._complaint = what

    def _lifecycle(self, _: Any, domain: Any, event: int, detail: int, __: Any) -> None:
        self._in_loop(self._on_event, domain.UUIDString(), event, detail)

    def _in_loop(self, function: Callable[..., object], *arguments: Any) -> None:
        if self._loop and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(function, *arguments)

    def close(self) -> None:
        """Let the connection go. Calls that run end by themselves."""
        self._threads.shutdown(wait=True, cancel_futures=True)
        connection, self._connection = self._connection, None
        if connection is not None:
            try:
                connection.unregisterCloseCallback()
                connection.close()
            except libvirt.libvirtError:
                pass           # it was gone already


def _start_loop() -> None:
    global _loop_runs
    with _loop_started:
        if _loop_runs:
            return
        libvirt.registerErrorHandler(lambda *_: None, None)        # every error is raised as well; libvirt would print it too
        libvirt.virEventRegisterDefaultImpl()

        def run() -> None:
            while True:
                libvirt.virEventRunDefaultImpl()

        threading.Thread(target=run, name="libvirt-events", daemon=True).start()
        _loop_runs = True
