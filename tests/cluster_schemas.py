"""Strict schemas of Kubernetes objects: its own by kubernetes-validate, others' by their definitions, rules between fields included.

Istio's come as models that let an unknown field pass: what they read must be all that was written.
"""

import copy
import gzip
import json
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

import cel
from cloudcoil.models.istio.security import v1 as istio
from jsonschema import Draft7Validator, Draft202012Validator
from pydantic import BaseModel, ValidationError
from referencing import Registry, Resource

Object = dict[str, Any]
SCHEMAS = files("kubernetes_validate") / "kubernetes-json-schema" / "v1.37.0-local-strict"
KEY = r"^([A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?$"
STRINGS = {"type": "object", "additionalProperties": {"type": "string"}}
ISTIO: dict[tuple[str, str], type[BaseModel]] = {
    ("security.istio.io/v1", "AuthorizationPolicy"): istio.AuthorizationPolicy,
    ("security.istio.io/v1", "RequestAuthentication"): istio.RequestAuthentication,
}
METADATA = {  # of custom resources: their definitions leave it to the server
    "type": "object",
    "additionalProperties": False,
    "required": ["name"],
    "properties": {
        "name": {"type": "string", "maxLength": 253, "pattern": r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$"},
        "namespace": {"type": "string", "maxLength": 63},
        "labels": {"type": "object", "additionalProperties": {"type": "string", "pattern": KEY}},
        "annotations": STRINGS,
        "ownerReferences": {
            "type": "array",
            "items": {
                "type": "object",
                "additionalProperties": False,
                "required": ["apiVersion", "kind", "name", "uid"],
                "properties": {name: {"type": "string"} for name in ("apiVersion", "kind", "name", "uid")},
            },
        },
    },
}


@dataclass(frozen=True, eq=False)
class Custom:
    """The structural schema of a custom resource."""

    schema: Object

    @cached_property
    def checker(self) -> Draft7Validator:
        return Draft7Validator(_strict(self.schema, root=True))


Customs = dict[tuple[str, str], Custom]


@cache
def _definitions() -> Any:
    return Registry().with_resource("_definitions.json", Resource.from_contents(json.loads((SCHEMAS / "_definitions.json").read_text())))


@cache
def _own(api: str, kind: str) -> Draft202012Validator | None:
    group, _, version = api.rpartition("/")
    named = SCHEMAS / f"{kind.lower()}-{group.split('.')[0] + '-' if group else ''}{version}.json"
    if not named.is_file():
        return None
    schema = json.loads(named.read_text())
    if api not in schema["properties"]["apiVersion"]["enum"]:
        return None  # another group with the same first word
    resource = Resource.from_contents(schema)
    return Draft202012Validator(schema, registry=resource @ _definitions())


def own(found: Object) -> bool:
    """Whether its schema comes with a package: Kubernetes' own kind, or Istio's."""
    return _own(found["apiVersion"], found["kind"]) is not None or (found["apiVersion"], found["kind"]) in ISTIO


def faults(found: Object, custom: Customs | None = None) -> list[str]:
    """What a server would refuse, fields that it does not know included. A kind without a schema is a fault."""
    api, kind = found.get("apiVersion", ""), found.get("kind", "")
    checker = _own(api, kind)
    if checker is not None:
        return _told(checker, found)
    if (api, kind) in ISTIO:
        return _mesh(ISTIO[api, kind], found)
    known = (custom or {}).get((api, kind))
    if known is None:
        return [f"no schema for {kind} in {api}"]
    filled = _defaults(known.schema, copy.deepcopy(found))
    return _told(known.checker, filled) + _rules(known.schema, filled, kind)


def _mesh(model: type[BaseModel], found: Object) -> list[str]:
    try:
        read_again = model.model_validate(found).model_dump(by_alias=True, exclude_unset=True, mode="json")
    except ValidationError as error:
        return [f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()]
    return _lost(found, read_again, "")


def _lost(written: Any, kept: Any, place: str) -> list[str]:
    if isinstance(written, dict) and isinstance(kept, dict):
        return [told for name, each in written.items() for told in _lost(each, kept.get(name), f"{place}.{name}")]
    if isinstance(written, list) and isinstance(kept, list) and len(written) == len(kept):
        return [told for n, each in enumerate(written) for told in _lost(each, kept[n], f"{place}.{n}")]
    return [] if written == kept else [f"{place.removeprefix('.')} is not known"]


def _told(checker: Any, found: Object) -> list[str]:
    return [f"{'.'.join(map(str, error.absolute_path))}: {error.message[:200]}" for error in checker.iter_errors(found)]


def read(folder: Path) -> Customs:
    """Structural schemas by apiVersion and kind from a folder of `*.json.gz`."""
    found = (json.loads(gzip.decompress(path.read_bytes())) for path in sorted(folder.glob("*.json.gz")))
    return {(each["apiVersion"], each["kind"]): Custom(each["schema"]) for each in found}


def _strict(schema: Any, *, root: bool = False) -> Any:
    # a structural schema as JSON Schema, as strict as fieldValidation=Strict: unknown fields are refused unless kept on purpose
    extensions = {name.removeprefix("x-kubernetes-"): schema[name] for name in schema if name.startswith("x-kubernetes-")}
    made = {name: schema[name] for name in schema if name not in ("default", "description", "nullable") and not name.startswith("x-")}
    if extensions.get("int-or-string"):
        made.pop("anyOf", None)
        made["type"] = ["integer", "string"]
    open_ended = extensions.get("preserve-unknown-fields") or extensions.get("embedded-resource")
    if "properties" in made:
        made["properties"] = {name: _strict(each) for name, each in made["properties"].items()}
        if root:
            made["properties"]["metadata"] = METADATA
        if not open_ended:
            made.setdefault("additionalProperties", False)
    if isinstance(made.get("additionalProperties"), dict):
        made["additionalProperties"] = _strict(made["additionalProperties"])
    if "items" in made:
        made["items"] = _strict(made["items"])
    for bound, edge in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if made.pop(bound, False) is True:  # draft 4 writes a flag, draft 7 the number
            made[bound] = made.pop(edge)
    if schema.get("nullable") and isinstance(made.get("type"), str):
        made["type"] = [made["type"], "null"]
    return made


def _inside(schema: Object, found: Any) -> list[tuple[Object, Any]]:
    if isinstance(found, list):
        return [(schema["items"], each) for each in found] if isinstance(schema.get("items"), dict) else []
    if not isinstance(found, dict):
        return []
    known, rest = schema.get("properties") or {}, schema.get("additionalProperties")
    pairs = [(known.get(name, rest), each) for name, each in found.items()]
    return [(inner, each) for inner, each in pairs if isinstance(inner, dict)]


def _defaults(schema: Object, found: Any) -> Any:
    # the server fills defaults before it looks at the rules
    if isinstance(found, dict):
        for name, inner in (schema.get("properties") or {}).items():
            if "default" in inner:
                found.setdefault(name, copy.deepcopy(inner["default"]))
    for inner, each in _inside(schema, found):
        _defaults(inner, each)
    return found


def _rules(schema: Object, found: Any, place: str) -> list[str]:
    told = []
    for rule in schema.get("x-kubernetes-validations") or []:
        if "oldSelf" in rule["rule"]:
            continue  # for changes only; these objects are new
        if cel.evaluate(rule["rule"], {"self": found}) is not True:
            told.append(f"{place}: {rule.get('message', rule['rule'])}")
    for inner, each in _inside(schema, found):
        told += _rules(inner, each, place)
    return told
