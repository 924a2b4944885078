"""What is missing on this machine or this cluster, and what to do about it."""

import re
import shutil
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from components.cluster import Cluster, Forbidden, Object
from pipelines.placement import Placement

State = Literal["there", "missing", "optional", "not told"]
PACKAGES = ("kfp", "kfp-kubernetes", "feast", "kserve", "torch", "pytorch-lightning", "xgboost-cpu", "fhir.resources", "duckdb", "pyarrow")
PROGRAMS = {  # optional ones, with what they are for
    "redis-server": "concordant store redis",
    "postgres": "concordant store postgresql",
    "helm": "installing the chart",
    "kubectl": "the steps of charts/README.md",
    "docker": "building the image",
}
FREE_GB, KUBERNETES, KSERVE, PIPELINES = 5.0, (1, 29), (0, 20), (2, 17)  # what was tried, see charts/README.md


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was looked for."""

    what: str
    state: State
    told: str
    do: str = ""


def here(workspace: Path) -> list[Finding]:
    """This machine: interpreter, packages, disk, optional programs."""
    version = ".".join(map(str, sys.version_info[:3]))
    found = [_judged("Python", sys.version_info[:2] == (3, 11), version, "Install Python 3.11 and run `make install` with it.")]
    for name in PACKAGES:
        try:
            found.append(Finding(what=name, state="there", told=metadata.version(name)))
        except metadata.PackageNotFoundError:
            other = "xgboost" if name == "xgboost-cpu" and _installed("xgboost") else ""  # the extra `gpu` takes its place
            found.append(_judged(name, bool(other), other or "not installed", "Run `make install`."))
    place = next(folder for folder in (workspace.absolute(), *workspace.absolute().parents) if folder.exists())
    free = shutil.disk_usage(place).free / 1e9
    found.append(_judged("disk", free >= FREE_GB, f"{free:.0f} GB free at {place}", f"Free {FREE_GB:g} GB, or give another --workspace."))
    for program, use in PROGRAMS.items():
        path = shutil.which(program) or next((str(p) for p in Path("/usr/lib/postgresql").glob(f"*/bin/{program}")), "")
        found.append(
            Finding(what=program, state="there" if path else "optional", told=path or "not found", do="" if path else f"Only for {use}.")
        )
    return found


def _installed(name: str) -> bool:
    try:
        return bool(metadata.version(name))
    except metadata.PackageNotFoundError:
        return False


def _judged(what: str, good: bool, told: str, do: str) -> Finding:
    return Finding(what=what, state="there" if good else "missing", told=told, do="" if good else do)


def on_cluster(cluster: Cluster, namespace: str, placement: Placement) -> list[Finding]:
    """A cluster: versions, operators, and what a cluster file names in a namespace. Values of secrets are not read."""
    return [*_platforms(cluster, placement), *_named(cluster, namespace, placement)]


def _platforms(cluster: Cluster, placement: Placement) -> list[Finding]:
    told = cluster.get("/version") or {}
    version = re.findall(r"\d+", f"{told.get('major', '')}.{told.get('minor', '')}")[:2]
    good = len(version) == 2 and tuple(map(int, version)) >= KUBERNETES
    found = [_judged("Kubernetes", good, ".".join(version) or "unknown", f"Use Kubernetes {_dotted(KUBERNETES)} or newer.")]
    do = f"Install KServe {_dotted(KSERVE)} or newer; older ones ignore a canary in Standard mode."
    found.append(_platform(cluster, "KServe", "serving.kserve.io/v1beta1", ("kserve", "kserve-controller-manager"), KSERVE, do))
    do = f"Install Kubeflow Pipelines {_dotted(PIPELINES)}, for submit and schedule."
    found.append(_platform(cluster, "Kubeflow Pipelines", None, ("kubeflow", "ml-pipeline"), PIPELINES, do))
    trainer = _there(cluster, "/apis/trainer.kubeflow.org/v1alpha1")
    needed = placement.training is not None
    do = "Install Kubeflow Trainer 2, or take `training` out of the cluster file." if needed else "Only for `training` in a cluster file."
    found.append(_optional("Kubeflow Trainer", trainer, needed, do))
    if placement.training and trainer == "there":
        runtime = placement.training.runtime
        state = _there(cluster, f"/apis/trainer.kubeflow.org/v1alpha1/clustertrainingruntimes/{runtime}")
        found.append(_optional(f"training runtime {runtime}", state, True, "Install the runtimes of Kubeflow Trainer, or name another."))
    feast = _there(cluster, "/apis/feast.dev/v1")
    found.append(_optional("Feast operator", feast, False, "Not needed: the transformer reads the packed rows itself."))
    return found


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def _there(cluster: Cluster, path: str) -> State:
    """Whether something lies at a path; "not told" where this account may not look."""
    try:
        return "missing" if cluster.get(path, bare=True) is None else "there"
    except Forbidden:
        return "not told"


def _platform(cluster: Cluster, name: str, api: str | None, place: tuple[str, str], least: tuple[int, int], do: str) -> Finding:
    """By its API and the version of its controller's image, where this account may see it."""
    if api and _there(cluster, f"/apis/{api}") == "missing":
        return Finding(what=name, state="missing", told=f"no {api}", do=do)
    try:
        found = cluster.get(f"/apis/apps/v1/namespaces/{place[0]}/deployments/{place[1]}")
    except Forbidden:
        return Finding(what=name, state="not told", told=f"this account may not see {place[0]}/{place[1]}")
    if found is None:
        return Finding(what=name, state="not told" if api else "missing", told=f"no {place[1]} in {place[0]}", do=do)
    images = [each["image"] for each in found["spec"]["template"]["spec"]["containers"]]
    version = next((match for image in images if (match := re.search(r":v?(\d+)\.(\d+)[^/]*$", image))), None)
    if version is None:
        return Finding(what=name, state="not told", told=f"image {images[0]} names no version")
    return _judged(name, tuple(map(int, version.groups())) >= least, version[0].removeprefix(":"), do)


