"""What a convolution is told, and what is refused."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from reimpl.nn.functional.padding import Widths, both_sides, padded_dims, same_widths
from reimpl.nn.functional.windows import Size

NAMES = {
    torch.float16: "c10::Half",
    torch.bfloat16: "c10::BFloat16",
    torch.float32: "float",
    torch.float64: "double",
    torch.complex64: "c10::complex<float>",
    torch.complex128: "c10::complex<double>",
    torch.int64: "long int",
}
"""What torch's error calls a dtype."""


class Geometry(NamedTuple):
    """How a kernel slides.

    Attributes:
        stride: from a window to the next, in each dimension.
        padding: zeros around the input, in the order of `pad`: the last dimension's first.
        dilation: from a tap to the next, in each dimension.
        groups: into which the channels fall.
    """

    stride: tuple[int, ...]
    padding: Widths
    dilation: tuple[int, ...]
    groups: int


def batched(n: int, input: Tensor) -> Tensor:
    """Return the input with a dimension for the samples, if it has none."""
    if input.dim() not in (n + 1, n + 2):
        raise RuntimeError(
            f"Expected {n + 1}D (unbatched) or {n + 2}D (batched) input to conv{n}d, "
            f"but got input of size: {list(input.shape)}"
        )
    return input if input.dim() == n + 2 else input.unsqueeze(0)


def read_geometry(
    n: int, batch: Tensor, weight: Tensor, stride: Size, padding: Size | str, dilation: Size, groups: int
) -> Geometry:
    """Bring what a convolution over $n$ dimensions is told to one form, or refuse it in torch's words."""
    if weight.dim() < 3:
        raise RuntimeError("weight should have at least three dimensions")
    if groups <= 0:
        raise RuntimeError("non-positive groups is not supported")
    if padding == "same":
        check_dims(batch, weight)
    stride = one_for_each("stride", stride, n, weight)
    if isinstance(padding, str):
        dilation = one_for_each("dilation", dilation, n, weight)
        return Geometry(stride, widths_of(padding, weight.shape[2:], stride, dilation), dilation, groups)
    padding = one_for_each("padding", padding, n, weight)
    dilation = one_for_each("dilation", dilation, n, weight)
    return Geometry(stride, both_sides(padding), dilation, groups)


def check_dims(batch: Tensor, weight: Tensor) -> None:
    """Raise if the kernel slides along more or fewer dimensions than there are."""
    if batch.dim() != weight.dim():
        raise RuntimeError(
            f"Expected {weight.dim()}-dimensional input for {weight.dim()}-dimensional weight {list(weight.shape)}, "
            f"but got {batch.dim()}-dimensional input of size {list(batch.shape)} instead"
        )


def one_for_each(name: str, size: Size, n: int, weight: Tensor) -> tuple[int, ...]:
    """Return one number for each of the kernel's dimensions."""
    sizes = tuple(map(operator.index, size)) if isinstance(size, Sequence) else (operator.index(size),) * n
    dims = weight.dim() - 2
    if len(sizes) not in (1, dims):
        raise RuntimeError(
            f"expected {name} to be a single integer value or a list of {dims} values to match the convolution "
            f"dimensions, but got {name}={list(sizes)}"
        )
    return sizes * dims if len(sizes) == 1 else sizes


def widths_of(padding: str, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> Widths:
    """Return the widths that `valid` or `same` stands for."""
    if padding == "valid":
        return (0, 0) * len(kernel)
    if padding != "same":
        raise RuntimeError(f"Invalid padding string: '{padding}'")
    if any(step != 1 for step in stride):
        raise RuntimeError("padding='same' is not supported for strided convolutions")
    return same_widths(kernel, dilation)


def check(batch: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> None:
    """Raise torch's error if a batch, the weight and the bias do not fit each other."""
    stride, padding, dilation, groups = geometry
    if any(width < 0 for width in padding):
        raise RuntimeError("negative padding is not supported")
    if any(step <= 0 for step in stride):
        raise RuntimeError("non-positive stride is not supported")
    if any(spread < 0 for spread in dilation):
        raise RuntimeError("dilation should be greater than zero")
    given, kernel = list(batch.shape), list(weight.shape)
    check_dims(batch, weight)
    if kernel[0] < groups:
        raise RuntimeError(
            f"Given groups={groups}, expected weight to be at least {groups} at dimension 0, "
            f"but got weight of size {kernel} instead"
        )
    if kernel[0] % groups:
        raise RuntimeError(
            f"Given groups={groups}, expected weight to be divisible by {groups} at dimension 0, "
            f"but got weight of size [{kernel}] instead"
        )
    if given[1] != kernel[1] * groups:
        raise RuntimeError(
            f"Given groups={groups}, weight of size {kernel}, expected input{given} to have "
            f"{kernel[1] * groups} channels, but got {given[1]} channels instead"
        )
    if bias is not None and list(bias.shape) != kernel[:1]:
        raise RuntimeError(
            f"Given weight of size {kernel}, expected bias to be 1-dimensional with {kernel[0]} elements, "
            f"but got bias of size {list(bias.shape)} instead"
        )
    sizes = [given[dim] + before + after for dim, before, after in padded_dims(padding)][::-1]
    spans = [spread * (taps - 1) + 1 for taps, spread in zip(kernel[2:], dilation, strict=True)]
    if any(size < span for size, span in zip(sizes, spans, strict=True)):
        raise RuntimeError(
            f"Calculated padded input size per channel: ({' x '.join(map(str, sizes))}). "
            f"Kernel size: ({' x '.join(map(str, spans))}). Kernel size can't be greater than actual input size"
        )
    if 0 in dilation:
        raise RuntimeError("non-positive dilation is not supported")


def check_dtypes(input: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Raise if the dtypes, after autocast, are not the same."""
    if weight.dtype != input.dtype:
        raise RuntimeError(f"Input type ({input.dtype}) and weight type ({weight.dtype}) should be the same")
    if bias is not None and bias.dtype != input.dtype:
        given, found = (NAMES.get(tensor.dtype, tensor.dtype) for tensor in (input, bias))
        raise RuntimeError(f"Input type ({given}) and bias type ({found}) should be the same")
