"""Identity providers, protocols, mappings and service providers: over REST, with the openstack client and with openstacksdk."""
import asyncio
import json
import os
import shlex
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import openstack
import pytest

from control.identity.model import IDENTITY_PROVIDER, PROJECT
from control.kernel import rpc
from control.kernel.store import MemoryStore
from protos.identity.v1 import identity_providers_pb2, identity_providers_pb2_grpc, mappings_pb2, mappings_pb2_grpc
from tests.identity.conftest import PASSWORDS, made
from tests.identity.test_federation import ACME, FEDERATION, RULES, Federated, put, running

UNSET = {"issuer": "https://idp.test", "client_id": "brume"}
MAPPING, PROTOCOL = f"{FEDERATION}/mappings/rules", f"{ACME}/protocols/openid"


@pytest.fixture
async def cloud() -> AsyncIterator[Federated]:
    async with running(MemoryStore(), **UNSET) as made_cloud:
        made_cloud.admin = await made_cloud.client("admin")
        yield made_cloud


# REST

async def test_a_provider_has_a_domain_of_its_own_where_none_is_named(cloud: Federated):
    acme = await put(cloud.admin, ACME, "identity_provider")
    domain = cloud.db.get(PROJECT, acme.pop("domain_id")).project
    assert domain.is_domain and domain.enabled and domain.name == domain.id
    assert acme == {"id": "acme", "description": None, "enabled": False, "remote_ids": [], "authorization_ttl": None, "links": {
        "self": f"http://cloud.example:5000{ACME}", "protocols": f"http://cloud.example:5000{ACME}/protocols"}}
    named = await put(cloud.admin, f"{FEDERATION}/identity_providers/b", "identity_provider", domain_id="default")
    assert named["domain_id"] == "default"
    for method in ("GET", "HEAD"):
        assert (await cloud.admin(method, ACME)).status == 200


async def test_a_provider_is_changed_field_by_field(cloud: Federated):
    await put(cloud.admin, ACME, "identity_provider", description="first", remote_ids=["a", "b"], authorization_ttl=3)
    for change, wanted in (({"enabled": True}, {"enabled": True, "description": "first"}),
                           ({"remote_ids": ["b", "c"]}, {"remote_ids": ["b", "c"], "authorization_ttl": 3}),
                           ({"description": None, "authorization_ttl": None}, {"description": None, "authorization_ttl": None}),
                           ({"remote_ids": None}, {"remote_ids": []})):
        reply = await cloud.admin("PATCH", ACME, json_body={"identity_provider": change})
        assert reply.status == 200 and reply.json["identity_provider"] | wanted == reply.json["identity_provider"]
    for change in ({"domain_id": "default"}, {"authorization_ttl": -1}, {"remote_ids": ["x", "x"]}, {"remote_ids": [""]},
                   {"nonsense": 1}, {"enabled": "yes"}):
        assert (await cloud.admin("PATCH", ACME, json_body={"identity_provider": change})).status == 400, change


async def test_a_remote_id_is_of_one_provider(cloud: Federated):
    other = f"{FEDERATION}/identity_providers/other"
    await put(cloud.admin, ACME, "identity_provider", remote_ids=["a", "b"])
    wanted = {"identity_provider": {"remote_ids": ["b"]}}
    assert (await cloud.admin("PUT", other, json_body=wanted)).status == 409
    assert (await cloud.admin("GET", other)).status == 404
    assert (await cloud.admin("PATCH", ACME, json_body={"identity_provider": {"remote_ids": ["a"]}})).status == 200
    assert (await cloud.admin("PUT", other, json_body=wanted)).status == 201
    assert (await cloud.admin("DELETE", other)).status == 204
    assert (await cloud.admin("PATCH", ACME, json_body={"identity_provider": {"remote_ids": ["a", "b"]}})).status == 200


async def test_an_id_is_taken_once(cloud: Federated):
    await put(cloud.admin, MAPPING, "mapping", rules=RULES)
    await put(cloud.admin, ACME, "identity_provider")
    await put(cloud.admin, PROTOCOL, "protocol", mapping_id="rules")
    sp = f"{FEDERATION}/service_providers/sp"
    urls = {"auth_url": "https://sp.test/auth", "sp_url": "https://sp.test/sp"}
    await put(cloud.admin, sp, "service_provider", **urls)
    for path, noun, values in ((MAPPING, "mapping", {"rules": RULES}), (ACME, "identity_provider", {}),
                               (sp, "service_provider", urls), (PROTOCOL, "protocol", {"mapping_id": "rules"})):
        reply = await cloud.admin("PUT", path, json_body={noun: values})
        assert reply.status == 409 and "Duplicate" in reply.json["error"]["message"], path


