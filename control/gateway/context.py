"""What JSON depends on beside its message: microversion and addresses."""
from dataclasses import dataclass, field

from control.gateway.apis import EVERYTHING


@dataclass(slots=True)
class Context:
    """One exchange's view of its API, for the codec."""

    version: int = EVERYTHING          # microversion, as apis.number() makes it
    base: str = ""                     # "http://host:5000"
    mount: str = ""                    # "/compute"
    prefix: str = ""                   # "/v2.1", or the alias that the client used
    extra: dict[str, object] = field(default_factory=dict)    # more top-level keys of an answer
    fields: frozenset[str] = frozenset()                      # the keys wanted of each resource; empty: all

    root: str = field(init=False)          # "http://host:5000/compute"
    endpoint: str = field(init=False)      # "http://host:5000/compute/v2.1"

    def __post_init__(self) -> None:
        self.root = self.base + self.mount
        self.endpoint = self.root + self.prefix
