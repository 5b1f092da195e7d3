"""What every public service's protos must fit: one rule of REST per rpc at least, a policy, messages that JSON can carry."""
import importlib
from pathlib import Path

import pytest

from control.gateway.app import Gateway
from control.kernel.rpc import Dispatcher

ROOT = Path(__file__).parents[2]
PACKAGES = sorted(path.parent for path in (ROOT / "protos").glob("*/v1/api.proto"))


class Anything:
    """A servicer that has every method and answers none."""

    def __getattr__(self, name):
        return lambda request, call: None


def services(folder: Path):
    for path in sorted(folder.glob("*.proto")):
        module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts) + "_pb2")
        yield from module.DESCRIPTOR.services_by_name.values()


@pytest.fixture(scope="module")
def everything() -> Gateway:
    dispatcher = Dispatcher(Anything())
    for folder in PACKAGES:
        for service in services(folder):
            dispatcher.add(Anything(), service)
    return Gateway(dispatcher)


def test_every_rpc_has_a_route_that_fits_its_messages(everything):
    routed = {rule.method.name for rule in everything.routes.rules}
    both_ways = {method.name for method in everything._dispatcher.methods.values()
                 if method.client_streaming and method.server_streaming}
    assert PACKAGES and not set(everything._dispatcher.methods) - routed - both_ways       # HTTP/1.1 has nothing of the kind


def test_every_answer_of_an_rpc_can_be_encoded_even_empty(everything):
    from control.gateway.context import Context
    from control.kernel.rpc import Call
    for rule in everything.routes.rules:
        if rule.answering.events is not None:
            written = rule.answering.events.writing({}, Call()).event(rule.method.response_type())
            assert written.startswith(b"event: ") and written.endswith(b"\ndata: {}\n\n"), rule.method.name
            continue
        context = Context(base="http://h", mount=rule.api.mount, prefix=rule.api.prefix_of(rule.path))
        answer = rule.answering.answer(rule.method.response_type(), Call(), context, rule.path, [])
        assert answer.status in (200, 201, 202, 204, 300, 302), rule.method.name


def test_every_route_is_found_by_its_own_path(everything):
    for rule in everything.routes.rules:
        path = rule.api.mount + rule.path.replace("{", "x").replace("}", "")
        assert rule in everything.routes.find(rule.verb, path).endpoint.rules, f"{rule.verb} {rule.path} is hidden"


def test_no_answer_writes_a_field_twice_or_two_fields_under_one_name(everything):
    from control.gateway.apis import in_json
    from control.kernel.naming import field_name

    def check(descriptor, seen):
        if descriptor.full_name in seen or descriptor.full_name.startswith("google."):
            return
        seen.add(descriptor.full_name)
        names = [field_name(field) for field in descriptor.fields if in_json(field)]
        assert len(names) == len(set(names)), descriptor.full_name
        for field in descriptor.fields:
            if field.message_type is not None:
                check(field.message_type, seen)
    seen: set[str] = set()
    for rule in everything.routes.rules:
        check(rule.method.descriptor.output_type, seen)
        check(rule.method.descriptor.input_type, seen)
