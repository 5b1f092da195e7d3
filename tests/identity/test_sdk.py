"""openstacksdk, unmodified, against a real control plane's identity service over HTTP: every method of its proxy."""
import asyncio
import inspect
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openstack
import pytest
from openstack import exceptions
from openstack.identity.v3 import _proxy

from control.gateway.server import listen, serve
from control.kernel.store import MemoryStore
from tests.conftest import unique
from tests.identity.conftest import PASSWORDS, replica

#: Left out: federation is a part of identity of its own, with its own tests.
FEDERATION = ("identity_provider", "mapping", "federation_protocol", "service_provider")

#: What waits for resources with a status, of which identity has none.
OTHERS = {"wait_for_delete", "wait_for_status"}


class Server:
    """One replica behind a loopback port, in a thread of its own."""

    def __init__(self) -> None:
        self._listener = listen("127.0.0.1", 0)
        self.url = "http://{}:{}".format(*self._listener.getsockname())
        self._started, self._thread = threading.Event(), threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)
        self._thread.start()
        assert self._started.wait(20)

    async def _run(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        async with replica(MemoryStore()) as cloud:
            await cloud.bootstrap(public_url=self.url, endpoints=[("identity", "keystone", "/v3"),
                                                                  ("compute", "nova", "/compute/v2.1")])
            serving = asyncio.create_task(serve(cloud.gateway, "127.0.0.1", 0, listener=self._listener))
            self._started.set()
            await self._stop.wait()
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)

    def connect(self, name: str = "admin", password: str = "", project: str = "admin") -> openstack.connection.Connection:
        """A connection of a user; project "": without scope."""
        scope = {"project_name": project, "project_domain_id": "default"} if project else {}
        return openstack.connection.Connection(
            auth={"auth_url": f"{self.url}/v3", "username": name, "password": password or PASSWORDS[name],
                  "user_domain_id": "default", **scope},
            region_name="RegionOne", identity_api_version="3")

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(20)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.stop()


@pytest.fixture(scope="module")
def conn(server: Server) -> openstack.connection.Connection:
    return server.connect()


@pytest.fixture
def identity(conn) -> Any:
    return conn.identity


@pytest.fixture
def project(identity) -> Iterator[Any]:
    made = identity.create_project(name=unique("p"), domain_id="default")
    yield made
    identity.delete_project(made)


@pytest.fixture
def user(identity) -> Iterator[Any]:
    made = identity.create_user(name=unique("u"), domain_id="default", password="first")
    yield made
    identity.delete_user(made)


@pytest.fixture
def group(identity) -> Iterator[Any]:
    made = identity.create_group(name=unique("g"), domain_id="default")
    yield made
    identity.delete_group(made)


def ids(rows: Any) -> set[str]:
    return {row.id for row in rows}


def lives(made: Any, *, get: Callable, delete: Callable, rows: Callable, find: Callable | None = None,
          update: Callable | None = None, changes: dict[str, Any] | None = None, by_name: bool = True) -> None:
    """A resource is shown, found, listed, changed and deleted, and then it is gone."""
    assert get(made.id).id == made.id
    assert made.id in ids(rows())
    if find is not None:
        assert find(made.id).id == made.id
        if by_name:
            assert find(made.name).id == made.id
        assert find("no-such-thing", ignore_missing=True) is None
        with pytest.raises(exceptions.NotFoundException):
            find("no-such-thing", ignore_missing=False)
    if update is not None:
        update(made.id, **(changes or {}))
        shown = get(made.id)
        for name, value in (changes or {}).items():
            assert getattr(shown, name) == value
    delete(made.id, ignore_missing=False)
    with pytest.raises(exceptions.NotFoundException):
        get(made.id)
    delete(made.id, ignore_missing=True)
    with pytest.raises(exceptions.NotFoundException):
        delete(made.id, ignore_missing=False)


def test_projects(identity):
    made = identity.create_project(name=unique("p"), domain_id="default", description="first", tags=["one"])
    assert made.is_enabled and made.tags == ["one"]
    assert made.id in ids(identity.projects(tags="one"))
    lives(made, get=identity.get_project, find=identity.find_project, rows=identity.projects, update=identity.update_project,
          delete=identity.delete_project, changes={"description": "second", "is_enabled": False})


def test_users(identity, server: Server):
    made = identity.create_user(name=unique("u"), domain_id="default", password="first", email="a@example.org")
    identity.update_password(made, "first", "second")
    assert server.connect(made.name, "second", project="").authorize()
    lives(made, get=identity.get_user, find=identity.find_user, rows=identity.users, update=identity.update_user,
          delete=identity.delete_user, changes={"email": "b@example.org", "is_enabled": False})


