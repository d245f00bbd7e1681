"""Padding from first principles: which input stands at each place of a padded one."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from reimpl.nn.functional.operation import Operation, widen

Widths = tuple[int, ...]
"""What is added before and after the last dimension, before and after the last but one, and so on: torch's order."""


def pad(input: Tensor, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> Tensor:
    r"""Return the input with its last dimensions made longer, or with negative padding shorter.

    Along one dimension of size $n$ with $l$ places before and $r$ after it, $y_i$ for
    $0 \le i < l + n + r$ is the input at $p = i - l$. What stands at a $p$ outside of $0 \dots n - 1$ is the mode's:

    | mode | output $y_i$ | 1 2 3 4 5, padded by 2 |
    |---|---|---|
    | constant | `value` | 0 0 1 2 3 4 5 0 0 |
    | reflect | $x_{n - 1 - \lvert n - 1 - \lvert p \rvert \rvert}$: a mirror on the last value | 3 2 1 2 3 4 5 4 3 |
    | replicate | $x_{\min(\max(p, 0), n - 1)}$: the nearest | 1 1 1 2 3 4 5 5 5 |
    | circular | $x_{p \bmod n}$: the other end | 4 5 1 2 3 4 5 1 2 |

    Several dimensions are padded one after the other.

    Backward, with $g = \partial L / \partial y$: in every mode $y_i = x_{j(i)}$ or a constant, so $x_k$ gathers the
    gradients of all the places where it was copied to:

    $$\frac{\partial L}{\partial x_k} = \sum_{i:\ j(i) = k} g_i$$

    In the constant mode that is one place, or none if it was cut off: the padding by the opposite widths, with zeros.

    Args:
        input: any shape; modes other than constant take $1 \le m \le 3$ padded dimensions of $m + 1$ or $m + 2$.
        pad: widths before and after the last dimension, then before and after the last but one, and so on.
        mode: `constant`, `reflect`, `replicate` or `circular`.
        value: the constant, 0 unless given.

    Returns:
        $y$, a copy even where nothing is padded.

    Raises:
        RuntimeError: if the widths do not fit the input: reflect needs widths smaller than the dimension, circular
            not larger, and none may cut off more than there is.
        NotImplementedError: if the mode is unknown, or does not take so many dimensions.

    Differs from torch: booleans may be reflected and replicated too. Circular padding that is wider than what a
    negative width on the other side leaves is refused; torch returns memory that was never written. The constant
    mode's output is contiguous; torch's has the layout of a channels_last input.

    Costs: a pass over the input for each padded dimension, backward too; torch's kernels need one for all.

    Source: `aten/src/ATen/native/PadNd.cpp`, `ReflectionPad.cpp`, `ReplicationPadding.cpp`.
    """
    widths = tuple(map(operator.index, pad))
    check(input, widths, mode, value)
    if mode == "constant":
        output: Tensor = Surround.run(input, widths, 0.0 if value is None else float(value))
    else:
        output = Reread.run(input, widths, mode)
    return output


class Surround(Operation):
    """Copy the input into the middle of a constant."""

    @staticmethod
    def forward(input: Tensor, widths: Widths, value: float) -> Tensor:
        return surround(input, widths, value)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Widths, float], output: Tensor) -> None:
        ctx.opposite = tuple(-width for width in inputs[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return surround(grad, ctx.opposite, 0.0), None, None


class Reread(Operation):
    """Read each place of the output from the place of the input that the mode names."""

    @staticmethod
    def forward(input: Tensor, widths: Widths, mode: str) -> Tensor:
        for dim, before, after in padded_dims(widths):
            index = source(input.shape[dim], before, after, mode, input.device)
            input = input.index_select(dim, index)
        return input

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Widths, str], output: Tensor) -> None:
        ctx.shape, ctx.widths, ctx.mode = inputs[0].shape, *inputs[1:]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        total = widen(grad)
        for dim, before, after in padded_dims(ctx.widths):
            size = ctx.shape[dim]
            index = source(size, before, after, ctx.mode, grad.device)
            shape = list(total.shape)
            shape[dim] = size
            total = total.new_zeros(shape).index_add(dim, index, total)
        return total.to(grad.dtype), None, None


