"""What the operator can watch, in Prometheus' text format. One registry per server, none per process."""

import platform
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from whisper_byoc import __version__
from whisper_byoc.errors import RequestRefused
from whisper_byoc.processors.base import Result

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
"""Upper bounds of the buckets of every histogram."""
CAPACITY: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "live": ("byoc_live_capacity", "Live jobs that can be done in time, as measured"),
        "live_jobs": ("byoc_live_jobs", "Live jobs there are"),
        "load": ("byoc_live_load_ratio", "Share of the workers' time that live work took lately"),
        "cost": ("byoc_live_cost_seconds", "Seconds of a worker for a second of live input, as measured"),
        "lag": (
            "byoc_live_delay_seconds",
            "From when live text could be begun to when it is there, on the mean",
        ),
        "recording_rate": ("byoc_recording_rate", "Seconds of recordings done in a second, as measured"),
        "recording_seconds": ("byoc_recording_in_progress_seconds", "Recordings being worked on"),
    }
)
"""Key of `JobTable.capacity` -> name and help of its gauge."""


class _CapacityCollector(Collector):
    def __init__(self, read: Callable[[], Mapping[str, Mapping[str, float]]]) -> None:
        self._read = read

    def collect(self) -> Iterator[GaugeMetricFamily]:
        found = self._read()
        for figure, (name, about) in CAPACITY.items():
            family = GaugeMetricFamily(name, about, labels=["pipeline"])
            for pipeline, figures in found.items():
                family.add_metric([pipeline], figures[figure])
            yield family


class Metrics:
    """Counters of one server. `byoc_` is the prefix that Livepeer's production guide asks for."""

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        build = Info("byoc_build", "What runs here; its value is 1", registry=registry)
        build.info({"version": __version__, "python": platform.python_version()})

        def counter(name: str, help: str, *labels: str) -> Counter:
            return Counter(name, help, labels, registry=registry)

        def histogram(name: str, help: str, *labels: str) -> Histogram:
            return Histogram(name, help, labels, buckets=SECONDS, registry=registry)

        self._requests = histogram(
            "byoc_http_request_duration_seconds",
            "From the head of a request to the end of its answer",
            *("method", "route", "code"),
        )
        self._refusals = counter("byoc_refusals", "Requests refused, and events of errors", "reason")
        self._segments = histogram(
            "byoc_segment_duration_seconds", "From a segment's arrival in the queue to its outcome", "pipeline"
        )
        self._lag = histogram(
            "byoc_text_lag_seconds",
            "Live text: from the arrival of the last sound it is about to its record",
            *("pipeline", "kind"),
        )
        self._bytes = counter("byoc_input_bytes", "Bytes of segments and of live feeds", "pipeline")
        self._errors = counter("byoc_errors", "Error records", "pipeline", "kind")
        self._audio = counter("byoc_audio_seconds", "Sound of which there is final text", "pipeline")
        self._inference = counter("byoc_inference_seconds", "Time at work on final and partial text", "pipeline")

    def gauge(self, name: str, help: str, read: Callable[[], float]) -> None:
        """Add a figure that is read on every scrape."""
        Gauge(name, help, registry=self._registry).set_function(read)

    def capacity(self, read: Callable[[], Mapping[str, Mapping[str, float]]]) -> None:
        """Add the figures of `CAPACITY`, by pipeline, which are read on every scrape."""
        self._registry.register(_CapacityCollector(read))

    def answered(self, method: str, route: str, code: int, seconds: float) -> None:
        """Count one request. `method` and `route` are those of the route table, so that there are few of them."""
        self._requests.labels(method, route, str(code)).observe(seconds)

    def refused(self, error: RequestRefused) -> None:
        self._refusals.labels(error.reason).inc()

    def segment(self, pipeline: str, size: int, seconds: float) -> None:
        """Count one segment that has got its outcome."""
        self.received(pipeline, size)
        self._segments.labels(pipeline).observe(seconds)

    def received(self, pipeline: str, size: int) -> None:
        self._bytes.labels(pipeline).inc(size)

    def failed(self, pipeline: str, kind: str, number: int = 1) -> None:
        self._errors.labels(pipeline, kind).inc(number)

    def result(self, pipeline: str, result: Result) -> None:
        """Count the sound, the work and the lag of a transcript, where its record has them."""
        if result.lag_ms is not None:
            self._lag.labels(pipeline, "partial" if result.partial else "final").observe(result.lag_ms / 1000)
        stats = (result.record or {}).get("stats")
        if isinstance(stats, Mapping):  # from a third-party processor it may be anything
            audio, inference = stats.get("audio_duration_ms"), stats.get("inference_ms")
            if isinstance(audio, int) and isinstance(inference, int) and audio >= 0 <= inference:
                self._inference.labels(pipeline).inc(inference / 1000)
                self._audio.labels(pipeline).inc(0 if result.partial else audio / 1000)

    def render(self) -> bytes:
        return generate_latest(self._registry)
