"""A directory that is asked over LDAP, read-only.

Nothing here runs on the event loop: the library waits for its socket, so each question goes to one of a few threads. A
directory that is silent costs each caller its timeout and no more; when all threads wait, further callers are refused.
A bind always has a name and a password: without one, servers answer "success" to whoever asks.
"""
import asyncio
import contextlib
import logging
import queue
import ssl
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar
from urllib.parse import urlsplit

from control.identity.directory_settings import DirectorySettings
from control.identity.model import text
from control.kernel.errors import Unavailable
from protos.identity.v1.groups_pb2 import Group
from protos.identity.v1.users_pb2 import User

log = logging.getLogger(__name__)

T = TypeVar("T")

#: Questions at once, and callers that may wait to ask one.
WORKERS, QUEUE = 4, 64

#: Bytes of a password or a name that are worth asking about.
MAX_PASSWORD, MAX_NAME = 1024, 255

#: Result codes. A list that the directory cuts short is still a list; a wrong password has several names.
_OK, _TOO_MANY, _NO_SUCH_OBJECT, _ADMIN_LIMIT = 0, 4, 32, 11
_REFUSALS = frozenset({19, 34, 48, 49, 50, 53})

#: Matching rule of Active Directory: members of members, too.
_IN_CHAIN = ":1.2.840.113556.1.4.1941:"

Entry = tuple[str, dict[str, list[bytes]]]     # DN, values by attribute in lower case


class _Silent(Exception):
    """The directory gave no answer that can be used."""


