"""The OpenAPI documents: valid, complete, and true to what the gateway does; served beside OpenStack's own paths."""
import json

import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from control.gateway.app import Gateway
from control.gateway.openapi import document
from control.kernel.rpc import Dispatcher
from tests.gateway.test_descriptors import PACKAGES, Anything, services


@pytest.fixture(scope="module")
def documents() -> dict[str, dict]:
    """Of every API of the cloud, as JSON has them."""
    dispatcher = Dispatcher(Anything())
    for folder in PACKAGES:
        for service in services(folder):
            dispatcher.add(Anything(), service)
    routes = Gateway(dispatcher).routes
    return {api.type: json.loads(json.dumps(document(api, routes.rules))) for api in routes.apis}


@pytest.fixture
async def toys(client) -> dict[str, dict]:
    """Of the toys, which have every shape."""
    return {name: (await client("GET", f"{mount}/openapi.json")).json
            for name, mount in (("identity", ""), ("compute", "/compute"), ("image", "/image"), ("network", "/network"))}


@pytest.mark.parametrize("name", sorted(folder.parent.name for folder in PACKAGES))
def test_every_api_has_a_valid_document(documents, name):
    assert documents[name]["openapi"] == "3.1.0"
    assert not list(OpenAPIV31SpecValidator(documents[name]).iter_errors())


def test_every_toy_has_a_valid_document(toys):
    for toy in toys.values():
        assert not list(OpenAPIV31SpecValidator(toy).iter_errors())


def test_every_operation_and_field_that_has_a_comment_says_it(documents):
    create = documents["compute"]["paths"]["/compute/v2.1/os-keypairs"]["post"]
    assert create["summary"] == "Imports a public key, or makes a pair: the private key is in this one answer and is not kept"
    for name, api in documents.items():
        silent = [operation["operationId"] for verbs in api["paths"].values() for operation in verbs.values()
                  if not operation["summary"]]
        assert not silent, name


def test_actions_are_bodies_of_one_operation(toys):
    operation = toys["compute"]["paths"]["/compute/v2.1/servers/{server_id}/action"]["post"]
    forms = operation["requestBody"]["content"]["application/json"]["schema"]["oneOf"]
    assert {key for form in forms for key in form["required"]} >= {"os-stop", "reboot"}
    assert all(len(form["properties"]) == 1 and not form["additionalProperties"] for form in forms)


def test_microversions_nulls_and_free_properties_are_told(toys):
    server = toys["compute"]["components"]["schemas"]["toycompute.v1.Server"]
    bound = [field for field in server["properties"].values() if "x-openstack-microversion" in field]
    assert bound and "secret" not in server["properties"] and "links" in server["required"]
    assert any(field.get("type") == ["string", "null"] for field in server["properties"].values())
    image = toys["image"]["components"]["schemas"]["toyimage.v1.Image"]
    assert image["additionalProperties"] is not False


def test_an_answer_that_has_its_body_from_a_microversion_on_is_told_with_and_without(documents):
    answers = documents["placement"]["paths"]["/placement/resource_providers"]["post"]["responses"]
    assert "content" not in answers["201"] and "application/json" in answers["200"]["content"]


async def test_a_body_that_comes_under_the_same_status_is_told_with_its_microversion(client):
    toy = (await client("GET", "/placement/openapi.json")).json
    answer = toy["paths"]["/placement/resource_providers"]["post"]["responses"]["201"]
    assert "content" in answer and "There is a body from microversion 1.20 on." in answer["description"]


def test_bytes_are_no_json_and_errors_have_the_familys_envelope(toys):
    upload = toys["image"]["paths"]["/image/v2/images/{image_id}/file"]["put"]
    assert list(upload["requestBody"]["content"]) == ["application/octet-stream"]
    missing = toys["network"]["components"]["responses"]["404"]["content"]["application/json"]["schema"]
    assert list(missing["properties"]) == ["NeutronError"]


@pytest.mark.parametrize("path", ["/openapi.json", "/v3/openapi.json", "/compute/openapi.json", "/compute/v2.1/openapi.json"])
async def test_a_document_needs_no_token_and_is_sent_once(client, path):
    first = await client("GET", path, headers={"x-auth-token": None})
    assert first.status == 200 and first.headers["content-type"] == "application/json"
    again = await client("GET", path, headers={"if-none-match": first.headers["etag"]})
    assert (again.status, again.body) == (304, b"")


async def test_the_page_takes_nothing_from_elsewhere(client):
    page = await client("GET", "/compute/docs")
    assert page.status == 200 and page.headers["content-type"].startswith("text/html")
    assert b"http://" not in page.body and b"https://" not in page.body and b"{{" not in page.body
    assert page.headers["content-security-policy"].startswith("default-src 'none'") and "sha256-" in str(page.headers)
    assert (await client("POST", "/compute/docs")).status == 404
