"""Max pooling from first principles, over a lattice of windows or as many as are asked for."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from reimpl.nn.functional.operation import Operation, widen
from reimpl.nn.functional.padding import surround
from reimpl.nn.functional.pooling import Sliding, adaptive_windows
from reimpl.nn.functional.pooling_arguments import (
    OutputSize,
    check_dtype,
    check_max_pool1d,
    output_sizes,
    sliding_windows,
)
from reimpl.nn.functional.windows import Size

T = TypeVar("T")

INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def max_pool1d(
    input: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    r"""Return the maximum of each window that slides over a signal.

    $$y_o = \max_{0 \le k < K} x_{o s - p + k d}$$

    where what lies outside of the input does not take part. In `max_pool2d` and `max_pool3d`, $o$ and $k$ are pairs
    and triples of indices.

    Backward, with $g = \partial L / \partial y$ and $j(o)$ the position of the maximum of window $o$: $y_o$ is a copy
    of $x_{j(o)}$, so each input sums the gradients of the windows that it is the maximum of,

    $$\frac{\partial L}{\partial x_i} = \sum_{o:\ j(o) = i} g_o$$

    Among equal maxima $j(o)$ is the first, in the order of the memory. A NaN counts as greater than everything,
    another NaN before it too: $j(o)$ is the last of them. Of a window of $-\infty$ it is the first.

    Args:
        input: $x$ of shape (batch, planes, length), or without the batch.
        kernel_size: $K$, inputs that a window sees.
        stride: $s$, from a window to the next, $K$ unless given.
        padding: $p$, by how much the first window begins before the input, and the last may end behind it. At most
            half of $K$.
        dilation: $d$, from one input of a window to the next.
        ceil_mode: whether there is one more window if the last ends before the input does. It must begin inside the
            input or the padding before it.
        return_indices: whether to return the indices too.

    Returns:
        $y$ of shape (batch, planes, windows), and with `return_indices` the $j$, counted within a plane without its
        padding, of dtype int64.

    Raises:
        RuntimeError: if the numbers make no sense, or no window fits.
        NotImplementedError: if the dtype is boolean or complex. Without indices, `max_pool1d` takes no integers.

    Differs from torch: over an input shorter than its dilation, a window may see nothing but padding. torch returns
    $-\infty$ and an index outside of the plane, and its backward on the CPU writes there; here it is refused. Of a
    window of $-\infty$ in a channels_last volume, torch names an element of the first slice. Under autocast on the
    CPU torch's `max_pool3d` returns float32, here the input's dtype: a maximum is exact.

    Costs: for each dimension, one pass over all its windows ($K / s$ times the values) for the maxima and two for NaN,
    and indices of 8 bytes; torch compares all taps of a window in one. The input is not kept for backward.

    Source: `aten/src/ATen/native/cpu/MaxPoolKernel.cpp`.
    """
    if not return_indices:
        check_max_pool1d(input, kernel_size, stride, padding, dilation, ceil_mode)
        check_dtype("max_pool1d_impl", input)
    found = max_pool1d_with_indices(input, kernel_size, stride, padding, dilation, ceil_mode)
    return found if return_indices else found[0]


def max_pool2d(
    input: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Return the maximum of each window that slides over an image.

    `max_pool1d` has the formulas, with pairs or triples for its indices, and what holds for ties and NaN.

    Args:
        input: of shape (batch, planes, height, width), or without the batch.
        kernel_size: inputs that a window sees, one number for both dimensions or one for each, as in the next three.
        stride: from a window to the next, `kernel_size` unless given.
        padding: by how much windows may exceed the input, at most half of `kernel_size`.
        dilation: from one input of a window to the next.
        ceil_mode: whether the last windows may exceed the padding.
        return_indices: whether to return the indices too.

    Returns:
        The maxima, of shape (batch, planes, *windows), and with `return_indices` the index of each in its plane,
        row · width + column, an int64.

    Raises:
        RuntimeError: if the numbers make no sense, or no window fits.
        NotImplementedError: if the dtype is boolean or complex.

    Differs from torch: where `max_pool1d` does.

    Costs: what `max_pool1d` costs.

    Source: `aten/src/ATen/native/cpu/MaxPoolKernel.cpp`.
    """
    found = max_pool2d_with_indices(input, kernel_size, stride, padding, dilation, ceil_mode)
    return found if return_indices else found[0]


