"""Bodies bent at random, to both processes: never a fault of ours, never an echo."""

import http.client
import json
import random
from typing import Any
from urllib.parse import urlsplit

import pytest
from conftest import CANARY, examples

from pipelines.serve import Endpoints
from serving.patient import Patients
from serving.schema import PatientQuery

pytestmark = [pytest.mark.slow, pytest.mark.deep, pytest.mark.xdist_group("whole")]
ODD: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    1e308,
    -1e-320,
    2**63,
    10**30,
    "",
    CANARY,
    "NaN",
    "\u0000",
    "\u202e" + CANARY,
    [],
    {},
    [[]],
    {"a": CANARY},
    [None],
]
SPLICES = [
    b"NaN",
    b"Infinity",
    b"1e999",
    b'"\\ud800"',
    b"\xff\xfe",
    b"\x00",
    b"{",
    b"]",
    b'"',
    b",,",
    b":" * 9,
    b"[" * 40,
    b"9" * 400,
    CANARY.encode(),
]


def _bent(value: Any, dice: random.Random, depth: int = 0) -> Any:
    """The value with something changed somewhere."""
    if dice.random() < 0.15 or depth > 6:
        return dice.choice(ODD)
    if isinstance(value, dict) and value:
        name, told = dice.choice(list(value)), dict(value)
        what = dice.random()
        if what < 0.15:
            del told[name]
        elif what < 0.3:
            told[dice.choice([CANARY, "", name.upper(), "__proto__"])] = told[name]
        else:
            told[name] = _bent(value[name], dice, depth + 1)
        return told
    if isinstance(value, list) and value:
        n = dice.randrange(len(value))
        return [*value[:n], _bent(value[n], dice, depth + 1), *value[n + dice.randrange(2) :]]
    if isinstance(value, str) and value and value[0] == "{" and dice.random() < 0.8:  # a record, as text
        return json.dumps(_bent(json.loads(value), dice, depth + 1))
    return dice.choice(ODD)


def _bytes(value: Any, dice: random.Random) -> bytes:
    raw = json.dumps(value, ensure_ascii=dice.random() < 0.5).encode(errors="replace")
    if dice.random() < 0.3:
        at = dice.randrange(len(raw) + 1)
        raw = raw[:at] + dice.choice(SPLICES) + raw[at + dice.randrange(9) :]
    return raw


def _fuzz(base: str, seeds: dict[str, Any], cases: int) -> str:
    """What came back, in words."""
    dice, host = random.Random(7), urlsplit(base).netloc
    plug = http.client.HTTPConnection(host, timeout=20)
    seen: dict[int, int] = {}
    for _ in range(cases):
        path = dice.choice(list(seeds))
        body = _bytes(_bent(seeds[path], dice), dice)
        plug.request("POST", path, body, {"content-type": "application/json", "x-note": CANARY})
        reply = plug.getresponse()
        told = reply.read()
        seen[reply.status] = seen.get(reply.status, 0) + 1
        assert reply.status < 500, (reply.status, told)
        assert reply.status == 200 or CANARY.encode() not in told, told
        assert CANARY not in str(reply.headers)
    plug.close()
    assert seen.get(400, 0) > cases * 0.3, seen
    return f"{sum(seen.values()):,} bodies: " + ", ".join(f"{count:,} x {status}" for status, count in sorted(seen.items())) + "; no echo"


def test_bent_bodies_break_nothing_in_the_transformer(endpoints: Endpoints, record_property: Any) -> None:
    bundle = {
        "resourceType": "Bundle",
        "entry": [
            {"resource": {"resourceType": "Patient", "id": "p", "birthDate": "1960-01-01", "gender": "male"}},
            {
                "resource": {
                    "resourceType": "Observation",
                    "id": "o",
                    "status": "final",
                    "subject": {"reference": "Patient/p"},
                    "code": {"coding": [{"system": "http://loinc.org", "code": "4548-4"}]},
                    "effectiveDateTime": "2025-01-01",
                    "valueQuantity": {"value": 8.1, "code": "%"},
                }
            },
        ],
    }
    v1, v2 = f"/v1/models/{endpoints.name}:predict", f"/v2/models/{endpoints.name}/infer"
    seeds = {
        v1: {"instances": [{"patient_id": "nobody"}, {"bundle": bundle}]},
        v1.replace("predict", "explain"): {"instances": [{"bundle": bundle}]},
    }
    seeds[v2] = {"id": "a", "inputs": [{"name": "patient_id", "shape": [1], "datatype": "BYTES", "data": ["nobody"]}]}
    record_property("found", _fuzz(endpoints.base, seeds, examples(1_500, 60_000)))


def test_bent_rows_break_nothing_in_the_predictor(
    endpoints: Endpoints, whole_run: Any, run_key: Any, scored: tuple[str, ...], record_property: Any
) -> None:
    (row,) = Patients(whole_run.folder / "store", run_key, wall_clock=False).rows([PatientQuery(pseudonym=scored[0])])
    v1, v2 = f"/v1/models/{endpoints.name}:predict", f"/v2/models/{endpoints.name}/infer"
    seeds: dict[str, Any] = {v1: {"instances": [row.model_dump(mode="json")]}}
    seeds[v2] = {"inputs": [{"name": "row", "shape": [1], "datatype": "BYTES", "data": [row.model_dump_json()]}]}
    record_property("found", _fuzz(f"http://127.0.0.1:{endpoints._predictor_port}", seeds, examples(1_000, 40_000)))
