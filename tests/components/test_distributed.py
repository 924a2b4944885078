"""Training by several processes: the ensemble of one process, also after one of them was killed."""

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kubernetes import client
from safetensors.numpy import load_file
from train_cluster import TEXT, Cluster, end, inputs, nodes, workers
from worlds import world

from components import distributed, train_job
from components.artifact import code_digest
from components.models import fusion_training
from components.models.fusion import Fusion, Settings
from features.errors import ConcordantError
from pipelines.port import free_port

pytestmark = pytest.mark.usefixtures("one_torch_thread")
TRAINING, _ = world()
LONG = Settings(epochs=12)
FORK = multiprocessing.get_context("fork")  # starts in no time: torch and Lightning are imported here


def start(work: Callable[[int], None], processes: int = 2) -> list[Any]:
    """Processes as torchrun would start them, each doing `work(rank)`."""
    port = free_port()

    def one(rank: int) -> None:
        told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes, "GROUP_RANK": 0}
        told |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test"}
        os.environ.update({name: str(value) for name, value in told.items()})
        work(rank)
        torch.distributed.destroy_process_group()

    started = [FORK.Process(target=one, args=(rank,), daemon=True) for rank in range(processes)]
    for process in started:
        process.start()
    return started


def ended(processes: list[Any]) -> list[int | None]:
    """Exit codes."""
    for process in processes:
        process.join(120)
    return [process.exitcode for process in processes]


def apart(one: Path, other: Path) -> float:
    """Largest difference of any weight."""
    a, b = load_file(one / "fusion.safetensors"), load_file(other / "fusion.safetensors")
    assert a.keys() == b.keys()
    return max(float(np.abs(a[name] - b[name]).max()) for name in a)


CASES = {
    "outcomes of each option": (TRAINING, Settings(epochs=6), "32-true", 1e-5),
    "in double precision": (TRAINING, Settings(epochs=6), "64-true", 1e-12),
    "a dose, where heads have no loss": (replace(TRAINING, targets=1), Settings(epochs=3), "32-true", 1e-5),
    "a last batch of one row for two processes": (TRAINING, Settings(epochs=2, batch=599), "32-true", 1e-5),
}


@pytest.fixture(scope="module")
def by_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes made of each case, in one start."""
    home = tmp_path_factory.mktemp("two")

    def work(rank: int) -> None:
        for number, (training, settings, precision, _) in enumerate(CASES.values()):
            made = fusion_training.fit(training, settings, devices=2, precision=precision)
            folder = home / f"{number}_{rank}"
            folder.mkdir()
            made.save(folder)

    assert ended(start(work)) == [0, 0]
    return home


@pytest.mark.parametrize("case", CASES)
def test_two_processes_make_the_ensemble_of_one(by_two: Path, tmp_path: Path, case: str) -> None:
    training, settings, precision, tolerance = CASES[case]
    number = list(CASES).index(case)
    fusion_training.fit(training, settings, precision=precision).save(tmp_path)
    assert apart(tmp_path, by_two / f"{number}_0") <= tolerance
    assert apart(by_two / f"{number}_0", by_two / f"{number}_1") == 0
    assert Fusion.load(tmp_path).settings == settings


def test_mixed_bf16_is_lightnings_option_and_stays_near() -> None:
    """On a processor; on a GPU it was not run."""
    plain, mixed = (fusion_training.fit(TRAINING, LONG, precision=name) for name in ("32-true", "bf16-mixed"))
    assert plain.oof_NT is not None and mixed.oof_NT is not None
    assert 0 < np.abs(plain.oof_NT - mixed.oof_NT).max() < 0.03 * plain.oof_NT.std()
    assert next(mixed.network.parameters()).dtype == torch.float32


def test_a_share_of_the_noise_is_that_of_the_whole_batch() -> None:
    drop = fusion_training.Network((3,), 2, 2, Settings(dropout=0.5)).drop
    x = torch.ones(5, 7, 4)
    torch.manual_seed(3)
    whole = drop(x)
    torch.manual_seed(3)
    plain = torch.nn.Dropout(0.5)(x)
    parts = []
    for first, last in ((0, 3), (3, 7)):
        drop.first, drop.whole = first, 7
        torch.manual_seed(3)
        parts.append(drop(x[:, first:last]))
    assert torch.equal(torch.cat(parts, dim=1), whole)
    assert torch.equal(plain, whole)  # on a processor the same bits as PyTorch's own


class Stopped(Exception):
    """As the second epoch begins."""


def alone_until_the_second_epoch(checkpoints: Path) -> None:
    begin = fusion_training._Task.on_train_epoch_start

    def cut(task: fusion_training._Task) -> None:
        if task.current_epoch == 1:
            raise Stopped
        begin(task)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(fusion_training._Task, "on_train_epoch_start", cut)
        fusion_training.fit(TRAINING, LONG, checkpoints=checkpoints)


def test_processes_that_find_different_checkpoints_say_so(tmp_path: Path) -> None:
    alone_until_the_second_epoch(tmp_path / "0")  # of the first process: not shared, as it must be

    def work(rank: int) -> None:
        with pytest.raises(
            ConcordantError if rank else RuntimeError, match="same folder for checkpoints" if rank else "(losed|reset) by peer"
        ):
            fusion_training.fit(TRAINING, LONG, devices=2, checkpoints=tmp_path / str(rank))

    assert ended(start(work)) == [0, 0]


def test_a_killed_process_ends_the_others_and_all_resume_to_the_same_bytes(tmp_path: Path) -> None:
    """Killed with -9 after the first checkpoint; what is started again reads it and ends as if nothing had happened."""

    def work(name: str, *, waits: bool = False) -> Callable[[int], None]:
        def fit(rank: int) -> None:
            learn, begun = fusion_training._Task.training_step, []

            def step(task: fusion_training._Task, *given: Any) -> torch.Tensor:
                if waits and rank and task.current_epoch:
                    time.sleep(120)  # to be killed here, however busy the machine is
                return learn(task, *given)

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(
                    fusion_training._Task, "training_step", lambda task, *a: (begun.append(task.current_epoch), step(task, *a))[1]
                )
                made = fusion_training.fit(TRAINING, LONG, devices=2, checkpoints=tmp_path / "checkpoints")
            if rank == 0:
                (tmp_path / name).mkdir()
                made.save(tmp_path / name)
                (tmp_path / name / "begun.txt").write_text(str(min(begun)))

        return fit

    assert ended(start(work("undisturbed"))) == [0, 0]
    assert not list((tmp_path / "checkpoints").iterdir())
    processes = start(work("resumed", waits=True))
    await_checkpoint(tmp_path / "checkpoints")
    os.kill(processes[1].pid, signal.SIGKILL)
    codes = ended(processes)
    assert codes[1] == -signal.SIGKILL and codes[0] not in (0, None)
    assert not (tmp_path / "resumed").exists()
    assert ended(start(work("resumed"))) == [0, 0]
    assert int((tmp_path / "resumed" / "begun.txt").read_text()) >= 1  # it did go on, and did not begin again
    for path in (tmp_path / "undisturbed").glob("fusion*"):
        assert path.read_bytes() == (tmp_path / "resumed" / path.name).read_bytes()


def await_checkpoint(checkpoints: Path) -> None:
    """Until the first one is there."""
    until = time.monotonic() + 120
    while not list(checkpoints.glob("*/*.ckpt")):
        assert time.monotonic() < until
        time.sleep(0.005)


def test_a_checkpoint_that_is_half_written_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fills up while the second one is written: the run goes on from the first."""
    save = torch.save

    def full(checkpoint: dict[str, Any], stream: Any) -> None:
        if checkpoint["epoch"] == 1:
            stream.write(b"half")
            raise OSError(28, "No space left on device")
        save(checkpoint, stream)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space"):
        fusion_training.fit(TRAINING, LONG, checkpoints=tmp_path)
    assert [path.name for path in tmp_path.glob("*/*.ckpt")] == ["epoch=0.ckpt"]
    monkeypatch.undo()
    again, alone = fusion_training.fit(TRAINING, LONG, checkpoints=tmp_path), fusion_training.fit(TRAINING, LONG)
    np.testing.assert_array_equal(again.members(TRAINING.x_NF), alone.members(TRAINING.x_NF))


