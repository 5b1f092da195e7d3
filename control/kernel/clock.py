"""Wall-clock time as records hold it."""
import time

from google.protobuf.timestamp_pb2 import Timestamp


def now() -> Timestamp:
    """The present, to the microsecond: what no API shows finer is not stored finer."""
    micros = time.time_ns() // 1000
    return Timestamp(seconds=micros // 1_000_000, nanos=micros % 1_000_000 * 1000)
