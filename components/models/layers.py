"""Layers of the network with a leading member axis: all members of an ensemble in one product.

Axis suffixes: N rows, E members.
"""

import torch
from torch import Tensor, nn


class Dense(nn.Module):
    """A linear layer for every member at once: (E, N, in) to (E, N, out)."""

    def __init__(self, members: int, width_in: int, width_out: int, gain: float = 1.0) -> None:
        super().__init__()
        bound = gain * (3.0 / max(width_in, 1)) ** 0.5
        self.weight = nn.Parameter(torch.empty(members, width_in, width_out).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(members, 1, width_out))

    def forward(self, x: Tensor) -> Tensor:
        return torch.baddbmm(self.bias, x, self.weight)


class Dropout(nn.Dropout):
    """Noise is drawn for the whole batch, also where this process holds a share of its rows: their number does not change it."""

    first, whole = 0, 0  # of the share, in rows; 0 rows: all there are

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        noise = x.new_empty(x.shape[0], self.whole or x.shape[1], x.shape[2]).bernoulli_(1 - self.p).div_(1 - self.p)
        return x * noise[:, self.first : self.first + x.shape[1]]
