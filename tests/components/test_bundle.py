"""The bundle: checked before it is loaded, gives the numbers it gave when it was made, and holds nobody."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file, save_file

from components import artifact, bundle, decision, effects
from components.artifact import BundleError, seal
from components.effects import Blend
from components.models import fusion_training, ridge, trees
from components.models.fusion import Settings
from components.tensors import Training, folds
from features.errors import ConcordantError
from features.feature import DAY_US, Floats
from features.fhir import BEGIN_US
from features.store import Rows

N = 240
PSEUDONYM = "0123456789abcdef0123456789abcdef"  # of one of the patients


def small_text() -> str:
    """The shipped decision, with three options and six features."""
    raw = yaml.safe_load(decision.path_of("glucose_lowering").read_text(encoding="utf-8"))
    raw["features"] = {
        "history": ["age_years", "hba1c_mmol_mol", "bmi_kg_m2"],
        "genomics": ["prs_bmi", "cyp2c9_star2"],
        "lifestyle": ["sleep_hours"],
    }
    raw["options"] = {name: raw["options"][name] for name in list(raw["options"])[:3]}
    return yaml.safe_dump(raw, sort_keys=False)


TEXT = small_text()
DECISION = decision.parse(TEXT)


@dataclass(frozen=True)
class Made:
    """A bundle and what it was made of."""

    folder: Path
    members: dict[str, Path]
    blend: Blend
    x_NF: Floats
    version: str


def patients() -> Training:
    rng = np.random.default_rng(0)
    x_NF = np.stack(
        [rng.normal(60, 10, N), rng.normal(70, 9, N), rng.normal(31, 4, N), *rng.normal(size=(2, N)), rng.normal(7, 1, N)], axis=1
    )
    option_N = rng.integers(0, 3, N)
    target_N = -0.2 * (x_NF[:, 1] - 70) + (x_NF[:, 2] - 31) * np.array([0.5, -0.5, 0.0])[option_N] + rng.normal(size=N)
    x_NF[rng.random(x_NF.shape) < 0.1] = np.nan
    return Training(
        x_NF=x_NF,
        names=tuple(c.name for c in DECISION.columns),
        modality_F=tuple(c.modality for c in DECISION.columns),
        options=3,
        targets=3,
        option_N=option_N,
        target_N=target_N,
        fold_N=folds(N),
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    place, data = tmp_path_factory.mktemp("bundle"), patients()
    models: dict[str, Any] = {
        "ridge": ridge.fit(data),
        "trees": trees.fit(data, threads=1),
        "fusion": fusion_training.fit(data, Settings(epochs=2, width=8)),
    }
    for name, model in models.items():
        (place / name).mkdir()
        model.save(place / name)
        save_file({"oof_NT": np.ascontiguousarray(model.oof_NT)}, place / name / "crossfit.safetensors")
        (place / name / "message.txt").write_text(f"trained on {PSEUDONYM}", encoding="utf-8")
        seal(place / name)
    blend, _ = effects.fit(data, {name: model.oof_NT for name, model in models.items()})
    members = {name: place / name for name in models}
    version = bundle.write(place / "run" / "bundle", TEXT, members, blend, data.x_NF, {"variance_explained": 0.4})
    return Made(folder=place / "run" / "bundle", members=members, blend=blend, x_NF=data.x_NF, version=version)


@pytest.fixture
def copy(made: Made, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made.folder, tmp_path / "bundle"))


def rows(x_NF: Floats, days_old: float = 1) -> tuple[Rows, Any]:
    now_N = np.full(len(x_NF), 1_700_000_000_000_000)
    fact_NF = np.where(np.isnan(x_NF), BEGIN_US, now_N[:, None] - int(days_old * DAY_US)).astype(np.int64)
    ids = tuple(f"p{n}" for n in range(len(x_NF)))
    return Rows(patient_ids=ids, time_N=now_N, x_NF=x_NF, fact_NF=fact_NF, outside=("",) * len(x_NF)), now_N


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


# -------------------------------------------------------------------------------------------------------------------------- whole and sound


def test_a_bundle_reads_back_as_what_it_was_made_of(made: Made) -> None:
    found = bundle.load(made.folder)
    assert found.version == made.version
    assert found.decision == DECISION
    assert found.metrics == {"variance_explained": 0.4}
    parts = {"ridge": found.ridge, "trees": found.trees, "fusion": found.fusion}
    predictions = {name: part.predict(made.x_NF) for name, part in parts.items()}
    expected = made.blend.effects(DECISION, predictions, found.ridge.covariance(made.x_NF), made.x_NF)
    given = found.effects(made.x_NF)
    for name in ("outcome_NK", "sd_NKK", "overlap_NK"):
        np.testing.assert_array_equal(getattr(given, name), getattr(expected, name))
        assert np.isfinite(getattr(given, name)).all()


def test_a_run_folder_leads_to_its_bundle(made: Made) -> None:
    assert bundle.load(made.folder.parent).version == made.version


def test_a_bundle_may_be_moved(copy: Path, made: Made) -> None:
    assert bundle.load(copy).version == made.version


def test_loading_a_bundle_writes_nothing(copy: Path) -> None:
    before = {path: path.read_bytes() for path in files(copy)}
    bundle.load(copy)
    assert {path: path.read_bytes() for path in files(copy)} == before


def test_the_same_parts_make_the_same_bundle(made: Made, tmp_path: Path) -> None:
    version = bundle.write(tmp_path / "bundle", TEXT, made.members, made.blend, made.x_NF, {"variance_explained": 0.4})
    assert version == made.version
    assert [p.read_bytes() for p in files(tmp_path / "bundle")] == [p.read_bytes() for p in files(made.folder)]


def test_only_formats_that_run_no_code_are_inside(made: Made) -> None:
    assert {path.suffix for path in files(made.folder)} == {".json", ".yaml", ".safetensors", ".ubj"}


def test_stale_values_do_not_reach_the_model(made: Made) -> None:
    found = bundle.load(made.folder)
    x_NF = np.array([[60.0, 70, 31, 0, 0, 7], [60.0, 70, 31, 0, 0, 7]])
    fresh, now_N = rows(x_NF, days_old=1)
    _, fresh_answers = found.advise(fresh, now_N)
    assert fresh_answers[0].abstained != "STALE_INPUT" and fresh_answers[0].scored
    old, _ = rows(x_NF, days_old=200)  # HbA1c is valid for 180 days, body mass index for a year
    answered, answers = found.advise(old, now_N)
    assert [a.abstained for a in answers] == ["STALE_INPUT"] * 2
    gone = np.where(np.arange(6) == 1, np.nan, x_NF)
    np.testing.assert_array_equal(answered.outcome_NK, found.effects(gone).outcome_NK)


def test_an_explained_answer_runs_the_models_only_for_those_who_can_be_scored(made: Made) -> None:
    found = bundle.load(made.folder)
    x_NF = np.array([[60.0, 70, 31, 0, 0, 7], [60.0, np.nan, 31, 0, 0, 7], [55.0, 66, 29, 0, 1, 7]])
    told: Any = ([()] * 3, [""] * 3, [""] * 3, np.full(3, 1_700_000_000_000_000))
    (plain, answers), (scored, explained) = found.answer(x_NF, *told), found.answer(x_NF, *told, explained=True)
    for answer, again in zip(answers, explained, strict=True):
        kept = tuple(replace(entry, parts=(), reason=entry.reason.split(" Mainly:")[0]) for entry in again.ranked)
        assert replace(again, ranked=kept, changes=()) == answer
    assert [answer.scored for answer in answers] == [True, False, True]
    np.testing.assert_allclose(scored.outcome_NK[[0, 2]], plain.outcome_NK[[0, 2]], rtol=1e-6)
    assert np.isnan(scored.outcome_NK[1]).all() and np.isnan(scored.sd_NKK[1]).all() and np.isnan(scored.overlap_NK[1]).all()
    nobody, _ = found.answer(x_NF[1:2], *(each[1:2] for each in told), explained=True)
    assert nobody.outcome_NK.shape == (1, 3) and np.isnan(nobody.outcome_NK).all()


@pytest.mark.parametrize("effect_J", [(0.7, 0.0, 0.0, 0.3), (0.2, 0.3, 0.4, 0.1), (0.0, 0.0, 0.0, 1.0)])
def test_comparing_gives_the_same_differences_for_less(made: Made, effect_J: tuple[float, ...]) -> None:
    """Members without weight are not asked, and the level, which cancels, is left out."""
    found = bundle.load(made.folder)
    found = replace(found, blend=replace(found.blend, effect_J=np.array(effect_J)))
    whole, lean = found.effects(made.x_NF[:40]), found.compared(made.x_NF[:40])
    np.testing.assert_allclose(lean.difference_NKK, whole.difference_NKK, atol=1e-9)
    np.testing.assert_allclose(lean.sd_NKK, whole.sd_NKK, atol=1e-12)


# ---------------------------------------------------------------------------------------------------------------------------------- damage


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(bytes(content))


def test_one_flipped_byte_in_any_file_is_refused(made: Made, copy: Path) -> None:
    for path in files(copy):
        whole = path.read_bytes()
        for at in (0, len(whole) // 2, len(whole) - 1):
            flip(path, at)
            with pytest.raises(BundleError) as caught:
                bundle.load(copy)
            assert len(str(caught.value)) < 300
            path.write_bytes(whole)
    assert bundle.load(copy).version == made.version


def test_a_file_that_was_added_or_removed_is_named(copy: Path) -> None:
    (copy / "ridge" / "extra.bin").write_bytes(b"1")
    with pytest.raises(BundleError, match=r"bundle has files missing or added: ridge/extra\.bin"):
        bundle.load(copy)
    (copy / "ridge" / "extra.bin").unlink()
    (copy / "trees" / "trees_3.ubj").unlink()
    with pytest.raises(BundleError, match=r"missing or added: trees/trees_3\.ubj"):
        bundle.load(copy)


def test_an_edited_xgboost_file_is_named(copy: Path) -> None:
    flip(copy / "trees" / "trees_1.ubj", 5000)
    with pytest.raises(BundleError, match=r"was altered: trees/trees_1\.ubj does not have the digest"):
        bundle.load(copy)


def edit_weights(folder: Path) -> None:
    arrays = load_file(folder / "ridge" / "ridge.safetensors")
    save_file(arrays | {"weight_D": arrays["weight_D"] * 1.1}, folder / "ridge" / "ridge.safetensors")


def edit_blend(folder: Path) -> None:
    arrays = load_file(folder / "blend.safetensors")
    save_file(
        arrays | {"constant_K": arrays["constant_K"] + [3.0, 0, -3], "effect_J": np.array([0, 0, 0, 1.0])}, folder / "blend.safetensors"
    )


def exchange_trees(folder: Path) -> None:
    data = patients()
    other = trees.fit(Training(**{**data.__dict__, "target_N": -data.target_N}), threads=1)
    other.save(folder / "trees")


def be_too_sure(folder: Path) -> None:
    arrays = load_file(folder / "ridge" / "ridge.safetensors")
    draws_SD = arrays["weight_D"] + (arrays["draws_SD"] - arrays["weight_D"]) / 10
    save_file(arrays | {"draws_SD": draws_SD.astype(np.float32)}, folder / "ridge" / "ridge.safetensors")


def forget_overlap(folder: Path) -> None:
    arrays = load_file(folder / "overlap.safetensors")
    save_file(arrays | {"smooth_intercept_K": arrays["smooth_intercept_K"] + [9.0, 0, 0]}, folder / "overlap.safetensors")


@pytest.mark.parametrize("edit", [edit_weights, edit_blend, be_too_sure, forget_overlap])
def test_what_is_sealed_again_but_gives_other_numbers_fails_the_self_test(copy: Path, edit: Callable[[Path], None]) -> None:
    """Outcomes, intervals and overlap all decide what is recommended."""
    edit(copy)
    seal(copy)
    with pytest.raises(BundleError, match="fails its self-test: this installation gives other numbers"):
        bundle.load(copy)


def test_other_trees_sealed_again_fail_the_self_test_where_trees_have_a_say(made: Made, copy: Path) -> None:
    blend = Blend(**{**made.blend.__dict__, "level_J": np.array([0, 1.0, 0]), "effect_J": np.array([0, 1.0, 0, 0])})
    shutil.rmtree(copy)
    bundle.write(copy, TEXT, made.members, blend, made.x_NF, {})
    exchange_trees(copy)
    seal(copy)
    with pytest.raises(BundleError, match="self-test"):
        bundle.load(copy)


def test_a_catalogue_that_changed_since_is_told(copy: Path) -> None:
    told = json.loads((copy / "features.json").read_text(encoding="utf-8"))
    (copy / "features.json").write_text(json.dumps(told | {"catalogue": "0" * 16}), encoding="utf-8")
    seal(copy)
    with pytest.raises(BundleError, match="another feature catalogue"):
        bundle.load(copy)


def test_a_decision_with_other_features_than_the_members_is_told(copy: Path) -> None:
    (copy / "decision.yaml").write_text(TEXT.replace("- prs_bmi", "- prs_ckd"), encoding="utf-8")
    seal(copy)
    with pytest.raises(ConcordantError):
        bundle.load(copy)


def test_a_bundle_of_a_later_format_is_told(copy: Path) -> None:
    told = json.loads((copy / "features.json").read_text(encoding="utf-8"))
    (copy / "features.json").write_text(json.dumps(told | {"format": bundle.FORMAT + 1}), encoding="utf-8")
    seal(copy)
    with pytest.raises(BundleError, match="format"):
        bundle.load(copy)


def test_what_is_no_bundle_is_told_as_such(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is not a bundle: it has no manifest"):
        bundle.load(tmp_path)
    with pytest.raises(BundleError, match="is not a bundle"):
        bundle.load(tmp_path / "absent")


# --------------------------------------------------------------------------------------------------------------------------------- privacy


def test_no_cross_fitted_prediction_and_no_pseudonym_is_inside(made: Made) -> None:
    names = [path.name for path in files(made.folder)]
    assert "crossfit.safetensors" not in names
    assert "message.txt" not in names
    assert names.count("manifest.json") == 1
    for path in files(made.folder):
        assert PSEUDONYM.encode() not in path.read_bytes()
        if path.suffix == ".safetensors":
            assert not [name for name, array in load_file(path).items() if N in array.shape]  # nothing has a row a patient


def test_the_rows_of_the_self_test_are_quantiles_and_of_nobody(made: Made) -> None:
    told = json.loads((made.folder / "selftest.json").read_text(encoding="utf-8"))
    x_NF = bundle._array(told["x_NF"])
    assert x_NF.shape == (4, 6)
    np.testing.assert_allclose(x_NF[:3], np.nanquantile(made.x_NF, [0.25, 0.5, 0.75], axis=0))
    assert np.isnan(x_NF[3]).all()
    assert not any((np.isclose(row, made.x_NF) | np.isnan(made.x_NF)).all(1).any() for row in x_NF[:3])
    assert "NaN" not in (made.folder / "selftest.json").read_text(encoding="utf-8")


def test_a_manifest_names_every_file_and_the_version_is_its_digest(made: Made) -> None:
    told = json.loads((made.folder / "manifest.json").read_text(encoding="utf-8"))
    assert set(told) == {path.relative_to(made.folder).as_posix() for path in files(made.folder)} - {"manifest.json"}
    assert artifact.verify(made.folder) == made.version
