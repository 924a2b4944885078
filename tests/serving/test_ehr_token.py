"""Who may call a CDS service: tokens of listed issuers for this address, once; and no fetch that a stranger asked for."""

import base64
import hmac
import json
import ssl
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm
from loopback import Quiet, listening

from features.errors import ConcordantError
from serving.ehr_token import Gate, Issuer, Refused, Trusted

BASE, PATH, ISS = "https://cds.example.org", "/cds-services/glucose_lowering-patient-view", "https://ehr.example.org"
ELLIPTIC, RSA = ec.generate_private_key(ec.SECP384R1()), rsa.generate_private_key(public_exponent=65537, key_size=2048)
STRANGER = ec.generate_private_key(ec.SECP384R1())


def _keys() -> dict[str, Any]:
    elliptic = json.loads(ECAlgorithm.to_jwk(ELLIPTIC.public_key())) | {"kid": "ec", "use": "sig"}
    return {"keys": [elliptic, json.loads(RSAAlgorithm.to_jwk(RSA.public_key())) | {"kid": "rsa"}]}


def _token(key: Any = ELLIPTIC, alg: str = "ES384", header: dict[str, Any] | None = None, **changed: Any) -> str:
    now = int(time.time())
    claims = {"iss": ISS, "aud": BASE + PATH, "exp": now + 120, "iat": now, "jti": str(uuid.uuid4())} | changed
    told = {name: value for name, value in claims.items() if value is not None}
    return "Bearer " + jwt.encode(told, key, algorithm=alg, headers={"kid": "ec"} | (header or {}))


def _signed_with_public_key() -> str:
    """What a library does that takes the algorithm from the token: the public key as a shared secret. PyJWT itself refuses to make one."""
    head, claims, _ = _token("x" * 48, "HS384").removeprefix("Bearer ").split(".")
    public = ELLIPTIC.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    made = hmac.new(public, f"{head}.{claims}".encode(), "sha384").digest()
    return f"Bearer {head}.{claims}.{base64.urlsafe_b64encode(made).rstrip(b'=').decode()}"


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    path = tmp_path / "keys.json"
    path.write_text(json.dumps(_keys()), encoding="utf-8")
    return Gate(Trusted(audience=BASE, issuers=(Issuer(iss=ISS, keys=str(path)),)))


def test_a_good_token_passes_with_either_algorithm(gate: Gate) -> None:
    assert gate.check(_token(), PATH).iss == ISS
    assert gate.check(_token(RSA, "RS384", {"kid": "rsa"}), PATH).iss == ISS


def test_a_token_passes_once(gate: Gate) -> None:
    token = _token()
    gate.check(token, PATH)
    with pytest.raises(Refused, match="used before"):
        gate.check(token, PATH)


NOW = int(time.time())
BAD: dict[str, Any] = {
    "no token": lambda: None,
    "basic": lambda: "Basic eDp5",
    "not a token": lambda: "Bearer x.y.z",
    "unsigned": lambda: _token(None, "none"),
    "HMAC": lambda: _token("secret-secret-secret-secret-secret-secret-secret-secret", "HS384"),
    "HMAC with the public key": lambda: _signed_with_public_key(),
    "ES256": lambda: _token(ec.generate_private_key(ec.SECP256R1()), "ES256"),
    "RS256": lambda: _token(RSA, "RS256", {"kid": "rsa"}),
    "another signer": lambda: _token(STRANGER),
    "another kind of key under the kid": lambda: _token(RSA, "RS384", {"kid": "ec"}),
    "an unknown key": lambda: _token(header={"kid": "other"}),
    "no key named": lambda: _token(header={"kid": ""}),
    "expired": lambda: _token(exp=NOW - 100, iat=NOW - 200),
    "from the future": lambda: _token(iat=NOW + 1000, exp=NOW + 1100),
    "too long a life": lambda: _token(exp=NOW + 3600),
    "another address": lambda: _token(aud=BASE + "/cds-services/other"),
    "an address that begins like ours": lambda: _token(aud=BASE + PATH + "/feedback"),
    "another issuer": lambda: _token(iss="https://evil.example.org"),
    "an issuer that is no text": lambda: _token(iss=None),
    "no jti": lambda: _token(jti=None),
    "no exp": lambda: _token(exp=None),
    "keys at an address of its own": lambda: _token(header={"jku": "https://evil.example.org/keys"}),
}


