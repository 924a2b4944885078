"""An API server for tests: real HTTP, server-side apply with owners of fields, strict schemas, and a stand-in for KServe's controller.

Every request is held against the API: paths, query parameters, content type, and objects against the definitions that are installed
(`cluster_schemas`). It runs nothing: statuses are invented, so this is not Kubernetes.
"""

import copy
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import cluster_schemas
import yaml
from loopback import Json, listening

Object = dict[str, Any]
APPLY = {"fieldManager", "force", "fieldValidation", "dryRun"}


@dataclass
class Server:
    """Objects by path, what was applied by whom, what was asked, and what was not as the API says."""

    customs: cluster_schemas.Customs
    token: str = "token"
    url: str = ""
    objects: dict[str, Object] = field(default_factory=dict)
    owned: dict[tuple[str, str], Object] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    applied: list[Object] = field(default_factory=list)
    drops: tuple[str, ...] = ()  # fields of spec that a careless server would lose
    forbidden: tuple[str, ...] = ()
    controller: Callable[[Object], None] = lambda found: None

    def put(self, path: str, found: Object) -> None:
        """An object that somebody else made."""
        found = copy.deepcopy(found)
        found["metadata"].setdefault("generation", 1)
        self.controller(found)
        self.objects[path] = found

    def kubeconfig(self, folder: Path) -> Path:
        """A file that leads here."""
        told = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "here",
            "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me"}}],
            "clusters": [{"name": "here", "cluster": {"server": self.url}}],
            "users": [{"name": "me", "user": {"token": self.token}}],
        }
        (folder / "kubeconfig").write_text(yaml.safe_dump(told), encoding="utf-8")
        return folder / "kubeconfig"

    def apply(self, path: str, query: dict[str, str], asked: Object) -> tuple[int, Object]:
        """Server-side apply: fields that the manager set before and no longer names go; lists are one value."""
        name = path.rpartition("/")[2]
        if asked.get("metadata", {}).get("name") != name:
            return 400, {"message": "the name of the object does not match the name on the URL"}
        old = self.objects.get(path)
        if old is None:
            return 404, {"message": "not found"}
        new, before = copy.deepcopy(old), self.owned.get((path, query["fieldManager"]), {})
        _remove(new["spec"], before.get("spec", {}), asked["spec"])
        _merge(new, asked)
        clean = {name: each for name, each in new.items() if name != "status"}
        clean["metadata"] = {name: each for name, each in new["metadata"].items() if name != "generation"}
        if wrong := cluster_schemas.faults(clean, self.customs):
            self.faults += wrong
            return 400, {"message": "; ".join(wrong)}
        for each in self.drops:
            new["spec"].pop(each, None)
        if new["spec"] != old["spec"]:
            new["metadata"]["generation"] += 1
        self.controller(new)
        self.objects[path], self.owned[path, query["fieldManager"]] = new, asked
        self.applied.append(asked)
        return 200, new


def _remove(found: Object, before: Object, asked: Object) -> None:
    for name, each in before.items():
        if name not in asked:
            found.pop(name, None)
        elif isinstance(each, dict) and isinstance(found.get(name), dict):
            _remove(found[name], each, asked[name])


def _merge(found: Object, asked: Object) -> None:
    for name, each in asked.items():
        if isinstance(each, dict) and isinstance(found.get(name), dict):
            _merge(found[name], each)
        else:
            found[name] = copy.deepcopy(each)


class _Handler(Json):
    server_of_test: Server
    protocol_version = "HTTP/1.1"

    do_GET = do_PATCH = do_POST = do_PUT = do_DELETE = Json.answer

    def judge(self, raw: bytes) -> tuple[int, Object]:
        here, address = self.server_of_test, urlsplit(self.path)
        query = dict(parse_qsl(address.query))
        here.asked.append((self.command, address.path))
        if self.headers.get("Authorization") != f"Bearer {here.token}":
            return 401, {"message": "Unauthorized"}
        if address.path.startswith(here.forbidden or ("\0",)):
            return 403, {"message": f"forbidden: cannot get {address.path}"}
        if self.command == "GET":
            found = here.objects.get(address.path)
            if found is not None and "as=PartialObjectMetadata" in self.headers["Accept"] and found.get("kind"):
                found = {"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": found["metadata"]}
            elif found is not None and "/secrets/" in address.path:
                here.faults.append(f"the values of {address.path} were read")
            return (200, found) if found is not None else (404, {"message": "not found"})
        if self.command != "PATCH" or self.headers["Content-Type"] != "application/apply-patch+yaml":
            here.faults.append(f"{self.command} {self.headers['Content-Type']}")
            return 415, {"message": "unsupported media type"}
        if unknown := set(query) - APPLY or ({"fieldManager"} - set(query)):
            here.faults.append(f"query: {sorted(unknown)}")
            return 400, {"message": "query"}
        return here.apply(address.path, query, json.loads(raw))


def kserve(*, knative: bool, ready: bool = True, old: bool = False) -> Callable[[Object], None]:
    """What KServe's controller would write into the status. `old`: a Standard mode that ignores canaries."""

    def write(found: Object) -> None:
        spec, status = found["spec"], found.setdefault("status", {})
        status["observedGeneration"] = found["metadata"]["generation"]
        status["deploymentMode"] = "Knative" if knative else "Standard"
        status["conditions"] = [{"type": "Ready", "status": "True" if ready else "False"}]
        if knative:
            percent = spec["predictor"].get("canaryTrafficPercent", 100)
            now = f"{found['metadata']['name']}-predictor-{found['metadata']['generation']:05d}"
            # what had all traffic last is the champion of a canary; "previous" is the one before it
            rolled = {"latestRolledoutRevision": now if percent == 100 else "before", "previousRolledoutRevision": "older"}
            traffic = [{"latestRevision": True, "percent": percent, "revisionName": now}]
            traffic += [{"percent": 100 - percent, "revisionName": "before", "tag": "prev"}] if percent < 100 else []
            status["components"] = {"predictor": {"traffic": traffic, "latestCreatedRevision": now} | rolled}
        elif not old:
            told = [
                {"name": each["predictor"]["name"], "ready": ready, "trafficPercent": each["trafficPercent"]}
                for each in spec.get("canary", [])
            ]
            status["canaryStatuses"] = told

    return write


def definitions(*, canary: bool) -> Object:
    """OpenAPI of KServe's group, as the server publishes it: only what is asked for."""
    spec = {"predictor": {"type": "object"}} | ({"canary": {"type": "array"}} if canary else {})
    kind = {"properties": {"spec": {"properties": spec}}}
    return {"components": {"schemas": {"io.kserve.serving.v1beta1.InferenceService": kind}}}


@contextmanager
def serving(customs: cluster_schemas.Customs) -> Iterator[Server]:
    """A server on a free port of 127.0.0.1."""
    made = Server(customs=customs)
    with listening(type("Handler", (_Handler,), {"server_of_test": made})) as made.url:
        yield made
