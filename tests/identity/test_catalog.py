"""Services, endpoints and regions over REST, and what a new cloud starts with."""
import asyncio

from control.identity.model import ENDPOINT, ENTRY, PROJECT, ROLE, SERVICE, TOKEN_KEY, USER
from tests.identity.conftest import Cloud, made, replica


async def test_a_service_with_endpoints_is_in_the_catalog_until_it_is_disabled(cloud: Cloud, admin) -> None:
    service = await made(admin, "service", type="object-store", name="swift", description="things")
    endpoint = await made(admin, "endpoint", service_id=service["id"], interface="public", url="http://x/v1/AUTH_%(tenant_id)s",
                          region_id="RegionOne")
    assert endpoint["region"] == endpoint["region_id"] == "RegionOne" and endpoint["enabled"] is True
    token = (await cloud.log_in("demo")).json["token"]
    entry = next(entry for entry in token["catalog"] if entry["type"] == "object-store")
    assert entry["name"] == "swift" and entry["endpoints"][0]["url"] == f"http://x/v1/AUTH_{token['project']['id']}"
    system = (await cloud.log_in("admin", scope={"system": {"all": True}})).json["token"]
    assert "object-store" not in {entry["type"] for entry in system["catalog"]}
    await admin("PATCH", f"/v3/services/{service['id']}", json_body={"service": {"enabled": False}})
    assert "object-store" not in {entry["type"] for entry in (await cloud.log_in("demo")).json["token"]["catalog"]}
    assert (await admin("DELETE", f"/v3/services/{service['id']}")).status == 204
    assert (await admin("GET", f"/v3/endpoints/{endpoint['id']}")).status == 404
    assert not [entry for entry in cloud.db.cache.all(ENTRY) if entry.id == endpoint["id"]]


async def test_endpoints_are_checked_filtered_changed_and_deleted(cloud: Cloud, admin) -> None:
    service = (await made(admin, "service", type="t"))["id"]
    good = {"service_id": service, "interface": "public", "url": "http://x"}
    for wrong in ({"service_id": "x"}, {"interface": "secret"}, {"url": ""}, {"url": "x" * 3000}, {"region_id": "Nowhere"},
                  {"enabled": "perhaps"}):
        assert (await admin("POST", "/v3/endpoints", json_body={"endpoint": good | wrong})).status == 400
    endpoint = await made(admin, "endpoint", **good, region="RegionTwo")
    assert (await admin("GET", "/v3/regions/RegionTwo")).status == 200
    assert [row["id"] for row in (await admin("GET", f"/v3/endpoints?service_id={service}&interface=public")).json["endpoints"]] \
        == [endpoint["id"]]
    assert (await admin("GET", f"/v3/endpoints?service_id={service}&interface=admin")).json["endpoints"] == []
    path = f"/v3/endpoints/{endpoint['id']}"
    changed = (await admin("PATCH", path, json_body={"endpoint": {"url": "http://y", "region_id": None}})).json["endpoint"]
    assert changed["url"] == "http://y" and changed["region_id"] is None and changed["region"] is None
    assert (await admin("DELETE", "/v3/regions/RegionTwo")).status == 204
    assert (await admin("DELETE", path)).status == 204 and (await admin("GET", path)).status == 404


async def test_regions_are_nested_and_not_deleted_while_in_use(cloud: Cloud, admin) -> None:
    await made(admin, "region", id="Parent", description="d")
    child = await made(admin, "region", parent_region_id="Parent")
    assert child["parent_region_id"] == "Parent" and len(child["id"]) == 32
    assert (await admin("POST", "/v3/regions", json_body={"region": {"id": "Parent"}})).status == 409
    assert (await admin("POST", "/v3/regions", json_body={"region": {"parent_region_id": "Nowhere"}})).status == 404
    assert (await admin("PATCH", "/v3/regions/Parent", json_body={"region": {"parent_region_id": child["id"]}})).status == 400
    assert (await admin("DELETE", "/v3/regions/Parent")).status == 403
    assert (await admin("DELETE", "/v3/regions/RegionOne")).status == 403
    assert [row["id"] for row in (await admin("GET", "/v3/regions?parent_region_id=Parent")).json["regions"]] == [child["id"]]
    moved = await admin("PATCH", f"/v3/regions/{child['id']}", json_body={"region": {"parent_region_id": None}})
    assert moved.json["region"]["parent_region_id"] is None
    assert (await admin("DELETE", "/v3/regions/Parent")).status == 204


async def test_a_region_gets_the_id_in_its_path_or_the_one_that_an_endpoint_names(cloud: Cloud, admin) -> None:
    chosen = await admin("PUT", "/v3/regions/Chosen", json_body={"region": {"description": "d"}})
    assert chosen.status == 201 and chosen.json["region"]["id"] == "Chosen"
    assert (await admin("PUT", "/v3/regions/Chosen", json_body={"region": {}})).status == 409
    assert (await admin("PUT", "/v3/regions/Other", json_body={"region": {"id": "Another"}})).status == 400
    service = (await made(admin, "service", type="t"))["id"]
    endpoint = await made(admin, "endpoint", service_id=service, interface="public", url="http://x")
    path = f"/v3/endpoints/{endpoint['id']}"
    assert (await admin("PATCH", path, json_body={"endpoint": {"region_id": "New"}})).status == 400
    assert (await admin("PATCH", path, json_body={"endpoint": {"region": "New"}})).json["endpoint"]["region_id"] == "New"
    assert (await admin("GET", "/v3/regions/New")).status == 200


async def test_setting_up_twice_changes_nothing_but_addresses(cloud: Cloud, admin) -> None:
    ids = {endpoint.id for endpoint in cloud.db.cache.all(ENDPOINT)}
    await admin("POST", "/v3/groups", json_body={"group": {"name": "kept"}})
    revision = cloud.db.cache.revision
    await cloud.bootstrap()
    assert cloud.db.cache.revision == revision
    await cloud.bootstrap(public_url="https://new.example", admin_password="ignored: admin has one")
    assert {endpoint.id for endpoint in cloud.db.cache.all(ENDPOINT)} == ids
    assert all(endpoint.url.startswith("https://new.example/") for endpoint in cloud.db.cache.all(ENDPOINT))
    assert (await cloud.log_in("admin")).status == 201


async def test_two_replicas_that_set_up_at_once_make_one_cloud(store) -> None:
    async with replica(store) as one, replica(store) as other:
        await asyncio.gather(one.bootstrap(), other.bootstrap())
        await other.db.cache.wait(one.db.cache.revision)
        assert len(other.db.cache.all(SERVICE)) == 3 and len(other.db.cache.all(ENDPOINT)) == 9
        assert sorted(role.name for role in other.db.cache.all(ROLE)) == ["admin", "manager", "member", "reader"]
        assert sorted(record.user.name for record in other.db.cache.all(USER)) == ["admin", "demo"]
        assert len(other.db.cache.all(PROJECT)) == 3 and len(other.db.cache.all(TOKEN_KEY)) == 1
        assert (await other.log_in("demo")).status == 201


async def test_a_regions_link_leads_to_it_whatever_its_name(cloud: Cloud, admin) -> None:
    reply = await admin("POST", "/v3/regions", json_body={"region": {"id": "Zürich, 2"}})
    assert reply.status == 201
    link = reply.json["region"]["links"]["self"]
    assert link.endswith("/v3/regions/Z%C3%BCrich%2C%202")
    assert (await admin("GET", link[link.index("/v3"):])).json["region"]["id"] == "Zürich, 2"
