"""A Kubeflow Pipelines endpoint: experiments, versions, runs and schedules, by its published client."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from features.errors import ConcordantError
from pipelines.local import RunFailed, Told

OVER = ("SUCCEEDED", "SKIPPED", "FAILED", "CANCELED")
LOST = 5  # answers in a row that may fail while a run is followed
PAGE = 100
LOOPBACK = ("127.0.0.1", "localhost", "::1")


class KubeflowError(ConcordantError):
    """The endpoint refuses, does not answer, or is something else."""


@dataclass(frozen=True, kw_only=True)
class Kubeflow:
    """`host`: address of the API, `token`: a bearer token, `namespace`: on a multi-user installation."""

    host: str
    token: str | None = field(default=None, repr=False)
    namespace: str | None = None

    def __post_init__(self) -> None:
        try:
            address = urlsplit(self.host)
            scheme, name = address.scheme, address.hostname or ""
        except ValueError:
            scheme = name = ""
        if scheme not in ("http", "https") or not name or "@" in self.host:
            found = "one with a name or password" if "@" in self.host else repr(self.host)
            raise KubeflowError(f"--host must be an address such as https://kubeflow.example.org/pipeline, found {found}.")
        if self.token and scheme == "http" and not (name in LOOPBACK or name.endswith((".svc", ".svc.cluster.local"))):
            raise KubeflowError(f"A token would go to {name} unencrypted. Give an https address, or a port-forward on 127.0.0.1.")

    @cached_property
    def _client(self) -> Any:
        import kfp_server_api as api
        from urllib3 import Retry

        settings = api.Configuration(host=self.host.rstrip("/"))
        settings.client_side_validation = True
        settings.retries = Retry(3, redirect=0, allowed_methods=("GET", "DELETE"), backoff_factor=0.2)  # a log-in page is no answer
        if self.token:
            settings.api_key, settings.api_key_prefix = {"authorization": self.token}, {"authorization": "Bearer"}
        return api.ApiClient(settings)

    def _call(self, service: str, method: str, *given: Any, **named: Any) -> Any:
        import kfp_server_api as api

        with self._told(method):
            return getattr(getattr(api, service)(self._client), method)(*given, **named, _request_timeout=30)

    @contextmanager
    def _told(self, what: str) -> Iterator[None]:
        import kfp_server_api as api

        asked = what.partition("_service_")[2].replace("_", " ") or what.replace("_", " ")
        try:
            yield
        except api.ApiException as error:
            reason = self._reason(error.body)
            hint = (
                "Check the token in CONCORDANT_KFP_TOKEN." if error.status in (401, 403) else "Check --host, --namespace and the arguments."
            )
            raise KubeflowError(f"Kubeflow Pipelines at {self.host} refused to {asked} ({error.status}): {reason} {hint}") from None
        except Exception as error:  # urllib3, ssl and the client raise many kinds; none of them says more than this
            raise KubeflowError(
                f"Kubeflow Pipelines at {self.host} did not answer ({asked}: {type(error).__name__}). Check --host and the token."
            ) from None

    def _reason(self, body: Any) -> str:
        try:
            told = str(json.loads(body).get("message") or json.loads(body).get("error"))
        except (ValueError, TypeError, AttributeError):
            return "it gave no reason."
        told = " ".join(told.split())[:300]
        return (told.replace(self.token, "***") if self.token else told).rstrip(".") + "."

    def experiment(self, name: str) -> str:
        """Id of the experiment of that name, made where there is none."""
        if found := self._found_experiment(name):
            return found
        import kfp_server_api as api

        made = api.V2beta1Experiment(display_name=name, namespace=self.namespace)
        return str(self._call("ExperimentServiceApi", "experiment_service_create_experiment", made).experiment_id)

    def _found_experiment(self, name: str) -> str | None:
        scope = {"namespace": self.namespace} if self.namespace else {}
        for each in self._all("ExperimentServiceApi", "experiment_service_list_experiments", "experiments", filter=_named(name), **scope):
            if each.display_name == name and each.storage_state != "ARCHIVED":
                return str(each.experiment_id)
        return None

    def version(self, pipeline: str, name: str, package: Path) -> tuple[str, str]:
        """Ids of a pipeline and of its version `name`; the file is uploaded where there is no such version yet."""
        owner = self._pipeline(pipeline)
        for each in self._all(
            "PipelineServiceApi", "pipeline_service_list_pipeline_versions", "pipeline_versions", owner, filter=_named(name)
        ):
            if name in (each.name, each.display_name):
                return owner, str(each.pipeline_version_id)
        made = self._call("PipelineUploadServiceApi", "upload_pipeline_version", str(package), name=name, pipelineid=owner)
        return owner, str(made.pipeline_version_id)

    def _pipeline(self, name: str) -> str:
        if found := self._found_pipeline(name):
            return found
        import kfp_server_api as api

        made = api.V2beta1Pipeline(name=name, display_name=name, namespace=self.namespace)
        return str(self._call("PipelineServiceApi", "pipeline_service_create_pipeline", made).pipeline_id)

    def _found_pipeline(self, name: str) -> str | None:
        scope = {"namespace": self.namespace} if self.namespace else {}
        for each in self._all("PipelineServiceApi", "pipeline_service_list_pipelines", "pipelines", filter=_named(name), **scope):
            if name in (each.name, each.display_name):
                return str(each.pipeline_id)
        return None

    def _all(self, service: str, method: str, kind: str, *given: Any, **named: Any) -> Iterator[Any]:
        token = ""
        while True:
            page = self._call(service, method, *given, **named, page_size=PAGE, page_token=token)
            yield from getattr(page, kind) or ()
            token = page.next_page_token or ""
            if not token:
                return

    def start(self, name: str, experiment: str, version: tuple[str, str], order: "Order") -> str:
        """Start a run; returns its id."""
        import kfp_server_api as api

        told = {"display_name": name, "experiment_id": experiment, "service_account": order.service_account}
        run = api.V2beta1Run(**told, pipeline_version_reference=_reference(version), runtime_config=order.config())
        return str(self._call("RunServiceApi", "run_service_create_run", run).run_id)

    def follow(self, run: str, steps: dict[str, str], tell: Callable[[Told], None], every_s: float = 5.0) -> set[str]:
        """Tell what the steps of a run do until it is over; returns the steps that ended well there.

        `steps`: names by the names that tasks may have. Raises RunFailed where the run failed or was ended.
        """
        told: dict[str, str] = {}
        lost = 0
        while True:
            try:
                found, lost = self._call("RunServiceApi", "run_service_get_run", run), 0
            except KubeflowError as error:
                lost += 1
                if lost >= LOST:
                    raise KubeflowError(f"{error} The run {run} goes on there.") from None
                time.sleep(every_s)
                continue
            details = found.run_details.task_details if found.run_details and found.run_details.task_details else []
            _tell_changes([each for each in details if each.display_name in steps], steps, told, tell)
            if found.state in OVER:
                break
            time.sleep(every_s)
        if found.state != "SUCCEEDED":
            failed = next((f" at step {name}" for name, state in told.items() if state == "FAILED"), "")
            cause = " ".join(str(found.error.message).split())[:300] if found.error and found.error.message else "no cause was given"
            raise RunFailed(f"The run {run} ended as {found.state}{failed}: {cause}. Its log: {self.host}/#/runs/details/{run}")
        return {name for name, state in told.items() if state == "SUCCEEDED"}

    def scheduled(self, name: str, experiment: str, pipeline: str) -> list[Any]:
        """Recurring runs of that name, by the names of experiment and pipeline; nothing is made to look them up."""
        home, owner = self._found_experiment(experiment), self._found_pipeline(pipeline)
        return self._schedules(name, home, owner) if home and owner else []

    def _schedules(self, name: str, experiment: str, pipeline: str) -> list[Any]:
        """By ids. A name is not unique there: another pipeline's recurring run of the same name is none of ours."""
        listed = self._all(
            "RecurringRunServiceApi",
            "recurring_run_service_list_recurring_runs",
            "recurring_runs",
            experiment_id=experiment,
            filter=_named(name),
        )
        named = [each for each in listed if each.display_name == name]
        return [each for each in named if (of := each.pipeline_version_reference) and of.pipeline_id == pipeline]

    def schedule(self, name: str, experiment: str, version: tuple[str, str], order: "Order", plan: "Plan") -> tuple[str, str]:
        """Make a recurring run, or put it in the place of those of the same name and pipeline; returns its id and what was done.

        The new one stands before the old ones go: a failure in between leaves two for a moment, never none.
        """
        import kfp_server_api as api

        old = self._schedules(name, experiment, version[0])
        new = api.V2beta1RecurringRun(
            display_name=name,
            experiment_id=experiment,
            service_account=order.service_account,
            pipeline_version_reference=_reference(version),
            runtime_config=order.config(),
            trigger=api.V2beta1Trigger(cron_schedule=api.V2beta1CronSchedule(cron=plan.cron)),
            max_concurrency=str(plan.max_concurrency),
            no_catchup=not plan.catch_up,
            mode="ENABLE",
        )
        same = [each for each in old if _plain(each) == _plain(new)]
        if same:
            self.unschedule([each for each in old if each is not same[0]])
            return str(same[0].recurring_run_id), "unchanged"
        made = self._call("RecurringRunServiceApi", "recurring_run_service_create_recurring_run", new)
        self.unschedule(old)
        return str(made.recurring_run_id), "replaced" if old else "made"

    def unschedule(self, found: list[Any]) -> None:
        """Delete recurring runs; runs that they started go on."""
        for each in found:
            self._call("RecurringRunServiceApi", "recurring_run_service_delete_recurring_run", each.recurring_run_id)


