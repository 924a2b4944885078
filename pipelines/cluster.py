"""The same graph for a cluster: compiled to a file, or sent to a Kubeflow Pipelines endpoint."""

import tempfile
from pathlib import Path

from features.errors import ConcordantError
from pipelines.placement import Placement


def compile_to(out: Path, placement: Placement = Placement()) -> None:
    """Write the graph as Kubeflow Pipelines IR with its platform settings.

    It holds no value of a patient: decision and source are arguments of a run.
    """
    from kfp import compiler

    from pipelines.treatment import graph

    if out.suffix not in (".yaml", ".yml"):
        raise ConcordantError(f"--out must end in .yaml, found {out.suffix or 'no ending'!r}.")
    out.parent.mkdir(parents=True, exist_ok=True)
    compiler.Compiler().compile(graph(placement), str(out))


def submit_to(host: str, decision: str, source: str, experiment: str, namespace: str | None, token: str | None) -> str:
    """Send a run; returns its id. Raises ConcordantError where the endpoint refuses or does not answer."""
    import kfp

    from components.decision import load, path_of

    load(decision)
    arguments = {"decision": path_of(decision).read_text(encoding="utf-8"), "source": source}
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "treatment.yaml"
        compile_to(package)
        try:
            client = kfp.Client(host=host, existing_token=token, namespace=namespace or "kubeflow")
            run = client.create_run_from_pipeline_package(
                str(package), arguments=arguments, experiment_name=experiment, namespace=namespace, enable_caching=False
            )
        except Exception as error:  # kfp and urllib3 raise many kinds; none of them says more than this
            raise ConcordantError(
                f"Kubeflow Pipelines at {host} did not take the run: {type(error).__name__}. Check --host and the token."
            ) from None
    return str(run.run_id)
