"""What every process of a distributed training runs: `torchrun -m components.distributed FOLDER`, as a TrainJob's pods do.

FOLDER is an order in a workspace that all nodes share, written by `components.train_job`: `inputs/` is read; the first process leaves
`model/` there, whole or not at all, or tells in `failed.txt` why not. Checkpoints lie beside them, so that a restarted job goes on.
"""

import functools
import json
import os
import sys
import tempfile
from pathlib import Path

from components.artifact import code_digest, produce
from components.cohort import Cohort
from components.decision import parse
from components.train_job import PACKAGES
from features.errors import ConcordantError


def main(folder: Path) -> None:
    """Train what is ordered. Raises ConcordantError; torchrun then starts all processes again, as often as it was told."""
    if (folder / "model").exists():  # a node that comes back after the end
        return
    if int(os.environ.get("RANK", "0")):
        with tempfile.TemporaryDirectory() as own:
            _train(folder, Path(own))
        return
    (folder / "failed.txt").unlink(missing_ok=True)
    try:
        produce(str(folder / "model"), "train_fusion", [], {}, functools.partial(_train, folder))
    except ConcordantError as error:
        (folder / "failed.txt").write_text(str(error), encoding="utf-8")
        raise


def _train(folder: Path, out: Path) -> str:
    import torch

    from components.models.fusion_training import fit
    from components.study import train

    inputs = folder / "inputs"
    if not inputs.is_dir():
        raise ConcordantError(f"No order in {folder.name}. Mount the workspace at the same path in the step and in every node of the job.")
    order = json.loads((inputs / "order.json").read_text(encoding="utf-8"))
    if order["code"] != code_digest(PACKAGES):
        raise ConcordantError("The nodes run other code than the step. Give both images of one version (default.image and training.image).")
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if order["gpus_per_node"] and torch.cuda.device_count() < processes:
        raise ConcordantError(
            f"{processes} GPUs a node were asked for, found {torch.cuda.device_count()}. "
            "Give the job an image with CUDA (charts/Dockerfile, target cuda), or set gpus_per_node to what the nodes have."
        )
    distributed = functools.partial(
        fit,
        accelerator="gpu" if order["gpus_per_node"] else "cpu",
        devices=processes,
        nodes=int(os.environ.get("WORLD_SIZE", "1")) // processes,
        precision=order["precision"],
        checkpoints=folder / "checkpoints",
    )
    try:
        told = train(parse(order["decision"]), Cohort.read(inputs / "cohort"), inputs / "features", distributed, out)
    except RuntimeError as error:
        if not any(sign in str(error) for sign in ("gloo", "Gloo", "NCCL", "peer")):
            raise
        raise ConcordantError("Another process of the training was lost or could not be reached: its node's log says why.") from error
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
    return told


if __name__ == "__main__":
    main(Path(sys.argv[1]))
