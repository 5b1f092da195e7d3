"""What every way to judge a provider's tokens does: the sentences of verification.Verifier, as a suite that all must pass.

A test module makes a class of VerifierContract and provides the fixtures `canaille`, the provider, and `verifier`, new each time.
"""
import asyncio
import time

import pytest

from control.identity.federation.verification import Verifier
from control.kernel.errors import Unauthenticated, Unavailable
from tests.identity.canaille.provider import Canaille


class VerifierContract:
    async def test_a_good_token_says_whose_it_is(self, canaille: Canaille, verifier: Verifier):
        claims = await verifier.claims(canaille.token("alice"))
        assert (claims["iss"], claims["sub"]) == (canaille.issuer, "alice")

    async def test_it_says_the_same_again(self, canaille: Canaille, verifier: Verifier):
        token = canaille.token("bob")
        assert await verifier.claims(token) == await verifier.claims(token)

    @pytest.mark.parametrize("token", ["x", "e30.e30.e30", "...", "a.b.c", "x" * 5000, "null", "=", "-"])
    async def test_what_is_no_token_is_refused(self, verifier: Verifier, token: str):
        with pytest.raises(Unauthenticated):
            await verifier.claims(token)

    async def test_a_token_that_was_changed_is_refused(self, canaille: Canaille, verifier: Verifier):
        head, body, signature = canaille.token("alice").split(".")
        _, other, _ = canaille.token("eve").split(".")
        for changed in (f"{head}.{other}.{signature}", f"{head}.{body}.", f"{head}.{body}.{signature[:-8]}AAAAAAAA"):
            with pytest.raises(Unauthenticated):
                await verifier.claims(changed)

    async def test_a_silent_provider_is_told_from_a_bad_token_and_asked_again_later(self, canaille: Canaille, verifier: Verifier):
        token = canaille.token("alice")
        canaille.silence()
        try:
            with pytest.raises(Unavailable) as silent:
                await verifier.claims(token)
        finally:
            canaille.resume()
        assert canaille.issuer not in str(silent.value)
        assert (await verifier.claims(token))["sub"] == "alice"


class AudienceContract:
    """Of those that can tell whom a token is for."""

    async def test_a_token_for_another_client_is_refused(self, canaille: Canaille, verifier: Verifier):
        with pytest.raises(Unauthenticated):
            await verifier.claims(canaille.token("alice", client="other"))


class RevocationContract:
    """Of those that ask the provider each time."""

    async def test_a_revoked_token_is_refused(self, canaille: Canaille, verifier: Verifier):
        await asyncio.sleep(1 - time.time() % 1)        # canaille's tokens of one user in one second are one, which is revoked
        token = canaille.token("eve")
        await verifier.claims(token)
        canaille.revoke(token)
        with pytest.raises(Unauthenticated):
            await verifier.claims(token)
