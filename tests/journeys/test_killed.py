"""Kill -9 at random moments, run again: finished steps are not repeated and the bundle is the one of an undisturbed run."""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("alone")]
KILLS = 20


def _start(source: Path, workspace: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "pipelines", "run", "glucose_lowering", "--source", str(source), "--workspace", str(workspace)]
    environment = {**os.environ, "PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1", "COLUMNS": "160"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, cwd=workspace.parent)


def _bundle(workspace: Path) -> bytes:
    (manifest,) = workspace.glob("runs/*/bundle/manifest.json")
    return manifest.read_bytes()


def _finished(printed: str) -> list[str]:
    """Steps that were done, not reused."""
    return re.findall(r"✓ (\w+) +\d+\.\d s", printed)


@pytest.mark.timeout(900)
def test_a_killed_run_resumes_to_the_same_bundle(small_export: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    process = _start(small_export, whole)
    printed, _ = process.communicate(timeout=200)
    assert process.returncode == 0, printed
    reference, dice = _bundle(whole), random.Random(7)
    kills, done, workspace = 0, [], tmp_path / "killed"
    while kills < KILLS:
        process = _start(small_export, workspace)
        try:
            printed, _ = process.communicate(timeout=dice.uniform(0.5, 9))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            printed, _ = process.communicate()
            kills += 1
        done += _finished(printed)
        assert len(done) == len(set(done)), "a finished step was repeated"
        if process.returncode == 0:
            assert _bundle(workspace) == reference
            shutil.rmtree(workspace)
            done = []
    process = _start(small_export, workspace)
    printed, _ = process.communicate(timeout=200)
    assert process.returncode == 0, printed
    done += _finished(printed)
    assert len(done) == len(set(done))
    assert _bundle(workspace) == reference
    assert not list(workspace.rglob("*.part*"))
