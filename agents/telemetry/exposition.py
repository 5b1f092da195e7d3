"""Counts as Prometheus reads them."""
import gc
from collections.abc import Callable, Iterable, Sequence

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from agents.telemetry.timing import BOUNDS, Timings

__all__ = ["CONTENT_TYPE", "Metric", "counter", "gauge", "histogram", "text"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def histogram(name: str, help: str, labels: Sequence[str], timings: Timings) -> Metric:
    """`name` ends in _seconds."""
    family = HistogramMetricFamily(name, help, labels=labels)
    for values, row in timings.rows.items():
        buckets, sofar = [], 0
        for bound, count in zip((*map(str, BOUNDS), "+Inf"), row.counts, strict=True):
            sofar += count
            buckets.append((bound, sofar))
        family.add_metric(values, buckets, row.total)
    return family


def gauge(name: str, help: str, labels: Sequence[str], values: Iterable[tuple[Sequence[str], float]]) -> Metric:
    family = GaugeMetricFamily(name, help, labels=labels)
    for each, value in values:
        family.add_metric(each, value)
    return family


def counter(name: str, help: str, labels: Sequence[str], values: Iterable[tuple[Sequence[str], float]]) -> Metric:
    """`name` without _total, which is added to it."""
    family = CounterMetricFamily(name, help, labels=labels)
    for each, value in values:
        family.add_metric(each, value)
    return family


def text(collect: Callable[[], Iterable[Metric]]) -> bytes:
    """All metrics of this process: its own, and what the libraries know of memory, CPU, descriptors and the cycle collector."""
    registry = CollectorRegistry()

    class Own(Collector):
        def collect(self) -> Iterable[Metric]:
            yield from collect()

    registry.register(Own())
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    if gc.isenabled():
        GCCollector(registry=registry)
    return generate_latest(registry)
