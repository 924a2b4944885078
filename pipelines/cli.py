"""The command line: `concordant --help`. Platforms are imported by the command that needs them."""

import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from features.errors import ConcordantError
from pipelines import cluster_cli
from pipelines.options import Decision, EngineOption, ShardsOption, SourceOption, console

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="Concordant recommends personalised treatment from FHIR records. Research software, not a medical device.",
)

WORKSPACE = Path(".concordant")
WorkspaceOption = Annotated[Path, typer.Option("--workspace", help="Folder for keys, finished steps and runs.")]
RunOption = Annotated[Path | None, typer.Option("--bundle", help="A run folder or a bundle folder; the newest run where none is given.")]
ServerOption = Annotated[
    Path | None, typer.Option("--server", help="YAML file that says how to reach the FHIR server: client_id, client_key, group, ...")
]
Validated = Literal["all", "quarantined", "sample"]
Dates = Literal["kept", "shifted"]


@app.command(epilog="Example: `concordant run warfarin --source exports/anticoagulation`")
def run(
    decision: Decision,
    source: Annotated[
        str | None, typer.Option(help="Folder or URL of FHIR NDJSON, or a FHIR server's base address. Without it: a simulated cohort.")
    ] = None,
    server: ServerOption = None,
    truth: Annotated[Path | None, typer.Option(help="A simulator's truth file for --source; only the evaluation reads it.")] = None,
    workspace: WorkspaceOption = WORKSPACE,
    patients: Annotated[int, typer.Option(help="Size of the simulated cohort.", min=200)] = 8000,
    seed: Annotated[int, typer.Option(help="Seed of the simulated cohort.")] = 0,
    engine: Annotated[Literal["kubeflow", "processes", "ray"], EngineOption] = "kubeflow",
    shards: ShardsOption = 1,
) -> None:
    """Run the whole pipeline here: records, features, models, evaluation, a verified bundle. A second run repeats nothing finished."""
    from components.decision import load
    from features.source import files
    from pipelines import origin, show
    from pipelines.local import Workspace
    from pipelines.local import run as run_locally

    space, name = Workspace(root=workspace), load(decision).name
    if truth is not None and not truth.is_file():
        raise ConcordantError(f"There is no truth file {truth}.")
    if source is None:
        source, truth = show.simulated(console, space, name, patients, seed)
    source = origin.local(console, source, server, space.exports)
    files(source)
    with show.Progress(console) as progress:
        folder = run_locally(decision, source, str(truth.resolve()) if truth else "", space, progress.tell, engine, shards)
    show.finished(console, folder)


@app.command(epilog="Example: `concordant recommend --bundle .concordant/runs/warfarin-1a2b3c4d --source exports/new --out advice.csv`")
def recommend(
    source: SourceOption,
    out: Annotated[Path, typer.Option(help="FILE.csv or FILE.parquet to write.")],
    bundle: RunOption = None,
    server: ServerOption = None,
    workspace: WorkspaceOption = WORKSPACE,
) -> None:
    """Recommend for a whole cohort at once: one row a patient."""
    import secrets

    import pyarrow.csv
    import pyarrow.parquet

    from components.bundle import load
    from components.whole import recommend_all
    from features import events
    from pipelines import origin
    from pipelines.local import Workspace

    if out.suffix not in (".csv", ".parquet"):
        raise ConcordantError(f"--out must end in .csv or .parquet, found {out.suffix or 'no ending'!r}.")
    loaded = load(bundle or Workspace(root=workspace).latest())
    source = origin.local(console, source, server, Workspace(root=workspace).exports)
    key = events.PseudonymKey(secrets.token_bytes(32))  # nothing of this run is kept, so neither is its key
    with console.status("reading the source"):
        table = events.of_source(source, key, events.now_us())
        patients = list(dict.fromkeys(events.raw_ids(source)))
    if not patients:
        raise ConcordantError(f"The source {source!r} holds no Patient resource, so there is nobody to recommend for.")
    with console.status(f"asking for {len(patients):,} patients"):
        answers = recommend_all(loaded, table, patients, key)
    draft = out.with_name(out.name + ".part")
    (pyarrow.csv.write_csv if out.suffix == ".csv" else pyarrow.parquet.write_table)(answers, draft)
    draft.replace(out)
    answered = sum(value is not None for value in answers["recommended"].to_pylist())
    console.print(f"{answers.num_rows:,} patients, {answered:,} with a single recommendation, written to {out}")


