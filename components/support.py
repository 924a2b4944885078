"""Is a patient like those that the models learned from? Two distances to the training rows, over what is known of the patient.

One is of all features together, one of what was measured alone: a rare variant or condition lies far from its mean by its nature, and where
its carriers set the limit, values that no patient has together would lie inside it.

Axis suffixes: N rows, F features, M the measured ones among them.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from components.tensors import Scaler
from features.feature import Floats, Ints, Modality

Masks = np.typing.NDArray[np.bool_]

QUANTILE = 0.995  # of the training rows' own distances: what lies beyond is outside
SHRINK = 0.1  # of the covariance towards independence, so that it can be inverted whatever the sample
KINDS = 12  # distinct training values; with more a feature counts as measured, not as a category or a count of copies
FAR = 6.0  # a single value this many spreads from the training mean, and beyond all of theirs, is outside by itself


@dataclass(frozen=True, kw_only=True)
class Distance:
    """How far rows lie from the training rows in some of the features, and how far is outside."""

    column_M: Ints
    precision_MM: Floats
    limit: float

    @classmethod
    def fit(cls, scaled_NF: Floats, seen_NF: Masks, column_M: Ints) -> "Distance":
        """From scaled training rows. A missing value stands at the mean and is not counted."""
        count = len(column_M)
        if not count:
            return cls(column_M=column_M, precision_MM=np.zeros((0, 0)), limit=0.0)  # the distance of nothing known is below it
        covariance_MM = np.cov(scaled_NF[:, column_M], rowvar=False) if len(scaled_NF) > 1 else np.eye(count)
        covariance_MM = (1 - SHRINK) * np.reshape(covariance_MM, (count, count)) + SHRINK * np.eye(count)
        found = cls(column_M=column_M, precision_MM=np.asarray(np.linalg.inv(covariance_MM), np.float64), limit=np.inf)
        return replace(found, limit=float(np.quantile(found.of(scaled_NF, seen_NF), QUANTILE)))

    def of(self, scaled_NF: Floats, seen_NF: Masks) -> Floats:
        """Mahalanobis distance as a standard normal score for the number of known features (Wilson and Hilferty 1931, chi-square to
        normal): so a patient of whom little is known is judged like one of whom much is."""
        scaled_NM = scaled_NF[:, self.column_M]
        squared_N = np.einsum("nf,nf->n", scaled_NM @ self.precision_MM, scaled_NM)
        known_N = np.maximum(seen_NF[:, self.column_M].sum(1), 1)
        spread_N = 2 / (9 * known_N)
        return np.asarray((np.cbrt(np.maximum(squared_N, 0) / known_N) - (1 - spread_N)) / np.sqrt(spread_N))


@dataclass(frozen=True, kw_only=True)
class Support:
    """Where the training rows lie: centre and spread, the range of each feature, and the two distances."""

    scaler: Scaler
    low_F: Floats
    high_F: Floats
    all: Distance
    measured: Distance

    @classmethod
    def fit(cls, x_NF: Floats, scaler: Scaler) -> "Support":
        """From training rows."""
        scaled_NF, seen_NF = _scaled(scaler, x_NF), ~np.isnan(x_NF)
        kinds_F = np.array([len(np.unique(x_N[seen_N])) for x_N, seen_N in zip(x_NF.T, seen_NF.T, strict=True)])
        return cls(
            scaler=scaler,
            low_F=scaled_NF.min(0),
            high_F=scaled_NF.max(0),
            all=Distance.fit(scaled_NF, seen_NF, np.arange(x_NF.shape[1])),
            measured=Distance.fit(scaled_NF, seen_NF, np.flatnonzero(kinds_F > KINDS)),
        )

    def outside(self, x_NF: Floats) -> Masks:
        """Rows that are unlike the training rows: together, or in one value far beyond any of theirs."""
        scaled_NF, seen_NF = _scaled(self.scaler, x_NF), ~np.isnan(x_NF)
        alone_NF = (np.abs(scaled_NF) > FAR) & ((scaled_NF < self.low_F) | (scaled_NF > self.high_F))
        far_NP = [part.of(scaled_NF, seen_NF) > part.limit for part in (self.all, self.measured)]
        return np.asarray(alone_NF.any(1) | far_NP[0] | far_NP[1])

    def save(self, folder: Path) -> None:
        """`support.safetensors`."""
        arrays: dict[str, Floats | Ints] = {
            "center_F": self.scaler.center_F,
            "spread_F": self.scaler.spread_F,
            "low_F": self.low_F,
            "high_F": self.high_F,
        }
        for name, part in (("all", self.all), ("measured", self.measured)):
            arrays |= {
                f"{name}_column_M": part.column_M,
                f"{name}_precision_MM": part.precision_MM,
                f"{name}_limit": np.array([part.limit]),
            }
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, folder / "support.safetensors")

    @classmethod
    def load(cls, folder: Path, modality_F: tuple[Modality, ...]) -> "Support":
        """The support that `save` wrote."""
        a = load_file(folder / "support.safetensors")
        parts = {
            name: Distance(column_M=a[f"{name}_column_M"], precision_MM=a[f"{name}_precision_MM"], limit=float(a[f"{name}_limit"][0]))
            for name in ("all", "measured")
        }
        scaler = Scaler(center_F=a["center_F"], spread_F=a["spread_F"], modality_F=modality_F)
        return cls(scaler=scaler, low_F=a["low_F"], high_F=a["high_F"], **parts)


def _scaled(scaler: Scaler, x_NF: Floats) -> Floats:
    """In spreads from the mean, not drawn in: what is far must stay far."""
    return np.nan_to_num((x_NF - scaler.center_F) / scaler.spread_F, nan=0.0)
