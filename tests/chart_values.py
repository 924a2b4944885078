"""Values the chart is tried with: named sets as people write them, and generated ones from the edges of every value."""

import json
import random
from copy import deepcopy
from typing import Any

from helm_cli import CHART

Values = dict[str, Any]
ISSUER = {"iss": "https://ehr.hospital.example", "jku": "https://ehr.hospital.example/jwks.json"}
PRINCIPAL = "cluster.local/ns/istio-system/sa/gateway"
DIGEST = "sha256:" + "a" * 64
GPU = {"requests": {"cpu": 4, "memory": "16Gi", "nvidia.com/gpu": 1}, "limits": {"cpu": 4, "memory": "16Gi", "nvidia.com/gpu": 1}}
NODES = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{"matchFields": []}]}}}
RELEASES = ("site", "0", "1a", "a.b", "true", "concordant", "r" * 53, "r" * 39 + "-" + "r" * 13)

NAMED: dict[str, Values] = {
    "defaults": {},
    "Knative": {"mode": "Knative", "networkPolicy": {"gatewayNamespace": {"kubernetes.io/metadata.name": "kourier-system"}}},
    "redis": {
        "store": {"online": "redis", "existingSecret": "redis"},
        "networkPolicy": {"egress": [{"cidr": "10.0.0.0/8", "port": 6379}]},
    },
    "postgresql": {"store": {"online": "postgresql", "existingSecret": "0", "secretKey": "dsn"}},
    "CDS Hooks": {"hooks": {"enabled": True, "audience": "https://cds.hospital.example", "issuers": [ISSUER, ISSUER | {"tenant": "1"}]}},
    "page behind Istio": {
        "page": {"enabled": True},
        "authorization": {
            "type": "istio",
            "principals": [PRINCIPAL],
            "oidcIssuer": "https://id.example",
            "oidcJwksUri": "https://id.example/jwks",
        },
    },
    "monitors": {
        "monitoring": {
            "podMonitor": True,
            "rules": True,
            "dashboard": True,
            "namespace": {"team": "watch"},
            "labels": {"release": "prometheus"},
        }
    },
    "external secrets": {"pseudonym": {"externalSecret": {"enabled": True, "storeName": "vault", "remoteKey": "concordant/key"}}},
    "pinned digest": {"image": {"repository": "registry.example:5000/concordant", "digest": DIGEST, "pullSecrets": ["registry", "0"]}},
    "no network policy": {"networkPolicy": {"enabled": False}},
    "single replica": {part: {"minReplicas": 1, "maxReplicas": 1} for part in ("predictor", "transformer")}
    | {"autoscaling": {"type": "none"}},
    "GPU nodes": {
        "predictor": {
            "resources": GPU,
            "nodeSelector": {"nvidia.com/gpu.present": "true"},
            "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
            "affinity": NODES,
        }
    },
    "audit on a claim, own account, KEDA": {
        "audit": {"claim": "audit"},
        "serviceAccount": {"create": False, "name": "0"},
        "autoscaling": {"type": "keda"},
        "spread": {"topologyKey": "topology.kubernetes.io/zone"},
    },
    "nightly pipeline": {
        "schedule": {
            "enabled": True,
            "source": "s3://records/export",
            "cron": "30 1 * * 1-5",
            "tokenSecret": "0",
            "profile": "team",
            "config": {"service_account": "pipeline-runner", "default": {"timeout_s": 77, "limits": {"cpu": "2"}}},
        }
    },
    "a pipeline that deploys": {"rollout": {"enabled": True, "serviceAccount": "0", "namespace": "pipelines"}},
    "TrainJobs": {"training": {"enabled": True, "serviceAccount": "0", "namespace": "pipelines"}},
    "everything": {
        "hooks": {"enabled": True, "audience": "https://cds.hospital.example", "issuers": [ISSUER]},
        "page": {"enabled": True},
        "authorization": {
            "type": "istio",
            "principals": [PRINCIPAL],
            "oidcIssuer": "https://id.example.org",
            "oidcJwksUri": "https://id.example.org/keys",
        },
        "monitoring": {"podMonitor": True, "rules": True},
        "pseudonym": {"externalSecret": {"enabled": True, "storeName": "vault", "remoteKey": "key"}},
        "networkPolicy": {"from": [{"podSelector": {"matchLabels": {"app": "ward"}}}], "egress": [{"cidr": "192.0.2.1/32", "port": 443}]},
        "training": {"enabled": True, "serviceAccount": "0", "namespace": "pipelines"},
        "serviceAccount": {"annotations": {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/x"}},
    },
}

_PART: dict[str, list[Any]] = {
    "minReplicas": [1, 2, 1000],
    "maxReplicas": [1, 4, 1000],
    "resources": [GPU, {"requests": {"cpu": "0.5", "memory": "1G"}, "limits": {"cpu": 1, "memory": 1073741824}}],
    "nodeSelector": [{}, {"pool": "true"}, {"pool": "1e3", "a/b": ""}],
    "tolerations": [
        [],
        [{"operator": "Exists"}],
        [{"key": "0", "operator": "Equal", "value": "yes", "effect": "NoExecute", "tolerationSeconds": 0}],
    ],
    "affinity": [{}, NODES],
}
_NAMES = ["a-b", "0", "null", "yes", "1e3"]
EDGES: dict[str, list[Any]] = {
    "decision": ["glucose_lowering", "y", "null", "n0"],
    "fullnameOverride": ["", "a", "null", "true", "n" * 40],
    "image.repository": ["concordant-serving", "0", "registry.example:5000/a/b"],
    "image.tag": ["", "1", "0x10", "1e3", "_v"],
    "image.digest": ["", DIGEST],
    "image.pullPolicy": ["Always", "IfNotPresent", "Never"],
    "image.pullSecrets": [[], ["0", "yes"]],
    "mode": ["Standard", "Knative"],
    "model.digest": ["", DIGEST],
    "model.uri": ["pvc://concordant-models/bundle", "s3://b/#: x", "oci://registry.example/a@" + DIGEST, "gs://b/'q'"],
    "store.claim": _NAMES,
    "store.path": ["store", "0", "null", "a/b.c"],
    "store.online": ["sqlite", "redis", "postgresql"],
    "store.existingSecret": ["", *_NAMES],
    "store.secretKey": ["url", "0", ".a", "null"],
    "store.wallClock": [True, False],
    "pseudonym.existingSecret": _NAMES,
    "pseudonym.secretKey": ["pseudonym.key", "0", "null"],
    "pseudonym.externalSecret.enabled": [False, True],
    "pseudonym.externalSecret.storeName": ["", "0", "vault"],
    "pseudonym.externalSecret.storeKind": ["SecretStore", "ClusterSecretStore"],
    "pseudonym.externalSecret.remoteKey": ["", "0", "a: b", "null"],
    "pseudonym.externalSecret.refreshInterval": ["1h", "0s"],
    "audit.claim": ["", *_NAMES],
    "hooks.enabled": [False, True],
    "hooks.audience": ["", "https://cds.hospital.example", 'https://a/"b": c'],
    "hooks.issuers": [[], [ISSUER], [ISSUER | {"tenant": "0"}, ISSUER]],
    "page.enabled": [False, True],
    **{f"{part}.{name}": edges for part in ("predictor", "transformer") for name, edges in _PART.items()},
    "autoscaling.type": ["hpa", "keda", "none"],
    "autoscaling.cpuPercent": [1, 70, 100],
    "disruption.enabled": [True, False],
    "spread.topologyKey": ["kubernetes.io/hostname", "0", "null"],
    "serviceAccount.create": [True, False],
    "serviceAccount.name": ["", *_NAMES],
    "serviceAccount.annotations": [{}, {"a": "true", "b": "1e3"}, {"a": 'x: "y"'}],
    "training.enabled": [True, False],
    "training.serviceAccount": _NAMES,
    "training.namespace": ["", *_NAMES],
    "schedule.enabled": [True, False],
    "schedule.image": ["concordant-python:0.1.0", "registry.example:5000/a@" + DIGEST],
    "schedule.source": ["", "s3://b/#:'x", '/workspace/a\\"b'],
    "schedule.cron": ["0 2 * * *", "0 0 2 ? * MON-FRI"],
    "schedule.name": ["", "null", "1e3", "a b"],
    "schedule.experiment": ["concordant", "0", "yes"],
    "schedule.kubeflowNamespace": ["kubeflow", "0", "null"],
    "schedule.profile": ["", "0", "yes"],
    "schedule.tokenSecret": ["", *_NAMES],
    "schedule.config": [{}, {"default": {"limits": {"cpu": "1"}, "node_selector": {"a": "true"}}}],
    "rollout.enabled": [True, False],
    "rollout.serviceAccount": _NAMES,
    "rollout.namespace": ["", *_NAMES],
    "networkPolicy.enabled": [True, False],
    "networkPolicy.from": [[], [{"namespaceSelector": {}}], [{"ipBlock": {"cidr": "10.0.0.0/8"}}, {"podSelector": {}}]],
    "networkPolicy.gatewayNamespace": [{}, {"a": "true"}],
    "networkPolicy.egress": [[], [{"cidr": "10.0.0.0/8", "port": 1}, {"cidr": "2001:db8::/32", "port": 65535}]],
    "authorization.type": ["none", "istio"],
    "authorization.principals": [[], [PRINCIPAL, "*"]],
    "authorization.oidcIssuer": ["", "https://id.example"],
    "authorization.oidcJwksUri": ["", "https://id.example/jwks"],
    "monitoring.podMonitor": [False, True],
    "monitoring.rules": [False, True],
    "monitoring.dashboard": [False, True],
    "monitoring.namespace": [{}, {"kubernetes.io/metadata.name": "0"}],
    "monitoring.labels": [{}, {"release": "true", "team": "1"}],
}


def leaves(schema: Values | None = None, path: str = "") -> set[str]:
    """Every value that can be set, from the chart's schema: what stands below no other value."""
    schema = schema or json.loads((CHART / "values.schema.json").read_text())
    found = set()
    for name, inner in schema["properties"].items():
        here = f"{path}.{name}".lstrip(".")
        branch = "properties" in inner and here.split(".")[-1] not in ("resources", "affinity")
        found |= leaves(inner, here) if branch else {here} - {"global"}
    return found


def put(values: Values, path: str, value: Any) -> Values:
    """The values with one more at a dotted path."""
    *above, last = path.split(".")
    place = values
    for name in above:
        place = place.setdefault(name, {})
    place[last] = deepcopy(value)
    return values


def generated(count: int, seed: int = 0) -> list[tuple[str, Values]]:
    """Release names and values; every edge of every value comes up within the first few, what contradicts itself is mended."""
    order = random.Random(seed)
    rows: list[tuple[str, Values]] = []
    decks = {path: [edges[i % len(edges)] for i in range(count)] for path, edges in EDGES.items()}
    for deck in decks.values():
        order.shuffle(deck)
    for i in range(count):
        values: Values = {}
        for path, deck in decks.items():
            put(values, path, deck[i])
        rows.append((RELEASES[i % len(RELEASES)], mended(values)))
    return rows


def mended(values: Values) -> Values:
    """Without what the chart refuses for good reasons: each is tried on its own."""
    if values["store"]["online"] != "sqlite" and not values["store"]["existingSecret"]:
        values["store"]["existingSecret"] = "0"
    for part in ("predictor", "transformer"):
        values[part]["maxReplicas"] = max(values[part]["minReplicas"], values[part]["maxReplicas"])
    if values["page"]["enabled"]:
        values["authorization"]["type"] = "istio"
    if values["authorization"]["type"] == "istio":
        values["authorization"]["principals"] = [PRINCIPAL]
    if values["authorization"]["oidcIssuer"]:
        values["authorization"]["oidcJwksUri"] = "https://id.example/jwks"
    if values["hooks"]["enabled"]:
        values["hooks"]["audience"] = values["hooks"]["audience"] or "https://cds.hospital.example"
        values["hooks"]["issuers"] = values["hooks"]["issuers"] or [ISSUER]
    if values["schedule"]["enabled"]:
        values["schedule"]["source"] = values["schedule"]["source"] or "s3://records"
    secret = values["pseudonym"]["externalSecret"]
    if secret["enabled"]:
        secret["storeName"], secret["remoteKey"] = secret["storeName"] or "vault", secret["remoteKey"] or "key"
    return values
