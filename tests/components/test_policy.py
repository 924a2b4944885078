"""A ranked set with intervals, or an honest abstention: input before score, and never an option that the records can't tell of."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components import decision, policy
from components.effects import Effects
from components.overlap import SMALLEST_OVERLAP
from components.policy import Abstain, Inputs, Recommendation, recommend
from features.feature import Floats

GLUCOSE, WARFARIN = decision.load("glucose_lowering"), decision.load("warfarin")
HIGHER = GLUCOSE.model_copy(update={"outcome": GLUCOSE.outcome.model_copy(update={"better": "higher"})})
NAMES = GLUCOSE.option_names
K = len(NAMES)


def effects(outcome_K: list[float], sd: float = 0.1, overlap_K: list[float] | None = None) -> Effects:
    sd_KK = sd * (1 - np.eye(len(outcome_K)))
    overlap = [1 / len(outcome_K)] * len(outcome_K) if overlap_K is None else overlap_K
    return Effects(outcome_NK=np.array([outcome_K]), sd_NKK=sd_KK[None], overlap_NK=np.array([overlap]))


def answer(found: Effects, known: Inputs | None = None, which: decision.Decision = GLUCOSE) -> Recommendation:
    (one,) = recommend(which, found, [known or Inputs()])
    return one


# ----------------------------------------------------------------------------------------------------------------------------- the ranking


def test_a_clear_best_is_recommended_alone_with_a_reason() -> None:
    found = answer(effects([-5, -6, -14, -7, -10]))
    assert found.recommended == "sglt2_inhibitor"
    assert found.equivalent == ("sglt2_inhibitor",)
    assert found.abstained is None
    assert [entry.option for entry in found.ranked] == [NAMES[k] for k in (2, 4, 3, 1, 0)]
    assert found.ranked[0].difference_to_best == found.ranked[0].low == found.ranked[0].high == 0
    assert [entry.difference_to_best for entry in found.ranked] == pytest.approx([0, 4, 7, 8, 9])
    assert found.ranked[1].low == pytest.approx(4 - 0.196, abs=1e-3)
    assert found.ranked[1].high == pytest.approx(4 + 0.196, abs=1e-3)
    assert [entry.reason for entry in found.ranked[:2]] == [
        "Expected outcome -14.0 mmol/mol, -4.0 against GLP-1 receptor agonist (95% interval -4.2 to -3.8).",
        "Expected outcome -10.0 mmol/mol, +4.0 against SGLT2 inhibitor (95% interval +3.8 to +4.2).",
    ]
    assert found.reasons == (
        "Expected difference of GLP-1 receptor agonist to SGLT2 inhibitor: +4.0 mmol/mol (95% interval +3.8 to +4.2).",
    )


def test_where_higher_is_better_everything_is_mirrored() -> None:
    outcome_K = [-5.0, -6, -14, -7, -10]
    lower, higher = answer(effects(outcome_K)), answer(effects([-o for o in outcome_K]), which=HIGHER)
    assert higher.recommended == lower.recommended
    assert [e.option for e in higher.ranked] == [e.option for e in lower.ranked]
    assert [e.difference_to_best for e in higher.ranked] == pytest.approx([-e.difference_to_best for e in lower.ranked])
    assert [e.low for e in higher.ranked] == pytest.approx([-e.high for e in lower.ranked])
    assert [e.high for e in higher.ranked] == pytest.approx([-e.low for e in lower.ranked])
    assert answer(effects(outcome_K), which=HIGHER).ranked[0].option == "sulfonylurea"


def test_options_that_differ_by_less_than_what_matters_are_equivalent() -> None:
    found = answer(effects([-13.2, -6, -14, -7, -10], sd=0.01))  # 0.8 apart, and sure of it; 1 matters
    assert found.recommended is None
    assert found.abstained is Abstain.EQUIPOISE
    assert found.equivalent == ("sglt2_inhibitor", "sulfonylurea")
    assert "No clear choice" in found.reasons[0]
    assert "SGLT2 inhibitor, Sulfonylurea" in found.reasons[0]
    assert len(found.ranked) == K


def test_options_that_differ_widely_but_unsurely_are_equivalent() -> None:
    found = answer(effects([-5, -6, -14, -7, -10], sd=3))  # 4 apart, 1.3 standard deviations
    assert found.abstained is Abstain.EQUIPOISE
    assert found.equivalent == ("sglt2_inhibitor", "glp1_receptor_agonist")


def test_one_option_is_named_where_all_doubts_together_are_at_most_two_per_cent() -> None:
    assert answer(effects([-14, -10, 0, 0, 0], sd=4 / 2.06)).recommended == "sulfonylurea"  # one rival: 1.97 %
    assert answer(effects([-14, -10, 0, 0, 0], sd=4 / 2.04)).recommended is None  # 2.07 %
    rivals = answer(effects([-14, -10, -10, -10, -10], sd=4 / 2.06))  # four of them: 7.9 %
    assert rivals.recommended is None and len(rivals.equivalent) > 1
    assert answer(effects([-14, -10, -10, -10, -10], sd=4 / 2.58)).recommended == "sulfonylurea"  # 4 x 0.49 %


def test_an_option_that_few_were_given_is_excluded_with_its_reason_and_never_ranked() -> None:
    found = answer(effects([-5, -6, -4, -7, -10], overlap_K=[0.3, 0.3, 0.019, 0.19, 0.191]))
    assert found.recommended == "glp1_receptor_agonist"
    assert "sglt2_inhibitor" not in [entry.option for entry in found.ranked]
    (excluded,) = found.excluded
    assert (excluded.option, excluded.code) == ("sglt2_inhibitor", "LOW_OVERLAP")
    assert "fewer than 2%" in excluded.reason


def test_the_best_of_those_that_can_be_judged_is_not_called_the_best_where_one_that_cannot_may_be_better() -> None:
    """Found on simulated worlds of 2,000 patients: all 7 wrong of 40 single options were wrong by one that had no support."""
    few_K = [0.3, 0.3, 0.019, 0.19, 0.191]
    found = answer(effects([-5, -6, -14, -7, -10], overlap_K=few_K))
    assert (found.recommended, found.abstained) == (None, Abstain.LOW_OVERLAP)
    assert found.equivalent == ("glp1_receptor_agonist",) and found.ranked[0].option == "glp1_receptor_agonist"
    assert found.reasons == (
        "No single choice: SGLT2 inhibitor may be better, but too few comparable patients were given it."
        " Of the options that can be compared GLP-1 receptor agonist is expected to be best.",
    )
    assert answer(effects([-5, -6, -6, -7, -10], sd=1.2, overlap_K=few_K)).recommended == "glp1_receptor_agonist"
    assert answer(effects([-5, -6, -7.6, -7, -10], sd=1.2, overlap_K=few_K)).recommended is None  # nearer, and in more doubt
    for_all = replace(effects([-5, -6, -14, -7, -10], overlap_K=few_K), for_all=True)
    assert answer(for_all).recommended == "glp1_receptor_agonist"  # one order for everybody: the next of it


def test_overlap_at_the_border_is_enough() -> None:
    assert not answer(effects([0, 1, 2, 3, 4], overlap_K=[0.9, 0.02, 0.02, 0.02, 0.04])).excluded


@pytest.mark.parametrize("overlap_K", [[1.0, 0, 0, 0, 0], [0.0] * 5, [0.99, 0.01, 0, 0, 0]])
def test_with_fewer_than_two_comparable_options_nothing_is_ranked(overlap_K: list[float]) -> None:
    found = answer(effects([0, 1, 2, 3, 4], overlap_K=overlap_K))
    assert found.abstained is Abstain.LOW_OVERLAP
    assert found.ranked == found.equivalent == ()
    assert found.recommended is None
    assert len(found.excluded) == K - sum(o >= SMALLEST_OVERLAP for o in overlap_K)


def test_a_dose_is_told_beside_its_band_and_not_where_an_input_is_missing() -> None:
    found = replace(effects([10.0, 2.0, 30.0]), dose_N=np.array([33.3]))
    assert answer(found, which=WARFARIN).dose_mg_week == pytest.approx(33.3)
    assert answer(found, which=WARFARIN).recommended == "intermediate"
    assert answer(found, Inputs(missing=("age_years",)), which=WARFARIN).dose_mg_week is None


# ------------------------------------------------------------------------------------------------------------------- the model families

RIDGE_K = [-5.0, -6, -14, -7, -10]


def by_families(**families: list[float]) -> Recommendation:
    found = effects(RIDGE_K)
    return answer(replace(found, families={name: np.array([outcome_K]) for name, outcome_K in families.items()}))


def test_families_that_put_the_same_option_first_leave_the_answer_as_it_is() -> None:
    assert by_families(ridge=RIDGE_K, trees=[0.0, 0, -1, 0, 0]) == answer(effects(RIDGE_K))


def test_two_families_that_put_different_options_first_are_equipoise_however_sure_the_blend_is() -> None:
    found = by_families(ridge=RIDGE_K, trees=[0.0, 0, 0, 0, -1], fusion=RIDGE_K)
    assert found.recommended is None and found.abstained is Abstain.EQUIPOISE
    assert found.equivalent == ("sglt2_inhibitor", "glp1_receptor_agonist")
    assert found.reasons == (
        "No clear choice: the model families put different options first "
        "(ridge: SGLT2 inhibitor; trees: GLP-1 receptor agonist; fusion: SGLT2 inhibitor).",
    )
    assert [entry.option for entry in found.ranked] == [entry.option for entry in answer(effects(RIDGE_K)).ranked]


def test_a_family_is_asked_only_about_options_that_are_offered() -> None:
    without = effects(RIDGE_K, overlap_K=[0.3, 0.3, 0.3, 0.095, 0.005])
    found = answer(replace(without, families={"ridge": np.array([RIDGE_K]), "trees": np.array([[0.0, 0, -1, 0, -9]])}))
    assert found.recommended == "sglt2_inhibitor"


def test_families_of_a_decision_where_higher_is_better_are_mirrored() -> None:
    found = replace(
        effects([5.0, 6, 14, 7, 10]), families={"ridge": np.array([[5.0, 6, 14, 7, 10]]), "trees": np.array([[0.0, 0, 1, 0, 0]])}
    )
    assert answer(found, which=HIGHER).recommended == "sglt2_inhibitor"


def test_families_that_agree_on_nothing_say_the_same_where_options_can_not_be_told_apart_anyway() -> None:
    found = effects([0.0] * 5)
    told = answer(replace(found, families={"ridge": np.array([[-1.0, 0, 0, 0, 0]]), "trees": np.array([[0.0, -1, 0, 0, 0]])}))
    assert told == answer(found)


# ---------------------------------------------------------------------------------------------------------------------------- abstention

OUT, MISSING, STALE = {"outside": "no type 2 diabetes on record"}, {"missing": ("age_years",)}, {"stale": ("hba1c_mmol_mol",)}
CLEAR, EVEN, ALONE = effects([-5, -6, -14, -7, -10]), effects([0.0] * 5), effects([0, 1, 2, 3, 4], overlap_K=[1.0, 0, 0, 0, 0])


@pytest.mark.parametrize(
    ("known", "found", "code"),
    [
        (OUT | MISSING | STALE, ALONE, Abstain.OUT_OF_POPULATION),
        (OUT | STALE, EVEN, Abstain.OUT_OF_POPULATION),
        (MISSING | STALE, ALONE, Abstain.MISSING_REQUIRED),
        (MISSING, CLEAR, Abstain.MISSING_REQUIRED),
        (STALE, ALONE, Abstain.STALE_INPUT),
        (STALE, CLEAR, Abstain.STALE_INPUT),
        ({}, ALONE, Abstain.LOW_OVERLAP),
        ({}, EVEN, Abstain.EQUIPOISE),
        ({}, CLEAR, None),
    ],
)
def test_input_comes_before_score_and_the_gravest_reason_first(known: dict[str, str], found: Effects, code: Abstain | None) -> None:
    one = answer(found, Inputs(**known))  # type: ignore[arg-type]
    assert one.abstained is code
    assert (one.recommended is None) == (code is not None)
    if known:
        assert one.ranked == one.equivalent == one.excluded == ()


def test_a_refusal_says_what_to_do_and_holds_no_value() -> None:
    assert answer(CLEAR, Inputs(**OUT)).reasons == (f"{GLUCOSE.title} does not apply: no type 2 diabetes on record.",)  # type: ignore[arg-type]
    assert answer(CLEAR, Inputs(missing=("age_years", "hba1c_mmol_mol"))).reasons == (
        "Not known: age_years, hba1c_mmol_mol. Record it and ask again.",
    )
    assert answer(CLEAR, Inputs(**STALE)).reasons == ("Too old to rely on: hba1c_mmol_mol. Measure it again and ask again.",)  # type: ignore[arg-type]


def test_required_inputs_are_missing_or_stale_and_others_do_not_matter() -> None:
    names = [column.name for column in GLUCOSE.columns]
    x_NF = np.ones((4, len(names)))
    x_NF[1, names.index("age_years")] = np.nan
    x_NF[2, names.index("hba1c_mmol_mol")] = np.nan
    x_NF[3, names.index("bmi_kg_m2")] = np.nan
    stale = [(), (), ("hba1c_mmol_mol",), ("bmi_kg_m2",)]
    found = policy.inputs(GLUCOSE, x_NF, stale, ["", "", "", "no metformin on record"], np.zeros(4, bool))
    assert found == [Inputs(), Inputs(missing=("age_years",)), Inputs(stale=("hba1c_mmol_mol",)), Inputs(outside="no metformin on record")]


def test_rows_in_are_answers_out_in_order() -> None:
    three = Effects(
        outcome_NK=np.array([[0.0, 9, 9, 9, 9], [9, 0, 9, 9, 9], [9, 9, 0, 9, 9]]),
        sd_NKK=np.zeros((3, K, K)),
        overlap_NK=np.full((3, K), 0.2),
    )
    found = recommend(GLUCOSE, three, [Inputs(), Inputs(missing=("age_years",)), Inputs()])
    assert [one.recommended for one in found] == [NAMES[0], None, NAMES[2]]


# ---------------------------------------------------------------------------------------------------- whatever the effects

outcomes = st.lists(st.floats(-100, 100), min_size=K, max_size=K)
overlaps = st.lists(st.floats(0, 1), min_size=K, max_size=K)


@given(outcome_K=outcomes, overlap_K=overlaps, sd_K=st.lists(st.floats(0, 20), min_size=K, max_size=K), higher=st.booleans())
@settings(max_examples=300, deadline=None)
def test_every_answer_keeps_its_promises(outcome_K: list[float], overlap_K: list[float], sd_K: list[float], higher: bool) -> None:
    variance_K: Floats = np.square(sd_K)
    sd_NKK = np.sqrt(variance_K[:, None] + variance_K[None, :])[None] * (1 - np.eye(K))
    which = HIGHER if higher else GLUCOSE
    found = answer(Effects(outcome_NK=np.array([outcome_K]), sd_NKK=sd_NKK, overlap_NK=np.array([overlap_K])), which=which)
    ranked, excluded = [e.option for e in found.ranked], [e.option for e in found.excluded]
    values = [e.outcome for e in found.ranked]
    assert values == sorted(values, reverse=higher)
    assert not set(ranked) & set(excluded)
    assert all(np.isfinite([e.outcome, e.difference_to_best, e.low, e.high, e.overlap]).all() for e in found.ranked)
    assert all(e.low <= e.difference_to_best <= e.high for e in found.ranked)
    assert all(overlap_K[NAMES.index(option)] >= SMALLEST_OVERLAP for option in ranked)
    assert set(found.equivalent) <= set(ranked)
    assert found.recommended is None or found.equivalent == (found.recommended,) == (ranked[0],)
    assert (found.recommended is None) == (found.abstained is not None)
    assert found.abstained in (None, Abstain.EQUIPOISE, Abstain.LOW_OVERLAP)
    if found.abstained is Abstain.LOW_OVERLAP:
        assert excluded and len(found.equivalent) == min(1, len(ranked))
        assert found.equivalent == tuple(ranked[:1]) and ("may be better" in found.reasons[0]) == bool(ranked)
    else:
        assert set(ranked) | set(excluded) == set(NAMES)
        assert ranked[0] in found.equivalent
    assert found.reasons