@pytest.mark.parametrize("identifier", ["x" * 65, "a%2Fb", "%20", "a%00b", "a%0Ab"])
async def test_an_id_that_no_path_can_have_is_refused(cloud: Federated, identifier: str):
    for noun, values in (("mapping", {"rules": RULES}), ("identity_provider", {})):
        reply = await cloud.admin("PUT", f"{FEDERATION}/{noun}s/{identifier}", json_body={noun: values})
        assert reply.status == 400, (noun, reply.body)


async def test_links_lead_to_any_id(cloud: Federated):
    name, path = "é {x}?#", "%C3%A9%20%7Bx%7D%3F%23"
    urls = {"auth_url": "https://sp.test/a", "sp_url": "https://sp.test/s"}
    for noun, values in (("mapping", {"rules": RULES}), ("identity_provider", {}), ("service_provider", urls)):
        made_thing = await put(cloud.admin, f"{FEDERATION}/{noun}s/{path}", noun, **values)
        assert made_thing["id"] == name and made_thing["links"]["self"] == f"http://cloud.example:5000{FEDERATION}/{noun}s/{path}"
        assert (await cloud.admin("GET", f"{FEDERATION}/{noun}s/{path}")).json[noun] == made_thing


async def test_lists_are_filtered(cloud: Federated):
    for name, enabled in (("a", True), ("b", False), ("c", True)):
        await put(cloud.admin, f"{FEDERATION}/identity_providers/{name}", "identity_provider", enabled=enabled)
    for query, names in (("", "abc"), ("?enabled=true", "ac"), ("?enabled=False", "b"), ("?id=c", "c"), ("?limit=1", "a")):
        reply = await cloud.admin("GET", f"{FEDERATION}/identity_providers{query}")
        assert "".join(each["id"] for each in reply.json["identity_providers"]) == names


async def test_a_protocol_needs_a_provider_and_a_mapping(cloud: Federated):
    wanted = {"protocol": {"mapping_id": "rules"}}
    assert (await cloud.admin("PUT", PROTOCOL, json_body=wanted)).status == 404
    await put(cloud.admin, ACME, "identity_provider")
    assert (await cloud.admin("PUT", PROTOCOL, json_body=wanted)).status == 400
    await put(cloud.admin, MAPPING, "mapping", rules=RULES)
    assert (await cloud.admin("PUT", PROTOCOL, json_body={"protocol": {}})).status == 400
    made_protocol = await put(cloud.admin, PROTOCOL, "protocol", mapping_id="rules")
    assert made_protocol == {"id": "openid", "mapping_id": "rules", "remote_id_attribute": None, "links": {
        "self": f"http://cloud.example:5000{PROTOCOL}", "identity_provider": f"http://cloud.example:5000{ACME}"}}
    assert (await cloud.admin("PATCH", PROTOCOL, json_body={"protocol": {"mapping_id": "none"}})).status == 400
    assert (await cloud.admin("GET", f"{ACME}/protocols")).json["protocols"] == [made_protocol]
    assert (await cloud.admin("DELETE", ACME)).status == 204
    assert (await cloud.admin("GET", PROTOCOL)).status == 404


async def test_rules_that_mean_nothing_are_refused_with_their_place(cloud: Federated):
    bad = [{"local": [{"user": {"name": "{3}"}}], "remote": [{"type": "sub"}]}]
    reply = await cloud.admin("PUT", MAPPING, json_body={"mapping": {"rules": bad}})
    assert reply.status == 400 and reply.json["error"]["message"].startswith("rules[0].local[0].user.name: {3}")
    await put(cloud.admin, MAPPING, "mapping", rules=RULES)
    for change in ({"rules": bad}, {"rules": None}, {"schema_version": "7"}):
        assert (await cloud.admin("PATCH", MAPPING, json_body={"mapping": change})).status == 400
    kept = (await cloud.admin("GET", MAPPING)).json["mapping"]
    assert kept["rules"] == RULES and kept["schema_version"] == "1.0"
    deep: Any = "x"
    for _ in range(40):
        deep = [deep]
    assert (await cloud.admin("PATCH", MAPPING, json_body={"mapping": {"rules": deep}})).status == 400
    large = [{"local": [], "remote": [{"type": "x" * 300_000}]}]
    assert (await cloud.admin("PATCH", MAPPING, json_body={"mapping": {"rules": large}})).status == 400


