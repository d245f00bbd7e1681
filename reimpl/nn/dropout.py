"""Dropout: noise in training, against units that rely on one another."""

from __future__ import annotations

import torch
from torch import Tensor

from reimpl.nn.layer import Layer


class Dropout(Layer, torch.nn.Dropout):
    r"""In training, drop each element with probability $p$ and scale up the others; in evaluation do nothing.

    $$y_i = \frac{x_i m_i}{1 - p} \qquad m_i \sim \text{Bernoulli}(1 - p)$$

    The scale keeps $E[y_i] = x_i$, so that evaluation has nothing to correct.

    Args:
        p: the probability of being dropped, not of being kept.
        inplace: whether the output takes the input's place in memory.

    Shape:
        Input and output $(*)$, any. Every element has its own draw.

    Raises:
        ValueError: if $p$ is no probability.

    Differs from torch: nothing.

    Source: Srivastava et al., Dropout: A Simple Way to Prevent Neural Networks from Overfitting, 2014;
    `torch/nn/modules/dropout.py`.
    """

    def __init__(self, p: float = 0.5, inplace: bool = False) -> None:
        super().__init__()
        if p < 0 or p > 1:
            raise ValueError(f"dropout probability has to be between 0 and 1, but got {p}")
        self.p = p
        self.inplace = inplace

    def forward(self, input: Tensor) -> Tensor:
        r"""Return $x \cdot m / (1 - p)$ in training, $x$ itself in evaluation."""
        output: Tensor = self.functional.dropout(input, self.p, self.training, self.inplace)
        return output

    def extra_repr(self) -> str:
        """Describe the layer in a model's `repr`."""
        return f"p={self.p}, inplace={self.inplace}"