@app.command(epilog="Example: `concordant effects trial.csv --option arm --outcome change --lower-is-better --out effects.csv`")
def effects(
    table: Annotated[Path, typer.Argument(help="CSV with a row a patient.")],
    option: Annotated[str, typer.Option(help="Column that names what was given.")],
    outcome: Annotated[str, typer.Option(help="Column of the outcome, a number.")],
    apply: Annotated[Path | None, typer.Option(help="CSV of other patients to estimate for.")] = None,
    out: Annotated[Path | None, typer.Option(help="CSV to write: outcomes, differences with intervals, advice.")] = None,
    lower_is_better: Annotated[
        bool, typer.Option("--lower-is-better/--higher-is-better", help="Which end of the outcome is good.")
    ] = False,
) -> None:
    """Estimate effects on a plain table: a trial or a registry."""
    from pipelines import show

    show.effects(console, table, option, outcome, apply, out, lower_is_better)


@app.command(epilog="Example: `concordant ingest exports/today --out events/today`")
def ingest(
    source: Annotated[str, typer.Argument(help="Folder or fsspec URL of FHIR NDJSON, or a FHIR server's base address.")],
    out: Annotated[Path, typer.Option(help="Folder to write events, quarantine and summary into.")],
    key: Annotated[Path | None, typer.Option(help="File of the pseudonym key; made where there is none.")] = None,
    server: ServerOption = None,
    engine: Annotated[Literal["processes", "ray"], EngineOption] = "processes",
    shards: ShardsOption = 1,
    shuffle: Annotated[str, typer.Option(help="Folder or URL that all shards reach, where they run on other machines.")] = "",
    validate: Annotated[Validated | None, typer.Option(help="Also check these resources in full against the FHIR R4B models.")] = None,
    dates: Annotated[Dates, typer.Option(help="shifted: each patient's dates moved by a secret number of days (for research).")] = "kept",
    workspace: WorkspaceOption = WORKSPACE,
) -> None:
    """The door alone: FHIR to events, with an account of everything that was not accepted."""
    from features import events
    from features import shards as sharded
    from pipelines import origin, show
    from pipelines.local import Workspace

    source = origin.local(console, source, server, Workspace(root=workspace).exports)
    keyed = events.PseudonymKey.at(key or out / "pseudonym.key")
    if shards > 1 or engine != "processes":
        with console.status("starting") as status:
            options: dict[str, Any] = {"engine": engine, "shards": shards, "dates": dates, "check": validate}
            options |= {"place": sharded.place_in(shuffle)}
            told = sharded.ingest(source, out, keyed, tell=status.update, **options)
    else:
        with show.reading(console) as (read, checked):
            told = events.ingest(source, out, keyed, progress=read, dates=dates, check=validate, checked=checked)
    show.ingested(console, told, out)


@app.command("client-key", epilog="Example: `concordant client-key keys/ehr.pem`")
def client_key(file: Annotated[Path, typer.Argument(help="Private key: PEM or JWK; an ES384 key is made where there is none.")]) -> None:
    """Print the public key that a FHIR server's operator registers for Concordant (SMART Backend Services)."""
    import json

    from features.smart import new_key

    console.print_json(json.dumps(new_key(file).jwks()))


