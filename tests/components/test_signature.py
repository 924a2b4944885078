"""A signature holds for the bundle that was signed, by the one who signed it, and for no other."""

from pathlib import Path

import pytest

from components.artifact import BundleError, seal
from components.rollout import reference
from components.signature import check, sign, sign_published


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
