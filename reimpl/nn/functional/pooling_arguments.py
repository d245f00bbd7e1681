"""What the pooling functions take, and what they refuse, in torch's words."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from reimpl.nn.functional.operation import scalar_type
from reimpl.nn.functional.pooling import Sliding, count_windows
from reimpl.nn.functional.windows import Size

OutputSize = int | Sequence[int | None]
"""One number for all dimensions, or one for each; None leaves a dimension as it is."""


def sliding_windows(
    name: str, input: Tensor, kernel_size: Size, stride: Size | None, padding: Size, dilation: Size, ceil_mode: bool
) -> tuple[Sliding, ...]:
    """Return where the windows lie that the arguments of a pooling function describe.

    Args:
        name: of the function, as `max_pool2d`: what torch says depends on it, and the dimensions too.
        input: of shape (batch, planes, *sizes), or without the batch.
        kernel_size: taps of each window.
        stride: from a window to the next; None or empty for `kernel_size`.
        padding: before the first element and after the last.
        dilation: from a tap to the next.
        ceil_mode: whether a window may reach beyond the padding.

    Raises:
        RuntimeError: if the numbers make no sense, or no window fits.
    """
    n = int(name[-2])
    taps = one_each(name, "kernel_size", kernel_size)
    steps = (
        taps if stride is None or (isinstance(stride, Sequence) and not stride) else one_each(name, "stride", stride)
    )
    pads = one_each(name, "padding", padding)
    spreads = one_each(name, "dilation", dilation)
    check_dimensions(name, input)
    check_numbers(taps, steps, pads, spreads)
    check_not_empty(name, input)
    sizes = tuple(input.shape[-n:])
    if name == "avg_pool3d" and any(tap > size for tap, size in zip(taps, sizes, strict=True)):
        raise RuntimeError(f"input image ({listed('', sizes)}) smaller than kernel size ({listed('k', taps)})")
    check_padding(n, taps, pads)
    counts = [
        count_windows(size, tap, step, pad, spread, ceil_mode)
        for size, tap, step, pad, spread in zip(sizes, taps, steps, pads, spreads, strict=True)
    ]
    if min(counts) < 1:
        given, left = ("x".join(map(str, [input.shape[-n - 1], *as_plane(values)])) for values in (sizes, counts))
        raise RuntimeError(f"Given input size: ({given}). Calculated output size: ({left}). Output size is too small")
    return tuple(map(Sliding, taps, steps, pads, spreads, sizes, counts))


def one_each(name: str, argument: str, value: Size) -> tuple[int, ...]:
    """Return one number for each dimension."""
    n = int(name[-2])
    if isinstance(value, int | torch.SymInt):
        return (value,) * n
    if len(value) in (1, n):
        return tuple(value) * (n // len(value))
    if n == 1:
        raise RuntimeError(f"{name}() argument '{argument}' should contain one int (got {len(value)})")
    omitted = "omitted, " if argument == "stride" else ""
    must = "must be either" if argument == "dilation" else "must be" if name == "avg_pool3d" else "must either be"
    raise RuntimeError(f"{name}: {argument} {must} {omitted}a single int, or a tuple of {('two', 'three')[n - 2]} ints")


def as_plane(values: Sequence[int], one: int = 1) -> tuple[int, ...]:
    """Return the numbers of a signal as those of an image of height 1: that is how torch's kernels see it."""
    return (one, *values) if len(values) == 1 else tuple(values)


def listed(letter: str, values: Sequence[int]) -> str:
    """Return the numbers with the names that torch gives them."""
    return " ".join(f"{letter}{axis}: {value}" for axis, value in zip("THW"[-len(values) :], values, strict=True))


