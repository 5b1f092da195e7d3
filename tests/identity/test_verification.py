"""A provider's tokens are judged: by signature, by introspection, by userinfo; against a real provider."""
import base64
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from control.identity.federation.provider import Provider
from control.identity.federation.settings import read
from control.identity.federation.verification import Introspection, SignedTokens, Tokens, UserInfo
from control.kernel.errors import Invalid, Unauthenticated, Unavailable
from tests.conformance.check_token_verifier import AudienceContract, RevocationContract, VerifierContract
from tests.identity.canaille.provider import Canaille, Key


def provider(canaille: Canaille, **options: Any) -> Provider:
    return Provider("acme", read({"federation": {"acme": canaille.options(**{"timeout": 1.0} | options)}})["acme"])


@pytest.fixture
async def reached(canaille: Canaille) -> AsyncIterator[Provider]:
    made = provider(canaille)
    yield made
    await made.close()


class TestSignedTokens(VerifierContract, AudienceContract):
    @pytest.fixture
    def verifier(self, reached: Provider) -> SignedTokens:
        return SignedTokens(reached)


class TestIntrospection(VerifierContract, AudienceContract, RevocationContract):
    @pytest.fixture
    def verifier(self, reached: Provider) -> Introspection:
        return Introspection(reached)


class TestUserInfo(VerifierContract, RevocationContract):
    @pytest.fixture
    def verifier(self, reached: Provider) -> UserInfo:
        return UserInfo(reached)


# Signatures

