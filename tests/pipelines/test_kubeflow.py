"""submit and schedule against an endpoint that checks every request against Kubeflow's published API."""

import http.client
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kfp_server_api
import pytest
from kfp_api import Endpoint, endpoint, tasks
from loopback import Quiet, listening
from rich.console import Console
from typer.testing import CliRunner, Result

from features.errors import ConcordantError
from pipelines import cluster, cluster_cli, kubeflow
from pipelines.cli import app
from pipelines.kubeflow import Kubeflow, KubeflowError, Plan

TOKEN = "eyJ.token-of-somebody"
SOURCE = "s3://records/export"
WELL = [
    tasks("PENDING"),
    tasks("RUNNING", ingest="RUNNING"),
    tasks("RUNNING", ingest="SUCCEEDED", select_cohort="SKIPPED", train_ridge="RUNNING"),
    tasks("SUCCEEDED", ingest="SUCCEEDED", select_cohort="SKIPPED", train_ridge="SUCCEEDED", publish="SUCCEEDED"),
]


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    monkeypatch.setenv("CONCORDANT_KFP_TOKEN", TOKEN)
    with endpoint(TOKEN) as found:
        yield found


@pytest.fixture(scope="module", autouse=True)
def compiled_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The graph takes a second to compile; what is sent is the same each time."""
    package = tmp_path_factory.mktemp("graph") / "treatment.yaml"
    cluster.compile_to(package)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cluster, "compile_to", lambda out, placement: out.write_bytes(package.read_bytes()))
        yield


def _told(*arguments: str) -> Result:
    """A command in this process; what it prints is the result's output."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cluster_cli, "console", Console(file=(printed := io.StringIO()), width=200))
        done = CliRunner().invoke(app, arguments)
    done.stdout_bytes = printed.getvalue().encode()
    return done


def _submit(here: Endpoint, *more: str) -> Result:
    return _told("submit", "warfarin", "--source", SOURCE, "--host", here.url, "--every", "0.05", *more)


def _schedule(here: Endpoint, *more: str) -> Result:
    return _told("schedule", "warfarin", "--source", SOURCE, "--host", here.url, "--name", "nightly", *more)


def test_the_same_graph_compiles_to_the_same_bytes(tmp_path: Path) -> None:
    from kfp import compiler

    from pipelines.treatment import graph

    for name in ("one.yaml", "two.yaml"):
        compiler.Compiler().compile(graph(), str(tmp_path / name))
    assert (tmp_path / "one.yaml").read_bytes() == (tmp_path / "two.yaml").read_bytes()


def test_a_run_is_submitted_as_published_and_followed_like_a_local_one(here: Endpoint) -> None:
    here.script = list(WELL)
    done = _submit(here)
    printed = done.stdout
    assert done.exit_code == 0, done.exception
    assert here.faults == []
    assert "ingest" in printed and "12.0 s" in printed and "reused" in printed and "driver" not in printed
    (run,) = here.kept["runs"].values()
    (version,) = here.kept["versions"].values()
    assert (
        version["name"].startswith("sha256-") and run["pipeline_version_reference"]["pipeline_version_id"] == version["pipeline_version_id"]
    )
    assert set(run["runtime_config"]["parameters"]) == {"decision", "source"} and run["runtime_config"]["parameters"]["source"] == SOURCE


def test_a_second_submit_of_the_same_graph_uses_the_same_version_and_experiment(here: Endpoint) -> None:
    here.script = WELL[-1:]
    for _ in range(2):
        assert _submit(here, "--no-follow").exit_code == 0
    assert here.faults == []
    assert [len(here.kept[kind]) for kind in ("experiments", "pipelines", "versions", "runs")] == [1, 1, 1, 2]
    assert "run_service_get_run" not in here.names()


def test_a_version_beyond_the_first_page_is_found(here: Endpoint) -> None:
    here.script = WELL[-1:]
    assert _submit(here, "--no-follow").exit_code == 0
    (version,) = here.kept["versions"].values()
    here.kept["versions"] = {
        "other": version | {"pipeline_version_id": "other", "name": version["name"], "display_name": "x"},
        **here.kept["versions"],
    }
    assert _submit(here, "--no-follow").exit_code == 0 and len(here.kept["versions"]) == 2


@pytest.mark.parametrize(
    ("last", "sentence"),
    [
        (tasks("FAILED", ingest="FAILED") | {"error": {"message": "out of memory"}}, "ended as FAILED at step ingest: out of memory"),
        (tasks("CANCELED", ingest="SUCCEEDED"), "ended as CANCELED"),
        (tasks("SUCCEEDED", ingest="SUCCEEDED", gate="SUCCEEDED", publish="SKIPPED"), "the gate did not pass"),
        (tasks("SUCCEEDED", ingest="SUCCEEDED", gate="SUCCEEDED"), "the gate did not pass"),
    ],
)
def test_the_command_ends_as_the_run_ends(here: Endpoint, last: dict[str, Any], sentence: str) -> None:
    here.script = [WELL[1], last]
    done = _submit(here)
    assert isinstance(done.exception, ConcordantError) and sentence in str(done.exception)


