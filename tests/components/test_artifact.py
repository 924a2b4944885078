"""A folder is whole or not there; a finished step is handed out again, an altered one is made anew; a failure tells no record."""

import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from components import artifact
from components.artifact import MARK, BundleError, produce, seal, verify
from features.errors import ConcordantError

SECRET = "Mrs Example, born 1950-01-01"
Work = Callable[[Path], str]


class Worker:
    """Work that counts how often it was done."""

    def __init__(self, text: str = "made") -> None:
        self.text, self.done = text, 0

    def __call__(self, folder: Path) -> str:
        self.done += 1
        (folder / "sub").mkdir()
        (folder / "sub" / "result.txt").write_text(self.text, encoding="utf-8")
        return f"{self.text} once"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A laptop's run: a cache folder, and steps that need not die with whoever runs the tests."""
    monkeypatch.setenv("CONCORDANT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(artifact, "die_with_parent", lambda: None)
    return tmp_path / "cache"


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CONCORDANT_CACHE", raising=False)

    def never() -> None:
        raise AssertionError("a step on a cluster has no parent to die with")

    monkeypatch.setattr(artifact, "die_with_parent", never)


def told(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line.removeprefix(MARK)) for line in capsys.readouterr().out.splitlines() if line.startswith(MARK)]


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


# ------------------------------------------------------------------------------------------------------------------------- without a cache


@pytest.mark.usefixtures("cluster")
def test_on_a_cluster_the_folder_appears_at_its_place_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "deep" / "out"
    produce(str(out), "step", [], {}, Worker())
    assert names(out) == ["manifest.json", "message.txt", "sub/result.txt"]
    assert not out.is_symlink()
    verify(out)
    states = told(capsys)
    assert [state["state"] for state in states] == ["started", "finished"]
    assert states[1]["message"] == "made once"


@pytest.mark.usefixtures("cluster")
def test_on_a_cluster_a_retried_step_starts_afresh(tmp_path: Path) -> None:
    out, worker = tmp_path / "out", Worker()
    produce(str(out), "step", [], {}, worker)
    (out / "left.txt").write_text("of an earlier try", encoding="utf-8")
    produce(str(out), "step", [], {}, worker)
    assert worker.done == 2
    assert names(out) == ["manifest.json", "message.txt", "sub/result.txt"]


@pytest.mark.usefixtures("cluster")
def test_nothing_is_at_the_target_while_the_work_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "out"

    def work(folder: Path) -> str:
        assert not out.exists()
        assert folder != out
        (folder / "x").touch()
        return "looked"

    produce(str(out), "step", [], {}, work)
    assert out.is_dir()


# ---------------------------------------------------------------------------------------------------------------------------- with a cache


def test_finished_work_is_handed_out_and_not_done_again(cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    worker = Worker()
    produce(str(tmp_path / "run1" / "out"), "step", [], {"a": 1}, worker)
    produce(str(tmp_path / "run2" / "out"), "step", [], {"a": 1}, worker)
    assert worker.done == 1
    assert (tmp_path / "run2" / "out" / "sub" / "result.txt").read_text(encoding="utf-8") == "made"
    assert (tmp_path / "run2" / "out").resolve().is_relative_to(cache.resolve())
    assert [(t["state"], t.get("message")) for t in told(capsys)] == [
        ("started", None),
        ("finished", "made once"),
        ("started", None),
        ("reused", "made once"),
    ]


@pytest.mark.usefixtures("cache")
def test_another_parameter_another_input_another_step_or_another_program_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, out, first, second = Worker(), str(tmp_path / "out"), tmp_path / "first", tmp_path / "second"
    for folder, text in ((first, "1"), (second, "2")):
        folder.mkdir()
        (folder / "data").write_text(text, encoding="utf-8")
        seal(folder)
    asked: list[tuple[str, list[str], dict[str, int]]] = [
        ("step", [str(first)], {"a": 1}),
        ("step", [str(first)], {"a": 2}),
        ("step", [str(second)], {"a": 1}),
        ("other", [str(first)], {"a": 1}),
    ]
    for done, (step, inputs, parameters) in enumerate(asked, 1):
        produce(out, step, inputs, parameters, worker)
        produce(out, step, inputs, parameters, worker)
        assert worker.done == done
    monkeypatch.setattr(artifact, "code_digest", lambda *packages: "another program")
    produce(out, *asked[0], worker)
    assert worker.done == 5


@pytest.mark.usefixtures("cache")
def test_an_input_that_was_made_again_with_the_same_content_changes_nothing(tmp_path: Path) -> None:
    worker = Worker()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "data").write_text("same", encoding="utf-8")
        seal(tmp_path / name)
        produce(str(tmp_path / "out"), "step", [str(tmp_path / name)], {}, worker)
    assert worker.done == 1


