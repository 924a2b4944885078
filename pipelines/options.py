"""Options that several commands share: one name and one sentence each."""

import sys
from typing import Annotated

import typer
from rich.console import Console

console = Console(highlight=False, soft_wrap=True, file=sys.stdout)  # bound now: a run turns sys.stdout to its log

Decision = Annotated[str, typer.Argument(help="A shipped decision (glucose_lowering, warfarin) or the path of a YAML file.")]
SourceOption = Annotated[
    str, typer.Option("--source", help="Folder or fsspec URL that holds FHIR R4 NDJSON files or Bundles, or a FHIR server's base address.")
]
ClusterSourceOption = Annotated[
    str,
    typer.Option(
        "--source",
        help="FHIR R4 NDJSON files or Bundles where the cluster reads them: a URL such as s3://bucket/export, or a folder below the "
        "claim that the cluster file mounts.",
    ),
]
ConfigOption = Annotated[
    str | None,
    typer.Option(
        "--config", help="Where a cluster runs each step: cpu, gpu, multi_node, sharded, or the path of a YAML file of one's own."
    ),
]
HostOption = Annotated[str, typer.Option("--host", help="Kubeflow Pipelines endpoint.")]
ExperimentOption = Annotated[str, typer.Option("--experiment", help="Experiment to run in.")]
KubeflowNamespace = Annotated[str | None, typer.Option("--namespace", help="Namespace, on a multi-user installation.")]
EngineOption = typer.Option(
    "--engine", help="What runs the shards: tasks of the graph (kubeflow), processes of one machine, or the Ray cluster at RAY_ADDRESS."
)
ShardsOption = Annotated[
    int, typer.Option("--shards", help="Parts that are worked on at once, by patient; the result does not depend on it.", min=1)
]
