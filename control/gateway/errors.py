"""The errors of each family as OpenAPI describes them: the codes that a call may answer with, and the bodies of faults.py."""
from typing import Any

from control.gateway.apis import Family
from control.gateway.faults import JSON, title_of

_TEXT: dict[str, Any] = {"type": "string"}

_WHY = {
    400: "The request is wrong; the message names the place.",
    401: "There is no valid token.",
    403: "The caller may not do this, or a quota has nothing left.",
    404: "There is no such thing, or none that the caller may see.",
    405: "The path has no such verb.",
    406: "The API does not have that microversion.",
    409: "The state of the thing, or another with its name, does not allow the request.",
    413: "The request, or what it asks for, is too large.",
    415: "The body's media type is not taken here.",
    503: "A part of the cloud does not answer now; the same call may succeed later.",
}


def codes(*, has_versions: bool, takes_media: bool) -> list[int]:
    """The error codes that a call may answer with. A public one has 401 too, for a token that is sent and not valid."""
    return [code for code in _WHY if code != 405
            and (code != 406 or has_versions) and (code != 415 or takes_media)]


def responses(family: int) -> dict[str, Any]:
    """The component responses of a family, by code."""
    content: dict[str, Any] = {JSON: {"schema": _BODIES.get(family, _BODIES[Family.KEYSTONE])}}
    if family == Family.GLANCE:
        content["text/html"] = {"schema": _TEXT}
    headers = {"x-openstack-request-id": {"schema": _TEXT}}
    return {str(code): {"description": f"{title_of(code)}. {why}", "headers": headers, "content": content}
            for code, why in _WHY.items()}


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


_CODE = {"type": "integer"}
_NOVA = {"type": "object", "minProperties": 1, "maxProperties": 1, "additionalProperties": _object(code=_CODE, message=_TEXT)}

_BODIES: dict[int, dict[str, Any]] = {
    Family.KEYSTONE: _object(error=_object(code=_CODE, message=_TEXT, title=_TEXT)),
    Family.NOVA: _NOVA,
    Family.CINDER: _NOVA,
    Family.NEUTRON: _object(NeutronError=_object(type=_TEXT, message=_TEXT, detail=_TEXT)),
    Family.GLANCE: _object(message=_TEXT, code=_TEXT, title=_TEXT),
    Family.PLACEMENT: _object(errors={"type": "array", "items": _object(
        status=_CODE, title=_TEXT, detail=_TEXT, code=_TEXT, request_id=_TEXT)}),
}
