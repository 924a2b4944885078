"""One study: what the steps read from each other and leave for each other. Each function is the work of one step.

Axis suffixes: N rows, F features, K options, T targets.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from safetensors.numpy import load_file, save_file

from components import decision as decisions
from components import report
from components.artifact import manifest_digest, pseudonym_key_path
from components.cohort import Cohort, outside
from components.decision import Decision
from components.effects import Blend, CrossFitted, families, of_targets
from components.effects import fit as fit_blend
from components.evaluation import Evidence, evaluate
from components.gate import FIXED, judge
from components.models.ridge import Ridge
from components.record import snapshots
from components.registry import Registry, kept
from components.tensors import Training, training
from features import store
from features.errors import ConcordantError
from features.events import PseudonymKey
from features.feature import AsOf, Events, Floats, Ints, compute, fact_times


def rows_at(decision: Decision, events: Events, patient_ids: tuple[str, ...], time_N: Ints, *, record: bool = False) -> store.Rows:
    """Feature rows of some patients at some times: training, serving and whole cohorts all come from here.

    `record`: with the coded record for the safety rules, which training does not need.
    """
    at = AsOf(events, patient_ids, time_N)
    told = tuple(json.dumps(snapshot) for snapshot in snapshots(at)) if record else ("",) * len(patient_ids)
    return store.Rows(
        patient_ids=patient_ids,
        time_N=time_N,
        x_NF=compute(decision.columns, at),
        fact_NF=fact_times(decision.columns, at),
        outside=outside(decision, at),
        record=told,
    )


def build(decision: Decision, table: pa.Table, cohort: Cohort, folder: Path) -> tuple[store.Rows, store.Rows]:
    """Rows at time zero for training, and of every patient at the newest date of the records for serving."""
    events = Events(table)
    rows = rows_at(decision, events, cohort.patient_ids, cohort.time_N)
    everybody = tuple(events.patients)
    serving = rows_at(decision, events, everybody, np.full(len(everybody), events.newest_us), record=True)
    rows.write(folder / "training.parquet")
    serving.write(folder / "serving.parquet")
    extra_NF = compute(decision.extra_columns, AsOf(events, cohort.patient_ids, cohort.time_N))
    save_file({"extra_NF": np.ascontiguousarray(extra_NF)}, folder / "extra.safetensors")
    return rows, serving


def fill_store(decision: Decision, features: Path, folder: Path, home: str) -> str:
    """The Feast store of a study: names for analysts, packed rows for serving. `home`: where it will lie, "" for here."""
    rows, serving = store.Rows.read(features / "training.parquet"), store.Rows.read(features / "serving.parquet")
    server = store.Server.chosen()
    store.fill(folder, decision.name, decision.columns, rows, serving, Path(home) if home else None, server)
    views = len({feature.modality for feature in decision.columns})
    return f"{len(decision.columns)} features in {views} views, {len(serving):,} patients online ({server.kind})"


def train(decision: Decision, cohort: Cohort, features: Path, fit: Callable[[Training], Any], folder: Path) -> str:
    """One member, and where genomics decides a dose, the same without it."""
    data = _training(decision, cohort, features)
    model = fit(data)
    model.save(folder)
    arrays = {"oof_NT": model.oof_NT}
    if getattr(model, "words", None) is not None:  # the network alone reads the newest facts
        arrays["without_events_NT"] = fit(replace(data, events_NLC=None)).oof_NT
    if decision.outcome.kind == "dose" and "genomics" in decision.features:
        arrays["without_genomics_NT"] = fit(data.without("genomics")).oof_NT
    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, folder / "crossfit.safetensors")
    return f"{len(data):,} rows, {len(data.names)} features, cross-fitted"


def blend(decision: Decision, cohort: Cohort, features: Path, members: dict[str, Path], folder: Path) -> str:
    """The blend of the members, and the cross-fitted effects of every cohort row."""
    data = _training(decision, cohort, features)
    crossfits = {name: load_file(path / "crossfit.safetensors") for name, path in members.items()}
    oof = {name: arrays["oof_NT"] for name, arrays in crossfits.items()}
    blended, result = fit_blend(data, oof)
    blended.save(folder)
    covariance_NTT = Ridge.load(members["ridge"]).covariance(data.x_NF)
    arrays = {"target_NT": result.target_NT, "propensity_NK": result.propensity_NK, "aipw_NK": result.aipw_NK}
    arrays["sd_NTT"] = blended.spread(oof, covariance_NTT)
    arrays |= {f"member_{name}": array for name, array in oof.items()}
    if "without_events_NT" in crossfits.get("fusion", {}):
        arrays["without_events_NT"] = crossfits["fusion"]["without_events_NT"]
    without = {name: arrays["without_genomics_NT"] for name, arrays in crossfits.items() if "without_genomics_NT" in arrays}
    if without:
        arrays["without_genomics_NT"] = fit_blend(data.without("genomics"), without)[1].target_NT
    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, folder / "crossfit.safetensors")
    shares = zip(blended.members, blended.level_J, strict=True)
    return "level " + ", ".join(f"{name} {share:.0%}" for name, share in shares)


def champion(decision_text: str, registry: str, effects: Path) -> Path | None:
    """Kept predictions of the model that a challenger is compared with, None where there is none."""
    held = Registry(folder=Path(registry))
    digest = held.champion(decisions.parse(decision_text).name, manifest_digest(effects)) if registry else ""
    return held.predictions(digest) if digest and held.predictions(digest).is_file() else None


def assess(
    decision_text: str, cohort_folder: Path, features: Path, effects: Path, truth: str, folder: Path, rival: Path | None = None
) -> str:
    """Metrics, gate, flow and report. Only here is a simulator's truth read. `rival`: kept predictions of the champion."""
    decision, cohort = decisions.parse(decision_text), Cohort.read(cohort_folder)
    arrays, data = load_file(effects / "crossfit.safetensors"), _training(decision, cohort, features)
    crossfit = CrossFitted(target_NT=arrays["target_NT"], propensity_NK=arrays["propensity_NK"], aipw_NK=arrays["aipw_NK"])
    extra_NF = load_file(features / "extra.safetensors")["extra_NF"]
    members = {name.removeprefix("member_"): array for name, array in arrays.items() if name.startswith("member_")}
    residual_Q = Blend.load(effects).residual_Q
    estimated = of_targets(decision, crossfit.target_NT, arrays["sd_NTT"], residual_Q, crossfit.propensity_NK)
    evidence = Evidence(
        decision=decision,
        cohort=cohort,
        training=data,
        crossfit=crossfit,
        effects=replace(estimated, families=families(decision, members, residual_Q)),
        members=members,
        x_NF=np.concatenate([data.x_NF, extra_NF], axis=1),
        names=data.names + tuple(feature.name for feature in decision.extra_columns),
        without_genomics_NT=arrays.get("without_genomics_NT"),
        without_events_NT=arrays.get("without_events_NT"),
        truth_NK=_truth(decision, cohort, truth) if truth else None,
        champion_NT=kept(rival, cohort.patient_ids) if rival else None,
        champion=rival.stem if rival else "",
    )
    metrics = evaluate(evidence)
    found = judge(decision, metrics)
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=1), encoding="utf-8")
    (folder / "gate.json").write_text(json.dumps(asdict(found) | {"sentence": found.sentence}, indent=1), encoding="utf-8")
    (folder / "flow.json").write_text(json.dumps(cohort.flow, indent=1), encoding="utf-8")
    (folder / "report.html").write_text(report.render(evidence, metrics), encoding="utf-8")
    return f"verdict: {metrics['verdict']}, {metrics['advice']}"


