"""A plugin of pytest that gives every call of other tests an idempotency key of its own, which must make no difference.

    pytest -p tests.keyed tests/compute tests/network tests/placement tests/identity
"""
import uuid
from typing import Any

from control.kernel.database import Database
from control.kernel.idempotency import IdempotencyKeys
from control.kernel.rpc import Call, Dispatcher, Method

_made: list[Database] = []
_keyed = 0

_database, _dispatcher, _unary = Database.__init__, Dispatcher.__init__, Dispatcher.unary


def _make_database(self: Database, *arguments: Any, **options: Any) -> None:
    _database(self, *arguments, **options)
    _made[:] = [self]


def _make_dispatcher(self: Dispatcher, authenticator: Any, policy: Any = None, keys: Any = None) -> None:
    """With the keys of the database that was made last, which is the one that its servicers have."""
    _dispatcher(self, authenticator, policy, keys or (IdempotencyKeys(_made[0]) if _made else None))


async def _call(self: Dispatcher, method: Method, request: Any, call: Call) -> Any:
    global _keyed
    if not call.idempotency_key and not method.name.rpartition("/")[2].startswith(("Get", "List", "Show")):
        call.idempotency_key = str(uuid.uuid4())
        _keyed += 1
    return await _unary(self, method, request, call)


def pytest_configure(config: Any) -> None:
    Database.__init__, Dispatcher.__init__, Dispatcher.unary = (  # type: ignore[method-assign]
        _make_database, _make_dispatcher, _call)  # type: ignore[assignment]


def pytest_terminal_summary(terminalreporter: Any) -> None:
    terminalreporter.write_line(f"{_keyed} calls had a key")
