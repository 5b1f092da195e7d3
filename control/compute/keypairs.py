"""The key pairs' servicer: public keys of users. A private key that is made here is in one answer and nowhere else."""
import base64
import binascii
import hashlib
import re
import zlib

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from google.protobuf.empty_pb2 import Empty

from control.compute import access, model
from control.compute.model import KEYPAIR
from control.kernel import clock, listing, quota
from control.kernel.database import Database, Transaction
from control.kernel.errors import Conflict, Invalid, NotFound
from control.kernel.rpc import Call
from protos.compute.v1 import keypairs_pb2 as pb
from protos.compute.v1.records_pb2 import KeyPairRecord

MAX_KEY = 16 * 1024

_NAME = re.compile(r"[A-Za-z0-9 _@.-]{1,255}\Z")


class KeyPairs:
    """Servicer of compute.v1.KeyPairs."""

    def __init__(self, database: Database):
        self._database = database

    async def CreateKeyPair(self, request: pb.CreateKeyPairRequest, call: Call) -> pb.CreateKeyPairResponse:
        new = request.keypair
        user_id = access.user_for(call.caller, new.user_id)
        if not _NAME.match(new.name):
            raise Invalid("compute.keypair.name", "Keypair data is invalid: a name has 1 to 255 letters, digits, spaces "
                                                  "and '-_@.'.")
        if new.type not in ("", "ssh"):
            raise Invalid("compute.keypair.type", f"Key pairs have the type 'ssh' here, not {new.type[:40]!r}.")
        private, public = "", new.public_key.strip()
        if not public:
            if call.microversion is not None and call.microversion >= (2, 92):
                raise Invalid("compute.keypair.public_key", "'public_key' is a required property: make the pair with ssh-keygen.")
            private, public = generate(f"Generated-by-Brume {new.name}")
        pair = KeyPairRecord(name=new.name, user_id=user_id, type="ssh", public_key=public, fingerprint=fingerprint(public),
                             created_at=clock.now())
        most = access.limit(self._database, call.caller.project_id, "key_pairs")

        def decide(tx: Transaction) -> None:
            if tx.get(KEYPAIR, user_id, new.name) is not None:
                raise Conflict("compute.keypair.name", f"Key pair '{new.name}' already exists.")
            quota.charge(tx, model.USER_QUOTA, user_id, {"key_pairs": most}, key_pairs=1)
            tx.put(KEYPAIR, pair)

        await self._database.transact(decide, serial=quota.serial(model.USER_QUOTA, user_id))
        return pb.CreateKeyPairResponse(keypair=pb.CreatedKeyPair(
            name=pair.name, public_key=public, fingerprint=pair.fingerprint, user_id=user_id, type=pair.type,
            private_key=private or None))

    async def ListKeyPairs(self, request: pb.ListKeyPairsRequest, call: Call) -> pb.ListKeyPairsResponse:
        pairs = self._database.cache.by(KEYPAIR, "user", access.user_for(call.caller, request.user_id))
        page, marker = listing.page(pairs, limit=request.limit, marker=request.marker, id_of=lambda pair: pair.name)
        return pb.ListKeyPairsResponse(keypairs=map(summary, page), next_page_marker=marker)

    async def GetKeyPair(self, request: pb.GetKeyPairRequest, call: Call) -> pb.GetKeyPairResponse:
        pair = self._database.get(KEYPAIR, access.user_for(call.caller, request.user_id), request.keypair_name)
        if pair is None:
            raise _missing(request.keypair_name)
        return pb.GetKeyPairResponse(keypair=pb.KeyPair(
            name=pair.name, public_key=pair.public_key, fingerprint=pair.fingerprint, type=pair.type, user_id=pair.user_id,
            id=zlib.crc32(f"{pair.user_id}/{pair.name}".encode()) >> 1, created_at=pair.created_at))

    async def DeleteKeyPair(self, request: pb.DeleteKeyPairRequest, call: Call) -> Empty:
        user_id = access.user_for(call.caller, request.user_id)

        def decide(tx: Transaction) -> None:
            if tx.get(KEYPAIR, user_id, request.keypair_name) is None:
                raise _missing(request.keypair_name)
            tx.delete(KEYPAIR, user_id, request.keypair_name)
            quota.charge(tx, model.USER_QUOTA, user_id, {}, key_pairs=-1)

        await self._database.transact(decide, serial=quota.serial(model.USER_QUOTA, user_id))
        return Empty()


def summary(pair: KeyPairRecord) -> pb.ListKeyPairsResponse.Row:
    """A key pair as lists show it."""
    return pb.ListKeyPairsResponse.Row(keypair=pb.KeyPairSummary(
        name=pair.name, public_key=pair.public_key, fingerprint=pair.fingerprint, type=pair.type))


def _missing(name: str) -> NotFound:
    return NotFound("compute.keypair", f"Keypair {name[:80]} not found for your user.")


def generate(comment: str) -> tuple[str, str]:
    """A new Ed25519 pair: (private key in OpenSSH's format, public key in one line)."""
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption())
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return private.decode(), f"{public.decode()} {comment}"


def fingerprint(public_key: str) -> str:
    """MD5 of an SSH public key, as ssh-keygen -E md5 shows it. Raises Invalid where it is no such key."""
    parts = public_key.split(None, 2)
    if len(public_key) > MAX_KEY or "\n" in public_key or len(parts) < 2:
        raise Invalid("compute.keypair.public_key", f"Keypair data is invalid: public_key is one line '<type> <base64> "
                                                    f"[comment]' of at most {MAX_KEY} characters.")
    try:
        blob = base64.b64decode(parts[1], validate=True)
        if not parts[0].startswith("sk-"):       # keys in hardware: cryptography does not read all of them
            serialization.load_ssh_public_key(f"{parts[0]} {parts[1]}".encode())
    except (binascii.Error, ValueError, UnsupportedAlgorithm) as error:
        raise Invalid("compute.keypair.public_key",
                      f"Keypair data is invalid: failed to generate fingerprint: {error}") from error
    return hashlib.md5(blob, usedforsecurity=False).digest().hex(":")
