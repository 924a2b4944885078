"""A Kubeflow Pipelines endpoint for tests: a real HTTP server that holds every request against the published API.

The paths, query parameters and bodies are read from `kfp_server_api`, which Kubeflow generates from its OpenAPI document: an unknown path,
parameter or field, a wrong type or a word outside an enumeration is refused as a fault. What it does with a good request is little: it
keeps what was made, checks references, and lets a run walk through the states that it was told.
"""

import inspect
import itertools
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import kfp_server_api as published
from loopback import Json, listening

Body = dict[str, Any]
PLAIN = {"str": str, "int": int, "bool": bool, "float": (int, float), "object": dict, "datetime": str}


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One published operation: its path as an expression, what its query may hold, and the model of its body."""

    name: str
    method: str
    path: re.Pattern[str]
    query: frozenset[str]
    body: str | None
    upload: bool


@cache
def operations() -> tuple[Operation, ...]:
    """Every operation of the published client."""
    services = [each for name, each in vars(published).items() if name.endswith("ServiceApi")]
    return tuple(_operation(name, text) for service in services for name, text in _methods(service))


def _methods(service: Any) -> Iterator[tuple[str, str]]:
    for name, method in inspect.getmembers(service, inspect.isfunction):
        if name.endswith("_with_http_info"):
            yield name.removesuffix("_with_http_info"), inspect.getsource(method)


def _operation(name: str, text: str) -> Operation:
    path, method = re.search(r"call_api\(\s*'([^']+)', '([A-Z]+)'", text).groups()  # type: ignore[union-attr]
    body = re.search(r"body_params = local_var_params\['(\w+)'\]", text)
    kind = re.search(rf":type {body[1]}: (\w+)", text) if body else None
    return Operation(
        name=name,
        method=method,
        path=re.compile(re.sub(r"\\{[^}]+\\}", "([^/:]+)", re.escape(path)) + "$"),
        query=frozenset(re.findall(r"query_params\.append\(\('([\w.]+)'", text)),
        body=kind[1] if kind else None,
        upload="local_var_files['uploadfile']" in text,
    )


@cache
def _model(name: str) -> tuple[dict[str, str], tuple[str, ...]]:
    """Types by JSON name, and the words of an enumeration; read once, before a test may spoil the client."""
    model = getattr(published, name)
    return {model.attribute_map[each]: kind for each, kind in model.openapi_types.items()}, tuple(getattr(model, "allowable_values", ()))


def warm() -> None:
    """Read every model now."""
    for name, each in vars(published).items():
        if inspect.isclass(each) and hasattr(each, "openapi_types"):
            _model(name)


def faults(kind: str, found: Any, place: str = "body") -> list[str]:
    """Where a value is not of the published type."""
    if many := re.match(r"list\[(.+)\]$", kind):
        return (
            [f for n, each in enumerate(found) for f in faults(many[1], each, f"{place}.{n}")]
            if isinstance(found, list)
            else [f"{place}: no list"]
        )
    if mapped := re.match(r"dict\(str, (.+)\)$", kind):
        free = mapped[1] == "object"
        return [f for name, each in found.items() if not free for f in faults(mapped[1], each, f"{place}.{name}")]
    if kind in PLAIN:
        wrong = not isinstance(found, PLAIN[kind]) or (kind == "int" and isinstance(found, bool))  # type: ignore[arg-type]
        return [f"{place}: {kind} expected, found {type(found).__name__}"] if wrong else []
    types, words = _model(kind)
    if words:
        return [] if found in words else [f"{place}: {found!r} is none of {words}"]
    if not isinstance(found, dict):
        return [f"{place}: no object"]
    told = [f"{place}.{name}: {kind} has no such field" for name in found if name not in types]
    return told + [f for name, each in found.items() if name in types for f in faults(types[name], each, f"{place}.{name}")]


@dataclass
class Endpoint:
    """What the server keeps, what it was asked, and where a request was not as published.

    `script`: the states of a run's tasks, look by look; the last one stays.
    """

    url: str = ""
    token: str | None = None
    script: list[Body] = field(default_factory=list)
    failing: int = 0  # looks at a run that are answered with 503
    asked: list[tuple[str, Body]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    kept: dict[str, dict[str, Body]] = field(
        default_factory=lambda: {kind: {} for kind in ("experiments", "pipelines", "versions", "runs", "recurring")}
    )
    _number: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def names(self) -> list[str]:
        """The operations that were asked for."""
        return [name for name, _ in self.asked]

    def answer(self, operation: Operation, given: tuple[str, ...], query: dict[str, str], body: Body) -> tuple[int, Body]:
        self.asked.append((operation.name, body | query))
        return getattr(self, f"_{operation.name}", lambda *_: (501, {"message": f"{operation.name} is not played here"}))(
            given, query, body
        )

    def _keep(self, kind: str, key: str, body: Body) -> tuple[int, Body]:
        made = f"{kind}-{next(self._number)}"
        self.kept[kind][made] = body | {key: made}
        return 200, self.kept[kind][made]

    def _page(self, name: str, found: list[Body], query: dict[str, str]) -> tuple[int, Body]:
        """One thing a page, so that a client that reads the first page only is found out."""
        if "filter" in query:
            (predicate,) = json.loads(query["filter"])["predicates"]
            assert predicate["operation"] == "EQUALS" and predicate["key"] == "name", predicate
            found = [each for each in found if predicate["string_value"] in (each.get("name"), each.get("display_name"))]
        start = int(query.get("page_token") or 0)
        after = str(start + 1) if start + 1 < len(found) else ""
        return 200, {name: found[start : start + 1], "total_size": len(found), "next_page_token": after}

    def _experiment_service_list_experiments(self, _: Any, query: dict[str, str], __: Body) -> tuple[int, Body]:
        return self._page(
            "experiments", [each for each in self.kept["experiments"].values() if each.get("namespace") == query.get("namespace")], query
        )

    def _experiment_service_create_experiment(self, _: Any, __: Any, body: Body) -> tuple[int, Body]:
        return self._keep("experiments", "experiment_id", body)

    def _pipeline_service_list_pipelines(self, _: Any, query: dict[str, str], __: Body) -> tuple[int, Body]:
        return self._page("pipelines", list(self.kept["pipelines"].values()), query)

    def _pipeline_service_create_pipeline(self, _: Any, __: Any, body: Body) -> tuple[int, Body]:
        return self._keep("pipelines", "pipeline_id", body)

    def _pipeline_service_list_pipeline_versions(self, given: tuple[str, ...], query: dict[str, str], _: Body) -> tuple[int, Body]:
        return self._page("pipeline_versions", [each for each in self.kept["versions"].values() if each["pipeline_id"] == given[0]], query)

    def _upload_pipeline_version(self, _: Any, query: dict[str, str], body: Body) -> tuple[int, Body]:
        from kfp.components import load_component_from_text

        if query["pipelineid"] not in self.kept["pipelines"]:
            return 404, {"message": "no such pipeline"}
        inputs = load_component_from_text(body["uploadfile"]).component_spec.inputs
        told = {"display_name": query["name"], "name": query["name"], "pipeline_id": query["pipelineid"]}
        status, made = self._keep("versions", "pipeline_version_id", told)
        made["pipeline_spec"] = {"inputs": {name: not each.optional for name, each in inputs.items()}}
        return status, made

    def _ordered(self, body: Body) -> str:
        """What Kubeflow's server itself looks at: references, and parameters as the graph declares them."""
        version = self.kept["versions"].get(body["pipeline_version_reference"]["pipeline_version_id"])
        if body["experiment_id"] not in self.kept["experiments"] or version is None:
            return "the experiment or the version does not exist"
        declared, given = version["pipeline_spec"]["inputs"], body["runtime_config"]["parameters"]
        lacking = {name for name, needed in declared.items() if needed} - set(given)
        return f"parameters: {sorted(lacking | (set(given) - set(declared)))}" if lacking or set(given) - set(declared) else ""

    def _run_service_create_run(self, _: Any, __: Any, body: Body) -> tuple[int, Body]:
        return (400, {"message": wrong}) if (wrong := self._ordered(body)) else self._keep("runs", "run_id", body | {"state": "PENDING"})

    def _run_service_get_run(self, given: tuple[str, ...], _: Any, __: Body) -> tuple[int, Body]:
        if self.failing:
            self.failing -= 1
            return 503, {"message": "upstream is away"}
        return 200, self.kept["runs"][given[0]] | (self.script.pop(0) if len(self.script) > 1 else self.script[0])

    def _recurring_run_service_list_recurring_runs(self, _: Any, query: dict[str, str], __: Body) -> tuple[int, Body]:
        found = [each for each in self.kept["recurring"].values() if each["experiment_id"] == query["experiment_id"]]
        return self._page("recurringRuns", found, query)

    def _recurring_run_service_create_recurring_run(self, _: Any, __: Any, body: Body) -> tuple[int, Body]:
        wrong = self._ordered(body) or ("" if len(body["trigger"]["cron_schedule"]["cron"].split()) == 6 else "cron needs six fields")
        return (400, {"message": wrong}) if wrong else self._keep("recurring", "recurring_run_id", body)

    def _recurring_run_service_delete_recurring_run(self, given: tuple[str, ...], _: Any, __: Body) -> tuple[int, Body]:
        return (200, {}) if self.kept["recurring"].pop(given[0], None) else (404, {"message": "no such recurring run"})


