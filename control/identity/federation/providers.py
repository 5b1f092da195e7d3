"""Every identity provider that the configuration has, by id."""
from collections.abc import Mapping
from typing import TYPE_CHECKING

from control.identity.federation.settings import ProviderSettings

if TYPE_CHECKING:
    from control.identity.federation.verification import Tokens


class Providers:
    """Reached when they are needed. Without any, no HTTP client and no JOSE library is loaded."""

    def __init__(self, settings: Mapping[str, ProviderSettings]):
        self._tokens: dict[str, Tokens] = {}
        if settings:
            from control.identity.federation import verification
            from control.identity.federation.provider import Provider

            self._tokens = {name: verification.Tokens(Provider(name, each)) for name, each in settings.items()}

    def get(self, idp_id: str) -> "Tokens | None":
        """What judges a provider's tokens; None where the configuration has no such provider."""
        return self._tokens.get(idp_id)

    async def close(self) -> None:
        for tokens in self._tokens.values():
            await tokens.provider.close()