def max_pool3d(
    input: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Return the maximum of each window that slides over a volume.

    `max_pool1d` has the formulas, with pairs or triples for its indices, and what holds for ties and NaN.

    Args:
        input: of shape (batch, planes, depth, height, width), or without the batch.
        kernel_size: inputs that a window sees, one number for all dimensions or one for each, as in the next three.
        stride: from a window to the next, `kernel_size` unless given.
        padding: by how much windows may exceed the input, at most half of `kernel_size`.
        dilation: from one input of a window to the next.
        ceil_mode: whether the last windows may exceed the padding.
        return_indices: whether to return the indices too.

    Returns:
        The maxima, of shape (batch, planes, *windows), and with `return_indices` the index of each in its plane,
        (slice · height + row) · width + column, an int64.

    Raises:
        RuntimeError: if the numbers make no sense, or no window fits.
        NotImplementedError: if the dtype is boolean or complex.

    Differs from torch: where `max_pool1d` does.

    Costs: what `max_pool1d` costs.

    Source: `aten/src/ATen/native/cpu/MaxPoolKernel.cpp`.
    """
    found = max_pool3d_with_indices(input, kernel_size, stride, padding, dilation, ceil_mode)
    return found if return_indices else found[0]


def max_pool1d_with_indices(
    input: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,  # noqa: ARG001
) -> tuple[Tensor, Tensor]:
    """Return the maxima of windows that slide over a signal, and their indices.

    It is `max_pool1d` with `return_indices`.

    Args:
        input: of shape (batch, planes, length), or without the batch.
        kernel_size: inputs that a window sees.
        stride: from a window to the next, `kernel_size` unless given.
        padding: by how much windows may exceed the input, at most half of `kernel_size`.
        dilation: from one input of a window to the next.
        ceil_mode: whether the last windows may exceed the padding.
        return_indices: not looked at.

    Returns:
        The maxima, of shape (batch, planes, *windows), and the index of each in its plane, position.

    Raises:
        RuntimeError: if the numbers make no sense, or no window fits.
        NotImplementedError: if the dtype is boolean or complex.

    Differs from torch: where `max_pool1d` does.

    Costs: what `max_pool1d` costs.

    Source: `torch/nn/functional.py`.
    """
    return slide("max_pool1d", input, kernel_size, stride, padding, dilation, ceil_mode)


def max_pool2d_with_indices(
    input: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,  # noqa: ARG001
) -> tuple[Tensor, Tensor]:
    """Return the maxima of windows that slide over an image, and their indices.

    It is `max_pool2d` with `return_indices`.

    Args:
        input: of shape (batch, planes, height, width), or without the batch.
        kernel_size: inputs that a window sees, one number for both dimensions or one for each, as in the next three.
        stride: from a window to the next, `kernel_size` unless given.
        padding: by how much windows may exceed the input, at most half of `kernel_size`.
        dilation: from one input of a window to the next.
        ceil_mode: whether the last windows may exceed the padding.
        return_indices: not looked at.

    Returns:
        The maxima, of shape (batch, planes, *windows), and the index of each in its plane, row · width + column.

    Raises:
        RuntimeError: if the numbers make no sense, or no window fits.
        NotImplementedError: if the dtype is boolean or complex.

    Differs from torch: where `max_pool1d` does.

    Costs: what `max_pool1d` costs.

    Source: `torch/nn/functional.py`.
    """
    return slide("max_pool2d", input, kernel_size, stride, padding, dilation, ceil_mode)


def max_pool3d_with_indices(
    input: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,  # noqa: ARG001
) -> tuple[Tensor, Tensor]:
    """Return the maxima of windows that slide over a volume, and their indices.

    It is `max_pool3d` with `return_indices`.

    Args:
        input: of shape (batch, planes, depth, height, width), or without the batch.
        kernel_size: inputs that a window sees, one number for all dimensions or one for each, as in the next three.
        stride: from a window to the next, `kernel_size` unless given.
        padding: by how much windows may exceed the input, at most half of `kernel_size`.
        dilation: from one input of a window to the next.
        ceil_mode: whether the last windows may exceed the padding.
        return_indices: not looked at.

    Returns:
        The maxima, of shape (batch, planes, *windows), and the index of each in its plane,
        (slice · height + row) · width + column.

    Raises:
        RuntimeError: if the numbers make no sense, or no window fits.
        NotImplementedError: if the dtype is boolean or complex.

    Differs from torch: where `max_pool1d` does.

    Costs: what `max_pool1d` costs.

    Source: `torch/nn/functional.py`.
    """
    return slide("max_pool3d", input, kernel_size, stride, padding, dilation, ceil_mode)


def slide(
    name: str, input: Tensor, kernel_size: Size, stride: Size | None, padding: Size, dilation: Size, ceil_mode: bool
) -> tuple[Tensor, Tensor]:
    """Return maxima and indices for the arguments of the function of that name."""
    windows = sliding_windows(name, input, kernel_size, stride, padding, dilation, ceil_mode)
    check_dtype("max_pool3d" if len(windows) == 3 else "max_pool2d", input, *INTEGERS)
    found: tuple[Tensor, Tensor] = MaxPool.run(input, windows)
    return found


def adaptive_max_pool1d(
    input: Tensor, output_size: OutputSize, return_indices: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    r"""Return the maxima of as many windows as are asked for, that together cover a signal.

    $$y_o = \max_{\lfloor o L / n \rfloor \le i < \lceil (o + 1) L / n \rceil} x_i \qquad 0 \le o < n$$

    In `adaptive_max_pool2d` and `adaptive_max_pool3d`, $o$ and $i$ are pairs and triples of indices.

    The backward is that of `max_pool1d`, and so is what holds for ties, NaN and indices.

    Args:
        input: $x$ of shape (batch, planes, $L$), or without the batch.
        output_size: $n$.
        return_indices: whether to return the indices too.

    Returns:
        $y$ of shape (batch, planes, $n$), and with `return_indices` the index of each maximum in its plane, an int64.

    Raises:
        RuntimeError: if a size does not fit.
        NotImplementedError: if the dtype is not a floating-point one.

    Differs from torch: $n = 0$ is refused, which torch refuses in backward. Under autocast on the CPU torch's
    `adaptive_max_pool3d` computes in float32, here in the input's dtype: a maximum is exact.

    Costs: for each dimension one pass for the maxima and two for NaN, a window at a time.

    Source: `aten/src/ATen/native/cpu/AdaptiveMaxPoolKernel.cpp`.
    """
    found = adaptive_max_pool1d_with_indices(input, output_size)
    return found if return_indices else found[0]


def adaptive_max_pool2d(
    input: Tensor, output_size: OutputSize, return_indices: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """Return the maxima of as many windows as are asked for, that together cover an image.

    `adaptive_max_pool1d` has the formulas.

    Args:
        input: of shape (batch, planes, height, width), or without the batch.
        output_size: how many windows, one number for both dimensions or one for each; None for as many as there are
            elements.
        return_indices: whether to return the indices too.

    Returns:
        The maxima, of shape (batch, planes, *windows), and with `return_indices` the index of each in its plane,
        row · width + column, an int64.

    Raises:
        RuntimeError: if a size does not fit.
        NotImplementedError: if the dtype is not a floating-point one.

    Differs from torch: where `adaptive_max_pool1d` does.

    Costs: what `adaptive_max_pool1d` costs.

    Source: `aten/src/ATen/native/cpu/AdaptiveMaxPoolKernel.cpp`.
    """
    found = adaptive_max_pool2d_with_indices(input, output_size)
    return found if return_indices else found[0]


def adaptive_max_pool3d(
    input: Tensor, output_size: OutputSize, return_indices: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """Return the maxima of as many windows as are asked for, that together cover a volume.

    `adaptive_max_pool1d` has the formulas.

    Args:
        input: of shape (batch, planes, depth, height, width), or without the batch.
        output_size: how many windows, one number for all dimensions or one for each; None for as many as there are
            elements.
        return_indices: whether to return the indices too.

    Returns:
        The maxima, of shape (batch, planes, *windows), and with `return_indices` the index of each in its plane,
        (slice · height + row) · width + column, an int64.

    Raises:
        RuntimeError: if a size does not fit.
        NotImplementedError: if the dtype is not a floating-point one.

    Differs from torch: where `adaptive_max_pool1d` does.

    Costs: what `adaptive_max_pool1d` costs.

    Source: `aten/src/ATen/native/cpu/AdaptiveMaxPoolKernel.cpp`.
    """
    found = adaptive_max_pool3d_with_indices(input, output_size)
    return found if return_indices else found[0]


def adaptive_max_pool1d_with_indices(
    input: Tensor,
    output_size: OutputSize,
    return_indices: bool = False,  # noqa: ARG001
) -> tuple[Tensor, Tensor]:
    """Return the maxima of windows that together cover a signal, and their indices.

    It is `adaptive_max_pool1d` with `return_indices`.

    Args:
        input: of shape (batch, planes, length), or without the batch.
        output_size: how many windows.
        return_indices: not looked at.

    Returns:
        The maxima, of shape (batch, planes, *windows), and the index of each in its plane, position.

    Raises:
        RuntimeError: if a size does not fit.
        NotImplementedError: if the dtype is not a floating-point one.

    Differs from torch: where `adaptive_max_pool1d` does.

    Costs: what `adaptive_max_pool1d` costs.

    Source: `torch/nn/functional.py`.
    """
    return cover("adaptive_max_pool1d", input, output_size)


def adaptive_max_pool2d_with_indices(
    input: Tensor,
    output_size: OutputSize,
    return_indices: bool = False,  # noqa: ARG001
) -> tuple[Tensor, Tensor]:
    """Return the maxima of windows that together cover an image, and their indices.

    It is `adaptive_max_pool2d` with `return_indices`.

    Args:
        input: of shape (batch, planes, height, width), or without the batch.
        output_size: how many windows, one number for both dimensions or one for each; None for as many as there are
            elements.
        return_indices: not looked at.

    Returns:
        The maxima, of shape (batch, planes, *windows), and the index of each in its plane, row · width + column.

    Raises:
        RuntimeError: if a size does not fit.
        NotImplementedError: if the dtype is not a floating-point one.

    Differs from torch: where `adaptive_max_pool1d` does.

    Costs: what `adaptive_max_pool1d` costs.

    Source: `torch/nn/functional.py`.
    """
    return cover("adaptive_max_pool2d", input, output_size)


def adaptive_max_pool3d_with_indices(
    input: Tensor,
    output_size: OutputSize,
    return_indices: bool = False,  # noqa: ARG001
) -> tuple[Tensor, Tensor]:
    """Return the maxima of windows that together cover a volume, and their indices.

    It is `adaptive_max_pool3d` with `return_indices`.

    Args:
        input: of shape (batch, planes, depth, height, width), or without the batch.
        output_size: how many windows, one number for all dimensions or one for each; None for as many as there are
            elements.
        return_indices: not looked at.

    Returns:
        The maxima, of shape (batch, planes, *windows), and the index of each in its plane,
        (slice · height + row) · width + column.

    Raises:
        RuntimeError: if a size does not fit.
        NotImplementedError: if the dtype is not a floating-point one.

    Differs from torch: where `adaptive_max_pool1d` does.

    Costs: what `adaptive_max_pool1d` costs.

    Source: `torch/nn/functional.py`.
    """
    return cover("adaptive_max_pool3d", input, output_size)


def cover(name: str, input: Tensor, output_size: OutputSize) -> tuple[Tensor, Tensor]:
    """Return maxima and indices for the arguments of the adaptive function of that name."""
    counts = output_sizes(name, input, output_size)
    check_dtype("adaptive_max_pool3d_cpu" if len(counts) == 3 else "adaptive_max_pool2d", input)
    found: tuple[Tensor, Tensor] = AdaptiveMaxPool.run(input, counts)
    return found


class Maximum(Operation):
    """A copy of one element for each window; back, each gradient is added where its maximum stands."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, tuple[Any, ...]], output: tuple[Tensor, Tensor]) -> None:
        input, windows = inputs
        _, indices = output
        ctx.mark_non_differentiable(indices)
        ctx.save_for_backward(indices)
        ctx.sizes = input.shape[-len(windows) :]

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, None]:
        (indices,) = ctx.saved_tensors
        places = indices.flatten(-len(ctx.sizes))
        wide = widen(grad).reshape(places.shape)
        total = wide.new_zeros(*places.shape[:-1], math.prod(ctx.sizes)).scatter_add_(-1, places, wide)
        return total.view(*places.shape[:-1], *ctx.sizes).to(grad.dtype), None


