"""What is watched: Prometheus metrics, one JSON line a failure, and traces where OpenTelemetry is installed. Never a value of a patient."""

import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime
from typing import Any

import orjson
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from serving.schema import Response

SECONDS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0)
DAYS = (1, 7, 30, 90, 180, 365, 730)


class Metrics:
    """Metrics of one process, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self._requests = Counter("concordant_requests", "Requests by route and status", ["route", "status"], registry=registry)
        self._seconds = Histogram("concordant_request_seconds", "Time to answer", ["route"], buckets=SECONDS, registry=registry)
        self._answers = Counter(
            "concordant_answers", "Answers for one patient, by option or abstention", ["decision", "kind", "code"], registry=registry
        )
        self._models = Counter(
            "concordant_model_answers", "Answers of a model, by option or abstention", ["model", "kind", "code"], registry=registry
        )
        self._age = Histogram(
            "concordant_feature_age_days", "Age of required inputs when they were used", ["feature"], buckets=DAYS, registry=registry
        )
        self._stale = Counter("concordant_stale_features", "Values that were too old to be used", ["feature"], registry=registry)
        self.overrides = Counter(
            "concordant_overrides", "What clinicians did with a suggestion", ["decision", "outcome"], registry=registry
        )
        self.shadow = Counter(
            "concordant_shadow_answers", "Answers of a shadow beside those that were given", ["result"], registry=registry
        )
        self.swaps = Counter("concordant_model_swaps", "Bundles that were offered", ["outcome"], registry=registry)
        self.ready = Gauge("concordant_ready", "1 where ready", registry=registry)

    def request(self, route: str, status: int, seconds: float) -> None:
        """One request was answered."""
        self._requests.labels(route, status).inc()
        self._seconds.labels(route).observe(seconds)

    def answered(self, answers: Sequence[Response]) -> None:
        """Answers that leave the house: option or abstention, age of what they stand on."""
        for answer in answers:
            kind, code = ("abstained", answer.abstained) if answer.abstained else ("recommended", answer.recommended or "none")
            self._answers.labels(answer.decision, kind, code).inc()
            for name, days in answer.freshness.items():
                self._age.labels(name).observe(days)
            for name in answer.stale:
                self._stale.labels(name).inc()

    def modelled(self, answers: Sequence[Response]) -> None:
        """Answers that a model gave, to compare a canary with the champion: each predictor counts its own."""
        for answer in answers:
            kind, code = ("abstained", answer.abstained) if answer.abstained else ("recommended", answer.recommended or "none")
            self._models.labels(answer.model_version, kind, code).inc()

    def serve(self, host: str, port: int) -> None:
        """`/metrics` on a port of its own, so that it is not reachable where the answers are."""
        start_http_server(port, host, self.registry)


class JsonLines(logging.Formatter):
    """One JSON object a line: time, level, logger, and the fields that were given as `extra`. A message that is not ours is not written."""

    FIELDS = ("request", "route", "status", "fault", "place", "check", "model", "state", "shed")

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        told: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": record.levelname,
            "from": record.name,
        }
        told |= {name: value for name in self.FIELDS if (value := getattr(record, name, None)) is not None}
        ours = record.name.partition(".")[0] == "concordant"
        told |= (
            {"message": record.getMessage()}
            if ours and record.msg
            else {"fault": type(record.exc_info[1]).__name__}
            if record.exc_info
            else {}
        )
        return orjson.dumps(told, default=str).decode()


def quiet_logs() -> None:
    """Every logger of the process writes through `JsonLines`, libraries from warnings on and without their text."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.getLogger("concordant").setLevel(logging.INFO)
    for name in ("kserve", "kserve.trace", "uvicorn", "uvicorn.access", "uvicorn.error", "httpx", "feast", "asyncio", "aiohttp"):
        known = logging.getLogger(name)
        known.handlers, known.propagate = [], True
        known.setLevel(logging.WARNING)


def span(name: str, **told: str) -> AbstractContextManager[Any]:
    """A trace's span where OpenTelemetry's SDK is installed and configured (`OTEL_*` variables), else nothing.

    An exception that passes through leaves no text in it: it may quote a record.
    """
    if _tracer is None:
        return nullcontext()
    return _tracer.start_as_current_span(name, attributes=told, record_exception=False, set_status_on_exception=False)


_tracer: Any = None


def trace() -> bool:
    """Begin to trace if the SDK is there and an exporter is named. Returns whether it did."""
    import os

    global _tracer
    if not os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT"):
        return False
    try:
        from opentelemetry import trace as traces
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        return False
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    traces.set_tracer_provider(provider)
    _tracer = traces.get_tracer("concordant")
    return True
