"""A whole cohort at once: a row for everybody who was asked about, in their order, and no score where none may be relied on."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pytest
import yaml

from components import bundle, cohort, decision, effects, study, whole
from components.bundle import Bundle
from components.cohort import Cohort
from components.decision import Decision
from components.models import fusion_training, ridge, trees
from components.models.fusion import Settings
from components.tensors import Training, folds, training
from features import events
from features.events import PseudonymKey
from features.feature import Events
from features.source import Line


def small_text() -> str:
    """The shipped decision with fewer features."""
    raw = yaml.safe_load(decision.path_of("glucose_lowering").read_text(encoding="utf-8"))
    raw["features"] = {"history": ["age_years", "hba1c_mmol_mol", "bmi_kg_m2"], "genomics": ["prs_bmi"], "lifestyle": ["sleep_hours"]}
    return yaml.safe_dump(raw, sort_keys=False)


def bundle_of(data: Training, text: str, place: Path) -> Bundle:
    """A bundle of quickly trained members."""
    fits: dict[str, Callable[[Training], Any]] = {
        "ridge": ridge.fit,
        "trees": lambda rows: trees.fit(rows, threads=1),
        "fusion": lambda rows: fusion_training.fit(rows, Settings(epochs=2, width=8)),
    }
    models = {name: fit(data) for name, fit in fits.items()}
    for name, model in models.items():
        (place / name).mkdir()
        model.save(place / name)
    blend, _ = effects.fit(data, {name: model.oof_NT for name, model in models.items()})
    bundle.write(place / "bundle", text, {name: place / name for name in models}, blend, data.x_NF, {})
    return bundle.load(place)


@dataclass(frozen=True)
class Asked:
    """A bundle, the events of an export, and its patients as the export names them."""

    bundle: Bundle
    table: pa.Table
    cohort: Cohort
    patients: list[str]
    decision: Decision


@pytest.fixture(scope="module")
def asked(small_export: Path, key: PseudonymKey, tmp_path_factory: pytest.TempPathFactory) -> Asked:
    place, text = tmp_path_factory.mktemp("whole"), small_text()
    which = decision.parse(text)
    events.ingest(str(small_export), place, key)
    table = events.read(place)
    found = cohort.select(table, which)
    x_NF = study.rows_at(which, Events(table), found.patient_ids, found.time_N).x_NF
    made = bundle_of(training(which, found, x_NF), text, place)
    return Asked(bundle=made, table=table, cohort=found, patients=list(events.raw_ids(str(small_export))), decision=which)


@pytest.fixture(scope="module")
def answers(asked: Asked, key: PseudonymKey) -> list[dict[str, Any]]:
    return list(whole.recommend_all(asked.bundle, asked.table, asked.patients, key).to_pylist())


def test_there_is_one_row_for_each_patient_in_the_order_asked(asked: Asked, answers: list[dict[str, Any]], key: PseudonymKey) -> None:
    assert [row["patient_id"] for row in answers] == asked.patients
    backwards = whole.recommend_all(asked.bundle, asked.table, asked.patients[::-1], key).to_pylist()
    assert [row["patient_id"] for row in backwards] == asked.patients[::-1]
    for one, other in zip(answers, backwards[::-1], strict=True):
        assert one["recommended"] == other["recommended"]
        assert (one["outcome_sulfonylurea"] is None) == (other["outcome_sulfonylurea"] is None)
        assert one["outcome_sulfonylurea"] is None or one["outcome_sulfonylurea"] == pytest.approx(other["outcome_sulfonylurea"], rel=1e-5)


def test_the_columns_are_those_that_scripts_rely_on(asked: Asked, answers: list[dict[str, Any]]) -> None:
    outcomes = [f"outcome_{name}" for name in asked.decision.option_names]
    assert list(answers[0]) == ["patient_id", "time", *outcomes, "recommended", "abstained", "equivalent", "excluded", "reasons"]


def test_an_answer_recommends_or_says_why_not(asked: Asked, answers: list[dict[str, Any]]) -> None:
    options = set(asked.decision.option_names)
    assert len(answers) == 300
    for row in answers:
        assert (row["recommended"] is None) == (row["abstained"] is not None)
        assert row["recommended"] is None or row["recommended"] in options
        assert row["reasons"]
    scored = [row for row in answers if row["outcome_sulfonylurea"] is not None]
    assert len(scored) > 250
    for row in scored:
        values = {name: row[f"outcome_{name}"] for name in options}
        assert np.isfinite(list(values.values())).all()
        offered = set(values) - set(row["excluded"].split("|"))
        assert row["recommended"] is None or row["recommended"] in offered
        assert row["abstained"] in (None, "EQUIPOISE", "LOW_OVERLAP", "MISSING_REQUIRED", "STALE_INPUT", "NO_PERMITTED_OPTION")


def test_who_started_an_option_is_asked_at_time_zero_and_who_waits_at_the_newest_date(
    asked: Asked, answers: list[dict[str, Any]], key: PseudonymKey
) -> None:
    time_of = {row["patient_id"]: int(datetime.fromisoformat(row["time"]).timestamp() * 1e6) for row in answers}
    zero = dict(zip(asked.cohort.patient_ids, asked.cohort.time_N, strict=True))
    treated = [patient for patient in asked.patients if key.pseudonym(patient) in zero]
    assert len(treated) == len(asked.cohort)
    assert all(time_of[patient] == zero[key.pseudonym(patient)] for patient in treated)
    started, _ = cohort.first_option(Events(asked.table), asked.decision)
    newest = events.newest_us(asked.table)
    waiting = [patient for patient, time in time_of.items() if time == newest]
    assert len(waiting) == int((started > newest).sum()) > 0


def test_a_patient_whom_the_records_do_not_know_gets_an_abstention_and_no_outcome(asked: Asked, key: PseudonymKey) -> None:
    mixed = [asked.patients[0], "nobody", asked.patients[1]]
    rows = whole.recommend_all(asked.bundle, asked.table, mixed, key).to_pylist()
    assert [row["patient_id"] for row in rows] == mixed
    assert rows[1]["abstained"] == "OUT_OF_POPULATION"
    assert rows[1]["recommended"] is None
    assert all(rows[1][f"outcome_{name}"] is None for name in asked.decision.option_names)
    assert rows[0]["outcome_sulfonylurea"] is not None
    alone = whole.recommend_all(asked.bundle, asked.table, ["nobody"], key).to_pylist()
    assert alone[0]["abstained"] == "OUT_OF_POPULATION"


def test_records_of_nobody_answer_everybody_with_an_abstention(asked: Asked, key: PseudonymKey) -> None:
    rows = whole.recommend_all(asked.bundle, asked.table.slice(0, 0), ["a", "b"], key).to_pylist()
    assert [row["abstained"] for row in rows] == ["OUT_OF_POPULATION"] * 2


def test_nobody_asked_is_a_table_without_rows(asked: Asked, key: PseudonymKey) -> None:
    table = whole.recommend_all(asked.bundle, asked.table, [], key)
    assert table.num_rows == 0
    assert "recommended" in table.column_names


def test_the_answer_of_a_patient_is_that_of_the_bundle(asked: Asked, answers: list[dict[str, Any]], key: PseudonymKey) -> None:
    row = next(row for row in answers if key.pseudonym(row["patient_id"]) == asked.cohort.patient_ids[0])
    rows = study.rows_at(asked.decision, Events(asked.table), asked.cohort.patient_ids[:1], asked.cohort.time_N[:1], record=True)
    expected, (advice,) = asked.bundle.advise(rows, rows.time_N)
    assert [row[f"outcome_{name}"] for name in asked.decision.option_names] == pytest.approx(expected.outcome_NK[0].tolist(), rel=1e-5)
    assert row["recommended"] == advice.recommended
    assert row["equivalent"] == "|".join(advice.equivalent)


def test_no_pseudonym_leaves_with_the_table(asked: Asked, answers: list[dict[str, Any]]) -> None:
    text = repr(answers)
    assert not [pseudonym for pseudonym in Events(asked.table).patients if pseudonym in text]


def test_for_a_dose_the_expected_dose_stands_beside_the_band_and_not_where_an_input_is_missing(key: PseudonymKey, tmp_path: Path) -> None:
    text = decision.path_of("warfarin").read_text(encoding="utf-8")
    warfarin, rng, n = decision.load("warfarin"), np.random.default_rng(0), 150
    x_NF = rng.normal(size=(n, len(warfarin.columns)))
    x_NF[:, 0] = rng.uniform(20, 90, n)
    dose_N = np.clip(70 - 0.6 * x_NF[:, 0] + rng.normal(0, 3, n), 5, 90)
    data = Training(
        x_NF=x_NF,
        names=tuple(c.name for c in warfarin.columns),
        modality_F=tuple(c.modality for c in warfarin.columns),
        options=3,
        targets=1,
        option_N=cohort.band(warfarin, dose_N),
        target_N=np.sqrt(dose_N),
        fold_N=folds(n),
    )
    made = bundle_of(data, text, tmp_path)
    coded = {"coding": [{"system": "http://www.nlm.nih.gov/research/umls/rxnorm", "code": "11289"}]}
    request = {"resourceType": "MedicationRequest", "status": "active", "intent": "order", "authoredOn": "2020-01-01T00:00:00+00:00"}
    resources: list[dict[str, Any]] = [
        {"resourceType": "Patient", "id": "old", "birthDate": "1935"},
        {"resourceType": "Patient", "id": "young", "birthDate": "1995"},
    ]
    for who in ("old", "young", "ageless"):
        resources.append({**request, "id": f"r-{who}", "medicationCodeableConcept": coded, "subject": {"reference": f"Patient/{who}"}})
    now = int(datetime(2026, 1, 1, tzinfo=UTC).timestamp()) * 1_000_000
    table = events.collect([Line("hand", m, r, None, orjson.dumps(r)) for m, r in enumerate(resources)], key, now)
    old, young, ageless = whole.recommend_all(made, table, ["old", "young", "ageless"], key).to_pylist()
    assert 5 < old["dose_mg_week"] < young["dose_mg_week"] < 90
    assert old["outcome_low"] < old["outcome_high"]
    assert young["outcome_high"] < young["outcome_low"]
    assert ageless["abstained"] == "MISSING_REQUIRED"
    assert ageless["dose_mg_week"] is None
    assert ageless["outcome_low"] is None
    assert "age_years" in ageless["reasons"]
