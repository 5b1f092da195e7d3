"""What schemathesis has to know of this cloud, loaded by it: media types, what calls may be about, what must be left alone."""
import itertools
import json
import os
import random

import schemathesis

_TOLD = json.loads(os.environ["BRUME_SCHEMAS"])
#: Ids without which the run could not go on: of the caller, its project, its role, its domain.
_KEPT = frozenset(_TOLD["kept"])
#: Ids of what is there, by the collection's segment of the path.
_THERE: dict[str, list[str]] = _TOLD["there"]

_RANDOM = random.Random(_TOLD["seed"])
_NOBODY = "0" * 32

schemathesis.serializer.alias(["application/openstack-images-v2.1-json-patch", "application/openstack-images-v2.0-json-patch"],
                              "application/json")


@schemathesis.hook
def before_call(context, case, kwargs):
    """Make a third of the calls be about something that is there, and none change what the run stands on."""
    segments = case.operation.path.split("/")
    for before, segment in itertools.pairwise(segments):
        name = segment[1:-1]
        if segment.startswith("{") and name in case.path_parameters and _THERE.get(before) and _RANDOM.random() < 1 / 3:
            case.path_parameters[name] = _RANDOM.choice(_THERE[before])
    if case.method.upper() not in ("GET", "HEAD"):
        for name, value in case.path_parameters.items():
            if str(value) in _KEPT:
                case.path_parameters[name] = _NOBODY


@schemathesis.hook
def after_call(context, case, response):
    """Remember what was made."""
    if case.method.upper() != "POST" or response.status_code not in (200, 201, 202):
        return
    try:
        made = response.json()
    except ValueError:
        return
    inner = next(iter(made.values()), None) if isinstance(made, dict) and "id" not in made else made
    if isinstance(inner, dict) and isinstance(inner.get("id"), str):
        _THERE.setdefault(case.operation.path.rpartition("/")[2], []).append(inner["id"])
