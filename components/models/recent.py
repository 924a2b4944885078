"""Encoder of the newest facts before a time: what was told, with what value, how long ago. Each fact is looked at by itself, then learned
queries attend to all of them (pooling by multi-head attention, Lee et al. 2019, Set Transformer): time is part of a fact, not its place.

Axis suffixes: N rows, L facts, C what is told of each, V words, E members, H hidden width, A queries, P inputs of a fact.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from components.models.layers import Dense, Dropout
from components.tensors import LIMIT
from features.feature import Floats

Singles = npt.NDArray[np.float32]

SEEN, MOST = 20, 512  # patients from whom a concept is learned, and concepts that are
PAST_DAYS = np.array([7.0, 30.0, 90.0, 365.0, 1825.0])  # how far back counts as near: a week to five years
INPUTS = 3 + len(PAST_DAYS)  # of a fact: its word, its value, whether it has one, how near it is
QUERIES = 4


@dataclass(frozen=True, kw_only=True)
class Words:
    """The concepts that were learned from, by their number in a row, and centre and spread of their values. Word v stands at v + 1."""

    code_V: Floats
    center_V: Floats
    spread_V: Floats

    @classmethod
    def fit(cls, events_NLC: Floats) -> "Words":
        """From training rows. A concept that few patients have is left out, so that nobody is known by it."""
        row_M, place_M = np.nonzero(~np.isnan(events_NLC[:, :, 0]))
        code_M, value_M, _ = events_NLC[row_M, place_M].T
        found_V, of_M = np.unique(code_M, return_inverse=True)
        patients_V = np.bincount(np.unique(np.stack([row_M, of_M]), axis=1)[1], minlength=len(found_V))
        often = np.sort(np.argsort(-patients_V, kind="stable")[:MOST])
        often = often[patients_V[often] >= SEEN]
        known_M = ~np.isnan(value_M)
        of_M, value_M = of_M[known_M], value_M[known_M]
        count_V = np.maximum(np.bincount(of_M, minlength=len(found_V)), 1)
        center_V = np.bincount(of_M, value_M, len(found_V)) / count_V
        spread_V = np.sqrt(np.bincount(of_M, (value_M - center_V[of_M]) ** 2, len(found_V)) / count_V)
        spread_V = np.where(spread_V > 1e-9, spread_V, 1.0)
        return cls(code_V=found_V[often], center_V=center_V[often], spread_V=spread_V[often])

    def __len__(self) -> int:
        return len(self.code_V)

    def read(self, events_NLC: Floats) -> Singles:
        """Inputs of every fact, N by L by P; zeros where there is none, or none of a concept that was learned."""
        code_NL, value_NL, days_NL = np.moveaxis(events_NLC, 2, 0)
        place_NL = np.minimum(np.searchsorted(self.code_V, code_NL), max(len(self) - 1, 0))
        told_NL = self.code_V[place_NL] == code_NL if len(self) else np.zeros(code_NL.shape, bool)
        known_NL = told_NL & ~np.isnan(value_NL)
        inputs_NLP = np.zeros((*code_NL.shape, INPUTS), np.float32)
        inputs_NLP[..., 0] = np.where(told_NL, place_NL + 1, 0)
        scaled_M = (value_NL[known_NL] - self.center_V[place_NL[known_NL]]) / self.spread_V[place_NL[known_NL]]
        inputs_NLP[..., 1][known_NL] = np.clip(scaled_M, -LIMIT, LIMIT)
        inputs_NLP[..., 2] = known_NL
        inputs_NLP[told_NL, 3:] = np.exp(-np.maximum(days_NL[told_NL], 0)[:, None] / PAST_DAYS)
        return inputs_NLP


class Recent(nn.Module):
    """A token of every row for each member: (N, L P) to (E, N, H)."""

    def __init__(self, members: int, words: int, width: int, drop: Dropout) -> None:
        super().__init__()
        self.members = members
        self.word = nn.Parameter(torch.randn(members, words + 1, width) * 0.5)
        self.slope = nn.Parameter(torch.randn(members, words + 1, width) * 0.5)
        self.when = Dense(members, INPUTS - 2, width)
        self.query = Dense(members, width, QUERIES)
        self.out = nn.Sequential(drop, Dense(members, (QUERIES + 1) * width, width))

    def forward(self, x: Tensor) -> Tensor:
        facts = x.reshape(len(x), -1, INPUTS)
        rows, places = facts.shape[:2]
        word = facts[..., 0].long()
        there = word > 0
        when = self.when(facts[..., 2:].reshape(1, rows * places, -1).expand(self.members, -1, -1)).view(self.members, rows, places, -1)
        told = nn.functional.silu(self.word[:, word] + self.slope[:, word] * facts[..., 1:2] + when) * there[..., None]
        asked = self.query(told.view(self.members, rows * places, -1)).view(self.members, rows, places, -1)
        weight = torch.softmax(asked.masked_fill(~there[..., None], -1e9), dim=2)
        pooled = (weight.transpose(2, 3) @ told).reshape(self.members, rows, -1)
        return self.out(torch.cat([pooled, told.mean(2)], dim=2))


@dataclass(frozen=True, kw_only=True)
class CompiledRecent:
    """The same for a few rows on one core: the trained weights as arrays."""

    word: Singles
    slope: Singles
    when: tuple[Singles, Singles]
    query: tuple[Singles, Singles]
    out: tuple[Singles, Singles]
    absent: Singles  # E by 1 by H

    @classmethod
    def of(cls, state: Mapping[str, Singles], name: str, absent: Singles) -> "CompiledRecent":
        """From the weights of the encoder called `name`, and the token of whoever has no facts."""

        def layer(part: str) -> tuple[Singles, Singles]:
            return state[f"{name}.{part}.weight"], state[f"{name}.{part}.bias"]

        word, slope = state[f"{name}.word"], state[f"{name}.slope"]
        return cls(word=word, slope=slope, when=layer("when"), query=layer("query"), out=layer("out.1"), absent=absent)

    def __call__(self, facts_NLP: Singles | None, rows: int) -> Singles:
        """E by N by H."""
        if facts_NLP is None or not facts_NLP[..., 0].any():
            return np.repeat(self.absent, rows, axis=1)
        place_NL, members = facts_NLP[..., 0].astype(np.int64), len(self.word)
        there_NL = place_NL > 0
        when = facts_NLP[..., 2:] @ self.when[0][:, None] + self.when[1][:, None]
        told = self.word[:, place_NL] + self.slope[:, place_NL] * facts_NLP[..., 1:2] + when
        told = told / (1 + np.exp(-told)) * there_NL[..., None]
        asked = np.where(there_NL[..., None], told @ self.query[0][:, None] + self.query[1][:, None], np.float32(-1e9))
        weight = np.exp(asked - asked.max(2, keepdims=True))
        weight /= weight.sum(2, keepdims=True)
        pooled = (weight.swapaxes(2, 3) @ told).reshape(members, rows, -1)
        token = np.concatenate([pooled, told.mean(2)], axis=2) @ self.out[0] + self.out[1]
        return np.where(np.asarray(there_NL.any(1))[:, None], token, self.absent)
