"""Negative log likelihood and cross entropy from first principles."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from reimpl.nn.functional.operation import Operation, scalar_type, widen


def nll_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Return the negative log likelihood of the target classes, given the log-probabilities of all classes.

    $$\ell_i = -w_{t_i}\, x_{i, t_i} \qquad
      y = \ell \ \text{(none)} \qquad
      y = \sum_i \ell_i \ \text{(sum)} \qquad
      y = \frac{\sum_i \ell_i}{\sum_i w_{t_i}} \ \text{(mean)}$$

    Each $i$ is a sample, or a place in one. Where $t_i$ is `ignore_index`, $\ell_i$ and its weight are 0. Nothing here
    knows that $x$ are log-probabilities: it picks and negates.

    Backward, with $g_i = \partial L / \partial \ell_i$: of each $x_i$ only the target's is used, and once.

    $$\frac{\partial L}{\partial x_{ic}} = \begin{cases} -w_{t_i}\, g_i & c = t_i \\ 0 & c \ne t_i \end{cases}$$

    Under `sum` $g_i$ is $g = \partial L / \partial y$, under `mean` $g / \sum_i w_{t_i}$.

    Args:
        input: $x$ of shape (N, C), (N, C, *) or (C).
        target: $t$ of shape (N), (N, *) or (), from 0 to C - 1: int64, for (N, C) and (C) also uint8.
        weight: $w$ of shape (C), or None for ones. It has no gradient.
        size_average: deprecated, see `reduction`.
        ignore_index: the target that is left out. It need not be a class.
        reduce: deprecated, see `reduction`.
        reduction: `none`, `sum` or `mean`.

    Returns:
        $y$ of the target's shape, or a scalar.

    Raises:
        IndexError: if a target is no class.
        ValueError: if `reduction` is unknown, or there is not a target for each sample.
        RuntimeError: if shapes or dtypes do not fit otherwise.

    Differs from torch: the backward takes two inputs that torch's refuses, one sample (C) with target of shape (1), and
    images in some strides.

    Costs: on a few thousand scores four times torch's time, as nothing is computed; on millions the same.

    Source: `aten/src/ATen/native/LossNLL.cpp`, `LossNLL2d.cpp`.
    """
    reduction = checked_reduction(reduction_of(size_average, reduce, reduction))
    check_classes(input, target, weight)
    x, target = as_batch(input, target)
    check_dtypes(x, weight)
    output: Tensor = NLLLoss.run(x, *classes_of(x, target, weight, ignore_index), reduction)
    return output.reshape(()) if input.dim() == 1 else output


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    r"""Return the cross entropy of target classes, or of target probabilities, given a score (logit) for every class.

    The scores become probabilities by softmax, in one operation with the likelihood:

    $$p_{ic} = \frac{e^{x_{ic}}}{\sum_k e^{x_{ik}}} \qquad
      -\log p_{ic} = \log \sum_k e^{x_{ik} - m_i} - (x_{ic} - m_i) \qquad
      m_i = \max_k x_{ik}$$

    $$\ell_i = -\sum_c q_{ic} \log p_{ic} \qquad
      y = \ell \ \text{(none)} \qquad
      y = \sum_i \ell_i \ \text{(sum)} \qquad
      y = \frac{\sum_i \ell_i}{D} \ \text{(mean)}$$

    What $q$ is depends on the target, with `label_smoothing` $\epsilon$, class weights $w$ and $C$ classes:

    - class $t_i$: $q_{ic} = (1 - \epsilon)\, w_{t_i} [c = t_i] + \frac \epsilon C w_c$ and $D = \sum_i w_{t_i}$. Where
      $t_i$ is `ignore_index`, $\ell_i$ and its weight in $D$ are 0.
    - probabilities $t_{ic}$: $q_{ic} = w_c \bigl((1 - \epsilon)\, t_{ic} + \frac \epsilon C\bigr)$ and $D$ is the
      number of positions $i$, whatever the weights are.

    Backward, with $g_i = \partial L / \partial \ell_i$. By $\partial \log p_{ic} / \partial x_{ik} = [c = k] - p_{ik}$:

    $$\frac{\partial L}{\partial x_{ik}} = g_i \Bigl( p_{ik} \sum_c q_{ic} - q_{ik} \Bigr)$$

    which for a class without weight and smoothing is softmax minus one-hot target. For probabilities also

    $$\frac{\partial L}{\partial t_{ic}} = -g_i\, (1 - \epsilon)\, w_c \log p_{ic} \qquad
      \frac{\partial L}{\partial w_c} = -\sum_i g_i \Bigl((1 - \epsilon)\, t_{ic} + \frac \epsilon C\Bigr) \log p_{ic}$$

    Under `sum` $g_i$ is $g = \partial L / \partial y$, under `mean` $g / D$.

    Args:
        input: $x$ of shape (N, C), (N, C, *) or (C).
        target: classes as for `nll_loss`, or floating-point probabilities of the input's shape. That they are from 0 to
            1 and sum to 1 is not checked.
        weight: $w$ of shape (C), or None for ones.
        size_average: deprecated, see `reduction`.
        ignore_index: the class that is left out as a target; it stays in the softmax.
        reduce: deprecated, see `reduction`.
        reduction: `none`, `sum` or `mean`.
        label_smoothing: $\epsilon$ from 0 to 1, the part of the target that is spread over all classes.

    Returns:
        $y$ of the input's shape without C, or a scalar.

    Raises:
        IndexError: if a target is no class.
        ValueError: if `reduction` is unknown, or there is not a target for each sample.
        RuntimeError: if shapes or dtypes do not fit otherwise, `label_smoothing` is above 1, or `ignore_index` is not
            negative beside probabilities.

    Differs from torch: as `nll_loss`. Scores without classes (C = 0) are refused. A target of classes goes with
    `label_smoothing` and `weight` in uint8 too, and under `vmap`.

    Costs: one to two times torch's time, and the same peak of memory. The numerators of softmax are kept for the
    backward, as torch keeps log-softmax, but beside the input. There is never a one-hot matrix.

    Source: Szegedy et al., Rethinking the Inception Architecture, 2016, section 7 (label smoothing);
    `aten/src/ATen/native/LossNLL.cpp`, which alone says how weight and smoothing combine.
    """
    reduction = checked_reduction(reduction_of(size_average, reduce, reduction))
    soft = input.shape == target.shape
    if soft:
        check_probabilities(input, target, weight, ignore_index)
    if label_smoothing > 1:
        raise RuntimeError(f"label_smoothing must be between 0.0 and 1.0. Got: {label_smoothing:g}")
    check_scores(input)
    smoothing = max(label_smoothing, 0.0)
    output: Tensor
    if soft:
        output, *_ = SoftCrossEntropy.run(*as_batch(input, target), weight, smoothing, reduction)
    else:
        check_classes(input, target, weight)
        x, target = as_batch(input, target)
        check_dtypes(x, weight)
        floor = None
        if smoothing:
            of_all = x.new_ones(x.shape[1]) if weight is None else weight
            floor = by_class(widen(of_all), x) * (smoothing / x.shape[1])
        index, ignored, weights = classes_of(x, target, weight, ignore_index)
        output, *_ = CrossEntropy.run(x, index, ignored, weights, floor, smoothing, reduction)
    return output.reshape(()) if input.dim() == 1 else output


