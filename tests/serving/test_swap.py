"""Another bundle while requests are answered: whole answers of one bundle or the other, and nothing that is damaged is ever served."""

import json
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import WholeRun, examples
from safetensors.numpy import load_file, save_file
from served import ask, in_a_loop, running

from components.artifact import seal
from components.bundle import Bundle
from serving.guard import Limits
from serving.patient import Patients
from serving.pool import Pool
from serving.predictor import Predictor
from serving.schema import FeatureRow, PatientQuery
from serving.server import application

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("whole")]


def _rows(run: WholeRun, key: Any, ids: tuple[str, ...]) -> list[FeatureRow]:
    return Patients(run.folder / "store", key, wall_clock=False).rows([PatientQuery(pseudonym=patient) for patient in ids])


def _copy(run: WholeRun, place: Path) -> Path:
    shutil.copytree((run.folder / "bundle").resolve(), place)
    return place


def _resealed(folder: Path) -> None:
    (folder / "manifest.json").unlink()
    seal(folder)


def _shift(folder: Path, by: float) -> None:
    """Another model: every expected outcome is moved, and the self-test says so."""
    told = json.loads((folder / "ridge" / "ridge.json").read_text())
    told["intercept"] += by
    (folder / "ridge" / "ridge.json").write_text(json.dumps(told))
    import components.bundle as bundles

    selftest = json.loads((folder / "selftest.json").read_text())
    made = bundles._load(folder, "", *_extra(selftest)).effects(bundles._array(selftest["x_NF"]))
    (folder / "selftest.json").write_text(json.dumps({"x_NF": selftest["x_NF"]} | bundles._numbers(made)))
    _resealed(folder)


def _extra(selftest: dict[str, Any]) -> tuple[Any, ...]:
    import inspect

    import components.bundle as bundles

    return (bundles._array(selftest["x_NF"]),) if len(inspect.signature(bundles._load).parameters) > 2 else ()


