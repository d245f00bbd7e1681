"""The windows that a kernel sees as it slides over an input: what convolution and pooling share."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

Size = int | Sequence[int]
"""One number for all dimensions, or one for each."""


def windows(input: Tensor, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> Tensor:
    r"""Return every window of an input as a view, without a copy.

    Along each of the last dimensions, tap $k$ of window $o$ is the input at $o \cdot s + k \cdot d$, with stride $s$
    and dilation $d$.

    Args:
        input: of shape (*, sizes), padded already.
        kernel: taps in each of the last dimensions.
        stride: from a window to the next.
        dilation: from a tap to the next.

    Returns:
        A view of shape (*, windows in each dimension, taps in each dimension).
    """
    first = input.dim() - len(kernel)
    for dim, (taps, step, spread) in enumerate(zip(kernel, stride, dilation, strict=True), start=first):
        input = input.unfold(dim, (taps - 1) * spread + 1, step)[..., ::spread]
    return input


def add_windows(
    windows: Tensor, size: Sequence[int], kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> Tensor:
    r"""Add up what stands in windows where they came from: the adjoint of `windows`, and so its backward.

    Args:
        windows: of the shape that `windows` returns.
        size: of the input in each of the last dimensions.
        kernel: taps in each of the last dimensions.
        stride: from a window to the next.
        dilation: from a tap to the next.

    Returns:
        A tensor of shape (*, sizes).
    """
    n = len(kernel)
    first = windows.dim() - 2 * n
    total = windows.movedim(tuple(range(-n, 0)), tuple(range(first, first + n)))
    # One dimension after the other: each leaves less to add for the next.
    for dim, (length, step, spread) in enumerate(zip(size, stride, dilation, strict=True), start=-n):
        taps = total.unbind(first)
        shape = [*total.shape[:first], *total.shape[first + 1 :]]
        reach = (shape[dim] - 1) * step + 1
        shape[dim] = length
        total = total.new_zeros(shape)
        for tap, values in enumerate(taps):
            seen = total.narrow(dim, tap * spread, reach).movedim(dim, -1)[..., ::step]
            seen += values.movedim(dim, -1)
    return total
