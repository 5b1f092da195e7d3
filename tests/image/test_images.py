"""Conversations about images' records, over HTTP."""
import pytest

UUID = "1b3f2c70-7c3e-4e0a-9f55-6a3a8d3f2a11"


def test_a_created_image_is_queued_with_every_field_that_clients_read(cloud):
    answer = cloud.one.post("/v2/images", json={
        "name": "i1", "disk_format": "qcow2", "container_format": "bare", "owner_specified.openstack.md5": "",
        "hw_disk_bus": "virtio", "tags": ["b", "a", "a"], "min_ram": 64})
    assert answer.status_code == 201
    image = answer.json()
    assert answer.headers["Location"].endswith(f"/image/v2/images/{image['id']}")
    assert image.pop("created_at") == image.pop("updated_at")
    assert image == {
        "id": image["id"], "name": "i1", "status": "queued", "visibility": "shared", "protected": False, "disk_format": "qcow2",
        "container_format": "bare", "size": None, "virtual_size": None, "checksum": None, "os_hash_algo": None,
        "os_hash_value": None, "owner": "one", "min_disk": 0, "min_ram": 64, "tags": ["a", "b"], "os_hidden": False,
        "self": f"/v2/images/{image['id']}",
        "file": f"/v2/images/{image['id']}/file", "schema": "/v2/schemas/image", "owner_specified.openstack.md5": "",
        "hw_disk_bus": "virtio"}
    assert cloud.one.show(image["id"]) == answer.json()
    assert cloud.used("one") == {"image_count_total": 1}


def test_versions_are_listed_at_the_root(cloud):
    answer = cloud.one.get("/")
    assert answer.status_code == 300
    versions = answer.json()["versions"]
    assert versions[0]["id"] == "v2.15" and versions[0]["status"] == "CURRENT" and versions[-1]["id"] == "v2.0"
    assert versions[0]["links"][0]["href"] == f"{cloud.url}/v2/"


@pytest.mark.parametrize(("body", "status", "word"), [
    ({"status": "active"}, 403, "status"),
    ({"size": 5}, 403, "size"),
    ({"checksum": "0" * 32}, 403, "checksum"),
    ({"id": "no-uuid"}, 400, "UUID"),
    ({"disk_format": "floppy"}, 400, "disk_format"),
    ({"disk_format": "aki", "container_format": "bare"}, 400, "same"),
    ({"name": "x" * 256}, 400, "name"),
    ({"min_disk": -1}, 400, "min_disk"),
    ({"visibility": "public"}, 403, "public"),
    ({"visibility": "secret"}, 400, "visibility"),
    ({"owner": "two"}, 403, "owned"),
    ({"tags": ["x" * 256]}, 400, "tag"),
    ({"tags": [str(number) for number in range(129)]}, 400, "tags"),
    ({"colour": 5}, 400, "colour"),
    ({"colour": "x" * 65_536}, 400, "colour"),
    ({f"p{number}": "x" for number in range(129)}, 400, "properties"),
    ({f"p{number}": "x" * 30_000 for number in range(10)}, 400, "bytes"),
    ({"locations": "http://elsewhere"}, 403, "reserved"),
    ({"os_glance_import": "x"}, 403, "reserved"),
    ([], 400, ""),
])
def test_a_bad_image_is_refused_and_nothing_is_kept(cloud, body, status, word):
    answer = cloud.one.post("/v2/images", json=body)
    assert answer.status_code == status, answer.text
    assert word in answer.text
    assert cloud.one.names() == [] and cloud.used("one") == {}


def test_an_id_may_be_chosen_once(cloud):
    assert cloud.one.create(id=UUID)["id"] == UUID
    answer = cloud.two.post("/v2/images", json={"id": UUID})
    assert answer.status_code == 409 and UUID in answer.text


def test_a_project_sees_its_own_public_and_accepted_images_only(cloud):
    own = cloud.one.create(name="own")
    cloud.one.create(name="private", visibility="private")
    cloud.one.create(name="community", visibility="community")
    cloud.admin.create(name="public", visibility="public")
    assert cloud.two.names() == ["public"]
    assert cloud.two.names("visibility=community") == ["community"]
    assert sorted(cloud.two.names("visibility=all")) == ["community", "public"]
    assert sorted(cloud.one.names()) == ["community", "own", "private", "public"]
    assert len(cloud.admin.names()) == 4 - 1 + 1
    assert cloud.two.get(f"/v2/images/{own['id']}").status_code == 404
    assert cloud.two.delete(f"/v2/images/{own['id']}").status_code == 404
    assert cloud.two.get("/v2/images/own").status_code == 404


