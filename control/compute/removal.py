"""The one way that a server's record goes: with its ports, its allocation and its quota charge, in one commit.

Its history goes with it where it is short; of a longer one the rest stays behind for a moment, until the reconciler takes what
belongs to no server.
"""
from control.compute import model
from control.compute.model import leaving
from control.compute.neighbours import Placer, Ports
from control.kernel import quota
from control.kernel.database import Transaction
from protos.compute.v1.records_pb2 import ServerRecord

#: Rows of history that go with their server: a commit holds so many beside all else.
ROWS = 16


def abandon(tx: Transaction, server: ServerRecord, placer: Placer) -> bool:
    """Have a server not leave for its target, and the target clean up; whether it was about to."""
    if not leaving(server):
        return False
    placer.release(tx, server.relocation.id)
    server.leftovers.append(server.relocation.target)
    server.ClearField("relocation")
    return True


def remove(tx: Transaction, server: ServerRecord, ports: Ports, placer: Placer) -> None:
    """Let a server go that its host has nothing left of, or that never had one."""
    ports.release(tx, server.id)
    placer.release(tx, server.id)
    quota.charge(tx, model.QUOTA, server.project_id, model.DEFAULT_QUOTAS,
                 **{name: -amount for name, amount in model.charge_of(server).items()})
    for row in tx.rows(model.ACTION, "server", server.id)[:ROWS]:
        tx.delete(model.ACTION, row.server_id, row.request_id)
    tx.delete(model.DECISION, server.id)
    tx.delete(model.SERVER, server.id)
