"""What the image installs: the wheel, in a clean place, without this checkout. There is no container runtime on the build machines."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from conftest import ROOT

DOCKERFILE = ROOT / "charts" / "Dockerfile"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built as the Dockerfile builds it."""
    place = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    if subprocess.run([*pip, "download", "-q", "--no-deps", "-d", str(place / "x"), "hatchling==1.27.0"], capture_output=True).returncode:
        pytest.skip("no registry to take the build tool (hatchling) from")
    done = subprocess.run(
        [*pip, "wheel", "-q", "--no-deps", "--wheel-dir", str(place), str(ROOT)], capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    (found,) = place.glob("*.whl")
    return found


@pytest.mark.slow
def test_the_wheel_runs_far_from_the_checkout(wheel: Path, tmp_path: Path) -> None:
    installed, clean = tmp_path / "installed", tmp_path / "clean"
    clean.mkdir()
    told = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", str(installed), str(wheel)]
    done = subprocess.run(told, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    environment = {**os.environ, "PYTHONSAFEPATH": "1", "PYTHONPATH": str(installed), "COLUMNS": "120"}

    def answer(*arguments: str) -> str:
        done = subprocess.run([sys.executable, *arguments], cwd=clean, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert str(installed) in answer("-c", "import serving; print(serving.__file__)")
    assert "transformer" in answer("-m", "serving", "--help")
    assert "/v1/models/" in answer("-m", "serving", "contract")
    assert "recommend" in answer("-m", "pipelines", "--help")
    shipped = answer("-c", "from components.decision import load; print(load('glucose_lowering').name)")
    assert shipped.strip() == "glucose_lowering"
    assert list(clean.iterdir()) == [], "something was written beside the mounted folders"


def test_the_dockerfile_copies_what_there_is_and_ends_without_rights() -> None:
    text = DOCKERFILE.read_text()
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().split() if line.startswith("!")}
    for line in re.findall(r"^COPY (?!--from)(.*)$", text, re.MULTILINE):
        for source in line.split()[:-1]:
            assert (ROOT / source).exists() and source in allowed, source
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (extras,) = re.findall(r"\[([a-z0-9,]+)\]\"$", text, re.MULTILINE)
    assert set(extras.split(",")) <= set(project["optional-dependencies"])
    assert project["optional-dependencies"]["gpu"] == re.findall(r'"(xgboost==[^"]+)"', text)
    base = text[text.index(" AS base") : text.index("FROM base AS steps")]
    assert "USER 10001:10001" in base and "PYTHONSAFEPATH=1" in base
    assert {"steps", "serving", "cuda"} == set(re.findall(r"^FROM base AS (\w+)$", text, re.MULTILINE))
    assert "USER" not in text[text.index("FROM base AS steps") :]