def _optional(what: str, state: State, needed: bool, do: str) -> Finding:
    shown: State = "optional" if state == "missing" and not needed else state
    told = {"there": "installed", "missing": "not installed", "optional": "not installed", "not told": "this account may not look"}[shown]
    return Finding(what=what, state=shown, told=told, do=do if shown in ("missing", "optional") else "")


def _named(cluster: Cluster, namespace: str, placement: Placement) -> list[Finding]:
    """Secrets, claim, account and nodes that the cluster file names."""
    held, base = placement.secrets, f"/api/v1/namespaces/{namespace}"
    secrets = {held.pseudonym_key: "kubectl create secret generic {} --from-file=pseudonym.key"}
    secrets |= {held.object_store.secret: "Make it with the credentials file of the object store."} if held.object_store else {}
    secrets |= {held.online_store.secret: "Make it with the URL of the online store."} if held.online_store else {}
    secrets |= {held.signing_key: "kubectl create secret generic {} --from-file=signing.key"} if held.signing_key else {}
    secrets |= dict.fromkeys(held.image_pull, "kubectl create secret docker-registry {} ...")
    found = [_optional(f"secret {name}", _there(cluster, f"{base}/secrets/{name}"), True, do.format(name)) for name, do in secrets.items()]
    if placement.service_account:
        account = placement.service_account
        do = "Make it, with the right to create, get and delete TrainJobs."
        found.append(_optional(f"service account {account}", _there(cluster, f"{base}/serviceaccounts/{account}"), True, do))
    if placement.workspace.claim:
        found.append(_claim(cluster, f"{base}/persistentvolumeclaims/{placement.workspace.claim}", placement))
    devices = {each.type for step in ("default", *placement.steps) if (each := placement.step(step).accelerator)}
    devices |= {"nvidia.com/gpu"} if placement.training and placement.training.gpus_per_node else set()
    return found + [_device(cluster, device, placement) for device in sorted(devices)]


def _claim(cluster: Cluster, path: str, placement: Placement) -> Finding:
    what = f"claim {placement.workspace.claim}"
    try:
        found = cluster.get(path)
    except Forbidden:
        return Finding(what=what, state="not told", told="this account may not look")
    if found is None:
        return Finding(what=what, state="missing", told="no such claim", do="Make a PersistentVolumeClaim that several pods can write.")
    phase, modes = (found.get("status") or {}).get("phase", "unknown"), found["spec"].get("accessModes") or []
    good = phase == "Bound" or "ReadWriteMany" in modes
    if placement.training and placement.training.nodes > 1 and "ReadWriteMany" not in modes:
        return Finding(what=what, state="missing", told=f"{phase}, {', '.join(modes)}", do="Several nodes need ReadWriteMany.")
    return _judged(what, good, f"{phase}, {', '.join(modes)}", "It is not bound: look at its storage class.")


def _device(cluster: Cluster, device: str, placement: Placement) -> Finding:
    """The largest number of devices on one node, against what one pod is to get."""
    asked = [each.count for name in ("default", *placement.steps) if (each := placement.step(name).accelerator) and each.type == device]
    asked += [placement.training.gpus_per_node] if placement.training and device == "nvidia.com/gpu" else []
    try:
        nodes: list[Object] = (cluster.get("/api/v1/nodes") or {}).get("items", [])
    except Forbidden:
        return Finding(what=device, state="not told", told="this account may not see nodes")
    most = max((int((node.get("status") or {}).get("allocatable", {}).get(device, 0)) for node in nodes), default=0)
    do = "Install the device plug-in, or take the accelerator out of the cluster file."
    return _judged(device, most >= max(asked), f"at most {most} on a node, {max(asked)} asked for", do)
