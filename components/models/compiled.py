"""The network for a few rows on one core: the trained weights as arrays, all members in one product, absent modalities not computed.

A framework's overhead of some 60 small operations is most of one patient's time. Same numbers as `fusion.Network` in evaluation, up to
single precision. Axis suffixes: N rows, F features, E members, H hidden width, M modalities, T targets.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from components.models.recent import CompiledRecent
from components.tensors import Scaler
from features.feature import MODALITIES, Floats, Ints

Singles = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """One modality: where its features stand, both layers, and the token that stands for its absence."""

    column_F: Ints
    first: Singles  # 2F by (E H)
    first_bias: Singles
    second: Singles  # E by H by H
    second_bias: Singles
    absent: Singles  # E by 1 by H


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """The ensemble without its propensity head."""

    encoders: tuple[Encoder, ...]
    recent: CompiledRecent | None  # encoder of the newest facts, where there is one
    gate: tuple[Singles, Singles]
    trunk: tuple[Singles, Singles]
    heads: tuple[Singles, Singles]  # prognosis, then effects
    average: Singles
    targets: int

    @classmethod
    def of(cls, state: Mapping[str, Singles], scaler: Scaler, targets: int) -> "Compiled":
        """From the weights of a `Network` by their names."""

        def layer(name: str) -> tuple[Singles, Singles]:
            return state[f"{name}.weight"], state[f"{name}.bias"]

        modality_F, encoders = np.array(scaler.modality_F), []
        for m, name in enumerate(name for name in MODALITIES if name in scaler.modality_F):
            (first, first_bias), (second, second_bias) = layer(f"encode.{m}.0"), layer(f"encode.{m}.3")
            wide = np.ascontiguousarray(first.transpose(1, 0, 2).reshape(first.shape[1], -1))
            encoders.append(
                Encoder(
                    column_F=np.flatnonzero(modality_F == name),
                    first=wide,
                    first_bias=first_bias.reshape(1, -1),
                    second=second,
                    second_bias=second_bias,
                    absent=state["absent"][:, m],
                )
            )
        last, recent = len(encoders), None
        if f"encode.{last}.word" in state:
            recent = CompiledRecent.of(state, f"encode.{last}", state["absent"][:, last])
        prognosis, effect = layer("prognosis"), layer("effect")
        heads = np.concatenate([prognosis[0], effect[0]], axis=2), np.concatenate([prognosis[1], effect[1]], axis=2)
        return cls(
            encoders=tuple(encoders),
            recent=recent,
            gate=layer("gate"),
            trunk=layer("trunk.0"),
            heads=heads,
            average=state["average"],
            targets=targets,
        )

    def __call__(self, scaled_NF: Floats, seen_NF: npt.NDArray[np.bool_], facts_NLP: Singles | None = None) -> Singles:
        """Targets of every member on its own scale, E by N by T, from scaled rows and, where they were learned, the newest facts."""
        with np.errstate(over="ignore"):
            tokens = [self._token(encoder, scaled_NF, seen_NF, always=not m) for m, encoder in enumerate(self.encoders)]
            if self.recent is not None:
                tokens.append(self.recent(facts_NLP, len(scaled_NF)))
            gate = np.concatenate(tokens, axis=2) @ self.gate[0] + self.gate[1]
            gate = np.exp(gate - gate.max(2, keepdims=True))
            gate *= len(tokens) / gate.sum(2, keepdims=True)
            fused = sum((gate[:, :, m : m + 1] * token for m, token in enumerate(tokens)), np.float32(0))
            found = _silu(fused @ self.trunk[0] + self.trunk[1]) @ self.heads[0] + self.heads[1]
        base, effect = found[:, :, :1], found[:, :, 1:]
        return np.asarray(base + self.average + (effect - effect.mean(2, keepdims=True)) if self.targets > 1 else base)

    def _token(self, encoder: Encoder, scaled_NF: Floats, seen_NF: npt.NDArray[np.bool_], *, always: bool) -> Singles:
        seen_NM = seen_NF[:, encoder.column_F]
        present_N = np.asarray(seen_NM.any(1) | always)  # history always counts as present
        members, size = encoder.second.shape[:2]
        if not present_N.any():
            return np.repeat(encoder.absent, len(seen_NM), axis=1)
        given = np.concatenate([scaled_NF[:, encoder.column_F], seen_NM], axis=1).astype(np.float32)
        hidden = _silu(given @ encoder.first + encoder.first_bias).reshape(-1, members, size).transpose(1, 0, 2)
        token = hidden @ encoder.second + encoder.second_bias
        return token if present_N.all() else np.where(present_N[:, None], token, encoder.absent)


def _silu(x: Singles) -> Singles:
    return np.asarray(x / (1 + np.exp(-x)))