def part(value: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


async def test_claims_that_say_that_a_token_is_not_for_now_or_not_for_us_are_heard(canaille: Canaille, reached: Provider):
    key, now = canaille.keys[0], int(time.time())
    verifier = SignedTokens(reached)
    assert (await verifier.claims(key.sign(canaille.claims())))["sub"] == "alice"
    for changes in ({"exp": now - 31}, {"exp": None}, {"exp": "soon"}, {"nbf": now + 60}, {"iat": now + 600}, {"aud": "other"},
                    {"aud": []}, {"aud": None}, {"iss": "https://evil.test"}, {"iss": canaille.issuer + "/"}, {"iss": None},
                    {"sub": None}, {"sub": 7}, {"cnf": {"jkt": "x"}}):
        with pytest.raises(Unauthenticated):
            await verifier.claims(key.sign(canaille.claims(**changes)))
    assert (await verifier.claims(key.sign(canaille.claims(exp=now - 20))))["sub"] == "alice"        # within the leeway


async def test_a_token_without_a_signature_is_refused(canaille: Canaille, reached: Provider):
    for algorithm in ("none", "None", "NONE"):
        with pytest.raises(Unauthenticated):
            await SignedTokens(reached).claims(f"{part({'alg': algorithm, 'typ': 'JWT'})}.{part(canaille.claims())}.")


async def test_the_public_key_is_no_secret_to_sign_with(canaille: Canaille, reached: Provider):
    import hashlib
    import hmac
    key = canaille.keys[0]
    for public in (key.private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
                   json.dumps({**key.jwk()}).encode()):
        signed = f"{part({'alg': 'HS256', 'typ': 'JWT', 'kid': key.kid})}.{part(canaille.claims())}"
        signature = base64.urlsafe_b64encode(hmac.new(public, signed.encode(), hashlib.sha256).digest()).decode().rstrip("=")
        with pytest.raises(Unauthenticated):
            await SignedTokens(reached).claims(f"{signed}.{signature}")


async def test_a_key_of_the_tokens_own_is_not_believed(canaille: Canaille, reached: Provider):
    forged = Key("first")
    for header in ({}, {"kid": "unknown"}, {"jwk": forged.jwk()}, {"jku": "http://127.0.0.1:1/keys"}, {"kid": "../../x"}):
        with pytest.raises(Unauthenticated):
            await SignedTokens(reached).claims(forged.sign(canaille.claims(), **header))


async def test_a_token_that_no_parser_ends_with_is_refused(canaille: Canaille, reached: Provider):
    deep = base64.urlsafe_b64encode(b'{"alg":"RS256","x":' + b"[" * 5000).decode().rstrip("=")
    numbers = base64.urlsafe_b64encode(b'{"alg":"RS256","x":' + b"9" * 5000 + b"}").decode().rstrip("=")
    for head in (deep, numbers, part({"alg": ["RS256"]}), part({"alg": None}), part({"alg": "RS256", "kid": 7}), part([])):
        with pytest.raises(Unauthenticated):
            await Tokens(reached).claims(f"{head}.e30.e30")


@pytest.mark.parametrize("header", [{"typ": "logout+jwt"}, {"typ": "dpop+jwt"}, {"crit": ["exp"]}])
async def test_another_kind_of_jwt_is_refused(canaille: Canaille, reached: Provider, header: dict):
    with pytest.raises(Unauthenticated):
        await SignedTokens(reached).claims(canaille.keys[0].sign(canaille.claims(), **header))


async def test_only_signatures_of_the_settings_are_taken(canaille: Canaille):
    reached = provider(canaille, algorithms=["ES256", "RS512"])
    with pytest.raises(Unauthenticated):
        await SignedTokens(reached).claims(canaille.keys[0].sign(canaille.claims()))
    assert await SignedTokens(reached).claims(canaille.keys[0].sign(canaille.claims(), "RS512"))
    await reached.close()


async def test_keys_are_read_once_and_again_for_one_that_is_new(canaille: Canaille, reached: Provider,
                                                              monkeypatch: pytest.MonkeyPatch):
    asked: list[str] = []
    ask = Provider.ask

    async def counted(self, verb, url, **options):
        asked.append(url)
        return await ask(self, verb, url, **options)

    monkeypatch.setattr(Provider, "ask", counted)
    verifier = SignedTokens(reached)
    for _ in range(3):
        await verifier.claims(canaille.token("alice"))
    assert [url.rpartition("/")[2] for url in asked] == ["openid-configuration", "jwks.json"]
    canaille.keys.append(Key("second"))
    try:
        canaille.kill()
        canaille.start()
        reached._keys_read -= 10
        assert await verifier.claims(canaille.keys[1].sign(canaille.claims()))
        assert len(asked) == 3
        for number in range(20):
            with pytest.raises(Unauthenticated):
                await verifier.claims(Key("third").sign(canaille.claims(), kid=f"unknown-{number}") if number < 2 else
                                      jwt.encode(canaille.claims(), canaille.keys[0].private, "RS256", {"kid": f"no-{number}"}))
        assert len(asked) <= 6          # not once for each
    finally:
        canaille.keys.pop()
        canaille.kill()
        canaille.start()


# Other tokens

async def test_a_token_that_is_no_jwt_is_judged_as_the_settings_say(canaille: Canaille):
    token = canaille.opaque_token()
    for how, good in (("", False), ("introspection", True)):
        reached = provider(canaille, opaque_tokens=how)
        if good:
            claims = await Tokens(reached).claims(token)
            assert claims["client_id"] == "brume" and "sub" not in claims
        else:
            with pytest.raises(Unauthenticated):
                await Tokens(reached).claims(token)
        await reached.close()


async def test_a_client_that_the_provider_does_not_know_is_the_operators_concern(canaille: Canaille, tmp_path,
                                                                               caplog: pytest.LogCaptureFixture):
    wrong = tmp_path / "wrong"
    wrong.write_text("not the secret")
    reached = provider(canaille, opaque_tokens="introspection", client_secret_file=str(wrong))
    with pytest.raises(Unavailable):
        await Tokens(reached).claims(canaille.opaque_token())
    assert "client_secret_file" in caplog.text and "not the secret" not in caplog.text
    await reached.close()


async def test_claims_are_completed_by_the_userinfo_endpoint(canaille: Canaille):
    reached = provider(canaille, userinfo_claims=True)
    tokens = Tokens(reached)
    assert (await tokens.claims(canaille.token("alice")))["groups"] == ["devs", "ops"]
    own = canaille.keys[0].sign(canaille.claims(sub="nobody", groups=None))          # which the endpoint does not take
    assert "groups" not in await tokens.claims(own)
    await reached.close()


@pytest.mark.parametrize("token", ["", " ", "a b", "a\nb", "é", "x" * 20_000, "a.b.c.d"])
async def test_a_text_that_can_be_no_token_is_refused_before_anybody_is_asked(canaille: Canaille, token: str):
    reached = provider(canaille, opaque_tokens="" if "." in token else "introspection", issuer="http://127.0.0.1:1")
    with pytest.raises(Unauthenticated):
        await Tokens(reached).claims(token)
    await reached.close()


async def test_a_provider_that_is_somebody_else_is_not_believed(canaille: Canaille):
    reached = provider(canaille, issuer=f"http://localhost:{canaille.port}")
    with pytest.raises(Unavailable):
        await SignedTokens(reached).claims(canaille.token("alice"))
    await reached.close()


# Settings

@pytest.mark.parametrize(("changes", "named"), [
    ({"issuer": ""}, "issuer"), ({"issuer": "http://idp.example"}, "issuer"), ({"issuer": "https://u:p@idp.example"}, "issuer"),
    ({"issuer": "https://idp.example:x"}, "issuer"), ({"issuer": "http://127.0.0.1.evil.example"}, "issuer"),
    ({"client_id": ""}, "client_id"), ({"algorithms": ["HS256"]}, "algorithms"), ({"algorithms": ["none"]}, "algorithms"),
    ({"algorithms": []}, "algorithms"), ({"algorithms": "RS256"}, "algorithms"), ({"opaque_tokens": "yes"}, "opaque_tokens"),
    ({"client_secret_file": "/nowhere"}, "client_secret_file"), ({"timeout": 0}, "timeout"), ({"timeout": True}, "timeout"),
    ({"scope": "email"}, "scope"), ({"client_secret": "x"}, "client_secret"), ({"nonsense": 1}, "nonsense"),
    ({"opaque_tokens": "introspection", "client_secret_file": ""}, "client_secret_file"),
    ({"trusted_dashboards": ["http://dashboard.example"]}, "trusted_dashboards"),
    ({"tls_cacertfile": "/nowhere"}, "tls_cacertfile")])
def test_a_setting_that_makes_no_sense_is_named(changes: dict, named: str):
    with pytest.raises(Invalid, match=rf"identity\.federation\.acme\.{named}"):
        read({"federation": {"acme": {"issuer": "https://idp.example", "client_id": "brume"} | changes}})


def test_a_secret_is_in_no_text_of_the_settings(tmp_path):
    file = tmp_path / "secret"
    file.write_text("swordfish\n")
    options = {"issuer": "https://idp.example", "client_id": "brume", "client_secret_file": str(file)}
    made = read({"federation": {"acme": options}})
    assert made["acme"].client_secret == "swordfish" and "swordfish" not in repr(made)
    assert made["acme"].audiences == ("brume",)
