"""The commands for a cluster; `cli.py` lists them."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from features.errors import ConcordantError
from pipelines.options import ClusterSourceOption, ConfigOption, Decision, ExperimentOption, HostOption, KubeflowNamespace, console

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
    source: ClusterSourceOption,
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

    kubeflow, placement = _kubeflow(host, namespace), _placement(config)
    source = _remote(source, placement)
    with console.status("compiling and uploading"):
        run, steps = cluster.submit_to(kubeflow, experiment, decision, source, placement)
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
    source: ClusterSourceOption,
    host: HostOption,
    name: Annotated[str, typer.Option(help="Name of the schedule; the one of that name is replaced.")],
    cron: Annotated[str, typer.Option(help="Five fields, or six with seconds first; UTC.")] = "0 2 * * *",
    max_concurrency: Annotated[int, typer.Option(help="Most runs at a time.")] = 1,
    catch_up: Annotated[
        bool, typer.Option("--catch-up/--no-catch-up", help="Also start what was missed while the cluster was down.")
    ] = False,
    delete: Annotated[bool, typer.Option("--delete", help="Delete the schedule of that name; its runs go on.")] = False,
    ignore_not_found: Annotated[bool, typer.Option("--ignore-not-found", help="With --delete: none of that name is no error.")] = False,
    config: ConfigOption = None,
    experiment: ExperimentOption = "concordant",
    namespace: KubeflowNamespace = None,
) -> None:
    """Let a cluster run the pipeline again and again. A token is read from CONCORDANT_KFP_TOKEN."""
    from pipelines import cluster
    from pipelines.kubeflow import Plan

    kubeflow = _kubeflow(host, namespace)
    if delete:
        deleted = cluster.unschedule_on(kubeflow, experiment, name)
        if not deleted and not ignore_not_found:
            raise ConcordantError(
                f"Nothing was deleted: the experiment {experiment} has no schedule {name} of this pipeline. "
                "Check --name, --experiment and --namespace."
            )
        console.print(f"Schedule {name}: {deleted} deleted.")
        return
    plan, placement = Plan(cron=cron, max_concurrency=max_concurrency, catch_up=catch_up), _placement(config)
    source = _remote(source, placement)
    with console.status("compiling and uploading"):
        made, what = cluster.schedule_on(kubeflow, experiment, name, decision, source, placement, plan)
    console.print(f"Schedule {name} {what}: {plan.cron} (seconds first, UTC), {made}")


def deploy(
    bundle: Annotated[Path, typer.Argument(help="A run folder or a bundle folder, whose digest is pinned.")],
    uri: Annotated[str, typer.Option(help="Where the cluster finds the same bundle: s3://, gs://, pvc://, oci://.")],
    name: Annotated[str, typer.Option(help="Name of the InferenceService.")] = "concordant",
    namespace: Annotated[str, typer.Option(help="Its namespace.")] = "default",
    traffic: Annotated[int, typer.Option(help="Percent of the traffic for the canary; 100 deploys at once.", min=0, max=100)] = 10,
    prometheus: Annotated[str, typer.Option(help="Prometheus server that knows both predictors' metrics.")] = "",
    champion_metrics: Annotated[str, typer.Option(help="Or a page of metrics: the champion's predictor.")] = "",
    canary_metrics: Annotated[str, typer.Option(help="And the canary's.")] = "",
    watch: Annotated[float, typer.Option(help="Seconds to watch the canary.", min=0)] = 900.0,
    every: Annotated[float, typer.Option(help="Seconds between two looks.", min=0.05)] = 15.0,
    ready: Annotated[float, typer.Option(help="Seconds that it may take to become ready.", min=0)] = 600.0,
    min_requests: Annotated[int, typer.Option(help="Fewer requests to the canary than these say nothing.", min=1)] = 200,
    max_error_rate: Annotated[float, typer.Option(help="Share of its requests that may fail.", min=0, max=1)] = 0.01,
    max_p99: Annotated[float, typer.Option(help="Seconds within which 99 % of its answers come.", min=0)] = 0.5,
    max_abstention: Annotated[float, typer.Option(help="Largest difference of the shares abstained.", min=0, max=1)] = 0.05,
    min_agreement: Annotated[float, typer.Option(help="Least overlap of its answers with the champion's.", min=0, max=1)] = 0.9,
    public_key: Annotated[Path | None, typer.Option(help="Ed25519 public key (PEM) that must have signed the bundle.")] = None,
    context: Annotated[str | None, typer.Option(help="Context of the kubeconfig.")] = None,
) -> None:
    """Put a bundle into a running InferenceService: pinned by digest, a canary first, promoted or rolled back by its metrics."""
    from components import rollout
    from components.canary import Limits, Watch
    from components.cluster import Cluster

    for option, address in (
        ("--prometheus", prometheus),
        ("--champion-metrics", champion_metrics),
        ("--canary-metrics", canary_metrics),
    ):
        if "@" in address:  # it would be printed with every error
            raise ConcordantError(
                f"{option}: an address with a name or password in it is not taken. Give one without, behind a proxy if need be."
            )
    limits = Limits(
        requests=min_requests, error_rate=max_error_rate, p99_s=max_p99, abstention_difference=max_abstention, agreement=min_agreement
    )
    if bool(champion_metrics) != bool(canary_metrics):
        raise ConcordantError("--champion-metrics and --canary-metrics belong together.")
    seen = Watch(champion=champion_metrics, canary=canary_metrics, prometheus=prometheus) if prometheus or canary_metrics else None
    plan = rollout.Plan(percent=None if traffic == 100 else traffic, ready_s=ready, watch_s=watch, every_s=every, limits=limits)
    new = rollout.reference(bundle, uri, public_key)
    outcome = rollout.deploy(rollout.read(Cluster(context=context), namespace, name), new, plan, seen, console.print)
    if outcome == "canary":
        console.print(
            "Nothing watches it. Give --prometheus, or end it: --traffic 100 promotes, the champion's bundle with --traffic 100 rolls back."
        )


def sign(
    bundle: Annotated[Path, typer.Argument(help="A run folder or a bundle folder.")],
    key: Annotated[Path, typer.Option(help="Ed25519 private key (PEM); made where there is none, its public half beside it.")],
) -> None:
    """Sign a bundle: whoever deploys it can tell that it is the one that was published."""
    from components.signature import sign as sign_bundle

    fresh = not key.exists()
    signed = sign_bundle(bundle, key)
    if fresh:
        console.print(
            f"There was no key at {key}: a NEW key was made there, its public half at {key}.pub. Nobody trusts it yet. "
            "Did you mean another file? Then delete both and sign again."
        )
    console.print(f"Signed: {signed}")


def doctor(
    cluster: Annotated[bool, typer.Option("--cluster", help="Look at the cluster of the kubeconfig instead of this machine.")] = False,
    config: ConfigOption = None,
    namespace: Annotated[str, typer.Option(help="Namespace of the pipeline's secrets and claims.")] = "default",
    context: Annotated[str | None, typer.Option(help="Context of the kubeconfig.")] = None,
    workspace: Annotated[Path, typer.Option("--workspace", help="Folder for keys, finished steps and runs.")] = Path(".concordant"),
) -> None:
    """Say what is missing on this machine or cluster, and what to do about it. Exit code 1 where something needed is missing."""
    from components.cluster import Cluster
    from pipelines import doctor as looks
    from pipelines import show

    if config and not cluster:
        raise ConcordantError("--config belongs to --cluster: a cluster file says nothing about this machine.")
    found = looks.on_cluster(Cluster(context=context), namespace, _placement(config)) if cluster else looks.here(workspace)
    show.findings(console, found)
    missing = [each.what for each in found if each.state == "missing"]
    if missing:
        raise ConcordantError(f"Missing: {', '.join(missing)}.")


def _placement(config: str | None) -> "Placement":
    from pipelines import placement

    return placement.read(config) if config else placement.Placement()


def _kubeflow(host: str, namespace: str | None) -> "Kubeflow":
    from pipelines.kubeflow import Kubeflow

    return Kubeflow(host=host, token=os.environ.get("CONCORDANT_KFP_TOKEN") or None, namespace=namespace)


def _remote(source: str, placement: "Placement") -> str:
    from features.server import is_server

    if is_server(source):
        raise ConcordantError(
            "A cluster reads folders and URLs of files. Bring the server's records to one: concordant ingest, then its exports."
        )
    mount = placement.workspace.mount if placement.workspace.claim else None
    if "://" not in source and not (mount and source.startswith(f"{mount}/")):
        where = f"a folder below {mount}, where the cluster file mounts its claim" if mount else "a workspace.claim in the cluster file"
        raise ConcordantError(
            f"A cluster can't read the folder {source!r} of this machine. Give a URL such as s3://bucket/export, or {where}."
        )
    return source