def test_groups_and_who_is_in_them(identity, user):
    made = identity.create_group(name=unique("g"), domain_id="default", description="first")
    assert not identity.check_user_in_group(user, made)
    identity.add_user_to_group(user, made)
    assert identity.check_user_in_group(user, made)
    assert ids(identity.group_users(made)) == {user.id} and ids(identity.user_groups(user)) == {made.id}
    identity.remove_user_from_group(user, made)
    assert ids(identity.group_users(made)) == set()
    lives(made, get=identity.get_group, find=identity.find_group, rows=identity.groups, update=identity.update_group,
          delete=identity.delete_group, changes={"description": "second"})


def test_domains_and_their_configuration(identity):
    made = identity.create_domain(name=unique("d"), description="first", is_enabled=False)
    config = identity.create_domain_config(made, identity={"driver": "sql"}, ldap={"url": "ldap://127.0.0.1"})
    assert config.ldap.url == "ldap://127.0.0.1"
    assert identity.get_domain_config(made).identity.driver == "sql"
    identity.update_domain_config(made, ldap={"url": "ldap://127.0.0.2"})
    assert identity.get_domain_config(made).ldap.url == "ldap://127.0.0.2"
    identity.delete_domain_config(made)
    with pytest.raises(exceptions.NotFoundException):
        identity.get_domain_config(made)
    lives(made, get=identity.get_domain, find=identity.find_domain, rows=identity.domains, update=identity.update_domain,
          delete=identity.delete_domain, changes={"description": "second"})


def test_roles(identity):
    made = identity.create_role(name=unique("r"), description="first")
    lives(made, get=identity.get_role, find=identity.find_role, rows=identity.roles, update=identity.update_role,
          delete=identity.delete_role, changes={"description": "second"})


@pytest.mark.parametrize("inherited", [False, True])
def test_roles_are_given_and_taken_everywhere(identity, user, group, project, inherited: bool):
    role = identity.find_role("member")
    places = [
        ((project, user), identity.assign_project_role_to_user, identity.validate_user_has_project_role,
         identity.unassign_project_role_from_user),
        ((project, group), identity.assign_project_role_to_group, identity.validate_group_has_project_role,
         identity.unassign_project_role_from_group),
        (("default", user), identity.assign_domain_role_to_user, identity.validate_user_has_domain_role,
         identity.unassign_domain_role_from_user),
        (("default", group), identity.assign_domain_role_to_group, identity.validate_group_has_domain_role,
         identity.unassign_domain_role_from_group)]
    for (where, who), give, has, take in places:
        assert not has(where, who, role, inherited=inherited)
        give(where, who, role, inherited=inherited)
        assert has(where, who, role, inherited=inherited) and not has(where, who, role, inherited=not inherited)
        take(where, who, role, inherited=inherited)
        assert not has(where, who, role, inherited=inherited)


def test_roles_on_the_system(identity, user, group):
    role = identity.find_role("reader")
    for who, give, has, take in (
            (user, identity.assign_system_role_to_user, identity.validate_user_has_system_role,
             identity.unassign_system_role_from_user),
            (group, identity.assign_system_role_to_group, identity.validate_group_has_system_role,
             identity.unassign_system_role_from_group)):
        assert not has(who, role, "all")
        give(who, role, "all")
        assert has(who, role, "all")
        take(who, role, "all")
        assert not has(who, role, "all")


def test_assignments_are_listed(identity, user, project):
    role = identity.find_role("member")
    identity.assign_project_role_to_user(project, user, role)
    found, = identity.role_assignments(user_id=user.id, scope_project_id=project.id)
    assert found.role["id"] == role.id and found.scope["project"]["id"] == project.id
    assert ids(identity.role_assignments_filter(project=project, user=user)) == {role.id}
    assert ids(identity.user_projects(user)) == {project.id}


def test_credentials(identity, user, project):
    made = identity.create_credential(type="cert", blob="first", user_id=user.id, project_id=project.id)
    assert made.id in ids(identity.credentials(type="cert"))
    lives(made, get=identity.get_credential, find=identity.find_credential, rows=identity.credentials, by_name=False,
          update=identity.update_credential, delete=identity.delete_credential, changes={"blob": "second"})


def test_application_credentials_and_their_access_rules(identity, conn):
    me = conn.current_user_id
    made = identity.create_application_credential(me, unique("a"), access_rules=[
        {"service": "compute", "method": "GET", "path": "/v2.1/servers"}])
    assert made.secret
    assert identity.get_application_credential(me, made.id).name == made.name
    assert identity.find_application_credential(me, made.name).id == made.id
    assert made.id in ids(identity.application_credentials(me))
    rule, = identity.access_rules(me)
    assert identity.get_access_rule(me, rule.id).path == "/v2.1/servers"
    with pytest.raises(exceptions.ForbiddenException):
        identity.delete_access_rule(me, rule.id)
    identity.delete_application_credential(me, made.id)
    assert identity.find_application_credential(me, made.name) is None
    identity.delete_access_rule(me, rule.id)
    assert list(identity.access_rules(me)) == []