def padded_dims(widths: Sequence[int]) -> list[tuple[int, int, int]]:
    """Return each padded dimension, counted from the end, with the widths before and after it."""
    return [(-1 - i, widths[2 * i], widths[2 * i + 1]) for i in range(len(widths) // 2)]


def both_sides(padding: Sequence[int]) -> Widths:
    """Return the widths for as much padding before each dimension as after it, the last dimension's first."""
    return tuple(width for width in reversed(padding) for _ in range(2))


def same_widths(kernel: Sequence[int], dilation: Sequence[int]) -> Widths:
    r"""Return the widths with which a convolution keeps the size, the last dimension's first.

    The last tap of a kernel is $d (\text{taps} - 1)$ beyond its first; the odd one goes to the right.
    """
    totals = [spread * (taps - 1) for taps, spread in zip(kernel, dilation, strict=False)]
    return tuple(width for total in reversed(totals) for width in (total // 2, total - total // 2))


def surround(input: Tensor, widths: Sequence[int], value: float) -> Tensor:
    """Return a copy with a constant around it; what has a negative width is cut off."""
    shape = list(input.shape)
    read, write = [slice(None)] * input.dim(), [slice(None)] * input.dim()
    for dim, before, after in padded_dims(widths):
        size = shape[dim]
        shape[dim] = before + size + after
        read[dim] = slice(max(-before, 0), size - max(-after, 0))
        write[dim] = slice(max(before, 0), shape[dim] - max(after, 0))
    output = input.new_full(shape, value)
    output[tuple(write)] = input[tuple(read)]
    return output


def source(size: int, before: int, after: int, mode: str, device: torch.device) -> Tensor:
    """Return for each place along a padded dimension which of the input's places it is read from."""
    last = size - 1
    place = torch.arange(-before, size + after, device=device)
    if mode == "reflect":
        return last - (last - place.abs()).abs()
    if mode == "replicate":
        return place.clamp(0, last)
    # What has been cut off does not come round again.
    first, kept = max(-before, 0), size + min(before, 0) + min(after, 0)
    return first + (place - first) % max(kept, 1)


def check(input: Tensor, widths: Widths, mode: str, value: float | None) -> None:
    """Raise torch's error if the widths do not fit the input."""
    if mode not in ("constant", "reflect", "replicate", "circular"):
        raise NotImplementedError(f"Unrecognised padding mode {mode}")
    if len(widths) % 2:
        raise RuntimeError("Padding length must be divisible by 2")
    if len(widths) > 2 * input.dim():
        raise RuntimeError(
            "Padding length should be less than or equal to two times the input dimension "
            f"but got padding length {len(widths)} and input of dimension {input.dim()}"
        )
    sizes = [(input.shape[dim], before, after) for dim, before, after in padded_dims(widths)]
    if mode == "constant":
        if any(size + min(before, 0) + min(after, 0) < 0 for size, before, after in sizes):
            raise RuntimeError("narrow(): length must be non-negative.")
        return
    if value:
        raise RuntimeError(f'Padding mode "{mode}" doesn\'t take in value argument')
    if len(sizes) not in (1, 2, 3) or input.dim() - len(sizes) not in (1, 2):
        raise NotImplementedError(
            f"Padding size {len(widths)} is not supported for {input.dim()}D input tensor.\n"
            "Supported combinations for non-constant padding:\n"
            "  - 2D or 3D input: padding size = 2 (pads last dimension)\n"
            "  - 3D or 4D input: padding size = 4 (pads last 2 dimensions)\n"
            "  - 4D or 5D input: padding size = 6 (pads last 3 dimensions)"
        )
    if mode == "circular":
        check_circular(sizes)
    else:
        check_inside(input, sizes, mode)


def check_circular(sizes: list[tuple[int, int, int]]) -> None:
    """Raise if what is left of the input would have to come round twice, or more is cut off than there is."""
    for size, before, after in sizes:
        kept = size + min(before, 0) + min(after, 0)
        if max(before, after) > max(kept, 0):
            raise RuntimeError("Padding value causes wrapping around more than once.")
        if kept < 0:
            raise RuntimeError("Negative padding value is resulting in an empty dimension")


def check_inside(input: Tensor, sizes: list[tuple[int, int, int]], mode: str) -> None:
    """Raise if there is nothing to reflect or replicate, or a reflection would leave the input."""
    n = len(sizes)
    if not all(input.shape[-n - 1 :]):
        raise RuntimeError(
            f"Expected {n + 1}D or {n + 2}D (batch mode) tensor with possibly 0 batch size and other non-zero "
            f"dimensions for input, but got: {list(input.shape)}"
        )
    for i, (size, before, after) in enumerate(sizes):
        if mode == "reflect" and max(before, after) >= size:
            raise RuntimeError(
                f"Argument #{4 + 2 * i}: Padding size should be less than the corresponding input dimension, but got: "
                f"padding ({before}, {after}) at dimension {input.dim() - 1 - i} of input {list(input.shape)}"
            )
    results = [size + before + after for size, before, after in sizes]
    if min(results) < 0 or not any(results):
        names = "WHD"[:n][::-1]
        given, left = (
            ", ".join(f"{name}: {size}" for name, size in zip(names, reversed(values), strict=True))
            for values in ([size for size, *_ in sizes], results)
        )
        left = left.replace(", ", " ")
        raise RuntimeError(f"input ({given}) is too small. Calculated output {left}")
