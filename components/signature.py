"""Who published a bundle: an Ed25519 signature of its manifest, in a file beside the bundle's folder.

The manifest holds the sha256 of every file, so its signature covers all of them.
"""

import base64
import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from components.artifact import BundleError, bundle_in, verify

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

SIGNING_FILE = Path("/var/run/secrets/concordant-signing/signing.key")


def sign(bundle: Path, key: Path) -> Path:
    """Sign a verified bundle; returns the file of the signature. A key is made where there is none, its public half at `KEY.pub`."""
    folder = bundle_in(bundle)
    verify(folder)
    if not key.exists():
        _make(key)
    private = _private(key)
    if private is None:
        raise BundleError(f"{key} is no Ed25519 private key in PEM without a passphrase.")
    out = _signature(folder)
    out.write_bytes(base64.b64encode(private.sign((folder / "manifest.json").read_bytes())) + b"\n")
    return out


def sign_published(folder: Path) -> None:
    """Sign what was just published where a key is set: CONCORDANT_SIGNING_KEY, or the secret that a cluster mounts."""
    if key := _set_key():
        sign(folder, key)


def signer() -> str:
    """Digest of the public key of who signs what is published, "" where no key is set: another signer makes another result."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    key = _set_key()
    if key is None:
        return ""
    private = _private(key)  # what is no key is refused when it is to sign
    return hashlib.sha256(private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)).hexdigest() if private else "no key"


def check(bundle: Path, public_key: Path) -> None:
    """Raises BundleError where the owner of the key has not signed this bundle."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    folder = bundle_in(bundle)
    try:
        public = serialization.load_pem_public_key(public_key.read_bytes())
    except (ValueError, TypeError):
        public = None
    if not isinstance(public, Ed25519PublicKey):
        raise BundleError(f"{public_key} is no Ed25519 public key in PEM.")
    signed = _signature(folder)
    if not signed.is_file():
        raise BundleError(f"The bundle is not signed: there is no {signed}. Sign it: concordant sign {bundle} --key KEY")
    try:
        public.verify(base64.b64decode(signed.read_bytes().strip(), validate=True), (folder / "manifest.json").read_bytes())
    except (InvalidSignature, ValueError):
        raise BundleError(f"The signature {signed} is not of this bundle by the owner of {public_key}. Do not deploy it.") from None


def _set_key() -> Path | None:
    key = Path(os.environ.get("CONCORDANT_SIGNING_KEY") or SIGNING_FILE)
    return key if key.is_file() else None


def _private(key: Path) -> "Ed25519PrivateKey | None":
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    try:
        private = serialization.load_pem_private_key(key.read_bytes(), None)
    except (ValueError, TypeError):
        return None
    return private if isinstance(private, Ed25519PrivateKey) else None


def _signature(folder: Path) -> Path:
    return folder.with_name(f"{folder.resolve().name}.sig")


def _make(key: Path) -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    made = Ed25519PrivateKey.generate()
    key.parent.mkdir(parents=True, exist_ok=True)
    told = made.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    with os.fdopen(os.open(key, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(told)
    public = made.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    key.with_name(key.name + ".pub").write_bytes(public)
