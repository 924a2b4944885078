"""doctor tells what is there, what is missing and what it may not see; it never reads a secret."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kubernetes_api import Server, serving
from rich.console import Console
from typer.testing import CliRunner

from components.cluster import Cluster
from features.errors import ConcordantError
from pipelines import cluster_cli, doctor, placement
from pipelines.cli import app


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with serving({}) as found:
        monkeypatch.setenv("KUBECONFIG", str(found.kubeconfig(tmp_path)))
        yield found


def _deployment(image: str) -> dict[str, Any]:
    return {"kind": "Deployment", "metadata": {}, "spec": {"template": {"spec": {"containers": [{"image": image}]}}}}


def _installed(server: Server) -> None:
    base = "/api/v1/namespaces/care"
    server.objects |= {
        "/version": {"major": "1", "minor": "33+"},
        "/apis/serving.kserve.io/v1beta1": {"kind": "APIResourceList", "metadata": {}},
        "/apis/trainer.kubeflow.org/v1alpha1": {"kind": "APIResourceList", "metadata": {}},
        "/apis/trainer.kubeflow.org/v1alpha1/clustertrainingruntimes/torch-distributed": {"kind": "ClusterTrainingRuntime", "metadata": {}},
        "/apis/apps/v1/namespaces/kserve/deployments/kserve-controller-manager": _deployment("docker.io/kserve/kserve-controller:v0.20.1"),
        "/apis/apps/v1/namespaces/kubeflow/deployments/ml-pipeline": _deployment("ghcr.io/kubeflow/kfp-api-server:2.17.0"),
        f"{base}/secrets/concordant-pseudonym-key": {"kind": "Secret", "metadata": {}, "data": {"pseudonym.key": "c2VjcmV0"}},
        f"{base}/serviceaccounts/concordant-pipeline": {"kind": "ServiceAccount", "metadata": {}},
        f"{base}/persistentvolumeclaims/concordant-workspace": {
            "kind": "PersistentVolumeClaim",
            "metadata": {},
            "spec": {"accessModes": ["ReadWriteMany"]},
            "status": {"phase": "Bound"},
        },
        "/api/v1/nodes": {"kind": "NodeList", "items": [{"status": {"allocatable": {"nvidia.com/gpu": "4"}}}, {"status": {}}]},
    }


def _look(config: str = "multi_node") -> dict[str, doctor.Finding]:
    return {each.what: each for each in doctor.on_cluster(Cluster(), "care", placement.read(config))}


def test_a_cluster_with_everything_has_nothing_missing_and_no_secret_is_read(server: Server) -> None:
    _installed(server)
    found = _look()
    assert {each.state for each in found.values()} <= {"there", "optional"}
    assert found["KServe"].told == "v0.20.1" and found["nvidia.com/gpu"].told == "at most 4 on a node, 2 asked for"
    assert found["Feast operator"].state == "optional"
    assert server.faults == []
    assert {method for method, _ in server.asked} == {"GET"}


@pytest.mark.parametrize(
    ("taken", "what"),
    [
        ("/apis/serving.kserve.io/v1beta1", "KServe"),
        ("/apis/trainer.kubeflow.org/v1alpha1", "Kubeflow Trainer"),
        ("/apis/trainer.kubeflow.org/v1alpha1/clustertrainingruntimes/torch-distributed", "training runtime torch-distributed"),
        ("/apis/apps/v1/namespaces/kubeflow/deployments/ml-pipeline", "Kubeflow Pipelines"),
        ("/api/v1/namespaces/care/secrets/concordant-pseudonym-key", "secret concordant-pseudonym-key"),
        ("/api/v1/namespaces/care/serviceaccounts/concordant-pipeline", "service account concordant-pipeline"),
        ("/api/v1/namespaces/care/persistentvolumeclaims/concordant-workspace", "claim concordant-workspace"),
        ("/api/v1/nodes", "nvidia.com/gpu"),
    ],
)
def test_each_thing_that_is_taken_away_is_missed_with_what_to_do(server: Server, taken: str, what: str) -> None:
    _installed(server)
    del server.objects[taken]
    found = _look()
    assert [name for name, each in found.items() if each.state == "missing"] == [what] and found[what].do


def test_older_versions_and_a_claim_of_one_node_are_missed(server: Server) -> None:
    _installed(server)
    server.objects["/version"] = {"major": "1", "minor": "27"}
    controller = "/apis/apps/v1/namespaces/kserve/deployments/kserve-controller-manager"
    server.objects[controller] = _deployment("kserve/kserve-controller:v0.19.0@sha256:ab") | {"metadata": {}}
    server.objects["/api/v1/namespaces/care/persistentvolumeclaims/concordant-workspace"]["spec"]["accessModes"] = ["ReadWriteOnce"]
    assert {name for name, each in _look().items() if each.state == "missing"} == {"Kubernetes", "KServe", "claim concordant-workspace"}


def test_what_an_account_may_not_see_is_not_called_missing(server: Server) -> None:
    _installed(server)
    server.forbidden = ("/apis/apps/", "/api/v1/nodes", "/api/v1/namespaces/care/secrets/")
    found = _look()
    assert found["KServe"].state == found["nvidia.com/gpu"].state == found["secret concordant-pseudonym-key"].state == "not told"
    assert not [each for each in found.values() if each.state == "missing"]


def test_the_command_prints_every_line_and_fails_where_something_is_missing(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    _installed(server)
    monkeypatch.setattr(cluster_cli, "console", Console(file=(printed := io.StringIO()), width=200))
    asked = ["doctor", "--cluster", "--namespace", "care"]
    assert CliRunner().invoke(app, asked).exit_code == 0
    del server.objects["/apis/serving.kserve.io/v1beta1"]
    done = CliRunner().invoke(app, asked)
    assert isinstance(done.exception, ConcordantError) and str(done.exception) == "Missing: KServe."
    assert "✗ KServe" in printed.getvalue() and "c2VjcmV0" not in printed.getvalue() and "secret\n" not in printed.getvalue()


def test_this_machine_has_what_is_needed(tmp_path: Path) -> None:
    found = {each.what: each for each in doctor.here(tmp_path / "not" / "yet")}
    assert found["Python"].state == found["kfp"].state == found["torch"].state == "there"
    assert all(each.state != "missing" for each in found.values())