def test_a_moments_silence_does_not_end_the_following(here: Endpoint) -> None:
    here.script, here.failing = list(WELL), kubeflow.LOST - 1
    assert _submit(here).exit_code == 0
    here.script, here.failing = list(WELL), kubeflow.LOST
    done = _submit(here)
    assert "goes on there" in str(done.exception) and "503" in str(done.exception)


def test_a_schedule_is_made_once_replaced_when_it_changes_and_deleted(here: Endpoint) -> None:
    assert "made: 0 0 2 * * *" in _schedule(here).stdout
    assert "unchanged" in _schedule(here).stdout
    assert "replaced" in _schedule(here, "--cron", "30 1 * * *", "--max-concurrency", "2").stdout
    (kept,) = here.kept["recurring"].values()
    assert kept["trigger"] == {"cron_schedule": {"cron": "0 30 1 * * *"}} and kept["mode"] == "ENABLE"
    assert kept["max_concurrency"] == "2" and kept["no_catchup"] is True
    names = here.names()
    last = len(names) - 1 - names[::-1].index("recurring_run_service_create_recurring_run")
    assert "recurring_run_service_delete_recurring_run" in names[last:]  # the new one stands before the old one goes
    assert "1 deleted" in _schedule(here, "--delete").stdout and not here.kept["recurring"]
    assert here.faults == []


def test_doubles_of_a_schedule_are_put_right(here: Endpoint) -> None:
    _schedule(here)
    ((first, kept),) = here.kept["recurring"].items()
    here.kept["recurring"]["double"] = kept | {"recurring_run_id": "double"}
    assert "unchanged" in _schedule(here).stdout and list(here.kept["recurring"]) == [first]


def test_another_pipelines_schedule_of_the_same_name_is_left_alone(here: Endpoint) -> None:
    _schedule(here)
    ((_, kept),) = here.kept["recurring"].items()
    theirs = kept | {"recurring_run_id": "theirs", "pipeline_version_reference": {"pipeline_id": "other", "pipeline_version_id": "v"}}
    here.kept["recurring"]["theirs"] = theirs
    assert "replaced" in _schedule(here, "--cron", "30 1 * * *").stdout and here.kept["recurring"]["theirs"] == theirs
    assert "1 deleted" in _schedule(here, "--delete").stdout and list(here.kept["recurring"]) == ["theirs"]
    done = _schedule(here, "--delete")
    assert done.exit_code == 1 and "Nothing was deleted" in str(done.exception) and list(here.kept["recurring"]) == ["theirs"]


def test_a_schedule_that_is_not_there_is_told_and_nothing_is_made_to_look_for_it(here: Endpoint) -> None:
    done = _schedule(here, "--delete", "--experiment", "mistyped")
    assert done.exit_code == 1 and isinstance(done.exception, ConcordantError)
    assert "Nothing was deleted: the experiment mistyped has no schedule nightly" in str(done.exception)
    assert "0 deleted" in _schedule(here, "--delete", "--ignore-not-found").stdout
    assert not any("create" in name for name in here.names()) and here.faults == []


@pytest.mark.parametrize("cron", ["daily", "0 2 * *", "0 2 * * * * *", "0 2 * * $"])
def test_a_wrong_cron_is_refused_before_anything_is_sent(here: Endpoint, cron: str) -> None:
    done = _schedule(here, "--cron", cron)
    assert isinstance(done.exception, KubeflowError) and "--cron" in str(done.exception) and here.asked == []


