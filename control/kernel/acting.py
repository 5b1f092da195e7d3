"""Who acts: what the audit journal says of a change beside the change itself.

The dispatcher sets it for each call, a controller for its workers; a commit takes it along with its writes.
"""
import asyncio
import contextvars
from typing import NamedTuple


class Author(NamedTuple):
    """Who decides, and by which call."""

    actor: str = ""            # "user:<id>", "agent:<host>", "reconciler:<name>", "control:<job>" or "anonymous"
    request_id: str = ""
    project_id: str = ""
    rpc: str = ""


NOBODY = Author()

author: contextvars.ContextVar[Author] = contextvars.ContextVar("author", default=NOBODY)

class Effects:
    """Whether a call has done something that cannot be done twice: a commit, or anything beside the store."""

    any = False


effects: contextvars.ContextVar[Effects | None] = contextvars.ContextVar("effects", default=None)


def has_effect() -> None:
    """Note that of the call that runs now."""
    if (noted := effects.get()) is not None:
        noted.any = True


def acting() -> Author:
    """Who acts now. A job that nobody named is known by the coroutine that its task runs."""
    given = author.get()
    if given.actor:
        return given
    task = asyncio.current_task()
    job = getattr(task.get_coro() if task else None, "__qualname__", "")
    return Author(f"control:{job}" if job else "control")
