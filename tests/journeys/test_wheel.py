"""What is shipped: every table and rule is in the wheel, and no other distribution owns one of its top-level names."""

import subprocess
import sys
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from conftest import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("alone")]
ROOMS = {"features", "components", "pipelines", "serving"}


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Names of the files in the built wheel."""
    place = tmp_path_factory.mktemp("wheel")
    told = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(place), str(ROOT)]
    subprocess.run(told, check=True, capture_output=True, timeout=200)
    (wheel,) = place.glob("*.whl")
    with zipfile.ZipFile(wheel) as opened:
        return set(opened.namelist())


def test_the_wheel_holds_every_file_of_the_four_rooms(shipped: set[str]) -> None:
    tracked = subprocess.run(["git", "ls-files", *ROOMS], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert set(tracked) <= shipped


def test_the_wheel_has_four_top_level_names_and_nobody_else_owns_one(shipped: set[str]) -> None:
    tops = {name.split("/")[0] for name in shipped if ".dist-info" not in name}
    assert tops == ROOMS
    owners = packages_distributions()
    assert {name: [owner for owner in owners.get(name, []) if owner != "concordant"] for name in ROOMS} == {name: [] for name in ROOMS}


def test_no_file_is_longer_than_a_reader_can_hold() -> None:
    long = {
        path: lines for room in ROOMS for path in (ROOT / room).rglob("*.py") if (lines := len(Path(path).read_text().splitlines())) > 400
    }
    assert not long
