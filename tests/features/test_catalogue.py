"""The catalogue: one declaration a feature, and a digest that no reordering survives."""

from dataclasses import replace
from pathlib import Path

import pytest

from features import catalogue, genomics, history, lifestyle
from features.catalogue import FEATURES, UnknownFeature, digest, select
from features.concepts import concepts
from features.feature import MODALITIES, Feature

README = Path(catalogue.__file__).with_name("README.md")


@pytest.mark.parametrize("feature", FEATURES.values(), ids=FEATURES)
def test_every_feature_says_its_unit_its_meaning_and_what_it_reads(feature: Feature) -> None:
    assert feature.unit
    assert len(feature.meaning) > 2
    assert feature.concepts
    assert feature.modality in MODALITIES
    assert feature.valid_days is None or feature.valid_days > 0
    assert feature.name.isidentifier()
    assert feature.name == feature.name.lower()


def test_no_name_is_declared_twice() -> None:
    declared = [feature.name for module in (history, genomics, lifestyle) for feature in module.FEATURES]
    assert len(declared) == len(set(declared)) == len(FEATURES)


@pytest.mark.parametrize("feature", FEATURES.values(), ids=FEATURES)
def test_every_concept_that_a_feature_reads_can_be_written_by_the_door(feature: Feature) -> None:
    table = concepts()
    known = {*table.measurements, *table.levels, "birth_date", "female", "race", "record:condition", "record:encounter"}
    known |= {f"condition:{name}" for name in {name for key, name in table.by_code.items() if key[0].startswith("condition/")}}
    known |= {f"{kind}:{drug}" for drug in table.drugs for kind in ("takes", "start", "dose", "supply")}
    known |= {f"diplotype:{gene}" for gene in table.genes.values()}
    assert {concept for concept in feature.concepts if not concept.startswith("variant:rs")} <= known


@pytest.mark.parametrize("feature", [feature for feature in FEATURES.values() if feature.concepts[0] in concepts().measurements])
def test_a_measured_feature_has_the_unit_of_its_concept(feature: Feature) -> None:
    unit = concepts().measurements[feature.concepts[0]].unit
    assert feature.unit == (f"{unit}/a" if "slope" in feature.name else unit)


def test_what_is_true_only_for_a_time_says_for_how_long() -> None:
    """A value over a window of the last days is not the same value years later."""
    windows = {"hba1c_slope_mmol_mol_year", "metformin_coverage", "steps_day", "resting_heart_rate", "takes_statin"}
    assert {name for name in windows if FEATURES[name].valid_days is None} == set()


def test_features_are_selected_in_the_order_given() -> None:
    assert [feature.name for feature in select(["female", "age_years"])] == ["female", "age_years"]


def test_an_unknown_feature_is_named_with_what_there_is() -> None:
    with pytest.raises(UnknownFeature, match=r"Unknown feature 'shoe_size'. The catalogue has: .*age_years"):
        select(["age_years", "shoe_size"])


def test_the_digest_follows_order_name_unit_window_and_concepts() -> None:
    two = select(["age_years", "hba1c_mmol_mol"])
    digests = {digest(two), digest(two[::-1]), digest(two[:1]), digest(())}
    changes = ({"name": "age"}, {"unit": "mo"}, {"valid_days": 1.0}, {"concepts": ("female",)}, {"modality": "lifestyle"})
    digests |= {digest((replace(two[0], **change), two[1])) for change in changes}  # type: ignore[arg-type]
    assert len(digests) == 9
    assert digest(two) == digest(select(["age_years", "hba1c_mmol_mol"]))


def test_the_table_has_a_row_for_every_feature() -> None:
    lines = catalogue.table().splitlines()
    assert len(lines) == len(FEATURES) + 2
    assert {line.count("|") for line in lines} == {6}
    assert "| `hba1c_mmol_mol` | history | mmol/mol | Newest HbA1c | 180 d |" in lines


def test_the_readme_holds_the_table() -> None:
    assert catalogue.table() in README.read_text(encoding="utf-8")
