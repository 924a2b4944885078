"""Rows as numbers for the models: which row is trained on what, and scaling that is learned from training rows only.

Axis suffixes: N rows, F features, K options, T targets (K, or 1 for dose finding), E folds, L facts, C what is told of each.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from components.cohort import Cohort
from components.decision import Decision, transform
from features.errors import ConcordantError
from features.feature import Floats, Ints, Modality

FOLDS = 5
LIMIT = 5.0  # a scaled value further out than this is drawn in: one wild laboratory value must not steer an answer


@dataclass(frozen=True, kw_only=True)
class Training:
    """What every member learns from. `x_NF` is raw, NaN where missing; `target_N` is on the modelled scale, NaN where not observed."""

    x_NF: Floats
    names: tuple[str, ...]
    modality_F: tuple[Modality, ...]
    options: int
    targets: int
    option_N: Ints
    target_N: Floats
    fold_N: Ints
    harm_N: Floats | None = None  # what of `target_N` adverse events make up, on its scale
    events_NLC: Floats | None = None  # newest facts of each row by code, value and days before; NaN where there are fewer

    def __len__(self) -> int:
        return len(self.x_NF)

    @property
    def observed_N(self) -> npt.NDArray[np.bool_]:
        """Rows whose outcome was seen."""
        return ~np.isnan(self.target_N)

    def without(self, modality: Modality) -> "Training":
        """The same rows as if a modality had never been measured."""
        keep = np.array([m != modality for m in self.modality_F])
        kept = [n for n, k in zip(self.names, keep, strict=True) if k]
        return replace(self, x_NF=self.x_NF[:, keep], names=tuple(kept), modality_F=tuple(m for m in self.modality_F if m != modality))


def folds(rows: int, seed: int = 0) -> Ints:
    """Fold of each row: a seeded shuffle, so that the folds depend on the order of the rows and on nothing else."""
    fold_N = np.arange(rows) % FOLDS
    np.random.default_rng(seed).shuffle(fold_N)
    return fold_N


def training(decision: Decision, cohort: Cohort, x_NF: Floats) -> Training:
    """Rows of a cohort and their features, for the members."""
    tabular_NF, events_NLC = decision.split(x_NF)
    return Training(
        x_NF=tabular_NF,
        names=tuple(feature.name for feature in decision.tabular),
        modality_F=tuple(feature.modality for feature in decision.tabular),
        options=len(decision.options),
        targets=decision.targets,
        option_N=cohort.option_N,
        target_N=np.asarray(transform(decision, cohort.target_N), np.float64),
        fold_N=_folds(decision, cohort),
        harm_N=cohort.harm_N if decision.outcome.transform == "none" else None,  # roots of parts don't add up
        events_NLC=events_NLC,
    )


def _folds(decision: Decision, cohort: Cohort) -> Ints:
    """Folds of patients, whole sites, or consecutive times, as the decision says. Raises ConcordantError with fewer sites than folds."""
    if decision.held_out == "patients":
        return folds(len(cohort))
    if decision.held_out == "time":
        return np.argsort(np.argsort(cohort.time_N, kind="stable"), kind="stable") * FOLDS // len(cohort)
    sites, number_N, size_S = np.unique(np.array(cohort.site_N), return_inverse=True, return_counts=True)
    if len(sites) < FOLDS:
        raise ConcordantError(
            f"Decision '{decision.name}': held_out: sites needs {FOLDS} sites, found {len(sites)}. Hold out patients or time."
        )
    fold_S, load = np.zeros(len(sites), np.int64), np.zeros(FOLDS, np.int64)
    for site in np.argsort(-size_S, kind="stable"):  # the largest first, each to the fold that has least
        fold_S[site] = load.argmin()
        load[fold_S[site]] += size_S[site]
    return fold_S[number_N]


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Scaled rows: `scaled_NF` is 0 where `seen_NF` is False. Modalities lie side by side in the order of `modality_F`."""

    scaled_NF: Floats
    seen_NF: npt.NDArray[np.bool_]
    modality_F: tuple[Modality, ...]

    def modality(self, name: Modality) -> tuple[Floats, npt.NDArray[np.bool_]]:
        """Values and mask of one modality."""
        columns = np.array([m == name for m in self.modality_F], bool)
        return self.scaled_NF[:, columns], self.seen_NF[:, columns]


@dataclass(frozen=True, kw_only=True)
class Scaler:
    """Centre and spread of every feature over the training rows."""

    center_F: Floats
    spread_F: Floats
    modality_F: tuple[Modality, ...]

    @classmethod
    def fit(cls, x_NF: Floats, modality_F: Sequence[Modality]) -> "Scaler":
        """From training rows; a feature without spread, or never seen, is only centred."""
        seen_F = (~np.isnan(x_NF)).sum(0)
        total_F = np.nansum(x_NF, 0)
        center_F = np.divide(total_F, seen_F, out=np.zeros(x_NF.shape[1]), where=seen_F > 0)
        square_F = np.nansum((x_NF - center_F) ** 2, 0)
        spread_F = np.sqrt(np.divide(square_F, seen_F, out=np.ones(x_NF.shape[1]), where=seen_F > 0))
        return cls(center_F=center_F, spread_F=np.where(spread_F > 1e-9, spread_F, 1.0), modality_F=tuple(modality_F))

    def batch(self, x_NF: Floats) -> Batch:
        """Scaled rows of raw ones."""
        seen_NF = ~np.isnan(x_NF)
        scaled_NF = np.clip((x_NF - self.center_F) / self.spread_F, -LIMIT, LIMIT)
        return Batch(scaled_NF=np.where(seen_NF, scaled_NF, 0.0), seen_NF=seen_NF, modality_F=self.modality_F)
