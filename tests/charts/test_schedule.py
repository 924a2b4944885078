"""The jobs that keep the recurring run: their arguments, given to the real command against a checked endpoint."""

import io
from pathlib import Path
from typing import Any

import pytest
from chart_values import NAMED
from helm_cli import render
from kfp_api import endpoint
from rich.console import Console
from typer.testing import CliRunner

from pipelines import cluster_cli, placement
from pipelines.cli import app


def _jobs(values: dict[str, Any], namespace: str = "care") -> tuple[dict[str, dict[str, Any]], str]:
    objects = render(values, namespace=namespace)
    (config,) = (each["data"]["cluster.yaml"] for each in objects if each["kind"] == "ConfigMap" and "cluster.yaml" in each["data"])
    jobs = {each["metadata"]["annotations"]["helm.sh/hook"]: each for each in objects if each["kind"] == "Job"}
    return {hook: job["spec"]["template"]["spec"]["containers"][0] for hook, job in jobs.items()}, config


def test_install_makes_the_schedule_upgrade_leaves_it_and_uninstall_takes_it_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs, config = _jobs(NAMED["nightly pipeline"])
    (tmp_path / "cluster.yaml").write_text(config, encoding="utf-8")
    monkeypatch.setattr(cluster_cli, "console", Console(file=(printed := io.StringIO()), width=200))
    monkeypatch.setenv("CONCORDANT_KFP_TOKEN", "token-of-the-job")
    with endpoint("token-of-the-job") as here:

        def start(hook: str) -> None:
            whole = [*jobs[hook]["command"], *jobs[hook]["args"]]
            assert f"--host={SERVICE}" in whole  # the one address in a cluster that takes a token without TLS
            told = [each.replace(SERVICE, here.url).replace("/config/", f"{tmp_path}/") for each in whole[1:]]
            done = CliRunner().invoke(app, told)
            assert done.exit_code == 0, done.exception

        start("post-install,post-upgrade")
        start("post-install,post-upgrade")
        ((_, kept),) = here.kept["recurring"].items()
        assert kept["trigger"] == {"cron_schedule": {"cron": "0 30 1 * * 1-5"}} and kept["service_account"] == "pipeline-runner"
        assert "made" in printed.getvalue() and "unchanged" in printed.getvalue()
        start("pre-delete")
        assert not here.kept["recurring"] and here.faults == []
        start("pre-delete")  # somebody deleted it by hand: that holds up no uninstall


def test_releases_of_one_name_in_two_namespaces_keep_a_schedule_each() -> None:
    named = [
        next(each for each in job["args"] if each.startswith("--name="))
        for namespace in ("care", "trial")
        for job in _jobs(NAMED["nightly pipeline"], namespace)[0].values()
    ]
    assert (
        named[0] == named[1]
        and named[2] == named[3]
        and [named[0], named[2]] == ["--name=care-site-concordant", "--name=trial-site-concordant"]
    )


SERVICE = "http://ml-pipeline.kubeflow.svc:8888"


def test_the_job_is_given_its_token_by_a_secret_and_its_address_may_have_one() -> None:
    from pipelines.kubeflow import Kubeflow

    jobs, _ = _jobs(NAMED["nightly pipeline"])
    for job in jobs.values():
        assert job["env"] == [{"name": "CONCORDANT_KFP_TOKEN", "valueFrom": {"secretKeyRef": {"name": "0", "key": "token"}}}]
    Kubeflow(host=SERVICE, token="x")


def test_the_config_of_the_values_is_a_cluster_file() -> None:
    _, config = _jobs(NAMED["nightly pipeline"])
    assert placement.parse(config).default.timeout_s == 77
    _, empty = _jobs({"schedule": {"enabled": True, "source": "s3://x"}})
    assert placement.parse(empty) == placement.Placement()
