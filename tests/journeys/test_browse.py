"""An analyst opens the feature store: a feature by name, its meaning and unit, the service that uses it; and can change nothing."""

import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from components.decision import load
from components.study import rows_at
from features import events, store
from features.events import PseudonymKey, ingest
from features.feature import Events
from pipelines.port import free_port

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.slow
WAIT_MS = 60_000


@pytest.fixture(scope="module")
def filled(small_export: Path, key: PseudonymKey, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's store on 300 simulated patients, and their events beside it."""
    folder, decision = tmp_path_factory.mktemp("browse"), load("glucose_lowering")
    ingest(str(small_export), folder, key)
    known = Events(events.read(folder))
    rows = rows_at(decision, known, tuple(known.patients), np.full(len(known.patients), known.newest_us))
    store.fill(folder / "store", decision.name, decision.columns, rows, rows)
    return folder


@pytest.fixture(scope="module")
def address(filled: Path) -> Iterator[str]:
    """`concordant browse`, running."""
    port = free_port()
    command = [sys.executable, "-W", "ignore", "-m", "pipelines", "browse", "--bundle", str(filled), "--port", str(port)]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        deadline, up = time.monotonic() + 240, False
        while not up and running.poll() is None and time.monotonic() < deadline:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5).close()
                up = True
            except OSError:
                time.sleep(0.3)
        assert up, running.stdout and running.stdout.read()
        yield f"http://127.0.0.1:{port}"
    finally:
        running.terminate()
        running.communicate(timeout=30)


def test_an_analyst_finds_a_feature_sees_its_meaning_and_unit_and_follows_it_to_the_service(address: str, browser: "Browser") -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    page.set_default_timeout(WAIT_MS)
    outside: list[str] = []
    page.on("request", lambda request: outside.append(request.url) if not request.url.startswith((address, "data:", "blob:")) else None)
    page.goto(f"{address}/p/concordant/features")
    page.get_by_placeholder("Search features").fill("hba1c_mmol_mol")
    page.get_by_role("link", name="hba1c_mmol_mol", exact=True).click()
    page.get_by_text("Newest HbA1c [mmol/mol]").wait_for()
    shown = page.inner_text("body")
    for told in ("unit\nmmol/mol", "loinc 4548-4", "fhir\nObservation", "valid_days\n180"):
        assert told in shown
    page.get_by_role("link", name="history", exact=True).click()
    page.get_by_role("link", name="glucose_lowering", exact=True).click()
    page.get_by_text("Feature Service: glucose_lowering").wait_for()
    assert outside == []  # nothing is fetched from anywhere else
    page.close()


def status(request: urllib.request.Request) -> int:
    try:
        with urllib.request.urlopen(request, timeout=60) as reply:
            return int(reply.status)
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
def test_nothing_can_be_changed_through_the_ui(method: str, address: str, filled: Path) -> None:
    before = (filled / "store" / "registry.db").read_bytes()
    for path in ("/api/v1/feature_views/history", "/api/v1/push", "/"):
        assert status(urllib.request.Request(address + path, data=b"{}", method=method)) == 403
    assert (filled / "store" / "registry.db").read_bytes() == before


def test_another_web_page_gets_nothing(address: str) -> None:
    path = f"{address}/projects-list.json"
    assert status(urllib.request.Request(path)) == 200
    assert status(urllib.request.Request(path, headers={"Origin": "https://example.org"})) == 403
    assert status(urllib.request.Request(path, headers={"Host": "example.org"})) == 403


def test_the_ui_works_on_a_copy(address: str, filled: Path) -> None:
    assert not (filled / "store" / "ui").exists()
    assert {path.name for path in (filled / "store").glob("*.db")} == {"registry.db", "online.db"}


def test_a_data_report_lies_beside_what_is_browsed(address: str, filled: Path) -> None:
    text = (filled / "data_report.html").read_text(encoding="utf-8")
    assert "hba1c_mmol_mol" in text and "http" not in text.replace("http://www.w3.org", "")


def test_the_screenshot_in_the_readme_is_small() -> None:
    shot = Path(__file__).resolve().parents[2] / "features" / "browse.png"
    assert shot.read_bytes()[:4] == b"\x89PNG" and shot.stat().st_size < 150_000
