"""What `/metrics` reports, in Prometheus's format; no texts, and no names that clients give."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from lorchestra.server.question_metrics import QuestionMetrics
from lorchestra.server.registry import ServedRun

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """Counters and histograms of one server, which serves these runs."""

    def __init__(self, runs: Sequence[ServedRun]) -> None:
        registry = self._registry = CollectorRegistry()
        self.questions = QuestionMetrics(registry, runs)
        self.requests = Counter(
            "lorchestra_requests", "Requests by route and status", ("route", "status"), registry=registry
        )
        self.seconds = Histogram(
            "lorchestra_request_seconds",
            "From a request's arrival to its response",
            ("route",),
            buckets=_SECONDS,
            registry=registry,
        )
        self.answers = Counter(
            "lorchestra_answers",
            "Answers by model, whether the question was trained, and decision (none without a certificate)",
            ("model", "trained", "decision"),
            registry=registry,
        )
        self.refusals = Counter("lorchestra_refusals", "Questions that cannot be answered", registry=registry)
        self.disconnects = Counter(
            "lorchestra_disconnects", "Requests whose client left before the answer", registry=registry
        )
        self.tokens = Counter("lorchestra_input_tokens", "Tokens of answered questions", registry=registry)
        self.cached_tokens = Counter("lorchestra_cached_tokens", "Those taken from the cache", registry=registry)
        self.batch_questions = Histogram(
            "lorchestra_batch_questions",
            "Questions answered together",
            buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256),
            registry=registry,
        )
        self.batch_seconds = Histogram(
            "lorchestra_batch_seconds", "Computation of a batch", buckets=_SECONDS, registry=registry
        )

    def watch(self, name: str, text: str, value: Callable[[], float]) -> None:
        """Report the value that a function has when `/metrics` is read."""
        Gauge(f"lorchestra_{name}", text, registry=self._registry).set_function(value)

    def text(self) -> bytes:
        """The page."""
        return generate_latest(self._registry)
