"""What a request to identity is about, in Keystone's names, for policy rules: "target.user.domain_id", "target.domain_id"."""
from typing import Any

from google.protobuf.message import Message

from control.identity import access
from control.identity.model import GROUP, PROJECT, ROLE, USER
from control.kernel.caller import Caller
from control.kernel.database import Database

_NOUNS = ("user", "project", "group", "role", "domain")


class Targets:
    """A kernel.policy.Finder. What does not exist is nobody's: rules that ask for its domain refuse."""

    def __init__(self, db: Database):
        self._db = db

    def __call__(self, request: Any, caller: Caller, key: str) -> str | None:
        noun, _, what = key.partition(".")
        if key == "domain_id":
            # Of all that the request names: what is of two domains is of none.
            found = {self._domain_id(request, caller, noun) for noun in _NOUNS} - {None}
            return found.pop() if len(found) == 1 else None
        if noun not in _NOUNS:
            return None
        if what == "domain_id":
            return self._domain_id(request, caller, noun)
        if what == "id":
            return getattr(request, f"{noun}_id", "") or None
        found = self._found(noun, getattr(request, f"{noun}_id", ""))
        return getattr(found, what, None) if what == "name" else None

    def _domain_id(self, request: Any, caller: Caller, noun: str) -> str | None:
        """The domain of what a request names, or, for what it creates, the one that it will be in."""
        identifier = getattr(request, f"{noun}_id", "")
        if noun == "domain":
            return identifier or None
        if identifier:
            return getattr(self._found(noun, identifier), "domain_id", "") or None
        created = getattr(request, noun, None)
        if isinstance(created, Message) and "domain_id" in created.DESCRIPTOR.fields_by_name and noun != "role":
            return created.domain_id or access.home_domain(caller)  # type: ignore[attr-defined]
        return None

    def _found(self, noun: str, identifier: str) -> Any:
        if not identifier:
            return None
        match noun:
            case "user":
                holder = self._db.get(USER, identifier)
                return holder.user if holder else None
            case "group":
                return self._db.get(GROUP, identifier)
            case "role":
                return self._db.get(ROLE, identifier)
        record = self._db.get(PROJECT, identifier)
        return record.project if record else None
