"""Prometheus metrics, made of what the engine tells its observer and of its status."""

from __future__ import annotations

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

from eri_runtime.serve.engine import Status
from eri_runtime.serve.observer import Ended, Observer, StepTime

CONTENT_TYPE = CONTENT_TYPE_LATEST
STEP_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
SECONDS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 600.0)
COUNTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64)
MOST_SIZES = 64  # clients choose sizes; each one is a dozen time series


class Metrics(Observer):
    """An observer that counts, in a registry of its own.

    Attributes:
        registry: The registry, to which an application may add metrics of its own.
    """

    def __init__(self) -> None:
        """Makes the registry, with the process' memory, CPU time and file descriptors."""
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._sizes: set[str] = set()
        self._add_gauges()
        self._add_steps()
        self._add_requests()

    def _add_gauges(self) -> None:
        """Adds what `Engine.status` says at the moment of a scrape."""

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"eri_{name}", text, registry=self.registry)

        self._gauges = {
            "ready": gauge("ready", "1 if the engine accepts requests, else 0"),
            "stopping": gauge("stopping", "1 if the engine is being shut down, else 0"),
            "waiting": gauge("requests_waiting", "Requests that no worker runs yet"),
            "running": gauge("requests_running", "Requests that a worker runs"),
            "workers": gauge("workers", "Workers that are alive"),
        }

    def _add_steps(self) -> None:
        """Adds what is known of every step."""
        size = ("model", "size")
        self._step_seconds = self._histogram(
            "step_seconds", "Time of one step of a batch", size, STEP_SECONDS
        )
        self._batch_requests = self._histogram(
            "step_batch_requests", "Requests in the batch of a step", size, COUNTS
        )
        self._batch_rows = self._histogram(
            "step_batch_rows", "Rows of the denoiser's batch in a step", size, COUNTS
        )

    def _add_requests(self) -> None:
        """Adds what is known of every request that ended, was refused, or lost its worker."""
        model, outcome = ("model",), ("model", "outcome")
        self._requests = self._counter("requests", "Requests that ended", outcome)
        self._seconds = self._histogram(
            "request_seconds", "Time from submission to the end", outcome, SECONDS
        )
        self._waited = self._histogram(
            "request_wait_seconds", "Time until a worker began", model, SECONDS
        )
        self._first_preview = self._histogram(
            "first_preview_seconds", "Time from submission to the first preview", model, SECONDS
        )
        self._pictures = self._counter("pictures", "Pictures made", model)
        self._refused = self._counter("requests_refused", "Requests not accepted", ("reason",))
        self._restarts = self._counter("worker_restarts", "Workers started anew", ())

    def _counter(self, name: str, text: str, labels: tuple[str, ...]) -> Counter:
        """Returns a new counter of the registry."""
        return Counter(f"eri_{name}", text, labels, registry=self.registry)

    def _histogram(
        self, name: str, text: str, labels: tuple[str, ...], buckets: tuple[float, ...]
    ) -> Histogram:
        """Returns a new histogram of the registry."""
        return Histogram(f"eri_{name}", text, labels, registry=self.registry, buckets=buckets)

    def stepped(self, step: StepTime) -> None:
        """Counts a step."""
        labels = step.model, self._size(f"{step.width}x{step.height}")
        self._step_seconds.labels(*labels).observe(step.seconds)
        self._batch_requests.labels(*labels).observe(step.requests)
        self._batch_rows.labels(*labels).observe(step.rows)

    def ended(self, end: Ended) -> None:
        """Counts a request that ended."""
        self._requests.labels(end.model, end.outcome).inc()
        self._seconds.labels(end.model, end.outcome).observe(end.seconds)
        self._waited.labels(end.model).observe(end.waited)
        if end.first_preview is not None:
            self._first_preview.labels(end.model).observe(end.first_preview)
        self._pictures.labels(end.model).inc(end.pictures)

    def refused(self, reason: str) -> None:
        """Counts a request that was refused."""
        self._refused.labels(reason).inc()

    def restarted(self) -> None:
        """Counts a worker that was started anew."""
        self._restarts.inc()

    def text(self, status: Status) -> bytes:
        """Returns all metrics in Prometheus' text format.

        Args:
            status: The engine's status, for the gauges.
        """
        for name, gauge in self._gauges.items():
            gauge.set(float(getattr(status, name)))
        return generate_latest(self.registry)

    def _size(self, size: str) -> str:
        """Returns the label of a size: itself for the first `MOST_SIZES`, then "other"."""
        if len(self._sizes) < MOST_SIZES:
            self._sizes.add(size)
        return size if size in self._sizes else "other"
