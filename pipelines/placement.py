"""Where a cluster runs each step: `cluster.yaml` parsed once, and put on the steps of the graph as Kubernetes settings."""

import json
import re
from dataclasses import asdict, replace
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from components.artifact import KEY_FILE
from components.signature import SIGNING_FILE
from features.errors import ConcordantError
from pipelines.local import STEPS as RUN

SHIPPED = Path(__file__).parent / "clusters"
WHOLE = ("ingest", "select_cohort", "build_features")  # what these do in one task each, SHARDED do in shards
BETWEEN = ("plan_shards", "read_shard", "settle_shards", "build_shard", "join_shards", "clear_shards")  # share a place
SHARDED = (*BETWEEN, "build_features_shard", "join_features")
STEPS = (*RUN, *SHARDED, "gate", "deploy")
KEYED = ("ingest", *BETWEEN[:5], "evaluate")  # read the pseudonym key
READERS = ("ingest", *BETWEEN, "evaluate")  # reach the source, a truth file or that place, so they need the object store's credentials
TRAINERS = ("train_ridge", "train_trees", "train_fusion")
NEVER_CACHED = {  # Kubeflow's cache knows parameters and images, not what lies behind a name
    "ingest": "the records at a source change under the same name",
    **dict.fromkeys(BETWEEN, "the records at a source change under the same name"),
    "fill_store": "an online store may have lost its rows",
    "evaluate": "the model to beat changes between runs",
    "deploy": "the cluster changes between runs",
}
_STRICT = ConfigDict(extra="forbid", strict=True)
Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$")]  # of an object in Kubernetes
Cpu = Annotated[str, StringConstraints(pattern=r"^([0-9]+m|[0-9]+(\.[0-9]{1,3})?)$")]
Memory = Annotated[
    str, StringConstraints(pattern=r"^[1-9][0-9]*(E|Ei|P|Pi|T|Ti|G|Gi|M|Mi|K|Ki)?$")
]  # what kfp takes: "k" is not among them
Mount = Annotated[str, StringConstraints(pattern=r"^(/[A-Za-z0-9._-]+)+$")]
Image = Annotated[str, StringConstraints(pattern=r"^[^\s@]+(@sha256:[0-9a-f]{64})?$|^$")]
Count = Annotated[int, Field(ge=1)]


