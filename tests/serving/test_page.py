"""The clinician's page in a browser: a stored patient and an entered one, the chart, exclusions, and nothing from elsewhere."""

import json
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from conftest import ROOT, WholeRun

from pipelines.serve import Endpoints

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("whole")]


@pytest.fixture(scope="module")
def endpoints(whole_run: WholeRun) -> Iterator[Endpoints]:
    with Endpoints(run=whole_run.folder, key_file=whole_run.workspace / "pseudonym.key", more=("--page",)) as running:
        yield running


@pytest.fixture
def opened(browser: "Browser", endpoints: Endpoints) -> Iterator["Page"]:
    """The page; nothing may be asked of another address, and no script may fail."""
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    elsewhere: list[str] = []
    page.on("request", lambda request: elsewhere.append(request.url) if not request.url.startswith(endpoints.base) else None)
    page.on("pageerror", lambda error: elsewhere.append(str(error)))
    refused = "Failed to load resource: the server responded"  # the browser's own word for a 404, which the page tells in its own
    page.on("console", lambda m: elsewhere.append(m.text) if m.type == "error" and not m.text.startswith(refused) else None)
    page.goto(f"{endpoints.base}/page/")
    page.wait_for_selector("#enter:not([hidden])", state="attached")
    yield page
    assert elsewhere == []
    page.close()


def test_a_patient_of_the_store_is_answered_with_a_chart(opened: "Page", whole_run: WholeRun) -> None:
    lines = (whole_run.source / "Patient.ndjson").read_text(encoding="utf-8").splitlines()
    for line in lines[:20]:
        opened.fill("[name=patient]", json.loads(line)["id"])
        opened.click("#by-id button")
        opened.wait_for_selector(".verdict")
        opened.wait_for_selector("#by-id button:not([disabled])")
        if opened.query_selector("#chart"):
            break
    box = opened.locator("#chart").bounding_box()
    assert box is not None and box["width"] > 300 and box["height"] > 60
    assert opened.locator("#chart circle.option").count() >= 2
    assert "model" in opened.inner_text("#answer") and "not a medical device" in opened.inner_text("#note")


def test_an_entered_patient_is_answered_and_the_screenshot_shows_it(opened: "Page") -> None:
    opened.click("#enter summary")
    for name, value in {"birth": "1961", "59261-8": "72", "98979-8": "78", "39156-5": "31", "1742-6": "28", "8480-6": "134"}.items():
        opened.fill(f"#by-hand [name='{name}']", value)
    opened.select_option("[name=sex]", "male")
    opened.fill("[name='44054006']", "2016")
    opened.check("[name=no-allergy]")
    opened.click("#by-hand button")
    opened.wait_for_selector(".verdict")
    told = opened.inner_text("#answer")
    assert "No answer" not in told and "MISSING_REQUIRED: hba1c" not in told
    assert opened.locator("#chart circle.option").count() >= 2
    picture = opened.screenshot(full_page=True)
    assert len(picture) > 20_000
    if os.environ.get("CONCORDANT_PICTURES"):
        (ROOT / "serving" / "page.png").write_bytes(picture)
    shown = ROOT / "serving" / "page.png"
    assert shown.is_file() and shown.stat().st_size < 300_000  # the README's picture


def test_a_drug_that_a_low_kidney_function_rules_out_is_told_beside_its_option(opened: "Page") -> None:
    opened.click("#enter summary")
    for name, value in {"birth": "1961", "59261-8": "72", "98979-8": "40", "39156-5": "31", "44054006": "2016"}.items():
        opened.fill(f"#by-hand [name='{name}']", value)
    opened.select_option("[name=sex]", "male")
    opened.check("[name=no-allergy]")
    opened.click("#by-hand button")
    opened.wait_for_selector(".verdict")
    told = opened.inner_text("#answer")
    assert "Drugs not to be given" in told and "ertugliflozin (BLOCKED): eGFR below 45" in told


def test_an_unknown_patient_is_told_without_an_answer(opened: "Page") -> None:
    opened.fill("[name=patient]", "nobody")
    opened.click("#by-id button")
    opened.wait_for_selector(".verdict.stop")
    assert "No answer (404)" in opened.inner_text("#answer")
