"""Flattening, between layers that see a picture and layers that see a list of numbers."""

from __future__ import annotations

import torch
from torch import Tensor

from reimpl.nn.layer import Layer


class Flatten(Layer, torch.nn.Flatten):
    r"""Join consecutive dimensions into one.

    Element $(i_a, \dots, i_b)$ of the joined dimensions of sizes $S_a, \dots, S_b$ goes to
    $((i_a S_{a+1} + i_{a+1}) S_{a+2} + \dots) + i_b$: the order in which a contiguous tensor lies in memory, so that
    nothing is copied there. The gradient goes back by the same renaming of indices.

    `Sequential(AdaptiveMaxPool2d((1, 1)), Flatten())` is global max pooling: $(N, C, H, W)$ to $(N, C)$.

    Args:
        start_dim: the first dimension to join. The default leaves the batch alone; without a batch, it is 0 you want.
        end_dim: the last.

    Shape:
        Input $(*, S_a, \dots, S_b, *)$, output $(*, S_a \cdots S_b, *)$.

    Raises:
        IndexError: if the input has no such dimensions.
        RuntimeError: if the last comes before the first.

    Differs from torch: nothing.

    Source: `torch/nn/modules/flatten.py`.
    """

    def __init__(self, start_dim: int = 1, end_dim: int = -1) -> None:
        super().__init__()
        self.start_dim = start_dim
        self.end_dim = end_dim

    def forward(self, input: Tensor) -> Tensor:
        """Return the input in another shape."""
        return input.flatten(self.start_dim, self.end_dim)

    def extra_repr(self) -> str:
        """Describe the layer in a model's `repr`."""
        return f"start_dim={self.start_dim}, end_dim={self.end_dim}"
