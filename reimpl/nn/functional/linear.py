"""The fully connected layer from first principles."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from reimpl.nn.functional.operation import Operation


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    r"""Return $y = x W^\top + b$.

    Backward, with $g = \partial L / \partial y$: each $y_{ij} = \sum_k x_{ik} W_{jk} + b_j$ passes its $g_{ij}$ to
    what it was summed from, times the other factor:

    $$\frac{\partial L}{\partial x} = g\, W \qquad
      \frac{\partial L}{\partial W} = g^\top x \qquad
      \frac{\partial L}{\partial b} = \sum_i g_i$$

    Args:
        input: $x$ of shape (*, inputs).
        weight: $W$ of shape (outputs, inputs), or (inputs) for a single output without a dimension of its own.
        bias: $b$ of shape (outputs).

    Returns:
        $y$ of shape (*, outputs), or (*).

    Raises:
        RuntimeError: if the shapes do not fit.

    Differs from torch: the bias is added after the matrix product, not inside it. One more pass over the output.

    Source: `torch/nn/functional.py`.
    """
    output: Tensor = Linear.run(input, weight, bias)
    return output


class Linear(Operation):
    """A matrix product and a sum, and the transposed ones on the way back."""

    autocast = "lower"

    @staticmethod
    def forward(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        output = input @ weight.t()
        return output if bias is None else output.add_(bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor) -> None:
        input, weight, bias = inputs
        ctx.save_for_backward(input, weight)
        ctx.bias_shape = None if bias is None else bias.shape

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        input, weight = ctx.saved_tensors
        rows = input.reshape(-1, input.shape[-1])  # every sample is a row, whatever * is
        grad_rows = grad.reshape(len(rows), *weight.shape[:-1])
        grad_input = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            by_row = grad_rows @ weight.conj() if weight.dim() == 2 else grad_rows.outer(weight.conj())
            grad_input = by_row.reshape(input.shape)
        if ctx.needs_input_grad[1]:
            grad_weight = grad_rows.t() @ rows.conj()
        if ctx.needs_input_grad[2]:
            grad_bias = grad_rows.sum(0).sum_to_size(ctx.bias_shape)
        return grad_input, grad_weight, grad_bias
