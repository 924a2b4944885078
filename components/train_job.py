"""Training on nodes of their own: a TrainJob of Kubeflow Trainer v2 is made, followed, and its artifact fetched.

The step writes an order (decision, cohort, features) into a folder of the workspace's claim, which the job's pods mount at the same path;
each runs `torchrun -m components.distributed` on it and the first process leaves the model there. Names are digests of what is ordered, so
that a step that is tried again finds its job, its checkpoints or its finished model, and does not begin anew.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from secrets import token_hex
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from components.artifact import code_digest, manifest_digest, verify
from components.cluster import Cluster, ClusterError
from features.errors import ConcordantError

GROUP, VERSION, PLURAL = "trainer.kubeflow.org", "v1alpha1", "trainjobs"
PACKAGES = ("features", "components")  # whose code the result depends on
MANAGER = "concordant.dev/train-fusion"  # owner of our patch of the runtime
ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
USER = 10001  # of the image
# How the nodes' torchruns meet; Kubernetes puts the variables' values in. The static meeting, which the runtime's variables alone mean, and
# a store that outlives a round both let nodes that restart at different times look for each other under different names (torch 2.13).
MEETING = ("--rdzv-backend=c10d", "--rdzv-endpoint=$(PET_MASTER_ADDR):$(PET_MASTER_PORT)")
OWN_STORE = {"name": "TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "value": "1"}
EVERY_S, PATIENCE = 5.0, 60  # asked every 5 seconds; an API server may be away for 60 of them
BUSY = (429, 500, 502, 503, 504)


class TrainJobError(ConcordantError):
    """The job could not be made, or failed."""


class Launch(BaseModel):
    """Where and on what the training runs: the section `training` of a cluster file, with the workspace's claim."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    nodes: Annotated[int, Field(ge=1)] = 1
    gpus_per_node: Annotated[int, Field(ge=0)] = 0  # 0: one process a node, on its processor
    runtime: str = "torch-distributed"  # a ClusterTrainingRuntime
    image: Annotated[str, Field(min_length=1)]
    resources: dict[str, str] = {}  # cpu and memory of each node
    claim: Annotated[str, Field(min_length=1)]
    mount: Annotated[str, Field(pattern=r"^/.+")]
    timeout_seconds: Annotated[int, Field(ge=1)] | None = None
    namespace: str = ""  # "": the step's own
    service_account: str = ""
    node_selector: dict[str, str] = {}
    tolerations: list[dict[str, Any]] = []
    precision: str = "32-true"  # Lightning's: "bf16-mixed" on GPUs
    restarts: Annotated[int, Field(ge=0)] = 3  # of a node's processes, by torchrun

    @classmethod
    def parse(cls, text: str) -> "Launch":
        """From JSON. Raises TrainJobError with the first key that is wrong."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(map(str, first["loc"])) or "the text"
            raise TrainJobError(f"launch: {where}: {first['msg']}. Correct `training` and `workspace` in the cluster file.") from None


def run(launch: str, decision: str, cohort: Path, features: Path, out: Path, here: Callable[[Path], str]) -> str:
    """Train into `out` by a TrainJob, or by `here` in this process: where `launch` is "", or the cluster has no Trainer.

    `decision` is its text, `cohort` and `features` are sealed folders. Returns a line for people. Raises TrainJobError.
    """
    if not launch:
        return here(out)
    wanted, jobs = Launch.parse(launch), Jobs.of_this_cluster()
    if not jobs.known():
        _say("Kubeflow Trainer is not installed on this cluster (no TrainJob in trainer.kubeflow.org/v1alpha1): training in this step.")
        return here(out)
    order = {"decision": decision, "precision": wanted.precision, "gpus_per_node": wanted.gpus_per_node, "code": code_digest(PACKAGES)}
    told = [order, wanted.nodes, manifest_digest(cohort), manifest_digest(features)]
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]
    folder = Path(wanted.mount) / "train" / digest
    if not (folder / "model").exists():
        _write_order(folder / "inputs", order, cohort, features)
        jobs.follow(manifest(wanted, f"concordant-fusion-{digest}", folder), folder, wanted.namespace)
    return _fetch(folder, out) + f", by a TrainJob: nodes {wanted.nodes}, GPUs a node {wanted.gpus_per_node}"


def manifest(launch: Launch, name: str, folder: Path) -> dict[str, Any]:
    """The TrainJob. The runtime's controller adds what torchrun reads: PET_NNODES, PET_NODE_RANK, PET_MASTER_ADDR and their like."""
    resources: dict[str, Any] = dict(launch.resources)
    if launch.gpus_per_node:
        resources["nvidia.com/gpu"] = str(launch.gpus_per_node)
    trainer: dict[str, Any] = {
        "image": launch.image,
        "command": [
            "torchrun",
            f"--max-restarts={launch.restarts}",
            *MEETING,
            f"--rdzv-id={name}",
            "-m",
            "components.distributed",
            str(folder),
        ],
        "env": [OWN_STORE],
        "numNodes": launch.nodes,
        "numProcPerNode": max(launch.gpus_per_node, 1),
    }
    if resources:
        trainer["resourcesPerNode"] = {"requests": resources, "limits": resources}
    patch = {"replicatedJobs": [{"name": "node", "template": {"spec": {"template": {"spec": _pod(launch)}}}}]}
    spec: dict[str, Any] = {
        "runtimeRef": {"apiGroup": GROUP, "kind": "ClusterTrainingRuntime", "name": launch.runtime},
        "trainer": trainer,
        "runtimePatches": [{"manager": MANAGER, "trainingRuntimeSpec": {"template": {"spec": patch}}}],
    }
    if launch.timeout_seconds:
        spec["activeDeadlineSeconds"] = launch.timeout_seconds
    metadata: dict[str, Any] = {"name": name, "labels": {"app.kubernetes.io/name": "concordant", "app.kubernetes.io/component": "training"}}
    pod, uid = os.environ.get("KFP_POD_NAME"), os.environ.get("KFP_POD_UID")
    if pod and uid:  # the job goes when the run's pods are cleared away
        metadata["ownerReferences"] = [{"apiVersion": "v1", "kind": "Pod", "name": pod, "uid": uid}]
    return {"apiVersion": f"{GROUP}/{VERSION}", "kind": "TrainJob", "metadata": metadata, "spec": spec}


