"""Journal entries as CADF events (DMTF DSP0262), which collectors of audit trails read."""
import uuid
from typing import Any

EVENT = "http://schemas.dmtf.org/cloud/audit/1.0/event"
_NAMESPACE = uuid.UUID("6f2f3a5e-6a4b-4d0c-9a5c-0f7c6b2f9f11")

#: Service of a kind -> where its resources stand in CADF's taxonomy.
_TARGETS = {"compute": "service/compute", "network": "service/network", "image": "service/image", "identity": "data/security",
            "placement": "service/compute", "internal": "service"}


def event(entry: dict[str, Any], observer: str) -> dict[str, Any]:
    """The event of a "change". `observer`: the name of the cloud. Its id is the same whenever it is made of the same entry."""
    noun, _, actor_id = entry["actor"].partition(":")
    action = "create" if entry["before"] is None else "delete" if entry["after"] is None else "update"
    return {
        "typeURI": EVENT, "eventType": "activity", "id": str(uuid.uuid5(_NAMESPACE, entry["hash"])),
        "eventTime": entry["time"], "action": action, "outcome": "success",
        "initiator": {"id": actor_id or entry["actor"] or "unknown",
                      "typeURI": "service/security/account/user" if noun == "user" else "service/compute/node" if noun == "agent"
                      else "service", **({"project_id": entry["project"]} if entry["project"] else {}),
                      **({"request_id": entry["request"]} if entry["request"] else {})},
        "target": {"id": entry["id"], "typeURI": f"{_TARGETS.get(entry['kind'].partition('.')[0], 'service')}/{entry['kind']}"},
        "observer": {"id": observer, "typeURI": "service/security"},
        "tags": [tag for tag in (entry["rpc"],) if tag],
        "attachments": [{"name": name, "contentType": "application/json", "content": entry[name]}
                        for name in ("before", "after") if entry[name] is not None]}
