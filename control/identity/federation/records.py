"""What all records of federation have in common: ids that their makers choose, descriptions, and how updates change them."""
from collections.abc import Iterable
from typing import Any

from control.identity.model import MAX_DESCRIPTION
from control.kernel.errors import Conflict, Invalid

MAX_ID = 64


def check_id(noun: str, identifier: str) -> None:
    if not 1 <= len(identifier) <= MAX_ID or "/" in identifier or not identifier.isprintable() or not identifier.strip():
        raise Invalid(f"identity.{noun.replace(' ', '_')}.id",
                      f"Invalid input for field 'id': a {noun}'s id has 1 to {MAX_ID} printable characters, none of them '/'.")


def check_description(resource: Any) -> None:
    if len(resource.description) > MAX_DESCRIPTION:
        raise Invalid("identity.description", f"Invalid input for field 'description': at most {MAX_DESCRIPTION} characters.")


def taken(noun: str, identifier: str) -> Conflict:
    return Conflict(f"identity.{noun.replace(' ', '_')}.duplicate",
                    f"Conflict occurred attempting to store {noun} - Duplicate entry found with ID {identifier}.")


def change(resource: Any, wanted: Any, paths: Iterable[str], fixed: Iterable[str] = ("id",)) -> None:
    """Change the fields of a resource that an update names. Raises Invalid where one of `fixed` would change."""
    for path in paths:
        field = resource.DESCRIPTOR.fields_by_name.get(path)
        if field is None or path == "links":
            continue
        if path in fixed:
            if getattr(wanted, path) not in ("", getattr(resource, path)):
                raise Invalid(f"identity.immutable.{path}", f"Cannot change {path}: it is fixed once the resource is made.")
            continue
        resource.ClearField(path)
        if field.is_repeated:
            getattr(resource, path).extend(getattr(wanted, path))
        elif field.message_type:
            getattr(resource, path).CopyFrom(getattr(wanted, path))
        elif not field.has_presence or wanted.HasField(path):
            setattr(resource, path, getattr(wanted, path))
