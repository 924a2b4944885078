"""Multimodal network: an encoder a modality, gated fusion, a shared representation with a head for every option, a propensity head.

The E members of the ensemble are trained together: every weight has a leading member axis, member e never learns from fold e, so one
run gives the cross-fitted predictions and the ensemble. A modality that is absent is a learned token, and present ones are dropped at
random in training, so that every subset of modalities is familiar.

Axis suffixes: N rows, F features, K options, T targets, E members, H hidden width.
"""

import json
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from components.models.compiled import Compiled
from components.models.layers import Dense, Dropout
from components.models.recent import Recent, Words
from components.tensors import FOLDS, Scaler
from features.feature import MODALITIES, Floats

FEW = 64  # rows up to which the compiled form is faster


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Dials of the network. `effect_penalty` shrinks what differs between options: effects are small against noise."""

    width: int = 32
    epochs: int = 15
    batch: int = 256
    rate: float = 4e-3
    decay: float = 0.3
    modality_dropout: float = 0.2
    effect_penalty: float = 1.0
    dropout: float = 0.2
    propensity_weight: float = 0.05
    patience: int = 0  # epochs without a gain on rows held back, after which training ends; 0: none are held back, and all epochs run
    seed: int = 0


class Network(nn.Module):
    """All members. Input: for every modality its scaled values and mask side by side, N by 2F; last the newest facts, where `words` were
    learned of them.
    """

    def __init__(
        self, widths: tuple[int, ...], options: int, targets: int, settings: Settings, *, words: int = 0, members: int = FOLDS
    ) -> None:
        super().__init__()
        size, self.members, self.targets = settings.width, members, targets
        self.drop = drop = Dropout(settings.dropout)
        self.encode = nn.ModuleList(
            [nn.Sequential(Dense(members, 2 * w, size), nn.SiLU(), drop, Dense(members, size, size)) for w in widths]
        )
        if words:
            self.encode.append(Recent(members, words, size, drop))
        tokens = len(self.encode)
        self.absent = nn.Parameter(torch.zeros(members, tokens, 1, size))
        self.gate = Dense(members, size * tokens, tokens, gain=0.1)
        self.trunk = nn.Sequential(Dense(members, size, size), nn.SiLU(), drop)
        self.prognosis = Dense(members, size, 1, gain=0.3)
        self.average = nn.Parameter(torch.zeros(members, 1, options))  # effect of each option on everybody: not shrunk
        self.effect = Dense(members, size, options, gain=0.05)
        self.propensity = Dense(members, size, options, gain=0.1)

    def forward(self, inputs: list[Tensor], present: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Targets (E, N, T), what of the effects differs between patients (E, N, K), propensity logits (E, N, K).

        `present` is modalities by N.
        """
        tokens = []
        for m, (encoder, x) in enumerate(zip(self.encode, inputs, strict=True)):
            token = encoder(x if isinstance(encoder, Recent) else x.unsqueeze(0).expand(self.members, -1, -1))
            tokens.append(torch.where(present[m][None, :, None], token, self.absent[:, m]))
        gate = torch.softmax(self.gate(torch.cat(tokens, dim=-1)), dim=-1)
        fused = sum(gate[..., m : m + 1] * token for m, token in enumerate(tokens)) * len(tokens)
        shared = self.trunk(fused)
        effect = self.effect(shared)
        effect = effect - effect.mean(-1, keepdim=True)
        base = self.prognosis(shared)
        return (base + self.average + effect if self.targets > 1 else base), effect, self.propensity(shared)


