"""More than one method to log in: passcodes of devices, which methods a user has to prove together, and receipts.

A receipt says what has been proven so far, for a second request. It is sealed as tokens are and good for nothing else.
"""
import base64
import binascii
import hmac
import time
from typing import Any

from cryptography.hazmat.primitives.hashes import SHA1
from cryptography.hazmat.primitives.twofactor.totp import TOTP

from control.identity.compliance import factors
from control.identity.model import PROJECT, USER
from control.identity.sealing import Sealer
from control.identity.sessions import refused
from control.identity.vault import secrets_of
from control.kernel.database import Database
from control.kernel.errors import Unauthenticated
from protos.identity.v1.records_pb2 import TokenPayload

#: RFC 6238, as devices have it: six digits, which change every 30 seconds.
DIGITS, STEP = 6, 30

#: Steps before the present one whose passcode is taken: clocks differ, and people type slowly.
GRACE = 1

#: Seconds that a receipt lasts.
LIFETIME = 300

HEADER = "Openstack-Auth-Receipt"


class Insufficient(Unauthenticated):
    """What was proven is right and not enough; the answer says what else would be, and has a receipt."""


class SecondFactor:
    """Passcodes, rules and receipts."""

    def __init__(self, db: Database, sealer: Sealer):
        self._db = db
        self._sealer = sealer

    def step_of(self, user_id: str, passcode: str) -> int:
        """The 30 seconds, counted from 1970, that a passcode of a user is of; 0 for one that is wrong now."""
        now = int(time.time()) // STEP
        given = passcode.encode("utf-8", "replace")
        for seed in secrets_of(self._db, user_id, "totp"):
            device = _device(seed)
            for step in range(now, now - GRACE - 1, -1):
                if device is not None and hmac.compare_digest(device.generate(step * STEP), given):
                    return step
        return 0

    def open(self, receipt: str, user_id: str) -> set[Any]:
        """The methods that a user has proven before. Raises Unauthenticated for what is no receipt of theirs."""
        payload = self._sealer.open(receipt)
        if payload.receipt_expires_at <= time.time_ns() // 1000 or payload.user_id != user_id:
            raise refused("auth.receipt")
        record = self._db.get(USER, user_id)
        if record is None or payload.issued_at <= record.revoked_before.ToMicroseconds():
            raise refused("auth.receipt")
        return set(payload.methods)

    def require(self, user_id: str, methods: dict[Any, str]) -> None:
        """Raises Insufficient where a user has rules and the methods (number -> name) satisfy none of them."""
        record = self._db.get(USER, user_id)
        rules = factors(record.user) if record is not None else []
        if record is None or not rules or any(rule <= set(methods.values()) for rule in rules):
            return
        issued = time.time_ns() // 1000
        ends = issued + LIFETIME * 1_000_000
        receipt = self._sealer.seal(TokenPayload(user_id=user_id, methods=sorted(methods), issued_at=issued,
                                                 receipt_expires_at=ends))
        domain = self._db.get(PROJECT, record.user.domain_id)
        error = Insufficient("auth.receipt", "Additional authentications steps required.")
        error.headers = ((HEADER, receipt),)
        error.document = {
            "receipt": {"methods": sorted(methods.values()), "expires_at": _text(ends), "issued_at": _text(issued),
                        "user": {"id": user_id, "name": record.user.name, "domain": {
                            "id": record.user.domain_id, "name": domain.project.name if domain is not None else ""}}},
            "required_auth_methods": [sorted(rule) for rule in rules]}
        raise error


def _device(seed: str) -> TOTP | None:
    """What makes the passcodes of a base32 seed; None for what is no seed."""
    try:
        key = base64.b32decode(seed.strip().replace(" ", "").upper() + "=" * (-len(seed.strip().replace(" ", "")) % 8))
        return TOTP(key, DIGITS, SHA1(), STEP, enforce_key_length=False)  # noqa: S303 - what devices have
    except (binascii.Error, ValueError):
        return None


def _text(micros: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(micros // 1_000_000)) + f".{micros % 1_000_000:06d}Z"
