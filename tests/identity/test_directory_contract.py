"""The store and a real slapd, in both of its shapes, are the same kind of back end."""
import asyncio
from collections.abc import AsyncIterator

import pytest
from argon2 import PasswordHasher

from control.identity.directory import Directory, StoreDirectory
from control.identity.directory_settings import read
from control.identity.ldap_directory import LdapDirectory
from control.identity.model import GROUP, KINDS, MEMBER, USER, take_name
from control.identity.passwords import Passwords
from control.kernel.database import Database
from control.kernel.store import MemoryStore
from protos.identity.v1.groups_pb2 import Group
from protos.identity.v1.records_pb2 import Membership, UserRecord
from protos.identity.v1.users_pb2 import User
from tests.conformance.check_identity_backend import GROUPS, PEOPLE, DirectoryContract
from tests.identity.slapd import AD, PLAIN


@pytest.fixture(params=["store", "ldap", "ad"])
async def directory(request: pytest.FixtureRequest) -> AsyncIterator[Directory]:
    if request.param != "store":
        suffix = AD if request.param == "ad" else PLAIN
        slapd, directory_path = request.getfixturevalue("slapd"), request.getfixturevalue("tmp_path")
        people = {name: slapd.add_user(suffix, name, password) for name, password in PEOPLE.items()}
        strangers = [slapd.add_user(suffix, "stranger", "x", unit="elsewhere")]
        groups = [slapd.add_group(suffix, name, [*(people[member] for member in members), *strangers])
                  for name, members in GROUPS.items()]
        made = LdapDirectory("d1", read({"domains": {"d": slapd.options(suffix, directory_path)}})["d"])
        yield made
        made.close()
        slapd.remove(suffix, *groups, *strangers, *people.values())
        return
    db, passwords = Database(MemoryStore(), KINDS), Passwords(PasswordHasher(time_cost=1, memory_cost=8, parallelism=1))
    following = asyncio.create_task(db.cache.run())
    await db.cache.ready.wait()
    hashes = {name: await passwords.hash(password) if password else "" for name, password in PEOPLE.items()}

    def fill(transaction) -> None:
        for domain in ("d1", "d2"):
            for name in PEOPLE:
                take_name(transaction, "user", domain, name, f"{domain}-{name}")
                transaction.put(USER, UserRecord(user=User(id=f"{domain}-{name}", name=name, domain_id=domain, enabled=True),
                                                 password_hash=hashes[name]))
            for name, members in GROUPS.items():
                take_name(transaction, "group", domain, name, f"{domain}-{name}")
                transaction.put(GROUP, Group(id=f"{domain}-{name}", name=name, domain_id=domain, description=f"all {name}"))
                for member in members:
                    transaction.put(MEMBER, Membership(group_id=f"{domain}-{name}", user_id=f"{domain}-{member}"))

    await db.transact(fill)
    yield StoreDirectory(db, passwords, "d1")
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
    passwords.close()


class TestDirectories(DirectoryContract):
    pass