def publish(decision_text: str, features: Path, members: dict[str, Path], effects: Path, evaluation: Path, folder: Path) -> str:
    """The bundle of a study that passed the gate; one option for all where choosing by patient was not shown to be better."""
    from components import bundle  # torch: the other steps start without it

    x_NF = store.Rows.read(features / "training.parquet").x_NF
    metrics = json.loads((evaluation / "metrics.json").read_text(encoding="utf-8"))
    target = folder / "bundle"
    blended = Blend.load(effects)
    if metrics["advice"] == FIXED:
        blended = blended.for_all(load_file(effects / "crossfit.safetensors")["aipw_NK"])
    version = bundle.write(target, decision_text, members, blended, x_NF, metrics)
    bundle.load(target)
    return f"bundle {version}, verified: {metrics['advice']}"


def answered(effects: Path, advice: str) -> Floats:
    """Out-of-fold targets as the published model answers them: where one option stands for all, in its order for everybody."""
    arrays = load_file(effects / "crossfit.safetensors")
    if advice != FIXED:
        return np.asarray(arrays["target_NT"])
    mean_K = np.nanmean(arrays["aipw_NK"], axis=0)
    return np.tile(mean_K, (len(arrays["target_NT"]), 1))


def _training(decision: Decision, cohort: Cohort, features: Path) -> Training:
    return training(decision, cohort, store.Rows.read(features / "training.parquet").x_NF)


def _truth(decision: Decision, cohort: Cohort, path: str) -> Floats:
    """Expected outcome of every cohort row under every option, N by K."""
    import pyarrow.parquet as pq

    key = PseudonymKey.at(pseudonym_key_path())
    table = pq.read_table(path, columns=["patient_id", *(f"outcome_{name}" for name in decision.option_names)])
    row_of = {key.pseudonym(patient): n for n, patient in enumerate(table["patient_id"].to_pylist())}
    columns = np.stack([np.asarray(table[f"outcome_{name}"]) for name in decision.option_names], axis=1)
    absent = sum(patient not in row_of for patient in cohort.patient_ids)
    if absent:
        raise ConcordantError(f"The truth lacks {absent:,} of {len(cohort):,} patients of the cohort. Give the truth file of this source.")
    return columns[[row_of[patient] for patient in cohort.patient_ids]]
