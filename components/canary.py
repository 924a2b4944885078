"""Whether a canary may take all traffic: what it and the champion did since the canary began, against limits.

The figures are counters of `concordant_*` metrics, from two pages of metrics or from a Prometheus server.
"""

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from features.errors import ConcordantError

REQUESTS, SECONDS, ANSWERS = "concordant_requests_total", "concordant_request_seconds_bucket", "concordant_model_answers_total"
HASTE = 20  # requests after which a fault is believed without waiting for the end
Sample = tuple[str, Mapping[str, str], float]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a canary must keep."""

    requests: int = 200  # fewer than these say nothing
    error_rate: float = 0.01  # of its requests, as 5xx
    p99_s: float = 0.5  # a bound of the histogram
    abstention_difference: float = 0.05  # of the shares abstained, either way
    agreement: float = 0.9  # share of answers that both give as often: 1 less half the sum of the differences of their shares


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Counters of one model's endpoint."""

    requests: float = 0.0
    errors: float = 0.0
    within: Mapping[float, float] = field(default_factory=dict)  # requests by upper bound in seconds
    answers: Mapping[str, float] = field(default_factory=dict)  # by "kind/code"

    def since(self, before: "Figures") -> "Figures":
        """What was added. A counter that fell has begun anew: its process was started again."""
        if before.requests > self.requests:
            before = Figures()
        return Figures(
            requests=self.requests - before.requests,
            errors=max(0.0, self.errors - before.errors),
            within={bound: max(0.0, count - before.within.get(bound, 0.0)) for bound, count in self.within.items()},
            answers={code: max(0.0, count - before.answers.get(code, 0.0)) for code, count in self.answers.items()},
        )

    @property
    def p99_s(self) -> float:
        """The least bound that holds 99 % of the requests; infinite where none does."""
        most = self.within.get(math.inf, 0.0)
        return next((bound for bound in sorted(self.within) if self.within[bound] >= 0.99 * most), math.inf) if most else math.nan

    @property
    def abstained(self) -> float:
        """Share of answers that abstain."""
        whole = sum(self.answers.values())
        return sum(count for code, count in self.answers.items() if code.startswith("abstained/")) / whole if whole else math.nan


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """`faults` end a canary at once where it was asked often enough to tell; `lacking` must be empty at the end."""

    faults: tuple[str, ...]
    lacking: tuple[str, ...]
    told: str


def figures(samples: Iterable[Sample]) -> Figures:
    """Counters summed over pods. Health and metrics routes do not count as requests."""
    requests, errors = 0.0, 0.0
    within: defaultdict[float, float] = defaultdict(float)
    answers: defaultdict[str, float] = defaultdict(float)
    for name, labels, value in samples:
        if name == REQUESTS and _asked(labels):
            requests, errors = requests + value, errors + value * labels.get("status", "").startswith("5")
        elif name == SECONDS and _asked(labels):
            within[float(labels["le"])] += value
        elif name == ANSWERS:
            answers[f"{labels['kind']}/{labels['code']}"] += value
    return Figures(requests=requests, errors=errors, within=dict(within), answers=dict(answers))


def _asked(labels: Mapping[str, str]) -> bool:
    return not any(word in labels.get("route", "") for word in ("health", "live", "ready", "metrics"))


def agreement(one: Figures, other: Figures) -> float:
    """Overlap of how often each answer is given, 0 to 1 (one less the total variation distance); NaN where one gave none."""
    whole, rest = sum(one.answers.values()), sum(other.answers.values())
    if not whole or not rest:
        return math.nan
    return sum(min(one.answers.get(code, 0.0) / whole, other.answers.get(code, 0.0) / rest) for code in {*one.answers, *other.answers})


def judge(champion: Figures, canary: Figures, limits: Limits) -> Verdict:
    """Compare what both did in the same time."""
    rate = canary.errors / canary.requests if canary.requests else 0.0
    same, apart = agreement(champion, canary), abs(canary.abstained - champion.abstained)
    faults = []
    if canary.requests >= min(HASTE, limits.requests):
        if rate > limits.error_rate:
            faults.append(f"{rate:.1%} of its requests failed, allowed {limits.error_rate:.1%}")
        if canary.p99_s > limits.p99_s:
            faults.append(f"99 % of its answers took up to {canary.p99_s:g} s, allowed {limits.p99_s:g} s")
    lacking = []
    if canary.requests < limits.requests:
        lacking.append(f"it was asked {canary.requests:.0f} times, {limits.requests} are needed to tell")
    else:
        if not apart <= limits.abstention_difference:
            lacking.append(f"it abstains {apart:.1%} more or less often than the champion, allowed {limits.abstention_difference:.1%}")
        if math.isnan(canary.p99_s):
            lacking.append(f"how long its answers took is not known: {SECONDS} has no bucket +Inf")
        if not same >= limits.agreement:
            lacking.append(f"its answers overlap with the champion's by {same:.1%}, needed {limits.agreement:.1%}")
    told = (
        f"{canary.requests:.0f} requests, {rate:.1%} failed, p99 {canary.p99_s:g} s, abstained {canary.abstained:.1%}, overlap {same:.1%}"
    )
    return Verdict(faults=tuple(faults), lacking=tuple(lacking), told=told)


@dataclass(frozen=True, kw_only=True)
class Watch:
    """Where the figures come from: a page of metrics each, or a Prometheus server and the pods of each by a pattern, in one namespace."""

    champion: str
    canary: str
    prometheus: str = ""
    namespace: str = ""

    def look(self) -> tuple[Figures, Figures]:
        """Champion and canary now. Raises ConcordantError where the figures can't be had."""
        try:
            return figures(self._read(self.champion)), figures(self._read(self.canary))
        except (ValueError, KeyError, TypeError, IndexError) as error:  # a page of a log-in, or of something else
            place = self.prometheus or "the addresses given"
            raise ConcordantError(f"What {place} answered are not our metrics ({type(error).__name__}).") from None

    def _read(self, which: str) -> list[Sample]:
        return _queried(which, self.prometheus, self.namespace) if self.prometheus else _page(which)


def _page(address: str) -> list[Sample]:
    from prometheus_client.parser import text_string_to_metric_families

    families = text_string_to_metric_families(_fetched(address, {}))
    return [(sample.name, sample.labels, sample.value) for family in families for sample in family.samples]


def _queried(pods: str, server: str, namespace: str) -> list[Sample]:
    names = "|".join((REQUESTS, SECONDS, ANSWERS))
    here = f",namespace={json.dumps(namespace)}" if namespace else ""
    query = f'{{__name__=~"{names}",pod=~{json.dumps(pods)}{here}}}'
    told = json.loads(_fetched(f"{server.rstrip('/')}/api/v1/query", {"query": query}))
    if told.get("status") != "success":
        raise ConcordantError(f"Prometheus at {server} did not answer the query: {str(told.get('error', ''))[:200]}")
    return [(each["metric"]["__name__"], each["metric"], float(each["value"][1])) for each in told["data"]["result"]]


def _fetched(address: str, query: dict[str, str]) -> str:
    import httpx

    try:
        answer = httpx.get(address, params=query or None, timeout=10, follow_redirects=False)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ConcordantError(f"No metrics at {address} ({type(error).__name__}). Is the address reachable from here?") from None
    if answer.status_code != 200:
        raise ConcordantError(f"No metrics at {address}: it answered {answer.status_code}.")
    return answer.text