@pytest.mark.parametrize("harm", ["altered", "removed", "added", "no manifest", "manifest cut off"])
def test_a_damaged_result_is_made_again(cache: Path, tmp_path: Path, harm: str) -> None:
    worker, out = Worker(), tmp_path / "out"
    produce(str(out), "step", [], {}, worker)
    result, manifest = out / "sub" / "result.txt", out / "manifest.json"
    if harm == "altered":
        result.write_text("other", encoding="utf-8")
    elif harm == "removed":
        result.unlink()
    elif harm == "added":
        (out / "extra").touch()
    elif harm == "no manifest":
        manifest.unlink()
    else:
        manifest.write_text(manifest.read_text(encoding="utf-8")[:-10], encoding="utf-8")
    produce(str(out), "step", [], {}, worker)
    assert worker.done == 2
    assert result.read_text(encoding="utf-8") == "made"
    verify(out)
    assert len(list((cache / "step").iterdir())) == 1


@pytest.mark.parametrize("cached", [True, False])
def test_failed_work_leaves_nothing_at_the_target_and_the_next_attempt_cleans_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cached: bool
) -> None:
    monkeypatch.setattr(artifact, "die_with_parent", lambda: None)
    home = tmp_path / "home"
    monkeypatch.setenv("CONCORDANT_CACHE", str(home)) if cached else monkeypatch.delenv("CONCORDANT_CACHE", raising=False)
    out = (tmp_path if cached else home) / "out"

    def half(folder: Path) -> str:
        (folder / "half").write_text("begun", encoding="utf-8")
        raise ConcordantError("The disk is full of sheep. Herd them.")

    with pytest.raises(ConcordantError):
        produce(str(out), "step", [], {}, half)
    assert not out.exists()
    assert not out.is_symlink()
    produce(str(out), "step", [], {}, Worker())
    assert names(out) == ["manifest.json", "message.txt", "sub/result.txt"]
    assert not [path for path in home.rglob("*") if ".part" in path.name]


KILLED = """
import os, signal, sys
from pathlib import Path
from components.artifact import produce
def work(folder):
    (folder / "half").write_text("begun")
    if sys.argv[2] == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    return "whole"
produce(sys.argv[1], "step", [], {}, work)
"""


def environment(place: Path, **more: str) -> dict[str, str]:
    """That of a step of a run whose cache lies at a place."""
    kept = {name: value for name, value in os.environ.items() if name != "CONCORDANT_RUN_PID"}
    return kept | {"CONCORDANT_CACHE": str(place / "cache"), "PYTHONPATH": str(Path(artifact.__file__).parents[1])} | more


