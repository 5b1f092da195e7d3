"""Which roles somebody has on what: their own, their groups', the implied and the inherited ones."""
import time
from collections.abc import Iterable, Iterator

from control.identity.model import ASSIGNMENT, IMPLICATION, MEMBER, PROJECT, ROLE, pair
from control.kernel.database import Database
from protos.identity.v1.projects_pb2 import Project
from protos.identity.v1.records_pb2 import Assignment, Membership
from protos.identity.v1.roles_pb2 import Role

SYSTEM = ("system", "all")


def lasts(member: Membership | None) -> bool:
    """Whether a membership counts: there is one, and it has not ended by itself."""
    if member is None or not member.HasField("expires_at"):
        return member is not None
    return member.expires_at.ToMicroseconds() > time.time_ns() // 1000


def memberships(db: Database, index: str, value: str) -> list[Membership]:
    """The memberships of a "user" or of a "group" that count now."""
    return [member for member in db.cache.by(MEMBER, index, value) if lasts(member)]


def actors(db: Database, user_id: str) -> list[tuple[str, str]]:
    """A user and the groups that they are in."""
    return [("user", user_id), *(("group", member.group_id) for member in memberships(db, "user", user_id))]


def ancestors(db: Database, project: Project) -> Iterator[Project]:
    """The projects above one, nearest first; the last is its domain."""
    seen = {project.id}
    above = project.parent_id or project.domain_id
    while above and above not in seen:
        seen.add(above)
        record = db.get(PROJECT, above)
        if record is None:
            return
        yield record.project
        above = record.project.parent_id or record.project.domain_id


def scopes(db: Database, target_type: str, target_id: str) -> list[tuple[str, str, bool]]:
    """Where an assignment has to be to count on a target: (type, id, inherited)."""
    found = [(target_type, target_id, False)]
    if target_type == "project" and (record := db.get(PROJECT, target_id)):
        found += [("domain" if above.is_domain else "project", above.id, True) for above in ancestors(db, record.project)]
    return found


def expand(db: Database, role_ids: Iterable[str]) -> list[Role]:
    """Roles with all that they imply, by name; roles that are private to a domain count by what they imply alone."""
    due, known = list(role_ids), set()
    while due:
        role_id = due.pop()
        if role_id not in known:
            known.add(role_id)
            due += [row.implied_role_id for row in db.cache.by(IMPLICATION, "prior", role_id)]
    roles = (db.get(ROLE, role_id) for role_id in known)
    return sorted((role for role in roles if role is not None and not role.domain_id), key=lambda role: role.name)


def roles_on(db: Database, user_id: str, target_type: str, target_id: str) -> list[Role]:
    """Every role that a user has on a target, by name; [] for none."""
    places = scopes(db, target_type, target_id)
    return expand(db, {row.role_id for actor in actors(db, user_id) for place in places
                       for row in db.cache.by(ASSIGNMENT, "pair", pair(actor, place))})


def assignments_of(db: Database, user_id: str) -> Iterator[Assignment]:
    """Every assignment to a user or one of their groups."""
    for actor_type, actor_id in actors(db, user_id):
        yield from db.cache.by(ASSIGNMENT, "actor", f"{actor_type}/{actor_id}")


def reachable(db: Database, user_id: str, target_type: str) -> list[Project]:
    """The enabled projects, or domains, that a user has a role on."""
    found: set[str] = set()
    for row in assignments_of(db, user_id):
        if not row.inherited and row.target_type == target_type:
            found.add(row.target_id)
        elif row.inherited and target_type == "project":
            found.update(below(db, row.target_id))
    records = (db.get(PROJECT, identifier) for identifier in found)
    return [record.project for record in records if record is not None and record.project.enabled]


def below(db: Database, project_id: str) -> Iterator[str]:
    """Ids of every project under a project or a domain."""
    for record in db.cache.by(PROJECT, "parent", project_id):
        yield record.project.id
        yield from below(db, record.project.id)