def _pod(launch: Launch) -> dict[str, Any]:
    """What the runtime's pods are given beside image and command: the workspace, and restricted Pod Security."""
    secure = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, "readOnlyRootFilesystem": True, "runAsNonRoot": True}
    mounts = {"workspace": launch.mount, "tmp": "/tmp", "shm": "/dev/shm"}  # noqa: S108  NCCL speaks through shared memory
    pod: dict[str, Any] = {
        "securityContext": {"runAsNonRoot": True, "runAsUser": USER, "fsGroup": USER, "seccompProfile": {"type": "RuntimeDefault"}},
        "volumes": [
            {"name": "workspace", "persistentVolumeClaim": {"claimName": launch.claim}},
            {"name": "tmp", "emptyDir": {}},
            {"name": "shm", "emptyDir": {"medium": "Memory"}},
        ],
        "containers": [
            {
                "name": "node",
                "securityContext": secure,
                "volumeMounts": [{"name": name, "mountPath": path} for name, path in mounts.items()],
            }
        ],
    }
    if launch.service_account:
        pod["serviceAccountName"] = launch.service_account
    if launch.node_selector:
        pod["nodeSelector"] = launch.node_selector
    if launch.tolerations:
        pod["tolerations"] = launch.tolerations
    return pod


class Jobs:
    """TrainJobs of a cluster, by the official client."""

    def __init__(self, api: Any, every_s: float = EVERY_S) -> None:
        from kubernetes import client

        self._objects, self.every_s = client.CustomObjectsApi(api), every_s

    @classmethod
    def of_this_cluster(cls) -> "Jobs":
        """With a person's kubeconfig, or the pod's own account. Raises TrainJobError where there is neither."""
        try:
            return cls(Cluster().client)
        except ClusterError:
            raise TrainJobError(
                "A TrainJob was asked for, but this process has no access to a cluster. Mount the service account's token, correct "
                "KUBECONFIG where it is set, or leave `training` out of the cluster file."
            ) from None

    def known(self) -> bool:
        """Whether the cluster knows TrainJobs. Raises TrainJobError where it does not say."""
        status, found = self._asked(self._objects.get_api_resources, GROUP, VERSION)
        if status not in (200, 404):
            raise TrainJobError(f"The API server answered {status} when it was asked for {GROUP}/{VERSION}. Try again.")
        return status == 200 and any(each.name == PLURAL for each in found.resources)

    def follow(self, job: dict[str, Any], folder: Path, namespace: str = "") -> None:
        """Make the job, or take up one of the same name, and wait for its end. Raises TrainJobError with its cause."""
        name, place = job["metadata"]["name"], namespace or _own_namespace()
        (folder / "failed.txt").unlink(missing_ok=True)  # of an earlier job: it is not why this one fails
        self._make(job, name, place)
        shown, silent = "", 0
        while True:
            status, found = self._asked(self._objects.get_namespaced_custom_object, GROUP, VERSION, place, PLURAL, name)
            silent = silent + 1 if status in BUSY else 0
            if status == 404 and (folder / "model").exists():  # another run of the same order was first, and cleared up
                return
            if status != 200 and (status not in BUSY or silent > PATIENCE):
                raise TrainJobError(f"TrainJob {name} can't be followed any more: the API server answered {status}. Run the step again.")
            if status == 200:
                if (state := _state(found)) != shown:
                    _say(f"TrainJob {name}: {(shown := state)}")
                ended = {each["type"]: each for each in _conditions(found) if each.get("status") == "True"}
                if "Failed" in ended:
                    raise TrainJobError(_cause(name, ended["Failed"], folder))
                if "Complete" in ended:
                    break
            time.sleep(self.every_s)
        self._delete(name, place)

    def _make(self, job: dict[str, Any], name: str, place: str) -> None:
        """Create it. One that is there is taken up if it runs; one that failed makes room: its checkpoints stay."""
        for _ in range(PATIENCE):
            status, found = self._asked(self._objects.create_namespaced_custom_object, GROUP, VERSION, place, PLURAL, job)
            if status == 200:
                _say(f"TrainJob {name} made in namespace {place}")
                return
            if status == 409:
                status, found = self._asked(self._objects.get_namespaced_custom_object, GROUP, VERSION, place, PLURAL, name)
                if status == 200 and not any(each["type"] == "Failed" and each.get("status") == "True" for each in _conditions(found)):
                    if "deletionTimestamp" not in found["metadata"]:
                        _say(f"TrainJob {name} is there already: taken up")
                        return
                elif status == 200:
                    self._delete(name, place)
            elif status not in BUSY:
                rights = (
                    " The step's service account needs create, get and delete on trainjobs (charts/README.md)." if status == 403 else ""
                )
                raise TrainJobError(f"The API server refused TrainJob {name} in namespace {place} ({status}): {found}.{rights}")
            time.sleep(self.every_s)
        raise TrainJobError(f"TrainJob {name} could not be made: the API server is away, or an older one of that name does not go.")

    def _delete(self, name: str, place: str) -> None:
        self._asked(self._objects.delete_namespaced_custom_object, GROUP, VERSION, place, PLURAL, name, propagation_policy="Background")

    def _asked(self, call: Callable[..., Any], *given: Any, **named: Any) -> tuple[int, Any]:
        """200 and the answer; of a refusal its status and the server's message; 503 where there is no connection."""
        from kubernetes.client.exceptions import ApiException
        from urllib3.exceptions import HTTPError

        try:
            answer = call(*given, **named)
        except ApiException as error:
            try:
                told = json.loads(error.body or "{}").get("message", "")
            except (ValueError, AttributeError):
                told = ""
            return int(error.status or 503), told or error.reason
        except HTTPError:
            return 503, "no connection"
        return 200, answer