def test_a_killed_step_leaves_nothing_under_its_name_and_the_next_run_makes_it(tmp_path: Path) -> None:

    def run(how: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", KILLED, str(tmp_path / "out"), how]
        return subprocess.run(command, env=environment(tmp_path), cwd=tmp_path, capture_output=True, text=True, timeout=120)

    assert run("die").returncode == -9
    (left,) = (tmp_path / "cache" / "step").iterdir()
    assert ".part" in left.name
    assert not (tmp_path / "out").exists()
    done = run("live")
    assert done.returncode == 0, done.stderr
    (made,) = (tmp_path / "cache" / "step").iterdir()
    assert ".part" not in made.name
    assert '"finished"' in done.stdout
    assert '"reused"' in run("live").stdout


WAITING = """
import sys
from components.artifact import produce
def work(folder):
    print("at work", flush=True)
    sys.stdin.read()
    return "whole"
produce(sys.argv[1], "step", [], {}, work)
"""


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="watching another process needs Linux")
def test_a_step_does_not_outlive_its_run(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as run:
        command, told_run = [sys.executable, "-c", WAITING, str(tmp_path / "out")], environment(tmp_path, CONCORDANT_RUN_PID=str(run.pid))
        with subprocess.Popen(command, env=told_run, cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as step:
            assert step.stdout is not None
            while step.stdout.readline().strip() != "at work":
                assert step.poll() is None
            run.kill()
            run.wait()
            assert step.wait(timeout=60) == -9
        done = subprocess.run(command, env=told_run, cwd=tmp_path, capture_output=True, timeout=60)  # of a run that is gone already
        assert done.returncode == -9
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------------------------------------------------- failures


def failing(error: BaseException) -> Work:
    def work(folder: Path) -> str:
        raise error

    return work


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("error", [ValueError(SECRET), KeyError(SECRET), RuntimeError(SECRET), AssertionError(SECRET)])
def test_the_text_of_an_unexpected_exception_is_told_nowhere(tmp_path: Path, capsys: pytest.CaptureFixture[str], error: Exception) -> None:
    with pytest.raises(ConcordantError) as caught:
        produce(str(tmp_path / "out"), "step", [], {}, failing(error))
    printed = capsys.readouterr()
    shown = "".join(traceback.format_exception(caught.value))
    for text in (str(caught.value), printed.out, printed.err, shown):
        assert "Example" not in text
        assert "1950" not in text
    assert str(caught.value).startswith(f"{type(error).__name__} in test_artifact.py, line ")
    assert "report it" in str(caught.value)


@pytest.mark.usefixtures("cluster")
def test_our_own_words_are_kept_and_told_as_the_cause(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConcordantError, match=r"^Nobody is left\. Give more patients\.$"):
        produce(str(tmp_path / "out"), "step", [], {}, failing(ConcordantError("Nobody is left. Give more patients.")))
    assert told(capsys)[-1]["cause"] == "Nobody is left. Give more patients."
    assert told(capsys) == []


@pytest.mark.usefixtures("cluster")
def test_the_step_that_failed_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConcordantError):
        produce(str(tmp_path / "model"), "train_ridge", [], {}, failing(ConcordantError("No.")))
    assert told(capsys)[-1] == {"step": "train_ridge", "state": "failed", "cause": "No."}


@pytest.mark.usefixtures("cluster")
def test_an_error_of_the_machine_tells_its_kind_and_no_path(tmp_path: Path) -> None:
    with pytest.raises(ConcordantError, match=r"^FileNotFoundError: No such file or directory\.$"):
        produce(str(tmp_path / "out"), "step", [], {}, failing(FileNotFoundError(2, "No such file or directory", f"/data/{SECRET}")))


@pytest.mark.usefixtures("cluster")
def test_an_error_of_the_machine_without_a_number_is_not_called_success(tmp_path: Path) -> None:
    """pyarrow raises such errors for a file that is cut off."""
    with pytest.raises(ConcordantError) as caught:
        produce(str(tmp_path / "out"), "step", [], {}, failing(OSError(SECRET)))
    assert "Success" not in str(caught.value)
    assert "Example" not in str(caught.value)


# ------------------------------------------------------------------------------------------------------------------------------- manifests


def test_seal_and_verify_agree_on_the_digest(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1", encoding="utf-8")
    digest = seal(tmp_path)
    assert verify(tmp_path) == digest
    assert len(digest) == 16
    (tmp_path / "a").write_text("2", encoding="utf-8")
    with pytest.raises(BundleError, match="was altered: a does not have the digest of its manifest"):
        verify(tmp_path)


def test_a_folder_without_a_manifest_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is not a bundle: it has no manifest.json"):
        verify(tmp_path)
    with pytest.raises(BundleError, match="is not a bundle"):
        verify(tmp_path / "absent")


@pytest.mark.parametrize("text", ["", "{", "[]", '"word"', "\u00ff"])
def test_a_manifest_that_is_none_is_told_in_a_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / "a").write_text("1", encoding="utf-8")
    (tmp_path / "manifest.json").write_text(text, encoding="utf-8")
    with pytest.raises(BundleError):
        verify(tmp_path)


def test_the_key_file_is_named_by_the_environment_else_where_a_cluster_mounts_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONCORDANT_KEY_FILE", "/somewhere/key")
    assert artifact.pseudonym_key_path() == Path("/somewhere/key")
    monkeypatch.delenv("CONCORDANT_KEY_FILE")
    assert artifact.pseudonym_key_path() == artifact.KEY_FILE


def test_a_file_that_is_not_named_has_an_empty_digest(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1", encoding="utf-8")
    assert artifact.file_digest("") == ""
    assert len(artifact.file_digest(str(tmp_path / "a"))) == 64


def test_the_digest_of_the_program_is_that_of_the_packages_a_step_depends_on() -> None:
    features, both = artifact.code_digest(("features",)), artifact.code_digest(("features", "components"))
    assert features != both
    assert len(both) == 16


def test_checkpoints_lie_where_a_cluster_says_and_else_beside_the_finished_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CONCORDANT_CHECKPOINTS", "CONCORDANT_CACHE"):
        monkeypatch.delenv(name, raising=False)
    assert artifact.checkpoints() is None
    monkeypatch.setenv("CONCORDANT_CACHE", "/ws/steps")
    assert artifact.checkpoints() == Path("/ws/steps/checkpoints")
    monkeypatch.setenv("CONCORDANT_CHECKPOINTS", "/workspace/checkpoints")
    assert artifact.checkpoints() == Path("/workspace/checkpoints")
