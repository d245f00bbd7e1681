"""Convolution from first principles, in any number of dimensions."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from reimpl.nn.functional.conv_arguments import Geometry, batched, check, check_dtypes, read_geometry
from reimpl.nn.functional.operation import Operation, widen
from reimpl.nn.functional.padding import surround
from reimpl.nn.functional.windows import Size, add_windows, windows

BLOCK = 2**19
"""Elements that are worked on at a time, 2 MiB in float32: what is written is read again from the processor's cache."""


def conv1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size | str = 0,
    dilation: Size = 1,
    groups: int = 1,
) -> Tensor:
    r"""Return the sums of the input under a kernel that slides over it, for each output channel $m$.

    $$y_{nmo} = b_m + \sum_c \sum_k W_{mck}\, \bar x_{n,\,c,\,os + kd} \qquad
      \bar x_{nci} = \begin{cases} x_{n,\,c,\,i - p} & 0 \le i - p < \text{length} \\ 0 & \text{else} \end{cases}$$

    with stride $s$, dilation $d$ and padding $p$. In `conv2d` and `conv3d` the indices $o$, $k$ and $i$ are pairs and
    triples, and so are $s$, $d$ and $p$: no formula changes. The kernel is not flipped, as in a convolution of
    signals it would be: this is a correlation. With $G$ groups, output channel $m$ sums over the $C / G$ input
    channels of its own group, and what follows holds within each group.

    Write each window as a column: $X_{(ck),(no)} = \bar x_{n,\,c,\,os + kd}$. Then $Y = W X + b$, a matrix product.

    Backward, with $g = \partial L / \partial y$ as a matrix of a row for each $m$ and a column for each $(no)$, as $Y$:

    $$\frac{\partial L}{\partial W} = g\, X^\top \qquad
      \frac{\partial L}{\partial X} = W^\top g \qquad
      \frac{\partial L}{\partial b_m} = \sum_{no} g_{m,(no)}$$

    and each element of $\bar x$ sums the gradients from all the windows that it was in,

    $$\frac{\partial L}{\partial \bar x_{nci}} = \sum_{o,\,k:\ os + kd = i}
      \left(\frac{\partial L}{\partial X}\right)_{(ck),(no)}$$

    of which the padding's part is cut off.

    Args:
        input: $x$ of shape (batch, channels, length), or without the batch.
        weight: $W$ of shape (outputs, channels / groups, kernel).
        bias: $b$ of shape (outputs).
        stride: $s$, from a window to the next.
        padding: $p$, zeros at both ends; or `valid` for none, or `same` for $d (\text{kernel} - 1)$ zeros in all, so
            that the length stays: half of them on the left, rounded down, and the rest on the right.
        dilation: $d$, from one input under the kernel to the next.
        groups: $G$, into which the channels fall.

    Returns:
        $y$ of shape (batch, outputs, windows), contiguous, with
        $\lfloor (\text{length} + 2 p - d (\text{kernel} - 1) - 1) / s \rfloor + 1$ windows.

    Raises:
        RuntimeError: if a shape or dtype does not fit, or `same` meets a stride.

    Differs from torch: an input or kernel of length 0, which some of torch's kernels refuse, is taken where the
    formula has a meaning; an input of no channels gives the bias, torch an output of no channels. A channels_last
    input gives a contiguous output. Mixed dtypes are told in other words.

    Costs: $X$ has up to as many elements for each element of the input as the kernel has. It is written out for a few
    samples at a time, 2 MiB or one sample, and once more in backward rather than kept, so that little memory is held
    and most of it stays in the cache. torch's kernels gather the windows inside the product, and never write them.
    Low precision is computed in float32.

    Source: Chellapilla, Puri, Simard, High Performance Convolutional Neural Networks for Document Processing, 2006,
    section 3; `aten/src/ATen/native/Convolution.cpp`.
    """
    return convolution(1, input, weight, bias, stride, padding, dilation, groups)


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size | str = 0,
    dilation: Size = 1,
    groups: int = 1,
) -> Tensor:
    r"""Return the sums of images under a kernel: $y_{nmo} = b_m + \sum_{c,k} W_{mck}\, \bar x_{n,\,c,\,os + kd}$.

    `conv1d` has the formulas and the backward: here positions $o$ and taps $k$ are pairs, as are $s$, $d$ and $p$.

    Args:
        input: $x$ of shape (batch, channels, height, width), or without the batch.
        weight: $W$ of shape (outputs, channels / groups, kernel height, kernel width).
        bias: of shape (outputs).
        stride: $s$, a number or (vertical, horizontal).
        padding: $p$, a number, (top and bottom, left and right), `valid` or `same`.
        dilation: $d$, a number or (vertical, horizontal).
        groups: into which the channels fall.

    Returns:
        $y$ of shape (batch, outputs, windows down, windows across).

    Raises:
        RuntimeError: if a shape or dtype does not fit, or `same` meets a stride.

    Differs from torch: as `conv1d` does.

    Costs: those of `conv1d`.

    Source: `aten/src/ATen/native/Convolution.cpp`.
    """
    return convolution(2, input, weight, bias, stride, padding, dilation, groups)


