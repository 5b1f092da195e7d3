"""Version documents: what a client finds at the root of an API and at the root of each of its versions.

Every link in them is absolute and leads back to a document that says the same.
"""
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import orjson

from control.gateway.apis import Api, Family
from protos.brume.v1 import options_pb2

Version = options_pb2.Api.Version


@dataclass(frozen=True, slots=True)
class Collection:
    """A collection of a version, as Neutron's document of a version lists it."""

    name: str          # "networks"
    singular: str      # "network"
    path: str          # below the mount: "/v2.0/networks"


def paths(api: Api) -> dict[str, Version | None]:
    """The paths below the mount that have a document: None for the list of versions, else the version that it shows."""
    found: dict[str, Version | None] = {version.path.rstrip("/"): version for version in api.versions}
    if api.family == Family.GLANCE:
        found |= dict.fromkeys(found, None)
        found["/versions"] = None
    found[""] = None
    return found


def document(api: Api, path: str, version: Version | None, base: str, collections: Iterable[Collection]) -> tuple[int, bytes]:
    """Status and body of the document at a path.

    Args:
      path: below the mount.
      version: the version that the path shows; None: all.
      base: "http://host:5000"
    """
    root = base + api.mount
    if version is None:
        entries = [_entry(api, each, root) for each in api.versions]
        body: dict[str, Any] = {"versions": {"values": entries} if api.family == Family.KEYSTONE else entries}
        several = api.family in (Family.KEYSTONE, Family.GLANCE, Family.CINDER) and path != "/versions"
        return 300 if several else 200, orjson.dumps(body)
    if api.family == Family.NEUTRON:
        return 200, orjson.dumps({"resources": [
            {"links": [{"rel": "self", "href": root + each.path}], "name": each.singular, "collection": each.name}
            for each in collections if each.path.startswith(version.path.rstrip("/") + "/")]})
    entry = _entry(api, version, root)
    if api.family == Family.CINDER:
        return 200, orjson.dumps({"versions": [entry]})
    if api.family == Family.NOVA:
        entry["links"].append({"rel": "describedby", "type": "text/html", "href": "https://docs.openstack.org/"})
        entry["media-types"] = _media_types(f"application/vnd.openstack.{api.type}+json;version=2.1")
    return 200, orjson.dumps({"version": entry})


def _entry(api: Api, version: Version, root: str) -> dict[str, Any]:
    links = [{"rel": "self", "href": f"{root}{version.path.rstrip('/')}/"}]
    entry: dict[str, Any] = {"id": version.id, "status": version.status, "links": links}
    if version.updated:
        entry["updated"] = version.updated
    match api.family:
        case Family.KEYSTONE:
            entry["media-types"] = _media_types("application/vnd.openstack.identity-v3+json")
        case Family.NOVA:
            entry |= {"version": version.max_version, "min_version": version.min_version}
        case Family.CINDER:
            entry |= {"version": version.max_version, "min_version": version.min_version,
                      "media-types": _media_types("application/vnd.openstack.volume+json;version=3")}
        case Family.PLACEMENT:
            entry |= {"max_version": version.max_version, "min_version": version.min_version}
    return entry


def _media_types(media_type: str) -> list[dict[str, str]]:
    return [{"base": "application/json", "type": media_type}]
