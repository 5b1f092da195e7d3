"""Projects above and below a project: which of them may be switched, and how an answer shows them.

A disabled project has no enabled one below it.
"""
from collections.abc import Callable, Iterable

from google.protobuf.json_format import MessageToDict, ParseDict

from control.identity import access
from control.identity.holdings import ancestors, below, reachable
from control.identity.model import PROJECT
from control.kernel.database import Database
from control.kernel.errors import Invalid
from control.kernel.rpc import Call
from protos.brume.v1.options_pb2 import QueryParameter
from protos.identity.v1.projects_pb2 import Project

_SHOWN = ("id", "name", "domain_id", "description", "parent_id", "enabled", "is_domain")
_ASKED = frozenset({"parents_as_list", "parents_as_ids", "subtree_as_list", "subtree_as_ids"})
_NO = frozenset({"0", "false", "no", "off", "n", "f"})


def check_switch(db: Database, project: Project) -> None:
    """Raise Denied where a project cannot be as enabled or disabled as it is about to be."""
    if project.is_domain:
        return
    if project.enabled:
        if any(not above.enabled for above in ancestors(db, project) if not above.is_domain):
            raise access.forbidden("identity.project.parents", f"cannot enable project {project.id}: one above it is disabled")
    elif any(record.project.enabled for identifier in below(db, project.id) if (record := db.get(PROJECT, identifier))):
        raise access.forbidden("identity.project.subtree", f"cannot disable project {project.id}: one below it is enabled")


def with_family(db: Database, project: Project, query: Iterable[QueryParameter], call: Call) -> Project:
    """A project with those above and below it that a query asks for."""
    wanted = {parameter.key for parameter in query if parameter.key in _ASKED
              and (list(parameter.values) or [""])[0].lower() not in _NO}
    if not wanted:
        return project
    for what in ("parents", "subtree"):
        if {f"{what}_as_list", f"{what}_as_ids"} <= wanted:
            raise Invalid("identity.project.family", f"Cannot use {what}_as_list and {what}_as_ids at the same time.")
    shown = Project()
    shown.CopyFrom(project)
    visible = _visible(db, call)
    if "parents_as_ids" in wanted:
        ids: dict | None = None
        for above in reversed(list(ancestors(db, project))):
            ids = {above.id: ids}
        ParseDict(ids, shown.parents)
    if "subtree_as_ids" in wanted:
        ParseDict(_ids_below(db, project.id), shown.subtree)
    if "parents_as_list" in wanted:
        ParseDict([_row(above, call) for above in ancestors(db, project) if not above.is_domain and visible(above.id)],
                  shown.parents)
    if "subtree_as_list" in wanted:
        ParseDict([_row(record.project, call) for identifier in below(db, project.id)
                   if visible(identifier) and (record := db.get(PROJECT, identifier))], shown.subtree)
    return shown


def _visible(db: Database, call: Call) -> Callable[[str], bool]:
    if access.reads_all(call.caller):
        return lambda identifier: True
    own = {project.id for project in reachable(db, call.caller.user_id, "project")}
    return own.__contains__


def _ids_below(db: Database, project_id: str) -> dict | None:
    return {record.project.id: _ids_below(db, record.project.id) for record in db.cache.by(PROJECT, "parent", project_id)} or None


def _row(project: Project, call: Call) -> dict:
    row = {name: getattr(project, name) for name in _SHOWN}
    row |= {"tags": list(project.tags), "options": MessageToDict(project.options),
            "links": {"self": f"{call.base_url}/v3/projects/{project.id}"}}
    return {"project": row}
