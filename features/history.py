"""Clinical history: demographics, laboratory, vital signs, conditions, drugs, use of care."""

import numpy as np

from features.concepts import concepts
from features.feature import (
    DAY_US,
    YEAR_DAYS,
    AsOf,
    Feature,
    Floats,
    condition,
    count,
    latest,
    slope_per_year,
    takes,
    years_since,
)


def _age_years(at: AsOf) -> Floats:
    known = at.known("birth_date")
    born_N = known.pick(known.last_row(), known.value_M)  # days since 1970
    return (at.time_N / DAY_US - born_N) / YEAR_DAYS


def _age_decade(at: AsOf) -> Floats:
    return np.floor(_age_years(at) / 10)


def _race(name: str) -> Feature:
    def compute(at: AsOf) -> Floats:
        known = at.known("race")
        stated_N = np.where(known.count() > 0, 0.0, np.nan)
        hit = np.array([text == name for text in at.text(known)], bool)
        stated_N[known.ask_M[hit]] = 1.0
        return stated_N

    meaning = f"Race or ethnicity recorded as {name.replace('_', ' ')}; NaN where none is recorded"
    return Feature(name=f"race_{name}", modality="history", unit="flag", meaning=meaning, concepts=("race",), compute=compute)


def _lab(name: str, concept: str, meaning: str, valid_days: float) -> Feature:
    unit = concepts().measurements[concept].unit
    return Feature(
        name=name,
        modality="history",
        unit=unit,
        meaning=meaning,
        concepts=(concept,),
        compute=latest(concept, valid_days),
        valid_days=valid_days,
    )


def _condition(name: str, meaning: str) -> Feature:
    facts = (f"condition:{name}", "record:condition")
    return Feature(name=name, modality="history", unit="flag", meaning=meaning, concepts=facts, compute=condition(name))


def _takes(name: str, drugs: tuple[str, ...], meaning: str) -> Feature:
    facts = tuple(f"takes:{drug}" for drug in drugs)
    return Feature(name=name, modality="history", unit="flag", meaning=meaning, concepts=facts, compute=takes(drugs, 180), valid_days=180)


def _supply_coverage(at: AsOf) -> Floats:
    """Days supplied over days passed since the first supply in the last two years, at most 1.5: adherence as dispensing shows it."""
    known = at.known("supply:metformin", within_days=730)
    days_N = np.bincount(known.ask_M, known.value_M, minlength=len(at))
    last_N = known.pick(known.last_row(), known.value_M)
    span_N = np.zeros(len(at))
    np.maximum.at(span_N, known.ask_M, known.days_ago_M)
    enough_N = known.count() >= 2
    return np.divide(days_N - last_N, span_N, out=np.full(len(at), np.nan), where=enough_N & (span_N > 30)).clip(0, 1.5)


DRUG_CLASSES = concepts().classes

FEATURES: tuple[Feature, ...] = (
    Feature(name="age_years", modality="history", unit="a", meaning="Age", concepts=("birth_date",), compute=_age_years),
    Feature(
        name="age_decade", modality="history", unit="10 a", meaning="Age in whole decades", concepts=("birth_date",), compute=_age_decade
    ),
    Feature(
        name="female",
        modality="history",
        unit="flag",
        meaning="Administrative gender is female",
        concepts=("female",),
        compute=latest("female"),
    ),
    _race("white"),
    _race("black"),
    _race("asian"),
    _race("south_asian"),
    _race("east_asian"),
    _race("hispanic"),
    Feature(
        name="diabetes_duration_years",
        modality="history",
        unit="a",
        meaning="Years since the first record of type 2 diabetes",
        concepts=("condition:type_2_diabetes",),
        compute=years_since("condition:type_2_diabetes"),
    ),
    _lab("hba1c_mmol_mol", "hba1c", "Newest HbA1c", 180),
    Feature(
        name="hba1c_slope_mmol_mol_year",
        modality="history",
        unit="mmol/mol/a",
        meaning="Trend of HbA1c over three years",
        concepts=("hba1c",),
        compute=slope_per_year("hba1c", 1096),
        valid_days=1096,
    ),
    _lab("bmi_kg_m2", "bmi", "Newest body mass index", 365),
    _lab("weight_kg", "weight", "Newest body weight", 365),
    _lab("height_cm", "height", "Newest body height", 3653),
    _lab("egfr_ml_min_173m2", "egfr", "Newest estimated glomerular filtration rate", 365),
    _lab("hdl_mmol_l", "hdl", "Newest HDL cholesterol", 730),
    _lab("total_cholesterol_mmol_l", "total_cholesterol", "Newest total cholesterol", 730),
    _lab("triglycerides_mmol_l", "triglycerides", "Newest triglycerides", 730),
    _lab("alt_u_l", "alt", "Newest alanine aminotransferase", 730),
    _lab("systolic_mm_hg", "systolic_blood_pressure", "Newest systolic blood pressure", 365),
    _condition("ascvd", "Atherosclerotic cardiovascular disease"),
    _condition("heart_failure", "Heart failure"),
    _condition("chronic_kidney_disease", "Chronic kidney disease"),
    _condition("genital_mycotic_infection", "Genital mycotic infection"),
    _condition("osteoporosis", "Osteoporosis"),
    _condition("gastrointestinal_disorder", "Functional disorder of stomach or gut"),
    _condition("hypoglycaemia", "Recorded hypoglycaemia"),
    _condition("diabetes_mellitus", "Diabetes mellitus of any type"),
    _condition("heart_valve_replacement", "Replacement of a heart valve"),
    Feature(
        name="metformin_coverage",
        modality="history",
        unit="1",
        meaning="Days of metformin supplied a day passed, over two years: adherence as supply shows it",
        concepts=("supply:metformin",),
        compute=_supply_coverage,
        valid_days=730,
    ),
    Feature(
        name="encounters_year",
        modality="history",
        unit="1/a",
        meaning="Encounters in the last year",
        concepts=("record:encounter",),
        compute=count("record:encounter", 365),
    ),
    _takes("takes_amiodarone", ("amiodarone",), "Amiodarone stated as taken"),
    _takes("takes_cyp_inducer", DRUG_CLASSES["cyp_inducer"], "Carbamazepine, phenytoin or rifampin stated as taken"),
    _takes("takes_statin", DRUG_CLASSES["statin"], "A statin stated as taken"),
    _takes("takes_aspirin", ("aspirin",), "Aspirin stated as taken"),
    _takes("takes_acetaminophen", ("acetaminophen",), "Acetaminophen (paracetamol) stated as taken"),
)
