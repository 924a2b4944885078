"""How much of every effect to believe: regression with a prior spread a group of coefficients that the data choose, by Gibbs sampling.

Each coefficient is normal about 0 with the spread of its group (all that one feature does to the options' differences, say) times the
spread of the group's family (a modality). Groups have half-Cauchy priors: what differs little is shrunk to almost nothing, what differs
much is left alone: the horseshoe (Carvalho, Polson & Scott, Biometrika 2010) for groups. As in the regularised horseshoe (Piironen &
Vehtari, Electronic Journal of Statistics 2017) a spread has bounds, and it lies on a grid, so that it is drawn from all that it may be at
once. On 2,000 rows of 30 simulated worlds the bounds cost 0.02 mmol/mol of regret less than far tails, the grid 0.02 less than a chain
that walks (Makalic & Schmidt, IEEE Signal Processing Letters 2016). Families have a prior that says how much the caller expects, worth a
few coefficients. Where the data can't tell how strongly to shrink, the average over all that they allow is taken: on few rows a single
best spread is often zero, and then nobody would be treated as different from anybody.

Only the Gram matrix of the design is looked at, so that the cost does not grow with the rows. Axis suffixes: D columns, G groups,
H families, S draws, V values that a spread may have.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_solve, cholesky, solve_triangular
from threadpoolctl import threadpool_limits

from features.feature import Floats, Ints

BURN, DRAWS, STEPS = 100, 150, 2  # steps that are forgotten, draws that are kept, steps from one to the next
WORTH = 4.0  # coefficients that the expected spread of a family counts as
SPREAD_V = np.geomspace(0.05, 5, 24)  # of a group, in those of its family
HALF_CAUCHY_V = np.log(SPREAD_V) - np.log1p(SPREAD_V**2)  # log density of the logarithm of a half-Cauchy spread, up to a constant
SMALLEST = 1e-12


@dataclass(frozen=True, kw_only=True)
class Groups:
    """Group of every column, the family of every group, and the variance expected of a family's coefficients.

    Variances are in those of the outcome.
    """

    group_D: Ints
    family_G: Ints
    expected_H: Floats

    @classmethod
    def of(cls, names: list[tuple[str, str]], expected: Callable[[str], float]) -> "Groups":
        """From the (family, group) of every column, and the variance expected in each family."""
        groups = sorted(set(names))
        families = sorted({family for family, _ in groups})
        index = {name: g for g, name in enumerate(groups)}
        group_D = np.array([index[name] for name in names], np.int64)
        family_G = np.array([families.index(family) for family, _ in groups], np.int64)
        return cls(group_D=group_D, family_G=family_G, expected_H=np.array([expected(family) for family in families]))


@dataclass(frozen=True, kw_only=True)
class Posterior:
    """Mean of the coefficients, and draws of them."""

    mean_D: Floats
    draws_SD: Floats


def sample(gram_DD: Floats, cross_D: Floats, square: float, rows: int, groups: Groups, *, draws: int = DRAWS, seed: int = 0) -> Posterior:
    """Posterior of a regression from its sufficient statistics: Z'Z, Z'y, y'y, for y about its mean. One thread: the same bits anywhere."""
    unit = np.sqrt(square / rows)
    with threadpool_limits(1):
        mean_D, draws_SD = _chain(gram_DD, cross_D / unit, rows, groups, draws, np.random.default_rng(seed))
    return Posterior(mean_D=mean_D * unit, draws_SD=draws_SD * unit)


def _chain(gram_DD: Floats, cross_D: Floats, rows: int, groups: Groups, draws: int, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """`cross_D` for an outcome of variance 1. Conditional means are averaged, which is less noisy than the draws."""
    group_D, family_G = groups.group_D, groups.family_G
    size_G = np.bincount(group_D)
    size_H = np.bincount(family_G, weights=size_G)
    fixed_GV = HALF_CAUCHY_V - size_G[:, None] * np.log(SPREAD_V)
    local_G, family_H = np.ones(len(family_G)), groups.expected_H.copy()
    noise, total_D, kept = 1.0, np.zeros(len(cross_D)), []
    for step in range(-BURN, draws * STEPS):
        prior_D = np.maximum(family_H[family_G] * local_G, SMALLEST)[group_D]
        system_DD = gram_DD / noise
        system_DD[np.diag_indices_from(system_DD)] += 1 / prior_D
        lower_DD = cholesky(system_DD, lower=True, overwrite_a=True, check_finite=False)
        mean_D = cho_solve((lower_DD, True), cross_D / noise, check_finite=False)
        weight_D = mean_D + solve_triangular(lower_DD, rng.standard_normal(len(cross_D)), lower=True, trans="T", check_finite=False)
        if step >= 0:
            total_D += mean_D
            if step % STEPS == 0:
                kept.append(weight_D)
        left = rows - 2 * weight_D @ cross_D + weight_D @ gram_DD @ weight_D  # residual sum of squares: y'y is `rows`
        noise = max(left, SMALLEST) / 2 / rng.gamma(rows / 2)
        square_G = np.bincount(group_D, weights=weight_D**2)
        told_GV = fixed_GV - (square_G / family_H[family_G] / 2)[:, None] / SPREAD_V**2
        local_G = SPREAD_V[(told_GV + rng.gumbel(size=told_GV.shape)).argmax(1)] ** 2  # one draw of each group's distribution on the grid
        square_H = np.bincount(family_G, weights=square_G / local_G)
        family_H = (WORTH * groups.expected_H + square_H) / 2 / rng.gamma((size_H + WORTH) / 2)
    return total_D / (draws * STEPS), np.stack(kept)
