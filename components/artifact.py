"""Folders that are whole or not there: what a step leaves behind, and the bundle. A finished step is not done twice.

A folder is written under a temporary name, synced, given a manifest with the sha256 of every file, and renamed. Where a cache folder is
set (a laptop's run sets CONCORDANT_CACHE), a step whose inputs, parameters and code are unchanged hands out the folder it made before.
"""

import hashlib
import json
import os
import select
import shutil
import signal
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from features.errors import ConcordantError

MARK = "[concordant]"  # begins a line that the command line turns into a progress line
KEY_FILE = Path("/var/run/secrets/concordant/pseudonym.key")  # where a cluster mounts the secret


class BundleError(ConcordantError):
    """A folder that must not be used: incomplete, altered, or not giving the numbers that it gave when it was made."""


def seal(folder: Path) -> str:
    """Write `manifest.json`, the sha256 of every file in a folder; returns the digest of the manifest."""
    digests = {path.relative_to(folder).as_posix(): _sha256(path) for path in _files(folder)}
    (folder / "manifest.json").write_text(json.dumps(digests, indent=1, sort_keys=True), encoding="utf-8")
    return _sha256(folder / "manifest.json")[:16]


def verify(folder: Path) -> str:
    """Check every file against the manifest; returns the digest of the manifest. Raises BundleError."""
    manifest = folder / "manifest.json"
    if not manifest.is_file():
        raise BundleError(
            f"{folder} is not a bundle: it has no manifest.json. Give a run folder or a bundle folder that `concordant run` made."
        )
    try:
        told = json.loads(manifest.read_text(encoding="utf-8"))
    except ValueError:
        told = None
    if not isinstance(told, dict):
        raise BundleError(f"{folder.name} was altered: its manifest.json can't be read. Run the pipeline again.")
    present = {path.relative_to(folder).as_posix() for path in _files(folder)}
    if present != set(told):
        raise BundleError(
            f"{folder.name} has files missing or added: {', '.join(sorted(present ^ set(told))[:3])}. Run the pipeline again."
        )
    for name, digest in told.items():
        if _sha256(folder / name) != digest:
            raise BundleError(f"{folder.name} was altered: {name} does not have the digest of its manifest. Run the pipeline again.")
    return _sha256(manifest)[:16]


def produce(
    out: str,
    step: str,
    inputs: Sequence[str],
    parameters: Mapping[str, Any],
    work: Callable[[Path], str],
    *,
    packages: tuple[str, ...] = ("features", "components"),
) -> None:
    """Make the folder `out` by `work(folder)`, which returns one line for people; or hand out what an earlier run made of the same.

    `inputs` are folders that earlier steps made; `packages` are those whose code the result depends on.
    Nothing appears at `out` before it is whole.
    """
    began = time.monotonic()
    home = os.environ.get("CONCORDANT_CACHE")
    target = _target(home, step, inputs, parameters, packages) if home else Path(out)
    if home:
        die_with_parent()
    _say(step, "started")
    reused = bool(home) and _is_whole(target)
    if not reused:
        _make(target, step, work)
    if home:
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        Path(out).unlink(missing_ok=True)
        Path(out).symlink_to(target.resolve())
    message = (target / "message.txt").read_text(encoding="utf-8")
    _say(step, "reused" if reused else "finished", seconds=round(time.monotonic() - began, 2), message=message)


def made_before(step: str, inputs: Sequence[str], parameters: Mapping[str, Any], packages: tuple[str, ...]) -> bool:
    """Whether `produce` would hand out what an earlier run made."""
    home = os.environ.get("CONCORDANT_CACHE")
    return bool(home) and _is_whole(_target(str(home), step, inputs, parameters, packages))


def perform(step: str, work: Callable[[], str]) -> str:
    """Do a part of a step's work that leaves nothing behind but at a place of its own; returns and tells its one line for people."""
    began = time.monotonic()
    if os.environ.get("CONCORDANT_CACHE"):
        die_with_parent()
    _say(step, "started")
    message = _guarded(work, step)
    _say(step, "finished", seconds=round(time.monotonic() - began, 2), message=message)
    return message


def shuffle_place(shuffle: str, run: str) -> str:
    """Where the shards of a run leave things for each other: a folder or URL that all steps reach. A laptop's run has one of its own."""
    if shuffle:
        return f"{shuffle.rstrip('/')}/{run}"
    home = os.environ.get("CONCORDANT_CACHE")
    if not home:
        raise ConcordantError("Shards need a place that all steps reach. Name a claim or a root as workspace in the cluster file.")
    shutil.rmtree(Path(home) / "shuffle", ignore_errors=True)  # of a run that was killed; a workspace is used by one at a time
    return str(Path(home) / "shuffle" / "run")


def _target(home: str, step: str, inputs: Sequence[str], parameters: Mapping[str, Any], packages: tuple[str, ...]) -> Path:
    return Path(home) / step / _key(step, inputs, {**parameters, "code": code_digest(packages)})


