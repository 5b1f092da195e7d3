"""The Placement API over HTTP: what each call answers at its microversions, to whom, and what bad input leaves as it was."""
import uuid

import pytest

from control.kernel import fleet
from control.placement.host_providers import HostProviders
from protos.internal.v1.fleet_pb2 import HostRecord
from protos.internal.v1.hosts_pb2 import Inventory
from tests.placement.conftest import Client, Cloud

NIL = str(uuid.UUID(int=0))


def code(answer) -> tuple[int, str]:
    return answer.status_code, answer.json()["errors"][0]["code"]


# Providers

def test_a_provider_is_made_shown_and_listed_in_the_shape_of_its_microversion(admin: Client):
    old, new = admin.at("1.0"), admin
    made = old.post("/resource_providers", json={"name": "a"})
    assert (made.status_code, made.content) == (201, b"")
    shown = old.get(made.headers["Location"]).json()
    assert set(shown) == {"uuid", "name", "generation", "links"} and shown["generation"] == 0
    assert [link["rel"] for link in shown["links"]] == ["self", "inventories", "usages"]
    made = new.post("/resource_providers", json={"name": "b", "uuid": uuid.uuid4().hex, "parent_provider_uuid": shown["uuid"]})
    assert made.status_code == 200 and made.json()["root_provider_uuid"] == shown["uuid"]
    assert made.headers["Cache-Control"] == "no-cache" and "Last-Modified" in made.headers
    assert {link["rel"] for link in made.json()["links"]} == {
        "self", "inventories", "usages", "traits", "aggregates", "allocations"}
    tree = new.get(f"/resource_providers?in_tree={made.json()['uuid']}").json()["resource_providers"]
    assert [each["name"] for each in tree] == ["a", "b"]
    assert old.get("/resource_providers?name=b").json()["resource_providers"][0]["uuid"] == made.json()["uuid"]


def test_names_and_uuids_are_used_once(admin: Client):
    provider = admin.provider("a")
    assert code(admin.post("/resource_providers", json={"name": "a"})) == (409, "placement.duplicate_name")
    assert code(admin.post("/resource_providers", json={"name": "b", "uuid": provider})) == (409, "placement.duplicate_name")
    other = admin.provider("b")
    assert code(admin.put(f"/resource_providers/{other}", json={"name": "a"})) == (409, "placement.duplicate_name")
    assert admin.put(f"/resource_providers/{provider}", json={"name": "c"}).json()["name"] == "c"
    assert admin.put(f"/resource_providers/{other}", json={"name": "a"}).status_code == 200, "the old name is free"


def test_a_provider_moves_as_far_as_the_microversion_lets_it(admin: Client):
    first, second, child = admin.provider("a"), admin.provider("b"), admin.provider("c")
    grandchild = admin.provider("d", parent=child)
    old = admin.at("1.36")

    def move(client: Client, parent: str | None):
        return client.put(f"/resource_providers/{child}", json={"name": "c", "parent_provider_uuid": parent})

    assert move(old, first).json()["root_provider_uuid"] == first
    assert admin.get(f"/resource_providers/{grandchild}").json()["root_provider_uuid"] == first
    assert move(old, second).status_code == 400 and move(old, None).status_code == 400
    assert move(admin, grandchild).status_code == 400, "nothing is below itself"
    assert move(admin, second).json()["root_provider_uuid"] == second
    assert move(admin, None).json()["parent_provider_uuid"] is None
    assert admin.get(f"/resource_providers/{grandchild}").json()["root_provider_uuid"] == child
    assert code(admin.delete(f"/resource_providers/{child}")) == (409, "placement.resource_provider.cannot_delete_parent")


def test_a_tree_has_so_many_levels_and_providers_at_most(admin: Client):
    above = ""
    for _ in range(10):
        above = admin.provider(parent=above)
    answer = admin.post("/resource_providers", json={"name": "deep", "parent_provider_uuid": above})
    assert answer.status_code == 400 and "10 levels" in answer.text
    root = admin.provider()
    for _ in range(39):
        admin.provider(parent=root)
    answer = admin.post("/resource_providers", json={"name": "wide", "parent_provider_uuid": root})
    assert answer.status_code == 400 and "at most 40" in answer.text
    moved = admin.put(f"/resource_providers/{above}", json={"name": "moved", "parent_provider_uuid": root})
    assert moved.status_code == 400 and admin.get(f"/resource_providers/{above}").json()["root_provider_uuid"] != root


