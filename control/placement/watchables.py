"""Placement's providers can be watched, by those who may list them."""
from control.kernel.database import Database
from control.kernel.fleet import PROVIDER, USAGE
from control.kernel.watchable import EVERYBODY, Related, Watchable
from control.placement.resource_providers import shown


def watchables(database: Database) -> list[Watchable]:
    """What users of placement can watch."""
    return [Watchable("resource-providers", PROVIDER, "/placement.v1.ResourceProviders/ListResourceProviders",
                      lambda provider, call: shown(database, provider), audience=lambda reader, provider: [EVERYBODY],
                      related=[Related(USAGE, lambda reader, usage: [PROVIDER.key(usage.provider_uuid)])])]
