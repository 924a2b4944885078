"""The processes as a pod runs them: the chart's arguments, folders that cannot be written; and `helm test`'s question to them."""

import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import WholeRun
from helm_cli import CHART, render

from components.artifact import manifest_sha256
from components.rollout import PIN
from pipelines.port import free_port

MOUNTS = ("/mnt/models", "/store", "/key", "/audit", "/hooks")


def read_only(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        path.chmod(0o555 if path.is_dir() else 0o440)


def without_override() -> list[str]:
    """What takes root's right to write what is read-only from a command; nothing for others."""
    if os.geteuid():
        return []
    if shutil.which("setpriv") is None:
        pytest.skip("setpriv (util-linux) is not installed: root can write what is read-only")
    return ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-dac_override,-dac_read_search"]


@contextmanager
def started(args: list[str], place: Path, ports: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """One container's process: paths below the mounts lie in `place`, ports and hosts are this machine's."""
    told = [ports.get(arg, arg) for arg in args]
    for mount in MOUNTS:
        told = [arg.replace(f"={mount}", f"={place}{mount}") for arg in told]
    told = [arg.replace("0.0.0.0", "127.0.0.1") for arg in told]
    told = [f"--metrics-port={free_port()}" if arg == "--metrics-port=9464" else arg for arg in told]
    environment = {
        **os.environ,
        "PYTHONSAFEPATH": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "HOME": str(place / "tmp"),
        "TMPDIR": str(place / "tmp"),
    }
    with (place / "tmp" / f"{args[0]}.log").open("wb") as log:
        command = [*without_override(), sys.executable, "-m", "serving", *told, "--drain-wait=0"]
        process = subprocess.Popen(command, cwd=place / "nothing", env=environment, stdout=log, stderr=subprocess.STDOUT)
        try:
            yield process
        finally:
            process.terminate()
            process.wait(30)


def ready(port: str, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(600):
        assert process.poll() is None, log.read_text()
        try:
            if urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/health/ready", timeout=2).status == 200:
                return
        except OSError:
            time.sleep(0.2)
    raise AssertionError(log.read_text())


def told_figure(port: str, line: str) -> None:
    """A shadow's answer comes when the patient's is long told: its figure is waited for."""
    for _ in range(100):
        metrics = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5).read().decode()
        if line in metrics:
            return
        time.sleep(0.1)
    raise AssertionError(metrics)


@pytest.mark.slow
@pytest.mark.xdist_group("whole")
@pytest.mark.parametrize(
    "values", [{"hooks": {"enabled": True, "audience": "https://a.example", "issuers": [{"iss": "x", "jku": "https://b.example"}]}}]
)
def test_the_pods_processes_answer_helm_test_from_read_only_folders(
    whole_run: WholeRun, tmp_path: Path, values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "pod"
    for name in ("mnt", "key", "audit", "hooks", "tmp", "nothing"):
        (place / name).mkdir(parents=True)
    shutil.copytree(whole_run.folder / "bundle", place / "mnt" / "models")
    shutil.copytree(whole_run.folder / "store", place / "store")
    shutil.copy(whole_run.workspace / "pseudonym.key", place / "key" / "pseudonym.key")
    objects = render(values)
    (trusted,) = (each["data"]["ehr.yaml"] for each in objects if each["metadata"]["name"].endswith("-hooks"))
    (place / "hooks" / "ehr.yaml").write_text(trusted)
    for name in ("mnt", "store", "key", "hooks", "nothing"):
        read_only(place / name)
    (spec,) = (each["spec"] for each in objects if each["kind"] == "InferenceService")
    args = {part: spec[part]["containers"][0]["args"] for part in ("predictor", "transformer")}
    ask, model, figures = str(free_port()), str(free_port()), str(free_port())
    monkeypatch.setenv(PIN, manifest_sha256(place / "mnt" / "models"))  # as `concordant deploy` pins it
    shadow = [f"--canary=127.0.0.1:{model}", "--canary-percent=0"]  # and as it adds a shadow: here the predictor itself
    try:
        host = next(arg for arg in args["transformer"] if "-predictor." in arg)
        told = {"8080": ask, host: f"127.0.0.1:{model}", "--metrics-port=9464": f"--metrics-port={figures}"}
        with (
            started(args["predictor"], place, {"8080": model}) as predictor,
            started([*args["transformer"], *shadow], place, told) as transformer,
        ):
            ready(model, predictor, place / "tmp" / "predictor.log")
            ready(ask, transformer, place / "tmp" / "transformer.log")
            url = f"http://127.0.0.1:{ask}/v1/models/glucose_lowering:predict"
            question = [sys.executable, CHART / "files" / "ask.py", url, CHART / "files" / "synthetic-patient.json"]
            done = subprocess.run(question, capture_output=True, text=True, timeout=60)
            assert done.returncode == 0, done.stdout + done.stderr
            assert "recommended: " in done.stdout and "model " in done.stdout
            services = urllib.request.urlopen(f"http://127.0.0.1:{ask}/cds-services", timeout=5).read().decode()
            assert "glucose_lowering-patient-view" in services
            told_figure(figures, 'concordant_shadow_answers_total{result="same"} 1.0')
        assert (place / "audit" / "audit.ndjson").read_text().count("AuditEvent") == 1
        assert list((place / "nothing").iterdir()) == []
    finally:
        for path in [place, *place.rglob("*")]:
            path.chmod(0o700)
