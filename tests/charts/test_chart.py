"""The chart: both Helms take it, every object it makes is one that a cluster with strict fields accepts, mistakes are found."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from chart_values import EDGES, NAMED, RELEASES, generated, leaves, put
from cluster_schemas import Customs, faults, own, read
from conftest import examples
from helm_cli import CHART, render, run

CUSTOM = {"serving.kserve.io/v1beta1", "monitoring.coreos.com/v1", "external-secrets.io/v1"}


@pytest.fixture(scope="module")
def customs(shared_data: Path) -> Customs:
    """The schemas of the operators' own objects."""
    return read(shared_data / "crds")


def wrong(objects: list[dict[str, Any]], customs: Customs | None = None) -> list[str]:
    """Faults of all objects; without the operators' schemas only Kubernetes' own kinds, but then every other kind must be a known one."""
    told = []
    for found in objects:
        if customs is None and not own(found) and found["apiVersion"] in CUSTOM:
            continue
        told += [f"{found['kind']} {found['metadata']['name']}: {fault}" for fault in faults(found, customs)]
    names = [(found["kind"], found["metadata"]["name"]) for found in objects]
    assert len(names) == len(set(names)), "two objects of one name"
    return told


@pytest.mark.parametrize("major", ["3", "4"])
def test_helm_lints_the_chart_without_a_warning(major: str) -> None:
    done = run(major, "lint", "--strict", str(CHART))
    assert done.returncode == 0, done.stdout
    assert "WARNING" not in done.stdout


@pytest.mark.parametrize("named", NAMED)
def test_named_values_render_alike_in_both_helms_to_objects_kubernetes_takes(named: str) -> None:
    objects = render(NAMED[named])
    assert objects == render(NAMED[named], major="3")
    assert "InferenceService" in {found["kind"] for found in objects}
    assert wrong(objects) == []


@pytest.mark.shared_data
@pytest.mark.parametrize("named", NAMED)
def test_named_values_render_to_objects_the_operators_take(named: str, customs: Customs) -> None:
    assert wrong(render(NAMED[named]), customs) == []


@pytest.mark.parametrize("release", RELEASES)
def test_any_release_name_gives_valid_names(release: str) -> None:
    objects = render(NAMED["everything"], release)
    assert wrong(objects) == []
    (service,) = (found for found in objects if found["kind"] == "InferenceService")
    # KServe's webhook wants a DNS-1035 label; NAME-transformer must be a host name
    assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", service["metadata"]["name"])
    assert len(f"{service['metadata']['name']}-transformer") <= 63


@pytest.mark.parametrize(("told", "place"), [("kubeflow", "kubeflow"), ("", "care")])
def test_the_rights_on_trainjobs_are_in_the_namespace_of_the_steps_account(told: str, place: str) -> None:
    """A step makes its TrainJob in its own namespace: a Role elsewhere gives it nothing."""
    found = render({"training": {"enabled": True, "serviceAccount": "runner", "namespace": told}})
    (role,) = (each for each in found if each["kind"] == "Role")
    (binding,) = (each for each in found if each["kind"] == "RoleBinding")
    assert role["rules"] == [{"apiGroups": ["trainer.kubeflow.org"], "resources": ["trainjobs"], "verbs": ["create", "get", "delete"]}]
    assert role["metadata"]["namespace"] == binding["metadata"]["namespace"] == place
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": "runner", "namespace": place}]


@pytest.mark.deep
@pytest.mark.timeout(1800)  # 300 sets
@pytest.mark.shared_data
def test_generated_values_render_to_objects_a_cluster_takes(customs: Customs) -> None:
    for release, values in generated(examples(20, 300)):
        assert wrong(render(values, release), customs) == [], (release, values)


def test_every_value_of_the_schema_is_generated() -> None:
    assert leaves() == set(EDGES)


@pytest.mark.shared_data
@pytest.mark.parametrize(
    ("file", "good", "bad", "told"),
    [
        ("_names.tpl", "minReplicas:", "minReplica:", "minReplica"),
        ("_names.tpl", "livenessProbe:", "livenesProbe:", "livenesProbe"),
        ("_names.tpl", "maxSkew: 1", "maxSkew: one", "maxSkew"),
        ("disruption.yaml", "maxUnavailable:", "maxUnavailble:", "maxUnavailble"),
        ("network.yaml", "policyTypes: [Ingress, Egress]", "policyType: [Ingress]", "policyType"),
        ("tests/recommend.yaml", "restartPolicy:", "restartPolice:", "restartPolice"),
        ("monitoring.yaml", "portNumber: 9464", "portNumbers: 9464", "portNumbers"),
        ("access.yaml", "remoteRef:", "remoteReference:", "remoteReference"),
        ("access.yaml", "- source:", "- sources:", "sources"),
        ("access.yaml", "action: ALLOW", "action: PERMIT", "action"),
        ("access.yaml", "jwksUri:", "jwksUrl:", "jwksUrl"),
        ("training.yaml", "resources: [trainjobs]", "resource: [trainjobs]", "resource"),
        ("disruption.yaml", "kind: PodDisruptionBudget", "kind: PodDisruptionBudgets", "no schema for PodDisruptionBudgets"),
        ("disruption.yaml", "  maxUnavailable: 1", "  maxUnavailable: 1\n  maxUnavailable: 1", "key stands twice"),
    ],
)
def test_a_mistyped_field_in_any_template_is_found(tmp_path: Path, customs: Customs, file: str, good: str, bad: str, told: str) -> None:
    chart = tmp_path / "concordant"
    shutil.copytree(CHART, chart)
    template = chart / "templates" / file
    text = template.read_text()
    assert good in text
    template.write_text(text.replace(good, bad))
    try:
        found = wrong(render(NAMED["everything"], chart=chart), customs)
    except AssertionError as error:  # the reader refuses what stands twice
        found = [str(error)]
    assert any(told in fault for fault in found), found


