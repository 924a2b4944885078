"""The command line: help, examples, and one clear sentence for what a person can mend."""

import json
import time
from pathlib import Path

import pytest
from conftest import concordant
from typer.main import get_command

from pipelines.cli import app

COMMANDS = (
    "run",
    "recommend",
    "effects",
    "ingest",
    "serve",
    "ask",
    "compile",
    "submit",
    "schedule",
    "deploy",
    "sign",
    "doctor",
    "rules",
    "explain-rule",
    "store",
    "browse",
    "features",
    "client-key",
    "report",
)


def test_every_command_of_the_interface_is_there() -> None:
    assert set(get_command(app).commands) == set(COMMANDS)  # type: ignore[attr-defined]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_an_example_in_its_help(command: str, tmp_path: Path) -> None:
    printed = concordant(command, "--help", cwd=tmp_path).stdout
    assert "Example" in printed and f"concordant {command}" in printed


def test_help_starts_no_platform(tmp_path: Path) -> None:
    """About a second: as fast as an interpreter that imports typer alone, within a factor; no platform is imported."""
    import subprocess
    import sys

    def seconds(code: str) -> float:
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True)
        return time.perf_counter() - began

    program = "import sys; sys.argv = ['concordant', '--help']; from pipelines.cli import main\ntry: main()\nexcept SystemExit: pass\n"
    banned = "print([m for m in ('torch', 'feast', 'kfp', 'kserve', 'pandas', 'pyarrow', 'xgboost') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program + banned], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert done.stdout.strip().endswith("[]")
    assert min(seconds(program) for _ in range(3)) < 10 * min(seconds("import typer, rich.markdown") for _ in range(3))


MISTAKES = {
    "a wrong decision name": (("run", "nonsense"), "There is no decision 'nonsense'. Shipped: glucose_lowering, warfarin."),
    "a missing source": (("run", "warfarin", "--source", "not-there"), "The source 'not-there' does not exist."),
    "a source without FHIR": (("run", "warfarin", "--source", "."), "holds no .ndjson"),
    "a decision without simulator": (("run", "warfarin"), "The simulator makes cohorts for glucose_lowering only."),
    "a missing table": (("effects", "none.csv", "--option", "a", "--outcome", "b"), "There is no file none.csv."),
    "no report yet": (("report",), "There is no finished run"),
    "no such report": (("report", "nowhere"), "There is no report in nowhere."),
    "an unknown model": (("report", "--model", "abcd"), "No bundle 'abcd' is on record"),
    "no run yet": (("ask", "somebody", "--start"), "There is no finished run"),
    "nothing that answers": (("ask", "somebody", "--url", "http://127.0.0.1:9"), "Nothing answers at http://127.0.0.1:9."),
    "a wrong ending": (("recommend", "--source", ".", "--out", "x.txt"), "--out must end in .csv or .parquet"),
    "a folder that is no bundle": (("recommend", "--bundle", ".", "--source", ".", "--out", "x.csv"), "is not a bundle"),
    "an unknown rule": (("explain-rule", "sglt2.nonsense"), "There is no rule 'sglt2.nonsense'."),
    "settings without a server": (
        ("ingest", ".", "--out", "x", "--server", "ehr.yaml"),
        "--server is for the base address of a FHIR server",
    ),
    "a server for a cluster": (
        ("submit", "warfarin", "--source", "https://x/fhir", "--host", "http://127.0.0.1:9"),
        "A cluster reads folders",
    ),
    "settings that are absent": (
        ("ingest", "http://127.0.0.1:9/fhir", "--out", "x", "--server", "no.yaml"),
        "The settings no.yaml can't be read",
    ),
    "an address that can't be read": (("submit", "warfarin", "--source", "s3://x/y", "--host", "http://[::1"), "--host must be an address"),
    "a cluster file for this machine": (("doctor", "--config", "cpuu"), "--config belongs to --cluster"),
    "a password in an address": (
        ("deploy", ".", "--uri", "s3://x", "--prometheus", "http://u:p@prometheus"),
        "--prometheus: an address with a name or password in it is not taken",
    ),
    "no cluster": (("submit", "warfarin", "--source", "s3://x/y", "--host", "http://127.0.0.1:9"), "did not answer"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_gives_one_clear_sentence_and_a_non_zero_exit_code(mistake: str, tmp_path: Path) -> None:
    arguments, sentence = MISTAKES[mistake]
    done = concordant(*arguments, cwd=tmp_path, check=False)
    assert done.returncode == 1
    assert sentence in done.stderr and "Traceback" not in done.stdout + done.stderr


def test_ingest_accounts_for_everything(small_export: Path, tmp_path: Path) -> None:
    done = concordant("ingest", str(small_export), "--out", "events", cwd=tmp_path)
    assert "received = accepted + quarantined" in done.stdout
    assert (tmp_path / "events" / "events.parquet").is_file() and (tmp_path / "events" / "summary.json").is_file()


def test_ingest_validates_and_shifts_dates_where_asked(small_export: Path, tmp_path: Path) -> None:
    options = ("--out", "events", "--validate", "sample", "--dates", "shifted", "--shards", "2", "--shuffle", "between")
    done = concordant("ingest", str(small_export), *options, cwd=tmp_path)
    assert "fhir.resources R4B (sample): 0 of" in done.stdout and "dates shifted" in done.stdout
    told = json.loads((tmp_path / "events" / "summary.json").read_text("utf-8"))
    assert told["dates"] == "shifted" and told["validation"]["checked"] > 0 and not list((tmp_path / "between").iterdir())


def test_effects_advises_the_best_fixed_option_where_nothing_differs(tmp_path: Path) -> None:
    import numpy as np
    import pandas as pd

    random = np.random.default_rng(0)
    table = pd.DataFrame({"age": random.normal(60, 10, 800), "arm": random.choice(["a", "b", "c"], 800)})
    table["change"] = 0.1 * table["age"] + (table["arm"] == "b") * -2 + random.normal(0, 2, 800)
    table.to_csv(tmp_path / "trial.csv", index=False)
    told = ("effects", "trial.csv", "--option", "arm", "--outcome", "change", "--lower-is-better", "--out", "out.csv")
    done = concordant(*told, cwd=tmp_path)
    assert "best fixed option for all: b" in done.stdout
    assert set(pd.read_csv(tmp_path / "out.csv")["recommended"]) == {"b"}


def test_rules_are_listed_with_source_and_review_state_and_explained_with_their_cases(tmp_path: Path) -> None:
    listed = concordant("rules", cwd=tmp_path).stdout
    assert "sglt2" in listed and "reviewed" in listed
    told = concordant("explain-rule", "sglt2.type_1_diabetes", cwd=tmp_path).stdout
    assert "## Cases" in told and "source:" in told and "inside" in told
