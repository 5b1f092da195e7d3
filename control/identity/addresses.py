"""The catalog as a token's holder sees it: enabled services with the addresses of their enabled endpoints."""
import re

from control.identity.model import ENDPOINT, SERVICE
from control.kernel.database import Database
from protos.identity.v1.tokens_pb2 import CatalogEndpoint, CatalogEntry

_PROJECT = re.compile(r"[$%]\((?:project_id|tenant_id)\)s")


def catalog_for(db: Database, project_id: str) -> list[CatalogEntry]:
    """Services by type, for a project ("": no project, and no endpoint whose address needs one)."""
    entries = []
    for service in sorted(db.cache.all(SERVICE), key=lambda service: (service.type, service.id)):
        if not service.enabled:
            continue
        endpoints = [
            CatalogEndpoint(id=endpoint.id, interface=endpoint.interface, region=endpoint.region_id, region_id=endpoint.region_id,
                            url=_PROJECT.sub(project_id, endpoint.url))
            for endpoint in sorted(db.cache.by(ENDPOINT, "service", service.id),
                                   key=lambda row: (row.region_id, row.interface, row.id))
            if endpoint.enabled and (project_id or not _PROJECT.search(endpoint.url))]
        for endpoint in endpoints:
            if not endpoint.region_id:
                endpoint.ClearField("region_id")
                endpoint.ClearField("region")
        if endpoints:
            entries.append(CatalogEntry(id=service.id, type=service.type, name=service.name, endpoints=endpoints))
    return entries