def check_dimensions(name: str, input: Tensor) -> None:
    """Raise if the input is neither a batch nor a sample."""
    n = int(name[-2])
    if input.dim() in (n + 1, n + 2):
        return
    if n == 1:
        raise RuntimeError(
            f"Expected 2 to 3 dimensions, but got {input.dim()}-dimensional tensor for argument #1 'self' (while "
            f"checking arguments for {name})"
        )
    if name.startswith("adaptive"):
        but = "but got:" if "max" in name else "but got"
        raise RuntimeError(f"{name}(): Expected {n + 1}D or {n + 2}D tensor, {but} {list(input.shape)}")
    if name == "avg_pool2d":
        input.size(-3)  # an IndexError if there is none
        raise RuntimeError(
            "Expected 3D or 4D (batch mode) tensor with optional 0 dim batch size for input, "
            f"but got:{list(input.shape)}"
        )
    raise RuntimeError(f"non-empty {n + 1}D or {n + 2}D (batch mode) tensor expected for input")


def check_numbers(
    taps: tuple[int, ...], steps: tuple[int, ...], pads: tuple[int, ...], spreads: tuple[int, ...]
) -> None:
    """Raise if a number is out of its range."""
    for tap, step, pad, spread in zip(taps, steps, pads, spreads, strict=True):
        if step == 0:
            raise RuntimeError("stride should not be zero")
        if pad < 0:
            raise RuntimeError(f"pad must be non-negative, but got pad: {pad}")
        if pad > ((tap - 1) * spread + 1) // 2 >= 0:
            raise RuntimeError(
                "pad should be at most half of effective kernel size, but got "
                f"pad={pad}, kernel_size={tap} and dilation={spread}"
            )
    for what, letter, values in (("kernel size", "k", taps), ("stride", "d", steps), ("dilation", "dilation", spreads)):
        if min(values) <= 0:
            raise RuntimeError(f"{what} should be greater than zero, but got {listed(letter, as_plane(values))}")


def check_not_empty(name: str, input: Tensor) -> None:
    """Raise if anything but the batch is empty."""
    n = int(name[-2])
    if all(input.shape[-n - 1 :]):
        return
    shape = list(input.shape)
    if n == 3:
        function = "max_pool3d_with_indices_out_cpu_template()" if name == "max_pool3d" else f"{name}()"
        raise RuntimeError(
            f"{function}: Expected input's non-batch dimensions to have positive length, but input has a shape of "
            f"{shape} and non-batch dimension 0 has length zero!"
        )
    if n == 1:
        shape.insert(-1, 1)
    raise RuntimeError(
        f"Expected 3D or 4D (batch mode) tensor with optional 0 dim batch size for input, but got:{shape}"
    )


