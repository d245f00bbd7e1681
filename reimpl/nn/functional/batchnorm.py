"""Batch normalisation from first principles."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from reimpl.nn.functional.operation import Operation, scalar_type, widen


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    r"""Return each channel of a batch with mean 0 and variance 1, scaled and shifted.

    $$\hat x_i = \frac{x_i - \mu}{\sqrt{\sigma^2 + \epsilon}} \qquad y_i = \gamma\, \hat x_i + \beta$$

    Every channel is by itself: $i$ runs over its $n$ values, all samples and all places. In training $\mu$ and
    $\sigma^2$ are the batch's own, and are mixed into the running ones, the variance there with $n - 1$:

    $$\mu = \frac 1 n \sum_i x_i \qquad \sigma^2 = \frac 1 n \sum_i (x_i - \mu)^2$$

    $$\mu_\text{run} \leftarrow (1 - m)\, \mu_\text{run} + m\, \mu \qquad
      \sigma^2_\text{run} \leftarrow (1 - m)\, \sigma^2_\text{run} + m\, \frac{n}{n - 1}\, \sigma^2$$

    In evaluation they are the running ones.

    Backward, with $g = \partial L / \partial y$:

    $$\frac{\partial L}{\partial \beta} = \sum_i g_i \qquad
      \frac{\partial L}{\partial \gamma} = \sum_i g_i\, \hat x_i$$

    In evaluation $\mu$ and $\sigma^2$ are constants. In training every $x_j$ moves them, and with them every $y_i$,
    which takes from $g$ its mean, and its projection on $\hat x$:

    $$\frac{\partial L}{\partial x_j} = \frac{\gamma}{\sqrt{\sigma^2 + \epsilon}}\, g_j
      \quad\text{(evaluation)} \qquad
      \frac{\partial L}{\partial x_j} = \frac{\gamma}{\sqrt{\sigma^2 + \epsilon}} \Bigl( g_j
      - \frac 1 n \sum_i g_i - \hat x_j\, \frac 1 n \sum_i g_i\, \hat x_i \Bigr)
      \quad\text{(training)}$$

    Args:
        input: $x$ of shape (N, C, *), normalised over all dimensions but C.
        running_mean: of shape (C), changed in place in training; None for a batch that leaves no trace.
        running_var: the same; both or neither.
        weight: $\gamma$ of shape (C), or None for 1.
        bias: $\beta$ of shape (C), or None for 0.
        training: whether the batch is normalised by its own statistics.
        momentum: $m$, the weight of the new batch. 0.1 here is what other libraries call 0.9.
        eps: $\epsilon$, which keeps the quotient finite where a channel is constant.

    Returns:
        $y$ of the input's shape, dtype and memory format.

    Raises:
        ValueError: if training has one value a channel, or `eps` is too small, or one running statistic is missing.
        RuntimeError: if evaluation lacks a running statistic, or sizes or dtypes do not fit.

    Differs from torch: sums are of the input's dtype (float32 for float16 and bfloat16), where torch's CPU kernel has
    float64. They lose nothing by it, because they are of centred values, and what the rounding of the mean leaves in
    those is subtracted again (the corrected two-pass algorithm). Strides follow the input's, where torch returns a
    transposed input contiguous. An infinity in the input makes both running statistics NaN, where torch's mean stays
    infinite. `vmap` over weight or bias alone, with an input shared by all, is refused. In
    float32 a variance above 3e38 is infinite, and the output 0.

    Costs: one to two and a half times torch's time; on a few thousand numbers, three to four times. Each step is a pass
    over memory of its own. At its peak it has one more tensor of the input's size than torch. What is kept for the
    backward is what torch keeps: input, weight, mean and variance.

    Source: Ioffe and Szegedy, Batch Normalization, 2015, algorithm 1 and section 3; Chan, Golub and LeVeque,
    Algorithms for Computing the Sample Variance, 1983; `aten/src/ATen/native/Normalization.cpp`.
    """
    check(input, running_mean, running_var, weight, bias, training, eps)
    if input.dim() == 1 and not len(input):
        return input.clone()  # torch takes this one input without a dimension of channels
    output: Tensor
    if not training:
        output = BatchNormEvaluation.run(input, weight, bias, running_mean, running_var, eps)
        return output
    output, mean, var = BatchNorm.run(input, weight, bias, eps)
    n = values_by_channel(input)
    if running_mean is not None and running_var is not None and n:
        running_mean.mul_(1 - momentum).add_(mean.flatten(), alpha=momentum)
        running_var.mul_(1 - momentum).add_(var.flatten(), alpha=momentum * n / (n - 1))
    return output


class BatchNorm(Operation):
    """Normalise by the batch's own mean and variance."""

    @staticmethod
    def forward(input: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        x = widen(input)
        n = values_by_channel(x)
        mean = total(x) / n
        centred = x - mean
        rest = total(centred) / n  # not zero: the mean has been rounded
        var = total(centred.square()) / n - rest.square()
        scale = (var + eps).rsqrt()
        if weight is not None:
            scale = scale * by_channel(weight, x)
        shift = -rest * scale
        if bias is not None:
            shift = shift + by_channel(bias, x)
        return centred.mul_(scale).add_(shift).to(input.dtype), mean + rest, var

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        input, weight, _, ctx.eps = inputs
        _, mean, var = output
        ctx.mark_non_differentiable(mean, var)
        ctx.save_for_backward(input, weight, mean, var)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        input, weight, mean, var = ctx.saved_tensors
        x, g = widen(input), widen(grad)
        n = values_by_channel(x)
        if torch.is_grad_enabled():  # for a second derivative, mean and variance are functions of x again
            mean = total(x) / n
            var = total((x - mean).square()) / n
        invstd = (var + ctx.eps).rsqrt()
        normal = (x - mean).mul_(invstd)

        grad_bias = total(g)
        grad_weight = total(g * normal)
        grad_input = normal * (-grad_weight / n)  # - x̂ ∑ g x̂ / n
        grad_input += g
        grad_input -= grad_bias / n  # - ∑ g / n
        grad_input *= invstd if weight is None else invstd * by_channel(weight, x)

        _, needs_weight, needs_bias, _ = ctx.needs_input_grad
        return (
            grad_input.to(input.dtype),
            grad_weight.flatten() if needs_weight else None,
            grad_bias.flatten() if needs_bias else None,
            None,
        )


class BatchNormEvaluation(Operation):
    """Normalise by the running mean and variance."""

    @staticmethod
    def forward(
        input: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, var: Tensor, eps: float
    ) -> Tensor:
        x = widen(input)
        scale = (widen(var) + eps).rsqrt()
        if weight is not None:
            scale = scale * weight
        output = (x - by_channel(mean, x)).mul_(by_channel(scale, x))
        if bias is not None:
            output += by_channel(bias, x)
        return output.to(input.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        input, weight, _, mean, var, ctx.eps = inputs
        ctx.save_for_backward(input, weight, mean, var)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        input, weight, mean, var = ctx.saved_tensors
        x, g = widen(input), widen(grad)
        invstd = (widen(var) + ctx.eps).rsqrt()
        grad_input = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            scale = invstd if weight is None else invstd * weight
            grad_input = (g * by_channel(scale, x)).to(input.dtype)
        if ctx.needs_input_grad[1]:
            grad_weight = total(g * (x - by_channel(mean, x))).flatten() * invstd
        if ctx.needs_input_grad[2]:
            grad_bias = total(g).flatten()
        return grad_input, grad_weight, grad_bias, None, None, None


def by_channel(vector: Tensor, x: Tensor) -> Tensor:
    """Return (C) as (C, 1, ...), which broadcasts against (N, C, *)."""
    return vector.view(-1, *[1] * (x.dim() - 2))


def values_by_channel(x: Tensor) -> int:
    """Return how many values each channel has, $n$."""
    return x.shape[:1].numel() * x.shape[2:].numel()


def total(x: Tensor) -> Tensor:
    """Return each channel's sum, of shape (C, 1, ...).

    The places of a sample come first, then the samples: so no rounding meets a long sum more than once.
    """
    places = tuple(range(2, x.dim()))
    return (x.sum(places, keepdim=True) if places else x).sum(0)


def check(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    eps: float,
) -> None:
    """Raise torch's error for what cannot be normalised."""
    if training and values_by_channel(input) == 1:
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {input.shape}")
    if training and eps <= 0:
        raise ValueError(f"batch_norm eps must be positive during training, but got {eps}")
    if eps < 0:
        raise ValueError(f"batch_norm eps must be non-negative, but got {eps}")
    channels = input.shape[1] if input.dim() > 1 else 0
    given = {"running_mean": running_mean, "running_var": running_var, "weight": weight, "bias": bias}
    for name, tensor in given.items():
        if tensor is None:
            if not training and name.startswith("running"):
                raise RuntimeError(f"{name} must be defined in evaluation mode")
        elif tensor.numel() != channels:
            raise RuntimeError(f"{name} should contain {channels} elements not {tensor.numel()}")
        elif name.startswith("running") and tensor.requires_grad and torch.is_grad_enabled():
            raise RuntimeError(
                f"The function 'native_batch_norm' is not differentiable with respect to argument '{name}'. "
                "This input cannot have requires_grad True."
            )
    if (running_mean is None) != (running_var is None):
        raise ValueError("running_mean and running_var must either both be None or neither be None")
    if input.dim() < 2 and input.numel():
        raise IndexError("Dimension out of range (expected to be in range of [-1, 0], but got 1)")
    check_dtypes(input, [tensor for tensor in (weight, bias, running_mean, running_var) if tensor is not None])


def check_dtypes(input: Tensor, others: list[Tensor]) -> None:
    """Raise torch's error unless all dtypes are the input's, or all others are float32 beside a narrower input."""
    if not input.is_floating_point():
        raise NotImplementedError(f"\"batch_norm\" not implemented for '{scalar_type(input)}'")
    if all(tensor.dtype == input.dtype for tensor in others):
        return
    if others[0].dtype == input.dtype:
        other = next(tensor for tensor in others if tensor.dtype != input.dtype)
        raise RuntimeError(f"expected scalar type {scalar_type(input)} but found {scalar_type(other)}")
    kind = input.device.type.upper()
    if any(tensor.dtype != torch.float32 for tensor in others):
        raise RuntimeError(f"mixed dtype ({kind}): expect parameter to have scalar type of Float")
    if input.dtype not in (torch.float16, torch.bfloat16):
        raise RuntimeError(f"mixed dtype ({kind}): all inputs must share same datatype.")
