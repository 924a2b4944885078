"""What several rooms' tests share: real data where it lies, one small simulated export, one whole run."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from features.events import PseudonymKey

if TYPE_CHECKING:
    from playwright.sync_api import Browser

    from pipelines.servers import LocalServer

ROOT = Path(__file__).resolve().parents[1]
CANARY = "ZQCANARYXW"  # planted in every name, id and address of the export that the whole run reads


def examples(usual: int, deep: int) -> int:
    """How many cases a property is tried on: `deep` under `make deep` (CONCORDANT_DEEP=1), `usual` in the suite."""
    return deep if os.environ.get("CONCORDANT_DEEP") else usual


def debian(program: str, package: str) -> str:
    """Path of a real server or browser from Debian; a test that needs it is skipped where it is absent."""
    found = shutil.which(program) or next((str(path) for path in Path("/usr/lib/postgresql").glob(f"*/bin/{program}")), None)
    if found is None:
        pytest.skip(f"{program} is not installed: apt-get install {package} (`.ci/run` does)")
    return found


@pytest.fixture(scope="session")
def browser() -> "Iterator[Browser]":
    """Debian's Chromium, headless."""
    program = debian("chromium", "chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        opened = play.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield opened
        opened.close()


@contextmanager
def server(kind: str) -> "Iterator[LocalServer]":
    """A real Redis or PostgreSQL on a free port of 127.0.0.1, gone with everything in it afterwards."""
    from pipelines.servers import PROGRAMS, LocalServer

    debian(*PROGRAMS[kind])
    place = Path(tempfile.mkdtemp())
    place.chmod(0o755)  # PostgreSQL runs as another account where the tests run as root
    try:
        with LocalServer(kind, place / kind) as running:
            yield running
    finally:
        shutil.rmtree(place)


@pytest.fixture(scope="session")
def servers() -> "Iterator[dict[str, LocalServer]]":
    """Both of them."""
    with server("redis") as redis, server("postgresql") as postgresql:
        yield {"redis": redis, "postgresql": postgresql}


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the real data; tests that use it are marked `shared_data`."""
    folder = Path(os.environ.get("CONCORDANT_SHARED_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real data are not beside this checkout: {folder} is absent; set CONCORDANT_SHARED_DATA")
    return folder


@pytest.fixture(scope="session")
def key() -> PseudonymKey:
    """A key for tests."""
    return PseudonymKey(b"0123456789abcdef0123456789abcdef")


@pytest.fixture(scope="session")
def small_export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A simulated export of 300 patients; its truth lies beside it."""
    from pipelines.simulate import World, simulate

    folder = tmp_path_factory.mktemp("small") / "export"
    simulate(World(patients=300, seed=1), folder)
    return folder


@dataclass(frozen=True)
class WholeRun:
    """One run of the command line on an export with canaries, and everything it printed."""

    workspace: Path
    folder: Path
    source: Path
    printed: str


def concordant(*arguments: str, cwd: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    """The command line as people run it, in a process of its own and far from the checkout."""
    command = [sys.executable, "-m", "pipelines", *arguments]
    environment = {**os.environ, "PYTHONSAFEPATH": "1", "COLUMNS": "160"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> WholeRun:
    """`concordant run` on 2,500 simulated patients with canaries in every identifier."""
    from pipelines.simulate import World, simulate, truth_path

    place = tmp_path_factory.mktemp("whole")
    source = place / "export"
    simulate(World(patients=2500, seed=3, canary=CANARY), source)
    told = ("run", "glucose_lowering", "--source", str(source), "--truth", str(truth_path(source)), "--workspace", str(place / "ws"))
    done = concordant(*told, cwd=place)
    (folder,) = (place / "ws" / "runs").iterdir()
    return WholeRun(workspace=place / "ws", folder=folder, source=source, printed=done.stdout + done.stderr)


@pytest.fixture(scope="module")
def one_torch_thread() -> Iterator[None]:
    """Layers as small as the tests' are slower on two threads, much so where the cores are shared, and what is forked must have one."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
