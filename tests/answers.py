"""Answers as the schema allows them, drawn at random and one by hand: for the forms that an answer takes on its way out."""

from typing import Any

from hypothesis import strategies as st

from serving.schema import Exclusion, OptionAnswer, Remark, Response, RuledOutDrug

OPTIONS = "sulfonylurea", "dpp4_inhibitor", "sglt2_inhibitor", "thiazolidinedione", "glp1_receptor_agonist"
RXNORM = {"sulfonylurea": ("4821", "25789"), "dpp4_inhibitor": ("593411",), "sglt2_inhibitor": ("1488564",)}
CODES = "EQUIPOISE", "MISSING_REQUIRED", "STALE_INPUT", "OOD", "LOW_OVERLAP", "NO_PERMITTED_OPTION", "RULESET_EXPIRED", "OUT_OF_POPULATION"
TEXT = st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "S", "Zs"]), min_size=1, max_size=60).filter(str.strip)
AMOUNT = st.floats(-60, 60).map(lambda value: round(value, 3))


@st.composite
def answers(draw: st.DrawFn) -> Response:
    """An answer that keeps the rules of the house: a single option, or a code; a set that starts with the best."""
    names = draw(st.permutations(OPTIONS))
    shown = draw(st.integers(0, len(names)))
    ranked = tuple(_option(draw, name, first=n == 0) for n, name in enumerate(names[:shown]))
    code = None if shown and draw(st.booleans()) else draw(st.sampled_from(CODES))
    equivalent = tuple(entry.option for entry in ranked[: 1 if code is None else draw(st.integers(1, max(shown, 1)))])
    excluded = tuple(
        Exclusion(
            option=name,
            label=draw(TEXT),
            code=draw(st.sampled_from(("BLOCKED", "LOW_OVERLAP", "MISSING_REQUIRED"))),
            reason=draw(TEXT),
            source=draw(st.none() | TEXT),
            rxnorm=RXNORM.get(name, ()),
        )
        for name in names[shown:]
    )
    notes = draw(st.lists(st.builds(Remark, **_remark()), max_size=3))
    return Response(
        decision="glucose_lowering",
        decision_version="0.1.0",
        model_version="0123456789abcdef",
        title=draw(TEXT),
        unit="mmol/mol",
        better="lower",
        as_of="2026-01-01T00:00:00+00:00",
        recommended=ranked[0].option if code is None else None,
        ranked=ranked,
        equivalent=equivalent,
        excluded=excluded,
        ruled_out=tuple(_out(draw, entry.option) for entry in ranked if draw(st.booleans())),
        abstained=code,
        reasons=tuple(draw(st.lists(TEXT, max_size=3))),
        dose_mg_week=draw(st.none() | st.floats(5, 100)),
        notes=tuple(notes),
        ruleset_version="rules",
        not_known=tuple(draw(st.lists(st.sampled_from(("hba1c_mmol_mol", "bmi_kg_m2", "ascvd")), max_size=2, unique=True))),
        stale=tuple(draw(st.lists(st.sampled_from(("egfr_ml_min_173m2",)), max_size=1))),
    )


def _option(draw: st.DrawFn, name: str, *, first: bool) -> OptionAnswer:
    difference = 0.0 if first else draw(st.floats(0, 20))
    width = 0.0 if first else draw(st.floats(0, 20))
    return OptionAnswer(
        option=name,
        label=draw(TEXT),
        outcome=draw(AMOUNT),
        difference_to_best=difference,
        low=difference - width,
        high=difference + width,
        overlap=draw(st.floats(0, 1)),
        rxnorm=RXNORM.get(name, ()),
    )


def _out(draw: st.DrawFn, option: str) -> RuledOutDrug:
    code, reason, source = draw(st.sampled_from(("BLOCKED", "MISSING_REQUIRED"))), draw(TEXT), draw(st.none() | TEXT)
    return RuledOutDrug(option=option, drug="glyburide", code=code, reason=reason, source=source, rxnorm=("4815",))


def _remark() -> dict[str, Any]:
    return {
        "option": st.sampled_from((None, *OPTIONS)),
        "kind": st.sampled_from(("warn", "dose", "monitor", "MISSING_REQUIRED")),
        "text": TEXT,
        "rule_id": st.none() | st.just("kidney.metformin"),
        "source": st.none() | TEXT,
        "reviewed": st.booleans(),
    }


def _by_hand(name: str, label: str, codes: tuple[str, ...], behind: float = 0.0) -> OptionAnswer:
    return OptionAnswer(
        option=name, label=label, outcome=-9.0 + behind, difference_to_best=behind, low=behind, high=behind, overlap=0.3, rxnorm=codes
    )


_BLOCKED = Exclusion(
    option="thiazolidinedione",
    label="Thiazolidinedione",
    code="BLOCKED",
    reason="Heart failure NYHA III-IV.",
    source="Label",
    rxnorm=("33738",),
)
ANSWER = Response(  # one option recommended, one behind it, one blocked
    decision="glucose_lowering",
    decision_version="1",
    model_version="m",
    title="Second-line treatment",
    unit="mmol/mol",
    better="lower",
    as_of="2026-01-01T00:00:00+00:00",
    recommended="sglt2_inhibitor",
    ranked=(_by_hand("sglt2_inhibitor", "SGLT2 inhibitor", ("1488564",)), _by_hand("sulfonylurea", "Sulfonylurea", ("4821",), 4.0)),
    equivalent=("sglt2_inhibitor",),
    excluded=(_BLOCKED,),
    abstained=None,
    reasons=(),
    dose_mg_week=None,
    notes=(),
    ruleset_version="r",
    not_known=(),
    stale=(),
)
