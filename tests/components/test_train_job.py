"""TrainJobs: the object is what the cluster's definitions accept, and the step follows it to its end over real HTTP."""

import copy
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cluster_schemas
import pytest
from train_cluster import JOBS, TEXT, Cluster, end, inputs

from components import train_job
from components.artifact import BundleError, seal
from components.train_job import Jobs, Launch, TrainJobError, manifest
from features.errors import ConcordantError

ROOT = Path(__file__).resolve().parents[2]
GPU = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
TOLD = {"image": "registry.example/concordant-cuda:1", "claim": "workspace", "mount": "/workspace"}
LAUNCHES = {
    "least": TOLD,
    "two nodes with GPUs": TOLD | {"nodes": 2, "gpus_per_node": 4, "resources": {"cpu": "8", "memory": "64Gi"}, "timeout_seconds": 3600},
    "everything": TOLD
    | {"nodes": 3, "gpus_per_node": 1, "service_account": "0", "node_selector": {"pool": "true"}, "tolerations": [GPU], "restarts": 0},
}


def job(launch: dict[str, Any], folder: str = "/workspace/train/abc") -> dict[str, Any]:
    return manifest(Launch.parse(json.dumps(launch)), "concordant-fusion-abc", Path(folder))


@pytest.mark.shared_data
@pytest.mark.parametrize("named", LAUNCHES)
def test_the_object_is_what_the_cluster_defines(shared_data: Path, monkeypatch: pytest.MonkeyPatch, named: str) -> None:
    """Trainer 2.3's definition, unknown fields refused, rules between fields included."""
    monkeypatch.setenv("KFP_POD_NAME", "run-abc")
    monkeypatch.setenv("KFP_POD_UID", "4b8a")
    assert cluster_schemas.faults(job(LAUNCHES[named]), cluster_schemas.read(shared_data / "crds")) == []


def _pod(found: dict[str, Any]) -> dict[str, Any]:
    patch = found["spec"]["runtimePatches"][0]["trainingRuntimeSpec"]["template"]["spec"]
    return patch["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]


FAULTS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "numNode": lambda found: found["spec"]["trainer"].update(numNode=2),
    "runtimeRef": lambda found: found["spec"].pop("runtimeRef"),
    "podTemplateOverrides": lambda found: found["spec"].update(podTemplateOverrides=[]),
    "manager": lambda found: found["spec"]["runtimePatches"][0].pop("manager"),
    "volumeMount": lambda found: _pod(found)["containers"][0].update(volumeMount=[]),
    "claim": lambda found: _pod(found)["volumes"][0]["persistentVolumeClaim"].update(claim="x"),
    "ownerReference": lambda found: found["metadata"].update(ownerReference=[]),
    "RFC 1035": lambda found: found["metadata"].update(name="0-begins-with-a-digit"),
    "no more than 63": lambda found: found["metadata"].update(name="a" * 64),
    "ManagedBy must be": lambda found: found["spec"].update(managedBy="somebody"),
}


@pytest.mark.shared_data
@pytest.mark.parametrize("planted", FAULTS)
def test_a_planted_fault_is_found(shared_data: Path, planted: str) -> None:
    """Fields that do not exist, fields that are missing, and the rules in CEL."""
    found = copy.deepcopy(job(LAUNCHES["everything"]))
    FAULTS[planted](found)
    told = cluster_schemas.faults(found, cluster_schemas.read(shared_data / "crds"))
    assert any(planted in fault for fault in told), told


def test_nodes_processes_and_devices_are_those_of_the_launch() -> None:
    found = job(LAUNCHES["two nodes with GPUs"])
    trainer, pod = found["spec"]["trainer"], _pod(found)
    assert (trainer["numNodes"], trainer["numProcPerNode"]) == (2, 4)
    assert trainer["resourcesPerNode"]["limits"] == {"cpu": "8", "memory": "64Gi", "nvidia.com/gpu": "4"}
    assert trainer["command"][0] == "torchrun" and trainer["command"][-3:] == ["-m", "components.distributed", "/workspace/train/abc"]
    assert found["spec"]["runtimeRef"]["name"] == "torch-distributed" and found["spec"]["activeDeadlineSeconds"] == 3600
    assert {"name": "workspace", "mountPath": "/workspace"} in pod["containers"][0]["volumeMounts"]
    assert pod["securityContext"]["runAsNonRoot"] and pod["containers"][0]["securityContext"]["capabilities"] == {"drop": ["ALL"]}


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"claim": ""}, "claim"),
        ({"image": ""}, "image"),
        ({"nodes": 0}, "nodes"),
        ({"mount": "workspace"}, "mount"),
        ({"node": 2}, "node: Extra"),
    ],
)
def test_a_launch_that_is_wrong_is_told_by_its_key(wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(TrainJobError, match=f"launch: {told}"):
        Launch.parse(json.dumps(TOLD | wrong))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Cluster, Callable[..., str]]]:
    """A cluster, and the step's work on it: what it leaves lies in `out`."""
    monkeypatch.setattr(train_job, "EVERY_S", 0.01)
    cohort, features = inputs(tmp_path, 60)
    with Cluster() as cluster:

        def work(**changed: Any) -> str:
            monkeypatch.setattr(Jobs, "of_this_cluster", lambda: Jobs(_client(cluster), every_s=0.01))
            out = tmp_path / "out"
            shutil.rmtree(out, ignore_errors=True)
            out.mkdir()
            launch = json.dumps(TOLD | {"mount": str(tmp_path / "workspace")} | changed)
            return train_job.run(launch, TEXT, cohort, features, out, lambda folder: "trained here")

        yield cluster, work


