"""What the operator asks of passwords and logins, and Keystone's words for what does not comply.

Nothing here awaits; what is asked of a user can be lifted for single ones by their options.
"""
import re
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from google.protobuf.struct_pb2 import Struct, Value
from google.protobuf.timestamp_pb2 import Timestamp

from control.kernel.errors import Invalid, Unauthenticated
from protos.identity.v1.records_pb2 import Login, UserRecord
from protos.identity.v1.users_pb2 import User

_FLAGS = ("ignore_change_password_upon_first_use", "ignore_password_expiry", "ignore_lockout_failure_attempts",
          "ignore_user_inactivity", "lock_password", "multi_factor_auth_enabled")
RULES = "multi_factor_auth_rules"

#: Rules of one user, methods of one rule, and characters of one method at most.
MAX_RULES, MAX_METHODS, MAX_METHOD = 20, 10, 64

#: Former passwords kept at most, whatever is asked: each costs a hash's time when a password is changed.
MAX_HISTORY = 24


@dataclass(frozen=True)
class Compliance:
    """The options of Keystone's section security_compliance. 0 and "" ask nothing."""

    lockout_failure_attempts: int = 10
    lockout_duration: int = 1800              # seconds
    password_expires_days: int = 0
    unique_last_password_count: int = 0       # the present one counts
    minimum_password_age: int = 0             # days
    password_regex: str = ""
    password_regex_description: str = ""
    change_password_upon_first_use: bool = False
    disable_user_account_days_inactive: int = 0

    # Logins

    def counts(self, user: User) -> bool:
        """Whether wrong passwords of a user are counted."""
        return bool(self.lockout_failure_attempts) and not flag(user, "ignore_lockout_failure_attempts")

    def locked(self, user: User, login: Login | None, now: Timestamp) -> bool:
        """Whether a user has failed so often that they must wait."""
        return (login is not None and self.counts(user) and login.failures >= self.lockout_failure_attempts
                and not self.forgotten(login, now))

    def forgotten(self, login: Login, now: Timestamp) -> bool:
        """Whether a user's failures are so long ago that they count no more."""
        return login.failed_at.seconds + self.lockout_duration <= now.seconds

    def inactive(self, record: UserRecord, login: Login | None, now: Timestamp) -> bool:
        """Whether a user has been away for so long that their account is closed."""
        days = self.disable_user_account_days_inactive
        if not days or flag(record.user, "ignore_user_inactivity"):
            return False
        seen = max(login.active_at.seconds if login is not None else 0, record.password_set_at.seconds)
        return bool(seen) and seen + days * 86400 < now.seconds

    # Passwords

    def check_text(self, password: str) -> None:
        """Raises Invalid for a password that is not of the form that is asked."""
        if self.password_regex and not re.match(self.password_regex, password):
            raise Invalid("identity.password.requirements", "The password does not match the requirements: "
                          f"{self.password_regex_description or self.password_regex}.")

    def check_change(self, record: UserRecord, now: Timestamp) -> None:
        """Raises Invalid where a user may not change their own password now."""
        if flag(record.user, "lock_password"):
            raise Invalid("identity.password.locked", "You cannot change your password at this time due to password policy "
                          "disallowing password changes. Please contact your administrator to reset your password.")
        if self.minimum_password_age and record.password_is_own and record.HasField("password_set_at"):
            left = record.password_set_at.seconds + self.minimum_password_age * 86400 - now.seconds
            if left > 0:
                raise Invalid("identity.password.age", "You cannot change your password at this time due to the minimum password "
                              f"age. Once you change your password, it must be used for {self.minimum_password_age} day(s) "
                              f"before it can be changed. Please try again in {left // 86400} day(s) or contact your "
                              f"administrator to reset your password.")

    def used_before(self, record: UserRecord) -> list[str]:
        """Hashes that a new password must not match."""
        count = min(self.unique_last_password_count, MAX_HISTORY)
        return [*record.former_password_hashes, record.password_hash][-count:] if count and record.password_hash else []

    def repeated(self) -> Invalid:
        return Invalid("identity.password.history", "The new password cannot be identical to a previous password. The total "
                       f"number which includes the new password must be unique is {self.unique_last_password_count}.")

    def set_password(self, record: UserRecord, encoded: str, now: Timestamp, *, own: bool) -> None:
        """Give a user a new password. `own`: by themselves."""
        if record.password_hash:
            record.former_password_hashes.append(record.password_hash)
        keep = max(min(self.unique_last_password_count, MAX_HISTORY) - 1, 0)
        del record.former_password_hashes[:len(record.former_password_hashes) - keep]
        record.password_hash, record.password_is_own = encoded, own
        record.password_set_at.CopyFrom(now)
        self.set_expiry(record)

    def set_expiry(self, record: UserRecord) -> None:
        """Say when a user's password expires, by what is asked now and by their options."""
        user = record.user
        user.ClearField("password_expires_at")
        if not record.HasField("password_set_at") or flag(user, "ignore_password_expiry"):
            return
        if (self.change_password_upon_first_use and not record.password_is_own
                and not flag(user, "ignore_change_password_upon_first_use")):
            user.password_expires_at.CopyFrom(record.password_set_at)
        elif self.password_expires_days:
            user.password_expires_at.FromDatetime(
                record.password_set_at.ToDatetime() + timedelta(days=self.password_expires_days))