@app.command(epilog="Example: `concordant serve --bundle .concordant/runs/glucose_lowering-1a2b3c4d --port 8080`")
def serve(
    bundle: RunOption = None,
    workspace: WorkspaceOption = WORKSPACE,
    port: Annotated[int, typer.Option(help="Port of the transformer on 127.0.0.1; the predictor takes the next one.")] = 8080,
    page: Annotated[bool, typer.Option(help="Serve the clinician's page under /page/.")] = True,
    hooks: Annotated[bool, typer.Option(help="Serve CDS Hooks 2.0 under /cds-services; feedback is kept in the workspace.")] = True,
) -> None:
    """Serve a run by KServe as two local processes: a transformer that reads the feature store, a predictor with the bundle."""
    from pipelines.local import Workspace
    from pipelines.serve import Endpoints

    space = Workspace(root=workspace)
    more = [*(["--page"] if page else []), *(["--hooks", "--feedback", str(workspace / "feedback.sqlite")] if hooks else [])]
    with Endpoints(run=bundle or space.latest(), key_file=space.key_file, port=port, more=more) as endpoints:
        console.print(f"Ready: {endpoints.url}\nAsk in another window: concordant ask PATIENT --url {endpoints.base}")
        told = {"The page": "/page/"} if page else {}
        for name, path in (told | ({"CDS Hooks": "/cds-services"} if hooks else {})).items():
            console.print(f"{name}: {endpoints.base}{path}")
        console.print("Ctrl-C stops.")
        endpoints.wait()


@app.command(
    epilog="Example: `concordant ask 1a2b-3c4d` asks a running `concordant serve`; with `--start` it starts one for this question."
)
def ask(
    patient: Annotated[
        str | None, typer.Argument(help="Patient id as the source has it; without it the first patient who awaits a decision.")
    ] = None,
    url: Annotated[str, typer.Option(help="Where `concordant serve` listens.")] = "http://127.0.0.1:8080",
    start: Annotated[bool, typer.Option("--start", help="Start the endpoints for this question and stop them after it.")] = False,
    prefer: Annotated[
        list[str] | None,
        typer.Option(help="What matters to the patient, as weight_change=1; also hypoglycaemia, injection, cost, adverse_effects. 0 to 1."),
    ] = None,
    bundle: RunOption = None,
    workspace: WorkspaceOption = WORKSPACE,
) -> None:
    """Ask for one patient and print the answer for people."""
    from pipelines import show
    from pipelines.local import Workspace
    from pipelines.serve import Endpoints, question, served, weights

    space, given = Workspace(root=workspace), weights(prefer or [])
    query: dict[str, Any] = {"preferences": given} if given else {}
    query |= {"patient_id": patient} if patient is not None else {"pseudonym": space.waiting(bundle or space.latest())}
    if not start:
        show.answer(console, question(url, served(url), query))
        return
    with (
        console.status("starting transformer and predictor"),
        Endpoints(run=bundle or space.latest(), key_file=space.key_file) as endpoints,
    ):
        told = question(endpoints.base, endpoints.name, query)
    show.answer(console, told)


@app.command(epilog="Example: `concordant browse` and open http://127.0.0.1:8889/")
def browse(
    bundle: RunOption = None,
    workspace: WorkspaceOption = WORKSPACE,
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1.")] = 8889,
    report_only: Annotated[bool, typer.Option("--report-only", help="Write the data report and start no UI.")] = False,
) -> None:
    """Write a run's data report, and open Feast's UI on its features: meaning, unit, codes, from FHIR to the feature service."""
    from pipelines import browse as shown
    from pipelines.local import Workspace

    run = bundle or Workspace(root=workspace).latest()
    shown.report(console, run)
    if not report_only:
        shown.serve(console, run, port)


@app.command(epilog="Example: `concordant features events/today --as-of 2025-06-30 --out frame.parquet`")
def features(
    table: Annotated[Path, typer.Argument(help="events.parquet, the folder that `concordant ingest` wrote, or a run folder.")],
    as_of: Annotated[str | None, typer.Option("--as-of", help="Day or time; without it the newest date of the records.")] = None,
    decision: Annotated[str | None, typer.Option(help="Only the features of a decision.")] = None,
    out: Annotated[Path | None, typer.Option(help="FILE.csv or FILE.parquet; without it a summary is printed.")] = None,
) -> None:
    """The features of every patient as they were known at a date, as one frame."""
    from pipelines.browse import features as tell_features

    tell_features(console, table, as_of, decision, out)


