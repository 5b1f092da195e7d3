"""Who calls: what a token says of its holder, for whoever decides what they may do."""
from dataclasses import dataclass

from control.kernel.access_rules import AccessRule


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls, as their token says. Immutable and shared between calls of one token."""

    user_id: str
    user_name: str = ""
    user_domain_id: str = ""
    project_id: str = ""             # "" unless the token is project-scoped
    project_name: str = ""
    project_domain_id: str = ""
    domain_id: str = ""              # "" unless domain-scoped
    system: bool = False             # system-scoped
    roles: frozenset[str] = frozenset()    # role names, implied ones included
    audit_id: str = ""
    access_rules: tuple[AccessRule, ...] | None = None    # the only requests that they may make; None: any

    is_delegated: bool = False       # by somebody's leave (a trust, an access token), or with a program's restricted secret

    @property
    def is_admin(self) -> bool:
        """May see and change what belongs to any project."""
        return "admin" in self.roles