def conv3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size | str = 0,
    dilation: Size = 1,
    groups: int = 1,
) -> Tensor:
    r"""Return the sums of volumes under a kernel: $y_{nmo} = b_m + \sum_{c,k} W_{mck}\, \bar x_{n,\,c,\,os + kd}$.

    `conv1d` has the formulas and the backward: here positions $o$ and taps $k$ are triples, as are $s$, $d$ and $p$.

    Args:
        input: $x$ of shape (batch, channels, depth, height, width), or without the batch.
        weight: $W$ of shape (outputs, channels / groups, *kernel).
        bias: of shape (outputs).
        stride: $s$, a number or one for each dimension.
        padding: $p$, a number, one for each dimension, `valid` or `same`.
        dilation: $d$, a number or one for each dimension.
        groups: into which the channels fall.

    Returns:
        $y$ of shape (batch, outputs, *windows).

    Raises:
        RuntimeError: if a shape or dtype does not fit, or `same` meets a stride.

    Differs from torch: as `conv1d` does.

    Costs: those of `conv1d`.

    Source: `aten/src/ATen/native/Convolution.cpp`.
    """
    return convolution(3, input, weight, bias, stride, padding, dilation, groups)


def convolution(
    n: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Size,
    padding: Size | str,
    dilation: Size,
    groups: int,
) -> Tensor:
    """Check the arguments of a convolution over $n$ dimensions, and convolve."""
    batch = batched(n, input)
    geometry = read_geometry(n, batch, weight, stride, padding, dilation, groups)
    check(batch, weight, bias, geometry)
    is_depthwise = groups > 1 and weight.shape[:2] == (groups, 1)
    output: Tensor = (Depthwise if is_depthwise else Convolution).run(batch, weight, bias, geometry)
    return output if batch is input else output.squeeze(0)


