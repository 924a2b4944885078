"""From a real FHIR server to events: loaded with simulated patients, exported in bulk with proof of the client's key, then ingested."""

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from conftest import concordant
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from features.errors import ConcordantError
from features.mirror import Mirror
from features.server import Settings, fetch
from features.smart import ClientKey, new_key
from features.transport import Patience
from pipelines.port import free_port

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("fhir_server")]
PATIENTS = 101
LOADER = "loader"  # a static token for the test that fills the server
Resource = dict[str, Any]


@dataclass(frozen=True)
class Server:
    """A running server, the keys of its two clients, and what it was loaded with."""

    base: str
    elliptic: Path
    classic: Path
    resources: list[Resource]
    folder: Path

    def settings(self, key: Path, **changes: Any) -> Settings:
        """For its client with that key. The server's exports want a scope over all types."""
        told = {"client_id": key.stem, "client_key": key, "scope": "system/*.rs", "patience": Patience(first_wait_s=0.1, attempts=3)}
        return Settings(**(told | changes))

    def put(self, *resources: Resource) -> None:
        entries = [{"resource": r, "request": {"method": "PUT", "url": f"{r['resourceType']}/{r['id']}"}} for r in resources]
        body = {"resourceType": "Bundle", "type": "transaction", "entry": entries}
        done = httpx.post(self.base, json=body, headers={"Authorization": f"Bearer {LOADER}"}, timeout=120)
        assert done.status_code == 200, done.text[:500]


def simulated(folder: Path) -> list[Resource]:
    """Every resource of a simulated export, its organizations first."""
    from pipelines.simulate import World, simulate

    simulate(World(patients=PATIENTS, seed=11), folder)
    paths = sorted(folder.glob("*.ndjson"), key=lambda path: path.stem not in ("Organization", "Patient"))
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    elliptic, classic = folder / "elliptic.pem", folder / "classic.pem"
    classic.write_bytes(rsa.generate_private_key(65537, 2048).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    port = free_port()
    base = f"http://127.0.0.1:{port}/fhir"
    clients = [{"client_id": path.stem, "jwks": new_key(path).jwks(), "scopes": "system/*.rs"} for path in (elliptic, classic)]
    auth = {"types": ["smart", "bearer"], "tokens": [LOADER], "smart_clients": clients, "token_lifetime": 2}
    told = {"base_url": base, "host": "127.0.0.1", "port": port, "data_dir": str(folder / "data"), "server_auth": auth}
    told |= {"validation": {"inbound": "off"}, "simulator": {"enabled": False, "delay_seconds": 0.3}, "log_inbound": False}
    (folder / "settings.yaml").write_text(yaml.safe_dump(told))
    command = [str(Path(sys.executable).with_name("sekmet")), "serve", "--config", "settings.yaml", "--host", "127.0.0.1"]
    with (folder / "log.txt").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, env={**os.environ, "PYTHONSAFEPATH": "1"})
    try:
        answering(base, process, folder / "log.txt")
        made = Server(base, elliptic, classic, simulated(folder / "export"), folder)
        for first in range(0, len(made.resources), 500):
            made.put(*made.resources[first : first + 500])
        yield made
    finally:
        process.terminate()
        process.wait(20)


def answering(base: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    for _ in range(300):
        try:
            if httpx.get(base + "/metadata", timeout=2).status_code == 200:
                return
        except httpx.HTTPError:
            time.sleep(0.1)
        assert process.poll() is None, log.read_text()
    raise AssertionError("the server does not answer")


def without_version(resource: Resource) -> Resource:
    """A resource as it was sent: the server adds a version and a time."""
    return {name: value for name, value in resource.items() if name not in ("meta", "text")}


def by_id(resources: list[Resource]) -> dict[tuple[str, str], Resource]:
    return {(r["resourceType"], r["id"]): without_version(r) for r in resources}


def received(root: Path) -> list[Resource]:
    return [json.loads(line) for path in sorted(root.rglob("*.ndjson")) for line in path.read_text().splitlines()]


def wanted(server: Server) -> dict[tuple[str, str], Resource]:
    return {name: r for name, r in by_id(server.resources).items() if name[0] in Settings().types}


@pytest.mark.parametrize("algorithm", ["ES384", "RS384"])
def test_a_bulk_export_with_a_signed_assertion_is_everything_that_was_loaded(server: Server, tmp_path: Path, algorithm: str) -> None:
    key = server.elliptic if algorithm == "ES384" else server.classic
    assert ClientKey.at(key).algorithm == algorithm
    fetched = fetch(server.base, server.settings(key), Mirror(tmp_path / "ehr"), lambda told: None)
    came = received(tmp_path / "ehr")
    assert by_id(came) == wanted(server) and len(came) == len(wanted(server)) == fetched.resources
    assert Counter(r["resourceType"] for r in came)["Patient"] == PATIENTS


def test_a_search_of_every_type_finds_the_same_as_the_export(server: Server, tmp_path: Path) -> None:
    fetch(server.base, server.settings(server.elliptic, method="search"), Mirror(tmp_path / "ehr"), lambda told: None)
    came = received(tmp_path / "ehr")
    assert by_id(came) == wanted(server) and len(came) == len(wanted(server))


def test_a_client_whose_key_is_not_registered_gets_nothing(server: Server, tmp_path: Path) -> None:
    new_key(tmp_path / "other.pem")
    settings = server.settings(tmp_path / "other.pem", client_id="elliptic")
    with pytest.raises(ConcordantError, match="refuses client 'elliptic'.* Is its public key .* registered there"):
        fetch(server.base, settings, Mirror(tmp_path / "ehr"), lambda told: None)
    assert not (tmp_path / "ehr").exists()


def test_the_command_line_brings_the_server_to_events_and_then_what_changed(server: Server, tmp_path: Path) -> None:
    """The events are those of the export that the server was loaded from."""
    from features import events

    told = {"client_id": "elliptic", "client_key": str(server.elliptic), "scope": "system/*.rs"}
    (tmp_path / "ehr.yaml").write_text(yaml.safe_dump(told))
    arguments = ("ingest", server.base, "--server", "ehr.yaml", "--key", "pseudonym.key")
    done = concordant(*arguments, "--out", "events", cwd=tmp_path)
    assert f"{len(wanted(server)):,} resources in all" in done.stdout
    concordant("ingest", str(server.folder / "export"), "--key", "pseudonym.key", "--out", "direct", cwd=tmp_path)
    columns = ["patient_id", "time", "concept", "value", "code", "unit", "source"]
    rows = [sorted(map(str, events.read(tmp_path / name).select(columns).to_pylist())) for name in ("events", "direct")]
    assert rows[0] == rows[1] and len(rows[0]) > 1000
    secret = "".join(server.elliptic.read_text().splitlines()[1:-1])
    assert all(secret not in path.read_text(errors="replace") for path in (tmp_path / ".concordant").rglob("*") if path.is_file())
    changed = next(r for r in server.resources if r["resourceType"] == "Patient")
    server.put(changed | {"active": False})
    done = concordant(*arguments, "--out", "events", cwd=tmp_path)
    assert "resources changed since" in done.stdout
    (root,) = [path for path in (tmp_path / ".concordant" / "exports").iterdir() if path.is_dir()]
    newer = received(root / "001")
    assert by_id(newer)["Patient", changed["id"]]["active"] is False
