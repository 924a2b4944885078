"""The figures of a canary against those of the champion: from pages of metrics and from Prometheus, and what is made of them."""

import math
from typing import Any

import pytest
from conftest import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from loopback import Quiet, listening

from components.canary import Figures, Limits, Watch, agreement, figures, judge
from features.errors import ConcordantError


def _figures(requests: float = 1000, errors: float = 0, slow: float = 0, **answers: float) -> Figures:
    within = {0.1: requests - slow, 1.0: requests, math.inf: requests}
    return Figures(requests=requests, errors=errors, within=within, answers=answers or {"recommended/a": 800, "abstained/x": 200})


def test_a_canary_that_does_as_the_champion_does_has_nothing_against_it() -> None:
    told = judge(_figures(9000), _figures(1000), Limits())
    assert told.faults == () and told.lacking == ()


@pytest.mark.parametrize(
    ("canary", "sentence"),
    [
        (_figures(1000, errors=20), "2.0% of its requests failed"),
        (_figures(1000, slow=20), "took up to 1 s, allowed 0.5 s"),
        (_figures(30, errors=1), "3.3% of its requests failed"),
    ],
)
def test_errors_and_slowness_end_a_canary_at_once(canary: Figures, sentence: str) -> None:
    assert sentence in judge(_figures(9000), canary, Limits()).faults[0]


@pytest.mark.parametrize(
    ("canary", "sentence"),
    [
        (_figures(12), "it was asked 12 times, 200 are needed"),
        (_figures(1000, **{"recommended/a": 700, "abstained/x": 300}), "it abstains 10.0% more or less often"),
        (_figures(1000, **{"recommended/a": 500, "recommended/b": 300, "abstained/x": 200}), "overlap with the champion's by 70.0%"),
        (Figures(requests=1000, within={math.inf: 1000}), "nan%"),
        (Figures(requests=1000, answers={"recommended/a": 800, "abstained/x": 200}), "how long its answers took is not known"),
    ],
)
def test_what_must_be_shown_by_the_end(canary: Figures, sentence: str) -> None:
    assert sentence in " ".join(judge(_figures(9000), canary, Limits(p99_s=math.inf)).lacking)


def test_a_process_that_began_anew_counts_from_nought() -> None:
    assert _figures(50).since(_figures(1000)).requests == 50
    assert _figures(1000).since(_figures(400, **{"recommended/a": 300})).answers == {"recommended/a": 500, "abstained/x": 200}


def test_figures_are_read_from_the_metrics_that_a_predictor_writes() -> None:
    from prometheus_client import generate_latest
    from prometheus_client.parser import text_string_to_metric_families

    from serving.monitor import Metrics

    metrics = Metrics()
    for n in range(100):
        metrics.request("/v1/models/x:predict", 500 if n < 3 else 200, 0.7 if n < 2 else 0.004)
        metrics.request("/v2/health/ready", 503, 0.001)

    class Answer:
        model_version, abstained, recommended = "abc", None, "metformin"

    metrics.modelled([Answer(), Answer()])  # type: ignore[list-item]
    text = generate_latest(metrics.registry).decode()
    found = figures((s.name, s.labels, s.value) for family in text_string_to_metric_families(text) for s in family.samples)
    assert (found.requests, found.errors, found.p99_s) == (100, 3, 1.0)
    assert found.answers == {"recommended/metformin": 2}


Shares = st.dictionaries(st.sampled_from("abcde"), st.integers(1, 1000), min_size=1)


@settings(max_examples=examples(50, 2000), deadline=None)
@given(one=Shares, other=Shares, times=st.integers(2, 9))
def test_agreement_is_symmetric_between_0_and_1_and_knows_no_size(one: dict[str, int], other: dict[str, int], times: int) -> None:
    first, second = Figures(answers=one), Figures(answers=other)
    found = agreement(first, second)
    assert 0 <= found <= 1 + 1e-12 and math.isclose(found, agreement(second, first), abs_tol=1e-12)
    assert math.isclose(found, agreement(Figures(answers={code: n * times for code, n in one.items()}), second), abs_tol=1e-9)
    assert math.isclose(agreement(first, first), 1)


def test_metrics_that_cant_be_had_are_an_error_not_a_good_sign() -> None:
    with pytest.raises(ConcordantError, match="No metrics at"):
        Watch(champion="http://127.0.0.1:9/metrics", canary="http://127.0.0.1:9/metrics").look()


def test_prometheus_is_asked_for_the_pods_of_each() -> None:
    import json
    from urllib.parse import parse_qs, urlsplit

    asked: list[str] = []

    class Prometheus(Quiet):
        def do_GET(self) -> None:
            address = urlsplit(self.path)
            asked.append(parse_qs(address.query)["query"][0])
            metric = {"__name__": "concordant_requests_total", "pod": "x", "route": "/v1/models/x:predict", "status": "200"}
            value: Any = {"status": "success", "data": {"resultType": "vector", "result": [{"metric": metric, "value": [1.0, "41"]}]}}
            self.say(200, json.dumps(value if address.path == "/api/v1/query" else {}).encode())

    with listening(Prometheus) as address:
        champion, canary = Watch(champion="c-predictor-.*", canary="c-x-.*", prometheus=address, namespace="care").look()
    assert all(query.endswith(',namespace="care"}') for query in asked)  # another release of the same name is not ours
    assert champion.requests == canary.requests == 41
    assert 'pod=~"c-predictor-.*"' in asked[0] and 'pod=~"c-x-.*"' in asked[1] and "concordant_requests_total" in asked[0]