def test_a_hosts_own_provider_follows_its_host_alone(cloud: Cloud, admin: Client):
    host = HostRecord(name="node-1", id=str(uuid.uuid4()), up=True, inventory=Inventory(vcpus=4, ram_mib=4096, disk_gib=10))

    def attach(tx):
        tx.put(fleet.HOST, host)
        HostProviders().refresh(tx, host)

    cloud.run(cloud.database.transact(attach))
    path = f"/resource_providers/{host.id}"
    assert admin.get(path).json()["name"] == "node-1"
    assert admin.get(f"{path}/inventories").json()["inventories"]["MEMORY_MB"]["reserved"] == 512
    assert code(admin.delete(path)) == (409, "placement.resource_provider.inuse")
    assert admin.put(path, json={"name": "other"}).status_code == 409
    assert admin.put(path, json={"name": "node-1", "parent_provider_uuid": admin.provider()}).status_code == 409
    assert admin.provider(parent=host.id, SRIOV_NET_VF=4), "but it may have parts"


# Inventories

def test_an_inventory_gets_the_defaults_and_generations_are_compared(admin: Client):
    provider = admin.provider()
    path = f"/resource_providers/{provider}/inventories"
    made = admin.post(path, json={"resource_class": "VCPU", "total": 8})
    assert made.status_code == 201 and made.headers["Location"].endswith(f"{path}/VCPU")
    assert made.json() == {"resource_provider_generation": 1, "total": 8, "reserved": 0, "min_unit": 1, "max_unit": 2147483647,
                           "step_size": 1, "allocation_ratio": 1.0}
    assert admin.post(path, json={"resource_class": "VCPU", "total": 8}).status_code == 409
    stale = admin.put(f"{path}/VCPU", json={"resource_provider_generation": 0, "total": 9})
    assert code(stale) == (409, "placement.concurrent_update")
    assert admin.put(f"{path}/VCPU", json={"resource_provider_generation": 1, "total": 9}).json()["total"] == 9
    assert admin.get(path).json()["resource_provider_generation"] == 2
    assert admin.delete(f"{path}/VCPU").status_code == 204 and admin.get(f"{path}/VCPU").status_code == 404


def test_what_is_allocated_of_may_be_made_less_but_not_taken_away(admin: Client):
    provider = admin.provider(VCPU=8, DISK_GB=10)
    consumer = str(uuid.uuid4())
    assert admin.allocate(consumer, **{provider: {"VCPU": 6}}).status_code == 204
    path = f"/resource_providers/{provider}/inventories"
    generation = admin.generation(provider)
    for refused in (admin.delete(f"{path}/VCPU"), admin.delete(path), admin.put(path, json={
            "resource_provider_generation": generation, "inventories": {"DISK_GB": {"total": 10}}})):
        assert code(refused) == (409, "placement.inventory.inuse")
    assert code(admin.delete(f"/resource_providers/{provider}")) == (409, "placement.resource_provider.inuse")
    assert admin.generation(provider) == generation, "a refused call changes nothing"
    less = admin.put(f"{path}/VCPU", json={"resource_provider_generation": generation, "total": 4})
    assert less.status_code == 200
    assert admin.allocate(consumer, 1, **{provider: {"VCPU": 5}}).status_code == 204, "over capacity already, and less so now"
    assert admin.allocate(consumer, 2, **{provider: {"VCPU": 6}}).status_code == 409
    assert admin.allocate(str(uuid.uuid4()), **{provider: {"VCPU": 1}}).status_code == 409


@pytest.mark.parametrize("fields", [
    {"total": 0}, {"total": 2**31}, {"total": -1}, {"total": "8"}, {"total": 1.5}, {"total": 8, "reserved": 9},
    {"total": 8, "reserved": -1}, {"total": 8, "min_unit": 0}, {"total": 8, "max_unit": 0}, {"total": 8, "step_size": 0},
    {"total": 8, "allocation_ratio": -1.0}, {"total": 8, "allocation_ratio": 1e39}, {"total": 8, "color": "red"}, {}])
def test_an_inventory_that_makes_no_sense_is_refused_and_changes_nothing(admin: Client, fields):
    provider = admin.provider(DISK_GB=5)
    path = f"/resource_providers/{provider}/inventories"
    before = admin.get(path).json()
    assert admin.post(path, json={"resource_class": "VCPU", **fields}).status_code == 400
    assert admin.put(path, json={"resource_provider_generation": before["resource_provider_generation"],
                                 "inventories": {"VCPU": fields}}).status_code == 400
    assert admin.get(path).json() == before


