"""Is a patient like those that the models learned from? A distance to the training rows, over what is known of the patient.

Axis suffixes: N rows, F features.
"""

from dataclasses import dataclass

import numpy as np

from components.tensors import Scaler
from features.feature import Floats

QUANTILE = 0.995  # of the training rows' own distances: what lies beyond is outside
SHRINK = 0.1  # of the covariance towards independence, so that it can be inverted whatever the sample
FAR = 6.0  # a single value this many spreads from the training mean, and beyond all of theirs, is outside by itself


@dataclass(frozen=True, kw_only=True)
class Support:
    """Where the training rows lie: centre and spread, inverse covariance of the scaled values, the range of each, and the limit."""

    scaler: Scaler
    precision_FF: Floats
    low_F: Floats
    high_F: Floats
    limit: float

    @classmethod
    def fit(cls, x_NF: Floats, scaler: Scaler) -> "Support":
        """From training rows. A missing value stands at the mean and is not counted."""
        scaled_NF = _scaled(scaler, x_NF)
        covariance_FF = np.cov(scaled_NF, rowvar=False) if len(x_NF) > 1 else np.eye(x_NF.shape[1])
        covariance_FF = (1 - SHRINK) * np.atleast_2d(covariance_FF) + SHRINK * np.eye(x_NF.shape[1])
        precision_FF = np.asarray(np.linalg.inv(covariance_FF), np.float64)
        limit = float(np.quantile(_distance(scaled_NF, precision_FF, ~np.isnan(x_NF)), QUANTILE))
        return cls(scaler=scaler, precision_FF=precision_FF, low_F=scaled_NF.min(0), high_F=scaled_NF.max(0), limit=limit)

    def outside(self, x_NF: Floats) -> np.typing.NDArray[np.bool_]:
        """Rows that are unlike the training rows: together, or in one value far beyond any of theirs."""
        scaled_NF = _scaled(self.scaler, x_NF)
        alone_NF = (np.abs(scaled_NF) > FAR) & ((scaled_NF < self.low_F) | (scaled_NF > self.high_F))
        return np.asarray((_distance(scaled_NF, self.precision_FF, ~np.isnan(x_NF)) > self.limit) | alone_NF.any(1))


def _scaled(scaler: Scaler, x_NF: Floats) -> Floats:
    """In spreads from the mean, not drawn in: what is far must stay far."""
    return np.nan_to_num((x_NF - scaler.center_F) / scaler.spread_F, nan=0.0)


def _distance(scaled_NF: Floats, precision_FF: Floats, seen_NF: np.typing.NDArray[np.bool_]) -> Floats:
    """Mahalanobis distance as a standard normal score for the number of known features (Wilson and Hilferty 1931, chi-square to normal).

    So a patient of whom little is known is judged like one of whom much is.
    """
    squared_N = np.einsum("nf,fg,ng->n", scaled_NF, precision_FF, scaled_NF, optimize=True)
    known_N = np.maximum(seen_NF.sum(1), 1)
    spread_N = 2 / (9 * known_N)
    return np.asarray((np.cbrt(np.maximum(squared_N, 0) / known_N) - (1 - spread_N)) / np.sqrt(spread_N))
