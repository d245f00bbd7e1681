"""Dropout from first principles."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from reimpl.nn.functional.operation import Operation, refuse_leaf


def dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    r"""Return the input with each element dropped with probability $p$, and the others scaled up.

    $$y_i = x_i n_i \qquad n_i = \frac{m_i}{1 - p} \qquad m_i \sim \text{Bernoulli}(1 - p)$$

    $E[n_i] = 1$, so that $E[y_i] = x_i$: what follows sees sums of the same size in training as without dropout, and
    evaluation has nothing to scale back. Hence "inverted" dropout.

    Backward, with $g = \partial L / \partial y$: the noise is a constant factor,

    $$\frac{\partial L}{\partial x_i} = g_i n_i$$

    Args:
        input: $x$ of any shape.
        p: the probability of being dropped, not of being kept.
        training: without it, $y$ is $x$, the same tensor. This function does not know of a model's `eval()`.
        inplace: whether $y$ takes the place of $x$.

    Returns:
        $y$ of the same shape and dtype. A dropped element is multiplied by 0, so $\infty$ and NaN become NaN.

    Raises:
        ValueError: if $p$ is no probability.
        RuntimeError: if the input is integer, or a leaf that requires a gradient is to be overwritten.

    Differs from torch: on the CPU in no bit, from the same seed. On CUDA torch draws the mask inside the kernel, in
    another order: the same distribution, another mask. In place, not under `vmap`.

    Costs: three passes over memory, as torch's on the CPU; noise as large as the input is kept for the backward.

    Source: Srivastava et al., Dropout: A Simple Way to Prevent Neural Networks from Overfitting, 2014, section 10;
    `aten/src/ATen/native/Dropout.cpp`.
    """
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"dropout probability has to be between 0 and 1, but got {p}")
    if not training or p == 0 or not input.numel():
        return input
    if inplace:
        refuse_leaf(input)
    # The scale 1 / (1 - p) has no value at p = 1, and nothing is drawn there.
    noise = input.new_zeros(()) if p == 1 else torch.empty_like(input).bernoulli_(1 - p).div_(1 - p)
    output: Tensor = Dropout.run(input, noise, inplace)
    return output


class Dropout(Operation):
    """A product with noise."""

    @staticmethod
    def forward(input: Tensor, noise: Tensor, inplace: bool) -> Tensor:
        if not inplace:
            return input * noise
        input.mul_(noise)
        return input

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, bool], output: Tensor) -> None:
        input, noise, inplace = inputs
        if inplace:
            ctx.mark_dirty(input)
        ctx.save_for_backward(noise)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (noise,) = ctx.saved_tensors
        return grad * noise, None, None
