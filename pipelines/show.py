"""What people see: progress, summaries, answers."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from components.registry import Entry
from features.errors import ConcordantError
from pipelines.doctor import Finding
from pipelines.local import Told, Workspace

SIMULATED = "glucose_lowering"


class Progress:
    """A line a step: what it did and how long it took; on a terminal a spinner names the step at work."""

    def __init__(self, console: Console) -> None:
        self._console, self._status = console, console.status("starting")

    def __enter__(self) -> "Progress":
        self._status.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._status.stop()

    def tell(self, told: Told) -> None:
        """A step started, finished, was reused, or failed."""
        if told["state"] == "started":
            self._status.update(f"{told['step']} ...")
        elif told["state"] in ("finished", "reused"):
            seconds = "reused " if told["state"] == "reused" else f"{told['seconds']:5.1f} s"
            self._console.print(f"  [green]✓[/] {told['step']:<17} {seconds:>8}  {escape(told['message'])}")
        else:
            self._console.print(f"  [red]✗[/] {told['step']}")


def simulated(console: Console, space: Workspace, decision: str, patients: int, seed: int) -> tuple[str, Path]:
    """Source and truth of a simulated cohort, made where it is not there yet."""
    from pipelines.simulate import World, simulate, truth_path

    if decision != SIMULATED:
        raise ConcordantError(
            f"The simulator makes cohorts for {SIMULATED} only. For {decision} give --source, a folder or URL of FHIR NDJSON."
        )
    folder = space.root / "sources" / f"simulated-{patients}-{seed}"
    with console.status(f"simulating {patients:,} patients") as status:
        simulate(
            World(patients=patients, seed=seed), folder, progress=lambda done: status.update(f"simulated {done:,} of {patients:,} patients")
        )
    console.print(f"  [green]✓[/] {'simulate':<17} {'':>8}  {patients:,} synthetic patients as FHIR R4 in {folder}")
    return str(folder.resolve()), truth_path(folder).resolve()


def finished(console: Console, folder: Path) -> None:
    """The figures that decide, and what to do next."""
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    table = Table(
        title=f"{metrics['decision']}, {metrics['patients']:,} patients, {metrics['folds']}-fold cross-validated", title_justify="left"
    )
    if "mae_mg_week" in metrics:
        _dose_rows(table, metrics)
    else:
        _choice_rows(table, metrics)
    console.print(table)
    if "abstained_max_over_min" in metrics:
        told = f"{metrics['share_answered']:.1%} get a single recommendation, the others a set or a reason"
        console.print(f"By the models alone {told}; abstention by group, largest over smallest: {metrics['abstained_max_over_min']:.2f}")
    console.print(f"Gate: {json.loads((folder / 'gate.json').read_text(encoding='utf-8'))['sentence']}")
    console.print(f"Run: {folder}\nReport: {folder / 'report.html'}\nNext: concordant ask --start --bundle {folder}")


def _dose_rows(table: Table, metrics: Told) -> None:
    for column in ("", "MAE, mg/week", "within 20 %"):
        table.add_column(column, justify="left" if not column else "right")
    names = {"": "Concordant", "_without_genomics": "Concordant without genomics"}
    names |= {
        key.removeprefix("mae_mg_week"): key.removeprefix("mae_mg_week_").replace("_", " ")
        for key in metrics
        if key.startswith("mae_mg_week_published")
    }
    for suffix, label in names.items():
        if f"mae_mg_week{suffix}" in metrics:
            table.add_row(label, f"{metrics[f'mae_mg_week{suffix}']:.2f}", f"{metrics[f'within_20_percent{suffix}']:.1%}")


def _choice_rows(table: Table, metrics: Told) -> None:
    for column in ("", "regret", "true mean outcome"):
        table.add_column(column, justify="left" if not column else "right")
    if "policy_regret" not in metrics:
        gain = next(key for key in metrics if key.startswith("gain_over_best_fixed") and not key.endswith(("low", "high")))
        table.add_row(
            "gain over the best fixed option", f"{metrics[gain]:.2f}", f"{metrics[gain + '_low']:.2f} to {metrics[gain + '_high']:.2f}"
        )
        return
    oracle = metrics["oracle_true_outcome"]
    fixed = [key for key in metrics if key.startswith("fixed_regret_")]
    names = {"policy_regret": "Concordant"} | {key: key.removeprefix("fixed_regret_") + " for all" for key in fixed}
    for key, label in (names | {"prescriber_regret": "as prescribed", "random_regret": "at random"}).items():
        table.add_row(label, f"{metrics[key]:.2f}", f"{oracle + metrics[key]:.2f}")
    table.add_row("oracle: the best for each patient", "0.00", f"{oracle:.2f}")


@contextmanager
def reading(console: Console) -> Iterator[tuple[Callable[[str, int], None], Callable[[int, int], None]]]:
    """A line that says what is read, then a bar of what is validated: the functions that move them."""
    from rich import progress

    columns = (progress.TextColumn("{task.description}"), progress.BarColumn(), progress.MofNCompleteColumn())
    with progress.Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("reading", total=None)
        yield (
            lambda file, line: bar.update(task, description=f"reading {escape(file)}, line {line:,}"),
            lambda passed, total: bar.update(task, description="validating", completed=passed, total=total),
        )


def ingested(console: Console, told: Told, out: Path) -> None:
    """One page: what came, what was kept, what was not and why."""
    table = Table(title="received = accepted + quarantined", title_justify="left")
    for column in ("resource type", "received", "quarantined"):
        table.add_column(column, justify="left" if column == "resource type" else "right")
    for kind, count in told["by_type"].items():
        table.add_row(kind, f"{count['received']:,}", f"{count['quarantined']:,}")
    table.add_row("all", f"{told['received']:,}", f"{told['quarantined']:,}", style="bold")
    console.print(table)
    for reason in told["reasons"]:
        console.print(f"  {reason['resources']:>8,}  {reason['reason']}  ({reason['type']} in {escape(reason['file'])})")
    for part in told["parts"]:
        console.print(f"  {part['parts']:>8,}  {part['reason']}  (only {part['part']} of a {part['type']} in {escape(part['file'])})")
    if "validation" in told:
        _validated(console, told["validation"])
    shifted = ", dates shifted" if told["dates"] == "shifted" else ""
    console.print(f"{told['events']:,} events of {told['patients']:,} patients in {out}{shifted}")


def _validated(console: Console, told: Told) -> None:
    console.print(f"{told['models']} ({told['which']}): {told['rejected']:,} of {told['checked']:,} resources rejected")
    for error in told["errors"]:
        console.print(f"  {error['resources']:>8,}  {error['error']}  ({'.'.join(filter(None, (error['type'], error['path'])))})")


def answer(console: Console, told: Told) -> None:
    """The answer for one patient: a small table, the reasons, what would change it, the versions."""
    console.print(f"[bold]{escape(told['title'])}[/], as of {told['as_of'][:10]}")
    if told["ranked"]:
        console.print(_options(told))
    for what, entries, name in (("not offered", told["excluded"], "label"), ("not to be given", told["ruled_out"], "drug")):
        for entry in entries:
            source = f" [{entry['source']}]" if entry["source"] else ""
            console.print(f"  {what}: {escape(entry[name])} ({entry['code']}: {escape(entry['reason'] + source)})")
    if told["dose_mg_week"] is not None:
        console.print(f"Expected dose: [bold]{told['dose_mg_week']:.1f} mg a week[/]")
    if told["recommended"]:
        console.print(f"[bold green]Recommended: {escape(told['ranked'][0]['label'])}[/]")
    else:
        console.print(f"[bold yellow]No single recommendation: {told['abstained']}[/]")
    for reason in told["reasons"]:
        console.print(f"  {escape(reason)}")
    for entry in told["ranked"]:
        console.print(f"  {escape(entry['label'])}: {escape(entry['reason'])}")
    if told["changes"]:
        console.print("What would change the answer:")
    for change in told["changes"]:
        console.print(f"  {escape(change)}")
    for note in told["notes"]:
        about = f"{note['option']}, " if note["option"] else ""
        review = "" if note["reviewed"] else " (threshold not yet compared with its source)"
        console.print(f"  {about}{note['kind']}: {escape(note['text'])}{review}", style="dim")
    for kind in ("not_known", "stale", "implausible"):
        if told[kind]:
            console.print(f"  {kind.replace('_', ' ')}: {', '.join(told[kind])}", style="dim")
    console.print(
        f"decision {told['decision']} {told['decision_version']}, model {told['model_version']}, rules {told['ruleset_version']}",
        style="dim",
    )
    console.print(told["note"], style="dim")


def _options(told: Told) -> Table:
    table = Table()
    for column in ("option", told["unit"], "to the best (95 %)", "overlap", ""):
        table.add_column(column, justify="left" if column in ("option", "") else "right", no_wrap=column != "option")
    for n, entry in enumerate(told["ranked"]):
        gap = "" if n == 0 else f"{entry['difference_to_best']:+.1f} ({entry['low']:+.1f} to {entry['high']:+.1f})"
        note = "equivalent" if entry["option"] in told["equivalent"] else "behind"
        note = "recommended" if entry["option"] == told["recommended"] else note
        table.add_row(escape(entry["label"]), f"{entry['outcome']:.1f}", gap, f"{entry['overlap']:.0%}", note)
    return table


def effects(console: Console, table: Path, option: str, outcome: str, apply: Path | None, out: Path | None, lower_is_better: bool) -> None:
    """Estimate on a plain table, print what is worth knowing, write the rows."""
    import pandas as pd

    from components.table import estimate

    for path in (table, apply):
        if path is not None and not path.is_file():
            raise ConcordantError(f"There is no file {path}. Give a CSV with a row a patient.")
    try:
        given, asked = pd.read_csv(table), None if apply is None else pd.read_csv(apply)
    except ValueError as error:  # empty, not UTF-8, or rows of different lengths
        raise ConcordantError(
            f"{table if apply is None else f'{table} or {apply}'} can't be read as CSV in UTF-8 with a header line."
        ) from error
    with console.status("estimating effects"):
        found = estimate(given, option, outcome, lower_is_better=lower_is_better, apply=asked)
    values = found.values
    shown = Table(title=f"Mean {outcome} ({'lower' if lower_is_better else 'higher'} is better)", title_justify="left")
    for column in ("", "estimate", "95 % interval"):
        shown.add_column(column, justify="left" if not column else "right")
    shown.add_row("as it was", f"{values['actual_value_outcome']:.3f}", "")
    shown.add_row(f"best fixed option, {found.best_fixed}, for all", f"{values['best_fixed_value_outcome']:.3f}", "")
    shown.add_row("option chosen by patient", f"{values['policy_value_outcome']:.3f}", "")
    low, high = values["gain_over_best_fixed_outcome_low"], values["gain_over_best_fixed_outcome_high"]
    shown.add_row("gain of choosing by patient", f"{values['gain_over_best_fixed_outcome']:.3f}", f"{low:.3f} to {high:.3f}")
    console.print(shown)
    for name in found.dropped:
        console.print(f"Column {name!r} was left out: it reads like an identifier or has one value only.", style="dim")
    advice = "choose by patient" if found.personalise else f"best fixed option for all: {found.best_fixed}; nothing better is shown"
    console.print(f"Advice: [bold]{advice}[/]")
    if out is not None:
        draft = out.with_name(out.name + ".part")
        found.rows().to_csv(draft, index=False)
        draft.replace(out)
        console.print(f"{len(found.rows()):,} rows written to {out}")


def rules(console: Console) -> None:
    """Every safety rule with its source and whether its threshold was compared with it."""
    from components.rulebook import listing
    from components.rules import load

    found = load()
    table = Table(title=f"rule set {found.version}: {len(found.rules)} rules", title_justify="left")
    for column in ("rule", "action", "drugs", "where", "source", "reviewed"):
        table.add_column(column)
    for row in listing(found):
        table.add_row(*(escape(row[name]) for name in ("rule_id", "action", "drugs", "condition", "source", "reviewed")))
    console.print(table)


def report(console: Console, folder: Path) -> None:
    """Open the report in a browser where there is a display; print where it lies in any case."""
    import os
    import sys
    import webbrowser

    page = folder / "report.html" if folder.is_dir() else folder
    if not page.is_file():
        raise ConcordantError(f"There is no report in {folder}. Give the folder of a run.")
    gate = page.with_name("gate.json")
    if gate.is_file():
        console.print(escape(json.loads(gate.read_text(encoding="utf-8"))["sentence"]))
    console.print(f"Report: {page}")
    if os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY") or sys.platform == "darwin":
        webbrowser.open(page.resolve().as_uri())


def findings(console: Console, found: list[Finding]) -> None:
    """A line for each thing that was looked for, and what to do."""
    marks = {"there": "[green]✓[/]", "missing": "[red]✗[/]", "optional": "[dim]-[/]", "not told": "[yellow]?[/]"}
    for each in found:
        console.print(f"  {marks[each.state]} {each.what:<34} {escape(each.told)}{f'  {escape(each.do)}' if each.do else ''}")


def runs(console: Console, entries: list[Entry]) -> None:
    """Every run on record, the newest first."""
    table = Table()
    for column in ("made (UTC)", "run", "model", "compared with", "verdict"):
        table.add_column(column)
    for entry in entries:
        told = f"{entry.verdict}, {entry.advice}" if entry.verdict == "pass" else entry.verdict
        table.add_row(entry.made[:16].replace("T", " "), escape(entry.run), entry.bundle or "-", entry.champion or "-", told)
    console.print(table)


def lineage(console: Console, space: Workspace, entry: Entry, patient: str) -> None:
    """From a model to its data; with a patient the resources that its row was made from, as pseudonyms of their ids."""
    from components.registry import lineage as steps

    for name, told in steps(entry).items():
        console.print(f"  {name:<14} {escape(told)}")
    if not patient:
        return
    found = resources(space, entry, patient)
    if not found:
        raise ConcordantError("The events of this run hold nobody with that id. Give the id as the source has it.")
    console.print(f"{len(found):,} facts of this patient (resource type and keyed pseudonym of its id):")
    for concept, day, source in found:
        console.print(f"  {day}  {escape(concept):<34} {escape(source)}")


def resources(space: Workspace, entry: Entry, patient: str) -> list[tuple[str, str, str]]:
    """Concept, day and source of every fact that a run knows of a patient, the oldest first."""
    import pyarrow.compute as pc

    from features import events

    pseudonym = events.PseudonymKey.at(space.key_file).pseudonym(patient)
    table = events.read(Path(entry.places["events"]))
    rows = table.filter(pc.equal(pc.cast(table["patient_id"], "string"), pseudonym)).select(["concept", "time", "source"]).to_pylist()
    told = [(str(row["concept"]), row["time"].date().isoformat(), str(row["source"])) for row in rows]
    return sorted(told, key=lambda row: row[1])