def test_all_of_an_inventory_may_be_reserved_from_1_26_on(admin: Client):
    path = f"/resource_providers/{admin.provider()}/inventories"
    wanted = {"resource_class": "VCPU", "total": 8, "reserved": 8}
    assert admin.at("1.25").post(path, json=wanted).status_code == 400
    assert admin.post(path, json=wanted).status_code == 201


# Names

@pytest.mark.parametrize("noun", ["traits", "resource_classes"])
def test_custom_names_are_made_once_and_deleted_while_nobody_has_them(admin: Client, noun: str):
    name = "CUSTOM_X"
    assert [admin.put(f"/{noun}/{name}").status_code for _ in range(2)] == [201, 204]
    more = {"traits": [name]} if noun == "traits" else {name: 4}
    provider = admin.provider(**more)
    assert admin.delete(f"/{noun}/{name}").status_code == 409
    path = f"/resource_providers/{provider}/{'traits' if noun == 'traits' else 'inventories'}"
    assert admin.delete(path).status_code == 204
    assert admin.delete(f"/{noun}/{name}").status_code == 204 and admin.get(f"/{noun}/{name}").status_code == 404
    standard = "HW_CPU_X86_AVX2" if noun == "traits" else "VCPU"
    assert admin.delete(f"/{noun}/{standard}").status_code == 400 and admin.put(f"/{noun}/{standard}").status_code == 400
    for bad in ("CUSTOM_x", "CUSTOM_", "RED", "CUSTOM_" + "A" * 249):
        assert admin.put(f"/{noun}/{bad}").status_code == 400, bad


def test_a_resource_class_is_renamed_by_the_old_microversions(admin: Client):
    old = admin.at("1.6")
    assert old.post("/resource_classes", json={"name": "CUSTOM_A"}).status_code == 201
    assert old.post("/resource_classes", json={"name": "CUSTOM_A"}).status_code == 409
    assert old.put("/resource_classes/CUSTOM_A", json={"name": "CUSTOM_B"}).json()["name"] == "CUSTOM_B"
    assert old.get("/resource_classes/CUSTOM_A").status_code == 404
    assert old.put("/resource_classes/CUSTOM_A", json={"name": "CUSTOM_C"}).status_code == 404
    admin.provider(CUSTOM_B=1)
    assert old.put("/resource_classes/CUSTOM_B", json={"name": "CUSTOM_C"}).status_code == 409
    assert old.get("/resource_classes/CUSTOM_C").status_code == 404, "a refused call changes nothing"


def test_aggregates_are_a_plain_list_before_1_19_and_compared_from_then_on(admin: Client):
    provider, aggregate = admin.provider(), str(uuid.uuid4())
    path, old = f"/resource_providers/{provider}/aggregates", admin.at("1.18")
    assert old.put(path, json=[aggregate]).json() == {"aggregates": [aggregate]}
    assert admin.get(path).json() == {"aggregates": [aggregate], "resource_provider_generation": 0}
    stale = admin.put(path, json={"aggregates": [], "resource_provider_generation": 5})
    assert code(stale) == (409, "placement.concurrent_update")
    for bad in ([aggregate, aggregate], ["x"], [str(uuid.uuid4()) for _ in range(201)], "x"):
        assert admin.put(path, json={"aggregates": bad, "resource_provider_generation": 0}).status_code == 400
    assert admin.put(path, json={"aggregates": [], "resource_provider_generation": 0}).json()["resource_provider_generation"] == 1


# Allocations

def test_a_consumers_generation_is_compared(admin: Client):
    provider, consumer = admin.provider(VCPU=8), str(uuid.uuid4())
    assert code(admin.allocate(consumer, 1, **{provider: {"VCPU": 1}})) == (409, "placement.concurrent_update")
    assert admin.allocate(consumer, None, **{provider: {"VCPU": 1}}).status_code == 204
    assert code(admin.allocate(consumer, None, **{provider: {"VCPU": 1}})) == (409, "placement.concurrent_update")
    shown = admin.get(f"/allocations/{consumer}").json()
    assert (shown["consumer_generation"], shown["consumer_type"], shown["project_id"]) == (1, "INSTANCE", "p")
    assert admin.allocate(consumer, 1).status_code == 204, "nothing in its place gives it back"
    assert admin.get(f"/allocations/{consumer}").json() == {"allocations": {}}
    empty = {"allocations": {}, "project_id": "p", "user_id": "u"}
    assert admin.at("1.12").put(f"/allocations/{consumer}", json=empty).status_code == 400