class MaxPool(Maximum):
    """The maximum of each row of a sliding window, then of its rows, then of its slices.

    With the rows first the order of the memory is kept: the first maximum of a window is in the first row that has
    it, and the first there.
    """

    @staticmethod
    def forward(input: Tensor, windows: tuple[Sliding, ...]) -> tuple[Tensor, Tensor]:
        return one_by_one(input, windows, slide_along)


class AdaptiveMaxPool(Maximum):
    """The same of windows that cover the input."""

    @staticmethod
    def forward(input: Tensor, counts: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        return one_by_one(input, counts, cover_along)


def one_by_one(
    input: Tensor, windows: tuple[T, ...], along: Callable[[int, Tensor, T], tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor]:
    """Return maxima and indices: reduce one dimension after another, the last one first."""
    sizes = input.shape[-len(windows) :]
    values, indices = input, torch.arange(math.prod(sizes), device=input.device).view(sizes).expand(input.shape)
    for dim in reversed(range(-len(windows), 0)):
        values, positions = along(dim, values, windows[dim])
        indices = indices.gather(dim, positions)
    return values, indices


def slide_along(dim: int, values: Tensor, windows: Sliding) -> tuple[Tensor, Tensor]:
    """Return the maxima of windows along one dimension, and where they stand in it."""
    kernel_size, stride, padding, dilation, _, outputs = windows
    starts = torch.arange(outputs, device=values.device) * stride - padding
    starts = starts.view(-1, *[1] * (-1 - dim))
    if padding or windows.overhang:
        lowest = -math.inf if values.is_floating_point() else torch.iinfo(values.dtype).min
        values = surround(values, (0, 0) * (-1 - dim) + (padding, windows.overhang), lowest)
    taps = values.unfold(dim, (kernel_size - 1) * dilation + 1, stride)[..., ::dilation]
    maxima, tap = first_maximum(taps)
    positions = starts + tap * dilation
    if padding:
        # Where all is -inf the first tap has won, though it may be padding: the first one inside is meant.
        positions = torch.where(positions < 0, starts % dilation, positions)
    return maxima, positions


def cover_along(dim: int, values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the maxima of windows that cover one dimension, and where they stand in it."""
    maxima, positions = [], []
    for start, length in adaptive_windows(values.shape[dim], count):
        maximum, tap = first_maximum(values.narrow(dim, start, length).movedim(dim, -1))
        maxima.append(maximum)
        positions.append(start + tap)
    return torch.stack(maxima, dim), torch.stack(positions, dim)


def first_maximum(taps: Tensor) -> tuple[Tensor, Tensor]:
    """Return the maximum over the last dimension, and which it was: the first of equal ones, the last of NaN."""
    maxima, first = taps.max(-1)
    last_nan = taps.shape[-1] - 1 - taps.isnan().flip(-1).max(-1).indices
    return maxima, torch.where(maxima.isnan(), last_nan, first)
