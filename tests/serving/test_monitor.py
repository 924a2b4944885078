"""Logs and metrics tell what happened and never of whom."""

import gzip
import json
import logging
import subprocess
import sys

import pytest
from conftest import CANARY
from loopback import Quiet, listening
from prometheus_client import generate_latest

from serving.monitor import JsonLines, Metrics, span
from serving.schema import Response


def _line(record: logging.LogRecord) -> dict[str, object]:
    return json.loads(JsonLines().format(record))  # type: ignore[no-any-return]


def test_a_library_s_message_is_not_written_because_it_may_quote() -> None:
    record = logging.LogRecord("uvicorn.error", logging.ERROR, "x", 1, f"failed for {CANARY}", (), None)
    assert CANARY not in json.dumps(_line(record)) and _line(record)["from"] == "uvicorn.error"


def test_an_exception_is_told_by_its_kind_alone() -> None:
    try:
        raise KeyError(CANARY)
    except KeyError as error:
        record = logging.LogRecord("asyncio", logging.ERROR, "x", 1, "oops", (), (KeyError, error, error.__traceback__))
    told = _line(record)
    assert told["fault"] == "KeyError" and CANARY not in json.dumps(told)


def test_our_own_lines_have_their_fields() -> None:
    record = logging.makeLogRecord(
        {"name": "concordant.request", "levelno": 30, "levelname": "WARNING", "msg": "", "status": 503, "request": "a"}
    )
    assert _line(record)["status"] == 503 and "message" not in _line(record)


def test_metrics_count_answers_by_option_and_abstention_and_the_age_of_what_they_stand_on() -> None:
    metrics = Metrics()
    told = {
        "decision": "d",
        "decision_version": "1",
        "model_version": "m",
        "title": "t",
        "unit": "u",
        "better": "lower",
        "as_of": "2026-01-01",
    }
    told |= {
        "recommended": None,
        "ranked": (),
        "equivalent": (),
        "excluded": (),
        "abstained": "STALE_INPUT",
        "reasons": (),
        "dose_mg_week": None,
    }
    told |= {"notes": (), "ruleset_version": None, "not_known": (), "stale": ("hba1c_mmol_mol",), "freshness": {"age_years": 3.0}}
    blank = {name: () for name, field in Response.model_fields.items() if field.is_required() and name not in told}
    metrics.answered([Response.model_validate(told | blank)])
    metrics.request("v1_predict", 200, 0.01)
    text = generate_latest(metrics.registry).decode()
    assert 'concordant_answers_total{code="STALE_INPUT",decision="d",kind="abstained"} 1.0' in text
    assert 'concordant_stale_features_total{feature="hba1c_mmol_mol"} 1.0' in text
    assert 'concordant_feature_age_days_bucket{feature="age_years",le="7.0"} 1.0' in text
    assert 'concordant_requests_total{route="v1_predict",status="200"} 1.0' in text


def test_a_span_costs_nothing_where_nothing_traces() -> None:
    with span("x") as found:
        assert found is None


def test_spans_go_to_the_collector_that_is_named_and_hold_no_text_of_an_exception(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real SDK and exporter, to a collector on loopback; in a process of its own, for the SDK's provider is set once."""
    sent: list[bytes] = []

    class Collector(Quiet):
        def do_POST(self) -> None:
            raw = self.rfile.read(int(self.headers["content-length"]))
            sent.append(gzip.decompress(raw) if self.headers.get("content-encoding") == "gzip" else raw)
            self.say(200)

    asks = f"""
from opentelemetry.trace import get_tracer_provider
from serving.monitor import span, trace
assert trace()
try:
    with span("predict", request="0123"), span("rows"):
        raise ValueError("{CANARY}")
except ValueError:
    pass
get_tracer_provider().shutdown()
"""
    with listening(Collector) as url:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
        subprocess.run([sys.executable, "-W", "ignore", "-c", asks], check=True, timeout=120)
    told = b"".join(sent)
    assert b"predict" in told and b"rows" in told and b"0123" in told
    assert CANARY.encode() not in told
