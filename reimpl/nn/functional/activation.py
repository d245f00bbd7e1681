"""Activations from first principles: element by element, and along a dimension."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from reimpl.nn.functional.operation import Operation, refuse_leaf, scalar_type, widen


def sigmoid(input: Tensor) -> Tensor:
    r"""Return $y = \sigma(x) = \dfrac{1}{1 + e^{-x}}$, element by element.

    Backward, with $g = \partial L / \partial y$: from $\sigma' = \dfrac{e^{-x}}{(1 + e^{-x})^2} = \sigma (1 - \sigma)$,

    $$\frac{\partial L}{\partial x} = g\, y\, (1 - y)$$

    Args:
        input: $x$ of any shape; integers are taken as numbers of the default dtype. Complex as well.

    Returns:
        $y$ of the same shape, between 0 and 1. Where $e^{-x}$ overflows, $y$ is $1/\infty = 0$, and nothing is NaN.

    Differs from torch: nothing.

    Costs: four passes over memory forward and two back, torch's one each. `exp` alone may take longer on a CPU than
    torch's whole kernel, which has a vectorised one of its own.

    Source: `aten/src/ATen/native/cpu/UnaryOpsKernel.cpp`.
    """
    output: Tensor = Sigmoid.run(floating(input))
    return output


class Sigmoid(Operation):
    """The derivative needs the output alone, so the input is not kept."""

    @staticmethod
    def forward(input: Tensor) -> Tensor:
        return widen(input).neg().exp_().add_(1).reciprocal_().to(input.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        output = widen(ctx.saved_tensors[0]).conj()
        scaled = widen(grad) * output
        return torch.addcmul(scaled, scaled, output, value=-1).to(grad.dtype)  # g y - g y y


def tanh(input: Tensor) -> Tensor:
    r"""Return $y = \tanh x = \dfrac{e^x - e^{-x}}{e^x + e^{-x}}$, element by element.

    With $e^x$ above and below the line, and $u = e^{2x} - 1$:

    $$y = \frac{e^{2x} - 1}{e^{2x} + 1} = \frac{u}{u + 2}$$

    A small $x$ makes $e^{2x}$ nearly 1, and the subtraction would lose the digits of $x$: `expm1` returns $u$ with all
    of them. A negative $x$ makes $u$ nearly $-1$, and its rounding counts twice: so this is computed of $|x|$, and
    gets its sign at the end. A large $|x|$ would make $\infty / \infty$: from $2|x| = 40$ on, $y$ rounds to 1 even in
    float64.

    Backward, with $g = \partial L / \partial y$: by the quotient rule on $\sinh / \cosh$,
    $\tanh' = (\cosh^2 - \sinh^2) / \cosh^2 = 1 - \tanh^2$, so that

    $$\frac{\partial L}{\partial x} = g\, (1 - y^2)$$

    Args:
        input: $x$ of any shape, real; integers are taken as numbers of the default dtype.

    Returns:
        $y$ of the same shape, between -1 and 1.

    Raises:
        NotImplementedError: if the input is complex.

    Differs from torch: no complex input.

    Costs: seven passes over memory forward and three back, torch's one each.

    Source: `aten/src/ATen/native/cpu/UnaryOpsKernel.cpp`.
    """
    if input.is_complex():
        raise NotImplementedError(f"tanh from first principles is not written for {input.dtype}")
    output: Tensor = Tanh.run(floating(input))
    return output


class Tanh(Operation):
    """The derivative needs the output alone, so the input is not kept."""

    @staticmethod
    def forward(input: Tensor) -> Tensor:
        u = widen(input).abs().mul_(2).clamp_max_(40).expm1_()
        return u.div_(u + 2).copysign_(input).to(input.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        output = widen(ctx.saved_tensors[0])
        return (widen(grad) * (1 - output * output)).to(grad.dtype)


def floating(input: Tensor) -> Tensor:
    """Return integers as numbers of the default dtype, and everything else as it is."""
    return input if input.is_floating_point() or input.is_complex() else input.to(torch.get_default_dtype())


def relu(input: Tensor, inplace: bool = False) -> Tensor:
    r"""Return $y = \max(x, 0)$, element by element.

    Backward, with $g = \partial L / \partial y$: $y$ follows $x$ where it is positive and stands still elsewhere,

    $$\frac{\partial L}{\partial x} = \begin{cases} g & x > 0 \\ 0 & x \le 0 \end{cases}$$

    At 0, where there is no derivative, this takes that of the left side.

    Args:
        input: $x$ of any shape, real.
        inplace: whether $y$ takes the place of $x$.

    Returns:
        $y$ of the same shape and dtype; NaN where $x$ is NaN, and there the gradient passes.

    Raises:
        RuntimeError: if the input is boolean, or a leaf that requires a gradient is to be overwritten.
        NotImplementedError: if the input is complex.

    Differs from torch: in place, not under `vmap`.

    Costs: one pass over memory forward and three back, torch's one each.

    Source: Nair and Hinton, Rectified Linear Units Improve Restricted Boltzmann Machines, 2010;
    `aten/src/ATen/native/Activation.cpp`.
    """
    if input.dtype == torch.bool:
        raise RuntimeError("Boolean inputs not supported for relu")
    if inplace:
        refuse_leaf(input)
    output: Tensor = ReLU.run(input, inplace)
    return output


def relu_(input: Tensor) -> Tensor:
    """Return `relu(input, inplace=True)`.

    Args:
        input: of any shape, overwritten.

    Returns:
        The input.

    Differs from torch: not under `vmap`.

    Source: `torch/nn/functional.py`.
    """
    return relu(input, inplace=True)


class ReLU(Operation):
    """Keeps the output, which knows as well as the input where it was positive, and survives in place."""

    @staticmethod
    def forward(input: Tensor, inplace: bool) -> Tensor:
        if not inplace:
            return input.clamp_min(0)
        input.clamp_min_(0)
        return input

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, bool], output: Tensor) -> None:
        if inputs[1]:
            ctx.mark_dirty(inputs[0])
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (output,) = ctx.saved_tensors
        return where_nonzero(output, grad), None


def where_nonzero(output: Tensor, grad: Tensor) -> Tensor:
    r"""Return `torch.where(output != 0, grad, 0)`, without its branch at every element.

    The processor guesses that branch wrong half of the time if the signs are random, which takes ten times as long as
    the rest of a ReLU. A product with 0 or 1 has no branch, but would make NaN of a gradient $\infty$, as there is
    behind $\sqrt{y}$ at 0; so it is the gradient's bits, read as an integer, that are multiplied.
    """
    if torch.is_grad_enabled():  # bits have no derivative
        return torch.where(output != 0, grad, 0)
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[grad.element_size()]
    return output.bool().to(integer).mul_(grad.view(integer)).view(grad.dtype)


def softmax(input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: torch.dtype | None = None) -> Tensor:
    r"""Return $y_i = \dfrac{e^{x_i}}{\sum_j e^{x_j}}$ along a dimension.

    A constant added to every $x_j$ cancels. With $m = \max_j x_j$ subtracted, no exponential overflows and the largest
    is 1:

    $$y_i = \frac{e^{x_i - m}}{\sum_j e^{x_j - m}}$$

    Backward, with $g = \partial L / \partial y$: from
    $\partial y_i / \partial x_k = y_i (\delta_{ik} - y_k)$, where $\delta_{ik}$ is 1 if $i = k$, else 0,

    $$\frac{\partial L}{\partial x_k} = \sum_i g_i\, y_i (\delta_{ik} - y_k) = y_k \Big(g_k - \sum_i g_i y_i\Big)$$

    Args:
        input: $x$ of any shape, real and floating-point.
        dim: along which $y$ sums to 1. Without it, 1 for an input of 2, 4 or more dimensions, else 0, with a warning.
        _stacklevel: whose line the warning shows.
        dtype: to which the input is converted first.

    Returns:
        $y$ of the same shape. NaN along a dimension that is $-\infty$ throughout, $0/0$, or has $\infty$ or NaN.

    Raises:
        IndexError: if there is no such dimension.
        NotImplementedError: if the input is integer, boolean or complex, and `dtype` is not given.

    Differs from torch: nothing.

    Costs: five passes over memory forward and four back; torch's run while a row is in the cache.

    Source: `aten/src/ATen/native/SoftMax.cpp`, `torch/nn/functional.py`.
    """
    if dim is None:
        dim = implicit_dim("softmax", input.dim(), _stacklevel)
    output: Tensor = Softmax.run(checked("softmax", input, dim, dtype), dim)
    return output


class Softmax(Operation):
    """The derivative needs the output alone, so the input is not kept."""

    @staticmethod
    def forward(input: Tensor, dim: int) -> Tensor:
        output = minus_largest(input, dim).exp_()
        return output.div_(output.sum(dim, keepdim=True)).to(input.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int], output: Tensor) -> None:
        ctx.save_for_backward(output)
        ctx.dim = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        wide, output = widen(grad), widen(ctx.saved_tensors[0])
        mean = (wide * output).sum(ctx.dim, keepdim=True)
        return ((wide - mean) * output).to(grad.dtype), None


def log_softmax(
    input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: torch.dtype | None = None
) -> Tensor:
    r"""Return $y_i = \ln \dfrac{e^{x_i}}{\sum_j e^{x_j}}$ along a dimension.

    The logarithm of a softmax would be $-\infty$ where the softmax underflows, from about 104 below the largest $x$ in
    float32. With $m = \max_j x_j$, the quotient's logarithm is instead a difference, and the sum is at least 1:

    $$y_i = (x_i - m) - \ln \sum_j e^{x_j - m}$$

    Backward, with $g = \partial L / \partial y$: from
    $\partial y_i / \partial x_k = \delta_{ik} - e^{y_k}$, where $\delta_{ik}$ is 1 if $i = k$, else 0,

    $$\frac{\partial L}{\partial x_k} = g_k - e^{y_k} \sum_i g_i$$

    Args:
        input: $x$ of any shape, real and floating-point.
        dim: along which $e^y$ sums to 1. Without it, 1 for an input of 2, 4 or more dimensions, else 0, with a warning.
        _stacklevel: whose line the warning shows.
        dtype: to which the input is converted first.

    Returns:
        $y$ of the same shape. NaN along a dimension that is $-\infty$ throughout, or has $\infty$ or NaN.

    Raises:
        IndexError: if there is no such dimension.
        NotImplementedError: if the input is integer, boolean or complex, and `dtype` is not given.

    Differs from torch: nothing.

    Costs: six passes over memory forward and two back; torch's run while a row is in the cache. A second tensor, the
    probabilities, is kept for the backward; torch computes them anew.

    Source: `aten/src/ATen/native/SoftMax.cpp`, `torch/nn/functional.py`.
    """
    if dim is None:
        dim = implicit_dim("log_softmax", input.dim(), _stacklevel)
    output: Tensor
    output, _ = LogSoftmax.run(checked("log_softmax", input, dim, dtype), dim)
    return output


class LogSoftmax(Operation):
    """Keeps the probabilities beside the output: a tensor more, for an exponential less on the way back."""

    @staticmethod
    def forward(input: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        output = minus_largest(input, dim)
        probability = output.exp()
        total = probability.sum(dim, keepdim=True)
        probability.div_(total)
        # m is not added to the logarithm: beside 1e4 its digits would be lost.
        return output.sub_(total.log_()).to(input.dtype), probability

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int], output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)  # or the probabilities' gradient would be a tensor of zeros
        ctx.save_for_backward(*output)
        ctx.dim = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, None]:
        if grad is None:
            return None, None
        output, probability = ctx.saved_tensors
        if torch.is_grad_enabled():
            probability = widen(output).exp()  # to be differentiated in its turn
        wide = widen(grad)
        total = wide.sum(ctx.dim, keepdim=True)
        return torch.addcmul(wide, probability, total, value=-1).to(grad.dtype), None


def minus_largest(input: Tensor, dim: int) -> Tensor:
    """Return the input less its largest value along a dimension, as a tensor of its own."""
    wide = widen(input)
    # There is no largest of nothing; a sum has the right shape.
    largest = wide.amax(dim, keepdim=True) if wide.numel() else wide.sum(dim, keepdim=True)
    return wide - largest


def implicit_dim(name: str, ndim: int, stacklevel: int) -> int:
    """Warn, and return the dimension that torch chose for images before `dim` was an argument."""
    warnings.warn(
        f"Implicit dimension choice for {name} has been deprecated. Change the call to include dim=X as an argument.",
        stacklevel=stacklevel,
    )
    return 0 if ndim in (0, 1, 3) else 1


def checked(name: str, input: Tensor, dim: int, dtype: torch.dtype | None) -> Tensor:
    """Return the input in the dtype of the result, or refuse it as torch does."""
    if not hasattr(dim, "__index__"):
        raise TypeError(f"{name}(): argument 'dim' (position 1) must be int, not {type(dim).__name__}")
    if dtype is None and input.is_cuda and torch.is_autocast_enabled("cuda") and input.dtype != torch.float64:
        dtype = torch.float32
    input = input if dtype is None else input.to(dtype)
    if not input.is_floating_point():
        kernel = "lastdim_kernel_impl" if dim in (-1, input.dim() - 1) else "kernel_impl"
        raise NotImplementedError(f"\"{name}_{kernel}\" not implemented for '{scalar_type(input)}'")
    return input