def test_another_projects_visible_image_cannot_be_changed(cloud):
    image = cloud.admin.create(visibility="public")
    for answer in (cloud.two.delete(f"/v2/images/{image['id']}"), cloud.two.upload(image["id"], b"x"),
                   cloud.two.change(image["id"], {"op": "replace", "path": "/name", "value": "mine"}),
                   cloud.two.put(f"/v2/images/{image['id']}/tags/x")):
        assert answer.status_code == 403, answer.text
    assert cloud.admin.show(image["id"]) == image


def test_filters_choose_and_sorting_orders(cloud):
    ids = {name: cloud.one.create(name=name, **fields)["id"] for name, fields in {
        "a": {"tags": ["x", "y"], "colour": "red"}, "b": {"tags": ["x"], "disk_format": "qcow2"}, "c, d": {"os_hidden": True},
        "e": {"protected": True, "min_ram": 7}}.items()}
    cloud.one.upload(ids["a"], b"12345")
    names = cloud.one.names
    assert names("sort=name:asc") == ["a", "b", "e"]
    assert names("sort_key=name&sort_dir=desc") == ["e", "b", "a"]
    assert names("sort_key=disk_format&sort_key=name&sort_dir=asc&sort_dir=desc") == ["b", "e", "a"]
    assert names("name=b") == ["b"] and names("name=zzz") == []
    assert names("sort=name:asc&name=in:a,b") == ["a", "b"]
    assert names('name=in:"c, d",b&os_hidden=true') == ["c, d"]
    assert names(f"sort=name:asc&id=in:{ids['a']},{ids['e']}") == ["a", "e"]
    assert names("status=active") == ["a"] and names("sort=name&status=in:queued") == ["e", "b"]
    assert names("tag=x&tag=y") == ["a"] and names("colour=red") == ["a"] and names("colour=blue") == []
    assert names("protected=True") == ["e"] and names("min_ram=7") == ["e"] and names("disk_format=qcow2") == ["b"]
    assert names("size_min=5&size_max=5") == ["a"] and names("size_min=6") == []
    created = cloud.one.show(ids["a"])["created_at"]
    assert len(names(f"created_at=gte:{created}")) == 3 and names("created_at=lt:2001-01-01T00:00:00Z") == []
    assert names("owner=two") == [] and len(names("owner=one")) == 3
    assert names("sort=name:asc&limit=2") == ["a", "b"]


@pytest.mark.parametrize("query", ["sort_key=colour", "sort_dir=up", "sort=name&sort_key=name", "limit=-1", "limit=x",
                                   "marker=none", "visibility=secret", "created_at=gt:yesterday", "size_min=x",
                                   "protected=perhaps",
                                   "member_status=maybe", "sort_key=name&sort_key=id&sort_dir=asc&sort_dir=asc&sort_dir=asc"])
def test_a_bad_query_is_refused(cloud, query):
    cloud.one.create()
    assert cloud.one.get(f"/v2/images?{query}").status_code == 400


def test_pages_link_to_the_next_and_hold_every_image_once(cloud):
    for number in range(5):
        cloud.one.create(name=f"i{number}")
    found, path = [], "/v2/images?limit=2&sort=name:asc"
    while path:
        page = cloud.one.get(path).json()
        assert page["first"].startswith("/v2/images") and page["schema"] == "/v2/schemas/images"
        found += [image["name"] for image in page["images"]]
        path = page.get("next", "")
    assert found == [f"i{number}" for number in range(5)]


def test_a_patch_changes_fields_and_properties(cloud):
    image = cloud.one.create(name="before", colour="red", shape="round")
    answer = cloud.one.change(
        image["id"], {"op": "replace", "path": "/name", "value": "after"}, {"op": "add", "path": "/size~1x", "value": "1"},
        {"op": "replace", "path": "/colour", "value": "blue"}, {"op": "remove", "path": "/shape"},
        {"op": "replace", "path": "/tags", "value": ["t"]}, {"op": "add", "path": "/visibility", "value": "community"},
        {"op": "replace", "path": "/min_disk", "value": 3}, {"op": "replace", "path": "/protected", "value": True},
        {"op": "replace", "path": "/disk_format", "value": "qcow2"})
    assert answer.status_code == 200, answer.text
    changed = answer.json()
    expected = {"name": "after", "size/x": "1", "colour": "blue", "tags": ["t"], "visibility": "community", "min_disk": 3,
                "protected": True, "disk_format": "qcow2"}
    assert {name: changed[name] for name in expected} == expected and "shape" not in changed
    answer = cloud.one.change(image["id"], {"op": "replace", "path": "/name", "value": None})
    assert answer.json()["name"] is None


