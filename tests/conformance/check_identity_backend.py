"""What every back end of identity does: the sentences of directory.Directory, as a suite that all kinds must pass.

A test module makes a class of DirectoryContract and provides the fixture `directory`, which has PEOPLE and GROUPS.
"""
import pytest

from control.identity.directory import Directory

ODD = "a*(b)\\c"

#: Passwords by name; None: the user has none.
PEOPLE = {"alice": "wonder land", "bob": "bu1lder", "zoë": "pässwörd", ODD: "odd", "nopass": None}
GROUPS = {"builders": ["alice", "bob"], "readers": ["alice"], "nobody here": []}


async def identifier(directory: Directory, name: str) -> str:
    (user,) = await directory.users(name)
    return user.id


class DirectoryContract:
    # Users

    async def test_all_users_are_listed_once(self, directory: Directory):
        assert sorted(user.name for user in await directory.users()) == sorted(PEOPLE)

    @pytest.mark.parametrize("name", PEOPLE)
    async def test_a_user_is_found_by_name_and_by_id(self, directory: Directory, name: str):
        (found,) = await directory.users(name)
        assert (found.name, found.enabled, bool(found.domain_id)) == (name, True, True)
        assert await directory.user(found.id) == found

    @pytest.mark.parametrize("name", ["nobody", "*", "al*", "alice)(uid=*", "\\2a", "alice\0", "x" * 100_000])
    async def test_a_name_that_nobody_has_finds_nobody_whatever_is_in_it(self, directory: Directory, name: str):
        assert await directory.users(name) == []
        assert await directory.groups(name) == []

    @pytest.mark.parametrize("user_id", ["nobody", "*", "", ")(objectClass=*", "\0"])
    async def test_an_id_that_nobody_has_finds_nobody(self, directory: Directory, user_id: str):
        assert await directory.user(user_id) is None
        assert await directory.group(user_id) is None
        assert await directory.groups_of(user_id) == []
        assert await directory.members_of(user_id) == []
        assert not await directory.authenticate(user_id, "x")

    # Groups

    async def test_all_groups_are_listed_once_and_found_by_name_and_by_id(self, directory: Directory):
        groups = await directory.groups()
        assert sorted(group.name for group in groups) == sorted(GROUPS)
        for group in groups:
            assert await directory.groups(group.name) == [group]
            assert await directory.group(group.id) == group
            assert group.description == f"all {group.name}"

    async def test_members_and_memberships_are_two_views_of_one_thing(self, directory: Directory):
        for group in await directory.groups():
            assert sorted(user.name for user in await directory.members_of(group.id)) == GROUPS[group.name]
        for user in await directory.users():
            wanted = sorted(name for name, members in GROUPS.items() if user.name in members)
            assert sorted(group.name for group in await directory.groups_of(user.id)) == wanted

    async def test_a_group_is_no_user_and_a_user_no_group(self, directory: Directory):
        assert await directory.users("builders") == [] and await directory.groups("alice") == []
        (group,) = await directory.groups("builders")
        assert await directory.user(group.id) is None

    # Passwords

    @pytest.mark.parametrize("name", [name for name, password in PEOPLE.items() if password])
    async def test_a_password_is_its_users_alone(self, directory: Directory, name: str):
        user_id = await identifier(directory, name)
        assert await directory.authenticate(user_id, PEOPLE[name])
        for other in {*PEOPLE.values()} - {PEOPLE[name], None}:
            assert not await directory.authenticate(user_id, other)

    @pytest.mark.parametrize("password", ["", "\0", "\u00ad", "wonder", "Wonder land", "wonder land\0", "x" * 5000],
                             ids=["empty", "nul", "invisible", "prefix", "case", "more", "long"])
    async def test_nothing_else_is_taken_for_a_password(self, directory: Directory, password: str):
        assert not await directory.authenticate(await identifier(directory, "alice"), password)
        assert not await directory.authenticate(await identifier(directory, "nopass"), password)
