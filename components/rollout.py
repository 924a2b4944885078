"""A published bundle into an InferenceService: pinned by digest, first as a canary, then all of it or none of it.

Which field splits the traffic depends on KServe: `canaryTrafficPercent` with Knative, `spec.canary` in Standard mode from 0.20 on. An older
Standard mode takes the first without a word and ignores it, so it is refused here, and what was applied is read back.
"""

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from components.artifact import bundle_in, manifest_sha256, verify
from components.canary import Limits, Watch, judge
from components.cluster import Cluster, Object
from components.signature import check
from features.errors import ConcordantError

API = "serving.kserve.io/v1beta1"
CONTAINER = "kserve-container"
CHAMPION = "concordant.dev/champion"  # digest and place of what was served before a canary that stands in its place
PIN = "CONCORDANT_BUNDLE_DIGEST"  # the predictor serves no other bundle
SCALING = ("minReplicas", "maxReplicas", "scaleTarget", "scaleMetric", "scaleMetricType", "autoScaling", "canaryTrafficPercent")
MODES = {"RawDeployment": "Standard", "Serverless": "Knative"}  # the older names
Outcome = Literal["promoted", "canary", "deployed"]
SCHEMES = ("s3://", "gs://", "pvc://", "oci://", "https://", "hf://")


class RolloutError(ConcordantError):
    """The bundle can't be rolled out like this, or was rolled back."""


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A bundle as a cluster finds it: its place and the sha256 of its manifest."""

    uri: str
    digest: str

    def __post_init__(self) -> None:
        if not self.uri.startswith(SCHEMES):
            raise RolloutError(f"--uri must begin with one of {', '.join(SCHEMES)}, found {self.uri!r}.")

    @property
    def short(self) -> str:
        """Name of the canary."""
        return f"c{self.digest.removeprefix('sha256:')[:10]}"


@dataclass(frozen=True, kw_only=True)
class Service:
    """An InferenceService as it stands."""

    found: Object
    cluster: Cluster
    namespace: str
    name: str
    splits: bool  # whether the installed definition knows spec.canary

    @property
    def path(self) -> str:
        """In the API."""
        return f"/apis/{API}/namespaces/{self.namespace}/inferenceservices/{self.name}"

    @property
    def mode(self) -> str:
        """Standard or Knative."""
        told = (self.found.get("status") or {}).get("deploymentMode") or self._annotations.get(
            "serving.kserve.io/deploymentMode", "Knative"
        )
        return MODES.get(told, told)

    @property
    def _annotations(self) -> dict[str, str]:
        return self.found["metadata"].get("annotations") or {}

    @property
    def champion(self) -> Reference:
        """What had all traffic before a canary; with Knative the canary stands in the champion's place, and a note tells of the champion.

        Raises RolloutError where a canary is open that `deploy` did not begin.
        """
        if not self._in_place:
            return self.reference
        digest, _, uri = self._annotations.get(CHAMPION, "").partition(" ")
        if not uri:
            raise RolloutError(f"{self.name} has a canary that was not begun by `deploy`, so its champion is not known. End it first.")
        return Reference(uri=uri, digest=digest.removeprefix("unpinned"))

    @property
    def canary(self) -> bool:
        """Whether one is open."""
        return self._in_place or bool(self.found["spec"].get("canary"))

    @property
    def _in_place(self) -> bool:
        return self.mode == "Knative" and self.found["spec"]["predictor"].get("canaryTrafficPercent", 100) < 100

    @property
    def reference(self) -> Reference:
        """What its predictor is given; the digest is "" where it was never pinned."""
        variables = {each["name"]: each.get("value", "") for each in _container(self.found["spec"]["predictor"]).get("env") or ()}
        return Reference(uri=variables.get("STORAGE_URI", ""), digest=variables.get(PIN, ""))

    def again(self) -> "Service":
        """As it stands now."""
        return replace(self, found=self.cluster.get(self.path) or {"metadata": {}, "spec": {"predictor": {}}})

    def pods(self, new: Reference) -> tuple[str, str]:
        """Patterns of the names of the predictor's pods: champion's and canary's."""
        if self.mode == "Standard":
            return f"{self.name}-predictor-.*", f"{self.name}-{new.short}-predictor-.*"
        told = (self.found.get("status") or {}).get("components", {}).get("predictor", {})
        champion, canary = told.get("latestRolledoutRevision"), told.get("latestCreatedRevision")  # rolled out: had all traffic once
        if not champion or not canary or champion == canary:
            raise RolloutError(f"KServe does not say which revisions of {self.name} are champion and canary, so they can't be compared.")
        return f"{champion}-deployment-.*", f"{canary}-deployment-.*"


