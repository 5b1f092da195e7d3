"""The catalog as a token's holder sees it: enabled services with the addresses of their enabled endpoints."""
import re
from collections.abc import Callable

from control.identity.model import ENDPOINT, ENDPOINT_GRANT, ENDPOINT_GROUP, SERVICE
from control.kernel.database import Database
from protos.identity.v1.catalog_pb2 import Endpoint
from protos.identity.v1.endpoint_filters_pb2 import EndpointGroup
from protos.identity.v1.tokens_pb2 import CatalogEndpoint, CatalogEntry

_PROJECT = re.compile(r"[$%]\((?:project_id|tenant_id)\)s")


def catalog_for(db: Database, project_id: str) -> list[CatalogEntry]:
    """Services by type, for a project ("": no project, and no endpoint whose address needs one)."""
    is_given = granted(db, project_id)
    entries = []
    for service in sorted(db.cache.all(SERVICE), key=lambda service: (service.type, service.id)):
        if not service.enabled:
            continue
        endpoints = [
            CatalogEndpoint(id=endpoint.id, interface=endpoint.interface, region=endpoint.region_id, region_id=endpoint.region_id,
                            url=_PROJECT.sub(project_id, endpoint.url))
            for endpoint in sorted(db.cache.by(ENDPOINT, "service", service.id),
                                   key=lambda row: (row.region_id, row.interface, row.id))
            if endpoint.enabled and (project_id or not _PROJECT.search(endpoint.url))
            and (is_given is None or is_given(endpoint))]
        for endpoint in endpoints:
            if not endpoint.region_id:
                endpoint.ClearField("region_id")
                endpoint.ClearField("region")
        if endpoints:
            entries.append(CatalogEntry(id=service.id, type=service.type, name=service.name, endpoints=endpoints))
    return entries


def granted(db: Database, project_id: str) -> Callable[[Endpoint], bool] | None:
    """Whether a project was given an endpoint, in a group or by itself; None for one that was given none, and so has all."""
    grants = db.cache.by(ENDPOINT_GRANT, "project", project_id) if project_id else []
    if not grants:
        return None
    own = {grant.id for grant in grants if grant.what == "endpoint"}
    groups = [group for grant in grants if grant.what == "group" and (group := db.get(ENDPOINT_GROUP, grant.id)) is not None]
    return lambda endpoint: endpoint.id in own or any(in_group(endpoint, group) for group in groups)


def in_group(endpoint: Endpoint, group: EndpointGroup) -> bool:
    """Whether an endpoint matches all filters of a group."""
    return all(getattr(endpoint, name, None) == value for name, value in group.filters.items())