def test_a_misspelt_field_is_found(here: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    model = kfp_server_api.V2beta1RuntimeConfig
    monkeypatch.setattr(model, "attribute_map", {**model.attribute_map, "pipeline_root": "pipelineRoots", "parameters": "parametres"})
    done = _submit(here)
    assert "refused to create run (400)" in str(done.exception)
    assert here.faults == ["run_service_create_run: body.runtime_config.parametres: V2beta1RuntimeConfig has no such field"]


@pytest.mark.parametrize(
    ("method", "path", "body", "fault"),
    [
        ("POST", "/apis/v2beta1/experiments", {"displayname": "x"}, "V2beta1Experiment has no such field"),
        ("POST", "/apis/v2beta1/recurringruns", {"mode": "ON"}, "'ON' is none of"),
        ("POST", "/apis/v2beta1/recurringruns", {"max_concurrency": 1}, "str expected, found int"),
        ("GET", "/apis/v2beta1/runs?sise=3", None, "query sise: there is no such parameter"),
        ("GET", "/apis/v1beta1/runs", None, "there is no such operation"),
    ],
)
def test_the_endpoint_of_these_tests_finds_what_is_not_published(here: Endpoint, method: str, path: str, body: Any, fault: str) -> None:
    raw = http.client.HTTPConnection(here.url.removeprefix("http://"))
    raw.request(method, path, json.dumps(body) if body else None, {"Authorization": f"Bearer {TOKEN}"})
    assert raw.getresponse().status in (400, 404)
    raw.close()
    assert fault in here.faults[0]


def test_the_token_is_not_printed_and_a_wrong_one_is_told(here: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONCORDANT_KFP_TOKEN", "wrong-token")
    done = _submit(here)
    assert "(401)" in str(done.exception) and "CONCORDANT_KFP_TOKEN" in str(done.exception)
    assert "wrong-token" not in str(done.exception) + done.stdout + repr(Kubeflow(host=here.url, token="wrong-token"))


def test_the_token_goes_to_no_other_host() -> None:
    seen: list[str | None] = []

    class Elsewhere(Quiet):
        def do_GET(self) -> None:
            seen.append(self.headers.get("Authorization"))
            self.say(200)

    class Redirecting(Quiet):
        def do_GET(self) -> None:
            self.say(302, Location=f"{elsewhere}/login")

    with listening(Elsewhere) as elsewhere, listening(Redirecting) as first, pytest.raises(KubeflowError, match="did not answer"):
        Kubeflow(host=first, token=TOKEN).experiment("x")
    assert seen == []


@pytest.mark.parametrize(
    "host", ["http://kubeflow.example.org", "kubeflow.example.org", "http://[::1", "http://printer.local", "http://cluster.local"]
)
def test_a_token_is_not_sent_in_the_open_nor_to_an_address_that_is_none(host: str) -> None:
    with pytest.raises(KubeflowError):
        Kubeflow(host=host, token=TOKEN)


@pytest.mark.parametrize("host", ["https://user:secret@kubeflow.example.org", "https://user:secret@[::1"])
def test_a_password_in_the_address_is_refused_and_not_printed(host: str) -> None:
    with pytest.raises(KubeflowError, match="with a name or password") as told:
        Kubeflow(host=host)
    assert "secret" not in str(told.value)


@pytest.mark.parametrize(
    "name", ["ml-pipeline.kubeflow.svc:8888", "ml-pipeline.kubeflow.svc.cluster.local:8888", "[::1]:8888", "localhost"]
)
def test_a_token_goes_unencrypted_only_inside_the_cluster_and_this_machine(name: str) -> None:
    assert Kubeflow(host=f"http://{name}", token=TOKEN).token == TOKEN


def test_a_plan_in_five_fields_starts_at_second_nought() -> None:
    assert Plan(cron="0 2 * * 1").cron == "0 0 2 * * 1" and Plan(cron="5 0 2 * * MON").cron == "5 0 2 * * MON"


def test_steps_are_known_by_every_name_that_a_cluster_gives_them(here: Endpoint) -> None:
    here.script = WELL[-1:]
    _, steps = cluster.submit_to(Kubeflow(host=here.url, token=TOKEN), "x", "warfarin", SOURCE, cluster.Placement())
    assert (
        steps["FHIR to events"] == steps["ingest"] == "ingest" and steps["train-fusion"] == "train_fusion" and steps["publish"] == "publish"
    )


def test_shards_of_a_step_are_told_as_one(here: Endpoint) -> None:
    one, two = (tasks("RUNNING", read_shard=state)["run_details"]["task_details"] for state in ("SUCCEEDED", "RUNNING"))
    half = {"state": "RUNNING", "run_details": {"task_details": [*one, *two]}}
    here.script = [half, half, {"state": "SUCCEEDED", "run_details": {"task_details": [*one, *one]}}]
    told: list[dict[str, Any]] = []
    client = Kubeflow(host=here.url, token=TOKEN)
    here.kept["runs"]["r"] = {"run_id": "r"}
    assert client.follow("r", {"read-shard": "read_shard"}, told.append, 0.01) == {"read_shard"}
    assert [(each["state"], each.get("message")) for each in told] == [("started", None), ("finished", "2 shards")]


def test_a_folder_of_this_machine_is_refused_unless_the_cluster_mounts_it(here: Endpoint, tmp_path: Path) -> None:
    here.script = WELL[-1:]
    given = ("submit", "warfarin", "--host", here.url, "--no-follow")
    done = _told(*given, "--source", "exports/today")
    assert "can't read the folder 'exports/today'" in str(done.exception) and here.asked == []
    (tmp_path / "c.yaml").write_text("workspace: {claim: c}", encoding="utf-8")
    assert _told(*given, "--source", "/workspace/exports", "--config", str(tmp_path / "c.yaml")).exit_code == 0


@pytest.mark.parametrize("command", ["submit", "schedule"])
def test_the_help_offers_only_sources_that_a_cluster_takes(command: str) -> None:
    from typer.main import get_command

    (source,) = (each for each in get_command(app).commands[command].params if each.name == "source")  # type: ignore[attr-defined]
    assert "s3://" in source.help and "server" not in source.help
