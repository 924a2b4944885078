"""The graph: valid when compiled, without a patient's value, and the same as the one that runs here."""

import ast
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import CANARY, WholeRun

import components.steps
from pipelines.local import STEPS


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any], str]:
    """The two documents of the compiled file and its text."""
    from pipelines.cluster import compile_to

    path = tmp_path_factory.mktemp("compiled") / "treatment.yaml"
    compile_to(path)
    text = path.read_text(encoding="utf-8")
    graph, platform = yaml.safe_load_all(text)
    return graph, platform, text


def _tasks(graph: dict[str, Any]) -> dict[str, set[str]]:
    """Every executed task and the tasks it waits for, the gated branch included."""
    components = graph["components"]
    found = {}
    for dag in [graph["root"], *components.values()]:
        for name, task in dag.get("dag", {}).get("tasks", {}).items():
            if not name.startswith("condition"):
                found[name.replace("-", "_")] = {before.replace("-", "_") for before in task.get("dependentTasks", [])}
    return found


def test_the_compiled_graph_is_read_by_kfps_own_loader(compiled: tuple[Any, Any, str], tmp_path: Path) -> None:
    from kfp.components import load_component_from_text

    loaded = load_component_from_text(compiled[2])
    assert loaded.pipeline_spec.pipeline_info.name == "concordant-treatment"
    assert set(loaded.component_spec.inputs) == {"decision", "source", "truth", "registry"}


@pytest.mark.slow
@pytest.mark.xdist_group("whole")
def test_the_compiled_graph_is_the_one_that_runs_here(compiled: tuple[Any, Any, str], whole_run: WholeRun) -> None:
    executed = {path.parent.name.replace("-", "_") for path in whole_run.folder.glob("kfp/*/*/*")}
    tasks = set(_tasks(compiled[0]))
    assert tasks == set(STEPS) | {"gate"}
    assert set(STEPS) <= executed  # the gated branch ran: publish is among them


def test_every_step_waits_for_what_it_reads(compiled: tuple[Any, Any, str]) -> None:
    tasks = _tasks(compiled[0])
    assert tasks["select_cohort"] == {"ingest"}
    assert tasks["build_features"] == {"ingest", "select_cohort"}
    assert {"train_ridge", "train_trees", "train_fusion"} <= tasks["estimate_effects"]


def test_publication_stands_behind_the_gate(compiled: tuple[Any, Any, str]) -> None:
    graph = compiled[0]
    (condition,) = [task for name, task in graph["root"]["dag"]["tasks"].items() if name.startswith("condition")]
    assert "'pass'" in condition["triggerPolicy"]["condition"]
    assert "publish" not in graph["root"]["dag"]["tasks"]


@pytest.mark.slow
@pytest.mark.xdist_group("whole")
def test_the_compiled_graph_holds_no_value_of_a_patient(compiled: tuple[Any, Any, str], whole_run: WholeRun) -> None:
    text = compiled[2]
    assert CANARY not in text and str(whole_run.source) not in text
    assert "defaultValue: ''" in text or 'defaultValue: ""' in text  # truth and registry, the only defaults


