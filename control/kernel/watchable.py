"""What a service hands over so that users can watch a kind of its resources: who sees a record, and what they see of it.

A record is in somebody's list exactly when its audience and what they listen to have a name in common; the list call and
the watch are to agree on that at every revision.
"""
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from google.protobuf.message import Message

from control.kernel.cache import Kind
from control.kernel.caller import Caller
from control.kernel.rpc import Call

M = TypeVar("M", bound=Message)

#: In the audience of what everybody sees whom the rule of the list call lets in.
EVERYBODY = "everybody"


def project(project_id: str) -> str:
    """The name that a project's members listen to."""
    return f"project/{project_id}"


class Reader(Protocol):
    """The state at one revision, the present one or an earlier."""

    def get(self, kind: Kind[M], *parts: str) -> M | None:
        """The message under an id."""

    def rows(self, kind: Kind[M], index: str | None = None, value: str = "") -> list[M]:
        """The messages of a kind: all, or those under an index value."""


@dataclass(frozen=True, eq=False)
class Related:
    """Records of another kind that are shown with watched ones, or decide who sees them."""

    kind: Kind
    #: Keys of the watched records that a record is shown with.
    keys: Callable[[Reader, Any], Iterable[str]]
    #: What of it matters: a change that leaves this alone changes no watched record.
    shown: Callable[[Any], object] = lambda message: message


def _of_project(caller: Caller) -> Iterable[str]:
    return [EVERYBODY, project(caller.project_id)] if caller.project_id else [EVERYBODY]


@dataclass(frozen=True, eq=False)
class Watchable(Generic[M]):
    """One kind of resources that can be watched."""

    #: What clients call it: the collection's name in REST.
    name: str
    kind: Kind[M]
    #: The list call whose rule decides who may watch, "/compute.v1.Servers/ListServersDetail", and whose rows `view` makes.
    method: str
    #: A record as the list shows it to a caller. Reads the present state; what it wants may be gone already.
    view: Callable[[M, Call], Message]
    #: Who has a record in their list, by names; None: nobody, admins of all projects neither.
    audience: Callable[[Reader, M], Iterable[str] | None]
    #: The names that a caller listens to. May raise Denied.
    listens: Callable[[Caller], Iterable[str]] = _of_project
    #: Records among which are all that a project's members see, where an index finds them; None: look at all.
    candidates: Callable[[Reader, str], Iterable[M]] | None = None
    related: Sequence[Related] = ()