def test_one_consumer_takes_what_another_gives_back_in_one_call_or_nothing_happens(admin: Client):
    provider, first, second = admin.provider(VCPU=4), str(uuid.uuid4()), str(uuid.uuid4())
    assert admin.allocate(first, **{provider: {"VCPU": 4}}).status_code == 204

    def wish(amount: int, generation: int | None) -> dict:
        return {"allocations": {provider: {"resources": {"VCPU": amount}}} if amount else {}, "project_id": "p", "user_id": "u",
                "consumer_generation": generation, "consumer_type": "MIGRATION"}

    assert admin.post("/allocations", json={first: wish(1, 1), second: wish(4, None)}).status_code == 409
    assert admin.post("/allocations", json={first: wish(0, 7), second: wish(4, None)}).status_code == 409
    assert admin.get(f"/allocations/{second}").json() == {"allocations": {}}
    assert admin.post("/allocations", json={first: wish(0, 1), second: wish(4, None)}).status_code == 204
    held = admin.get(f"/resource_providers/{provider}/allocations").json()["allocations"]
    assert held == {second: {"resources": {"VCPU": 4}, "consumer_generation": 1}}


@pytest.mark.parametrize("change", [
    {"allocations": {"x": {"resources": {"VCPU": 1}}}}, {"allocations": {NIL: {"resources": {"VCPU": 1}}}},
    {"allocations": {NIL: {}}}, {"project_id": ""}, {"user_id": "u" * 256}, {"consumer_type": "instance"},
    {"consumer_type": None},
    {"consumer_generation": "1"}, {"mappings": {"a": ["x"]}}, {"resources": {"VCPU": 0}}, {"resources": {"VCPU": 2**31}},
    {"resources": {"VCPU": -1}}, {"resources": {}}, {"resources": {"vcpu": 1}}, {"resources": {"CUSTOM_NONE": 1}},
    {"allocations": {str(uuid.UUID(int=number)): {"resources": {"VCPU": 1}} for number in range(41)}}])
def test_an_allocation_that_makes_no_sense_is_refused_and_changes_nothing(admin: Client, change: dict):
    provider, consumer = admin.provider(VCPU=8), str(uuid.uuid4())
    wish = {"allocations": {provider: {"resources": change.pop("resources", {"VCPU": 1})}}, "project_id": "p", "user_id": "u",
            "consumer_generation": None, "consumer_type": "INSTANCE", **change}
    answer = admin.put(f"/allocations/{consumer}", json=wish)
    assert answer.status_code == 400 and "Traceback" not in answer.text
    assert admin.get(f"/allocations/{consumer}").json() == {"allocations": {}} and admin.generation(provider) == 1


def test_a_body_lacks_none_of_its_keys_and_null_stands_for_a_new_consumer_only(admin: Client):
    provider = admin.provider(VCPU=8)
    wish = {"allocations": {provider: {"resources": {"VCPU": 1}}}, "project_id": "p", "user_id": "u", "consumer_generation": None,
            "consumer_type": "INSTANCE"}
    for key in wish:
        lacking = {name: value for name, value in wish.items() if name != key}
        answer = admin.put(f"/allocations/{uuid.uuid4()}", json=lacking)
        assert answer.status_code == 400 and f"'{key}' is a required property" in answer.text
    assert admin.put("/allocations/x", json=wish).status_code == 400
    assert admin.at("1.27").put(f"/allocations/{uuid.uuid4()}", json={**wish, "consumer_generation": 1}).status_code == 400
    assert admin.put(f"/allocations/{uuid.uuid4()}", json=wish).status_code == 204


def test_a_request_that_no_commit_can_hold_is_refused_whole(admin: Client):
    providers = [admin.provider(VCPU=100) for _ in range(40)]
    wish = {"allocations": {provider: {"resources": {"VCPU": 1}} for provider in providers}, "project_id": "p", "user_id": "u",
            "consumer_generation": None, "consumer_type": "INSTANCE"}
    many = {str(uuid.uuid4()): wish for _ in range(60)}
    answer = admin.post("/allocations", json=many)
    assert answer.status_code == 413 and "split it" in answer.text
    assert all(admin.get(f"/resource_providers/{provider}/usages").json()["usages"] == {"VCPU": 0} for provider in providers)
    assert admin.post("/allocations", json=dict(list(many.items())[:40])).status_code == 204
    assert admin.post("/allocations", json={str(uuid.uuid4()): wish for _ in range(101)}).status_code == 400


