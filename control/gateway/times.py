"""Timestamps as each family of APIs writes them.

The text of a whole second is remembered: lists hold the same few seconds many times over.
"""
import functools
import time
from collections.abc import Callable

from google.protobuf.timestamp_pb2 import Timestamp

from control.kernel import clock
from protos.brume.v1.options_pb2 import Api


@functools.lru_cache(maxsize=4096)
def _second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)).zfill(19)      # the year's zeros


def zulu(moment: Timestamp) -> str:
    """2026-01-31T12:00:00Z"""
    return _second(moment.seconds) + "Z"


def micros_zulu(moment: Timestamp) -> str:
    """2026-01-31T12:00:00.000000Z"""
    return f"{_second(moment.seconds)}.{moment.nanos // 1000:06d}Z"


def micros(moment: Timestamp) -> str:
    """2026-01-31T12:00:00.000000, in UTC without saying so."""
    return f"{_second(moment.seconds)}.{moment.nanos // 1000:06d}"


FORMATS: dict[int, Callable[[Timestamp], str]] = {
    Api.KEYSTONE: micros_zulu,
    Api.CINDER: micros,
}

#: The moment that a text names; filters of lists read times, too.
parse = clock.parse