@dataclass(frozen=True, kw_only=True)
class Order:
    """What a run is given."""

    arguments: dict[str, str]
    root: str | None = None
    service_account: str | None = None

    def config(self) -> Any:
        """As the API takes it."""
        import kfp_server_api as api

        return api.V2beta1RuntimeConfig(parameters=self.arguments, pipeline_root=self.root)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """When a recurring run starts: `cron` in six fields, seconds first, UTC. `catch_up` starts what was missed."""

    cron: str
    max_concurrency: int = 1
    catch_up: bool = False

    def __post_init__(self) -> None:
        fields = self.cron.split()
        if len(fields) == 5:
            object.__setattr__(self, "cron", " ".join(["0", *fields]))
        elif len(fields) != 6:
            raise KubeflowError(f"--cron needs five fields (or six, seconds first), found {self.cron!r}. Every night at two: '0 2 * * *'.")
        if not set("".join(fields)) <= set("0123456789*/,-?LW#ABCDEFGHIJKMNOPRSTUVY"):
            raise KubeflowError(f"--cron holds what no schedule holds: {self.cron!r}. Every night at two: '0 2 * * *'.")
        if not 1 <= self.max_concurrency <= 10:
            raise KubeflowError(f"--max-concurrency must be 1 to 10, found {self.max_concurrency}.")