def _own_namespace() -> str:
    return ACCOUNT.read_text(encoding="utf-8").strip() if ACCOUNT.is_file() else "default"


def _conditions(job: dict[str, Any]) -> list[dict[str, Any]]:
    return list((job.get("status") or {}).get("conditions") or [])


def _state(job: dict[str, Any]) -> str:
    status = job.get("status") or {}
    counts = [f"{each.get(name, 0)} {name}" for each in status.get("jobsStatus") or [] for name in ("active", "succeeded", "failed")]
    met = [each["type"] for each in _conditions(job) if each.get("status") == "True"]
    return ", ".join(met + counts) or "waiting"


def _cause(name: str, failed: dict[str, Any], folder: Path) -> str:
    own = folder / "failed.txt"
    told = own.read_text(encoding="utf-8") if own.is_file() else f"{failed.get('reason', '')}: {failed.get('message', '')}"
    return (
        f"TrainJob {name} failed. {told} Its pods' logs say more; its checkpoints are kept, and the step goes on from them when run again."
    )


def _write_order(inputs: Path, order: dict[str, Any], cohort: Path, features: Path) -> None:
    """The order, whole or not there."""
    if inputs.exists():
        return
    part = inputs.with_name(f"inputs.part{token_hex(8)}")  # not by pid: two pods of the same order have the same one
    part.mkdir(parents=True)
    try:
        shutil.copytree(cohort, part / "cohort")
        shutil.copytree(features, part / "features")
        (part / "order.json").write_text(json.dumps(order), encoding="utf-8")
        part.rename(inputs)
    except OSError:
        shutil.rmtree(part, ignore_errors=True)
        if not inputs.exists() and not inputs.with_name("model").exists():  # else another run of the same order was first
            raise


def _fetch(folder: Path, out: Path) -> str:
    """Copy the model out of the workspace and forget the patients' rows there. Raises BundleError where it is not whole."""
    model = folder / "model"
    if not model.is_dir():
        raise TrainJobError("The TrainJob ended without a model in the workspace. Its pods must mount the same claim at the same path.")
    verify(model)
    shutil.copytree(model, out, dirs_exist_ok=True, ignore=shutil.ignore_patterns("manifest.json", "message.txt"))
    for left in folder.glob("inputs*"):  # also parts of steps that were killed
        shutil.rmtree(left, ignore_errors=True)
    return (model / "message.txt").read_text(encoding="utf-8")


def _say(line: str) -> None:
    print(line, flush=True)  # noqa: T201  the step's log is its output
