"""What analysts look at: Feast's UI on a run's store, and the frame of features as of a date."""

import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from features.errors import ConcordantError


def report(console: Console, run: Path) -> None:
    """Write `data_report.html` into a run's folder: what is known of whom, when, and whether it moves."""
    import json

    from components.data_report import render
    from features import catalogue
    from features.feature import Events

    told = json.loads((store_of(run) / "store.json").read_text(encoding="utf-8"))
    target = run / "data_report.html"
    with console.status("writing the data report"):
        text = render(Events(events_of(run)), catalogue.select(told["columns"]), f"Features of {told['decision']}")
    draft = target.with_name(target.name + ".part")
    draft.write_text(text, encoding="utf-8")
    draft.replace(target)
    console.print(f"Data report: {target}")


def serve(console: Console, run: Path, port: int) -> None:
    """Feast's UI of a run on 127.0.0.1, until Ctrl-C."""
    import uvicorn

    from features.ui import app

    with tempfile.TemporaryDirectory(prefix="concordant-browse-") as scratch:
        with console.status("starting Feast's UI"):
            shown = app(store_of(run), Path(scratch), port)
        console.print(f"Feast's UI: http://127.0.0.1:{port}/   a copy of the registry, to look at. Ctrl-C stops.")
        uvicorn.run(shown, host="127.0.0.1", port=port, log_level="warning", access_log=False)


def store_of(run: Path) -> Path:
    """The store of a run folder, or a store folder itself."""
    return run if (run / "store.json").is_file() else run / "store"


def events_of(path: Path) -> Any:
    """Events table of a Parquet file, of a folder that `concordant ingest` wrote, or of a run. Raises ConcordantError."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from features.events import SCHEMA

    folders = sorted(folder for folder in path.glob("kfp/*/*/events") if folder.is_dir())
    file = path if path.is_file() else (folders[-1] if folders else path) / "events.parquet"
    try:
        return pq.read_table(file, schema=SCHEMA)
    except (OSError, pa.ArrowInvalid, KeyError) as error:
        raise ConcordantError(
            f"{path} holds no events table. Give a run, the folder that `concordant ingest SOURCE --out FOLDER` writes, "
            "or its events.parquet."
        ) from error


def moment(text: str) -> int:
    """A day (its end, UTC) or a time with zone, in microseconds since 1970 UTC. Raises ConcordantError."""
    from features.moment import instant

    try:
        return instant(f"{text}T23:59:59Z" if len(text) == 10 else text)
    except ValueError:
        raise ConcordantError(f"{text!r} is no date. Give YYYY-MM-DD, or a time with its zone as in 2025-06-30T12:00:00Z.") from None


def frame(table: Any, as_of_us: int | None, decision: str | None) -> Any:
    """`patient_id`, `event_timestamp` and a column a feature, of every patient with a known fact; pandas."""
    import numpy as np
    import pandas as pd

    from components.decision import load
    from features import catalogue
    from features.feature import AsOf, Events, compute

    known = Events(table)
    features = load(decision).tabular if decision else tuple(catalogue.FEATURES.values())
    at = known.newest_us if as_of_us is None else as_of_us
    columns = compute(features, AsOf(known, known.patients, np.full(len(known.patients), at)))
    stamp = datetime.fromtimestamp(at / 1e6, UTC)
    told = pd.DataFrame(columns, columns=[feature.name for feature in features])
    told.insert(0, "event_timestamp", pd.Series([stamp] * len(told), dtype="datetime64[us, UTC]"))
    told.insert(0, "patient_id", known.patients)
    return told


def features(console: Console, table: Path, as_of: str | None, decision: str | None, out: Path | None) -> None:
    """Write or show the frame."""
    from rich.table import Table

    if out is not None and out.suffix not in (".csv", ".parquet"):
        raise ConcordantError(f"--out must end in .csv or .parquet, found {out.suffix or 'no ending'!r}.")
    told = frame(events_of(table), None if as_of is None else moment(as_of), decision)
    if out is not None:
        draft = out.with_name(out.name + ".part")
        told.to_csv(draft, index=False) if out.suffix == ".csv" else told.to_parquet(draft, index=False)
        draft.replace(out)
        console.print(
            f"{len(told):,} patients x {told.shape[1] - 2} features as of {told['event_timestamp'].max():%Y-%m-%d}, written to {out}"
        )
        return
    shown = Table(title=f"{len(told):,} patients, {told.shape[1] - 2} features", title_justify="left")
    for column in ("feature", "known", "mean"):
        shown.add_column(column, justify="left" if column == "feature" else "right")
    for name in told.columns[2:]:
        share = told[name].notna().mean()
        shown.add_row(name, f"{share:.0%}", f"{told[name].mean():.3g}" if share * len(told) > 10 else "-")
    console.print(shown)
    console.print("The frame itself: --out FILE.parquet")