def reference(bundle: Path, uri: str, public_key: Path | None = None) -> Reference:
    """A verified bundle's reference. Raises BundleError where a file was altered, or `public_key` has not signed it."""
    folder = bundle_in(bundle)
    verify(folder)
    if public_key:
        check(folder, public_key)
    return Reference(uri=uri, digest=manifest_sha256(folder))


def read(cluster: Cluster, namespace: str, name: str) -> Service:
    """The InferenceService of that name. Raises RolloutError where there is none."""
    service = Service(found={}, cluster=cluster, namespace=namespace, name=name, splits=_splits(cluster))
    found = cluster.get(service.path)
    if found is None:
        raise RolloutError(
            f"There is no InferenceService {name} in {namespace}. Install the chart first: helm install {name} charts/concordant."
        )
    return replace(service, found=found)


def _splits(cluster: Cluster) -> bool:
    told = cluster.get(f"/openapi/v3/apis/{API}") or {}
    schemas = (told.get("components") or {}).get("schemas") or {}
    kinds = [each for name, each in schemas.items() if name.endswith(".InferenceService")]
    return any("canary" in each.get("properties", {}).get("spec", {}).get("properties", {}) for each in kinds)


def wanted(service: Service, new: Reference, percent: int | None) -> Object:
    """What to apply: all traffic to `new` (`percent` None), or `percent` of it to a canary beside what is served now.

    Lists are given whole, because the definition keeps containers as one value. Raises RolloutError where KServe would ignore the split.
    """
    predictor = service.found["spec"]["predictor"]
    base: Object = {"containers": predictor.get("containers")}  # named each time: what we no longer name would go
    spec: Object = {"predictor": base}
    metadata: Object = {"name": service.found["metadata"]["name"]}
    if percent is None:
        base["containers"] = _containers(predictor, new)
    elif service.mode == "Knative":
        base["containers"], base["canaryTrafficPercent"] = _containers(predictor, new), percent
        metadata["annotations"] = {CHAMPION: f"{service.champion.digest or 'unpinned'} {service.champion.uri}"}
    elif service.splits:
        beside = {name: copy.deepcopy(each) for name, each in predictor.items() if name not in SCALING and name != "name"}
        beside |= {"name": new.short, "minReplicas": 1, "containers": _containers(predictor, new)}
        spec["canary"] = [{"trafficPercent": percent, "predictor": beside}]
    else:
        raise RolloutError(
            "The installed InferenceService does not name spec.canary: KServe is older than 0.20, or has its minimal definitions. "
            f"In {service.mode} mode it could ignore a canary in silence. Update KServe, use Knative mode, or deploy with --traffic 100."
        )
    if service.mode == "Standard" and "transformer" in service.found["spec"]:
        spec["transformer"] = {"containers": _divided(service, new, percent)}
    return {"apiVersion": API, "kind": "InferenceService", "metadata": metadata, "spec": spec}


def _container(predictor: Object) -> Object:
    found = next((each for each in predictor.get("containers") or () if each.get("name") == CONTAINER), None)
    if found is None:
        raise RolloutError(f"The InferenceService has no container {CONTAINER} in its predictor: it was not made by this chart.")
    return found


def _containers(predictor: Object, new: Reference) -> list[Object]:
    _container(predictor)
    whole = copy.deepcopy(predictor["containers"])
    for each in whole:
        if each["name"] == CONTAINER:
            others = [variable for variable in each.get("env") or () if variable["name"] not in ("STORAGE_URI", PIN)]
            pin = [{"name": PIN, "value": new.digest}] if new.digest else []
            each["env"] = [{"name": "STORAGE_URI", "value": new.uri}, *pin, *others]
    return whole


