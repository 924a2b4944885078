"""Lifestyle: what people report and what their devices measure."""

from collections.abc import Callable

import numpy as np

from features.concepts import concepts
from features.feature import AsOf, Feature, Floats, latest, mean


def _smoking(level: float) -> Callable[[AsOf], Floats]:
    newest = latest("smoking_level", 1827)

    def compute(at: AsOf) -> Floats:
        level_N = newest(at)
        return np.where(np.isnan(level_N), np.nan, (level_N == level).astype(np.float64))

    return compute


def _reported(name: str, concept: str, meaning: str) -> Feature:
    unit = concepts().measurements[concept].unit
    return Feature(
        name=name, modality="lifestyle", unit=unit, meaning=meaning, concepts=(concept,), compute=latest(concept, 730), valid_days=730
    )


def _device(name: str, concept: str, meaning: str) -> Feature:
    unit = concepts().measurements[concept].unit
    return Feature(
        name=name,
        modality="lifestyle",
        unit=unit,
        meaning=f"{meaning}, mean of 60 days",
        concepts=(concept,),
        compute=mean(concept, 60),
        valid_days=60,
    )


FEATURES: tuple[Feature, ...] = (
    Feature(
        name="smoker_current",
        modality="lifestyle",
        unit="flag",
        meaning="Smokes now",
        concepts=("smoking_level",),
        compute=_smoking(2),
        valid_days=1827,
    ),
    Feature(
        name="smoker_former",
        modality="lifestyle",
        unit="flag",
        meaning="Smoked before",
        concepts=("smoking_level",),
        compute=_smoking(1),
        valid_days=1827,
    ),
    _reported("alcohol_units_week", "alcohol_units_week", "Alcohol, reported"),
    _reported("exercise_days_week", "exercise_days_week", "Days a week with moderate or strenuous activity, reported"),
    _reported("sleep_hours", "sleep_hours", "Sleep a day"),
    _reported("diet_quality_score", "diet_quality_score", "Diet quality, 0 to 100, reported"),
    _device("steps_day", "steps_day", "Steps a day from a device"),
    _device("resting_heart_rate", "resting_heart_rate", "Resting heart rate from a device"),
)
