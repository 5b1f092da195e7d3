"""Log lines, as text or as JSON, each with the id of the request that it is about."""
import contextvars
import json
import logging
import sys
from datetime import UTC, datetime

#: The request that is being served, or whose wish is being carried out; "-" for none.
request_id: contextvars.ContextVar[str] = contextvars.ContextVar("request_id", default="-")


class _Text(logging.Formatter):
    """Writes out the time once a second: that is most of what a line costs."""

    second, text = 0, ""

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        if int(record.created) != self.second:
            self.second, self.text = int(record.created), super().formatTime(record, datefmt)
        return self.text


class _Json(logging.Formatter):
    """One object per line. Keys: time (UTC), level, logger, message; request_id, trace_id, error where there are any."""

    def format(self, record: logging.LogRecord) -> str:
        line = {"time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
                "level": record.levelname, "logger": record.name, "message": record.getMessage()}
        if record.request_id != "-":  # type: ignore[attr-defined]
            line["request_id"] = record.request_id  # type: ignore[attr-defined]
        if trace := _trace_id():
            line["trace_id"] = trace
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def _trace_id() -> str:
    traces = sys.modules.get("agents.telemetry.traces")
    return traces.trace_id() if traces is not None else ""


def set_up(level: str, form: str) -> None:
    """Write this process's log to stderr. `form` is "text" or "json"."""
    def with_request_id(record: logging.LogRecord) -> bool:
        record.request_id = request_id.get()
        return True

    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False      # no line says any of these
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(with_request_id)
    handler.setFormatter(_Json() if form == "json" else _Text(
        "%(asctime)s.%(msecs)03d %(levelname)s %(name)s [%(request_id)s] %(message)s", "%Y-%m-%dT%H:%M:%S"))
    logging.basicConfig(level=level, handlers=[handler], force=True)