async def test_enabled_service_providers_stand_in_tokens(cloud: Federated):
    sp = f"{FEDERATION}/service_providers/sp"
    assert (await cloud.admin("PUT", sp, json_body={"service_provider": {"auth_url": "no url", "sp_url": "x"}})).status == 400
    shown = await put(cloud.admin, sp, "service_provider", auth_url="https://sp.test/a", sp_url="https://sp.test/s")
    assert shown == {"id": "sp", "auth_url": "https://sp.test/a", "sp_url": "https://sp.test/s", "description": None,
                     "enabled": False, "relay_state_prefix": "ss:mem:", "links": {"self": f"http://cloud.example:5000{sp}"}}
    assert "service_providers" not in (await cloud.log_in("demo")).json["token"]
    assert (await cloud.admin("PATCH", sp, json_body={"service_provider": {"enabled": True}})).status == 200
    assert (await cloud.log_in("demo")).json["token"]["service_providers"] == [
        {"id": "sp", "auth_url": "https://sp.test/a", "sp_url": "https://sp.test/s"}]
    assert (await cloud.admin("DELETE", sp)).status == 204


async def test_only_administrators_change_federation_and_readers_of_the_system_see_it(cloud: Federated):
    await put(cloud.admin, MAPPING, "mapping", rules=RULES)
    await put(cloud.admin, ACME, "identity_provider")
    demo = await cloud.client("demo")
    for verb, path, noun in (
            ("PUT", f"{FEDERATION}/mappings/x", "mapping"), ("PATCH", MAPPING, "mapping"),
            ("PUT", f"{FEDERATION}/identity_providers/x", "identity_provider"), ("PATCH", ACME, "identity_provider"),
            ("DELETE", ACME, ""), ("GET", ACME, ""), ("GET", MAPPING, ""), ("GET", f"{FEDERATION}/mappings", ""),
            ("PUT", PROTOCOL, "protocol"), ("GET", f"{FEDERATION}/service_providers", "")):
        reply = await demo(verb, path, json_body={noun: {}} if noun else None)
        assert reply.status == 403, (verb, path, reply.body)
        assert (await cloud.anybody(verb, path, json_body={noun: {}} if noun else None)).status == 401


async def test_a_domain_takes_its_providers_along(cloud: Federated):
    acme = await put(cloud.admin, ACME, "identity_provider", remote_ids=["a"])
    path = f"/v3/domains/{acme['domain_id']}"
    assert (await cloud.admin("PATCH", path, json_body={"domain": {"enabled": False}})).status == 200
    assert (await cloud.admin("DELETE", path)).status == 204
    assert (await cloud.admin("GET", ACME)).status == 404 and cloud.db.get(IDENTITY_PROVIDER, "acme") is None
    missing = {"identity_provider": {"domain_id": acme["domain_id"], "remote_ids": ["a"]}}
    assert (await cloud.admin("PUT", ACME, json_body=missing)).status == 404
    await put(cloud.admin, ACME, "identity_provider", remote_ids=["a"])


async def test_native_clients_do_the_same(cloud: Federated):
    listener = grpc.aio.server()
    rpc.add_to_grpc(cloud.dispatcher, listener)
    port = listener.add_insecure_port("127.0.0.1:0")
    await listener.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            caller = [("x-auth-token", await cloud.token("admin"))]
            providers = identity_providers_pb2_grpc.IdentityProvidersStub(channel)
            wanted = identity_providers_pb2.CreateIdentityProviderRequest(idp_id="acme", identity_provider={"enabled": True})
            assert (await providers.CreateIdentityProvider(wanted, metadata=caller)).identity_provider.domain_id
            mapping = mappings_pb2.CreateMappingRequest(mapping_id="m", mapping={"rules": {"number_value": float("nan")}})
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await mappings_pb2_grpc.MappingsStub(channel).CreateMapping(mapping, metadata=caller)
            assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    finally:
        await listener.stop(None)


# The clients

#: Runs the openstack client with each of the lists of arguments on standard input; prints what each one printed, as a list.
SHELL = """
import contextlib, io, json, sys
from openstackclient import shell
told = []
for arguments in json.load(sys.stdin):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        status = shell.OpenStackShell().run(arguments)
    if status == 1:
        sys.exit(f"failed: {arguments}")
    told.append(out.getvalue())
json.dump(told, sys.stdout)
"""


async def commands(cloud: Federated, *texts: str) -> list[Any]:
    """What each command of the openstack client prints, as JSON; None where it prints nothing."""
    login = {"OS_AUTH_URL": f"{cloud.url}/v3", "OS_USERNAME": "admin", "OS_PASSWORD": PASSWORDS["admin"],
             "OS_PROJECT_NAME": "admin", "OS_USER_DOMAIN_ID": "default", "OS_PROJECT_DOMAIN_ID": "default"}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SHELL, env=os.environ | login, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE)
    out, error = await process.communicate(json.dumps([shlex.split(text) for text in texts]).encode())
    assert process.returncode == 0, error.decode()
    return [json.loads(told) if "-f json" in text else None for text, told in zip(texts, json.loads(out), strict=True)]


