"""What the operator can watch, in Prometheus' text form. One registry per server, none per process."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

LATENCY_BUCKETS_MS = (1, 2, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000, 30000, 60000)


class Metrics:
    """Counters of one server. The `byoc_` names are those that Livepeer's production guide asks for."""

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        self._sessions = Gauge("byoc_sessions_active", "Jobs with open input or unfinished work", registry=registry)
        self._queued = Gauge("byoc_segments_queued", "Segments that wait or are at work", registry=registry)
        self._latency = Histogram(
            "byoc_frame_latency_ms",
            "From a segment's arrival in the queue to its outcome",
            ["pipeline"],
            buckets=LATENCY_BUCKETS_MS,
            registry=registry,
        )
        self._lag = Histogram(
            "byoc_text_lag_ms",
            "Live text: from the arrival of the last sound it is about to its record",
            ["pipeline", "kind"],
            buckets=LATENCY_BUCKETS_MS,
            registry=registry,
        )
        self._errors = Counter("byoc_errors", "Error records", ["pipeline"], registry=registry)
        self._segments = Counter("byoc_segments", "Segments that have an outcome", ["pipeline"], registry=registry)
        self._bytes = Counter("byoc_input_bytes", "Bytes of those segments", ["pipeline"], registry=registry)
        self._refused = Counter("byoc_refused", "Requests refused", ["status"], registry=registry)

    def watch(self, sessions: Callable[[], float], queued: Callable[[], float]) -> None:
        """Read these two figures whenever somebody asks."""
        self._sessions.set_function(sessions)
        self._queued.set_function(queued)

    def segment(self, pipeline: str, size: int, latency_ms: float) -> None:
        """Count one segment that has its outcome."""
        self._segments.labels(pipeline).inc()
        self._bytes.labels(pipeline).inc(size)
        self._latency.labels(pipeline).observe(latency_ms)

    def failed(self, pipeline: str, number: int) -> None:
        self._errors.labels(pipeline).inc(number)

    def received(self, pipeline: str, size: int) -> None:
        self._bytes.labels(pipeline).inc(size)

    def lag(self, pipeline: str, lag_ms: float, *, partial: bool) -> None:
        self._lag.labels(pipeline, "partial" if partial else "final").observe(lag_ms)

    def refused(self, status: int) -> None:
        self._refused.labels(str(status)).inc()

    def render(self) -> bytes:
        return generate_latest(self._registry)
