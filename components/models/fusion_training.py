"""Training of the multimodal network with Lightning, apart from the network itself: serving needs no trainer.

Several processes (Lightning's DDP) go through the same batches in the same order. Each holds all rows, draws the noise of the whole
batch, computes its share of the rows, and divides by the counts of the whole batch; the sum of the gradients is then that of one process
but for the order of the additions.

Axis suffixes as in `fusion.py`.
"""

import copy
import hashlib
import json
import logging
import os
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as lightning
import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO
from pytorch_lightning.callbacks import Callback, EarlyStopping, ModelCheckpoint
from pytorch_lightning.strategies import DDPStrategy
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, Sampler

from components.artifact import code_digest
from components.models.fusion import Fusion, Network, Settings, inputs, widths
from components.models.recent import Words
from components.tensors import FOLDS, Scaler, Training
from features.errors import ConcordantError

SILENCE = timedelta(minutes=10)  # of another process, before it is taken for lost
CLIP = 2.2  # largest gradient norm of a member
HELD_BACK = 0.1  # of the rows, where training may end early


class _Rows(Dataset[dict[str, Tensor]]):
    """Rows by a list of indices: a whole batch in one go."""

    def __init__(self, columns: dict[str, Tensor]) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return len(self.columns["target"])

    def __getitem__(self, rows: Any) -> dict[str, Tensor]:
        return {name: column[rows] for name, column in self.columns.items()}


class _Batches(Sampler[list[int]]):
    """Row numbers of each batch, shuffled anew every epoch by seed and epoch alone: a resumed run sees the same batches."""

    def __init__(self, rows: int, settings: Settings) -> None:
        self.rows, self.settings, self.epoch = rows, settings, 0

    def set_epoch(self, epoch: int) -> None:
        """Told by Lightning before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-self.rows // self.settings.batch)

    def __iter__(self) -> Iterator[list[int]]:
        order = np.random.default_rng([self.settings.seed, self.epoch]).permutation(self.rows)
        for batch in range(len(self)):
            yield order[batch * self.settings.batch : (batch + 1) * self.settings.batch].tolist()


class _WholeFiles(TorchCheckpointIO):
    """Checkpoints that are whole or not there. Lightning's own is copied where the temporary folder lies on another disk (fsspec)."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        part = Path(path).with_suffix(f".part{os.getpid()}")
        part.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as stream:
            torch.save(checkpoint, stream)
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(path)


