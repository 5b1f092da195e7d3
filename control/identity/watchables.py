"""Identity's kinds that can be watched, by those who may list them all: what an LDAP directory has is not among them."""
from collections.abc import Iterable

from control.identity import access
from control.identity.model import GROUP, PROJECT, ROLE, USER, domain_of
from control.kernel.caller import Caller
from control.kernel.watchable import EVERYBODY, Watchable


def watchables() -> list[Watchable]:
    """What users of identity can watch."""
    return [
        Watchable("users", USER, "/identity.v1.Users/ListUsers", lambda record, call: record.user,
                  audience=lambda reader, record: [EVERYBODY, _domain(record.user.domain_id)],
                  listens=_all_or_domain("list_users")),
        Watchable("groups", GROUP, "/identity.v1.Groups/ListGroups", lambda group, call: group,
                  audience=lambda reader, group: [EVERYBODY, _domain(group.domain_id)], listens=_all_or_domain("list_groups")),
        Watchable("projects", PROJECT, "/identity.v1.Projects/ListProjects", lambda record, call: record.project,
                  audience=lambda reader, record: _listed(not record.project.is_domain), listens=_all("list_projects")),
        Watchable("domains", PROJECT, "/identity.v1.Domains/ListDomains", lambda record, call: domain_of(record.project),
                  audience=lambda reader, record: _listed(record.project.is_domain), listens=_all("list_domains")),
        Watchable("roles", ROLE, "/identity.v1.Roles/ListRoles", lambda role, call: role,
                  audience=lambda reader, role: _listed(not role.domain_id), listens=_all("list_roles")),
    ]


def _domain(domain_id: str) -> str:
    return f"domain/{domain_id}"


def _listed(is_listed: bool) -> Iterable[str] | None:
    return [EVERYBODY] if is_listed else None


def _all(action: str):
    def listens(caller: Caller) -> Iterable[str]:
        if access.reads_all(caller):
            return [EVERYBODY]
        raise access.denied(action)
    return listens


def _all_or_domain(action: str):
    def listens(caller: Caller) -> Iterable[str]:
        if access.reads_domain(caller) and not access.reads_all(caller):
            return [_domain(caller.domain_id)]
        return _all(action)(caller)
    return listens
