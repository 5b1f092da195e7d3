"""Wall-clock time as records hold it, and as clients write it."""
import re
import time
from datetime import UTC, datetime

from google.protobuf.timestamp_pb2 import Timestamp

_ISO = re.compile(r"\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d(\.\d{1,9})?)?(Z|[+-]\d\d:?\d\d)?)?\Z", re.ASCII)


def now() -> Timestamp:
    """The present, to the microsecond: what no API shows finer is not stored finer."""
    micros = time.time_ns() // 1000
    return Timestamp(seconds=micros // 1_000_000, nanos=micros % 1_000_000 * 1000)


def parse(text: str) -> Timestamp:
    """The moment that an ISO 8601 text names; without a zone it is UTC. Raises ValueError."""
    if not _ISO.match(text):
        raise ValueError(text)
    moment = datetime.fromisoformat(text)
    moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    stamp = Timestamp()
    stamp.FromDatetime(moment.replace(tzinfo=None))
    return stamp
