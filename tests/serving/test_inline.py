"""A record that comes with the question is read as of its own newest moment, to the microsecond."""

import pytest

from components.decision import load
from components.record import read
from features.events import PseudonymKey
from features.moment import instant
from serving.inline import Inline


@pytest.mark.parametrize("moment", ["2026-11-24T04:50:12.345Z", "2026-11-24T04:50:12Z", "2026-11-24T04:50:12.345678+01:00"])
def test_what_was_measured_in_the_moment_of_the_question_is_not_of_the_future(key: PseudonymKey, moment: str) -> None:
    """Cut to the second the question lay before it, and every rule called the value implausible."""
    patient = {"resourceType": "Patient", "id": "one", "birthDate": "1960-01-01"}
    egfr = {
        "resourceType": "Observation",
        "id": "egfr",
        "status": "final",
        "subject": {"reference": "Patient/one"},
        "code": {"coding": [{"system": "http://loinc.org", "code": "98979-8"}]},
        "effectiveDateTime": moment,
        "issued": moment,
        "valueQuantity": {"value": 40, "unit": "mL/min/{1.73_m2}", "system": "http://unitsofmeasure.org", "code": "mL/min/{1.73_m2}"},
    }
    bundle = {"resourceType": "Bundle", "type": "collection", "entry": [{"resource": one} for one in (patient, egfr)]}
    _, row = Inline(load("glucose_lowering"), key, wall_clock=False).row(bundle)
    assert instant(row.as_of) == instant(moment)
    assert row.features["egfr_ml_min_173m2"] == 40
    assert read(row.record, instant(row.as_of)).measurements["egfr"].age_days == 0