def tasks(state: str, **states: str) -> Body:
    """A run and its tasks as the API tells them, driver tasks included, as a cluster has them."""
    begun = {"start_time": "2026-01-01T00:00:00Z", "end_time": "2026-01-01T00:00:12Z"}
    told = [{"display_name": name.replace("_", "-"), "state": each, "task_id": name, **begun} for name, each in states.items()]
    drivers = [
        {"display_name": f"{each['display_name']}-driver", "state": "SUCCEEDED", "task_id": f"{each['task_id']}-d", **begun}
        for each in told
    ]
    return {"state": state, "run_details": {"task_details": [*drivers, *told]}}


class _Handler(Json):
    endpoint: Endpoint
    protocol_version = "HTTP/1.1"

    do_GET = do_POST = do_DELETE = do_PATCH = do_PUT = Json.answer

    def judge(self, raw: bytes) -> tuple[int, Body]:
        address = urlsplit(self.path)
        if self.endpoint.token and self.headers.get("Authorization") != f"Bearer {self.endpoint.token}":
            return 401, {"message": "who is there?"}
        # `/pipelines/upload` is also of the form `/pipelines/{id}`: the one with fewer parts left open is meant
        fits = [(each, found) for each in operations() if each.method == self.command and (found := each.path.match(address.path))]
        if not fits:
            self.endpoint.faults.append(f"{self.command} {address.path}: there is no such operation")
            return 404, {"message": "no such operation"}
        operation, found = min(fits, key=lambda each: len(each[1].groups()))
        query = dict(parse_qsl(address.query))
        wrong = [f"query {name}: there is no such parameter" for name in query if name not in operation.query]
        body = self._body(raw, operation)
        if operation.body:
            wrong += faults(operation.body, body)
        if wrong:
            self.endpoint.faults += [f"{operation.name}: {each}" for each in wrong]
            return 400, {"message": "; ".join(wrong)}
        return self.endpoint.answer(operation, found.groups(), query, body)

    def _body(self, raw: bytes, operation: Operation) -> Body:
        if not operation.upload:
            return json.loads(raw) if raw else {}
        from email.parser import BytesParser

        form = BytesParser().parsebytes(b"Content-Type: " + self.headers["Content-Type"].encode() + b"\r\n\r\n" + raw)
        parts = {
            part.get_param("name", header="content-disposition"): part.get_payload(decode=True).decode() for part in form.get_payload()
        }  # type: ignore[union-attr]
        assert set(parts) == {"uploadfile"}, set(parts)
        return parts  # type: ignore[return-value]


@contextmanager
def endpoint(token: str | None = None) -> Iterator[Endpoint]:
    """A server on a free port of 127.0.0.1."""
    warm()
    made = Endpoint(token=token)
    with listening(type("Handler", (_Handler,), {"endpoint": made})) as made.url:
        yield made
