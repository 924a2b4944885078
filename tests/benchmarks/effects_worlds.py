"""What the effects benchmark is measured on: patients of our simulator through the product's own feature path, and IHDP.

Axis suffixes: N rows, F features, K options.
"""

import gzip
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from components import decision as decisions
from components.cohort import select
from components.study import rows_at
from components.tensors import Training, folds
from features import events
from features.events import PseudonymKey
from features.feature import Events, Floats, Ints, Modality
from pipelines.simulate import World, simulate, truth_path

KEY = PseudonymKey(b"benchmark-benchmark-benchmark-00")
LARGE_SEEDS = 5  # worlds that are large enough for every training size; later seeds have the second size and cost a third


def size(seed: int) -> tuple[int, int]:
    """The largest training set of a world, beyond which its test set begins, and how many are simulated, of whom some are excluded."""
    return (40_000, 48_500) if seed < LARGE_SEEDS else (8_000, 15_800)


@dataclass(frozen=True, kw_only=True)
class Split:
    """One training set and one test set with its truth. Outcomes: lower is better."""

    name: str
    x_NF: Floats
    option_N: Ints
    target_N: Floats
    modality_F: tuple[Modality, ...]
    test_NF: Floats
    truth_NK: Floats

    def training(self, columns: np.typing.NDArray[np.bool_] | None = None) -> Training:
        """For our members; `columns` keeps some features."""
        keep = np.ones(self.x_NF.shape[1], bool) if columns is None else columns
        options = self.truth_NK.shape[1]
        return Training(
            x_NF=self.x_NF[:, keep],
            names=tuple(f"f{f}" for f in np.flatnonzero(keep)),
            modality_F=tuple(m for m, k in zip(self.modality_F, keep, strict=True) if k),
            options=options,
            targets=options,
            option_N=self.option_N,
            target_N=self.target_N,
            fold_N=folds(len(self.x_NF)),
        )


def world(seed: int, cache: Path) -> dict[str, Floats]:
    """Features at time zero, options, outcomes and the truth of one simulated world; kept in `cache`, for it takes minutes."""
    path = cache / f"world_{seed}.npz"
    if not path.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}.npz")
        np.savez_compressed(part, **_through_the_line(seed))
        part.replace(path)
    with np.load(path) as arrays:
        return dict(arrays)


def _through_the_line(seed: int) -> dict[str, Floats]:
    decision = decisions.load("glucose_lowering")
    with tempfile.TemporaryDirectory() as place:
        export, known = Path(place) / "export", Path(place) / "events"
        known.mkdir()
        simulate(World(patients=size(seed)[1], seed=seed), export)
        events.ingest(str(export), known, KEY)
        table = events.read(known)
        cohort = select(table, decision)
        rows = rows_at(decision, Events(table), cohort.patient_ids, cohort.time_N)
        truth = pq.read_table(truth_path(export))
    row_of = {KEY.pseudonym(patient): n for n, patient in enumerate(truth["patient_id"].to_pylist())}
    truth_NK = np.stack([np.asarray(truth[f"outcome_{name}"]) for name in decision.option_names], axis=1)
    order = np.argsort([row_of[patient] for patient in cohort.patient_ids])  # by number: pseudonyms are in no order
    truth_NK = truth_NK[[row_of[patient] for patient in cohort.patient_ids]]
    return {"x_NF": rows.x_NF[order], "option_N": cohort.option_N[order], "target_N": cohort.target_N[order], "truth_NK": truth_NK[order]}


def simulated(seed: int, rows: int, cache: Path) -> Split:
    """The first `rows` of a world to learn from, and what lies beyond the largest training set to be judged on."""
    arrays, (largest, _) = world(seed, cache), size(seed)
    return Split(
        name=f"simulated n={rows} seed={seed}",
        x_NF=arrays["x_NF"][:rows],
        option_N=arrays["option_N"][:rows].astype(np.int64),
        target_N=arrays["target_N"][:rows],
        modality_F=tuple(feature.modality for feature in decisions.load("glucose_lowering").columns),
        test_NF=arrays["x_NF"][largest:],
        truth_NK=arrays["truth_NK"][largest:],
    )


def ihdp(realisation: int, shared_data: Path, seed: int = 0) -> Split:
    """One realisation of IHDP (Hill 2011): 9 in 10 rows to learn from, 1 in 10 to be judged on. Mirrored: higher is better."""
    with gzip.open(shared_data / "ihdp" / f"ihdp_npci_{realisation}.csv.gz", "rt") as stream:
        table_NC = np.loadtxt(stream, delimiter=",")
    test_N = np.random.default_rng(1000 * seed + realisation).permutation(len(table_NC)) < len(table_NC) // 10
    learn = table_NC[~test_N]
    return Split(
        name=f"ihdp {realisation}",
        x_NF=learn[:, 5:],
        option_N=learn[:, 0].astype(np.int64),
        target_N=-learn[:, 1],
        modality_F=("history",) * (table_NC.shape[1] - 5),
        test_NF=table_NC[test_N, 5:],
        truth_NK=-table_NC[test_N][:, 3:5],
    )