def test_a_patch_in_the_older_spelling_means_the_same(cloud):
    image = cloud.one.create(colour="red")
    answer = cloud.one.change(image["id"], {"replace": "/name", "value": "n"}, {"add": "/shape", "value": "s"},
                              {"remove": "/colour"}, media="application/openstack-images-v2.0-json-patch")
    assert answer.status_code == 200, answer.text
    assert answer.json()["name"] == "n" and answer.json()["shape"] == "s" and "colour" not in answer.json()


@pytest.mark.parametrize(("operation", "status"), [
    ({"op": "replace", "path": "/status", "value": "active"}, 403),
    ({"op": "replace", "path": "/id", "value": UUID}, 403),
    ({"op": "add", "path": "/checksum", "value": "x"}, 403),
    ({"op": "add", "path": "/locations/-", "value": {}}, 403),
    ({"op": "remove", "path": "/name"}, 403),
    ({"op": "replace", "path": "/owner", "value": "two"}, 403),
    ({"op": "replace", "path": "/visibility", "value": "public"}, 403),
    ({"op": "replace", "path": "/visibility", "value": "secret"}, 400),
    ({"op": "replace", "path": "/missing", "value": "x"}, 409),
    ({"op": "remove", "path": "/missing"}, 409),
    ({"op": "move", "path": "/name", "from": "/x"}, 400),
    ({"op": "replace", "path": "name", "value": "x"}, 400),
    ({"op": "replace", "path": "/name/deeper", "value": "x"}, 400),
    ({"op": "replace", "path": "/min_ram", "value": "x"}, 400),
    ({"op": "replace", "path": "/min_ram", "value": 1.5}, 400),
    ({"op": "replace", "path": "/protected", "value": "true"}, 400),
    ({"op": "replace", "path": "/name", "value": 5}, 400),
    ({"op": "add", "path": "/colour", "value": 5}, 400),
    ({"op": "replace", "path": "/tags", "value": "t"}, 400),
    ({"op": "replace", "path": "/disk_format", "value": "floppy"}, 400),
    ({"op": "add", "path": "/" + "x" * 256, "value": "x"}, 400),
])
def test_a_bad_patch_changes_nothing(cloud, operation, status):
    image = cloud.one.create()
    answer = cloud.one.change(image["id"], {"op": "replace", "path": "/name", "value": "first"}, operation)
    assert answer.status_code == status, answer.text
    assert cloud.one.show(image["id"]) == image


def test_formats_are_fixed_once_there_is_data(cloud):
    image = cloud.one.create()
    cloud.one.upload(image["id"], b"data")
    answer = cloud.one.change(image["id"], {"op": "replace", "path": "/disk_format", "value": "qcow2"})
    assert answer.status_code == 403 and cloud.one.show(image["id"])["disk_format"] == "raw"


def test_a_patch_of_another_media_type_is_refused(cloud):
    image = cloud.one.create()
    assert cloud.one.change(image["id"], {"op": "remove", "path": "/x"}, media="application/json").status_code == 415


def test_an_admin_gives_an_image_to_another_project_with_its_quota(cloud):
    image = cloud.one.create()
    cloud.one.upload(image["id"], b"12345")
    assert cloud.admin.change(image["id"], {"op": "replace", "path": "/owner", "value": "two"}).status_code == 200
    assert cloud.used("one") == {} and cloud.used("two") == {"image_count_total": 1, "image_size_total": 5}


def test_a_protected_image_is_not_deleted(cloud):
    image = cloud.one.create(protected=True)
    answer = cloud.one.delete(f"/v2/images/{image['id']}")
    assert answer.status_code == 403 and "protected" in answer.text
    cloud.one.change(image["id"], {"op": "replace", "path": "/protected", "value": False})
    assert cloud.one.delete(f"/v2/images/{image['id']}").status_code == 204
    assert cloud.one.get(f"/v2/images/{image['id']}").status_code == 404
    assert cloud.used("one") == {}


