"""Toy services that use every shape of the gateway's language, compiled for the session, behind a real dispatcher."""
import sys
import tempfile
from pathlib import Path

import google.api
import grpc_tools
import pytest
from grpc_tools import protoc

from control.gateway.app import Gateway
from control.kernel.caller import Caller
from control.kernel.errors import Unauthenticated
from control.kernel.rpc import Dispatcher
from tests.api.client import Client

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def compile_toys() -> tempfile.TemporaryDirectory:
    """Compile the toy protos into a temporary directory that can be imported from; it lives as long as the object."""
    made = tempfile.TemporaryDirectory(prefix="brume-toys-")
    protos = HERE / "protos"
    status = protoc.main(["protoc", f"-I{protos}", f"-I{ROOT}", f"-I{Path(next(iter(google.api.__path__))).parents[1]}",
                          f"-I{Path(grpc_tools.__file__).parent / '_proto'}", f"--python_out={made.name}",
                          *(str(path.relative_to(protos)) for path in sorted(protos.rglob("*.proto")))])
    assert status == 0, "the toy protos do not compile"
    sys.path.insert(0, made.name)
    return made


_MADE = compile_toys()      # before any test module is imported: they import what it makes


class Tokens:
    """Authenticates a token that is a role's name, in project p1."""

    async def authenticate(self, token: str) -> Caller:
        if token not in ("admin", "member", "reader", "none"):
            raise Unauthenticated("token.invalid", "The request you have made requires authentication.")
        return Caller(user_id="u1", project_id="" if token == "none" else "p1", roles=frozenset({token}))


@pytest.fixture
def dispatcher() -> Dispatcher:
    from tests.gateway import toys
    dispatcher = Dispatcher(Tokens())
    for servicer, service in toys.servicers():
        dispatcher.add(servicer, service)
    return dispatcher


@pytest.fixture
def gateway(dispatcher: Dispatcher) -> Gateway:
    return Gateway(dispatcher)


@pytest.fixture
def client(gateway: Gateway) -> Client:
    """A client with the role member."""
    return Client(gateway, {"x-auth-token": "member"})
