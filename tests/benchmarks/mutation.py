"""Mutation testing of the rules' interpreter and of the policy, with mutmut: `python tests/benchmarks/mutation.py` (`make mutation`).

mutmut lives in a virtual environment of its own that borrows the packages of the one that runs this; it works on a copy of the tree.
`--sample N` tries N mutants chosen at random (seed 0) instead of all.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import venv
from pathlib import Path

from results import table, write

ROOT = Path(__file__).resolve().parents[2]
MUTMUT = "mutmut==3.8.1"
MUTATED = ("safety", "questions", "policy")
TESTS = ("golden_answers", "policy", "policy_safety", "preferences", "questions", "rules", "safety")
KILLED = (1, 3)  # a test failed, or pytest itself; mutmut's own score counts a time-out as well, ours does not
CONFIG = """
[tool.mutmut]
source_paths = ["components"]
only_mutate = ["components/safety.py", "components/questions.py", "components/policy.py"]
also_copy = ["features", "serving"]
pytest_add_cli_args_test_selection = [{tests}]
pytest_add_cli_args = ["-m", "not deep and not slow and not shared_data", "-p", "no:cacheprovider", "-x"]
mutate_only_covered_lines = true
use_git_change_detection = false
"""


def prepared(place: Path) -> Path:
    """A copy of what the tests need, and the program."""
    for name in ("components", "features", "serving", "tests"):
        shutil.copytree(ROOT / name, place / name, ignore=shutil.ignore_patterns("__pycache__"))
    tests = ", ".join(f'"tests/components/test_{name}.py"' for name in TESTS)
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8") + CONFIG.format(tests=tests)
    (place / "pyproject.toml").write_text(text, encoding="utf-8")
    home = place / "venv"
    venv.create(home, with_pip=True)
    subprocess.run([home / "bin" / "pip", "install", "--quiet", MUTMUT], check=True)
    borrowed = next(home.glob("lib/python*/site-packages")) / "project.pth"
    borrowed.write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    return home / "bin" / "mutmut"


def run(mutmut: Path, place: Path, names: list[str], children: int) -> None:
    """Try mutants by name, all where none is named."""
    (place / "mutants").mkdir(exist_ok=True)  # Python forgets a folder of its path that is not there when it starts
    environment = {**os.environ, "PYTHONPATH": str(place / "mutants"), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    subprocess.run(["nice", "-n", "10", mutmut, "run", "--max-children", str(children), *names], cwd=place, env=environment, check=False)


def results(place: Path) -> dict[str, int | None]:
    """Exit code of the tests for each mutant: 0 where it survived, None where it was not tried."""
    found: dict[str, int | None] = {}
    for name in MUTATED:
        found |= json.loads((place / "mutants" / "components" / f"{name}.py.meta").read_text(encoding="utf-8"))["exit_code_by_key"]
    return found


def told(codes: dict[str, int | None], chosen: list[str]) -> str:
    """The table of a set of mutants."""
    rows = []
    for name in (*MUTATED, ""):
        mine = [codes[key] for key in chosen if key.startswith(f"components.{name}")]
        tried = [code for code in mine if code is not None]
        killed, survived = sum(code in KILLED for code in tried), sum(code == 0 for code in tried)
        score, other = f"{killed / max(len(tried), 1):.1%}", f"{len(tried) - killed - survived:,}"
        rows.append((f"`{name}.py`" if name else "**both**", f"{len(tried):,}", f"{killed:,}", f"{survived:,}", other, score))
    return table("### Mutants", ("file", "tried", "killed", "survived", "timed out or without a test", "score"), rows)


def main() -> None:
    """Mutate, test, write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--sample", type=int, default=0)
    parser.add_argument("--children", type=int, default=2)
    given = parser.parse_args()
    place = Path(tempfile.mkdtemp())
    try:
        mutmut = prepared(place)
        if given.sample:
            run(mutmut, place, ["components.nothing"], given.children)  # makes the mutants and tries none
        names = sorted(results(place)) if given.sample else []
        chosen = random.Random(0).sample(names, given.sample) if given.sample else []
        run(mutmut, place, chosen, given.children)
        codes = results(place)
    finally:
        shutil.rmtree(place)
    chosen = chosen or list(codes)
    survived = [key for key in chosen if codes[key] not in (*KILLED, None)]
    how = f"{len(chosen):,} of {len(codes):,} mutants{' chosen at random with seed 0' if given.sample else ''}; {MUTMUT}.\n"
    listed = "Not killed: " + ", ".join(f"`{key.removeprefix('components.')}`" for key in survived) + ".\n"
    write(
        "mutation",
        "Mutation testing",
        "python " + " ".join(["tests/benchmarks/mutation.py", *sys.argv[1:]]),
        "\n".join([how, told(codes, chosen), listed]),
    )


if __name__ == "__main__":
    main()
