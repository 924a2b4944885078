"""The commands for a cluster; `cli.py` lists them."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from features.errors import ConcordantError
from pipelines.options import ConfigOption, Decision, ExperimentOption, HostOption, KubeflowNamespace, SourceOption, console

if TYPE_CHECKING:
    from pipelines.kubeflow import Kubeflow
    from pipelines.placement import Placement


def compile_graph(out: Annotated[Path, typer.Option(help="File to write.")] = Path("treatment.yaml"), config: ConfigOption = None) -> None:
    """Write the graph for a Kubeflow Pipelines cluster."""
    from pipelines.cluster import compile_to

    compile_to(out, _placement(config))
    console.print(f"Wrote {out}: the same graph that `concordant run` executes.")


def submit(
    decision: Decision,
    source: SourceOption,
    host: HostOption,
    config: ConfigOption = None,
    experiment: ExperimentOption = "concordant",
    namespace: KubeflowNamespace = None,
    every: Annotated[float, typer.Option(help="Seconds between two looks at the run.", min=0.05)] = 5.0,
    follow: Annotated[bool, typer.Option("--follow/--no-follow", help="Show the steps until the run is over, and end as it ends.")] = True,
) -> None:
    """Send a run to a Kubeflow Pipelines endpoint and follow it. A token is read from CONCORDANT_KFP_TOKEN."""
    from pipelines import cluster, show
    from pipelines.local import RunFailed

    kubeflow = _kubeflow(host, namespace)
    with console.status("compiling and uploading"):
        run, steps = cluster.submit_to(kubeflow, experiment, decision, _remote(source), _placement(config))
    console.print(f"Submitted run {run} to {host}")
    if not follow:
        return
    try:
        with show.Progress(console) as progress:
            published = cluster.follow(kubeflow, run, steps, progress.tell, every)
    except KeyboardInterrupt:
        console.print(f"No longer followed; the run {run} goes on.")
        raise
    if not published:
        raise RunFailed(f"The run {run} ended without a bundle: the gate did not pass. The report is an artifact of its step evaluate.")
    console.print(f"The run {run} succeeded: its step publish holds the bundle.")


def schedule(
    decision: Decision,
    source: SourceOption,
    host: HostOption,
    name: Annotated[str, typer.Option(help="Name of the schedule; the one of that name is replaced.")],
    cron: Annotated[str, typer.Option(help="Five fields, or six with seconds first; UTC.")] = "0 2 * * *",
    max_concurrency: Annotated[int, typer.Option(help="Most runs at a time.")] = 1,
    catch_up: Annotated[
        bool, typer.Option("--catch-up/--no-catch-up", help="Also start what was missed while the cluster was down.")
    ] = False,
    delete: Annotated[bool, typer.Option("--delete", help="Delete the schedule of that name; its runs go on.")] = False,
    config: ConfigOption = None,
    experiment: ExperimentOption = "concordant",
    namespace: KubeflowNamespace = None,
) -> None:
    """Let a cluster run the pipeline again and again. A token is read from CONCORDANT_KFP_TOKEN."""
    from pipelines import cluster
    from pipelines.kubeflow import Plan

    kubeflow = _kubeflow(host, namespace)
    if delete:
        console.print(f"Schedule {name}: {cluster.unschedule_on(kubeflow, experiment, name)} deleted.")
        return
    plan = Plan(cron=cron, max_concurrency=max_concurrency, catch_up=catch_up)
    with console.status("compiling and uploading"):
        made, what = cluster.schedule_on(kubeflow, experiment, name, decision, _remote(source), _placement(config), plan)
    console.print(f"Schedule {name} {what}: {plan.cron} (seconds first, UTC), {made}")


def _placement(config: str | None) -> "Placement":
    from pipelines import placement

    return placement.read(config) if config else placement.Placement()


def _kubeflow(host: str, namespace: str | None) -> "Kubeflow":
    from pipelines.kubeflow import Kubeflow

    return Kubeflow(host=host, token=os.environ.get("CONCORDANT_KFP_TOKEN") or None, namespace=namespace)


def _remote(source: str) -> str:
    from features.server import is_server

    if is_server(source):
        raise ConcordantError(
            "A cluster reads folders and URLs of files. Bring the server's records to one: concordant ingest, then its exports."
        )
    return source