@pytest.mark.shared_data
def test_rules_between_fields_are_evaluated(customs: Customs) -> None:
    job = {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainJob",
        "metadata": {"name": "train"},
        "spec": {"runtimeRef": {"name": "torch-distributed"}, "managedBy": "trainer.kubeflow.org/trainjob-controller"},
    }
    assert faults(job, customs) == []
    job["metadata"] = {"name": "1-train"}
    job["spec"] = {"runtimeRef": {"name": "torch-distributed"}, "managedBy": "nobody"}
    told = faults(job, customs)
    assert any("RFC 1035" in fault for fault in told) and any("ManagedBy must be" in fault for fault in told)


def test_a_typo_in_the_name_of_any_value_is_refused() -> None:
    values: dict[str, Any] = {}
    for path in EDGES:
        put(values, f"{path}x", "1")
    done = run("4", "template", "site", str(CHART), values=values)
    assert done.returncode != 0
    silent = [path for path in EDGES if f"'{path.split('.')[-1]}x'" not in done.stderr]
    assert silent == []


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"store": {"online": "redis"}}, "store.existingSecret: name the secret with the connection string of redis"),
        ({"predictor": {"minReplicas": 5}}, "predictor.minReplicas is more than predictor.maxReplicas"),
        ({"page": {"enabled": True}}, "page.enabled: the page asks nobody who they are"),
        ({"authorization": {"type": "istio"}}, "authorization.principals: list who may ask"),
        ({"authorization": {"type": "istio", "principals": ["*"], "oidcIssuer": "https://id.example"}}, "authorization.oidcJwksUri"),
        ({"schedule": {"enabled": True}}, "schedule.source: say where the records lie"),
        ({"schedule": {"enabled": True, "source": "exports/here"}}, "/schedule/source"),
        ({"hooks": {"enabled": True}}, "hooks.audience"),
        ({"hooks": {"enabled": True, "audience": "https://a.example"}}, "hooks.issuers: list at least one EHR"),
        ({"pseudonym": {"externalSecret": {"enabled": True}}}, "pseudonym.externalSecret.storeName"),
        ({"predictor": {"resources": {"limits": {"memory": None}}}}, "memory"),
        ({"mode": "Serverless"}, "mode"),
        ({"image": {"digest": "sha256:1"}}, "digest"),
        ({"model": {"uri": "/a/path"}}, "uri"),
    ],
)
def test_what_contradicts_itself_is_refused_in_words(values: dict[str, Any], told: str) -> None:
    done = run("4", "template", "site", str(CHART), values=values)
    assert done.returncode != 0
    assert told in done.stderr


def test_a_cluster_without_kserve_is_told_what_to_install() -> None:
    there = ("--api-versions", "apps/v1/Deployment")
    done = run("4", "template", "site", str(CHART), *there)
    assert done.returncode != 0
    assert "Install KServe 0.20 or newer first" in done.stderr
    assert run("4", "template", "site", str(CHART), *there, "--api-versions", "serving.kserve.io/v1beta1/InferenceService").returncode == 0


def test_the_notes_tell_the_next_commands() -> None:
    done = run("4", "install", "site", str(CHART), "--namespace", "care", "--dry-run=client")
    assert done.returncode == 0, done.stderr
    notes = done.stdout.partition("NOTES:")[2]
    for told in ("inferenceservice/site-concordant", "helm -n care test site", "concordant ask PATIENT --url http://127.0.0.1:8080"):
        assert told in notes
    assert "audit.claim is empty" in notes


def test_the_table_of_values_in_the_readme_is_current() -> None:
    done = subprocess.run([sys.executable, CHART.parent / "table.py", "--check"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    told = {line.split("`")[1] for line in (CHART.parent / "README.md").read_text().splitlines() if line.startswith("| `")}
    assert leaves() <= told


def test_defaults_of_the_table_are_the_charts() -> None:
    assert set(yaml.safe_load((CHART / "values.yaml").read_text())) == {path.split(".")[0] for path in leaves()}
