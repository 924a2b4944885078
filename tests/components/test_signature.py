"""A signature holds for the bundle that was signed, by the one who signed it, and for no other."""

import io
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console
from typer.testing import CliRunner

from components.artifact import BundleError, seal
from components.rollout import reference
from components.signature import check, sign, sign_published
from components.steps.publish import publish
from features.errors import ConcordantError
from pipelines import cluster_cli
from pipelines.cli import app


def _bundle(place: Path, content: bytes = b"weights") -> Path:
    (place / "bundle").mkdir(parents=True)
    (place / "bundle" / "weights").write_bytes(content)
    seal(place / "bundle")
    return place


def test_a_signed_bundle_is_taken_and_still_verifies(tmp_path: Path) -> None:
    run = _bundle(tmp_path / "run")
    sign(run, tmp_path / "keys" / "publisher.pem")
    assert (tmp_path / "keys" / "publisher.pem").stat().st_mode & 0o077 == 0
    assert reference(run, "s3://models/x", tmp_path / "keys" / "publisher.pem.pub").digest.startswith("sha256:")


def test_a_bundle_without_signature_of_another_or_altered_and_sealed_again_is_refused(tmp_path: Path) -> None:
    run, key = _bundle(tmp_path / "run"), tmp_path / "a.pem"
    sign(_bundle(tmp_path / "first"), key)
    sign(_bundle(tmp_path / "second"), tmp_path / "b.pem")
    with pytest.raises(BundleError, match="is not signed"):
        check(run, tmp_path / "a.pem.pub")
    sign(run, key)
    with pytest.raises(BundleError, match="not of this bundle by the owner"):
        check(run, tmp_path / "b.pem.pub")
    (run / "bundle" / "weights").write_bytes(b"other")
    (run / "bundle" / "manifest.json").unlink()
    seal(run / "bundle")
    with pytest.raises(BundleError, match="not of this bundle by the owner"):
        check(run, tmp_path / "a.pem.pub")


@pytest.mark.parametrize("content", [b"", b"-----BEGIN PRIVATE KEY-----\nx\n-----END PRIVATE KEY-----\n"])
def test_a_file_that_is_no_key_is_told(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "key").write_bytes(content)
    with pytest.raises(BundleError, match="no Ed25519 private key"):
        sign(_bundle(tmp_path / "run"), tmp_path / "key")
    with pytest.raises(BundleError, match="no Ed25519 public key"):
        check(tmp_path / "run", tmp_path / "key")


def test_what_is_published_is_signed_where_a_key_is_set_and_only_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = _bundle(tmp_path / "run")
    monkeypatch.setenv("CONCORDANT_SIGNING_KEY", str(tmp_path / "absent.pem"))
    sign_published(run)
    assert not (run / "bundle.sig").exists() and not (tmp_path / "absent.pem").exists()
    sign(_bundle(tmp_path / "other"), tmp_path / "publisher.pem")
    monkeypatch.setenv("CONCORDANT_SIGNING_KEY", str(tmp_path / "publisher.pem"))
    sign_published(run)
    check(run, tmp_path / "publisher.pem.pub")


def test_a_key_that_is_set_after_a_first_run_makes_a_signed_bundle_and_the_same_key_reuses_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the step itself, as a laptop's run calls it: what it publishes is written by a stand-in of two files."""
    monkeypatch.setenv("CONCORDANT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CONCORDANT_SIGNING_KEY", raising=False)

    def write(decision: str, features: Path, members: dict[str, Path], effects: Path, evaluation: Path, folder: Path) -> str:
        _bundle(folder)
        return "published"

    monkeypatch.setattr("components.study.publish", write)
    names = ("features", "ridge", "trees", "fusion", "effects", "evaluation")
    for name in names:
        (tmp_path / name).mkdir()
        seal(tmp_path / name)

    def published(out: str) -> list[str]:
        given = {name: SimpleNamespace(path=str(tmp_path / name)) for name in names}
        publish.python_func("warfarin", **given, bundle=SimpleNamespace(path=str(tmp_path / out)))
        return sorted(path.name for path in (tmp_path / out).iterdir() if path.name.startswith("bundle"))

    assert published("first") == ["bundle"]
    for name in ("a.pem", "b.pem"):
        sign(_bundle(tmp_path / f"of {name}"), tmp_path / name)
        monkeypatch.setenv("CONCORDANT_SIGNING_KEY", str(tmp_path / name))
        assert published(f"by {name}") == ["bundle", "bundle.sig"]
        check(tmp_path / f"by {name}", tmp_path / f"{name}.pub")
    assert "reused" not in capsys.readouterr().out
    published("again")
    assert "reused" in capsys.readouterr().out
    (tmp_path / "b.pem").write_text("no key")
    with pytest.raises(ConcordantError, match="no Ed25519 private key"):
        published("unreadable")


def test_the_command_says_that_a_new_key_was_made_and_only_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _bundle(tmp_path / "run")
    told = []
    for _ in range(2):
        monkeypatch.setattr(cluster_cli, "console", Console(file=(printed := io.StringIO()), width=400))
        assert CliRunner().invoke(app, ["sign", str(tmp_path / "run"), "--key", str(tmp_path / "mistyped.pem")]).exit_code == 0
        told.append(printed.getvalue())
    assert "a NEW key was made there" in told[0] and "mistyped.pem.pub" in told[0] and "Signed" in told[0]
    assert "NEW" not in told[1] and "Signed" in told[1]
