"""Serves access rules: the kinds of requests that a user's application credentials are limited to.

Rules of one user that say the same are one. A credential holds copies; a rule that one has cannot be deleted.
"""
import uuid
from collections.abc import Sequence

from google.protobuf.empty_pb2 import Empty

from control.identity import access
from control.identity.model import ACCESS_RULE, CREDENTIAL, USER, missing, require
from control.kernel.database import Database, Transaction
from control.kernel.errors import Invalid
from control.kernel.listing import page, select
from control.kernel.rpc import Call
from protos.identity.v1 import application_credentials_pb2 as pb
from protos.identity.v1.records_pb2 import AccessRuleRecord

#: Of one credential, of one user, and characters of a path.
MAX_RULES, MAX_HELD, MAX_PATH = 100, 1000, 1024

_VERBS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "COPY")


class AccessRules:
    """identity.v1.AccessRules."""

    def __init__(self, db: Database):
        self._db = db

    async def ListAccessRules(self, request: pb.ListAccessRulesRequest, call: Call) -> pb.ListAccessRulesResponse:
        require(self._db, USER, request.user_id)
        held = [record.access_rule for record in self._db.cache.by(ACCESS_RULE, "user", request.user_id)]
        rows, marker = page(select(held, request.filters), limit=request.limit, marker=request.marker)
        return pb.ListAccessRulesResponse(access_rules=rows, next_page_marker=marker)

    async def GetAccessRule(self, request: pb.GetAccessRuleRequest, call: Call) -> pb.GetAccessRuleResponse:
        return pb.GetAccessRuleResponse(access_rule=_of(self._db, request.user_id, request.access_rule_id).access_rule)

    async def DeleteAccessRule(self, request: pb.DeleteAccessRuleRequest, call: Call) -> Empty:
        def decide(transaction: Transaction) -> None:
            _of(transaction, request.user_id, request.access_rule_id)
            if any(rule.id == request.access_rule_id
                   for record in transaction.rows(CREDENTIAL, "user", request.user_id)
                   for rule in record.application_credential.access_rules):
                raise access.forbidden("identity.access_rule.used", f"access rule {request.access_rule_id} is in use by an "
                                                                    f"application credential")
            transaction.delete(ACCESS_RULE, request.access_rule_id)

        await self._db.transact(decide)
        return Empty()


def _of(reader: Database | Transaction, user_id: str, rule_id: str) -> AccessRuleRecord:
    record = reader.get(ACCESS_RULE, rule_id)
    if record is None or record.user_id != user_id:
        raise missing("access rule", rule_id)
    return record


def check_rules(rules: Sequence[pb.AccessRule]) -> None:
    """Raises Invalid for rules that a credential cannot have."""
    if len(rules) > MAX_RULES:
        raise _invalid(f"at most {MAX_RULES}")
    for rule in rules:
        if rule.id:
            continue
        if rule.method not in _VERBS:
            raise _invalid(f"a rule's method is one of {', '.join(_VERBS)}")
        if not rule.path.startswith("/") or len(rule.path) > MAX_PATH:
            raise _invalid(f"a rule's path begins with / and has at most {MAX_PATH} characters")
        if not 0 < len(rule.service) <= 255:
            raise _invalid("a rule's service is a catalog type of 1 to 255 characters")


def keep_rule(transaction: Transaction, user_id: str, wanted: pb.AccessRule) -> pb.AccessRule:
    """The rule of a user that is meant, made in the transaction where it is new. Raises NotFound for an id that is not theirs."""
    if wanted.id:
        rule = _of(transaction, user_id, wanted.id).access_rule
        transaction.guard_exists(ACCESS_RULE, rule.id)
        return rule
    held = transaction.rows(ACCESS_RULE, "user", user_id)
    for record in held:
        found = record.access_rule
        if (found.service, found.method, found.path) == (wanted.service, wanted.method, wanted.path):
            transaction.guard_exists(ACCESS_RULE, found.id)
            return found
    if len(held) >= MAX_HELD:
        raise access.forbidden("identity.access_rule.limit", f"a user has at most {MAX_HELD} access rules")
    rule = pb.AccessRule(id=uuid.uuid4().hex, path=wanted.path, method=wanted.method, service=wanted.service)
    transaction.put(ACCESS_RULE, AccessRuleRecord(access_rule=rule, user_id=user_id))
    return rule


def _invalid(why: str) -> Invalid:
    return Invalid("identity.access_rules", f"Invalid input for field 'access_rules': {why}.")
