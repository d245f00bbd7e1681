"""The windows that a kernel sees as it slides over an input: what convolution and pooling share."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from torch import Tensor


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
    counts = windows.shape[-2 * n : -n]
    total = windows.new_zeros((*windows.shape[: -2 * n], *size))
    for taps in itertools.product(*map(range, kernel)):
        starts = [tap * spread for tap, spread in zip(taps, dilation, strict=True)]
        seen = tuple(
            slice(start, start + (count - 1) * step + 1, step)
            for start, count, step in zip(starts, counts, stride, strict=True)
        )
        total[..., *seen] += windows[..., *taps]
    return total
