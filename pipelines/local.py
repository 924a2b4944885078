"""A run on this machine: the graph by kfp's local runner, in a workspace that remembers what is finished."""

import fcntl
import json
import os
import re
import shutil
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from hashlib import sha256
from io import TextIOBase
from pathlib import Path
from typing import Any

from components.artifact import MARK, code_digest, file_digest, manifest_digest
from components.decision import load, path_of
from components.registry import Entry, Registry
from features.errors import ConcordantError
from features.source import files

STEPS = (
    "ingest",
    "select_cohort",
    "build_features",
    "fill_store",
    "train_ridge",
    "train_trees",
    "train_fusion",
    "estimate_effects",
    "evaluate",
    "publish",
)
Told = dict[str, Any]


class RunFailed(ConcordantError):
    """A step failed; the message is its cause and where the log lies."""


@dataclass(kw_only=True)
class Workspace:
    """A folder that holds the pseudonym key, the finished steps, simulated sources, mirrors of FHIR servers and the runs."""

    root: Path

    @property
    def runs(self) -> Path:
        """One folder a run."""
        return self.root / "runs"

    @property
    def exports(self) -> Path:
        """Mirrors of FHIR servers: records of patients as the servers keep them."""
        return self.root / "exports"

    @property
    def registry(self) -> Registry:
        """Every run of this workspace on record."""
        return Registry(folder=self.root / "registry")

    @property
    def key_file(self) -> Path:
        """The key of this workspace's pseudonyms."""
        return self.root / "pseudonym.key"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One run at a time. Raises ConcordantError where another is at work."""
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / "lock").open("w") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConcordantError(f"Another run is at work in {self.root}. Wait for it, or give another --workspace.") from None
            yield

    def latest(self) -> Path:
        """The newest run with a bundle. Raises ConcordantError where there is none."""
        found = sorted(self.runs.glob("*/bundle"), key=lambda path: path.stat().st_mtime)
        if not found:
            raise ConcordantError(f"There is no finished run in {self.root}. Make one with: concordant run glucose_lowering")
        return found[-1].parent

    def newest(self) -> Path:
        """The newest run with a report, published or not. Raises ConcordantError where there is none."""
        found = sorted(self.runs.glob("*/report.html"), key=lambda path: path.stat().st_mtime)
        if not found:
            raise ConcordantError(f"There is no finished run in {self.root}. Make one with: concordant run glucose_lowering")
        return found[-1].parent

    def waiting(self, run: Path) -> str:
        """Pseudonym of the first patient of a run whom the decision is about and who has not started an option."""
        import pyarrow.parquet as pq

        serving, learned = pq.read_table(run / "store" / "serving_row.parquet"), pq.read_table(run / "store" / "history.parquet")
        asked = set(learned["patient_id"].to_pylist()[: learned.num_rows - serving.num_rows])  # the training rows stand first
        rows = zip(serving["patient_id"].to_pylist(), serving["outside"].to_pylist(), strict=True)
        found = next((patient for patient, outside in rows if not outside and patient not in asked), None)
        if found is None:
            raise ConcordantError("Nobody in this run awaits a decision. Give the id of a patient.")
        return str(found)


@dataclass(kw_only=True)
class _Log(TextIOBase):
    """Takes what kfp prints, keeps it in the run's log without colours, and tells what the steps say of themselves."""

    path: Path
    listener: Callable[[Told], None]
    failure: Told | None = None
    _open: str = ""
    _file: Any = field(default=None)
    _lock: Any = field(default_factory=threading.Lock)

    def write(self, text: str) -> int:
        with self._lock:  # shards are told of by threads
            self._file = self._file or self.path.open("a", encoding="utf-8")
            self._open += text
            *whole, self._open = self._open.split("\n")
            for line in whole:
                self._take(re.sub(r"\x1b\[[0-9;]*m", "", line))
            self._file.flush()
        return len(text)

    def _take(self, line: str) -> None:
        self._file.write(line + "\n")
        for part in line.split(MARK)[1:]:  # two where the lines of two threads ran into each other
            told, _ = json.JSONDecoder().raw_decode(part.lstrip())
            self.failure = told if told["state"] == "failed" else self.failure
            self.listener(told)

    def isatty(self) -> bool:
        return False