def pseudonym_key_path() -> Path:
    """File of the pseudonym key: CONCORDANT_KEY_FILE, or where a cluster mounts it."""
    named = os.environ.get("CONCORDANT_KEY_FILE")
    return Path(named) if named else KEY_FILE


def checkpoints() -> Path | None:
    """Where a killed training may go on from: CONCORDANT_CHECKPOINTS on a cluster, beside the finished steps on a laptop, else None."""
    named, cache = os.environ.get("CONCORDANT_CHECKPOINTS"), os.environ.get("CONCORDANT_CACHE")
    return Path(named) if named else Path(cache) / "checkpoints" if cache else None


def _make(target: Path, step: str, work: Callable[[Path], str]) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    for left in target.parent.glob(f"{target.name}.part*"):  # of a killed run; the workspace's lock says that nobody else writes here
        shutil.rmtree(left)
    if target.exists():  # not whole, or of a retried step
        shutil.rmtree(target)
    part = target.with_name(f"{target.name}.part{os.getpid()}")
    part.mkdir()
    message = _guarded(lambda: work(part), step)
    (part / "message.txt").write_text(message, encoding="utf-8")
    seal(part)
    for path in [*part.rglob("*"), part]:
        _sync(path)
    part.replace(target)
    _sync(target.parent)


def _guarded(work: Callable[[], str], step: str) -> str:
    """Do the work; a failure that is not ours is told by its place alone, because its text may quote a record."""
    try:
        return work()
    except (ConcordantError, OSError) as error:
        told = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else "a file can't be read or written"
        cause = str(error) if isinstance(error, ConcordantError) else f"{type(error).__name__}: {told}."
        _say(step, "failed", cause=cause)
        raise ConcordantError(cause) from None
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        ours = [frame for frame in frames if any(f"/{name}/" in frame.filename for name in ("features", "components"))] or frames
        cause = (
            f"{type(error).__name__} in {Path(ours[-1].filename).name}, line {ours[-1].lineno}. This is a fault of ours: please report it."
        )
        _say(step, "failed", cause=cause)
        raise ConcordantError(cause) from None


def _is_whole(folder: Path) -> bool:
    try:
        verify(folder)
    except (BundleError, ValueError):
        return False
    return True


def _key(step: str, inputs: Sequence[str], parameters: Mapping[str, Any]) -> str:
    """Digest of everything that a step's result depends on."""
    told = [step, [_sha256(Path(folder) / "manifest.json") for folder in inputs], dict(parameters)]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:24]


@cache
def code_digest(packages: tuple[str, ...]) -> str:
    """Digest of our own code and tables: a changed program makes new results."""
    whole = hashlib.sha256()
    for package in packages:
        spec = find_spec(package)
        assert spec and spec.origin
        root = Path(spec.origin).parent
        for path in sorted([*root.rglob("*.py"), *root.rglob("*.yaml")]):
            whole.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return whole.hexdigest()[:16]


def manifest_digest(folder: Path) -> str:
    """Digest of a sealed folder, as `seal` returns it; "" where it was not sealed."""
    manifest = folder / "manifest.json"
    return _sha256(manifest)[:16] if manifest.is_file() else ""


def manifest_sha256(folder: Path) -> str:
    """Digest of a sealed folder in full, as `sha256:...`: what a deployment is pinned by."""
    return f"sha256:{_sha256(folder / 'manifest.json')}"


def bundle_in(folder: Path) -> Path:
    """The bundle of a run's folder, or the folder itself where it is one."""
    return folder / "bundle" if (folder / "bundle").is_dir() else folder


def file_digest(path: str) -> str:
    """Digest of a file, "" where none is named."""
    return _sha256(Path(path)) if path else ""


def _files(folder: Path) -> list[Path]:
    own = folder / "manifest.json"
    return sorted(path for path in folder.rglob("*") if path.is_file() and path != own)


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _say(step: str, state: str, **told: Any) -> None:
    print(MARK, json.dumps({"step": step, "state": state, **told}), flush=True)  # noqa: T201  the run's log is the step's output


def die_with_parent() -> None:
    """A killed run leaves no step behind that goes on writing, and a killed `concordant serve` no endpoint.

    kfp puts a shell between run and step, so a parent-death signal would not arrive: the step watches the process of the run itself.
    """
    run = os.environ.get("CONCORDANT_RUN_PID")
    if run and hasattr(os, "pidfd_open"):
        try:
            handle = os.pidfd_open(int(run))
        except ProcessLookupError:
            os.kill(os.getpid(), signal.SIGKILL)
        threading.Thread(target=_watch, args=(handle,), daemon=True).start()


def _watch(handle: int) -> None:
    select.select([handle], [], [])  # readable when the process has ended
    os.kill(os.getpid(), signal.SIGKILL)