def test_trusts(identity, conn, user):
    made = identity.create_trust(trustor_user_id=conn.current_user_id, trustee_user_id=user.id, is_impersonation=False,
                                 project_id=conn.current_project_id, roles=[{"name": "member"}])
    lives(made, get=identity.get_trust, find=identity.find_trust, rows=identity.trusts, by_name=False,
          delete=identity.delete_trust)


def test_regions_services_and_endpoints(identity):
    region, service = identity.create_region(id=unique("region"), description="first"), identity.create_service(
        name=unique("s"), type=unique("type"), description="first")
    endpoint = identity.create_endpoint(service_id=service.id, interface="public", url="http://127.0.0.1:1", region_id=region.id)
    lives(endpoint, get=identity.get_endpoint, find=identity.find_endpoint, rows=identity.endpoints, by_name=False,
          update=identity.update_endpoint, delete=identity.delete_endpoint, changes={"url": "http://127.0.0.1:2"})
    lives(service, get=identity.get_service, find=identity.find_service, rows=identity.services,
          update=identity.update_service, delete=identity.delete_service, changes={"description": "second"})
    lives(region, get=identity.get_region, find=identity.find_region, rows=identity.regions, by_name=False,
          update=identity.update_region, delete=identity.delete_region, changes={"description": "second"})


def test_projects_are_given_endpoints(identity, project):
    endpoint = next(iter(identity.endpoints()))
    identity.associate_endpoint_with_project(project, endpoint)
    assert ids(identity.project_endpoints(project)) == {endpoint.id}
    assert ids(identity.endpoint_projects(endpoint)) == {project.id}
    identity.disassociate_endpoint_from_project(project, endpoint)
    assert ids(identity.project_endpoints(project)) == set()


def test_endpoint_groups(identity, project):
    made = identity.create_endpoint_group(name=unique("eg"), filters={"interface": "public"}, description="first")
    identity.associate_project_with_endpoint_group(made, project)
    assert ids(identity.endpoint_group_projects(made)) == {project.id}
    assert ids(identity.project_endpoint_groups(project)) == {made.id}
    assert {endpoint.interface for endpoint in identity.endpoint_group_endpoints(made)} == {"public"}
    identity.disassociate_project_from_endpoint_group(made, project)
    assert ids(identity.endpoint_group_projects(made)) == set()
    lives(made, get=identity.get_endpoint_group, find=identity.find_endpoint_group, rows=identity.endpoint_groups,
          update=identity.update_endpoint_group, delete=identity.delete_endpoint_group, changes={"description": "second"})


def test_limits(identity, project):
    service = identity.find_service("nova")
    registered = identity.create_registered_limit(service_id=service.id, resource_name=unique("r"), default_limit=10)
    limit = identity.create_limit(service_id=service.id, resource_name=registered.resource_name, resource_limit=5,
                                  project_id=project.id)
    lives(limit, get=identity.get_limit, rows=identity.limits, update=identity.update_limit, delete=identity.delete_limit,
          changes={"resource_limit": 6})
    lives(registered, get=identity.get_registered_limit, rows=identity.registered_limits,
          update=identity.update_registered_limit, delete=identity.delete_registered_limit, changes={"default_limit": 20})


def test_policies(identity):
    made = identity.create_policy(blob="first", type="text/plain")
    lives(made, get=identity.get_policy, find=identity.find_policy, rows=identity.policies, by_name=False,
          update=identity.update_policy, delete=identity.delete_policy, changes={"blob": "second"})


def test_tokens(identity, server: Server):
    token = server.connect("demo", project="demo").authorize()
    assert identity.check_token(token)
    shown = identity.validate_token(token)
    assert shown.user["name"] == "demo" and shown.catalog
    assert not identity.validate_token(token, nocatalog=True).catalog
    identity.revoke_token(token)
    assert not identity.check_token(token)
    with pytest.raises(exceptions.NotFoundException):
        identity.validate_token(token)


def test_no_method_of_the_proxy_is_left_out():
    methods = {name for name, value in vars(_proxy.Proxy).items() if inspect.isfunction(value) and not name.startswith("_")}
    source = Path(__file__).read_text()
    assert {name for name in methods - OTHERS
            if f"identity.{name}" not in source and not any(part in name for part in FEDERATION)} == set()