def order(folder: Path, cohort: Path, features: Path, **changed: Any) -> None:
    """What the step writes for the job."""
    told = {"decision": TEXT, "precision": "32-true", "gpus_per_node": 0, "code": code_digest(train_job.PACKAGES), **changed}
    train_job._write_order(folder / "inputs", told, cohort, features)


@pytest.mark.parametrize(
    ("changed", "told"),
    [({"code": "old"}, "other code than the step"), ({"gpus_per_node": 1}, "1 GPUs a node were asked for, found 0"), (None, "No order")],
)
def test_what_is_ordered_and_can_not_be_done_is_told_to_the_step(tmp_path: Path, changed: dict[str, Any] | None, told: str) -> None:
    if changed is not None:
        order(tmp_path / "order", *inputs(tmp_path, 60), **changed)
    else:
        (tmp_path / "order").mkdir()
    with pytest.raises(ConcordantError, match=told):
        distributed.main(tmp_path / "order")
    assert told in (tmp_path / "order" / "failed.txt").read_text(encoding="utf-8")
    assert not (tmp_path / "order" / "model").exists()


@pytest.mark.slow
def test_a_train_job_of_two_nodes_trains_what_one_process_trains_though_a_rank_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step makes the job over HTTP, its nodes are two torchruns; all ranks start again after one is killed, and go on."""
    cohort, features = inputs(tmp_path, 2000)
    launch = {"nodes": 2, "image": "registry.example/concordant:1", "claim": "workspace", "mount": str(tmp_path / "workspace")}
    told: list[str] = []

    def runs(job: dict[str, Any]) -> None:
        codes: list[int] = [-1]
        try:
            started = nodes(job, tmp_path)
            await_checkpoint(Path(job["spec"]["trainer"]["command"][-1]) / "checkpoints")
            os.kill(workers(started[1])[0], signal.SIGKILL)
            codes = [node.wait(180) for node in started]
            told.append("".join((tmp_path / f"node{rank}.txt").read_text() for rank in range(2)))
        finally:
            end(job, "Failed" if any(codes) else "Complete", str(codes))

    out, alone = tmp_path / "out", tmp_path / "alone"
    out.mkdir()
    with Cluster(runs=runs) as cluster:
        jobs = train_job.Jobs(client.ApiClient(client.Configuration(host=cluster.url)), every_s=0.1)
        monkeypatch.setattr(train_job.Jobs, "of_this_cluster", lambda: jobs)
        message = train_job.run(json.dumps(launch), TEXT, cohort, features, out, lambda folder: "trained here")
    assert message == "2,000 rows, 51 features, cross-fitted, by a TrainJob: nodes 2, GPUs a node 0"
    assert told[0].count('"state": "started"') >= 2, told[0]  # the first process, wherever it is, began again
    order(alone, cohort, features)
    distributed.main(alone)  # in this process
    assert apart(out, alone / "model") <= 1e-5
    ours, theirs = (load_file(place / "crossfit.safetensors")["oof_NT"] for place in (out, alone / "model"))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)  # of outcomes with a spread of 3