async def test_the_openstack_client_manages_mappings(cloud: Federated, tmp_path: Path):
    (tmp_path / "rules").write_text(json.dumps(RULES))
    *_, shown, listed, _, left = await commands(
        cloud, f"mapping create --rules {tmp_path}/rules m", f"mapping set --rules {tmp_path}/rules --schema-version 2.0 m",
        "mapping show m -f json", "mapping list -f json", "mapping delete m", "mapping list -f json")
    assert shown["rules"] == RULES and shown["schema_version"] == "2.0"
    assert [row["ID"] for row in listed] == ["m"] and left == []


async def test_the_openstack_client_manages_providers_and_protocols(cloud: Federated):
    await put(cloud.admin, MAPPING, "mapping", rules=RULES)
    *_, shown, (listed,), _, _, protocol, (protocols,), _, _, left = await commands(
        cloud, "identity provider create --remote-id https://idp.test --description ours --domain default "
        "--authorization-ttl 30 acme",
        "identity provider set --disable --remote-id https://other.test acme", "identity provider show acme -f json",
        "identity provider list -f json", "federation protocol create --identity-provider acme --mapping rules openid",
        "federation protocol set --identity-provider acme --mapping rules openid",
        "federation protocol show --identity-provider acme openid -f json",
        "federation protocol list --identity-provider acme -f json",
        "federation protocol delete --identity-provider acme openid", "identity provider delete acme",
        "identity provider list -f json")
    assert shown == {"authorization_ttl": 30, "description": "ours", "domain_id": "default", "enabled": False, "id": "acme",
                     "remote_ids": ["https://other.test"]}
    assert (listed["ID"], listed["Enabled"], listed["Domain ID"]) == ("acme", False, "default")
    assert (protocol["id"], protocol["mapping"], protocols["id"]) == ("openid", "rules", "openid")
    assert left == []


async def test_the_openstack_client_manages_service_providers(cloud: Federated):
    *_, shown, (listed,), _, left = await commands(
        cloud, "service provider create --auth-url https://sp.test/a --service-provider-url https://sp.test/s sp",
        "service provider set --disable --description theirs sp", "service provider show sp -f json",
        "service provider list -f json", "service provider delete sp", "service provider list -f json")
    assert (shown["id"], shown["enabled"], shown["description"]) == ("sp", False, "theirs")
    assert listed["ID"] == "sp" and left == []


async def test_the_openstack_client_lists_what_a_caller_reaches(cloud: Federated):
    projects, domains = await commands(cloud, "federation project list -f json", "federation domain list -f json")
    assert [row["Name"] for row in projects] == ["admin"] and isinstance(domains, list)


async def test_openstacksdk_manages_it_all(cloud: Federated):
    connection = openstack.connect(auth_url=f"{cloud.url}/v3", username="admin", password=PASSWORDS["admin"],
                                   project_name="admin", user_domain_id="default", project_domain_id="default")

    def manage() -> None:
        sdk = connection.identity
        sdk.create_mapping(id="m", rules=RULES)
        provider = sdk.create_identity_provider(id="acme", is_enabled=True, remote_ids=["x"])
        assert sdk.find_identity_provider("acme") == provider and provider.domain_id
        assert sdk.update_identity_provider("acme", description="ours").description == "ours"
        sdk.create_federation_protocol("acme", id="openid", mapping_id="m")
        assert [each.name for each in sdk.federation_protocols("acme")] == ["openid"]
        assert sdk.get_federation_protocol("acme", "openid").mapping_id == "m"
        sdk.update_federation_protocol("acme", "openid", mapping_id="m")
        assert sdk.update_mapping("m", rules=RULES[:1]).rules == RULES[:1]
        sdk.create_service_provider(id="sp", auth_url="https://sp.test/a", sp_url="https://sp.test/s")
        assert sdk.update_service_provider("sp", is_enabled=True).is_enabled
        sdk.delete_federation_protocol("acme", "openid", ignore_missing=False)
        sdk.delete_identity_provider("acme", ignore_missing=False)
        sdk.delete_mapping("m", ignore_missing=False)
        sdk.delete_service_provider("sp", ignore_missing=False)
        assert not [*sdk.identity_providers(), *sdk.mappings(), *sdk.service_providers()]

    await asyncio.to_thread(manage)


async def test_a_user_of_the_clouds_own_is_made_beside_them(cloud: Federated):
    acme = await put(cloud.admin, ACME, "identity_provider")
    user = await made(cloud.admin, "user", name="own", domain_id=acme["domain_id"], password="pw")
    assert (await cloud.log_in("own", "pw", domain=acme["domain_id"])).status == 201
    assert (await cloud.admin("DELETE", ACME)).status == 204
    assert (await cloud.admin("GET", f"/v3/users/{user['id']}")).status == 200
