"""Cluster files: what they say stands field by field in the compiled graph, and what can't be followed is refused in words."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import concordant

from components import train_job
from pipelines import placement
from pipelines.cluster import compile_to

Compiled = dict[str, Any]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Compiled, Compiled, str]]:
    """Graph, platform and text of every shipped cluster file."""
    found = {}
    for name in placement.shipped():
        path = tmp_path_factory.mktemp("compiled") / f"{name}.yaml"
        compile_to(path, placement.read(name))
        text = path.read_text(encoding="utf-8")
        graph, platform = yaml.safe_load_all(text)
        assert set(platform["platforms"]) == {"kubernetes"}
        found[name] = (graph, platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"], text)
    return found


def _container(graph: Compiled, step: str) -> Compiled:
    whole = graph["deploymentSpec"]["executors"][f"exec-{step}"]["container"]
    return {name: value for name, value in whole.items() if name not in ("command", "args")}


def _tasks(graph: Compiled) -> dict[str, Compiled]:
    dags = [graph["root"], *graph["components"].values()]
    found = {name: task for dag in dags for name, task in dag.get("dag", {}).get("tasks", {}).items()}
    return {name: task for name, task in found.items() if "dag" not in graph["components"][task["componentRef"]["name"]]}


def _claim(name: str) -> list[Compiled]:
    return [{"constant": name, "mountPath": "/workspace", "pvcNameParameter": {"runtimeValue": {"constant": name}}}]


def _secret(name: str, path: str) -> Compiled:
    told = {"secretName": name, "secretNameParameter": {"runtimeValue": {"constant": name}}}
    return {**told, "mountPath": path, "optional": False}


KEY = _secret("concordant-pseudonym-key", "/var/run/secrets/concordant")
STORE = _secret("concordant-object-store", "/var/run/secrets/object-store")
POOL = {
    "nodeSelector": {"labels": {"concordant/pool": "batch"}},
    "tolerations": [{"key": "concordant/preemptible", "operator": "Equal", "value": "true", "effect": "NoSchedule"}],
}
WORKSPACE = {"pvcMount": _claim("concordant-workspace")}
PLATFORM: dict[str, dict[str, Compiled]] = {  # every field, and no other
    "cpu": {
        "ingest": {"activeDeadlineSeconds": "28800", "secretAsVolume": [KEY]},
        "train-fusion": {"activeDeadlineSeconds": "14400"},
        "gate": {"activeDeadlineSeconds": "7200"},
    },
    "gpu": {
        "ingest": {"activeDeadlineSeconds": "28800", "secretAsVolume": [KEY, STORE], **WORKSPACE},
        "train-fusion": {
            "activeDeadlineSeconds": "14400",
            "nodeSelector": {"labels": {"nvidia.com/gpu.present": "true"}},
            "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
            "emptyDirMounts": [{"volumeName": "shm", "mountPath": "/dev/shm", "medium": "Memory", "sizeLimit": "8Gi"}],
            **WORKSPACE,
        },
        "gate": {"activeDeadlineSeconds": "7200", **WORKSPACE},
    },
    "multi_node": {
        "ingest": {"activeDeadlineSeconds": "28800", "secretAsVolume": [KEY], **WORKSPACE},
        "train-fusion": {"activeDeadlineSeconds": "43200", **WORKSPACE},
        "gate": {"activeDeadlineSeconds": "7200", **WORKSPACE},
    },
    "sharded": {
        "read-shard": {"activeDeadlineSeconds": "28800", "secretAsVolume": [KEY, STORE], **WORKSPACE, **POOL},
        "clear-shards": {"activeDeadlineSeconds": "28800", "secretAsVolume": [STORE], **WORKSPACE, **POOL},
        "build-features-shard": {"activeDeadlineSeconds": "28800", **WORKSPACE, **POOL},
        "evaluate": {"activeDeadlineSeconds": "28800", "secretAsVolume": [KEY, STORE], **WORKSPACE, **POOL},
        "fill-store": {
            "activeDeadlineSeconds": "28800",
            "secretAsEnv": [
                {
                    "secretName": "concordant-online-store",
                    "secretNameParameter": {"runtimeValue": {"constant": "concordant-online-store"}},
                    "keyToEnv": [{"secretKey": "url", "envVar": "CONCORDANT_ONLINE_STORE"}],
                    "optional": False,
                }
            ],
            **WORKSPACE,
            **POOL,
        },
        "train-fusion": {"activeDeadlineSeconds": "28800", **WORKSPACE, **POOL},
    },
}
RESOURCES = {  # cpu request, cpu limit, memory request, memory limit, devices
    "cpu": ("2", "4", "4Gi", "8Gi", 0),
    "gpu": ("4", "8", "16Gi", "32Gi", 1),
    "multi_node": ("100m", "1", "1Gi", "4Gi", 0),
    "sharded": ("4", "8", "16Gi", "64Gi", 0),
}


@pytest.mark.parametrize("name", PLATFORM)
def test_kfps_own_loader_reads_every_shipped_cluster_file_compiled(name: str, compiled: dict[str, Any]) -> None:
    from kfp.components import load_component_from_text

    loaded = load_component_from_text(compiled[name][2])
    assert set(loaded.component_spec.inputs) == {"decision", "source", "truth", "registry"}
    assert loaded.platform_spec.platforms["kubernetes"].deployment_spec.executors


@pytest.mark.parametrize("name", PLATFORM)
def test_the_platform_settings_are_those_of_the_file_field_by_field(name: str, compiled: dict[str, Any]) -> None:
    executors = compiled[name][1]
    for step, told in PLATFORM[name].items():
        assert executors[f"exec-{step}"] == told, step


@pytest.mark.parametrize("name", PLATFORM)
def test_resources_image_and_environment_are_those_of_the_file(name: str, compiled: dict[str, Any]) -> None:
    found = _container(compiled[name][0], "train-fusion")
    (cpu, most_cpu, memory, most_memory, devices), told = RESOURCES[name], found["resources"]
    assert (told["resourceCpuRequest"], told["resourceCpuLimit"]) == (cpu, most_cpu)
    assert (told["resourceMemoryRequest"], told["resourceMemoryLimit"]) == (memory, most_memory)
    device = {"count": "1", "resourceCount": "1", "type": "nvidia.com/gpu", "resourceType": "nvidia.com/gpu"}
    assert told.get("accelerator") == (device if devices else None)
    assert found["image"] == f"ghcr.io/concordant/concordant-python{'-cuda' if devices else ''}:0.1.0"
    kept = [{"name": "CONCORDANT_CHECKPOINTS", "value": "/workspace/checkpoints"}]
    assert found.get("env", []) == (kept if name != "cpu" else [])


def test_the_object_stores_credentials_are_a_file_and_their_place_is_told(compiled: dict[str, Any]) -> None:
    told = {each["name"]: each["value"] for each in _container(compiled["gpu"][0], "ingest")["env"]}
    place = "/var/run/secrets/object-store/credentials"
    assert told == {"AWS_SHARED_CREDENTIALS_FILE": place, "AWS_ENDPOINT_URL": "http://minio-service.kubeflow:9000"}


@pytest.mark.parametrize("name", PLATFORM)
def test_every_step_has_a_time_out_retries_and_limits_and_is_not_cached(name: str, compiled: dict[str, Any]) -> None:
    graph, executors, _ = compiled[name]
    wait = "60s" if name == "sharded" else "30s"
    for task in _tasks(graph).values():
        step = graph["components"][task["componentRef"]["name"]]["executorLabel"]
        assert int(executors[step]["activeDeadlineSeconds"]) >= 7200
        assert task["retryPolicy"]["maxRetryCount"] >= 2 and task["retryPolicy"]["backoffDuration"] == wait
        assert {"resourceCpuLimit", "resourceMemoryLimit"} <= set(graph["deploymentSpec"]["executors"][step]["container"]["resources"])
        assert task["cachingOptions"] == {}


def test_artifacts_go_where_the_workspace_says(compiled: dict[str, Any]) -> None:
    assert compiled["multi_node"][0]["defaultPipelineRoot"] == "s3://concordant/pipelines"
    assert "defaultPipelineRoot" not in compiled["cpu"][0]


def test_only_steps_whose_inputs_tell_everything_are_cached(tmp_path: Path) -> None:
    pinned = "default: {cache: true, image: 'registry.example/concordant-python@sha256:" + "0" * 64 + "'}"
    compile_to(tmp_path / "cached.yaml", placement.parse(pinned))
    graph, _ = yaml.safe_load_all((tmp_path / "cached.yaml").read_text("utf-8"))
    kept = {name for name, task in _tasks(graph).items() if task["cachingOptions"].get("enableCache")}
    assert "train-fusion" in kept and not kept & {"ingest", "fill-store", "evaluate"}


DEPLOY = "{deploy: {name: site, namespace: care}, service_account: a, default: {retries: {count: 3}}, workspace: {root: 's3://b/p'}}"


def test_deploy_stands_behind_the_gate_after_publish_and_is_not_tried_again(tmp_path: Path) -> None:
    compile_to(tmp_path / "deploy.yaml", placement.parse(DEPLOY))
    graph, _ = yaml.safe_load_all((tmp_path / "deploy.yaml").read_text("utf-8"))
    tasks = _tasks(graph)
    assert "deploy" not in graph["root"]["dag"]["tasks"] and tasks["deploy"]["dependentTasks"] == ["publish"]
    assert "retryPolicy" not in tasks["deploy"] and "retryPolicy" in tasks["publish"]
    given = {name: each.get("runtimeValue", {}).get("constant") for name, each in tasks["deploy"]["inputs"]["parameters"].items()}
    assert given == {"name": "site", "namespace": "care", "traffic": 10.0, "watch_s": 900.0, "prometheus": ""}


def test_the_signing_key_is_mounted_where_the_bundle_is_published_and_nowhere_else(tmp_path: Path) -> None:
    compile_to(tmp_path / "signed.yaml", placement.parse("secrets: {signing_key: publisher}"))
    _, platform = yaml.safe_load_all((tmp_path / "signed.yaml").read_text("utf-8"))
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    mounted = {name for name, told in executors.items() for each in told.get("secretAsVolume", ()) if each["secretName"] == "publisher"}
    assert mounted == {"exec-publish"}
    assert executors["exec-publish"]["secretAsVolume"] == [_secret("publisher", "/var/run/secrets/concordant-signing")]


def test_a_step_takes_the_default_where_it_says_nothing() -> None:
    found = placement.parse("{default: {timeout_s: 60, limits: {cpu: '2'}}, steps: {gate: {timeout_s: 5}}}").step("gate")
    assert found.timeout_s == 5 and found.limits == placement.Amount(cpu="2")


def test_training_on_many_nodes_is_told_to_the_step_as_json() -> None:
    import json

    told = json.loads(placement.read("multi_node").launch)
    assert told == {
        "nodes": 2,
        "gpus_per_node": 2,
        "runtime": "torch-distributed",
        "image": "ghcr.io/concordant/concordant-python-cuda:0.1.0",
        "resources": {"cpu": "8", "memory": "64Gi"},
        "precision": "bf16-mixed",
        "node_selector": {},
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
        "timeout_seconds": 43200,
        "claim": "concordant-workspace",
        "mount": "/workspace",
    }
    assert placement.read("cpu").launch == ""
    launch = train_job.Launch.parse(json.dumps(told))  # what the step reads it as
    pod = str(train_job.manifest(launch, "a", Path("/workspace/train/a")))
    assert launch.nodes == 2 and launch.claim == "concordant-workspace" and str(told["tolerations"]) in pod


MISTAKES = {
    "defualt: {}": "defualt: there is no such key",
    "default: {requests: {cpus: '1'}}": "default.requests.cpus: there is no such key",
    "default: {requests: {cpu: '2x'}}": "default.requests.cpu: found '2x', which is not of the form '500m' or '2'",
    "default: {requests: {memory: 4gb}}": "found '4gb', which is not of the form '4Gi' or '500M'",
    "default: {requests: {memory: 2Gi}, limits: {memory: 900Mi}}": "default: requests memory 2Gi, more than its limit 900Mi",
    "{default: {limits: {cpu: '1'}}, steps: {gate: {requests: {cpu: 1500m}}}}": "gate: requests cpu 1500m, more than its limit 1",
    "steps: {ingets: {}}": "steps.ingets: there is no such step. Steps: ingest",
    "default: {cache: true}": "default: cache is true, but its image '' has no digest",
    "steps: {ingest: {cache: true}}": "ingest: cache is true, but the records at a source change",
    "default: {timeout_s: 1.5}": "default.timeout_s: found 1.5",
    "default: {retries: {count: 99}}": "default.retries.count: found 99",
    "default: {tolerations: [{key: a, operator: Exists, value: b}]}": "operator Exists has the value 'b'",
    "default: {tolerations: [{effect: NoSchedule}]}": "without key needs operator Exists",
    "secrets: {pseudonym_key: Key_1}": "secrets.pseudonym_key: found 'Key_1', which is not of the form of a Kubernetes name",
    "secrets: {object_store: {}}": "secrets.object_store.secret",
    "workspace: {root: folder}": "workspace.root: found 'folder', which is not of the form 's3://bucket/prefix'",
    "shards: 0": "shards: found 0",
    "{training: {}, service_account: a}": "there is no workspace.claim that the step and its nodes share",
    "{training: {}, service_account: a, workspace: {claim: a}}": "no image is named for its nodes",
    "training: {precision: bf16}": "training.precision: found 'bf16'",
    "shards: 4": "there is no place that all of them reach",
    "{shards: 4, engine: ray}": "there is no place that all of them reach",
    "{shards: 4, engine: spark, workspace: {claim: a}}": "engine: found 'spark'",
    "{shards: 4, workspace: {claim: a}, steps: {ingest: {timeout_s: 5}}}": "steps.ingest: with shards 4 by kubeflow there is no such step",
    "steps: {read_shard: {timeout_s: 5}}": "In its place: ingest, select_cohort, build_features.",
    "training: {}": "Name a service_account",
    "{training: {}, service_account: a, steps: {train_fusion: {accelerator: {}}}}": "the step only waits",
    "deploy: {name: a, namespace: b}": "deploy: KServe fetches the bundle from s3:// or gs://, but workspace.root is ''",
    "{deploy: {name: a, namespace: b}, workspace: {root: 's3://b'}}": "deploy changes an InferenceService, which needs rights",
    DEPLOY.replace("default: {", "default: {timeout_s: 900, "): "timeout_s 900 ends the step while it still watches",
    "deploy: {name: a, namespace: b, prometheus: 'http://u:p@x'}": "which is not of the form 'http://prometheus",
    "[1]": "the file: found [1]",
    "a: [": "line 1: this is not YAML",
}


@pytest.mark.parametrize("text", MISTAKES)
def test_a_cluster_file_that_cant_be_followed_is_refused_in_words(text: str) -> None:
    with pytest.raises(placement.PlacementError) as told:
        placement.parse(text)
    assert MISTAKES[text] in str(told.value)


def test_compile_takes_a_shipped_name_or_a_path(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("default: {timeout_s: 77}\n", encoding="utf-8")
    concordant("compile", "--config", "mine.yaml", "--out", "treatment.yaml", cwd=tmp_path)
    assert "activeDeadlineSeconds: '77'" in (tmp_path / "treatment.yaml").read_text("utf-8")
    told = concordant("compile", "--config", "tpu", cwd=tmp_path, check=False)
    assert told.returncode == 1 and "Shipped: cpu, gpu, multi_node, sharded." in told.stderr


def test_a_cluster_file_in_another_encoding_is_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "site.yaml").write_bytes("service_account: caf\u00e9".encode("latin-1"))
    with pytest.raises(placement.PlacementError, match=r"^site\.yaml: byte 21 is not UTF-8\."):
        placement.read(str(tmp_path / "site.yaml"))