class PlacementError(ConcordantError):
    """A cluster file that can't be followed."""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Amount:
    """Of a node: `cpu` in cores or millicores, `memory` in bytes with a suffix."""

    cpu: Cpu | None = None
    memory: Memory | None = None


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Accelerator:
    """Devices of a kind that a node's plug-in announces."""

    type: str = "nvidia.com/gpu"
    count: Count = 1


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Toleration:
    """A taint that a step may be placed in spite of. Kubernetes' own words."""

    key: str | None = None
    operator: Literal["Equal", "Exists"] = "Equal"
    value: str | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Retries:
    """How often a failed step is tried again; the wait grows by `factor` up to `longest_s`."""

    count: Annotated[int, Field(ge=0, le=10)] = 0
    backoff_s: Count = 30
    factor: Annotated[float, Field(ge=1)] = 2.0
    longest_s: Count = 3600


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Step:
    """Settings of one step. What is None in a step is taken from the default."""

    image: Image | None = None
    requests: Amount | None = None
    limits: Amount | None = None
    accelerator: Accelerator | None = None
    node_selector: dict[str, str] | None = None
    tolerations: tuple[Toleration, ...] | None = None
    shared_memory: Memory | None = None  # /dev/shm, which worker processes of one step speak through
    timeout_s: Count | None = None
    retries: Retries | None = None
    cache: bool | None = None


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class ObjectStore:
    """Credentials of the object store, mounted as a file whose path the client library reads from `variable`."""

    secret: Name
    key: str = "credentials"
    mount: Mount = "/var/run/secrets/object-store"
    variable: Literal["AWS_SHARED_CREDENTIALS_FILE", "GOOGLE_APPLICATION_CREDENTIALS"] = "AWS_SHARED_CREDENTIALS_FILE"
    endpoint: str | None = None  # of an S3-compatible server that is not Amazon's


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class OnlineStore:
    """Redis or PostgreSQL that rows for serving go to: a secret that holds its URL."""

    secret: Name
    key: str = "url"


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Secrets:
    """Existing secrets of the namespace."""

    pseudonym_key: Name = "concordant-pseudonym-key"
    object_store: ObjectStore | None = None
    online_store: OnlineStore | None = None
    signing_key: Name | None = None  # with a key signing.key: an Ed25519 private key in PEM, which publish signs the bundle with
    image_pull: tuple[Name, ...] = ()


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Workspace:
    """What outlives a step: a claim mounted in every step (checkpoints), and the root of the artifacts in an object store."""

    claim: Name | None = None
    mount: Mount = "/workspace"
    root: Annotated[str, StringConstraints(pattern=r"^(s3|gs|minio)://[a-z0-9][^\s]*$")] | None = None


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Training:
    """The network's training as a TrainJob of Kubeflow Trainer v2, which the step starts and waits for."""

    nodes: Count = 1
    gpus_per_node: Annotated[int, Field(ge=0)] = 0
    runtime: Name = "torch-distributed"
    image: Image = ""
    resources: Amount = Amount()
    precision: Literal["32-true", "bf16-mixed"] = "32-true"  # Lightning's; bf16 is for GPUs
    node_selector: dict[str, str] = Field(default_factory=dict)
    tolerations: tuple[Toleration, ...] = ()


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Deploy:
    """What passed the gate goes into this InferenceService: `traffic` percent to a canary first, watched by Prometheus."""

    name: Name
    namespace: Name
    traffic: Annotated[int, Field(ge=0, le=100)] = 10
    watch_s: Count = 900
    prometheus: Annotated[str, StringConstraints(pattern=r"^https?://[^\s@]+$|^$")] = ""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Placement:
    """A cluster file. Without one: no settings but the pseudonym key's secret, which a laptop ignores."""

    default: Step = Step()
    steps: dict[str, Step] = Field(default_factory=dict)
    secrets: Secrets = Secrets()
    workspace: Workspace = Workspace()
    training: Training | None = None
    deploy: Deploy | None = None
    shards: Annotated[int, Field(ge=1, le=1024)] = 1  # parts that records and features are worked on in, by patient
    engine: Literal["kubeflow", "processes", "ray"] = "kubeflow"  # what runs them: tasks of the graph, or processes or Ray inside `ingest`
    service_account: Name | None = None  # of the steps; it needs rights only for `training` and `deploy`

    def step(self, name: str) -> Step:
        """Settings of a step: its own, then the default's."""
        own = self.steps.get(name, Step())
        given = {name: value for name in Step.__dataclass_fields__ if (value := getattr(own, name)) is not None}
        found = replace(self.default, **given)
        if name == "deploy":  # a rollback is an answer, not a failure to try again
            found = replace(found, retries=None)
        return replace(found, cache=bool(found.cache) and name not in NEVER_CACHED)

    @property
    def launch(self) -> str:
        """What `train_fusion` starts a TrainJob from, as JSON; "" where it trains in its own pod."""
        if self.training is None:
            return ""
        job, step = self.training, self.step("train_fusion")
        told: dict[str, Any] = {
            "nodes": job.nodes,
            "gpus_per_node": job.gpus_per_node,
            "runtime": job.runtime,
            "image": job.image or step.image or "",
            "precision": job.precision,
            "node_selector": job.node_selector,
            "tolerations": [{name: value for name, value in asdict(each).items() if value is not None} for each in job.tolerations],
        }
        told["resources"] = {name: amount for name in ("cpu", "memory") if (amount := getattr(job.resources, name))}
        told |= {"timeout_seconds": step.timeout_s, "claim": self.workspace.claim or "", "mount": self.workspace.mount}
        return json.dumps(told, sort_keys=True)

    @property
    def shuffle(self) -> str:
        """Where shards leave things for each other: in the claim, else in the bucket, else "" (a laptop's own)."""
        held = self.workspace
        return f"{held.mount}/shuffle" if held.claim else f"{held.root.rstrip('/')}/shuffle" if held.root else ""

    def place(self, task: Any) -> Any:
        """Put a step's settings on a task of kfp, by the name of its component; returns the task."""
        name = task.component_spec.name.replace("-", "_")
        step = self.step(name)
        task.set_caching_options(step.cache)
        _compute(task, step)
        _node(task, step)
        self._mounts(task, name)
        return task

    def _mounts(self, task: Any, name: str) -> None:
        from kfp import kubernetes

        held, work = self.secrets, self.workspace
        if name in KEYED:
            kubernetes.use_secret_as_volume(task, secret_name=held.pseudonym_key, mount_path=str(KEY_FILE.parent))
        if held.object_store and name in READERS:
            store = held.object_store
            kubernetes.use_secret_as_volume(task, secret_name=store.secret, mount_path=store.mount)
            task.set_env_variable(store.variable, f"{store.mount}/{store.key}")
            if store.endpoint:
                task.set_env_variable("AWS_ENDPOINT_URL", store.endpoint)
        if held.online_store and name == "fill_store":
            keys = {held.online_store.key: "CONCORDANT_ONLINE_STORE"}
            kubernetes.use_secret_as_env(task, secret_name=held.online_store.secret, secret_key_to_env=keys)
        if held.signing_key and name == "publish":
            kubernetes.use_secret_as_volume(task, secret_name=held.signing_key, mount_path=str(SIGNING_FILE.parent))
        if held.image_pull:
            kubernetes.set_image_pull_secrets(task, list(held.image_pull))
        if work.claim:
            kubernetes.mount_pvc(task, pvc_name=work.claim, mount_path=work.mount)
            if name in TRAINERS:
                task.set_env_variable("CONCORDANT_CHECKPOINTS", str(PurePosixPath(work.mount) / "checkpoints"))


