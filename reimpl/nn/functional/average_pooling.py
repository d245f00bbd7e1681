"""Average pooling from first principles, over sliding windows or as many as are asked for."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from reimpl.nn.functional.operation import Operation, widen
from reimpl.nn.functional.padding import Widths, surround
from reimpl.nn.functional.pooling import Sliding, adaptive_windows
from reimpl.nn.functional.pooling_arguments import OutputSize, check_dtype, output_sizes, sliding_windows
from reimpl.nn.functional.windows import Size, add_windows, windows


def avg_pool1d(
    input: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Tensor:
    r"""Return the mean of each window that slides over a signal.

    $$y_o = \frac{1}{n_o} \sum_{0 \le k < K} \bar x_{o s + k}
      \qquad \bar x_i = \begin{cases} x_{i - p} & 0 \le i - p < L \\ 0 & \text{else} \end{cases}$$

    where $n_o$ counts the elements of the window that are inside the input or its padding, $K$ except for a window
    that hangs over with `ceil_mode`; without `count_include_pad`, those inside the input. In `avg_pool2d` and
    `avg_pool3d`, $o$, $k$ and $i$ are pairs and triples of indices, and $n_o$ is the product over the dimensions.

    Backward, with $g = \partial L / \partial y$: each input collects from all windows that it is in

    $$\frac{\partial L}{\partial \bar x_i} = \sum_{o:\ 0 \le i - o s < K} \frac{g_o}{n_o}$$

    of which the padding's part is cut off.

    Args:
        input: $x$ of shape (batch, planes, $L$), or without the batch.
        kernel_size: $K$, inputs that a window sees.
        stride: $s$, from a window to the next, $K$ unless given.
        padding: $p$ zeros at both ends, at most half of $K$.
        ceil_mode: whether there is one more window if the last ends before the input does. It must begin inside the
            input or the padding before it.
        count_include_pad: whether the padding counts.

    Returns:
        $y$ of shape (batch, planes, windows). Of integers, the mean without its fraction.

    Raises:
        RuntimeError: if the numbers make no sense, or no window fits.
        NotImplementedError: if the dtype is neither a floating-point one nor int64.

    Differs from torch: `avg_pool3d` takes float16 and bfloat16 on the CPU too, and under autocast there computes in
    float32 but returns the input's dtype.

    Costs: a pass over all windows, $(K / s)^n$ times the input in $n$ dimensions, in forward and backward. So has
    torch, but each of its passes keeps a window's sum in a register.

    Source: `aten/src/ATen/native/cpu/AvgPoolKernel.cpp`.
    """
    return slide("avg_pool1d", input, kernel_size, stride, padding, ceil_mode, count_include_pad, None)


def avg_pool2d(
    input: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """Return the mean of each window that slides over an image.

    `avg_pool1d` has the formulas, with pairs or triples for its indices.

    Args:
        input: of shape (batch, planes, height, width), or without the batch.
        kernel_size: inputs that a window sees, one number for both dimensions or one for each, as in the next two.
        stride: from a window to the next, `kernel_size` unless given.
        padding: zeros before and after, at most half of `kernel_size`.
        ceil_mode: whether the last windows may exceed the padding.
        count_include_pad: whether the padding counts.
        divisor_override: what each sum is divided by, however many elements its window has; 1 for the sums.

    Returns:
        The means, of shape (batch, planes, *windows).

    Raises:
        RuntimeError: if the numbers make no sense, the divisor is 0, or no window fits.
        NotImplementedError: if the dtype is neither a floating-point one nor int64.

    Differs from torch: where `avg_pool1d` does.

    Costs: what `avg_pool1d` costs.

    Source: `aten/src/ATen/native/cpu/AvgPoolKernel.cpp`.
    """
    return slide("avg_pool2d", input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)


def avg_pool3d(
    input: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """Return the mean of each window that slides over a volume.

    `avg_pool1d` has the formulas, with pairs or triples for its indices.

    Args:
        input: of shape (batch, planes, depth, height, width), or without the batch.
        kernel_size: inputs that a window sees, one number for all dimensions or one for each, as in the next two.
        stride: from a window to the next, `kernel_size` unless given.
        padding: zeros before and after, at most half of `kernel_size`.
        ceil_mode: whether the last windows may exceed the padding.
        count_include_pad: whether the padding counts.
        divisor_override: what each sum is divided by, however many elements its window has; 1 for the sums.

    Returns:
        The means, of shape (batch, planes, *windows).

    Raises:
        RuntimeError: if the numbers make no sense, the divisor is 0, or no window fits.
        NotImplementedError: if the dtype is neither a floating-point one nor int64.

    Differs from torch: where `avg_pool1d` does.

    Costs: what `avg_pool1d` costs.

    Source: `aten/src/ATen/native/cpu/AvgPoolKernel.cpp`.
    """
    return slide("avg_pool3d", input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)


def slide(
    name: str,
    input: Tensor,
    kernel_size: Size,
    stride: Size | None,
    padding: Size,
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> Tensor:
    """Return the means for the arguments of the function of that name."""
    if divisor_override == 0:
        raise RuntimeError("divisor must be not zero")
    lattice = sliding_windows(name, input, kernel_size, stride, padding, 1, ceil_mode)
    check_dtype("avg_pool3d_out_frame" if len(lattice) == 3 else "avg_pool2d", input, torch.int64)
    output: Tensor = AvgPool.run(input, lattice, count_include_pad, divisor_override)
    return output


def adaptive_avg_pool1d(input: Tensor, output_size: OutputSize) -> Tensor:
    r"""Return the means of as many windows as are asked for, that together cover a signal.

    $$y_o = \frac{1}{n_o} \sum_{i \in W_o} x_i \qquad
      W_o = \{\lfloor o L / n \rfloor, \dots, \lceil (o + 1) L / n \rceil - 1\} \qquad 0 \le o < n$$

    with $n_o = \lvert W_o \rvert$. In `adaptive_avg_pool2d` and `adaptive_avg_pool3d` a window is a rectangle or a
    box: its mean is the mean over its columns of the means of each, so one dimension is averaged after another.

    Backward, with $g = \partial L / \partial y$, one dimension after another too:

    $$\frac{\partial L}{\partial x_i} = \sum_{o:\ i \in W_o} \frac{g_o}{n_o}$$

    Args:
        input: $x$ of shape (batch, planes, $L$), or without the batch.
        output_size: $n$.

    Returns:
        $y$ of shape (batch, planes, $n$).

    Raises:
        RuntimeError: if a size does not fit.
        NotImplementedError: if the dtype is not a floating-point one.

    Differs from torch: $n = 0$ is refused, which torch refuses in backward. Under autocast on the CPU torch's
    `adaptive_avg_pool3d` returns float32, here it only computes in it.

    Costs: a pass over the input for each dimension, a window at a time.

    Source: `aten/src/ATen/native/cpu/AdaptiveAvgPoolKernel.cpp`.
    """
    return cover("adaptive_avg_pool1d", input, output_size)


def adaptive_avg_pool2d(input: Tensor, output_size: OutputSize) -> Tensor:
    """Return the means of as many windows as are asked for, that together cover an image.

    `adaptive_avg_pool1d` has the formulas.

    Args:
        input: of shape (batch, planes, height, width), or without the batch.
        output_size: how many windows, one number for both dimensions or one for each; None for as many as there are
            elements.

    Returns:
        The means, of shape (batch, planes, *windows).

    Raises:
        RuntimeError: if a size does not fit.
        NotImplementedError: if the dtype is not a floating-point one.

    Differs from torch: where `adaptive_avg_pool1d` does.

    Costs: what `adaptive_avg_pool1d` costs.

    Source: `aten/src/ATen/native/cpu/AdaptiveAvgPoolKernel.cpp`.
    """
    return cover("adaptive_avg_pool2d", input, output_size)


def adaptive_avg_pool3d(input: Tensor, output_size: OutputSize) -> Tensor:
    """Return the means of as many windows as are asked for, that together cover a volume.

    `adaptive_avg_pool1d` has the formulas.

    Args:
        input: of shape (batch, planes, depth, height, width), or without the batch.
        output_size: how many windows, one number for all dimensions or one for each; None for as many as there are
            elements.

    Returns:
        The means, of shape (batch, planes, *windows).

    Raises:
        RuntimeError: if a size does not fit.
        NotImplementedError: if the dtype is not a floating-point one.

    Differs from torch: where `adaptive_avg_pool1d` does.

    Costs: what `adaptive_avg_pool1d` costs.

    Source: `aten/src/ATen/native/cpu/AdaptiveAvgPoolKernel.cpp`.
    """
    return cover("adaptive_avg_pool3d", input, output_size)


def cover(name: str, input: Tensor, output_size: OutputSize) -> Tensor:
    """Return the means for the arguments of the adaptive function of that name."""
    counts = output_sizes(name, input, output_size)
    check_dtype("adaptive_avg_pool3d_cpu" if len(counts) == 3 else "adaptive_avg_pool2d", input)
    output: Tensor = AdaptiveAvgPool.run(input, counts)
    return output


class AvgPool(Operation):
    """A sum over each window, divided; back, each window's share added to every element that it saw."""

    @staticmethod
    def forward(
        input: Tensor, lattice: tuple[Sliding, ...], count_include_pad: bool, divisor_override: int | None
    ) -> Tensor:
        kernel_size, stride, _, dilation, _, _ = zip(*lattice, strict=True)
        padded = surround(widen(input), widths(lattice), 0)
        sums = windows(padded, kernel_size, stride, dilation).sum(tuple(range(-len(lattice), 0)))
        divisor = divisor_override or window_sizes(lattice, count_include_pad, input.device)
        rounding = None if input.is_floating_point() else "trunc"
        return sums.div_(divisor, rounding_mode=rounding).to(input.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, tuple[Sliding, ...], bool, int | None], output: Tensor) -> None:
        _, ctx.lattice, ctx.count_include_pad, ctx.divisor_override = inputs

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        kernel_size, stride, padding, dilation, sizes, _ = zip(*ctx.lattice, strict=True)
        divisor = ctx.divisor_override or window_sizes(ctx.lattice, ctx.count_include_pad, grad.device)
        share = widen(grad) / divisor
        shares = share[(..., *[None] * len(sizes))].expand(*share.shape, *kernel_size)
        around = widths(ctx.lattice)
        padded = [
            before + size + window.overhang for before, size, window in zip(padding, sizes, ctx.lattice, strict=True)
        ]
        total = add_windows(shares, padded, kernel_size, stride, dilation)
        return surround(total, tuple(-width for width in around), 0).to(grad.dtype), None, None, None


