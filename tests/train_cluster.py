"""A cluster with Kubeflow Trainer as far as a step sees it: its API over HTTP, and nodes that are torchrun on this machine."""

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from loopback import Json, listening

from components import decision as decisions
from components.artifact import seal
from components.cohort import Cohort
from features.rows import Rows
from pipelines.port import free_port

TEXT = decisions.path_of("glucose_lowering").read_text(encoding="utf-8")
GROUP = "/apis/trainer.kubeflow.org/v1alpha1"
JOBS = f"{GROUP}/namespaces/default/trainjobs"
ROOT = Path(__file__).resolve().parents[1]


def inputs(home: Path, rows: int) -> tuple[Path, Path]:
    """What the steps before the training leave: a cohort and feature rows, sealed. Noise, but for one feature that tells the outcome."""
    asked, rng = decisions.parse(TEXT), np.random.default_rng(0)
    x_NF = rng.normal(size=(rows, len(asked.columns)))
    x_NF[rng.random(x_NF.shape) < 0.1] = np.nan
    ids, time_N = tuple(f"p{n}" for n in range(rows)), np.arange(rows)
    target_N = np.where(rng.random(rows) < 0.1, np.nan, 3 * np.nan_to_num(x_NF[:, 0]) + rng.normal(size=rows))
    option_N = rng.integers(0, len(asked.options), rows)
    cohort, features = home / "cohort", home / "features"
    cohort.mkdir(parents=True)
    features.mkdir()
    Cohort(patient_ids=ids, time_N=time_N, option_N=option_N, target_N=target_N, site_N=("",) * rows, flow=()).write(cohort)
    Rows(patient_ids=ids, time_N=time_N, x_NF=x_NF, fact_NF=np.zeros(x_NF.shape, np.int64), outside=("",) * rows).write(
        features / "training.parquet"
    )
    for folder in (cohort, features):
        seal(folder)
    return cohort, features


def nodes(job: dict[str, Any], logs: Path) -> list[subprocess.Popen[bytes]]:
    """Every node's torchrun, with the variables that Trainer's torch plug-in sets (pkg/runtime/framework/plugins/torch, 2.3)."""
    trainer, port, started = job["spec"]["trainer"], free_port(), []
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    for rank in range(trainer["numNodes"]):
        told = {"PET_NNODES": trainer["numNodes"], "PET_NPROC_PER_NODE": trainer["numProcPerNode"], "PET_NODE_RANK": rank}
        told |= {"PET_MASTER_ADDR": "127.0.0.1", "PET_MASTER_PORT": port, "OMP_NUM_THREADS": 1, "PYTHONPATH": paths}
        told |= {each["name"]: each["value"] for each in trainer["env"]}
        environment = os.environ | {name: str(value) for name, value in told.items()}
        program, *arguments = [_expanded(each, environment) for each in trainer["command"]]
        assert program == "torchrun"
        with (logs / f"node{rank}.txt").open("ab") as log:
            command = [sys.executable, "-m", "torch.distributed.run", *arguments]
            started.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
    return started


def _expanded(text: str, environment: dict[str, str]) -> str:
    # as the kubelet does
    return re.sub(r"\$\((\w+)\)", lambda found: environment[found[1]], text)


def workers(node: subprocess.Popen[bytes]) -> list[int]:
    """Process ids of a node's ranks."""
    return [int(found) for found in Path(f"/proc/{node.pid}/task/{node.pid}/children").read_text().split()]


@dataclass
class Cluster:
    """The API server: TrainJobs of one namespace. `runs` is what happens to a job that is made."""

    runs: Callable[[dict[str, Any]], None] = lambda job: None
    installed: bool = True
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    made: list[dict[str, Any]] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    broken: list[int] = field(default_factory=list)  # statuses of the next answers to a look at a job
    refused: tuple[int, str] | None = None  # of a new job

    def __enter__(self) -> "Cluster":
        outer = self

        class Handler(Json):
            do_GET = do_POST = do_DELETE = Json.answer

            def judge(self, raw: bytes) -> tuple[int, Any]:
                return outer.answer(self.command, self.path.partition("?")[0], json.loads(raw or "null"))

        self._open = ExitStack()
        self.url = self._open.enter_context(listening(Handler))
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def kubeconfig(self, path: Path) -> Path:
        """A person's way in."""
        cluster, context = {"server": self.url}, {"cluster": "c", "user": "u"}
        told = {"clusters": [{"name": "c", "cluster": cluster}], "users": [{"name": "u", "user": {}}], "current-context": "x"}
        path.write_text(json.dumps(told | {"contexts": [{"name": "x", "context": context}]}))
        return path

    def answer(self, verb: str, path: str, body: Any) -> tuple[int, Any]:
        """Status and body, as an API server has them."""
        self.asked.append(f"{verb} {path}")
        if not self.installed and path.startswith(GROUP):
            return 404, "404 page not found"
        if path == GROUP:
            resource = {"name": "trainjobs", "singularName": "trainjob", "namespaced": True, "kind": "TrainJob", "verbs": ["get"]}
            return 200, {"kind": "APIResourceList", "groupVersion": "trainer.kubeflow.org/v1alpha1", "resources": [resource]}
        name = path.removeprefix(f"{JOBS}/")
        if verb == "POST" and path == JOBS:
            return self._make(body)
        if name == path or name not in self.jobs:
            return _status(404, "NotFound", f'trainjobs.trainer.kubeflow.org "{name}" not found')
        if verb == "DELETE":
            return 200, self.jobs.pop(name)
        return _status(self.broken.pop(0), "Broken", "try again") if self.broken else (200, self.jobs[name])

    def _make(self, job: dict[str, Any]) -> tuple[int, Any]:
        if self.refused:
            return _status(self.refused[0], "Refused", self.refused[1])
        name = job["metadata"]["name"]
        if name in self.jobs:
            return _status(409, "AlreadyExists", f'trainjobs.trainer.kubeflow.org "{name}" already exists')
        self.jobs[name] = job
        self.made.append(job)
        threading.Thread(target=self.runs, args=(job,), daemon=True).start()
        return 201, job


def _status(code: int, reason: str, message: str) -> tuple[int, Any]:
    return code, {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "message": message, "code": code}


def end(job: dict[str, Any], kind: str, message: str = "") -> None:
    """Write the condition that Trainer's controller writes at a job's end."""
    told = {"type": kind, "status": "True", "reason": f"Job{kind}", "message": message, "lastTransitionTime": "2026-01-01T00:00:00Z"}
    job["status"] = {"conditions": [told], "jobsStatus": [{"name": "node", "active": 0, "succeeded": 1, "failed": 0}]}
