"""Identity over gRPC: the same calls, for programs."""
import grpc
import pytest

from control.kernel import rpc
from protos.identity.v1 import tokens_pb2, tokens_pb2_grpc, users_pb2, users_pb2_grpc
from tests.identity.conftest import Cloud


async def test_a_program_logs_in_and_makes_a_user_by_grpc(cloud: Cloud) -> None:
    server = grpc.aio.server()
    rpc.add_to_grpc(cloud.dispatcher, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            user = tokens_pb2.AuthUser(name="admin", domain=tokens_pb2.AuthDomain(name="Default"), password="adm1n")
            identity = tokens_pb2.AuthIdentity(methods=["password"], password=tokens_pb2.PasswordMethod(user=user))
            issued = await tokens_pb2_grpc.TokensStub(channel).IssueToken(
                tokens_pb2.IssueTokenRequest(auth=tokens_pb2.Auth(identity=identity)))
            assert issued.token.user.name == "admin" and issued.token.project.name == "admin"
            users = users_pb2_grpc.UsersStub(channel)
            metadata = (("x-auth-token", issued.subject_token),)
            made = await users.CreateUser(users_pb2.CreateUserRequest(user=users_pb2.User(name="by-grpc")), metadata=metadata)
            listed = await users.ListUsers(users_pb2.ListUsersRequest(), metadata=metadata)
            assert made.user.id in {user.id for user in listed.users}
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await users.ListUsers(users_pb2.ListUsersRequest())
            assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED
    finally:
        await server.stop(None)
