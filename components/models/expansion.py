"""Columns of the ridge member: what is made of a patient's features before they are weighed.

Axis suffixes: N rows, F features, P expanded features, Q knots.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from components.tensors import Batch
from features.feature import Floats, Ints

KNOTS = (-0.6, 0.6)  # of scaled features with more than a few values: response to age or eGFR is not a straight line


@dataclass(frozen=True, kw_only=True)
class Expansion:
    """From scaled features to the P columns: the value, whether it is missing, two hinges where it is continuous, products of pairs.

    `unit_F` says what of a feature counts as 1: a spread of one that takes many values, otherwise half a unit of its own: yes against no,
    or one copy of a variant, is expected to do as much where it is rare as where it is common (Gelman, Statistics in Medicine 2008). On
    2,000 rows of the simulated world that is worth 0.02 mmol/mol of regret.
    """

    unit_F: tuple[float, ...]
    missing: tuple[int, ...]
    bent: tuple[int, ...]
    pairs: tuple[tuple[int, int], ...]
    group_P: tuple[str, ...]  # modality of each column; "pairs" for products
    feature_P: tuple[int, ...]  # which feature each column is made of (the first of a pair)
    kind_P: tuple[str, ...]  # how: "value", "missing", "bend", "pair"

    @classmethod
    def fit(cls, batch: Batch, spread_F: Floats, pairs: bool) -> "Expansion":
        """For training rows, whose features had these spreads before they were scaled; with products of all pairs or without."""
        features = range(batch.scaled_NF.shape[1])
        share = 1 - batch.seen_NF.mean(0)
        missing = tuple(f for f in features if 0.005 < share[f] < 0.995)
        bent = tuple(f for f in features if len(np.unique(batch.scaled_NF[:500, f])) > 12)
        both = tuple((i, j) for i in features for j in features if i < j) if pairs else ()
        named = [(f, "value") for f in features] + [(f, "missing") for f in missing] + [(f, "bend") for f in bent for _ in KNOTS]
        groups = tuple(batch.modality_F[f] for f, _ in named) + ("pairs",) * len(both)
        feature_P, kind_P = zip(*named, *((i, "pair") for i, _ in both), strict=True)
        unit_F = tuple(1.0 if f in bent else min(1.0, 2 * float(spread_F[f])) for f in features)
        return cls(unit_F=unit_F, missing=missing, bent=bent, pairs=both, group_P=groups, feature_P=feature_P, kind_P=kind_P)

    @cached_property
    def _places(self) -> tuple[Ints, Ints, Ints, Ints]:
        """Features that may be missing, that are bent, and both sides of the pairs."""
        left, right = zip(*self.pairs, strict=True) if self.pairs else ((), ())
        missing, bent, one, other = (np.array(found, np.int64) for found in (self.missing, self.bent, left, right))
        return missing, bent, one, other

    @property
    def crossed_P(self) -> NDArray[np.bool_]:
        """Columns that may tell options apart: not that a value is missing. A modality is often missing as a whole, then its flags are one
        column many times over; on 2,000 rows of the simulated world their products with the options cost 0.05 mmol/mol of regret.
        """
        return np.array([kind != "missing" for kind in self.kind_P])

    def apply(self, batch: Batch) -> Floats:
        """Scaled rows as their P columns."""
        missing, bent, left, right = self._places
        x_NF, bent_NF = batch.scaled_NF * self.unit_F, batch.scaled_NF[:, bent]
        over_NFQ = np.where(batch.seen_NF[:, bent, None], np.maximum(bent_NF[:, :, None] - np.array(KNOTS), 0), 0.0)
        columns = [x_NF, ~batch.seen_NF[:, missing], over_NFQ.reshape(len(x_NF), len(bent) * len(KNOTS))]
        columns += [x_NF[:, left] * x_NF[:, right]] if self.pairs else []
        return np.concatenate(columns, axis=1)
