"""The cohort of a question, built from small hand-made records: who counts, when, under which option, with what outcome."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pytest

from components import cohort, decision
from components.cohort import Cohort, EmptyCohort
from features import events
from features.events import PseudonymKey
from features.feature import DAY_US, AsOf, Events
from features.source import Line

GLUCOSE, WARFARIN = decision.load("glucose_lowering"), decision.load("warfarin")
ZERO = datetime(2020, 1, 1, tzinfo=UTC)  # time zero of every patient below
NOW = int(datetime(2026, 1, 1, tzinfo=UTC).timestamp()) * 1_000_000
RXNORM, SNOMED, LOINC = "http://www.nlm.nih.gov/research/umls/rxnorm", "http://snomed.info/sct", "http://loinc.org"
METFORMIN, GLICLAZIDE, SITAGLIPTIN, PIOGLITAZONE = "6809", "4816", "593411", "33738"
DIABETES, NAUSEA, OEDEMA = "44054006", "422587007", "82014009"
Resource = dict[str, Any]


def at(day: float) -> str:
    return (ZERO + timedelta(days=day)).isoformat()


def condition(code: str, day: float, recorded: float | None = None, verification: str = "confirmed") -> Resource:
    told = {"resourceType": "Condition", "onsetDateTime": at(day), "code": {"coding": [{"system": SNOMED, "code": code}]}}
    told |= {"verificationStatus": {"coding": [{"code": verification}]}}
    return told if recorded is None else told | {"recordedDate": at(recorded)}


def request(code: str, day: float, weekly_mg: float | None = None) -> Resource:
    coded = {"coding": [{"system": RXNORM, "code": code}]}
    told = {
        "resourceType": "MedicationRequest",
        "status": "active",
        "intent": "order",
        "authoredOn": at(day),
        "medicationCodeableConcept": coded,
    }
    if weekly_mg is not None:
        rate = [{"doseQuantity": {"value": weekly_mg, "code": "mg"}}]
        told["dosageInstruction"] = [{"timing": {"repeat": {"frequency": 1, "period": 1, "periodUnit": "wk"}}, "doseAndRate": rate}]
    return told


def hba1c(value: float, day: float, issued: float | None = None) -> Resource:
    told = {
        "resourceType": "Observation",
        "status": "final",
        "effectiveDateTime": at(day),
        "code": {"coding": [{"system": LOINC, "code": "4548-4"}]},
    }
    told["valueQuantity"] = {"value": value, "code": "mmol/mol"}
    return told if issued is None else told | {"issued": at(issued)}


def table(*patients: list[Resource], born: str = "1960-05-05") -> pa.Table:
    """Events of some patients, each a list of what is on record of one."""
    resources = []
    for n, record in enumerate(patients):
        resources.append({"resourceType": "Patient", "id": f"p{n}", "birthDate": born})
        resources += [{**r, "id": f"p{n}-{m}", "subject": {"reference": f"Patient/p{n}"}} for m, r in enumerate(record)]
    lines = [Line("hand", n, r, None, orjson.dumps(r)) for n, r in enumerate(resources)]
    return events.collect(lines, PseudonymKey(b"sixteen bytes or more"), NOW)


def typical(option: str = GLICLAZIDE, before: float = 70, after: float = 60) -> list[Resource]:
    """Someone who was asked at time zero, given one option, and measured a year later."""
    return [condition(DIABETES, -1500), request(METFORMIN, -900), hba1c(before, -10), request(option, 0), hba1c(after, 365)]


def select(*patients: list[Resource], which: decision.Decision = GLUCOSE, smallest: int = 0, born: str = "1960-05-05") -> Cohort:
    return cohort.select(table(*patients, born=born), which, smallest=smallest)


def flow(found: Cohort) -> dict[str, int]:
    return dict(found.flow)


def without(record: list[Resource], n: int, *instead: Resource) -> list[Resource]:
    return [*record[:n], *instead, *record[n + 1 :]]


# ------------------------------------------------------------------------------------------------------------------- choice of treatment


def test_a_typical_patient_is_one_row_at_the_first_option_with_the_change_of_a_year() -> None:
    found = select(typical(), typical(SITAGLIPTIN, 80, 75))
    assert len(found) == 2
    assert found.time_N.tolist() == [int(ZERO.timestamp()) * 1_000_000] * 2
    assert [GLUCOSE.option_names[k] for k in found.option_N] == ["sulfonylurea", "dpp4_inhibitor"]
    assert found.target_N == pytest.approx([-10, -5])
    assert found.observed_N.all()


def test_the_first_option_counts_and_later_ones_do_not() -> None:
    found = select([*typical(PIOGLITAZONE), request(GLICLAZIDE, 40), request(SITAGLIPTIN, 400)])
    assert [GLUCOSE.option_names[k] for k in found.option_N] == ["thiazolidinedione"]
    assert found.time_N[0] == int(ZERO.timestamp()) * 1_000_000


def test_two_options_at_once_are_nobody_to_learn_from() -> None:
    found = select(typical(), [*typical(), request(SITAGLIPTIN, 0)])
    assert len(found) == 1
    assert flow(found)["who started one of the options"] == 2
    assert flow(found)["and no two options at once"] == 1


def test_two_drugs_of_one_option_at_once_are_one_option() -> None:
    assert len(select([*typical(), request("25789", 0)])) == 1


def test_a_tie_later_than_the_first_option_excludes_nobody() -> None:
    found = select([*typical(PIOGLITAZONE), request(GLICLAZIDE, 30), request(SITAGLIPTIN, 30)])
    assert [GLUCOSE.option_names[k] for k in found.option_N] == ["thiazolidinedione"]


def test_a_prescription_entered_in_error_never_started_anything() -> None:
    wrong = request(SITAGLIPTIN, -200) | {"status": "entered-in-error"}
    found = select([*typical(), wrong])
    assert [GLUCOSE.option_names[k] for k in found.option_N] == ["sulfonylurea"]


def test_a_record_shorter_than_the_washout_is_excluded() -> None:
    short = without(without(typical(), 0, condition(DIABETES, -364)), 1, request(METFORMIN, -300))
    enough = without(without(typical(), 0, condition(DIABETES, -365)), 1, request(METFORMIN, -300))
    found = select(short, enough)
    assert len(found) == 1
    assert flow(found)["with metformin given before time zero"] == 2
    assert flow(found)["whose record reaches 365 days back"] == 1


def test_an_indication_that_is_known_only_after_time_zero_does_not_count() -> None:
    later = without(typical(), 0, condition(DIABETES, 5))
    told_later = without(typical(), 0, condition(DIABETES, -1500, recorded=5))
    found = select(typical(), later, told_later)
    assert len(found) == 1
    assert flow(found)["with type 2 diabetes on record"] == 3
    assert flow(found)["with type 2 diabetes known at time zero"] == 1


def test_a_refuted_indication_does_not_count() -> None:
    assert len(select(typical(), without(typical(), 0, condition(DIABETES, -1500, verification="refuted")))) == 1


def test_a_drug_of_the_indication_that_is_given_only_later_does_not_count() -> None:
    found = select(typical(), without(typical(), 1, request(METFORMIN, 3)))
    assert flow(found)["who were given metformin"] == 2
    assert flow(found)["with metformin given before time zero"] == 1


@pytest.mark.parametrize(
    "baseline", [None, hba1c(70, -181), hba1c(70, -10, issued=2), hba1c(70, 1)], ids=["missing", "stale", "told late", "later"]
)
def test_a_baseline_that_is_not_known_and_fresh_at_time_zero_excludes(baseline: Resource | None) -> None:
    found = select(typical(), without(typical(), 2, *([baseline] if baseline else [])))
    assert len(found) == 1
    assert flow(found)["aged 18 to 110 years, or of unknown age"] == 2


def test_the_baseline_is_the_newest_value_at_time_zero() -> None:
    assert select([*typical(before=70, after=60), hba1c(90, -60), hba1c(65, -2)]).target_N == pytest.approx([-5])


def test_ages_outside_are_excluded_and_an_unknown_age_is_not() -> None:
    assert len(select(typical(), born="2002-01-05")) == 0  # 17 at time zero
    assert len(select(typical(), born="2001-12-20")) == 1
    record = typical()
    nameless = [{**r, "id": f"q-{n}", "subject": {"reference": "Patient/q"}} for n, r in enumerate(record)]
    lines = [Line("hand", n, r, None, orjson.dumps(r)) for n, r in enumerate(nameless)]
    assert len(cohort.select(events.collect(lines, PseudonymKey(b"sixteen bytes or more"), NOW), GLUCOSE, smallest=0)) == 1


@pytest.mark.parametrize(
    ("measured", "expected"),
    [
        ([(300, 50), (350, 60), (460, 40)], -10),  # 350 is nearest to day 365
        ([(345, 50), (390, 60)], -20),  # 20 days before is nearer than 25 after
        ([(269, 50), (270, 62), (461, 40)], -8),  # the window is closed at 270 and ends at 460
        ([(460, 64), (461, 50)], -6),
    ],
)
def test_the_outcome_is_the_value_nearest_to_day_365_within_the_window(measured: list[tuple[int, float]], expected: float) -> None:
    found = select([*typical()[:4], *(hba1c(value, day) for day, value in measured)])
    assert found.target_N == pytest.approx([expected])


def test_who_was_not_measured_in_the_window_stays_as_unobserved() -> None:
    found = select(typical(), [*typical()[:4], hba1c(50, 200), hba1c(50, 500)], typical()[:4])
    assert len(found) == 3
    assert found.observed_N.tolist() == [True, False, False]
    assert flow(found)["of these with an outcome in the window"] == 1


def test_an_adverse_event_weighs_once_however_many_there_were() -> None:
    harms = [condition(NAUSEA, 20), condition(NAUSEA, 90), condition(OEDEMA, 200)]
    assert select([*typical(), *harms]).target_N == pytest.approx([-10 + 8])


@pytest.mark.parametrize(("day", "weight"), [(-5, 0), (0, 0), (0.5, 8), (365, 8), (366, 0)])
def test_an_adverse_event_counts_within_the_year_after_time_zero(day: float, weight: float) -> None:
    assert select([*typical(), condition(NAUSEA, day)]).target_N == pytest.approx([-10 + weight])


def test_a_refuted_adverse_event_does_not_count() -> None:
    assert select([*typical(), condition(NAUSEA, 20, verification="refuted")]).target_N == pytest.approx([-10])


def test_where_higher_is_better_an_adverse_event_counts_downwards() -> None:
    mirrored = GLUCOSE.model_copy(update={"outcome": GLUCOSE.outcome.model_copy(update={"better": "higher"})})
    assert select([*typical(), condition(NAUSEA, 20)], which=mirrored).target_N == pytest.approx([-10 - 8])


def test_an_adverse_event_without_a_measured_outcome_stays_unobserved() -> None:
    assert not select([*typical()[:4], condition(NAUSEA, 20)]).observed_N.any()


def test_the_flow_only_falls_and_its_last_criterion_is_the_cohort() -> None:
    record = typical()
    found = select(
        record,
        without(record, 0),  # never diagnosed
        without(record, 1),  # no metformin
        without(record, 3),  # nothing started
        [*record, request(SITAGLIPTIN, 0)],
        without(record, 0, condition(DIABETES, 9)),
        without(record, 1, request(METFORMIN, 9)),
        without(without(record, 0, condition(DIABETES, -30)), 1, request(METFORMIN, -30)),
        without(record, 2),
        record[:4],
    )
    steps = [count for _, count in found.flow]
    assert steps == [10, 9, 8, 7, 6, 5, 4, 3, 3, 2, 1]  # everybody lost is counted at the criterion that lost them
    assert found.flow[-2][1] == len(found)
    assert found.flow[-1][1] == int(found.observed_N.sum())


def test_too_few_to_learn_from_is_told_with_the_whole_flow() -> None:
    with pytest.raises(EmptyCohort) as caught:
        select(typical(), without(typical(), 2), smallest=50)
    message = str(caught.value)
    assert "1 patients with an outcome are left, 50 are needed" in message
    assert "         2  patients on record" in message
    assert "         1  with Newest HbA1c known and not stale at time zero" in message
    assert message.endswith("dpp4_inhibitor, sglt2_inhibitor, thiazolidinedione, glp1_receptor_agonist.")
    assert "Traceback" not in message
    assert caught.value.__cause__ is None


def test_records_without_a_single_patient_are_an_empty_cohort() -> None:
    with pytest.raises(EmptyCohort, match="0  patients on record"):
        select(smallest=1)


def test_the_site_of_a_patient_is_kept() -> None:
    resources: list[Resource] = [
        {"resourceType": "Patient", "id": "p", "birthDate": "1960", "managingOrganization": {"reference": "Organization/north"}}
    ]
    resources += [{**r, "id": f"p-{n}", "subject": {"reference": "Patient/p"}} for n, r in enumerate(typical())]
    lines = [Line("hand", n, r, None, orjson.dumps(r)) for n, r in enumerate(resources)]
    found = cohort.select(events.collect(lines, PseudonymKey(b"sixteen bytes or more"), NOW), GLUCOSE, smallest=0)
    assert found.site_N == ("north",)


def test_a_cohort_reads_back_as_it_was_written(tmp_path: Path) -> None:
    found = select(typical(), typical()[:4], typical(SITAGLIPTIN))
    found.write(tmp_path)
    again = Cohort.read(tmp_path)
    assert again.patient_ids == found.patient_ids
    assert again.flow == found.flow
    assert again.site_N == found.site_N
    for name in ("time_N", "option_N", "target_N"):
        np.testing.assert_array_equal(getattr(again, name), getattr(found, name))


def test_what_happens_after_time_zero_changes_nobodys_place_in_the_cohort() -> None:
    later = [condition(DIABETES, 900), hba1c(99, 900), request(METFORMIN, 900)]
    plain, more = select(typical(), typical(SITAGLIPTIN)), select([*typical(), *later], typical(SITAGLIPTIN))
    assert plain.patient_ids == more.patient_ids
    np.testing.assert_array_equal(plain.time_N, more.time_N)
    np.testing.assert_array_equal(plain.option_N, more.option_N)
    np.testing.assert_array_equal(plain.target_N, more.target_N)


def test_outside_says_why_a_decision_is_not_about_someone() -> None:
    asked = Events(table(typical(), without(typical(), 0), without(typical(), 1)))
    reasons = cohort.outside(GLUCOSE, AsOf(asked, asked.patients, np.full(3, int(ZERO.timestamp()) * 1_000_000)))
    assert reasons == ("", "no type 2 diabetes on record", "no metformin on record")
    young = Events(table(typical(), born="2010-01-01"))
    reasons = cohort.outside(GLUCOSE, AsOf(young, young.patients, np.array([int(ZERO.timestamp()) * 1_000_000])))
    assert reasons == ("it is for ages 18 to 110",)


def test_outside_looks_at_the_time_that_is_asked_about() -> None:
    asked = Events(table(typical()))
    long_ago = np.array([int(ZERO.timestamp()) * 1_000_000 - 2000 * DAY_US])
    assert cohort.outside(GLUCOSE, AsOf(asked, asked.patients, long_ago)) == ("no type 2 diabetes on record",)


# ---------------------------------------------------------------------------------------------------------------------------- dose finding


@pytest.mark.parametrize(
    ("dose", "name"), [(5, "low"), (20.9, "low"), (21, "low"), (21.1, "intermediate"), (48.9, "intermediate"), (49, "high"), (90, "high")]
)
def test_dose_bands_are_those_of_the_consortium_to_the_border(dose: float, name: str) -> None:
    assert WARFARIN.option_names[cohort.band(WARFARIN, np.array([dose]))[0]] == name


def test_no_dose_has_no_band() -> None:
    assert cohort.band(WARFARIN, np.array([np.nan, 35.0])).tolist() == [-1, 1]


def test_the_newest_dose_on_record_is_the_stable_one_and_names_the_option() -> None:
    found = select([request("11289", 0, 35.0), request("11289", 90, 14.0)], [request("11289", 0, 56.0)], which=WARFARIN)
    assert found.target_N.tolist() == [14.0, 56.0]
    assert [WARFARIN.option_names[k] for k in found.option_N] == ["low", "high"]
    assert found.time_N.tolist() == [int(ZERO.timestamp()) * 1_000_000] * 2


def test_a_prescription_without_a_dose_is_counted_and_left_out() -> None:
    found = select([request("11289", 0, 35.0)], [request("11289", 0)], which=WARFARIN)
    assert len(found) == 1
    assert found.flow[-2:] == (("aged 10 to 110 years, or of unknown age", 2), ("whose stable dose is on record", 1))


# --- real records


@pytest.mark.shared_data
@pytest.mark.parametrize(("source", "patients", "diabetes"), [("synthea_25", 25, 8), ("synthea_615", 615, 37)])
def test_synthea_ends_in_a_flow_and_not_in_a_traceback(
    shared_data: Path, tmp_path: Path, key: PseudonymKey, source: str, patients: int, diabetes: int
) -> None:
    events.ingest(str(shared_data / source), tmp_path, key)
    with pytest.raises(EmptyCohort) as caught:
        cohort.select(events.read(tmp_path), GLUCOSE)
    message = str(caught.value)
    assert f"{patients:>8,}  patients on record" in message
    assert f"{diabetes:>8,}  with type 2 diabetes on record" in message
    counts = [int(line.split()[0].replace(",", "")) for line in message.splitlines()[1:-1]]
    assert counts == sorted(counts, reverse=True)


@pytest.mark.shared_data
def test_the_warfarin_registry_gives_almost_everybody(shared_data: Path, tmp_path: Path, key: PseudonymKey) -> None:
    events.ingest(str(shared_data / "warfarin_5700"), tmp_path, key)
    found = cohort.select(events.read(tmp_path), WARFARIN)
    assert len(found) >= 5500
    assert len(set(found.patient_ids)) == len(found)
    assert found.observed_N.all()
    np.testing.assert_array_equal(cohort.band(WARFARIN, found.target_N), found.option_N)
    assert np.bincount(found.option_N, minlength=3).min() > 400
