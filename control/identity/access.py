"""Who may read what of identity, beyond the policy that each rpc has."""
from collections.abc import Iterable

from control.kernel.caller import Caller
from control.kernel.errors import Denied
from control.kernel.rpc import Call
from protos.brume.v1.options_pb2 import QueryParameter


def reads_all(caller: Caller) -> bool:
    """Admins, and readers of the system, see everything."""
    return caller.is_admin or (caller.system and "reader" in caller.roles)


def reads_domain(caller: Caller) -> bool:
    """Readers of a domain see what is in it."""
    return bool(caller.domain_id) and "reader" in caller.roles


def require_reader(call: Call, action: str) -> None:
    if not call.decided and not reads_all(call.caller):
        raise denied(action)


def require_self(call: Call, user_id: str, action: str) -> None:
    """The user themselves, or who reads all. Whether another user exists is nobody else's business."""
    if call.caller.user_id != user_id:
        require_reader(call, action)


def require_undelegated(call: Call, action: str) -> None:
    """What nobody can do with a token that somebody else's leave is behind, or a program's secret: it would reach further."""
    if call.caller.is_delegated:
        raise forbidden("identity.delegated", f"a token that was got by delegation cannot {action}")


def require_name(filters: Iterable[QueryParameter], action: str) -> None:
    """A list that asks for one name: clients that know a thing of their own by its name find it so, and nothing else.

    Without it, who does not read all is refused, as in Keystone.
    """
    if not any(parameter.key == "name" for parameter in filters):
        raise denied(action)


def denied(action: str) -> Denied:
    return forbidden("policy", f"identity:{action}")


def forbidden(reason: str, why: str) -> Denied:
    """A refusal in Keystone's words."""
    return Denied(reason, f"You are not authorized to perform the requested action: {why}.")


def home_domain(caller: Caller) -> str:
    """The domain that a new thing is in when its maker names none."""
    return caller.domain_id or caller.project_domain_id or caller.user_domain_id