def _client(cluster: Cluster) -> Any:
    from kubernetes import client

    return client.ApiClient(client.Configuration(host=cluster.url))


def folder_of(made: dict[str, Any]) -> Path:
    """Of the order, from the job's command."""
    return Path(made["spec"]["trainer"]["command"][-1])


def trains(made: dict[str, Any]) -> None:
    """What the nodes leave, without training: these tests are about the following."""
    model = folder_of(made) / "model"
    assert (folder_of(made) / "inputs" / "features" / "training.parquet").is_file()
    model.mkdir()
    (model / "fusion.json").write_text("{}")
    (model / "message.txt").write_text("60 rows")
    seal(model)
    end(made, "Complete")


def test_the_artifact_of_a_finished_job_is_fetched_and_the_rows_are_forgotten(
    place: tuple[Cluster, Callable[..., str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster, work = place
    cluster.runs = trains
    assert work(nodes=2) == "60 rows, by a TrainJob: nodes 2, GPUs a node 0"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["fusion.json"]
    assert not (folder_of(cluster.made[0]) / "inputs").exists()
    assert cluster.jobs == {}  # cleared away
    assert {asked.split()[0] for asked in cluster.asked if JOBS in asked} == {"POST", "GET", "DELETE"}  # the chart's Role: no more
    assert "Complete" in capsys.readouterr().out
    assert work(nodes=2).startswith("60 rows") and len(cluster.made) == 1  # a step that is tried again finds the model


def test_where_trainer_is_not_installed_the_step_trains_and_says_so(
    place: tuple[Cluster, Callable[..., str]], capsys: pytest.CaptureFixture[str]
) -> None:
    cluster, work = place
    cluster.installed = False
    assert work() == "trained here"
    assert "not installed" in capsys.readouterr().out
    assert not any(JOBS in asked for asked in cluster.asked)


def test_a_failed_job_fails_the_step_with_its_cause_and_a_second_try_goes_on_in_the_same_folder(
    place: tuple[Cluster, Callable[..., str]],
) -> None:
    cluster, work = place
    cluster.runs = lambda made: end(made, "Failed", "jobset failed due to one or more job failures")
    with pytest.raises(TrainJobError, match=r"JobFailed: jobset failed .*checkpoints are kept"):
        work()
    (name,) = cluster.jobs  # stays, to be looked at
    cluster.runs = trains
    assert work().startswith("60 rows")
    assert [made["metadata"]["name"] for made in cluster.made] == [name, name]
    assert folder_of(cluster.made[0]) == folder_of(cluster.made[1])


def found_no_gpus(made: dict[str, Any]) -> None:
    """The first node says why it can't begin, and the job fails."""
    (folder_of(made) / "failed.txt").write_text("2 GPUs a node were asked for, found 0.")
    end(made, "Failed")


def test_what_the_nodes_tell_is_the_cause(place: tuple[Cluster, Callable[..., str]]) -> None:
    cluster, work = place

    cluster.runs = found_no_gpus
    with pytest.raises(ConcordantError, match="2 GPUs a node were asked for"):
        work()


def test_what_an_earlier_jobs_nodes_told_is_not_the_cause_of_a_later_failure(place: tuple[Cluster, Callable[..., str]]) -> None:
    cluster, work = place

    cluster.runs = found_no_gpus
    with pytest.raises(ConcordantError, match="2 GPUs a node"):
        work()
    cluster.runs = lambda made: end(made, "Failed", "the image can't be pulled")  # its nodes never began
    with pytest.raises(ConcordantError, match="the image can't be pulled") as told:
        work()
    assert "GPUs" not in str(told.value)


def test_two_pods_of_one_order_write_it_side_by_side_and_no_part_stays(
    place: tuple[Cluster, Callable[..., str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their pids are usually equal: here they are, and the second writes the whole order while the first copies."""
    cluster, work = place
    cluster.runs = trains
    cohort, features = tmp_path / "cohort", tmp_path / "features"
    copytree, first = shutil.copytree, iter([True])

    def slowly(source: Path, target: Path, **given: Any) -> Any:
        done = copytree(source, target, **given)
        if next(first, False):
            train_job._write_order(target.parent.parent / "inputs", {"by": "the second"}, cohort, features)
        return done

    monkeypatch.setattr(shutil, "copytree", slowly)
    killed = []

    def trains_beside_a_killed_step(made: dict[str, Any]) -> None:
        assert json.loads((folder_of(made) / "inputs" / "order.json").read_text()) == {"by": "the second"}
        assert [path.name for path in folder_of(made).iterdir()] == ["inputs"]
        killed.append(copytree(cohort, folder_of(made) / "inputs.partdead"))
        trains(made)

    cluster.runs = trains_beside_a_killed_step
    assert work().startswith("60 rows")
    assert killed and not killed[0].exists() and not (killed[0].parent / "inputs").exists()


def test_a_running_job_of_the_same_order_is_taken_up(place: tuple[Cluster, Callable[..., str]], capsys: pytest.CaptureFixture[str]) -> None:
    """A step whose pod was moved while the job ran."""
    cluster, work = place
    cluster.runs = lambda made: end(made, "Failed")
    with pytest.raises(TrainJobError):
        work()
    (made,) = cluster.jobs.values()
    made["status"] = {"conditions": []}  # it runs again
    answer, looks = cluster.answer, iter(range(3))

    def later(verb: str, path: str, body: Any) -> tuple[int, Any]:
        if verb == "GET" and path.startswith(JOBS) and next(looks, None) == 2:
            trains(made)
        return answer(verb, path, body)

    cluster.answer = later  # type: ignore[method-assign]
    assert work().startswith("60 rows")
    assert len(cluster.made) == 1 and "taken up" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("status", "message", "told"),
    [
        (403, 'User "pipeline" cannot create resource "trainjobs"', r"cannot create resource .*needs create, get and delete"),
        (422, 'ClusterTrainingRuntime "torch-distributed" not found', r"\(422\): ClusterTrainingRuntime .* not found"),
    ],
)
def test_a_refused_job_is_told_in_the_servers_words(
    place: tuple[Cluster, Callable[..., str]], status: int, message: str, told: str
) -> None:
    cluster, work = place
    cluster.refused = (status, message)
    with pytest.raises(TrainJobError, match=told):
        work()


def test_a_job_that_somebody_deletes_ends_the_step(place: tuple[Cluster, Callable[..., str]]) -> None:
    cluster, work = place
    cluster.runs = lambda made: cluster.jobs.clear()
    with pytest.raises(TrainJobError, match="can't be followed any more: the API server answered 404"):
        work()


def test_an_api_server_that_is_away_for_a_while_is_waited_for(place: tuple[Cluster, Callable[..., str]]) -> None:
    cluster, work = place
    cluster.runs, cluster.broken = trains, [503, 500, 429]
    assert work().startswith("60 rows") and cluster.broken == []


def test_a_model_that_was_altered_or_is_missing_is_not_taken(place: tuple[Cluster, Callable[..., str]]) -> None:
    cluster, work = place

    def altered(made: dict[str, Any]) -> None:
        trains(made)
        (folder_of(made) / "model" / "fusion.json").write_text("{ }")

    cluster.runs = altered
    with pytest.raises(BundleError, match="altered"):
        work()
    cluster.runs = lambda made: end(made, "Complete")
    with pytest.raises(TrainJobError, match="without a model"):
        work(nodes=3)


STEP = """
import sys
from kfp import dsl
from components.steps.train_fusion import train_fusion
decision, cohort, features, model, launch = sys.argv[1:]
train_fusion.python_func(decision, dsl.Dataset(uri=cohort), dsl.Dataset(uri=features), dsl.Model(uri=model), launch)
"""


def test_the_step_itself_asks_the_cluster_of_its_kubeconfig(tmp_path: Path) -> None:
    """What Kubeflow runs, in a process of its own: client, step and artifact; the nodes' work is prepared."""
    cohort, features = inputs(tmp_path, 60)
    with Cluster(runs=trains) as cluster:
        environment = os.environ | {"KUBECONFIG": str(cluster.kubeconfig(tmp_path / "config")), "PYTHONPATH": str(ROOT)}
        launch = json.dumps(TOLD | {"mount": str(tmp_path / "workspace")})
        command = [sys.executable, "-c", STEP, TEXT, str(cohort), str(features), str(tmp_path / "model"), launch]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "TrainJob concordant-fusion-" in done.stdout and '"state": "finished"' in done.stdout
    assert {path.name for path in (tmp_path / "model").iterdir()} == {"fusion.json", "manifest.json", "message.txt"}


def test_without_access_to_a_cluster_the_step_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "absent"))
    with pytest.raises(TrainJobError, match="no access to a cluster"):
        train_job.run(json.dumps(TOLD), TEXT, tmp_path, tmp_path, tmp_path, str)