def _divided(service: Service, new: Reference, percent: int | None) -> list[Object]:
    """The transformer's containers: in Standard mode KServe splits in front of it only, so it is told of the canary itself."""
    whole: list[Object] = copy.deepcopy(service.found["spec"]["transformer"].get("containers") or [])
    for each in whole:
        if each.get("name") == CONTAINER and "--predictor_host" in (each.get("args") or ()):
            each["args"] = [argument for argument in each["args"] if not argument.startswith("--canary")]
            if percent is not None:
                host = f"{service.name}-{new.short}-predictor.{service.namespace}"
                each["args"] += [f"--canary={host}", f"--canary-percent={percent}"]
    return whole


def faults(service: Service, applied: Object) -> list[str]:
    """What was applied and does not stand there, and a split that should have gone."""
    spec = service.found["spec"]
    left = [] if applied["spec"].get("canary") or not spec.get("canary") else ["the end of spec.canary"]
    if "canaryTrafficPercent" not in applied["spec"]["predictor"] and spec["predictor"].get("canaryTrafficPercent", 100) != 100:
        left.append("the end of spec.predictor.canaryTrafficPercent")
    return left + _missing(applied["spec"], spec, "spec")


def _missing(asked: Any, found: Any, place: str) -> list[str]:
    if isinstance(asked, dict) and isinstance(found, dict):
        return [told for name, each in asked.items() for told in _missing(each, found.get(name), f"{place}.{name}")]
    if isinstance(asked, list) and isinstance(found, list) and len(asked) == len(found):
        return [told for n, each in enumerate(asked) for told in _missing(each, found[n], f"{place}.{n}")]
    return [] if asked == found else [place]


def waiting(service: Service, new: Reference, percent: int | None) -> str:
    """What KServe's status still lacks; "" where the traffic goes as asked."""
    status = service.found.get("status") or {}
    seen = status.get("observedGeneration", service.found["metadata"].get("generation"))
    if seen != service.found["metadata"].get("generation"):
        return "KServe has not looked at it yet"
    if percent is not None and service.mode != "Knative":
        told: Object = next((each for each in status.get("canaryStatuses") or () if each.get("name") == new.short), {})
        return "" if told.get("ready") and told.get("trafficPercent") == percent else f"canary {new.short} is not ready"
    if percent is not None:
        traffic = (status.get("components") or {}).get("predictor", {}).get("traffic") or []
        latest = sum(each.get("percent") or 0 for each in traffic if each.get("latestRevision"))
        return "" if _ready(status) and latest == percent else f"{latest} % of the traffic goes to the new revision"
    return "" if _ready(status) else "the service is not ready"


