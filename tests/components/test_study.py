"""One study from simulated records to a bundle: what each step leaves is what the next one reads, and nobody is in what is published."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import yaml
from safetensors.numpy import load_file

from components import bundle, cohort, decision, study
from components.cohort import Cohort
from components.models import fusion_training, ridge, trees
from components.models.fusion import Settings
from components.tensors import Training, training
from features import events, store
from features.errors import ConcordantError
from features.events import PseudonymKey
from features.feature import Events
from features.moment import instant
from features.sequence import COLUMNS_A_FACT, code
from pipelines.simulate import truth_path
from serving.explainer import explain
from serving.inline import Inline

QUICK = Settings(epochs=2, width=8)


def small_text() -> str:
    """The shipped decision with fewer features, and the newest facts one after another."""
    raw = yaml.safe_load(decision.path_of("glucose_lowering").read_text(encoding="utf-8"))
    raw["features"] = {
        "history": ["age_years", "female", "hba1c_mmol_mol", "bmi_kg_m2", "egfr_ml_min_173m2", "diabetes_duration_years"],
        "genomics": ["prs_bmi", "cyp2c9_star2"],
        "lifestyle": ["sleep_hours"],
    }
    raw["newest_events"] = 12
    return yaml.safe_dump(raw, sort_keys=False)


TEXT = small_text()
DECISION = decision.parse(TEXT)


@dataclass(frozen=True)
class Study:
    """Folders of a study, and what they were made from."""

    home: Path
    table: pa.Table
    cohort: Cohort
    key: PseudonymKey
    truth: str

    @property
    def members(self) -> dict[str, Path]:
        return {name: self.home / name for name in ("ridge", "trees", "fusion")}


@pytest.fixture(scope="module")
def made(small_export: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Study]:
    home = tmp_path_factory.mktemp("study")
    key = PseudonymKey.at(home / "key")
    for name in ("events", "cohort", "features", "ridge", "trees", "fusion", "effects", "evaluation", "published"):
        (home / name).mkdir()
    events.ingest(str(small_export), home / "events", key)
    table = events.read(home / "events")
    found = cohort.select(table, DECISION)
    found.write(home / "cohort")
    study.build(DECISION, table, found, home / "features")
    study.train(DECISION, found, home / "features", ridge.fit, home / "ridge")
    study.train(DECISION, found, home / "features", lambda data: trees.fit(data, threads=1), home / "trees")
    study.train(DECISION, found, home / "features", lambda data: fusion_training.fit(data, QUICK), home / "fusion")
    done = Study(home=home, table=table, cohort=found, key=key, truth=str(truth_path(small_export)))
    study.blend(DECISION, found, home / "features", done.members, home / "effects")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CONCORDANT_KEY_FILE", str(home / "key"))
        study.assess(TEXT, home / "cohort", home / "features", home / "effects", done.truth, home / "evaluation")
        study.publish(TEXT, home / "features", done.members, home / "effects", home / "evaluation", home / "published")
        yield done


def metrics(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "metrics.json").read_text(encoding="utf-8")))


# ---------------------------------------------------------------------------------------------------------------------------------- rows


def test_training_rows_are_the_cohort_in_its_order_at_time_zero(made: Study) -> None:
    rows = store.Rows.read(made.home / "features" / "training.parquet")
    assert rows.patient_ids == made.cohort.patient_ids
    np.testing.assert_array_equal(rows.time_N, made.cohort.time_N)
    assert rows.x_NF.shape == (len(made.cohort), len(DECISION.columns))
    assert set(rows.outside) == {""}


def test_serving_rows_are_everybody_at_the_newest_date(made: Study) -> None:
    rows, asked = store.Rows.read(made.home / "features" / "serving.parquet"), Events(made.table)
    assert rows.patient_ids == tuple(asked.patients)
    assert set(rows.time_N.tolist()) == {events.newest_us(made.table)}


def test_a_row_is_the_same_bit_for_bit_whoever_else_is_asked(made: Study) -> None:
    whole, asked = store.Rows.read(made.home / "features" / "training.parquet"), Events(made.table)
    for n in (0, 17, len(whole) - 1):
        alone = study.rows_at(DECISION, asked, (whole.patient_ids[n],), whole.time_N[[n]])
        assert alone.x_NF[0].tobytes() == whole.x_NF[n].tobytes()
        assert alone.fact_NF[0].tobytes() == whole.fact_NF[n].tobytes()


def test_a_required_input_is_known_of_everybody_in_the_cohort(made: Study) -> None:
    rows = store.Rows.read(made.home / "features" / "training.parquet")
    names = [column.name for column in DECISION.columns]
    assert not np.isnan(rows.x_NF[:, [names.index(name) for name in DECISION.required]]).any()


# ------------------------------------------------------------------------------------------------------------------------------- training


def test_each_member_leaves_its_files_and_a_cross_fitted_prediction_of_every_row(made: Study) -> None:
    for name, folder in made.members.items():
        arrays = load_file(folder / "crossfit.safetensors")
        assert set(arrays) == {"oof_NT"} | ({"without_events_NT"} if name == "fusion" else set()), name
        assert all(array.shape == (len(made.cohort), 5) and np.isfinite(array).all() for array in arrays.values())


def test_store_and_inline_record_hold_the_newest_facts_that_training_would(made: Study, small_export: Path, tmp_path: Path) -> None:
    rows, serving = (store.Rows.read(made.home / "features" / f"{name}.parquet") for name in ("training", "serving"))
    store.fill(tmp_path / "store", DECISION.name, DECISION.columns, rows, serving, server=store.Server("sqlite"))
    read, present = store.OnlineRows(tmp_path / "store").read(serving.patient_ids[:20])
    assert all(present) and read.x_NF.tobytes() == serving.x_NF[:20].tobytes()
    own: dict[str, list[Any]] = {}
    for path in sorted(small_export.glob("*.ndjson")):
        for line in path.read_text(encoding="utf-8").splitlines():
            resource = json.loads(line)
            about = resource if resource["resourceType"] == "Patient" else resource.get("subject") or resource.get("patient") or {}
            own.setdefault(str(about.get("id") or about.get("reference", "")).rpartition("/")[2], []).append({"resource": resource})
    inline, known = Inline(DECISION, made.key, wall_clock=False), Events(made.table)
    for raw in sorted(own.keys() & set(events.raw_ids(str(small_export))))[:8]:
        pseudonym, row = inline.row({"resourceType": "Bundle", "type": "collection", "entry": own[raw]})
        alone = study.rows_at(DECISION, known, (pseudonym,), np.array([instant(row.as_of)]))
        use = store.usable(DECISION.columns, alone.x_NF, alone.fact_NF, alone.time_N)
        wanted = [None if np.isnan(value) else float(value) for value in use.x_NF[0]]
        assert list(row.features.values()) == wanted
        assert sum(value is not None for value in wanted[len(DECISION.tabular) :]) >= 3


def test_the_network_alone_reads_the_newest_facts_and_none_of_them_is_of_an_option(made: Study) -> None:
    """Who is prescribed an option has the prescription among the newest facts; who still waits has not."""
    rows = store.Rows.read(made.home / "features" / "training.parquet")
    stored_NL = rows.x_NF[:, len(DECISION.tabular) :: COLUMNS_A_FACT]
    options = [code(f"takes:{drug}") for option in DECISION.options.values() for drug in option.drugs]
    assert np.isin(stored_NL, options).any(1).mean() > 0.9
    found = bundle.load(made.home / "published")
    assert found.fusion.words is not None and len(found.fusion.words) > 10
    assert not np.isin(found.fusion.words.code_V, options).any()
    data = training(DECISION, made.cohort, rows.x_NF)
    assert data.events_NLC is not None and data.events_NLC.shape == (len(rows), 12, COLUMNS_A_FACT)
    assert not np.isin(data.events_NLC[:, :, 0], options).any()
    concepts = [f"{kind}:{drug}" for kind in ("takes", "start") for option in DECISION.options.values() for drug in option.drugs]
    before = made.table.filter(pc.invert(pc.is_in(made.table["concept"].cast(pa.string()), pa.array(concepts))))
    unasked = study.rows_at(DECISION, Events(before), made.cohort.patient_ids, made.cohort.time_N)
    _, waiting_NLC = DECISION.split(unasked.x_NF)
    assert waiting_NLC is not None and waiting_NLC.tobytes() == data.events_NLC.tobytes()  # as if the order had not been written yet
    assert data.names == tuple(feature.name for feature in DECISION.tabular) and data.x_NF.shape[1] == len(data.names)
    assert len(found.ridge.scaler.center_F) == len(data.names)


def test_a_dose_decision_is_trained_once_more_without_genomics(tmp_path: Path) -> None:
    warfarin, rng = decision.load("warfarin"), np.random.default_rng(0)
    dose_N = rng.uniform(10, 70, 60)
    who = Cohort(
        patient_ids=tuple(f"p{n}" for n in range(60)),
        time_N=np.zeros(60, np.int64),
        option_N=cohort.band(warfarin, dose_N),
        target_N=dose_N,
        site_N=("",) * 60,
        flow=(("all", 60),),
    )
    x_NF = rng.normal(size=(60, len(warfarin.columns)))
    store.Rows(patient_ids=who.patient_ids, time_N=who.time_N, x_NF=x_NF, fact_NF=np.zeros(x_NF.shape, np.int64), outside=("",) * 60).write(
        tmp_path / "training.parquet"
    )
    asked: list[tuple[str, ...]] = []

    class Mean:
        oof_NT = np.full((60, 1), 6.0)

        def save(self, folder: Path) -> None:
            (folder / "mean.json").write_text("6", encoding="utf-8")

    def fit(data: Training) -> Mean:
        asked.append(tuple(sorted(set(data.modality_F))))
        return Mean()

    study.train(warfarin, who, tmp_path, fit, tmp_path)
    assert asked == [("genomics", "history", "lifestyle"), ("history", "lifestyle")]
    assert set(load_file(tmp_path / "crossfit.safetensors")) == {"oof_NT", "without_genomics_NT"}


def test_the_blend_leaves_everything_that_evaluation_needs(made: Study) -> None:
    arrays, n = load_file(made.home / "effects" / "crossfit.safetensors"), len(made.cohort)
    shapes = {name: array.shape for name, array in arrays.items()}
    wide = dict.fromkeys(("target_NT", "propensity_NK", "aipw_NK", "member_ridge", "member_trees", "member_fusion"), (n, 5))
    assert shapes == wide | {"sd_NTT": (n, 5, 5), "without_events_NT": (n, 5)}
    np.testing.assert_array_equal(np.isnan(arrays["aipw_NK"]).any(1), ~made.cohort.observed_N)
    assert all(np.isfinite(array).all() for name, array in arrays.items() if name != "aipw_NK")


# ------------------------------------------------------------------------------------------------------------------------------ evaluation


def test_metrics_report_and_flow_are_left_for_people(made: Study) -> None:
    found = metrics(made.home / "evaluation")
    assert found["patients"] == len(made.cohort)
    assert found["patients_with_outcome"] == int(made.cohort.observed_N.sum())
    wanted = {"policy_regret", "best_fixed_regret", "prescriber_regret", "top_choice_accuracy_when_answering", "share_answered"}
    assert wanted | {"interval_coverage", "verdict"} <= set(found)
    assert found["policy_regret"] < found["prescriber_regret"]
    assert found["value_of_sequence_error_mmol_mol_low"] <= found["value_of_sequence_error_mmol_mol_high"]
    assert "sequence_error" in (made.home / "evaluation" / "report.html").read_text(encoding="utf-8")
    assert json.loads((made.home / "evaluation" / "flow.json").read_text(encoding="utf-8")) == [list(step) for step in made.cohort.flow]


def test_the_report_fetches_nothing_from_outside(made: Study) -> None:
    text = (made.home / "evaluation" / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"""(src|href|url)\s*[=(]\s*["']?\s*(https?:)?//""", text)
    assert "<script" not in text
    assert "@import" not in text
    assert f"{len(made.cohort):,}" in text


def test_evaluation_twice_gives_the_same_bytes(made: Study, tmp_path: Path) -> None:
    study.assess(TEXT, made.home / "cohort", made.home / "features", made.home / "effects", made.truth, tmp_path)
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (made.home / "evaluation" / path.name).read_bytes()


def test_without_a_truth_nothing_is_said_of_regret(made: Study, tmp_path: Path) -> None:
    study.assess(TEXT, made.home / "cohort", made.home / "features", made.home / "effects", "", tmp_path)
    found = metrics(tmp_path)
    assert not [name for name in found if "regret" in name or "true" in name]
    assert "gain_over_best_fixed_mmol_mol" in found
    assert "Doubly robust gain" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_the_truth_is_read_by_patient_and_not_by_row(made: Study, tmp_path: Path) -> None:
    table = pq.read_table(made.truth)
    pq.write_table(table.take(np.arange(table.num_rows)[::-1]), tmp_path / "reversed.parquet")
    (tmp_path / "out").mkdir()
    truth = str(tmp_path / "reversed.parquet")
    study.assess(TEXT, made.home / "cohort", made.home / "features", made.home / "effects", truth, tmp_path / "out")
    assert metrics(tmp_path / "out") == metrics(made.home / "evaluation")


def test_the_truth_of_another_export_is_told_in_a_sentence(made: Study, tmp_path: Path) -> None:
    pq.write_table(pq.read_table(made.truth).slice(0, 5), tmp_path / "other.parquet")
    with pytest.raises(ConcordantError, match="truth"):
        study.assess(TEXT, made.home / "cohort", made.home / "features", made.home / "effects", str(tmp_path / "other.parquet"), tmp_path)


# ------------------------------------------------------------------------------------------------------------------------------ publication


def test_what_is_published_is_a_bundle_that_answers_as_its_study_does(made: Study) -> None:
    found = bundle.load(made.home / "published")
    assert found.decision == DECISION
    assert found.metrics == metrics(made.home / "evaluation")
    rows = store.Rows.read(made.home / "features" / "serving.parquet")
    answered, answers = found.advise(rows, rows.time_N)
    assert len(answers) == len(rows)
    assert np.isfinite(answered.outcome_NK).all()
    assert answered.overlap_NK.sum(1) == pytest.approx(np.ones(len(rows)))
    told = explain(found, rows.x_NF[:5], ["2026"] * 5, "0")
    for n, one in enumerate(told):
        assert len(one.contributions) == len(found.decision.tabular)
        total = {name: one.base[name] + sum(part.by_option[name] for part in one.contributions) for name in DECISION.option_names}
        assert total == pytest.approx(dict(zip(DECISION.option_names, answered.outcome_NK[n].tolist(), strict=True)), abs=1e-5)


def test_where_no_gain_is_shown_everybody_is_answered_the_option_that_is_best_on_average(made: Study) -> None:
    """300 patients show no gain: the bundle answers one option for all, and the next best where a rule forbids it."""
    told = metrics(made.home / "evaluation")
    assert (told["verdict"], told["advice"]) == ("pass", "best fixed option for all")
    best = DECISION.option_names[told["best_fixed_option"]]
    rows = store.Rows.read(made.home / "features" / "serving.parquet")
    found, answers = bundle.load(made.home / "published").advise(rows, rows.time_N)
    scored = [n for n, answer in enumerate(answers) if answer.scored]
    differences = found.difference_NKK[scored]
    np.testing.assert_allclose(differences, np.broadcast_to(differences[0], differences.shape), atol=1e-9)
    order = sorted(DECISION.option_names, key=lambda name: found.outcome_NK[0, DECISION.option_names.index(name)])
    assert order[0] == best
    named = [answer for answer in answers if answer.recommended]
    assert len(named) == len(scored) > 10  # nobody with enough on record is left without an answer
    assert sum(answer.recommended == best for answer in named) > 0.5 * len(named)
    for answer in named:
        offered = {entry.option for entry in answer.ranked}
        assert answer.recommended == next(name for name in order if name in offered) or len(answer.reasons) > 2  # a guideline's
        assert "best on average" in answer.reasons[0]


def test_the_newest_facts_of_the_self_test_are_made_up(made: Study) -> None:
    """Quantiles of what few patients have would be those patients' own facts."""
    told = json.loads((made.home / "published" / "bundle" / "selftest.json").read_text(encoding="utf-8"))["x_NF"]
    words = bundle.load(made.home / "published").fusion.words
    assert words is not None
    for row in told[:-1]:
        facts = np.array(row[len(DECISION.tabular) :], np.float64).reshape(-1, COLUMNS_A_FACT)
        place = np.searchsorted(words.code_V, facts[:, 0])
        np.testing.assert_array_equal(words.code_V[place], facts[:, 0])
        np.testing.assert_array_equal(words.center_V[place], facts[:, 1])
        assert facts[:, 2].tolist() == [30.0 * n for n in range(1, len(facts) + 1)]
    assert set(told[-1]) == {None}


def test_nobody_is_in_what_is_published(made: Study, small_export: Path) -> None:
    raw = list(events.raw_ids(str(small_export)))
    words = [word.encode() for word in (*raw, *made.cohort.patient_ids)]
    published = [path for name in ("published", "evaluation") for path in (made.home / name).rglob("*") if path.is_file()]
    assert len(published) > 10
    for path in published:
        content = path.read_bytes()
        assert not [word for word in words if word in content], path.name


def test_a_study_trained_again_is_the_same_bundle(made: Study, tmp_path: Path) -> None:
    for name, fit in (("ridge", ridge.fit), ("trees", trees.fit), ("fusion", lambda data: fusion_training.fit(data, QUICK))):
        (tmp_path / name).mkdir()
        study.train(DECISION, made.cohort, made.home / "features", fit, tmp_path / name)  # type: ignore[arg-type]
    members = {name: tmp_path / name for name in made.members}
    (tmp_path / "effects").mkdir()
    study.blend(DECISION, made.cohort, made.home / "features", members, tmp_path / "effects")
    (tmp_path / "published").mkdir()
    told = study.publish(TEXT, made.home / "features", members, tmp_path / "effects", made.home / "evaluation", tmp_path / "published")
    assert told == f"bundle {bundle.load(made.home / 'published').version}, verified: {metrics(made.home / 'evaluation')['advice']}"


@pytest.mark.slow
def test_the_shipped_decision_with_its_own_settings_passes_from_records_to_a_bundle(made: Study, tmp_path: Path) -> None:
    whole, text = decision.load("glucose_lowering"), decision.path_of("glucose_lowering").read_text(encoding="utf-8")
    for name in ("cohort", "features", "ridge", "trees", "fusion", "effects", "evaluation", "published"):
        (tmp_path / name).mkdir()
    found = cohort.select(made.table, whole)
    found.write(tmp_path / "cohort")
    study.build(whole, made.table, found, tmp_path / "features")
    members = {name: tmp_path / name for name in made.members}
    for name, fit in (("ridge", ridge.fit), ("trees", trees.fit), ("fusion", fusion_training.fit)):
        study.train(whole, found, tmp_path / "features", fit, members[name])  # type: ignore[arg-type]
    study.blend(whole, found, tmp_path / "features", members, tmp_path / "effects")
    study.assess(text, tmp_path / "cohort", tmp_path / "features", tmp_path / "effects", made.truth, tmp_path / "evaluation")
    study.publish(text, tmp_path / "features", members, tmp_path / "effects", tmp_path / "evaluation", tmp_path / "published")
    assert bundle.load(tmp_path / "published").decision == whole
    assert metrics(tmp_path / "evaluation")["policy_regret"] < metrics(tmp_path / "evaluation")["prescriber_regret"]