def _compute(task: Any, step: Step) -> None:
    if step.image:
        task.set_container_image(step.image)
    for amount, kind in ((step.requests, "request"), (step.limits, "limit")):
        if amount and amount.cpu:
            getattr(task, f"set_cpu_{kind}")(amount.cpu)
        if amount and amount.memory:
            getattr(task, f"set_memory_{kind}")(amount.memory)
    if step.accelerator:
        task.set_accelerator_type(step.accelerator.type).set_accelerator_limit(step.accelerator.count)
    if step.retries and step.retries.count:
        again = step.retries
        task.set_retry(again.count, f"{again.backoff_s}s", again.factor, f"{again.longest_s}s")


def _node(task: Any, step: Step) -> None:
    from kfp import kubernetes

    for label, value in (step.node_selector or {}).items():
        kubernetes.add_node_selector(task, label, value)
    for each in step.tolerations or ():
        kubernetes.add_toleration(task, key=each.key, operator=each.operator, value=each.value, effect=each.effect)
    if step.shared_memory:
        kubernetes.empty_dir_mount(task, volume_name="shm", mount_path="/dev/shm", medium="Memory", size_limit=step.shared_memory)  # noqa: S108
    if step.timeout_s:
        kubernetes.set_timeout(task, step.timeout_s)


def shipped() -> list[str]:
    """Names of the cluster files that come with the package."""
    return sorted(path.stem for path in SHIPPED.glob("*.yaml"))


def read(name: str) -> Placement:
    """Placement by a shipped name or a path. Raises PlacementError."""
    path = Path(name) if name.endswith((".yaml", ".yml")) else SHIPPED / f"{name}.yaml"
    if not path.is_file():
        raise PlacementError(
            f"There is no cluster file {name!r}. Shipped: {', '.join(shipped())}. Give one of these or a path to a YAML file."
        )
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise PlacementError(f"{path.name}: byte {error.start + 1} is not UTF-8. Save the file as UTF-8.") from None
    return parse(text, path.name)


def parse(text: str, file: str = "cluster.yaml") -> Placement:
    """Placement from YAML text. Raises PlacementError: unknown keys, wrong values and what contradicts itself."""
    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise PlacementError(f"{file}{where}: this is not YAML: {getattr(error, 'problem', 'unreadable')}.") from None
    try:
        found = TypeAdapter(Placement).validate_json(
            json.dumps(raw or {}, default=str)
        )  # JSON: lists are tuples there, and nothing else is
    except ValidationError as error:
        raise PlacementError("\n".join(_told(file, each) for each in error.errors()[:5])) from None
    problems = _step_problems("default", found) or [each for name in found.steps for each in _step_problems(name, found)]
    if problems := problems + _problems(found):
        raise PlacementError("\n".join(f"{file}: {problem}" for problem in problems[:5]))
    return found


def _told(file: str, error: Any) -> str:
    where = ".".join(str(part) for part in error["loc"] if part != "Placement") or "the file"
    if error["type"] == "unexpected_keyword_argument":
        return f"{file}: {where}: there is no such key. Correct its spelling or take it out; the shipped files name every key."
    if error["type"] == "string_pattern_mismatch":
        return f"{file}: {where}: found {error['input']!r}, which is not of the form {_forms()[error['ctx']['pattern']]}."
    return f"{file}: {where}: found {error['input']!r}. {error['msg']}."


