"""Training of the multimodal network with Lightning, apart from the network itself: serving needs no trainer.

Axis suffixes as in `fusion.py`.
"""

import logging
import warnings
from typing import Any

import numpy as np
import pytorch_lightning as lightning
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler

from components.models.fusion import Fusion, Network, Settings, inputs, widths
from components.tensors import FOLDS, Scaler, Training

CLIP = 2.2  # largest gradient norm of a member


class _Rows(Dataset[dict[str, Tensor]]):
    """Rows by a list of indices: a whole batch in one go."""

    def __init__(self, columns: dict[str, Tensor]) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return len(self.columns["target"])

    def __getitem__(self, rows: Any) -> dict[str, Tensor]:
        return {name: column[rows] for name, column in self.columns.items()}


class _Task(lightning.LightningModule):
    def __init__(self, network: Network, settings: Settings, sizes: tuple[int, ...], center_E: Any, spread_E: Any) -> None:
        super().__init__()
        self.network, self.settings, self.sizes, self.steps = network, settings, sizes, 0
        self.center_E, self.spread_E = torch.from_numpy(center_E).float(), torch.from_numpy(spread_E).float()

    def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
        inputs = list(torch.split(batch["inputs"], list(self.sizes), dim=1))
        kept = torch.rand(len(self.sizes) - 1, len(batch["target"]), device=self.device) >= self.settings.modality_dropout
        present = batch["present"].T.clone()
        present[1:] &= kept
        predicted, effect, logits = self.network(inputs, present)
        learns = (batch["fold"][None, :] != torch.arange(self.network.members, device=self.device)[:, None]).float()  # E by N
        option = batch["option"][None, :, None].expand(self.network.members, -1, 1)
        given = predicted.gather(2, option).squeeze(2) if self.network.targets > 1 else predicted.squeeze(2)
        seen = learns * batch["observed"][None, :]
        center_E, spread_E = self.center_E.to(self.device), self.spread_E.to(self.device)
        target = (batch["target"][None, :] - center_E[:, None]) / spread_E[:, None]
        loss = (seen * (given - target) ** 2).sum() / seen.sum().clamp(min=1)
        if self.network.targets > 1:
            chosen = functional.log_softmax(logits, dim=-1).gather(2, option).squeeze(2)
            loss = loss - self.settings.propensity_weight * (learns * chosen).sum() / learns.sum().clamp(min=1)
            loss = (
                loss + self.settings.effect_penalty * (learns[..., None] * effect**2).sum() / learns.sum().clamp(min=1) / effect.shape[-1]
            )
        return loss * self.network.members

    def configure_gradient_clipping(self, *_: Any, **__: Any) -> None:
        """Each member by its own norm: clipped together, a wild outcome would reach the member that leaves its fold out."""
        grads = [p.grad for p in self.network.parameters() if p.grad is not None]
        norm_E = torch.stack([g.flatten(1).square().sum(1) for g in grads]).sum(0).sqrt()
        scale_E = (CLIP / (norm_E + 1e-6)).clamp(max=1)
        for g in grads:
            g.mul_(scale_E.view(-1, *[1] * (g.dim() - 1)))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.settings.rate, weight_decay=self.settings.decay)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.settings.rate, total_steps=self.steps, pct_start=0.2)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def fit(training: Training, settings: Settings | None = None, *, accelerator: str = "cpu", precision: Any = "32-true") -> Fusion:
    """Train the ensemble in one Lightning run; `accelerator` and `precision` are Lightning's own."""
    settings = settings or Settings()
    torch.set_num_threads(1)  # small matrices: a second thread costs more than it brings, and one thread is reproducible anywhere
    scaler = Scaler.fit(training.x_NF, training.modality_F)
    given, present = inputs(scaler, training.x_NF)
    observed_N = training.observed_N
    learned = [training.target_N[observed_N & (training.fold_N != e)] for e in range(FOLDS)]
    center_E, spread_E = np.array([y.mean() for y in learned]), np.array([y.std() for y in learned])
    columns = {
        "inputs": torch.cat(given, dim=1),
        "present": present,
        "target": torch.from_numpy(np.where(observed_N, training.target_N, 0.0)).float(),
        "observed": torch.from_numpy(observed_N).float(),
        "option": torch.from_numpy(training.option_N),
        "fold": torch.from_numpy(training.fold_N),
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        network = Network(widths(scaler), training.options, training.targets, settings)
        task = _Task(network, settings, tuple(x.shape[1] for x in given), center_E, spread_E)
        _train(task, _Rows(columns), accelerator, precision)
    model = Fusion(
        network=network.cpu().eval(),
        scaler=scaler,
        options=training.options,
        targets=training.targets,
        center_E=center_E,
        spread_E=spread_E,
        settings=settings,
    )
    members_ENT = model.members(training.x_NF)
    model.oof_NT = members_ENT[training.fold_N, np.arange(len(training))]
    return model


def _train(task: _Task, rows: _Rows, accelerator: str, precision: Any) -> None:
    settings = task.settings
    sampler = BatchSampler(RandomSampler(rows), settings.batch, drop_last=False)
    task.steps = len(sampler) * settings.epochs
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's advice on loader workers: rows lie in memory already
        trainer = lightning.Trainer(
            max_epochs=settings.epochs,
            accelerator=accelerator,
            devices=1,
            precision=precision,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(task, DataLoader(rows, sampler=sampler, batch_size=None))