def _reference(version: tuple[str, str]) -> Any:
    import kfp_server_api as api

    return api.V2beta1PipelineVersionReference(pipeline_id=version[0], pipeline_version_id=version[1])


def _named(name: str) -> str:
    return json.dumps({"predicates": [{"operation": "EQUALS", "key": "name", "string_value": name}]})


def _plain(found: Any) -> tuple[Any, ...]:
    """What makes two recurring runs the same."""
    version, config = found.pipeline_version_reference, found.runtime_config
    cron = found.trigger.cron_schedule.cron if found.trigger and found.trigger.cron_schedule else ""
    told = (version and version.pipeline_version_id, config and config.parameters, (config and config.pipeline_root) or None)
    return (*told, cron, str(found.max_concurrency), bool(found.no_catchup), found.service_account or None, found.mode)


def _tell_changes(details: list[Any], steps: dict[str, str], told: dict[str, str], tell: Callable[[Told], None]) -> None:
    """Tell each step's new state once. Tasks of one step (shards) are told as one: at work while one is, failed where one did."""
    parts: dict[str, list[Any]] = {}
    for each in details:
        parts.setdefault(steps[each.display_name], []).append(each)
    for name, tasks in parts.items():
        states = {each.state for each in tasks}
        state = next((word for word in ("RUNNING", "PENDING", "FAILED", "SUCCEEDED", "SKIPPED") if word in states), "")
        if told.get(name) == state:
            continue
        told[name] = state
        if state == "RUNNING":
            tell({"step": name, "state": "started"})
        elif state == "FAILED":
            tell({"step": name, "state": "failed"})
        elif state == "SUCCEEDED":
            tell(
                {"step": name, "state": "finished", "seconds": _seconds(tasks), "message": f"{len(tasks)} shards" if len(tasks) > 1 else ""}
            )
        elif state == "SKIPPED" and name != "publish":
            tell({"step": name, "state": "reused", "message": ""})


def _seconds(tasks: list[Any]) -> float:
    started, ended = ([moment for each in tasks if (moment := getattr(each, name))] for name in ("start_time", "end_time"))
    return max(0.0, (max(ended) - min(started)).total_seconds()) if started and ended else 0.0