def check_padding(n: int, taps: tuple[int, ...], pads: tuple[int, ...]) -> None:
    """Raise if a window could see nothing but padding, were it not dilated."""
    if all(pad <= tap // 2 for pad, tap in zip(pads, taps, strict=True)):
        return
    if n == 3:
        (t, h, w), (pad_t, pad_h, pad_w) = taps, pads
        given = f"kT: {t} kW: {w} kH: {h} padT: {pad_t} padW: {pad_w} padH: {pad_h}"
    else:
        (h, w), (pad_h, pad_w) = as_plane(taps), as_plane(pads, 0)
        given = f"padW = {pad_w}, padH = {pad_h}, kW = {w}, kH = {h}"
    raise RuntimeError(f"pad should be smaller than or equal to half of kernel size, but got {given}")


def output_sizes(name: str, input: Tensor, output_size: OutputSize) -> tuple[int, ...]:
    """Return how many windows an adaptive pooling function is to lay over each dimension.

    Raises:
        ValueError: if the input has fewer dimensions than sizes are given.
        RuntimeError: if a size is negative, or their number or the input's does not fit.
    """
    n = int(name[-2])
    if isinstance(output_size, int | torch.SymInt):
        counts: tuple[int, ...] = (output_size,) * n
    else:
        if n > 1 and input.dim() <= len(output_size):
            raise ValueError(f"Input dimension should be at least {len(output_size) + 1}")
        check_dimensions(name, input)
        if len(output_size) != n:
            raise RuntimeError(
                f"{name}() argument 'output_size' should contain one int (got {len(output_size)})"
                if n == 1
                else f"{name}(): internal error: output_size.size() must be {n}"
                if "max" in name
                else f"{name}: output_size must be {n}"
            )
        sizes = input.shape[-n:]
        counts = tuple(size if count is None else count for size, count in zip(sizes, output_size, strict=True))
    check_dimensions(name, input)
    flat = as_plane(counts)
    if "avg" in name and min(counts) < 0:
        given = ", ".join(map(str, flat)) if n < 3 else "{}, {},{}".format(*flat)
        raise RuntimeError(
            f"{name.replace('1', '2')}: elements of output_size must be greater than or equal to 0 but received "
            f"{{{given}}}"
        )
    check_adaptive_not_empty(name, input)
    if min(counts) < 0:
        shape = [*input.shape[:-n], *flat]
        raise RuntimeError(f"Trying to create tensor with negative dimension {min(counts)}: {shape}")
    return counts


def check_adaptive_not_empty(name: str, input: Tensor) -> None:
    """Raise if a dimension to be covered is empty, or for most functions the planes are."""
    n = int(name[-2])
    shape = list(input.shape)
    first = 1
    if "avg" in name and n < 3:
        name = "adaptive_avg_pool2d"
        shape[-n:] = as_plane(shape[-n:])
        first = len(shape) - 2
    for dim in range(first, len(shape)):
        if shape[dim] == 0:
            raise RuntimeError(
                f"{name}(): Expected input to have non-zero size for non-batch dimensions, but input has sizes {shape} "
                f"with dimension {dim} being empty"
            )


def check_dtype(kernel: str, input: Tensor, *integers: torch.dtype) -> None:
    """Raise if torch's kernel takes neither all floating-point numbers nor these integers."""
    if not input.is_floating_point() and input.dtype not in integers:
        raise NotImplementedError(f"\"{kernel}\" not implemented for '{scalar_type(input)}'")


def check_max_pool1d(
    input: Tensor, kernel_size: Size, stride: Size | None, padding: Size, dilation: Size, ceil_mode: bool
) -> None:
    """Raise what torch's `max_pool1d` raises when no indices are asked for: it has checks of its own."""
    shape = list(input.shape)
    if len(shape) not in (2, 3) or not all(shape[-2:]):
        raise RuntimeError(
            "max_pool1d: Expected 2D or 3D (batch mode) tensor with optional 0 dim batch size for input, "
            f"but got:{shape}"
        )
    if stride is None or (isinstance(stride, Sequence) and not stride):
        stride = kernel_size
    given = {"kernel_size": kernel_size, "stride": stride, "padding": padding, "dilation": dilation}
    for name, value in given.items():
        if isinstance(value, Sequence) and len(value) != 1:
            kinds = {
                "kernel_size": "an int, list of ints or tuple of ints",
                "dilation": "an int, list of ints or tuple of ints",
                "stride": "None, an int, list of ints, or tuple of ints",
            }
            kind = kinds.get(name, "an int, list of ints, or tuple of ints")
            raise RuntimeError(f"max_pool1d() {name} must be {kind} of size 1 but got size {len(value)}")
    taps, step, pad, spread = (one_each("max_pool1d", *item)[0] for item in given.items())
    for name, number in (("kernel_size", taps), ("stride", step)):
        if number <= 0:
            raise RuntimeError(f"max_pool1d() {name} must be greater than zero, but got {number}")
    if pad < 0:
        raise RuntimeError(f"max_pool1d() padding must be non-negative, but got {pad}")
    if pad > taps // 2:
        raise RuntimeError(
            f"max_pool1d() padding should be at most half of kernel size, but got padding={pad} and kernel_size={taps}"
        )
    if spread <= 0:
        raise RuntimeError(f"max_pool1d() dilation must be greater than zero, but got {spread}")
    count = count_windows(shape[-1], taps, step, pad, spread, ceil_mode)
    if count < 1:
        raise RuntimeError(f"max_pool1d() Invalid computed output size: {count}")