def _ready(status: Object) -> bool:
    return any(each["type"] == "Ready" and each["status"] == "True" for each in status.get("conditions") or ())


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How to go about it: share of traffic, time to become ready, time to be watched, and between looks."""

    percent: int | None = 10
    ready_s: float = 600.0
    watch_s: float = 900.0
    every_s: float = 15.0
    back_s: float = 180.0  # tried so long to roll back
    limits: Limits = Limits()


def in_cluster(
    bundle: Path, uri: str, name: str, namespace: str, traffic: int, watch_s: float, prometheus: str, tell: Callable[[str], None]
) -> Outcome:
    """`deploy` from a pod of the cluster. `traffic`: percent for the canary, 100 for all at once. Raises RolloutError."""
    import signal

    def ended(number: int, _: object) -> None:
        raise SystemExit(128 + number)  # so that a pod that is taken away rolls back first

    plan = Plan(percent=None if traffic == 100 else traffic, watch_s=watch_s)
    watch = Watch(champion="", canary="", prometheus=prometheus) if prometheus else None
    before = signal.signal(signal.SIGTERM, ended)
    try:
        return deploy(read(Cluster(), namespace, name), reference(bundle, uri), plan, watch, tell)
    finally:
        signal.signal(signal.SIGTERM, before)


def deploy(service: Service, new: Reference, plan: Plan, watch: Watch | None, tell: Callable[[str], None]) -> Outcome:
    """Roll a bundle out. With a canary and metrics to watch it ends promoted or rolled back; without metrics the canary stays for a person.

    Raises RolloutError where it was rolled back; what was served before is served again, whatever ended the rollout.
    """
    old = service.champion
    if old == new and not service.canary:
        tell(f"{new.digest} is served already.")
        return "deployed"
    if plan.percent is not None and service.mode == "Knative" and service.canary and service.reference != new:
        raise RolloutError(
            f"A canary of {service.reference.digest or service.reference.uri} is open. Promote it, or roll it back to "
            f"{old.digest or old.uri}, by deploying that bundle with --traffic 100; then begin another."
        )
    try:
        return _rolled_out(service, new, plan, watch, tell)
    except BaseException as error:
        tell("Rolling back.")
        reason = str(error) if isinstance(error, ConcordantError) else f"it was ended by {type(error).__name__}."
        roll_back(service, old, plan, reason)
        if isinstance(error, ConcordantError | KeyboardInterrupt):
            raise RolloutError(f"Rolled back to {old.digest or old.uri}: {reason}") from None
        raise


def _rolled_out(service: Service, new: Reference, plan: Plan, watch: Watch | None, tell: Callable[[str], None]) -> Outcome:
    _settle(service, new, plan.percent, plan)
    if plan.percent is None:
        tell(f"All traffic goes to {new.digest}.")
        return "deployed"
    tell(f"{plan.percent} % of the traffic goes to the canary {new.short}.")
    if watch is None:
        return "canary"
    if watch.prometheus and not watch.canary:
        champion, canary = service.again().pods(new)
        watch = replace(watch, champion=champion, canary=canary, namespace=service.namespace)
    _watched(watch, plan, tell)
    if plan.percent == 0:
        tell(f"The shadow {new.short} keeps every limit. It stays a shadow: deploy it with --traffic to let it answer.")
        return "canary"
    _settle(service.again(), new, None, plan)
    tell(f"Promoted: all traffic goes to {new.digest}. Keep it: helm upgrade ... --set model.uri={new.uri} --set model.digest={new.digest}")
    return "promoted"


def roll_back(service: Service, old: Reference, plan: Plan, reason: str) -> None:
    """All traffic to what was served before: with Knative first off the new revision, which is immediate. Tried again while the cluster
    does not answer. Raises RolloutError where it could not be done, with `reason` and what still stands."""
    until = time.monotonic() + plan.back_s
    while True:
        try:
            now = service.again()
            if now.mode == "Knative" and now.canary:
                service.cluster.apply(service.path, wanted(now, now.reference, 0))
            asked = wanted(now, old, None)
            service.cluster.apply(service.path, asked)
            if lost := faults(service.again(), asked):
                raise RolloutError(f"the cluster keeps {', '.join(lost[:5])}")
            return
        except ConcordantError as error:
            if time.monotonic() > until:
                raise RolloutError(
                    f"NOT rolled back, the new bundle may still be given traffic: {error} What began it: {reason} "
                    f"Look: kubectl -n {service.namespace} get inferenceservice {service.name} -o yaml"
                ) from None
            time.sleep(min(plan.every_s, 5.0))


def _settle(service: Service, new: Reference, percent: int | None, plan: Plan) -> None:
    """Apply, read back, and wait until the status says so."""
    asked = wanted(service, new, percent)
    service.cluster.apply(service.path, asked)
    if lost := faults(service.again(), asked):
        raise RolloutError(f"The cluster took the InferenceService but not {', '.join(lost[:5])}.")
    until, lacking = time.monotonic() + plan.ready_s, "nothing was seen"
    while lacking := waiting(service.again(), new, percent):
        if time.monotonic() > until:
            raise RolloutError(f"It was not ready within {plan.ready_s:g} s: {lacking}.")
        time.sleep(min(plan.every_s, 2.0))


def _watched(watch: Watch, plan: Plan, tell: Callable[[str], None]) -> None:
    began, verdict = watch.look(), None
    until = time.monotonic() + plan.watch_s
    while verdict is None or time.monotonic() < until:
        time.sleep(min(plan.every_s, max(0.0, until - time.monotonic())))
        champion, canary = (now.since(then) for now, then in zip(watch.look(), began, strict=True))
        verdict = judge(champion, canary, plan.limits)
        tell(verdict.told)
        if verdict.faults:
            raise RolloutError("; ".join(verdict.faults) + ".")
    if verdict.lacking:
        raise RolloutError("; ".join(verdict.lacking) + ".")