def expired(user: User, now: Timestamp) -> Unauthenticated | None:
    """The refusal of a user whose password was right and has expired; None where it has not."""
    if not user.HasField("password_expires_at") or user.password_expires_at.ToMicroseconds() > now.ToMicroseconds():
        return None
    return Unauthenticated("auth.password.expired", f"The password is expired and needs to be changed for user: {user.id}.")


# A user's options

def flag(user: User, name: str) -> bool:
    """Whether a user has an option that says yes or no."""
    return name in user.options.fields and user.options.fields[name].bool_value


def factors(user: User) -> list[frozenset[str]]:
    """The sets of methods of which a user has to prove one whole; [] for any method."""
    if not flag(user, "multi_factor_auth_enabled") or RULES not in user.options.fields:
        return []
    return [frozenset(method.string_value for method in rule.list_value.values)
            for rule in user.options.fields[RULES].list_value.values]


def merge_options(before: Struct, wanted: Struct) -> Struct:
    """A user's options after an update: those that are null are dropped. Raises Invalid for one that does not exist."""
    merged = Struct()
    merged.CopyFrom(before)
    for name, value in wanted.fields.items():
        if name not in (*_FLAGS, RULES):
            raise _invalid(f"there is no option {name[:64]!r}")
        if value.WhichOneof("kind") == "null_value":
            if name in merged.fields:
                del merged.fields[name]
            continue
        if name in _FLAGS and value.WhichOneof("kind") != "bool_value":
            raise _invalid(f"{name} must be a boolean")
        if name == RULES:
            _check_rules(value)
        merged.fields[name].CopyFrom(value)
    return merged


def _check_rules(value: Value) -> None:
    rules: Any = value.list_value.values
    if value.WhichOneof("kind") != "list_value" or len(rules) > MAX_RULES:
        raise _invalid(f"{RULES} must be a list of at most {MAX_RULES} lists of methods")
    for rule in rules:
        methods = rule.list_value.values
        if rule.WhichOneof("kind") != "list_value" or not 0 < len(methods) <= MAX_METHODS or not all(
                0 < len(method.string_value) <= MAX_METHOD for method in methods):
            raise _invalid(f"each of {RULES} must have 1 to {MAX_METHODS} names of methods")


def _invalid(why: str) -> Invalid:
    return Invalid("identity.user.options", f"Invalid input for field 'options': {why}.")
