"""The same graph for a cluster: compiled to a file, sent to a Kubeflow Pipelines endpoint, started again by a schedule."""

import re
import tempfile
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

from features.errors import ConcordantError
from pipelines.kubeflow import Kubeflow, Order, Plan
from pipelines.local import Told
from pipelines.placement import Placement

PIPELINE = "concordant-treatment"


def compile_to(out: Path, placement: Placement = Placement()) -> None:
    """Write the graph as Kubeflow Pipelines IR with its platform settings.

    It holds no value of a patient: decision and source are arguments of a run.
    """
    from kfp import compiler

    from pipelines.treatment import graph

    if out.suffix not in (".yaml", ".yml"):
        raise ConcordantError(f"--out must end in .yaml, found {out.suffix or 'no ending'!r}.")
    out.parent.mkdir(parents=True, exist_ok=True)
    compiler.Compiler().compile(graph(placement), str(out))


def submit_to(kubeflow: Kubeflow, experiment: str, decision: str, source: str, placement: Placement) -> tuple[str, dict[str, str]]:
    """Start a run; returns its id and its steps by the names that tasks have there.

    The pipeline's version is named by the digest of the compiled graph: the same graph is uploaded once.
    """
    order = _order(decision, source, placement)
    home, version, steps = _uploaded(kubeflow, experiment, placement)
    return kubeflow.start(f"{_name(decision)} {version[1][:8]}", home, version, order), steps


def schedule_on(
    kubeflow: Kubeflow, experiment: str, name: str, decision: str, source: str, placement: Placement, plan: Plan
) -> tuple[str, str]:
    """Make a recurring run, or replace the one of that name; returns its id and what was done (made, replaced, unchanged)."""
    order = _order(decision, source, placement)
    home, version, _ = _uploaded(kubeflow, experiment, placement)
    return kubeflow.schedule(name, home, version, order, plan)


def unschedule_on(kubeflow: Kubeflow, experiment: str, name: str) -> int:
    """Delete our pipeline's recurring runs of that name; returns how many there were."""
    found = kubeflow.scheduled(name, experiment, PIPELINE)
    kubeflow.unschedule(found)
    return len(found)


def follow(kubeflow: Kubeflow, run: str, steps: dict[str, str], tell: Callable[[Told], None], every_s: float = 5.0) -> bool:
    """Follow a run to its end; whether it published. Raises RunFailed."""
    done = kubeflow.follow(run, steps, tell, every_s)
    return "publish" in done or not done  # an endpoint that names no step we know tells no more than that the run succeeded


def _order(decision: str, source: str, placement: Placement) -> Order:
    from components.decision import load, path_of

    load(decision)
    arguments = {"decision": path_of(decision).read_text(encoding="utf-8"), "source": source}
    return Order(arguments=arguments, root=placement.workspace.root, service_account=placement.service_account)


def _name(decision: str) -> str:
    from components.decision import load

    return load(decision).name


def _uploaded(kubeflow: Kubeflow, experiment: str, placement: Placement) -> tuple[str, tuple[str, str], dict[str, str]]:
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "treatment.yaml"
        compile_to(package, placement)
        text = package.read_text(encoding="utf-8")
        home = kubeflow.experiment(experiment)
        return home, kubeflow.version(PIPELINE, f"sha256-{sha256(text.encode()).hexdigest()[:16]}", package), _steps(text)


def _steps(text: str) -> dict[str, str]:
    """Our names of the steps by the names and display names of the compiled tasks."""
    import yaml

    graph: dict[str, Any] = next(yaml.safe_load_all(text))
    found: dict[str, str] = {}
    for dag in (graph["root"], *graph["components"].values()):
        for key, task in dag.get("dag", {}).get("tasks", {}).items():
            component = graph["components"][task["componentRef"]["name"]]
            if "executorLabel" in component:
                name = re.sub(r"^comp-", "", task["componentRef"]["name"]).replace("-", "_")
                found |= {key: name, task["taskInfo"]["name"]: name}
    return found