def test_steps_read_the_pseudonym_key_from_a_mounted_secret(compiled: tuple[Any, Any, str]) -> None:
    executors = compiled[1]["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    mounted = {name for name, executor in executors.items() if executor.get("secretAsVolume")}
    assert mounted == {"exec-ingest", "exec-evaluate"}


def test_a_steps_body_stays_thin() -> None:
    for path in Path(components.steps.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.decorator_list:
                lines = node.body[-1].end_lineno - node.body[0].lineno + 1  # type: ignore[operator]
                assert lines <= 20, f"{path.name}: {lines} lines"


# Shards -----------------------------------------------------------------------------------------------------------------------------


def test_the_sharded_graph_reads_builds_and_counts_once_a_shard(tmp_path: Path) -> None:
    from pipelines.cluster import compile_to
    from pipelines.placement import BETWEEN, SHARDED, Placement

    path = tmp_path / "sharded.yaml"
    compile_to(path, Placement(shards=5))
    graph, platform = yaml.safe_load_all(path.read_text(encoding="utf-8"))
    tasks = _tasks(graph)
    assert set(SHARDED) <= set(tasks) and not {"ingest", "select_cohort", "build_features"} & set(tasks)
    loops = [task for task in graph["root"]["dag"]["tasks"].values() if "parameterIterator" in task]
    assert [yaml.safe_load(loop["parameterIterator"]["items"]["raw"]) for loop in loops] == [[0, 1, 2, 3, 4]] * 3
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    keyed = {name.removeprefix("exec-").replace("-", "_") for name, executor in executors.items() if executor.get("secretAsVolume")}
    assert keyed == {*BETWEEN, "evaluate"} - {"clear_shards"}
    assert tasks["clear_shards"] == {"join_shards", "settle_shards"}  # until its result is safe, a join may be done again


@pytest.mark.parametrize("engine", ["processes", "ray"])
def test_another_engine_runs_the_shards_inside_ingest(tmp_path: Path, engine: Any) -> None:
    from pipelines.cluster import compile_to
    from pipelines.placement import Placement, Workspace

    path = tmp_path / "engine.yaml"
    compile_to(path, Placement(shards=5, engine=engine, workspace=Workspace(root="s3://bucket/runs")))
    graph, _ = yaml.safe_load_all(path.read_text(encoding="utf-8"))
    told = graph["root"]["dag"]["tasks"]["ingest"]["inputs"]["parameters"]
    told = {name: value["runtimeValue"]["constant"] for name, value in told.items() if "runtimeValue" in value}
    place = {"shuffle": "s3://bucket/runs/shuffle/{{$.pipeline_job_uuid}}"} if engine == "ray" else {}
    assert told == {"engine": engine, "shards": 5.0, **place}


FRONT = """
import sys
from kfp import dsl, local
from components.decision import path_of
from pipelines import treatment
from pipelines.placement import Placement

@dsl.pipeline(name="front")
def front(decision: str, source: str):
    treatment._sharded(Placement(shards=2), decision, source)

local.init(local.SubprocessRunner(use_venv=False), pipeline_root=sys.argv[1], raise_on_error=True)
front(decision=path_of("glucose_lowering").read_text(encoding="utf-8"), source=sys.argv[2])
"""  # in a process of its own: the runner's loops leave the parent's print changed


@pytest.mark.slow
def test_the_shards_of_the_graph_make_the_same_bytes(small_export: Path, tmp_path: Path) -> None:
    """The real runner and its loops, on the graph's own front part, against one process."""
    from components.cohort import select
    from components.decision import load
    from components.study import build
    from features import events

    settings = {"CONCORDANT_CACHE": str(tmp_path / "cache"), "CONCORDANT_KEY_FILE": str(tmp_path / "key"), "PYTHONSAFEPATH": "1"}
    command = [sys.executable, "-c", FRONT, str(tmp_path / "kfp"), str(small_export)]
    done = subprocess.run(command, env={**os.environ, **settings}, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    made = {path.name: path for path in tmp_path.glob("kfp/*/*/*")}
    assert len(list(tmp_path.glob("kfp/*/*/build-features-shard/piece"))) == 2  # the loops ran
    one, decision = tmp_path / "one", load("glucose_lowering")
    for name in ("events", "cohort", "features"):
        (one / name).mkdir(parents=True)
    events.ingest(str(small_export), one / "events", events.PseudonymKey.at(tmp_path / "key"))
    table = events.read(one / "events")
    cohort = select(table, decision)
    cohort.write(one / "cohort")
    build(decision, table, cohort, one / "features")
    for name in ("events", "cohort", "features"):
        for path in (one / name).iterdir():
            assert path.read_bytes() == (made[name] / path.name).read_bytes(), path.name
    assert not list((tmp_path / "cache" / "shuffle").glob("*"))  # nothing of the way between is left
