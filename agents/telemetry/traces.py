"""OpenTelemetry spans, where a collector is configured; otherwise nothing, at the price of one comparison.

What a span is about goes on from the caller's: W3C's traceparent comes in with requests, and spans nest by context.
"""
import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import Any

#: The tracer, once there is one. Callers ask `if traces.tracer is not None` where every microsecond counts.
tracer: Any = None


def set_up(service: str, endpoint: str, instance: str) -> None:
    """Send spans to a collector by OTLP over HTTP. `endpoint` "": that of OTEL_EXPORTER_OTLP_ENDPOINT; without one do nothing.

    Raises ImportError where OpenTelemetry is not installed: pip install 'brume[tracing]'.
    """
    global tracer
    environment = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    if not endpoint and not any(map(os.environ.get, environment)):
        return
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider(resource=Resource.create({"service.name": service, "service.instance.id": instance}))
    exporter = OTLPSpanExporter(endpoint=endpoint.rstrip("/") + "/v1/traces" if endpoint else None)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    tracer = provider.get_tracer("brume")
    tracer.provider = provider


def shut_down() -> None:
    """Send what is left. Blocks for as long as the collector takes, at most some seconds."""
    global tracer
    if tracer is not None:
        tracer.provider.shutdown()
        tracer = None


@contextlib.contextmanager
def span(name: str, *, parent: str = "", server: bool = False, **attributes: str | int) -> Iterator[None]:
    """A span around what is done within. `parent` is a traceparent; without one it is the span that is current.

    Attributes have dots in place of two underscores.
    """
    if tracer is None:
        yield
        return
    from opentelemetry.trace import SpanKind

    with tracer.start_as_current_span(name, context=_context(parent), kind=SpanKind.SERVER if server else SpanKind.INTERNAL,
                                      attributes={key.replace("__", "."): value for key, value in attributes.items()}):
        yield


def parent() -> str:
    """The traceparent of the current span, for whoever carries on elsewhere; "" for none."""
    if tracer is None:
        return ""
    carrier: dict[str, str] = {}
    _propagator().inject(carrier)
    return carrier.get("traceparent", "")


def trace_id() -> str:
    """The current trace's id; "" for none."""
    if tracer is None:
        return ""
    from opentelemetry import trace

    context = trace.get_current_span().get_span_context()
    return f"{context.trace_id:032x}" if context.is_valid else ""


def _context(traceparent: str) -> Any:
    if not traceparent:
        return None
    carrier: Mapping[str, str] = {"traceparent": traceparent}
    return _propagator().extract(carrier)


def _propagator() -> Any:
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator()