@pytest.mark.parametrize("kind", BAD)
def test_any_other_token_is_refused_and_not_repeated(kind: str, gate: Gate) -> None:
    with pytest.raises(Refused) as told:
        gate.check(BAD[kind](), PATH)
    assert "evil" not in str(told.value) and len(str(told.value)) < 120


def test_a_token_of_another_tenant_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    path.write_text(json.dumps(_keys()), encoding="utf-8")
    gate = Gate(Trusted(audience=BASE, issuers=(Issuer(iss=ISS, keys=str(path), tenant="one"),)))
    assert gate.check(_token(tenant="one"), PATH).tenant == "one"
    for tenant in ("two", None):
        with pytest.raises(Refused, match="tenant"):
            gate.check(_token(tenant=tenant), PATH)


@pytest.fixture
def key_server(tmp_path: Path) -> Iterator[tuple[str, httpx.Client, list[str]]]:
    """An https server of keys: its address, a client that trusts it, and what was asked of it."""
    asked: list[str] = []

    class Keys(Quiet):
        def do_GET(self) -> None:
            asked.append(self.path)
            if self.path == "/moved":
                self.say(302, location="/keys")
            else:
                self.say(200, json.dumps(_keys()).encode(), cache_control="max-age=600" if self.path == "/keys" else "no-store")

    name = x509.Name([x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, "localhost")])
    own = ec.generate_private_key(ec.SECP256R1())
    now = datetime.now(UTC)
    made = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(own.public_key()).serial_number(1)
    made = made.not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
    made = made.add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
    certificate = tmp_path / "certificate.pem"
    plain = own.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    certificate.write_bytes(plain + made.sign(own, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    trusting = ssl.create_default_context(cafile=str(certificate))
    with listening(Keys, tls=context) as base, httpx.Client(verify=trusting, follow_redirects=False) as client:
        yield base, client, asked


def test_keys_are_fetched_from_the_listed_address_and_kept_as_long_as_it_says(key_server: tuple[str, httpx.Client, list[str]]) -> None:
    base, client, asked = key_server
    gate = Gate(Trusted(audience=BASE, issuers=(Issuer(iss=ISS, jku=f"{base}/keys"),)), client)
    for _ in range(3):
        gate.check(_token(header={"jku": f"{base}/keys"}), PATH)
    assert asked == ["/keys"]
    fresh = Gate(Trusted(audience=BASE, issuers=(Issuer(iss=ISS, jku=f"{base}/fresh"),)), client)
    fresh.check(_token(), PATH)
    fresh.check(_token(), PATH)
    assert asked == ["/keys", "/fresh", "/fresh"]


def test_nothing_is_fetched_for_a_token_that_names_another_address_or_issuer(key_server: tuple[str, httpx.Client, list[str]]) -> None:
    base, client, asked = key_server
    gate = Gate(Trusted(audience=BASE, issuers=(Issuer(iss=ISS, jku=f"{base}/keys"),)), client)
    for token in (_token(header={"jku": f"{base}/other"}), _token(iss=base), _token(None, "none")):
        with pytest.raises(Refused):
            gate.check(token, PATH)
    assert asked == []


def test_strangers_can_not_make_us_fetch_at_will(key_server: tuple[str, httpx.Client, list[str]]) -> None:
    base, client, asked = key_server
    gate = Gate(Trusted(audience=BASE, issuers=(Issuer(iss=ISS, jku=f"{base}/keys"),)), client)
    for n in range(20):
        with pytest.raises(Refused, match="does not have"):
            gate.check(_token(header={"kid": f"unknown {n}"}), PATH)
    assert asked == ["/keys"]


def test_a_redirect_of_the_keys_is_not_followed(key_server: tuple[str, httpx.Client, list[str]]) -> None:
    base, client, asked = key_server
    gate = Gate(Trusted(audience=BASE, issuers=(Issuer(iss=ISS, jku=f"{base}/moved"),)), client)
    with pytest.raises(Refused, match="can't be had"):
        gate.check(_token(), PATH)
    assert asked == ["/moved"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "audience: x",
        "audience: https://a\nissuers: []",
        "audience: https://a\nissuers: [{iss: b}]",
        "audience: https://a\nissuers: [{iss: b, jku: 'http://b/keys'}]",
        "[",
    ],
)
def test_a_list_of_issuers_that_can_not_be_read_is_told_with_its_place(text: str, tmp_path: Path) -> None:
    path = tmp_path / "ehr.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConcordantError, match="ehr.yaml"):
        Trusted.read(path)