def test_tags_come_and_go_one_by_one(cloud):
    path = f"/v2/images/{cloud.one.create()['id']}"
    assert cloud.one.put(f"{path}/tags/with%20space").status_code == 204
    assert cloud.one.put(f"{path}/tags/with%20space").status_code == 204
    assert cloud.one.get(path).json()["tags"] == ["with space"]
    assert cloud.one.delete(f"{path}/tags/with%20space").status_code == 204
    assert cloud.one.delete(f"{path}/tags/with%20space").status_code == 404


def test_sharing_needs_both_sides(cloud):
    image = cloud.one.create(name="shared")
    members = f"/v2/images/{image['id']}/members"
    answer = cloud.one.post(members, json={"member": "two"})
    assert answer.status_code == 200 and answer.json()["status"] == "pending" and answer.json()["schema"] == "/v2/schemas/member"
    assert cloud.one.post(members, json={"member": "two"}).status_code == 409
    assert cloud.two.names() == [] and cloud.two.names("member_status=pending") == ["shared"]
    assert cloud.two.show(image["id"])["name"] == "shared"
    assert cloud.one.put(f"{members}/two", json={"status": "accepted"}).status_code == 403
    assert cloud.two.put(f"{members}/two", json={"status": "perhaps"}).status_code == 400
    assert cloud.two.put(f"{members}/two", json={"status": "accepted"}).json()["status"] == "accepted"
    assert cloud.two.names() == ["shared"] and cloud.two.names("visibility=shared") == ["shared"]
    assert [member["member_id"] for member in cloud.two.get(members).json()["members"]] == ["two"]
    assert cloud.two.post(members, json={"member": "three"}).status_code == 403
    assert cloud.two.put(f"{members}/two", json={"status": "rejected"}).status_code == 200
    assert cloud.two.names() == [] and cloud.two.names("member_status=all") == ["shared"]
    assert cloud.one.delete(f"{members}/two").status_code == 204
    assert cloud.one.delete(f"{members}/two").status_code == 404
    assert cloud.two.get(f"/v2/images/{image['id']}").status_code == 404


def test_only_shared_images_have_members_and_a_deleted_image_leaves_none(cloud):
    private = cloud.one.create(visibility="private")
    assert cloud.one.post(f"/v2/images/{private['id']}/members", json={"member": "two"}).status_code == 403
    shared = cloud.one.create()
    for number in range(100):
        assert cloud.one.post(f"/v2/images/{shared['id']}/members", json={"member": f"p{number}"}).status_code == 200
    assert cloud.one.post(f"/v2/images/{shared['id']}/members", json={"member": "one-more"}).status_code == 409
    assert cloud.one.delete(f"/v2/images/{shared['id']}").status_code == 204
    assert not [key for key in cloud.store._records if key.startswith("/image/members/")]


def test_quota_counts_images(cloud):
    from control.kernel.database import Transaction
    from control.kernel.quota import LEDGER
    from protos.internal.v1.quota_pb2 import QuotaLedger

    def limit(tx: Transaction) -> None:
        tx.put(LEDGER, QuotaLedger(service="image", project_id="one", limits={"image_count_total": 1, "image_size_total": 4}))

    cloud.run(cloud.database.transact(limit))
    image = cloud.one.create()
    answer = cloud.one.post("/v2/images", json={"name": "second"})
    assert answer.status_code in (403, 413) and "image_count_total" in answer.text
    answer = cloud.one.upload(image["id"], b"12345")
    assert answer.status_code in (403, 413) and "image_size_total" in answer.text
    assert cloud.one.show(image["id"])["status"] == "queued" and cloud.files() == []
    assert cloud.one.upload(image["id"], b"1234").status_code == 204


def test_schemas_and_information_are_told(cloud):
    schema = cloud.one.get("/v2/schemas/image").json()
    assert schema["name"] == "image" and schema["additionalProperties"] == {"type": "string"}
    assert schema["properties"]["status"]["enum"][0] == "queued" and schema["properties"]["status"]["readOnly"] is True
    assert "qcow2" in schema["properties"]["disk_format"]["enum"]
    for name in ("images", "member", "members"):
        assert cloud.one.get(f"/v2/schemas/{name}").json()["name"] == name
    assert cloud.one.get("/v2/schemas/nothing").status_code == 404
    assert cloud.one.get("/v2/info/import").json()["import-methods"]["value"] == ["glance-direct"]
    assert cloud.one.get("/v2/info/stores").json()["stores"][0]["default"] == "true"


def test_without_a_valid_token_nothing_is_told(cloud):
    for token in (None, "stolen"):
        answer = cloud.one.get("/v2/images", headers={"X-Auth-Token": token})
        assert answer.status_code == 401