def _forms() -> dict[str, str]:
    forms = {Name: "of a Kubernetes name (a-z, 0-9, - and .)", Cpu: "'500m' or '2'", Memory: "'4Gi' or '500M'", Mount: "'/workspace'"}
    forms |= {Image: "'registry/name:tag' or 'registry/name@sha256:...'"}
    patterns = {get_args(kind)[1].pattern: form for kind, form in forms.items()}
    patterns[get_args(Deploy.__annotations__["prometheus"])[1].pattern] = "'http://prometheus.monitoring.svc:9090'"
    return patterns | {get_args(get_args(Workspace.__annotations__["root"])[0])[1].pattern: "'s3://bucket/prefix'"}


def _step_problems(name: str, placement: Placement) -> list[str]:
    own = placement.default if name == "default" else placement.steps.get(name, Step())
    step, found = placement.step(name), []
    for what in ("cpu", "memory"):
        asked, most = getattr(step.requests, what, None), getattr(step.limits, what, None)
        if asked and most and quantity(asked) > quantity(most):
            found.append(f"{name}: requests {what} {asked}, more than its limit {most}. Raise the limit or ask for less.")
    for each in step.tolerations or ():
        if each.operator == "Exists" and each.value is not None:
            found.append(f"{name}: a toleration with operator Exists has the value {each.value!r}. Take the value out, or use Equal.")
        if each.key is None and each.operator == "Equal":
            found.append(f"{name}: a toleration without key needs operator Exists.")
    if own.cache and name in NEVER_CACHED:
        found.append(f"{name}: cache is true, but {NEVER_CACHED[name]}. Take it out.")
    if step.cache and "@sha256:" not in (step.image or ""):
        found.append(
            f"{name}: cache is true, but its image {step.image or ''!r} has no digest: results of older code would be taken. Pin the image."
        )
    return found


def _problems(placement: Placement) -> list[str]:
    job, found = placement.training, []
    absent = WHOLE if placement.shards > 1 and placement.engine == "kubeflow" else SHARDED
    for name in sorted(set(absent) & set(placement.steps)):
        there = ", ".join(SHARDED if absent is WHOLE else WHOLE)
        found.append(f"steps.{name}: with shards {placement.shards} by {placement.engine} there is no such step. In its place: {there}.")
    if placement.shards > 1 and placement.engine != "processes" and not placement.shuffle:
        found.append(
            f"shards is {placement.shards}, but there is no place that all of them reach. Name a workspace.claim or workspace.root."
        )
    found += [f"steps.{name}: there is no such step. Steps: {', '.join(STEPS)}." for name in placement.steps if name not in STEPS]
    if job and placement.step("train_fusion").accelerator:
        found.append("train_fusion has an accelerator and training starts a TrainJob: the step only waits. Take one of the two out.")
    if job and not placement.workspace.claim:
        found.append(
            "training starts a TrainJob, but there is no workspace.claim that the step and its nodes share. Name a ReadWriteMany claim."
        )
    if job and not (job.image or placement.step("train_fusion").image):
        found.append("training starts a TrainJob, but no image is named for its nodes. Name training.image or default.image.")
    if job and not placement.service_account:
        found.append("training starts a TrainJob, which needs rights. Name a service_account that may create, get and delete TrainJobs.")
    return found + _deploy_problems(placement)


def _deploy_problems(placement: Placement) -> list[str]:
    if placement.deploy is None:
        return []
    found, root, most = [], placement.workspace.root or "", placement.step("deploy").timeout_s
    if not root.startswith(("s3://", "gs://")):
        found.append(f"deploy: KServe fetches the bundle from s3:// or gs://, but workspace.root is {root!r}. Name one that both reach.")
    if not placement.service_account:
        found.append("deploy changes an InferenceService, which needs rights. Name a service_account that may get and patch it.")
    if most is not None and most < placement.deploy.watch_s + 1500:
        found.append(
            f"deploy: timeout_s {most} ends the step while it still watches ({placement.deploy.watch_s} s), or waits for readiness, twice, "
            "and for the way back (1,500 s). Raise it."
        )
    return found


def quantity(text: str) -> float:
    """A Kubernetes quantity as a number: cores or bytes."""
    number, suffix = re.fullmatch(r"([0-9.]+)([A-Za-z]*)", text).groups()  # type: ignore[union-attr]
    power = "KMGTPE".find(suffix[:1]) + 1 if suffix and suffix != "m" else 0
    return float(number) * (0.001 if suffix == "m" else (1024 if suffix.endswith("i") else 1000) ** power)