class LdapDirectory:
    """directory.Directory of one domain."""

    def __init__(self, domain_id: str, settings: DirectorySettings):
        self._domain_id = domain_id
        self._settings = settings
        self._pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="directory")
        self._lock = threading.Lock()
        self._busy = 0
        self._idle: queue.LifoQueue[Any] = queue.LifoQueue(WORKERS)

    async def user(self, user_id: str) -> User | None:
        return await self._ask(lambda: _first(self._users(self._is("user_id_attribute", user_id), 1)))

    async def users(self, name: str = "") -> list[User]:
        if len(name) > MAX_NAME:
            return []
        return await self._ask(lambda: self._users(self._is("user_name_attribute", name) if name else ""))

    async def group(self, group_id: str) -> Group | None:
        return await self._ask(lambda: _first(self._groups(self._is("group_id_attribute", group_id), 1)))

    async def groups(self, name: str = "") -> list[Group]:
        if len(name) > MAX_NAME:
            return []
        return await self._ask(lambda: self._groups(self._is("group_name_attribute", name) if name else ""))

    async def groups_of(self, user_id: str) -> list[Group]:
        return await self._ask(lambda: self._groups_of(user_id))

    async def members_of(self, group_id: str) -> list[User]:
        return await self._ask(lambda: self._members_of(group_id))

    async def authenticate(self, user_id: str, password: str) -> bool:
        if not password or "\0" in password or len(password.encode()) > MAX_PASSWORD:
            return False
        return await self._ask(lambda: self._authenticate(user_id, password))

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        with contextlib.suppress(queue.Empty):
            while True:
                self._drop(self._idle.get_nowait())

    # Asking, off the event loop

    async def _ask(self, question: Callable[[], T]) -> T:
        """The answer to a question, or Unavailable within the timeout."""
        with self._lock:
            if self._busy >= WORKERS + QUEUE:
                raise Unavailable("identity.directory.busy", "Too many questions to the domain's directory at once: try again.")
            self._busy += 1
        future: Future[T] = self._pool.submit(question)
        future.add_done_callback(self._done)
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), self._settings.timeout)
        except (TimeoutError, _Silent) as error:
            why = str(error) or f"{self._settings.timeout} s passed"
            log.warning("directory of domain %s: no answer: %s", self._domain_id, why)
            raise Unavailable("identity.directory.silent", "The directory of this domain does not answer now.") from error

    def _done(self, future: Future) -> None:
        with self._lock:
            self._busy -= 1
        if not future.cancelled():
            future.exception()      # one that came after its caller had gone is of no interest

    # Questions, each on a thread of the pool

    def _users(self, condition: str, limit: int = 0) -> list[User]:
        return self._made(self._user, self._search(self._settings.user_tree_dn, self._user_filter(condition),
                                                   self._user_attributes, limit))

    def _groups(self, condition: str, limit: int = 0) -> list[Group]:
        if not self._settings.group_tree_dn:
            return []
        return self._made(self._group, self._search(self._settings.group_tree_dn, self._group_filter(condition),
                                                    self._group_attributes, limit))

    def _groups_of(self, user_id: str) -> list[Group]:
        settings = self._settings
        entry = self._entry_of(user_id)
        if entry is None:
            return []
        rule = _IN_CHAIN if settings.group_ad_nesting and not settings.group_members_are_ids else ""
        value = user_id if settings.group_members_are_ids else entry[0]
        return self._groups(f"({settings.group_member_attribute}{rule}={_escape(value)})")

    def _members_of(self, group_id: str) -> list[User]:
        settings = self._settings
        if not settings.group_tree_dn:
            return []
        member = settings.group_member_attribute
        group = _first(self._search(settings.group_tree_dn, self._group_filter(self._is("group_id_attribute", group_id)),
                                    [member], 1))
        if group is None:
            return []
        if settings.user_memberof_attribute and not settings.group_members_are_ids:
            rule = _IN_CHAIN if settings.group_ad_nesting else ""
            return self._users(f"({settings.user_memberof_attribute}{rule}={_escape(group[0])})")
        deadline = time.monotonic() + settings.timeout
        found: list[User] = []
        for value in group[1].get(member.lower(), [])[:settings.list_limit]:
            if time.monotonic() > deadline:
                raise _Silent("a group has more members than can be read in time")
            name = value.decode(errors="replace")
            if settings.group_members_are_ids:
                found += self._users(self._is("user_id_attribute", name), 1)
            elif _below(name, settings.user_tree_dn):
                found += self._made(self._user, self._search(name, self._user_filter(""), self._user_attributes, 1, base=True))
        return found

    def _authenticate(self, user_id: str, password: str) -> bool:
        entry = self._entry_of(user_id)
        if entry is None or not entry[0]:
            return False
        with self._connected() as connection:
            # As bytes: prepared as a text, one of invisible characters would become empty, and so be right for everybody.
            return self._bind(connection, entry[0], password.encode())

    def _entry_of(self, user_id: str) -> Entry | None:
        return _first(self._search(self._settings.user_tree_dn, self._user_filter(self._is("user_id_attribute", user_id)),
                                   [self._settings.user_id_attribute], 1))

    # Entries as users and groups

    @property
    def _user_attributes(self) -> list[str]:
        settings = self._settings
        return [*{name for name in (settings.user_id_attribute, settings.user_name_attribute, settings.user_mail_attribute,
                                    settings.user_description_attribute, settings.user_enabled_attribute) if name}]

    @property
    def _group_attributes(self) -> list[str]:
        settings = self._settings
        return [*{name for name in (settings.group_id_attribute, settings.group_name_attribute, settings.group_desc_attribute)
                  if name}]

    def _made(self, make: Callable[[Entry], T | None], entries: list[Entry]) -> list[T]:
        return [made for made in map(make, entries) if made is not None]

    def _user(self, entry: Entry) -> User | None:
        settings = self._settings
        identifier, name = self._value(entry, settings.user_id_attribute), self._value(entry, settings.user_name_attribute)
        if not identifier or not name or len(name) > MAX_NAME:
            return None
        user = User(id=identifier, name=name, domain_id=self._domain_id, enabled=self._enabled(entry))
        user.options.SetInParent()
        for key, attribute in (("email", settings.user_mail_attribute), ("description", settings.user_description_attribute)):
            if value := self._value(entry, attribute):
                user.extra[key].CopyFrom(text(value))
        return user

    def _group(self, entry: Entry) -> Group | None:
        settings = self._settings
        identifier, name = self._value(entry, settings.group_id_attribute), self._value(entry, settings.group_name_attribute)
        if not identifier or not name or len(name) > MAX_NAME:
            return None
        return Group(id=identifier, name=name, domain_id=self._domain_id,
                     description=self._value(entry, settings.group_desc_attribute))

    def _enabled(self, entry: Entry) -> bool:
        settings = self._settings
        value = self._value(entry, settings.user_enabled_attribute) if settings.user_enabled_attribute else ""
        if not value:
            return True
        if settings.user_enabled_mask:
            enabled = value.lstrip("-").isdigit() and not int(value) & settings.user_enabled_mask
        else:
            enabled = value.lower() not in ("false", "no", "0")
        return enabled != settings.user_enabled_invert

    def _value(self, entry: Entry, attribute: str) -> str:
        """The first value of an attribute, as text; "" for none."""
        values = entry[1].get(attribute.lower())
        if not values:
            return ""
        if attribute.lower() == "objectguid":
            return str(uuid.UUID(bytes_le=values[0])) if len(values[0]) == 16 else ""
        return values[0].decode(errors="replace")[:65535]

    # Filters

    def _is(self, option: str, value: str) -> str:
        attribute = getattr(self._settings, option)
        if attribute.lower() == "objectguid":
            try:
                value = "".join(f"\\{byte:02x}" for byte in uuid.UUID(value).bytes_le)
            except ValueError:
                return "(!(objectClass=*))"
            return f"({attribute}={value})"
        return f"({attribute}={_escape(value)})"

    def _user_filter(self, condition: str) -> str:
        return f"(&(objectClass={_escape(self._settings.user_objectclass)}){self._settings.user_filter}{condition})"

    def _group_filter(self, condition: str) -> str:
        return f"(&(objectClass={_escape(self._settings.group_objectclass)}){self._settings.group_filter}{condition})"

    # Talking LDAP

    def _search(self, tree: str, condition: str, attributes: list[str], limit: int = 0, *, base: bool = False) -> list[Entry]:
        """Entries below a DN, or the one of it, that match; at most `limit`, or what a list has."""
        import ldap3
        from ldap3.core.exceptions import LDAPException

        limit = limit or self._settings.list_limit
        below = ldap3.LEVEL if self._settings.query_scope == "one" else ldap3.SUBTREE
        for attempt in range(2):
            connection, used = self._service()
            try:
                entries = self._pages(connection, tree, condition, attributes, limit, ldap3.BASE if base else below)
            except (LDAPException, OSError) as error:
                self._drop(connection)
                if used and not attempt:
                    continue        # it had been closed while nobody used it
                raise _Silent(f"{type(error).__name__}: {error}") from error
            except BaseException:
                self._drop(connection)
                raise
            try:
                self._idle.put_nowait(connection)
            except queue.Full:
                self._drop(connection)
            return entries
        raise AssertionError("unreachable")

    def _pages(self, connection: Any, tree: str, condition: str, attributes: list[str], limit: int, scope: str) -> list[Entry]:
        deadline = time.monotonic() + self._settings.timeout
        entries: list[Entry] = []
        cookie = None
        while True:
            connection.search(tree, condition, scope, attributes=attributes, paged_cookie=cookie,
                              paged_size=min(self._settings.page_size, limit) if scope != "BASE" else None,
                              time_limit=max(1, int(self._settings.timeout)))
            code = connection.result["result"]
            if code == _NO_SUCH_OBJECT and scope == "BASE":
                return []
            if code not in (_OK, _TOO_MANY, _ADMIN_LIMIT):
                raise _Silent(f"search below {tree}: {connection.result['description']}")
            for row in connection.response or ():
                if row["type"] == "searchResEntry":
                    entries.append((row["dn"], {key.lower(): values for key, values in row["raw_attributes"].items()}))
            control = (connection.result.get("controls") or {}).get("1.2.840.113556.1.4.319", {})
            cookie = control.get("value", {}).get("cookie")
            if not cookie or len(entries) >= limit or code != _OK:
                if cookie:      # says that no further page is wanted, so that the directory forgets the search
                    connection.search(tree, condition, scope, attributes=attributes, paged_size=0, paged_cookie=cookie)
                return entries[:limit]
            if time.monotonic() > deadline:
                raise _Silent("a list takes too long")

    def _service(self) -> tuple[Any, bool]:
        """A connection that searches may use, and whether it was used before."""
        with contextlib.suppress(queue.Empty):
            return self._idle.get_nowait(), True
        connection = self._open()
        if not self._bind(connection, self._settings.user, self._settings.password.encode()):
            self._drop(connection)
            raise _Silent(f"{self._settings.user} is refused: see the domain's user and password_file")
        return connection, False

    @contextlib.contextmanager
    def _connected(self) -> Iterator[Any]:
        connection = self._open()
        try:
            yield connection
        finally:
            self._drop(connection)

    def _open(self) -> Any:
        """A connection, with TLS as set, that is not bound yet; to the first address that answers."""
        import ldap3
        from ldap3.core.exceptions import LDAPException

        settings = self._settings
        failure: Exception = OSError("no address")
        for url in settings.urls:
            parts = urlsplit(url)
            tls = ldap3.Tls(validate=ssl.CERT_REQUIRED, ca_certs_file=settings.tls_cacertfile or None,
                            version=ssl.PROTOCOL_TLS_CLIENT, sni=parts.hostname)
            server = ldap3.Server(parts.hostname or "", parts.port, use_ssl=parts.scheme == "ldaps", tls=tls,
                                  get_info=ldap3.NONE, connect_timeout=settings.timeout / 2)
            connection = ldap3.Connection(server, client_strategy=ldap3.SYNC, auto_bind=ldap3.AUTO_BIND_NONE, read_only=True,
                                          auto_referrals=False, check_names=False, raise_exceptions=False,
                                          receive_timeout=max(1, int(settings.timeout)))
            try:
                connection.open(read_server_info=False)
                if settings.use_tls and parts.scheme == "ldap" and not connection.start_tls(read_server_info=False):
                    raise OSError("it takes no StartTLS")
                return connection
            except (LDAPException, OSError) as error:
                self._drop(connection)
                failure = error
        raise _Silent(f"{type(failure).__name__}: {failure}") from failure

    def _bind(self, connection: Any, name: str, password: bytes) -> bool:
        """Bind a connection. False where the directory says no; _Silent where it says neither."""
        import ldap3
        from ldap3.core.exceptions import LDAPException

        if not name or not password:
            return False
        try:
            connection.user, connection.password, connection.authentication = name, password, ldap3.SIMPLE
            connection.bind(read_server_info=False)
        except (LDAPException, OSError) as error:
            raise _Silent(f"{type(error).__name__}: {error}") from error
        finally:
            connection.password = None
        code = connection.result["result"]
        if code != _OK and code not in _REFUSALS:
            raise _Silent(f"bind: {connection.result['description']}")
        return code == _OK

    @staticmethod
    def _drop(connection: Any) -> None:
        with contextlib.suppress(Exception):
            connection.unbind()


def _escape(value: str) -> str:
    """A value as a filter takes it (RFC 4515): what has a meaning there, and whatever is not printable ASCII, as \\xx."""
    return "".join(chr(byte) if 0x20 <= byte < 0x7F and byte not in b"*()\\" else f"\\{byte:02x}"
                   for byte in value.encode(errors="surrogatepass"))


def _below(name: str, tree: str) -> bool:
    """Whether a DN is below another one."""
    from ldap3.core.exceptions import LDAPException
    from ldap3.utils.dn import parse_dn

    try:
        parts, above = (parse_dn(each.lower(), strip=True) for each in (name, tree))
    except LDAPException:
        return False
    keys, wanted = [part[:2] for part in parts], [part[:2] for part in above]
    return len(keys) > len(wanted) and keys[len(keys) - len(wanted):] == wanted


def _first(found: list[T]) -> T | None:
    return found[0] if found else None
