"""Who may see a server, and whose quota counts: what is not the caller's project's is not there for them."""
from control.compute import model
from control.kernel import quota
from control.kernel.caller import Caller
from control.kernel.database import Database, Transaction
from control.kernel.errors import Denied, NotFound
from protos.compute.v1.records_pb2 import ServerRecord


def find_server(reads: Database | Transaction, caller: Caller, server_id: str) -> ServerRecord:
    """A server of the caller's project, or any for an admin; from a transaction a copy. Raises NotFound."""
    server = reads.get(model.SERVER, server_id)
    if server is None or not (caller.is_admin or server.project_id == caller.project_id):
        raise NotFound("compute.server", f"Instance {server_id[:80]} could not be found.")
    return server


def project_for(caller: Caller, project_id: str) -> str:
    """The project that a call is about: the caller's, or for an admin any. Raises Denied."""
    if project_id and project_id != caller.project_id and not caller.is_admin:
        raise Denied("compute.project", "You may see your own project only.")
    return project_id or caller.project_id


def user_for(caller: Caller, user_id: str) -> str:
    """The user that a call is about: the caller, or for an admin anyone. Raises Denied."""
    if user_id and user_id != caller.user_id and not caller.is_admin:
        raise Denied("compute.user", "Only an admin may see or change what belongs to another user.")
    return user_id or caller.user_id


def limit(reads: Database | Transaction, project_id: str, resource: str) -> int:
    """A project's limit of a resource; -1 for none."""
    return quota.limit_of(quota.ledger_of(reads, model.QUOTA, project_id), model.DEFAULT_QUOTAS, resource)