@pytest.mark.deep
def test_swaps_under_load_lose_no_request_and_mix_none(
    whole_run: WholeRun, run_key: Any, scored: tuple[str, ...], tmp_path: Path, record_property: Any
) -> None:
    one, two = _copy(whole_run, tmp_path / "one"), _copy(whole_run, tmp_path / "two")
    _shift(two, 1000.0)
    predictor = Predictor("m", one)
    predictor.load()
    rows = _rows(whole_run, run_key, scored[:8])
    body = json.dumps({"instances": [row.model_dump(mode="json") for row in rows]}).encode()
    predictor._pool = Pool("compute", threads=1, waiting=64, patience_s=30)
    patient = Limits(deadline_s=30)  # what is asked here is which answer, not how fast beside everything else that this machine does
    guard, readiness, _ = application(predictor, "row", {"bundle": predictor.bundle_ready}, limits=patient)
    over, found, failed = threading.Event(), list[list[dict[str, Any]]](), list[int]()

    def load(base: str) -> None:
        while not over.is_set():
            told = ask(f"{base}/v1/models/m:predict", body, timeout=30)
            found.append(told.body["predictions"]) if told.status == 200 else failed.append(told.status)

    with running(guard, readiness) as base:
        threads = [threading.Thread(target=load, args=(base,)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for n in range(examples(20, 60)):
            assert predictor.swap((two, one)[n % 2])
        over.set()
        for thread in threads:
            thread.join()
    assert not failed and len(found) >= 10
    versions = [{answer["model_version"] for answer in answers} for answers in found]
    assert all(len(told) == 1 for told in versions) and len(set().union(*versions)) == 2
    by_version = {}
    for answers, (version,) in zip(found, versions, strict=True):
        outcomes = [entry["outcome"] for answer in answers for entry in answer["ranked"]]
        assert outcomes and by_version.setdefault(version, outcomes) == outcomes  # the numbers of its version, and no other's
    first, second = by_version.values()
    assert np.abs(np.array(first) - np.array(second)).min() > 100
    record_property("found", f"{examples(20, 60)} swaps under {len(found):,} requests of 8 patients: 0 failed, 0 of two versions")


def _altered(folder: Path) -> None:
    target = folder / "trees" / "trees_0.ubj"
    target.write_bytes(target.read_bytes()[:-1] + b"0")


def _removed(folder: Path) -> None:
    (folder / "trees" / "trees_0.ubj").unlink()


def _added(folder: Path) -> None:
    (folder / "extra.py").write_text("")


def _no_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def _other_columns(folder: Path) -> None:
    told = json.loads((folder / "features.json").read_text())
    told["catalogue"] = "0" * 16
    (folder / "features.json").write_text(json.dumps(told))
    _resealed(folder)


def _fewer_columns(folder: Path) -> None:
    text = (folder / "decision.yaml").read_text()
    line = next(line for line in text.splitlines() if "hdl" in line)
    (folder / "decision.yaml").write_text(text.replace(line + "\n", ""))
    _resealed(folder)


def _nan_weights(folder: Path) -> None:
    path = folder / "fusion" / "fusion.safetensors"
    arrays = load_file(path)
    name = next(name for name in arrays if name.endswith("effect.weight"))
    arrays[name] = arrays[name].copy()
    arrays[name].flat[0] = np.nan
    save_file(arrays, path)
    _resealed(folder)


def _infinite_weights(folder: Path) -> None:
    path = folder / "ridge" / "ridge.safetensors"
    arrays = load_file(path)
    arrays["weight_D"] = arrays["weight_D"].copy()
    arrays["weight_D"][3] = np.inf
    save_file(arrays, path)
    _resealed(folder)


def _other_numbers(folder: Path) -> None:
    told = json.loads((folder / "ridge" / "ridge.json").read_text())
    told["intercept"] += 0.5
    (folder / "ridge" / "ridge.json").write_text(json.dumps(told))
    _resealed(folder)


def _nan_selftest(folder: Path) -> None:
    told = json.loads((folder / "selftest.json").read_text())
    told["outcome_NK"] = [[None] * len(row) for row in told["outcome_NK"]]
    (folder / "selftest.json").write_text(json.dumps(told))
    _resealed(folder)


def _other_decision(folder: Path) -> None:
    text = (folder / "decision.yaml").read_text()
    (folder / "decision.yaml").write_text(text.replace("decision: glucose_lowering", "decision: another"))
    _resealed(folder)


def _other_format(folder: Path) -> None:
    told = json.loads((folder / "features.json").read_text())
    (folder / "features.json").write_text(json.dumps(told | {"format": 99}))
    _resealed(folder)


DAMAGE: dict[str, Callable[[Path], None]] = {
    "a file was altered": _altered,
    "a file is missing": _removed,
    "a file was added": _added,
    "no manifest": _no_manifest,
    "another catalogue of features": _other_columns,
    "a column less": _fewer_columns,
    "a weight is not a number": _nan_weights,
    "a weight is infinite": _infinite_weights,
    "the self-test gives other numbers": _other_numbers,
    "the self-test holds no numbers": _nan_selftest,
    "another decision": _other_decision,
    "another format": _other_format,
}


@pytest.fixture(scope="module")
def serving(whole_run: WholeRun) -> Predictor:
    """A predictor that serves the whole run's bundle."""
    predictor = Predictor("m", whole_run.folder)
    predictor.load()
    return predictor


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_bundle_is_refused_and_the_old_one_goes_on(
    kind: str, serving: Predictor, whole_run: WholeRun, served_bundle: Bundle, tmp_path: Path
) -> None:
    folder = _copy(whole_run, tmp_path / "bundle")
    DAMAGE[kind](folder)
    assert not serving.swap(folder)
    assert serving.bundle is not None and serving.bundle.version == served_bundle.version and serving.ready


def test_a_bundle_put_in_the_place_of_the_one_that_serves_is_found(whole_run: WholeRun, tmp_path: Path) -> None:
    import asyncio

    one, two, place = _copy(whole_run, tmp_path / "one"), _copy(whole_run, tmp_path / "two"), tmp_path / "current"
    _shift(two, 1000.0)
    place.symlink_to(one)
    predictor = Predictor("m", place)
    predictor.load()
    old = predictor.bundle.version if predictor.bundle else ""

    async def found() -> None:
        watching = asyncio.create_task(predictor.watch(0.05))
        (tmp_path / "next").symlink_to(two)
        (tmp_path / "next").replace(place)
        deadline = time.monotonic() + 30
        while predictor.bundle and predictor.bundle.version == old and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        watching.cancel()

    in_a_loop(found())
    assert predictor.bundle is not None and predictor.bundle.version != old


def test_an_endpoint_deployed_for_one_bundle_serves_no_other(whole_run: WholeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from components.artifact import BundleError, manifest_sha256

    one, two = _copy(whole_run, tmp_path / "one"), _copy(whole_run, tmp_path / "two")
    _shift(two, 1000.0)
    monkeypatch.setenv("CONCORDANT_BUNDLE_DIGEST", manifest_sha256(one))
    predictor = Predictor("m", one)
    predictor.load()
    assert predictor.bundle is not None and not predictor.swap(two)
    assert manifest_sha256(one).startswith(f"sha256:{predictor.bundle.version}")
    with pytest.raises(BundleError, match="was deployed for sha256:"):
        Predictor("m", two).load()