def test_the_reshaper_moves_inventory_with_what_is_allocated_of_it(admin: Client):
    root = admin.provider(VCPU=8, DISK_GB=10)
    child, consumer = admin.provider(parent=root), str(uuid.uuid4())
    assert admin.allocate(consumer, **{root: {"VCPU": 6, "DISK_GB": 5}}).status_code == 204

    def reshape(cpus: int, generation: int = 1) -> dict:
        return {"inventories": {
            root: {"resource_provider_generation": admin.generation(root), "inventories": {"DISK_GB": {"total": 10}}},
            child: {"resource_provider_generation": admin.generation(child), "inventories": {"VCPU": {"total": cpus}}}},
            "allocations": {consumer: {
                "allocations": {root: {"resources": {"DISK_GB": 5}}, child: {"resources": {"VCPU": 6}}}, "project_id": "p",
                "user_id": "u", "consumer_generation": generation, "consumer_type": "INSTANCE"}}}

    assert admin.at("1.29").post("/reshaper", json=reshape(8)).status_code == 404
    assert admin.post("/reshaper", json=reshape(5)).status_code == 409
    assert code(admin.post("/reshaper", json=reshape(8, generation=3))) == (409, "placement.concurrent_update")
    alone = {**reshape(8), "allocations": {}}
    assert code(admin.post("/reshaper", json=alone)) == (409, "placement.inventory.inuse")
    assert admin.get(f"/resource_providers/{child}/inventories").json()["inventories"] == {}, "a refused call changes nothing"
    assert admin.post("/reshaper", json=reshape(8)).status_code == 204
    assert admin.get(f"/resource_providers/{root}/usages").json()["usages"] == {"DISK_GB": 5}
    assert admin.get(f"/resource_providers/{child}/usages").json()["usages"] == {"VCPU": 6}


# Usages and candidates

def test_a_projects_usage_is_its_readers_to_see_and_nobody_elses(cloud: Cloud, admin: Client):
    provider = admin.provider(VCPU=8)
    assert admin.allocate(str(uuid.uuid4()), **{provider: {"VCPU": 2}}).status_code == 204
    old, wish = admin.at("1.27"), {"allocations": {provider: {"resources": {"VCPU": 1}}}, "project_id": "p", "user_id": "v"}
    assert old.put(f"/allocations/{uuid.uuid4()}", json=wish).status_code == 204
    assert old.get("/usages?project_id=p").json() == {"usages": {"VCPU": 3}}
    assert old.get("/usages?project_id=p&user_id=v").json() == {"usages": {"VCPU": 1}}
    assert admin.get("/usages?project_id=p").json() == {"usages": {
        "INSTANCE": {"consumer_count": 1, "VCPU": 2}, "unknown": {"consumer_count": 1, "VCPU": 1}}}
    assert admin.get("/usages?project_id=p&consumer_type=all").json() == {"usages": {"all": {"consumer_count": 2, "VCPU": 3}}}
    assert Client(cloud.url, "reader:p").get("/usages?project_id=p").status_code == 200
    assert Client(cloud.url, "reader:q").get("/usages?project_id=p").status_code == 403
    assert admin.get("/usages").status_code == 400


@pytest.mark.parametrize("path", [
    "/resource_providers", "/traits", "/resource_classes", "/allocation_candidates?resources=VCPU:1", f"/allocations/{NIL}",
    f"/resource_providers/{NIL}/usages"])
def test_all_else_is_for_admins_and_services(cloud: Cloud, path: str):
    for name in ("member", "reader", "nobody"):
        assert Client(cloud.url, name).get(path).status_code == 403
    assert Client(cloud.url, "service").get(path).status_code in (200, 404)
    assert Client(cloud.url, "").get(path).status_code == 401


