"""Keyed pseudonyms of patients and resources."""

import base64
import hmac
import secrets
from collections.abc import Iterable
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from features.errors import ConcordantError

if TYPE_CHECKING:
    from cryptography.fernet import Fernet

WIDEST_DAYS = 365


class PseudonymKey:
    """Keyed pseudonyms: the same id under the same key is the same word, and without the key nothing leads back."""

    def __init__(self, key: bytes) -> None:
        if len(key) < 16:
            raise ValueError(f"A pseudonym key needs at least 16 bytes, this one has {len(key)}.")
        self._key = key
        self._begin()

    def _begin(self) -> None:
        self._whose, self._number = blake2b(key=self._key, digest_size=16), blake2b(key=self._key, digest_size=8)

    def __getstate__(self) -> bytes:  # a half-fed hash can't be sent to another process
        return self._key

    def __setstate__(self, key: bytes) -> None:
        self._key = key
        self._begin()

    @classmethod
    def at(cls, path: Path) -> "PseudonymKey":
        """Key in a file that only its owner can read; made where there is none yet."""
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            draft = path.with_name(path.name + f".{secrets.token_hex(4)}")
            draft.touch(mode=0o600)
            draft.write_text(secrets.token_hex(32), encoding="ascii")
            with suppress(FileExistsError):  # another process was first: then its key counts
                path.hardlink_to(draft)
            draft.unlink()
        return cls(bytes.fromhex(path.read_text(encoding="ascii").strip()))

    def pseudonym(self, patient: str) -> str:
        """Pseudonym of a patient's id: 32 hexadecimal digits."""
        fed = self._whose.copy()
        fed.update(patient.encode(errors="surrogatepass"))
        return fed.hexdigest()

    def offset_days(self, pseudonym: str) -> int:
        """By how many days the dates of a patient are shifted: uniform in -365 to 365 without 0, always the same under this key."""
        drawn = int.from_bytes(hmac.digest(self._key, f"dates of {pseudonym}".encode(), "sha256"), "big") % (2 * WIDEST_DAYS)
        return drawn - WIDEST_DAYS if drawn < WIDEST_DAYS else drawn - WIDEST_DAYS + 1

    def sealed(self, content: bytes) -> str:
        """Content that must lie somewhere for a while and holds ids in clear, encrypted under a key of its own derived from this one."""
        return self._fernet().encrypt(content).decode()

    def opened(self, sealed: str) -> bytes:
        """What was sealed under this key. Raises ConcordantError where it was another, or the content was changed."""
        from cryptography.fernet import InvalidToken

        try:
            return self._fernet().decrypt(sealed.encode())
        except InvalidToken:
            raise ConcordantError("What another step left was written under another pseudonym key. Give all steps the same key.") from None

    def _fernet(self) -> "Fernet":
        from cryptography.fernet import Fernet

        return Fernet(base64.urlsafe_b64encode(hmac.digest(self._key, b"sealed between steps", "sha256")))

    def number(self, text: str) -> int:
        """Keyed 63-bit number of any id."""
        fed = self._number.copy()
        fed.update(text.encode(errors="surrogatepass"))
        return int.from_bytes(fed.digest(), "big") >> 1

    def numbers(self, texts: Iterable[str]) -> npt.NDArray[np.int64]:
        """As `number`, for many at once."""
        copy, found = self._number.copy, []
        for text in texts:
            fed = copy()
            fed.update(text.encode("utf-8", "surrogatepass"))
            found.append(fed.digest())
        return (np.frombuffer(b"".join(found), ">u8") >> np.uint64(1)).astype(np.int64)