class AdaptiveAvgPool(Operation):
    """A mean over each window, one dimension after another, and back the same way."""

    @staticmethod
    def forward(input: Tensor, counts: tuple[int, ...]) -> Tensor:
        values = widen(input)
        for dim in range(-len(counts), 0):
            windows = adaptive_windows(values.shape[dim], counts[dim])
            values = torch.stack([values.narrow(dim, *window).mean(dim) for window in windows], dim)
        return values.to(input.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, tuple[int, ...]], output: Tensor) -> None:
        input, counts = inputs
        ctx.sizes = input.shape[-len(counts) :]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        wide = widen(grad)
        for dim in range(-len(ctx.sizes), 0):
            wide = spread_along(dim, wide, ctx.sizes[dim])
        return wide.to(grad.dtype), None


def spread_along(dim: int, means: Tensor, size: int) -> Tensor:
    """Return for each element of one dimension what it has been given by the windows that it was in."""
    shape = list(means.shape)
    shape[dim] = size
    total = means.new_zeros(shape)
    for i, (start, length) in enumerate(adaptive_windows(size, means.shape[dim])):
        total.narrow(dim, start, length).add_(means.narrow(dim, i, 1) / length)
    return total


def widths(lattice: tuple[Sliding, ...]) -> Widths:
    """Return what is added before and after each dimension, the last one first, for all windows to be inside."""
    return tuple(width for windows in reversed(lattice) for width in (windows.padding, windows.overhang))


def window_sizes(lattice: tuple[Sliding, ...], count_include_pad: bool, device: torch.device) -> Tensor:
    """Return how many elements of each window count."""
    sizes = torch.ones((), dtype=torch.int64, device=device)
    for kernel_size, stride, padding, _, size, outputs in lattice:
        first = torch.arange(outputs, device=device) * stride - padding
        last = (first + kernel_size).clamp(max=size + padding)
        if not count_include_pad:
            first, last = first.clamp(min=0), last.clamp(max=size)
        sizes = sizes[..., None] * (last - first)
    return sizes
