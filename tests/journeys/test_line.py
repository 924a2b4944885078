"""The straight line, from FHIR to an answer, as a user sees it: one real run on an export with canaries in every identifier."""

import csv
import json
from pathlib import Path

import pytest
from conftest import CANARY, WholeRun, concordant

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("whole")]


def _metrics(run: WholeRun) -> dict[str, float]:
    return json.loads((run.folder / "metrics.json").read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def test_a_run_leaves_metrics_report_and_bundle(whole_run: WholeRun) -> None:
    for name in ("metrics.json", "report.html", "flow.json", "log.txt", "bundle/manifest.json", "store/registry.db", "store/online.db"):
        assert (whole_run.folder / name).is_file(), name


def test_every_step_is_printed_with_what_it_did(whole_run: WholeRun) -> None:
    from pipelines.local import STEPS

    for step in STEPS:
        assert f"✓ {step}" in whole_run.printed


def test_the_policy_beats_every_fixed_option_and_the_prescribers(whole_run: WholeRun) -> None:
    metrics = _metrics(whole_run)
    fixed = [value for name, value in metrics.items() if name.startswith("fixed_regret_")]
    assert len(fixed) == 5 and metrics["policy_regret"] < min(fixed)
    assert metrics["policy_regret"] < metrics["prescriber_regret"]
    assert "regret" in whole_run.printed and "oracle" in whole_run.printed


def test_documented_metrics_are_there(whole_run: WholeRun) -> None:
    wanted = {"policy_regret", "best_fixed_regret", "prescriber_regret", "share_answered", "interval_coverage"}
    assert wanted | {"top_choice_accuracy_when_answering"} <= set(_metrics(whole_run))


def test_a_second_run_repeats_nothing_and_gives_the_same_bundle(whole_run: WholeRun) -> None:
    before = (whole_run.folder / "bundle" / "manifest.json").read_bytes()
    truth = whole_run.source.parent / f"{whole_run.source.name}.truth.parquet"
    told = ("run", "glucose_lowering", "--source", str(whole_run.source), "--truth", str(truth), "--workspace", str(whole_run.workspace))
    done = concordant(*told, cwd=whole_run.workspace.parent)
    assert done.stdout.count("reused") == 10
    assert (whole_run.folder / "bundle" / "manifest.json").read_bytes() == before


def test_ask_answers_for_people_and_names_nobody(whole_run: WholeRun) -> None:
    patient = json.loads((whole_run.source / "Patient.ndjson").read_text(encoding="utf-8").splitlines()[0])["id"]
    for arguments in ((), (patient,)):
        done = concordant("ask", *arguments, "--start", "--workspace", str(whole_run.workspace), cwd=whole_run.workspace.parent)
        assert "Second-line" in done.stdout and "model" in done.stdout and "not a medical device" in done.stdout
        assert CANARY not in done.stdout + done.stderr
    done = concordant(
        "ask", f"{CANARY}-none", "--start", "--workspace", str(whole_run.workspace), cwd=whole_run.workspace.parent, check=False
    )
    assert done.returncode == 1 and "not in the feature store" in done.stderr and CANARY not in done.stdout + done.stderr


def test_recommend_answers_for_a_whole_cohort(whole_run: WholeRun, tmp_path: Path) -> None:
    told = ("recommend", "--bundle", str(whole_run.folder), "--source", str(whole_run.source))
    done = concordant(*told, "--out", "advice.csv", cwd=tmp_path)
    rows = list(csv.DictReader((tmp_path / "advice.csv").read_text(encoding="utf-8").splitlines()))
    assert len(rows) == 2500 and CANARY not in done.stdout
    assert {"patient_id", "recommended", "abstained", "reasons", "outcome_sglt2_inhibitor"} <= set(rows[0])
    assert all(bool(row["recommended"]) != bool(row["abstained"]) for row in rows)
    concordant(*told, "--out", "advice.parquet", cwd=tmp_path)
    assert (tmp_path / "advice.parquet").is_file()


def test_no_value_of_a_patient_is_printed_logged_or_published(whole_run: WholeRun) -> None:
    assert CANARY in (whole_run.source / "Patient.ndjson").read_text(encoding="utf-8")
    assert CANARY not in whole_run.printed
    kept = [path for path in whole_run.workspace.rglob("*") if path.is_file()]
    assert len(kept) > 50
    for path in kept:
        assert CANARY.encode() not in path.read_bytes(), path.name


def test_a_failed_step_tells_its_cause_last(tmp_path: Path, small_export: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "Patient.ndjson").write_bytes((small_export / "Patient.ndjson").read_bytes())
    done = concordant("run", "glucose_lowering", "--source", "empty", "--workspace", "ws", cwd=tmp_path, check=False)
    assert done.returncode == 1 and "Traceback" not in done.stdout + done.stderr
    words = " ".join(done.stderr.split())
    assert "Step select_cohort failed" in words and "patients with an outcome are left" in words and "log.txt" in words
