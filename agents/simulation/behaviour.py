"""How long a simulated host takes and how often it fails: what users write, and the draws that a seed gives. Pure."""
import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

#: What takes time: a server's start, stop and removal, and wiring ports.
LATENCIES = ("start", "stop", "remove", "wire")

#: What fails now and then, as a part of the attempts; and what happens by itself, so many times an hour: to each running server
#: (its process dies) and to each host (its stream to the control plane is cut).
FAILURES, RATES = ("start", "stop", "remove", "wire"), ("crash", "stream")

#: Seconds (lowest, highest) by name, of what guests on real hosts take.
PROFILES: Mapping[str, Mapping[str, tuple[float, float]]] = {
    "none": {},
    "kvm": {"start": (0.2, 1.5), "stop": (0.5, 3.0), "remove": (0.05, 0.3), "wire": (0.02, 0.1)},
    "emulated": {"start": (1.0, 5.0), "stop": (2.0, 10.0), "remove": (0.1, 0.5), "wire": (0.02, 0.1)},
}

#: Seconds and parts beyond this are a slip of the pen.
MAX_SECONDS, MAX_RATE = 3600.0, 3600.0


@dataclass(frozen=True, slots=True)
class Behaviour:
    """`latency`: seconds (lowest, highest), evenly drawn; `failures`: a part of 1 of the attempts; `rates`: times an hour."""

    latency: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    failures: Mapping[str, float] = field(default_factory=dict)
    rates: Mapping[str, float] = field(default_factory=dict)


def behaviour(latency: str = "", failures: str = "") -> Behaviour:
    """What "kvm" or "start=0.2..1.5,stop=1" and "start=0.01,crash=0.1/h" say.

    Raises ValueError, saying what is wrong, for what means nothing.
    """
    if latency in PROFILES:
        seconds = dict(PROFILES[latency])
    else:
        seconds = {name: _seconds(name, text) for name, text in _items(latency, LATENCIES, "latency")}
    parts, rates = {}, {}
    for name, text in _items(failures, (*FAILURES, *RATES), "failures"):
        if name in RATES:
            if not text.endswith("/h"):
                raise ValueError(f"{name}={text}: how often in an hour, like {name}=0.1/h")
            rates[name] = _number(f"{name}={text}", text.removesuffix("/h"), MAX_RATE)
        else:
            parts[name] = _number(f"{name}={text}", text, 1.0)
    return Behaviour(seconds, parts, rates)


def _items(text: str, known: tuple[str, ...], what: str) -> list[tuple[str, str]]:
    items = []
    for item in filter(None, (item.strip() for item in text.split(","))):
        name, equals, value = item.partition("=")
        if name not in known or not equals:
            profiles = f" or one of {', '.join(PROFILES)}" if what == "latency" else ""
            raise ValueError(f"{what}: {item!r} is not {', '.join(f'{name}=...' for name in known)}{profiles}")
        items.append((name, value))
    return items


def _seconds(name: str, text: str) -> tuple[float, float]:
    low, _, high = text.partition("..")
    lowest = _number(f"{name}={text}", low, MAX_SECONDS)
    highest = _number(f"{name}={text}", high, MAX_SECONDS) if high else lowest
    if lowest > highest:
        raise ValueError(f"{name}={text}: the lowest comes first")
    return lowest, highest


def _number(item: str, text: str, most: float) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number <= most:
        raise ValueError(f"{item}: expected a number from 0 to {most:g}")
    return number


class Draws:
    """The draws of one host: the n-th of each sort is always the same for the same seed and host."""

    __slots__ = ("_counts", "_prefix")

    def __init__(self, seed: int, host: str):
        self._prefix = f"{seed}/{host}/"
        self._counts: dict[str, int] = {}

    def draw(self, what: str) -> float:
        """The next number of a sort, from 0 up to but not including 1, evenly distributed."""
        count = self._counts[what] = self._counts.get(what, 0) + 1
        digest = hashlib.blake2b(f"{self._prefix}{what}/{count}".encode(), digest_size=8).digest()
        return (int.from_bytes(digest, "big") >> 11) / 2**53

    def seconds(self, behaviour: Behaviour, what: str) -> float:
        """How long the next `what` takes."""
        lowest, highest = behaviour.latency.get(what, (0.0, 0.0))
        return lowest + (highest - lowest) * self.draw(f"{what} latency") if highest else 0.0

    def fails(self, behaviour: Behaviour, what: str) -> bool:
        """Whether the next `what` fails."""
        part = behaviour.failures.get(what, 0.0)
        return part > 0 and self.draw(f"{what} failure") < part

    def until(self, behaviour: Behaviour, what: str) -> float | None:
        """Seconds to the next `what` of those that happen by themselves, exponentially distributed; None for never."""
        rate = behaviour.rates.get(what, 0.0)
        return -math.log1p(-self.draw(what)) * 3600.0 / rate if rate else None