class NLLLoss(Operation):
    """Pick the target's log-probability; on the way back put the gradient there."""

    autocast = "float32"

    @staticmethod
    def forward(input: Tensor, index: Tensor, ignored: Tensor, weights: Tensor, reduction: str) -> Tensor:
        losses = torch.where(ignored, 0, -weights * pick(widen(input), index))
        return reduced(losses, weights.sum(), reduction).to(input.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.reduction = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        input, index, ignored, weights = ctx.saved_tensors
        g = torch.where(ignored, 0, of_each(grad, weights.sum(), ctx.reduction))
        grad_input = torch.zeros_like(input, dtype=g.dtype).scatter_(1, index, -g * weights)
        return grad_input.to(input.dtype), None, None, None, None


class WithSoftmax(Operation):
    """Keeps the numerators of softmax and their sum beside the inputs."""

    autocast = "float32"

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        *tensors, ctx.smoothing, ctx.reduction = inputs
        _, exp, total = output
        ctx.mark_non_differentiable(exp, total)
        ctx.save_for_backward(*tensors, exp, total)


class CrossEntropy(WithSoftmax):
    """Softmax and likelihood of a class: $q$ has a peak at the target, and with smoothing a floor under all classes."""

    @staticmethod
    def forward(
        input: Tensor,
        index: Tensor,
        ignored: Tensor,
        weights: Tensor,
        floor: Tensor | None,
        smoothing: float,
        reduction: str,
    ) -> tuple[Tensor, Tensor, Tensor]:
        peak, mass = peak_and_mass(weights, floor, smoothing)
        shifted = shift(widen(input))
        expected = peak * pick(shifted, index)  # the sum of q (x - m) over the classes
        if floor is not None:
            expected = expected + (floor * shifted).sum(1, keepdim=True)
        exp = shifted.exp_()
        total = exp.sum(1, keepdim=True)
        losses = torch.where(ignored, 0, mass * total.log() - expected)
        return reduced(losses, weights.sum(), reduction).to(input.dtype), exp, total

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        input, index, ignored, weights, floor, exp, total = ctx.saved_tensors
        if torch.is_grad_enabled():  # for a second derivative, they are functions of x again
            exp, total = exponentials(widen(input))
        peak, mass = peak_and_mass(weights, floor, ctx.smoothing)
        g = torch.where(ignored, 0, of_each(grad, weights.sum(), ctx.reduction))
        grad_input = exp * (g * mass / total)  # g softmax(x) ∑ q
        grad_input.scatter_add_(1, index, -g * peak)  # - g q, its peak
        if floor is not None:
            grad_input -= g * floor  # and its floor
        return grad_input.to(input.dtype), None, None, None, None, None, None


class SoftCrossEntropy(WithSoftmax):
    """Softmax and likelihood of a distribution over the classes."""

    @staticmethod
    def forward(
        input: Tensor, target: Tensor, weight: Tensor | None, smoothing: float, reduction: str
    ) -> tuple[Tensor, Tensor, Tensor]:
        q = smoothed(widen(target), smoothing)
        dtype = torch.promote_types(input.dtype, target.dtype)
        if weight is not None:
            q = q * by_class(weight, input)
            dtype = torch.promote_types(dtype, weight.dtype)
        shifted = shift(widen(input))
        expected = (q * shifted).sum(1, keepdim=True)  # the sum of q (x - m) over the classes
        exp = shifted.exp_()
        total = exp.sum(1, keepdim=True)
        losses = q.sum(1, keepdim=True) * total.log() - expected
        return reduced(losses, losses.numel(), reduction).to(dtype), exp, total

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        input, target, weight, exp, total = ctx.saved_tensors
        needs_input, needs_target, needs_weight, *_ = ctx.needs_input_grad
        x = widen(input)
        if torch.is_grad_enabled():  # for a second derivative, they are functions of x again
            exp, total = exponentials(x)
        g = of_each(grad, total.numel(), ctx.reduction)
        t = smoothed(widen(target), ctx.smoothing)
        w = None if weight is None else by_class(weight, input)
        grad_input = grad_target = grad_weight = None
        if needs_input:
            q = t if w is None else t * w
            grad_input = exp * (g * q.sum(1, keepdim=True) / total)  # g softmax(x) ∑ q
            grad_input -= g * q
            grad_input = grad_input.to(input.dtype)
        if needs_target or needs_weight:
            by_likelihood = -g * (shift(x) - total.log())  # -g log softmax(x)
            if needs_target:
                by_target = by_likelihood * (1 - ctx.smoothing)
                grad_target = (by_target if w is None else by_target * w).to(target.dtype)
            if needs_weight:
                others = [dim for dim in range(input.dim()) if dim != 1]
                grad_weight = (by_likelihood * t).sum(others).to(weight.dtype)
        return grad_input, grad_target, grad_weight, None, None


def shift(x: Tensor) -> Tensor:
    """Return $x - m$, which no exp overflows. The result does not depend on $m$: a constant for derivatives."""
    return x - x.amax(1, keepdim=True).detach()


def exponentials(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return $e^{x - m}$ and its sum over the classes, numerator and denominator of softmax."""
    exp = shift(x).exp_()
    return exp, exp.sum(1, keepdim=True)


def pick(x: Tensor, index: Tensor) -> Tensor:
    """Return the target's element of each position."""
    try:
        return x.gather(1, index)
    except RuntimeError:
        outside = index[(index < 0) | (index >= x.shape[1])]
        if not len(outside):
            raise
        raise IndexError(f"Target {outside[0]} is out of bounds.") from None


def peak_and_mass(weights: Tensor, floor: Tensor | None, smoothing: float) -> tuple[Tensor, Tensor]:
    """Return how far each target's class is above the floor, and the sum of $q$ over all classes."""
    if floor is None:
        return weights, weights
    peak = weights * (1 - smoothing)
    return peak, peak + floor.sum()


def classes_of(
    input: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return targets as an index into (N, C, *), which are ignored, and each one's weight, all (N, 1, *).

    An ignored target becomes class 0, with weight 0.
    """
    target = target.unsqueeze(1)
    ignored = target == ignore_index
    index = target.masked_fill(ignored, 0).long()
    if weight is None:
        return index, ignored, (~ignored).to(widen(input).dtype)
    by_position = by_class(widen(weight), input).expand(input.shape)
    return index, ignored, pick(by_position, index).masked_fill(ignored, 0)


def smoothed(target: Tensor, smoothing: float) -> Tensor:
    """Return target probabilities with a part of them spread evenly over all classes."""
    return (target * (1 - smoothing)).add_(smoothing / target.shape[1]) if smoothing else target


def by_class(weight: Tensor, input: Tensor) -> Tensor:
    """Return (C) as (C, *), which broadcasts against (N, C, *)."""
    return weight.view(-1, *[1] * (input.dim() - 2))


def reduced(losses: Tensor, divisor: Tensor | int, reduction: str) -> Tensor:
    """Return the losses (N, 1, *) of all positions as they are asked for."""
    if reduction == "none":
        return losses.squeeze(1).clone()  # what follows may work in place, but not on a view made here
    total = losses.sum()
    return total / divisor if reduction == "mean" else total


def of_each(grad: Tensor, divisor: Tensor | int, reduction: str) -> Tensor:
    """Return the gradient by the loss of each position: the way back through `reduced`."""
    grad = widen(grad)
    if reduction == "none":
        return grad.unsqueeze(1)
    return grad / divisor if reduction == "mean" else grad


def as_batch(input: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return a single sample and its target as a batch, and a batch as it is."""
    if input.dim() > 1:
        return input, target
    return input.unsqueeze(0), target.unsqueeze(0) if target.is_floating_point() else target.reshape(1)


def reduction_of(size_average: bool | None, reduce: bool | None, reduction: str) -> str:
    """Return `reduction`, unless one of the two that it replaced is given. To be called by what the user calls."""
    if size_average is None and reduce is None:
        return reduction
    if reduce is not None and not reduce:
        reduction = "none"
    else:
        reduction = "mean" if size_average is None or size_average else "sum"
    message = f"size_average and reduce args will be deprecated, please use reduction='{reduction}' instead."
    warnings.warn(message, stacklevel=3)
    return reduction


def checked_reduction(reduction: str) -> str:
    """Return a reduction that there is, or raise."""
    if reduction == "elementwise_mean":
        warnings.warn("reduction='elementwise_mean' is deprecated. Please use reduction='mean' instead.", stacklevel=3)
        return "mean"
    if reduction not in ("none", "mean", "sum"):
        raise ValueError(f"{reduction} is not a valid value for reduction")
    return reduction


def check_probabilities(input: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int) -> None:
    """Raise torch's error for what does not go with target probabilities."""
    if not target.is_floating_point():
        kind = scalar_type(target)
        raise RuntimeError(f"Expected floating point type for target with class probabilities, got {kind}")
    if ignore_index >= 0:
        raise RuntimeError("ignore_index is not supported for floating point target")
    classes = input.shape[0] if input.dim() == 1 else input.shape[1]
    if weight is not None and weight.shape != (classes,):
        raise RuntimeError(
            f"cross_entropy: weight tensor should be defined either for all {classes} classes or no classes "
            f"but got weight tensor of shape: {list(weight.shape)}"
        )


def check_scores(input: Tensor) -> None:
    """Raise torch's error for what has no softmax."""
    if not input.is_floating_point():
        kernel = "log_softmax_lastdim_kernel_impl" if input.dim() < 3 else "log_softmax_kernel_impl"
        raise NotImplementedError(f"\"{kernel}\" not implemented for '{scalar_type(input)}'")


def check_classes(input: Tensor, target: Tensor, weight: Tensor | None) -> None:
    """Raise torch's error for shapes that do not fit, and for targets of a dtype that is no class."""
    if input.dim() < 1:
        raise ValueError(f"Expected 1 or more dimensions (got {input.dim()})")
    samples = target.shape[0] if target.dim() else 0
    if input.dim() > 1 and input.shape[0] != samples:
        raise ValueError(f"Expected input batch_size ({input.shape[0]}) to match target batch_size ({samples}).")
    places = [*input.shape[:1], *input.shape[2:]]
    if input.dim() not in (1, 2, 4) and list(target.shape) != places:
        raise RuntimeError(f"Expected target size {places}, got {list(target.shape)}")
    if weight is not None and weight.requires_grad and torch.is_grad_enabled():
        raise RuntimeError(
            f"The function 'nll_loss{'2d' if input.dim() > 2 else ''}_forward' is not differentiable with respect to "
            "argument 'weight'. This input cannot have requires_grad True."
        )
    if input.dim() < 3 and target.dim() > 1:
        raise RuntimeError("0D or 1D target tensor expected, multi-target not supported")
    if input.dim() == 1 and target.dim() and samples != 1:
        raise ValueError(f"For 1D input, 1D target must have size 1, but got target size: {samples}")
    if input.dim() == 4 and target.dim() != 3:
        raise RuntimeError(
            f"only batches of spatial targets supported (3D tensors) but got targets of dimension: {target.dim()}"
        )
    if target.dtype not in (torch.int64, torch.uint8):
        raise RuntimeError(f"expected target dtype to be Long or Byte, but got {scalar_type(target)}")
    classes = input.shape[0] if input.dim() == 1 else input.shape[1]
    if weight is not None and weight.shape != (classes,):
        if input.dim() > 2:
            raise RuntimeError("weight tensor should be defined either for all or no classes")
        raise RuntimeError(
            f"weight tensor should be defined either for all {classes} classes or no classes "
            f"but got weight tensor of shape: {list(weight.shape)}"
        )
    if input.dim() == 4 and list(target.shape) != places:
        raise RuntimeError(f"size mismatch (got input: {list(input.shape)} , target: {list(target.shape)}")
    if input.dim() > 2 and target.dtype != torch.int64:
        raise RuntimeError(f"expected scalar type Long but found {scalar_type(target)}")


def check_dtypes(input: Tensor, weight: Tensor | None) -> None:
    """Raise torch's error for what is no floating-point number, or not the same."""
    if not input.is_floating_point():
        kernel = "nll_loss_out_frame" if input.dim() < 3 else "nll_loss2d_forward_out_frame"
        raise NotImplementedError(f"\"{kernel}\" not implemented for '{scalar_type(input)}'")
    device = input.device.type
    cast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    if weight is not None and weight.dtype != input.dtype and not cast:
        raise RuntimeError(f"expected scalar type {scalar_type(input)} but found {scalar_type(weight)}")