class _Task(lightning.LightningModule):
    best: Network  # each member as it was best on the rows held back: part of every checkpoint
    best_E: Tensor
    waited: Tensor  # epochs since any member gained

    def __init__(self, network: Network, settings: Settings, sizes: tuple[int, ...], center_E: Any, spread_E: Any, held: dict[str, Tensor]):
        super().__init__()
        self.network, self.settings, self.sizes, self.steps = network, settings, sizes, 0
        self.center_E, self.spread_E = torch.from_numpy(center_E).float(), torch.from_numpy(spread_E).float()
        self.held = held
        if settings.patience:
            self.best = copy.deepcopy(network).requires_grad_(False)
            self.register_buffer("best_E", torch.full((network.members,), torch.inf))
            self.register_buffer("waited", torch.tensor(0))

    def on_train_start(self) -> None:
        """Processes that go on from different epochs would wait for each other, or worse."""
        epoch = self.trainer.strategy.broadcast(self.current_epoch)
        if epoch != self.current_epoch:
            raise ConcordantError(
                f"Process {self.global_rank} found a checkpoint of epoch {self.current_epoch}, the first one of epoch {epoch}. "
                "Give every node the same folder for checkpoints."
            )
        if self.settings.patience and int(self.waited) >= self.settings.patience:
            self.trainer.should_stop = True  # it had ended when it was interrupted

    def on_train_epoch_start(self) -> None:
        """What is dropped in an epoch depends on seed and epoch alone."""
        torch.manual_seed(1000 * self.settings.seed + self.current_epoch + 1)

    def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
        whole, rank, processes = len(batch["target"]), self.global_rank, self.trainer.world_size
        share = slice(whole * rank // processes, whole * (rank + 1) // processes)
        self.network.drop.first, self.network.drop.whole = share.start, whole
        learns = self._of_other_folds(batch["fold"]) * ~batch["held"]
        kept = torch.rand(len(self.sizes) - 1, whole, device=self.device) >= self.settings.modality_dropout
        present = batch["present"].T.clone()
        present[1:] &= kept
        predicted, effect, logits = self.network(list(torch.split(batch["inputs"][share], list(self.sizes), dim=1)), present[:, share])
        seen = learns * batch["observed"][None, :]
        seen_rows, rows = seen.sum().clamp(min=1), learns.sum().clamp(min=1)  # of the whole batch
        seen, learns = seen[:, share], learns[:, share]
        loss = (seen * self._errors(predicted, {name: column[share] for name, column in batch.items()})).sum() / seen_rows
        if self.network.targets > 1:
            option = batch["option"][None, share, None].expand(self.network.members, -1, 1)
            chosen = functional.log_softmax(logits, dim=-1).gather(2, option).squeeze(2)
            loss = loss - self.settings.propensity_weight * (learns * chosen).sum() / rows
            loss = loss + self.settings.effect_penalty * (learns[..., None] * effect**2).sum() / rows / effect.shape[-1]
        return loss * (self.network.members * processes)  # DDP takes the mean over the processes

    def _of_other_folds(self, fold: Tensor) -> Tensor:
        """1 where a member may learn from a row, E by N."""
        return (fold[None, :] != torch.arange(self.network.members, device=fold.device)[:, None]).float()

    def _errors(self, predicted: Tensor, rows: dict[str, Tensor]) -> Tensor:
        """Squared errors of the outcomes under what was given, on each member's own scale, E by N."""
        option = rows["option"][None, :, None].expand(self.network.members, -1, 1)
        given = predicted.gather(2, option).squeeze(2) if self.network.targets > 1 else predicted.squeeze(2)
        center_E, spread_E = self.center_E.to(given.device), self.spread_E.to(given.device)
        return (given - (rows["target"][None] - center_E[:, None]) / spread_E[:, None]) ** 2

    def on_train_epoch_end(self) -> None:
        """Each member keeps the weights that were best on the rows held back outside of its fold: of them it has learned none."""
        if not self.settings.patience:
            return
        rows = {name: column.to(self.device) for name, column in self.held.items()}
        self.network.eval()
        with torch.no_grad():
            predicted, _, _ = self.network(list(torch.split(rows["inputs"], list(self.sizes), dim=1)), rows["present"].T)
            counts = self._of_other_folds(rows["fold"]) * rows["observed"][None]
            loss_E = (counts * self._errors(predicted, rows)).sum(1) / counts.sum(1)
            better_E = loss_E < self.best_E
            self.best_E[better_E] = loss_E[better_E]
            self.waited.copy_(torch.where(better_E.any(), 0, self.waited + 1))
            for kept, now in zip(self.best.parameters(), self.network.parameters(), strict=True):
                kept[better_E] = now[better_E]
        self.network.train()
        self.log("held_back", self.best_E.mean())

    def configure_gradient_clipping(self, *_: Any, **__: Any) -> None:
        """Each member by its own norm: clipped together, a wild outcome would reach the member that leaves its fold out."""
        grads = [p.grad for p in self.network.parameters() if p.grad is not None]
        norm_E = torch.stack([g.flatten(1).square().sum(1) for g in grads]).sum(0).sqrt()
        scale_E = (CLIP / (norm_E + 1e-6)).clamp(max=1)
        for g in grads:
            g.mul_(scale_E.view(-1, *[1] * (g.dim() - 1)))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.network.parameters(), lr=self.settings.rate, weight_decay=self.settings.decay)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.settings.rate, total_steps=self.steps, pct_start=0.2)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def fit(
    training: Training,
    settings: Settings | None = None,
    *,
    accelerator: str = "cpu",
    devices: int = 1,
    nodes: int = 1,
    precision: Any = "32-true",
    checkpoints: Path | None = None,
) -> Fusion:
    """Train the ensemble in one Lightning run; `accelerator`, `devices` (processes a node), `nodes` and `precision` are Lightning's own.

    With more than one process it is called in each of them, as torchrun starts them, and returns the same ensemble in each: that of a
    single process within rounding.

    With a folder for `checkpoints`, which all processes must share, each epoch's end is kept there until the training has ended, and a run
    of the same rows, settings and code goes on from the last one; it ends in the same weights, bit for bit, as one that was never
    interrupted. With `patience` it may end early: a tenth of the rows is learned by nobody, and each member keeps the weights that were
    best there. Raises ConcordantError where that leaves nothing to judge by.
    """
    settings = settings or Settings()
    torch.set_num_threads(1)  # small matrices: a second thread costs more than it brings, and one thread is reproducible anywhere
    scaler = Scaler.fit(training.x_NF, training.modality_F)
    words = None if training.events_NLC is None else Words.fit(training.events_NLC)
    words = words or None  # nothing told often enough to be learned
    given, present = inputs(scaler, training.x_NF, words, training.events_NLC)
    observed_N = training.observed_N
    held_N = np.random.default_rng([settings.seed, FOLDS]).random(len(training)) < (HELD_BACK if settings.patience else 0)
    learned = [training.target_N[observed_N & ~held_N & (training.fold_N != e)] for e in range(FOLDS)]
    center_E, spread_E = np.array([y.mean() for y in learned]), np.array([y.std() for y in learned])
    columns = {
        "inputs": torch.cat(given, dim=1),
        "present": present,
        "target": torch.from_numpy(np.where(observed_N, training.target_N, 0.0)).float(),
        "observed": torch.from_numpy(observed_N).float(),
        "option": torch.tensor(training.option_N),
        "fold": torch.tensor(training.fold_N),
        "held": torch.from_numpy(held_N),
    }
    judges = {name: column[torch.from_numpy(held_N)] for name, column in columns.items()}
    if settings.patience and not all((judges["observed"] > 0)[judges["fold"] != e].any() for e in range(FOLDS)):
        raise ConcordantError(
            f"With patience a tenth of the rows is held back: {len(training):,} rows are too few. Train without patience."
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        network = Network(widths(scaler), training.options, training.targets, settings, words=len(words or ()))
        task = _Task(network, settings, tuple(x.shape[1] for x in given), center_E, spread_E, judges)
        place = None if checkpoints is None else checkpoints / _identity(columns, settings)
        _train(task, _Rows(columns), place, accelerator=accelerator, devices=devices, num_nodes=nodes, precision=precision)
        network = task.best if settings.patience else network
    model = Fusion(
        network=network.cpu().float().eval(),
        scaler=scaler,
        options=training.options,
        targets=training.targets,
        center_E=center_E,
        spread_E=spread_E,
        settings=settings,
        words=words,
    )
    members_ENT = model.members(training.x_NF, training.events_NLC)
    model.oof_NT = members_ENT[training.fold_N, np.arange(len(training))]
    return model


def _identity(columns: dict[str, Tensor], settings: Settings) -> str:
    """Name of the folder of one run's checkpoints: another run must not go on from them."""
    whole = hashlib.sha256(json.dumps([asdict(settings), code_digest(("components",))], sort_keys=True).encode())
    for name in sorted(columns):
        whole.update(columns[name].numpy().tobytes())
    return whole.hexdigest()[:16]


def _train(task: _Task, rows: _Rows, checkpoints: Path | None, **how: Any) -> None:
    batches = _Batches(len(rows), task.settings)
    task.steps = len(batches) * task.settings.epochs
    keep: list[Callback] = (
        [] if checkpoints is None else [ModelCheckpoint(checkpoints, filename="{epoch}", save_top_k=1, save_last=False, every_n_epochs=1)]
    )
    if task.settings.patience:
        keep.append(EarlyStopping("held_back", patience=task.settings.patience, check_on_train_epoch_end=True))
    last = None if checkpoints is None else max(checkpoints.glob("*.ckpt"), key=_epoch, default=None)
    if last is not None:
        batches.set_epoch(_epoch(last) + 1)  # Lightning asks for a resumed epoch's first batch before it tells the epoch
    loader = DataLoader(rows, sampler=batches, batch_size=None, generator=torch.Generator())  # its own: else it draws from that of dropout
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    if how["devices"] * how["num_nodes"] > 1:  # a network of one target has heads without a loss
        how["strategy"] = DDPStrategy(find_unused_parameters=task.network.targets == 1, timeout=SILENCE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's advice on loader workers: rows lie in memory already
        trainer = lightning.Trainer(
            max_epochs=task.settings.epochs,
            callbacks=keep,
            enable_checkpointing=checkpoints is not None,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,  # the order of the rows is ours
            plugins=[_WholeFiles()],
            **how,
        )
        trainer.fit(task, loader, ckpt_path=last, weights_only=True)
    if checkpoints is not None and trainer.is_global_zero:
        shutil.rmtree(checkpoints)


def _epoch(checkpoint: Path) -> int:
    return int(checkpoint.stem.partition("=")[2])