class Convolution(Operation):
    """Windows as columns, a matrix product, and both transposed on the way back."""

    autocast = "lower"

    @staticmethod
    def forward(input: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
        check_dtypes(input, weight, bias)
        kernel = rows(widen(weight), geometry.groups)
        seen = slide(framed(widen(input), geometry.padding), weight, geometry)
        outputs = []
        for block in torch.split(seen, samples_at_once(seen)):
            output = kernel @ columns(block, geometry.groups)
            if bias is not None:
                output = output + rows(widen(bias), geometry.groups)
            samples, _, *places = block.shape[: weight.dim()]
            outputs.append(output.reshape(len(weight), samples, *places).transpose(0, 1))
        return torch.cat(outputs).to(input.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        input, weight, _, ctx.geometry = inputs
        ctx.save_for_backward(input, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        input, weight = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.geometry
        kernel = rows(widen(weight), groups)
        padded = framed(widen(input), padding)
        seen = slide(padded, weight, ctx.geometry)
        samples = samples_at_once(seen)
        grad_parts, grad_kernel = [], torch.zeros_like(kernel)
        for block, grad_block in zip(torch.split(seen, samples), torch.split(widen(grad), samples), strict=True):
            g = rows(grad_block.transpose(0, 1), groups)
            if ctx.needs_input_grad[0]:
                grad_seen = from_columns(kernel.mH @ g, block.shape)
                grad_parts.append(add_windows(grad_seen, padded.shape[2:], weight.shape[2:], stride, dilation))
            if ctx.needs_input_grad[1]:
                grad_kernel = torch.baddbmm(grad_kernel, g, columns(block, groups).mH)
        grad_input = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_input = framed(torch.cat(grad_parts), [-width for width in padding]).to(input.dtype)
        if ctx.needs_input_grad[1]:
            grad_weight = grad_kernel.reshape(weight.shape).to(weight.dtype)
        if ctx.needs_input_grad[2]:
            grad_bias = grad.sum([0, *range(2, grad.dim())])
        return grad_input, grad_weight, grad_bias, None


class Depthwise(Operation):
    r"""Each channel for itself: a matrix of one row is no help, so each tap's weight times what the tap sees.

    The formulas of `conv1d`, with a channel's taps instead of its group's columns: $y = b + \sum_k W_k X_k$.
    """

    autocast = "lower"

    @staticmethod
    def forward(input: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
        check_dtypes(input, weight, bias)
        padded = framed(widen(input), geometry.padding)
        places = slide(padded, weight, geometry).shape[2 : weight.dim()]
        (first, w), *others = each_tap(widen(weight))
        output = beside(w, places) * seen_by(first, padded, places, geometry)
        for tap, w in others:
            output += beside(w, places) * seen_by(tap, padded, places, geometry)
        if bias is not None:
            output = output + beside(widen(bias), places)
        return output.to(input.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        input, weight, _, ctx.geometry = inputs
        ctx.save_for_backward(input, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        input, weight = ctx.saved_tensors
        geometry, g, places = ctx.geometry, widen(grad), grad.shape[2:]
        padded = framed(widen(input), geometry.padding)
        over = [0, *range(2, grad.dim())]
        grad_input = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_padded = g.new_zeros(padded.shape)
            for tap, w in each_tap(widen(weight)):
                grad_seen = seen_by(tap, grad_padded, places, geometry)
                grad_seen += beside(w.conj(), places) * g
            grad_input = framed(grad_padded, [-width for width in geometry.padding]).to(input.dtype)
        if ctx.needs_input_grad[1]:
            sums = [(g * seen_by(tap, padded, places, geometry).conj()).sum(over) for tap, _ in each_tap(weight)]
            grad_weight = torch.stack(sums, 1).reshape(weight.shape).to(weight.dtype)
        if ctx.needs_input_grad[2]:
            grad_bias = grad.sum(over)
        return grad_input, grad_weight, grad_bias, None


def framed(input: Tensor, padding: Sequence[int]) -> Tensor:
    """Return the input with zeros around it, or cut down to what zeros were put around."""
    return surround(input, padding, 0) if any(padding) else input


def slide(padded: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """Return what each tap sees in each window: a view of shape (batch, channels, *places, *taps)."""
    return windows(padded, weight.shape[2:], geometry.stride, geometry.dilation)


def samples_at_once(tensor: Tensor) -> int:
    """Return how many samples are worked on together: what fits into a block, one at least."""
    return max(1, BLOCK // max(1, math.prod(tensor.shape[1:])))


def rows(tensor: Tensor, groups: int) -> Tensor:
    """Return (outputs, ...) as a matrix for each group, a row for each output."""
    return tensor.reshape(groups, len(tensor) // groups, math.prod(tensor.shape[1:]))


def columns(seen: Tensor, groups: int) -> Tensor:
    """Return what is seen as a matrix for each group, a column for each window."""
    n = seen.dim() // 2 - 1
    samples, channels, *sizes = seen.shape
    ordered = seen.permute(1, *range(2 + n, 2 + 2 * n), 0, *range(2, 2 + n))
    return ordered.reshape(groups, channels // groups * math.prod(sizes[n:]), samples * math.prod(sizes[:n]))


def from_columns(columns: Tensor, shape: Sequence[int]) -> Tensor:
    """Return what stands in columns in the shape that it had before."""
    n = len(shape) // 2 - 1
    samples, channels, *sizes = shape
    ordered = columns.reshape(channels, *sizes[n:], samples, *sizes[:n])
    return ordered.permute(1 + n, 0, *range(2 + n, 2 + 2 * n), *range(1, 1 + n))


def each_tap(weight: Tensor) -> Iterator[tuple[tuple[int, ...], Tensor]]:
    """Return each position in a depthwise kernel, and every channel's weight there."""
    return zip(itertools.product(*map(range, weight.shape[2:])), weight.flatten(1).unbind(1), strict=True)


def seen_by(tap: Sequence[int], padded: Tensor, places: Sequence[int], geometry: Geometry) -> Tensor:
    """Return what one tap sees: along each dimension, of each place $o$ the element at $os + kd$."""
    along = zip(tap, places, geometry.stride, geometry.dilation, strict=True)
    index: tuple[slice, ...] = tuple(slice(k * d, k * d + (count - 1) * s + 1, s) for k, count, s, d in along)
    return padded[:, :, *index]


def beside(values: Tensor, places: Sequence[int]) -> Tensor:
    """Return one value for each channel in a shape that stands beside (batch, channels, *places)."""
    return values.reshape(-1, *[1] * len(places))