def test_candidates_have_the_shape_of_their_microversion(admin: Client):
    root = admin.provider(VCPU=8, MEMORY_MB=64, traits=["CUSTOM_RED"])
    child = admin.provider(parent=root, SRIOV_NET_VF=4)
    lists = admin.at("1.10").get("/allocation_candidates?resources=VCPU:2").json()
    assert lists["allocation_requests"] == [{"allocations": [{"resource_provider": {"uuid": root}, "resources": {"VCPU": 2}}]}]
    assert lists["provider_summaries"] == {root: {"resources": {"VCPU": {"capacity": 8, "used": 0}}}}
    query = "/allocation_candidates?resources=VCPU:2&resources_VF=SRIOV_NET_VF:1&required=CUSTOM_RED"
    assert admin.at("1.28").get(query.replace("_VF=", "1=")).json()["allocation_requests"] == [], "no parts before 1.29"
    new = admin.get(query).json()
    assert new["allocation_requests"] == [{
        "allocations": {root: {"resources": {"VCPU": 2}}, child: {"resources": {"SRIOV_NET_VF": 1}}},
        "mappings": {"": [root], "_VF": [child]}}]
    assert new["provider_summaries"][child] == {"resources": {"SRIOV_NET_VF": {"capacity": 4, "used": 0}}, "traits": [],
                                                "parent_provider_uuid": root, "root_provider_uuid": root}
    assert new["provider_summaries"][root]["traits"] == ["CUSTOM_RED"]
    consumer = str(uuid.uuid4())
    answer = admin.put(f"/allocations/{consumer}", json={**new["allocation_requests"][0], "project_id": "p", "user_id": "u",
                                                        "consumer_generation": None, "consumer_type": "INSTANCE"})
    assert answer.status_code == 204, "a candidate is what a PUT takes"
    assert admin.get(query).json()["provider_summaries"][root]["resources"]["VCPU"] == {"capacity": 8, "used": 2}


@pytest.mark.parametrize(("microversion", "query", "text"), [
    ("1.39", "", "missing_value"), ("1.35", "", "At least one request group"), ("1.39", "resources=VCPU", "resources"),
    ("1.39", "resources=VCPU:0", "VCPU"), ("1.39", "resources=VCPU:2147483648", "VCPU"),
    ("1.39", "resources=NONE:1", "No such resource class"), ("1.39", "resources=VCPU:1&required=CUSTOM_NONE", "No such trait"),
    ("1.39", "resources=VCPU:1&required=in:A,!B", "required"), ("1.38", "resources=VCPU:1&required=in:HW_CPU_X86_SSE", "1.39"),
    ("1.21", "resources=VCPU:1&required=!HW_CPU_X86_SSE", "required"),
    ("1.39", "resources=VCPU:1&required=HW_CPU_X86_SSE,!HW_CPU_X86_SSE", "Conflicting"),
    ("1.39", "resources=VCPU:1&member_of=x", "UUID"), ("1.31", f"resources=VCPU:1&member_of=!{NIL}", "Forbidden"),
    ("1.39", "resources=VCPU:1&limit=0", "limit"), ("1.39", "resources1=VCPU:1&resources2=VCPU:1", "group_policy"),
    ("1.39", "resources=VCPU:1&group_policy=some", "group_policy"), ("1.39", "resources=VCPU:1&in_tree=x", "in_tree"),
    ("1.30", f"resources=VCPU:1&in_tree={NIL}", "in_tree"), ("1.39", "resources=VCPU:1&color=red", "color"),
    ("1.32", "resources_A=VCPU:1", "resources_A"), ("1.24", "resources1=VCPU:1", "resources1"),
    ("1.39", "resources=VCPU:1&same_subtree=_A", "_A"), ("1.39", "resources=VCPU:1&required_A=HW_CPU_X86_SSE", "same_subtree"),
    ("1.39", "resources=VCPU:1&root_required=HW_CPU_X86_SSE&root_required=HW_CPU_X86_AVX", "once"),
    ("1.39", "&".join(f"resources{number}=VCPU:1" for number in range(1, 60)) + "&group_policy=none", "at most 50")])
def test_a_request_for_candidates_that_makes_no_sense_is_told_so(admin: Client, microversion: str, query: str, text: str):
    answer = admin.at(microversion).get(f"/allocation_candidates?{query}")
    assert answer.status_code == 400 and text in answer.text


def test_the_view_follows_every_change(admin: Client):
    provider = admin.provider(VCPU=4)
    path = "/allocation_candidates?resources=VCPU:3"
    assert len(admin.get(path).json()["allocation_requests"]) == 1
    consumer = str(uuid.uuid4())
    admin.allocate(consumer, **{provider: {"VCPU": 2}})
    assert admin.get(path).json()["allocation_requests"] == []
    assert admin.get("/resource_providers?resources=VCPU:3").json()["resource_providers"] == []
    admin.delete(f"/allocations/{consumer}")
    assert len(admin.get("/resource_providers?resources=VCPU:3").json()["resource_providers"]) == 1
    admin.delete(f"/resource_providers/{provider}")
    assert admin.get(path).json() == {"allocation_requests": [], "provider_summaries": {}}