@dataclass(kw_only=True)
class Fusion:
    """The fitted ensemble."""

    network: Network
    scaler: Scaler
    options: int
    targets: int
    center_E: Floats  # of the outcomes that each member learned from
    spread_E: Floats
    settings: Settings
    words: Words | None = None  # of the newest facts, where it was trained with them
    oof_NT: Floats | None = None

    def members(self, x_NF: Floats, events_NLC: Floats | None = None) -> Floats:
        """Expected target by member, E by N by T. Without events the newest facts count as absent."""
        if len(x_NF) <= FEW:
            batch = self.scaler.batch(x_NF)
            facts_NLP = None if self.words is None or events_NLC is None else self.words.read(events_NLC)
            predicted_ENT = self.compiled(batch.scaled_NF, batch.seen_NF, facts_NLP).astype(np.float64)
        else:
            given, present = inputs(self.scaler, x_NF, self.words, events_NLC)
            with torch.inference_mode():
                predicted_ENT = self.network(given, present.T)[0].double().numpy()
        return np.asarray(predicted_ENT * self.spread_E[:, None, None] + self.center_E[:, None, None])

    @cached_property
    def compiled(self) -> Compiled:
        """The same network for a few rows."""
        state = {name: tensor.detach().numpy().copy() for name, tensor in self.network.state_dict().items()}
        return Compiled.of(state, self.scaler, self.targets)

    def predict(self, x_NF: Floats, events_NLC: Floats | None = None) -> Floats:
        """Expected target under each option, mean of the members."""
        return np.asarray(self.members(x_NF, events_NLC).mean(0))

    def save(self, folder: Path) -> None:
        """`fusion.safetensors` and `fusion.json`."""
        tensors = {f"network.{name}": tensor.contiguous() for name, tensor in self.network.state_dict().items()}
        tensors |= {"center_F": torch.from_numpy(self.scaler.center_F), "spread_F": torch.from_numpy(self.scaler.spread_F)}
        tensors |= {"center_E": torch.from_numpy(self.center_E), "spread_E": torch.from_numpy(self.spread_E)}
        if self.words is not None:
            tensors |= {f"words.{name}": torch.from_numpy(array) for name, array in vars(self.words).items()}
        save_file(tensors, folder / "fusion.safetensors")
        told: dict[str, Any] = {"options": self.options, "targets": self.targets}
        told |= {"modality_F": self.scaler.modality_F, "settings": asdict(self.settings)}
        (folder / "fusion.json").write_text(json.dumps(told), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "Fusion":
        """The ensemble that `save` wrote."""
        tensors, told = load_file(folder / "fusion.safetensors"), json.loads((folder / "fusion.json").read_text(encoding="utf-8"))
        center_F, spread_F = (tensors[name].numpy().copy() for name in ("center_F", "spread_F"))  # never views of the mapped file
        scaler = Scaler(center_F=center_F, spread_F=spread_F, modality_F=tuple(told["modality_F"]))
        settings = Settings(**told["settings"])
        named = {name.removeprefix("words."): t.numpy().copy() for name, t in tensors.items() if name.startswith("words.")}
        words = Words(**named) if named else None
        network = Network(widths(scaler), told["options"], told["targets"], settings, words=len(words or ()))
        network.load_state_dict({name.removeprefix("network."): t for name, t in tensors.items() if name.startswith("network.")})
        return cls(
            network=network.eval(),
            scaler=scaler,
            options=told["options"],
            targets=told["targets"],
            center_E=tensors["center_E"].numpy().copy(),
            spread_E=tensors["spread_E"].numpy().copy(),
            settings=settings,
            words=words,
        )


def widths(scaler: Scaler) -> tuple[int, ...]:
    """Number of features of each modality that has any."""
    return tuple(width for name in MODALITIES if (width := sum(m == name for m in scaler.modality_F)))


def inputs(scaler: Scaler, x_NF: Floats, words: Words | None = None, events_NLC: Floats | None = None) -> tuple[list[Tensor], Tensor]:
    """Input of every encoder, and which modality is present at all (N by modalities). History always counts as present."""
    batch = scaler.batch(x_NF)
    given: list[Tensor] = []
    present: list[Tensor] = []
    for name in MODALITIES:
        value_NF, seen_NF = batch.modality(name)
        if value_NF.shape[1]:
            given.append(torch.from_numpy(np.concatenate([value_NF, seen_NF], axis=1)).float())
            present.append(torch.from_numpy(seen_NF.any(1) if present else np.ones(len(seen_NF), bool)))
    if words is not None:
        facts_NLP = words.read(np.full((len(x_NF), 1, 3), np.nan) if events_NLC is None else events_NLC)
        given.append(torch.from_numpy(facts_NLP.reshape(len(x_NF), -1)))
        present.append(torch.from_numpy((facts_NLP[..., 0] > 0).any(1)))
    return given, torch.stack(present, dim=1)