@app.command("store", epilog="Example: `concordant store redis` and, in another window, the `export` line that it prints")
def store_server(
    kind: Annotated[str, typer.Argument(help="redis or postgresql.")],
    port: Annotated[int | None, typer.Option(help="Port on 127.0.0.1; a free one where none is given.")] = None,
    workspace: WorkspaceOption = WORKSPACE,
) -> None:
    """Start a Redis or PostgreSQL of one's own on 127.0.0.1 as online feature store, until Ctrl-C."""
    from pipelines.servers import LocalServer

    with LocalServer(kind, workspace / "servers" / kind, port) as server:
        console.print(f"Ready. For `concordant run` and `concordant serve`:\nexport CONCORDANT_ONLINE_STORE={server.url}\nCtrl-C stops.")
        server.wait()


@app.command(epilog="Example: `concordant report --model 1a2b3c4d5e6f7a8b` leads from an answer's model version to its data")
def report(
    run: Annotated[Path | None, typer.Argument(help="A run folder; the newest run where none is given.")] = None,
    model: Annotated[str, typer.Option(help="Model version of an answer, or its beginning: print where it came from.")] = "",
    patient: Annotated[str, typer.Option(help="With --model: the FHIR resources that this patient's row was made from.")] = "",
    runs: Annotated[bool, typer.Option("--runs", help="List every run on record.")] = False,
    workspace: WorkspaceOption = WORKSPACE,
) -> None:
    """Open the report of a run, or follow an answer back to its model, its data and its FHIR resources."""
    from pipelines import show
    from pipelines.local import Workspace

    space = Workspace(root=workspace)
    if runs:
        show.runs(console, space.registry.entries())
    elif model:
        show.lineage(console, space, space.registry.find(model), patient)
    else:
        show.report(console, run or space.newest())


app.command("compile", epilog="Example: `concordant compile --config gpu --out treatment.yaml`")(cluster_cli.compile_graph)
app.command(epilog="Example: `concordant submit warfarin --source s3://records/export --config gpu --host http://127.0.0.1:8888`")(
    cluster_cli.submit
)
app.command(epilog="Example: `concordant schedule warfarin --source s3://records/export --host http://127.0.0.1:8888 --name nightly`")(
    cluster_cli.schedule
)
app.command(epilog="Example: `concordant deploy .concordant/runs/warfarin-1a2b3c4d --uri s3://models/warfarin-1a2b3c4d --namespace care`")(
    cluster_cli.deploy
)
app.command(epilog="Example: `concordant sign .concordant/runs/warfarin-1a2b3c4d --key keys/publisher.pem`")(cluster_cli.sign)
app.command(epilog="Example: `concordant doctor`, and `concordant doctor --cluster --config gpu --namespace care`")(cluster_cli.doctor)


@app.command(epilog="Example: `concordant rules`")
def rules() -> None:
    """List the safety rules with their sources and review state."""
    from pipelines import show

    show.rules(console)


@app.command("explain-rule", epilog="Example: `concordant explain-rule sglt2.type_1_diabetes`")
def explain_rule(rule: Annotated[str, typer.Argument(help="Id of a rule, as `concordant rules` lists it.")]) -> None:
    """Show one safety rule with its source and its test cases."""
    from components.rulebook import explain
    from components.rules import load

    console.print(_plain(explain(load(), rule)))


def main() -> None:
    """Entry point: every error that a person can mend is one clear message and exit code 1."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # unwinds: endpoints end with the command that started them
    try:
        app()
    except OSError as error:
        named = f" {error.filename}" if error.filename else ""
        Console(stderr=True, highlight=False, soft_wrap=True).print(
            f"[bold red]Error:[/] {_plain(type(error).__name__)}:{_plain(named)} {_plain(os.strerror(error.errno or 5))}."
        )
        sys.exit(1)
    except ConcordantError as error:
        Console(stderr=True, highlight=False, soft_wrap=True).print(f"[bold red]Error:[/] {_plain(str(error))}")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


def _plain(text: Any) -> str:
    from rich.markup import escape

    return escape(str(text))
