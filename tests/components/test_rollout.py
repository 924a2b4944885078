"""deploy against an API server that refuses what the API does not hold: the mode's own field, read back, promoted or rolled back."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cluster_schemas import Customs, read
from helm_cli import render
from kubernetes_api import Server, definitions, kserve, serving
from loopback import Quiet, listening
from prometheus_client import start_http_server

from components import rollout
from components.artifact import BundleError, seal
from components.canary import Limits, Watch
from components.cluster import Cluster, ClusterError
from components.rollout import Plan, Reference, RolloutError, deploy
from serving.monitor import Metrics

pytestmark = pytest.mark.shared_data
PATH = "/apis/serving.kserve.io/v1beta1/namespaces/care/inferenceservices/site-concordant"
NEW = Reference(uri="s3://models/new", digest="sha256:" + "ab" * 32)
SOON = Plan(ready_s=0.3, watch_s=0.4, every_s=0.05, limits=Limits(requests=50), back_s=5.0)


@pytest.fixture(scope="module")
def customs(shared_data: Path) -> Customs:
    return read(shared_data / "crds")


@pytest.fixture
def server(customs: Customs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with serving(customs) as found:
        monkeypatch.setenv("KUBECONFIG", str(found.kubeconfig(tmp_path)))
        yield found


def _installed(server: Server, mode: str, controller: Callable[[Any], None], *, canary: bool = True) -> rollout.Service:
    (made,) = [each for each in render({"mode": mode}) if each["kind"] == "InferenceService"]
    server.controller = controller
    server.put(PATH, made)
    server.objects["/openapi/v3/apis/serving.kserve.io/v1beta1"] = definitions(canary=canary)
    return rollout.read(Cluster(), "care", "site-concordant")


def _spec(server: Server) -> dict[str, Any]:
    return server.objects[PATH]["spec"]


def _variables(predictor: dict[str, Any]) -> dict[str, str]:
    (container,) = predictor["containers"]
    return {each["name"]: each.get("value", "") for each in container["env"]}


def _transformer(spec: dict[str, Any]) -> list[str]:
    (container,) = spec["transformer"]["containers"]
    return container["args"]


@contextmanager
def _metrics(errors: float = 0.0, canary_asked: bool = True, choice: str = "b") -> Iterator[Watch]:
    """Two real pages of metrics whose counters go up while somebody looks."""
    champion, canary, over = Metrics(), Metrics(), threading.Event()

    class Answer:
        model_version, abstained = "m", None

        def __init__(self, recommended: str) -> None:
            self.recommended = recommended

    def ask() -> None:
        n = 0
        while not over.wait(0.002):
            n += 1
            for metrics, used, name in ((champion, True, "b"), (canary, canary_asked, choice)):
                for _ in range(3 * used):
                    metrics.request("/v1/models/x:predict", 500 if metrics is canary and n % 10 < 10 * errors else 200, 0.003)
                    metrics.modelled([Answer(name)])  # type: ignore[list-item]

    pages = [start_http_server(0, "127.0.0.1", each.registry)[0] for each in (champion, canary)]
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    try:
        yield Watch(
            **{name: f"http://127.0.0.1:{page.server_port}/metrics" for name, page in zip(("champion", "canary"), pages, strict=True)}
        )
    finally:
        over.set()
        thread.join()
        for page in pages:
            page.shutdown()
            page.server_close()


def test_in_standard_mode_a_good_canary_stands_beside_the_champion_and_is_promoted(server: Server) -> None:
    told: list[str] = []
    service = _installed(server, "Standard", kserve(knative=False))
    with _metrics() as watch:
        assert deploy(service, NEW, SOON, watch, told.append) == "promoted"
    first, last = server.applied[0]["spec"], _spec(server)
    divided = _transformer(first)
    assert divided[-2:] == ["--canary=site-concordant-cababababab-predictor.care", "--canary-percent=10"]
    assert _transformer(last) == divided[:-2]
    ((canary,),) = (first["canary"],)
    assert canary["trafficPercent"] == 10 and canary["predictor"]["name"] == "cababababab"
    assert _variables(canary["predictor"])["STORAGE_URI"] == NEW.uri and not set(canary["predictor"]) & (
        set(rollout.SCALING) - {"minReplicas"}
    )
    assert _variables(first["predictor"])["STORAGE_URI"] == "pvc://concordant-models/bundle"  # the champion goes on
    assert "canary" not in last and _variables(last["predictor"]) == {"STORAGE_URI": NEW.uri, rollout.PIN: NEW.digest}
    assert last["predictor"]["maxReplicas"] == 4 and "Promoted" in told[-1]
    assert server.faults == []


def test_with_knative_the_older_field_splits_and_goes_at_promotion(server: Server) -> None:
    service = _installed(server, "Knative", kserve(knative=True))
    with _metrics() as watch:
        assert deploy(service, NEW, SOON, watch, lambda _: None) == "promoted"
    assert server.applied[0]["spec"]["predictor"]["canaryTrafficPercent"] == 10 and "canary" not in server.applied[0]["spec"]
    assert "canaryTrafficPercent" not in _spec(server)["predictor"] and _variables(_spec(server)["predictor"])["STORAGE_URI"] == NEW.uri
    assert server.faults == []


@pytest.mark.parametrize("mode", ["Standard", "Knative"])
@pytest.mark.parametrize(
    ("made", "reason"),
    [
        ({"errors": 0.3}, "of its requests failed"),
        ({"canary_asked": False}, "it was asked 0 times"),
        ({"choice": "other"}, "overlap with the champion's by 0.0%"),
    ],
)
def test_a_bad_canary_is_rolled_back_and_the_champion_serves_as_before(
    server: Server, mode: str, made: dict[str, Any], reason: str
) -> None:
    service = _installed(server, mode, kserve(knative=mode == "Knative"))
    before = _spec(server)
    with _metrics(**made) as watch, pytest.raises(RolloutError, match=reason):
        deploy(service, NEW, SOON, watch, lambda _: None)
    assert _spec(server) == before and server.faults == []
    if mode == "Knative":  # first off the new revision, then the old one
        assert server.applied[-2]["spec"]["predictor"]["canaryTrafficPercent"] == 0


def test_the_step_deploys_what_publish_made(server: Server, tmp_path: Path) -> None:
    from kfp import dsl

    from components.steps.deploy import deploy as step

    _installed(server, "Standard", kserve(knative=False))
    bundle = tmp_path / "published" / "bundle"
    bundle.mkdir(parents=True)
    (bundle / "weights").write_bytes(b"1")
    seal(bundle)
    made = dsl.Model(uri=str(tmp_path / "published"))
    made.uri, made._get_path = "s3://bucket/published", lambda: str(tmp_path / "published")  # as the launcher of a pod gives it
    given = {"name": "site-concordant", "namespace": "care", "traffic": 100, "watch_s": 1, "prometheus": ""}
    assert step.python_func(bundle=made, **given) == "deployed"
    assert _variables(_spec(server)["predictor"])["STORAGE_URI"] == "s3://bucket/published/bundle" and server.faults == []


def test_the_command_verifies_signs_deploys_and_tells_no_token(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    from rich.console import Console
    from typer.testing import CliRunner

    from pipelines import cluster_cli
    from pipelines.cli import app

    server.token = "eyJ-token-of-the-deployer"
    server.kubeconfig(tmp_path)
    _installed(server, "Standard", kserve(knative=False))
    (tmp_path / "run" / "bundle").mkdir(parents=True)
    (tmp_path / "run" / "bundle" / "weights").write_bytes(b"1")
    seal(tmp_path / "run" / "bundle")
    monkeypatch.setattr(cluster_cli, "console", Console(file=(printed := io.StringIO()), width=200))
    run, key = str(tmp_path / "run"), tmp_path / "publisher.pem"
    assert CliRunner().invoke(app, ["sign", run, "--key", str(key)]).exit_code == 0
    told = [
        "deploy",
        run,
        "--uri",
        "s3://models/run",
        "--name",
        "site-concordant",
        "--namespace",
        "care",
        "--ready",
        "0.3",
        "--every",
        "0.05",
    ]
    told += ["--public-key", f"{key}.pub", "--min-requests", "50", "--watch", "0.4"]
    with _metrics() as watch:
        done = CliRunner().invoke(app, [*told, "--champion-metrics", watch.champion, "--canary-metrics", watch.canary])
    assert done.exit_code == 0, done.exception
    assert "Promoted" in printed.getvalue() and server.token not in printed.getvalue() + done.stdout
    assert _variables(_spec(server)["predictor"])["STORAGE_URI"] == "s3://models/run" and server.faults == []
    count = len(server.applied)
    (tmp_path / "run" / "bundle.sig").unlink()
    assert "is not signed" in str(CliRunner().invoke(app, told).exception) and len(server.applied) == count


def test_credentials_go_to_no_other_host(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    class Elsewhere(Quiet):
        def do_GET(self) -> None:
            seen.append(self.path)
            self.say(302, Location=f"{server.url}/stolen")

    (tmp_path / "other").mkdir()
    with listening(Elsewhere) as url:
        monkeypatch.setenv("KUBECONFIG", str(Server(customs={}, url=url).kubeconfig(tmp_path / "other")))
        with pytest.raises(ClusterError, match="did not answer"):
            rollout.read(Cluster(), "care", "site-concordant")
    assert seen and server.asked == []


def test_a_shadow_that_keeps_every_limit_stays_a_shadow(server: Server) -> None:
    service, told = _installed(server, "Standard", kserve(knative=False)), list[str]()
    with _metrics() as watch:
        plan = Plan(percent=0, ready_s=0.3, watch_s=0.4, every_s=0.05, limits=Limits(requests=50))
        assert deploy(service, NEW, plan, watch, told.append) == "canary"
    assert _spec(server)["canary"][0]["trafficPercent"] == 0 and _transformer(_spec(server))[-1] == "--canary-percent=0"
    assert "stays a shadow" in told[-1] and server.faults == []


def test_the_transformers_own_parser_takes_what_a_canary_adds(server: Server) -> None:
    import argparse

    from serving.__main__ import _endpoint

    parser = argparse.ArgumentParser()
    _endpoint(parser, "transformer")
    service = _installed(server, "Standard", kserve(knative=False))
    role, *arguments = _transformer(rollout.wanted(service, NEW, 25)["spec"])
    given = parser.parse_args(arguments)
    assert role == "transformer" and given.canary == f"site-concordant-{NEW.short}-predictor.care" and given.canary_percent == 25


def test_a_standard_mode_that_would_ignore_a_canary_is_refused_before_anything_is_applied(server: Server) -> None:
    service = _installed(server, "Standard", kserve(knative=False, old=True), canary=False)
    before = _spec(server)
    with pytest.raises(RolloutError, match="does not name spec.canary"):
        deploy(service, NEW, SOON, None, lambda _: None)
    assert _spec(server) == before
    assert deploy(service, NEW, Plan(percent=None, ready_s=0.3, every_s=0.05), None, lambda _: None) == "deployed"


def test_a_field_that_the_cluster_lost_is_noticed(server: Server) -> None:
    service = _installed(server, "Standard", kserve(knative=False))
    server.drops = ("canary",)
    with pytest.raises(RolloutError, match="not spec.canary"):
        deploy(service, NEW, SOON, None, lambda _: None)


def test_a_canary_that_never_becomes_ready_is_rolled_back(server: Server) -> None:
    service = _installed(server, "Standard", kserve(knative=False, ready=False))
    with pytest.raises(RolloutError, match="not ready within"):
        deploy(service, NEW, SOON, None, lambda _: None)
    assert "canary" not in _spec(server)


def test_a_misspelt_field_is_found(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    service, right = _installed(server, "Standard", kserve(knative=False)), rollout.wanted

    def wrong(*given: Any) -> Any:
        asked = right(*given)
        for each in asked["spec"].get("canary", ()):
            each["trafficPercentage"] = each.pop("trafficPercent")
        return asked

    monkeypatch.setattr(rollout, "wanted", wrong)
    with pytest.raises(RolloutError, match="trafficPercentage"):
        deploy(service, NEW, SOON, None, lambda _: None)
    assert any("trafficPercentage" in fault for fault in server.faults)


def test_without_metrics_a_canary_stays_and_the_same_bundle_is_not_deployed_twice(server: Server) -> None:
    service = _installed(server, "Standard", kserve(knative=False))
    assert deploy(service, NEW, SOON, None, lambda _: None) == "canary" and _spec(server)["canary"]
    at_once = Plan(percent=None, ready_s=0.3, every_s=0.05)
    assert deploy(service.again(), NEW, at_once, None, lambda _: None) == "deployed" and "canary" not in _spec(server)
    count = len(server.applied)
    assert deploy(service.again(), NEW, SOON, None, lambda _: None) == "deployed" and len(server.applied) == count


THIRD = Reference(uri="s3://models/third", digest="sha256:" + "cd" * 32)
AT_ONCE = Plan(percent=None, ready_s=0.3, every_s=0.05, back_s=0.3)


def test_an_open_canary_with_knative_is_not_taken_for_the_champion(server: Server) -> None:
    """It stands in the champion's place: --traffic 100 promotes it, the champion's bundle ends it, another bundle must wait."""
    service = _installed(server, "Knative", kserve(knative=True))
    before, champion = _spec(server), service.reference
    assert deploy(service, NEW, SOON, None, lambda _: None) == "canary"
    opened = service.again()
    assert opened.champion == champion and opened.reference == NEW
    with pytest.raises(RolloutError, match="is open. Promote it, or roll it back"):
        deploy(opened, THIRD, SOON, None, lambda _: None)
    assert _spec(server)["predictor"]["canaryTrafficPercent"] == 10
    assert opened.pods(NEW)[0] == "before-deployment-.*"
    assert deploy(opened, champion, AT_ONCE, None, lambda _: None) == "deployed" and _spec(server) == before
    deploy(service.again(), NEW, SOON, None, lambda _: None)
    assert deploy(service.again(), NEW, AT_ONCE, None, lambda _: None) == "deployed"
    assert "canaryTrafficPercent" not in _spec(server)["predictor"] and service.again().champion == NEW
    assert server.faults == []


@pytest.mark.parametrize("mode", ["Standard", "Knative"])
def test_whatever_ends_a_rollout_the_champion_serves_again(server: Server, mode: str) -> None:
    service = _installed(server, mode, kserve(knative=mode == "Knative"))
    before = _spec(server)

    def taken_away(told: str) -> None:
        if "goes to the canary" in told:
            raise SystemExit(143)  # what SIGTERM becomes

    with pytest.raises(SystemExit):
        deploy(service, NEW, SOON, None, taken_away)
    assert _spec(server) == before
    with listening(_LogIn) as page, pytest.raises(RolloutError, match="are not our metrics"):
        deploy(service, NEW, SOON, Watch(champion=page, canary=page), lambda _: None)
    assert _spec(server) == before


def test_a_cluster_that_is_away_while_rolling_back_is_asked_again(server: Server) -> None:
    service = _installed(server, "Standard", kserve(knative=False))
    before = _spec(server)

    def away(told: str) -> None:
        if told == "Rolling back.":
            server.forbidden = PATH
            threading.Timer(0.2, lambda: setattr(server, "forbidden", "")).start()

    with _metrics(errors=0.3) as watch, pytest.raises(RolloutError, match="Rolled back to .*of its requests failed"):
        deploy(service, NEW, SOON, watch, away)
    assert _spec(server) == before
    with _metrics(errors=0.3) as watch, pytest.raises(RolloutError, match="NOT rolled back.*failed.*kubectl"):
        deploy(service, NEW, replace(SOON, back_s=0.0), watch, away)


class _LogIn(Quiet):
    def do_GET(self) -> None:
        self.say(200, b"<html>Log in</html>")


def test_the_pods_of_champion_and_canary_are_told_apart(server: Server) -> None:
    import re

    champion, canary = _installed(server, "Standard", kserve(knative=False)).pods(NEW)
    assert re.fullmatch(champion, "site-concordant-predictor-6d5f-x") and not re.fullmatch(
        champion, f"site-concordant-{NEW.short}-predictor-1-x"
    )
    assert re.fullmatch(canary, f"site-concordant-{NEW.short}-predictor-1-x")


def test_nothing_there_and_a_wrong_token_are_told_in_words(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RolloutError, match="There is no InferenceService other in care"):
        rollout.read(Cluster(), "care", "other")
    server.token = "another"
    with pytest.raises(ClusterError, match="401") as told:
        rollout.read(Cluster(), "care", "other")
    assert "token" not in str(told.value).replace("another", "")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "absent"))
    with pytest.raises(ClusterError, match="No cluster is set up"):
        rollout.read(Cluster(), "care", "other")


def test_a_reference_is_of_a_whole_bundle_and_of_a_place_that_a_cluster_reads(tmp_path: Path) -> None:
    bundle = tmp_path / "run" / "bundle"
    bundle.mkdir(parents=True)
    (bundle / "weights").write_bytes(b"1")
    version = seal(bundle)
    found = rollout.reference(tmp_path / "run", "s3://models/x")
    assert found.digest.startswith(f"sha256:{version}") and len(found.digest) == 71
    with pytest.raises(RolloutError, match="--uri must begin with"):
        rollout.reference(bundle, str(tmp_path / "x"))
    (bundle / "weights").write_bytes(b"2")
    with pytest.raises(BundleError, match="altered"):
        rollout.reference(bundle, "s3://models/x")