def run(
    decision: str, source: str, truth: str, workspace: Workspace, tell: Callable[[Told], None], engine: str = "kubeflow", shards: int = 1
) -> Path:
    """Run the graph; returns the run's folder with `metrics.json`, `report.html`, `bundle/` and `store/`.

    Steps that an earlier run finished with the same inputs, parameters and code are not repeated. Raises RunFailed.
    """
    text = path_of(decision).read_text(encoding="utf-8")
    name = load(decision).name
    with workspace.locked():
        folder = workspace.runs / f"{name}-{sha256((text + source).encode()).hexdigest()[:8]}"
        shutil.rmtree(folder / "kfp", ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        log = _Log(path=folder / "log.txt", listener=tell)
        log.path.unlink(missing_ok=True)
        os.environ["CONCORDANT_CACHE"] = str((workspace.root / "cache").resolve())
        os.environ["CONCORDANT_KEY_FILE"] = str(workspace.key_file.resolve())
        os.environ["CONCORDANT_STORE"] = str((folder / "store").resolve())
        os.environ["CONCORDANT_RUN_PID"] = str(os.getpid())
        for library in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):  # the matrices are small: one thread is the same bits on any machine,
            os.environ.setdefault(library, "1")  # and threads that wait for each other on busy cores cost ten times the work
        os.environ["PYTHONSAFEPATH"] = "1"  # a stranger's `features` folder in the working directory must not shadow ours
        _execute(
            engine,
            shards,
            folder,
            log,
            {"decision": text, "source": source, "truth": truth, "registry": str(workspace.registry.folder.resolve())},
        )
        _collect(folder)
        told = {"decision": name, "source": source, "truth": truth}
        (folder / "run.json").write_text(json.dumps(told), encoding="utf-8")
        _register(workspace.registry, folder, told | {"version": load(decision).version})
    if not (folder / "bundle").is_dir():
        sentence = json.loads((folder / "gate.json").read_text(encoding="utf-8"))["sentence"]
        raise RunFailed(f"The gate says: {sentence} See {folder / 'report.html'}")
    return folder


def _execute(engine: Any, shards: int, folder: Path, log: _Log, arguments: dict[str, str]) -> None:
    try:
        with redirect_stdout(log), redirect_stderr(log):
            from kfp import local

            from pipelines.placement import Placement
            from pipelines.treatment import graph

            local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(folder / "kfp"), raise_on_error=True)
            graph(Placement(engine=engine, shards=shards))(**arguments)
    except KeyboardInterrupt:
        raise
    except Exception as error:
        log.write(traceback.format_exc())
        told = log.failure or {"step": "the graph", "cause": f"{type(error).__name__} before any step reported a cause."}
        raise RunFailed(f"Step {told['step']} failed: {told['cause']}\nThe whole log: {log.path}") from None


def _collect(folder: Path) -> None:
    """Bring what people use to the top of the run's folder. The store is a copy, because a database is opened for writing."""
    made = {path.name: path.resolve() for path in folder.glob("kfp/*/*/*") if path.is_dir()}
    for name in ("metrics.json", "report.html", "flow.json", "gate.json"):
        shutil.copyfile(made["evaluation"] / name, folder / name)
    signature = made.get("bundle", Path()) / "bundle.sig"
    (folder / "bundle.sig").unlink(missing_ok=True)
    if "bundle" in made and signature.is_file():
        shutil.copyfile(signature, folder / "bundle.sig")
    for name, source in (("store", made["store"]), ("bundle", made.get("bundle", Path()) / "bundle")):
        shutil.rmtree(folder / name, ignore_errors=True)
        if source.is_dir() and (name != "bundle" or "bundle" in made):
            draft = folder / f".{name}"
            shutil.rmtree(draft, ignore_errors=True)
            shutil.copytree(source, draft)
            draft.replace(folder / name)


def _register(registry: Registry, folder: Path, parameters: dict[str, str]) -> None:
    """Put the run on record, blocked or not, and keep what the next challenger is compared with."""
    from components.cohort import Cohort
    from components.study import answered

    made = {path.name: path.resolve() for path in folder.glob("kfp/*/*/*") if (path / "manifest.json").is_file()}
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    bundle = manifest_digest(folder / "bundle") if (folder / "bundle").is_dir() else ""
    if bundle:
        registry.keep(bundle, Cohort.read(made["cohort"]).patient_ids, answered(made["effects"], metrics["advice"]))
    entry = Entry(
        run=folder.name,
        decision=parameters["decision"],
        decision_version=parameters["version"],
        bundle=bundle,
        effects=manifest_digest(made["effects"]),
        champion=metrics.get("champion", ""),
        verdict=metrics["verdict"],
        advice=metrics["advice"],
        code=code_digest(("features", "components")),
        source=parameters["source"],
        files={Path(path).name: file_digest(path) for path in files(parameters["source"]) if Path(path).is_file()},
        steps={name: manifest_digest(path) for name, path in made.items()} | ({"bundle": bundle} if bundle else {}),
        places={name: str(path) for name, path in made.items()},
        parameters=parameters,
        metrics=metrics,
    )
    registry.record(entry)
