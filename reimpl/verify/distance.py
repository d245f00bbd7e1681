"""How far apart two tensors are: in bits, in units in the last place, and relative to the tensor's scale."""

import math

import torch
from torch import Tensor

INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def real_view(tensor: Tensor) -> Tensor:
    """Return a dense, detached, real view: sparse tensors by their values, complex ones as pairs."""
    tensor = tensor.detach()
    if tensor.is_sparse:
        tensor = tensor.to_dense()
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def same_bits(first: Tensor, second: Tensor) -> bool:
    """Return whether dtype, shape and every bit agree: signed zeros and the payload of NaN included."""
    if first.dtype != second.dtype or first.shape != second.shape or first.is_sparse != second.is_sparse:
        return False
    return torch.equal(as_bits(first), as_bits(second))


def as_bits(tensor: Tensor) -> Tensor:
    """Reinterpret floating-point numbers as integers of the same width."""
    tensor = real_view(tensor)
    return tensor.contiguous().view(INTEGERS[tensor.element_size()]) if tensor.is_floating_point() else tensor


def ulp_distance(first: Tensor, second: Tensor) -> int:
    """Return the largest number of representable values between two elements; NaN is equal to NaN alone."""
    if not first.numel():
        return 0
    missing = torch.isnan(real_view(first)) != torch.isnan(real_view(second))
    mine, theirs = ordered(first), ordered(second)
    steps = (mine - theirs).abs()
    # The distance of two float64 can exceed int64, and would wrap.
    beyond = (mine.double() - theirs.double()).abs() > 2.0**62
    steps = torch.where(missing | beyond, torch.iinfo(torch.int64).max, steps)
    return int(torch.where(torch.isnan(real_view(first)) & ~missing, 0, steps).max())


def ordered(tensor: Tensor) -> Tensor:
    """Return the rank of each floating-point value: neighbours differ by one, both zeros are 0."""
    bits = as_bits(tensor).to(torch.int64)
    lowest = -(2 ** (8 * real_view(tensor).element_size() - 1))
    return torch.where(bits < 0, lowest - bits, bits)


def first_difference(first: Tensor, second: Tensor) -> tuple[int, ...]:
    """Return the index of the first element whose bits differ; for complex tensors the last index is the part."""
    return tuple(int(i) for i in (as_bits(first) != as_bits(second)).nonzero()[0])


def relative_error(tensor: Tensor, oracle: Tensor) -> float:
    """Return the largest absolute error, relative to the oracle tensor's largest magnitude.

    A single element's relative error says nothing near zero, where cancellation makes any bound look broken.
    """
    errors = scaled_errors(tensor, oracle)
    if errors is None:
        return math.inf
    return float(errors.max()) if errors.numel() else 0.0


def mean_error(pairs: list[tuple[Tensor, Tensor]]) -> float:
    """Return the root mean square error over all elements of all tensors, each relative to its oracle's magnitude."""
    errors = [scaled_errors(tensor, oracle) for tensor, oracle in pairs]
    if any(error is None for error in errors):
        return math.inf
    every = torch.cat([error.flatten() for error in errors if error is not None])
    return float(every.square().mean().sqrt()) if every.numel() else 0.0


def scaled_errors(tensor: Tensor, oracle: Tensor) -> Tensor | None:
    """Return the errors of the finite elements relative to the largest magnitude; None if others are finite."""
    value, truth = real_view(tensor).double(), real_view(oracle).double()
    finite = torch.isfinite(truth)
    if not torch.equal(finite, torch.isfinite(value)):
        return None
    value, truth = value[finite], truth[finite]
    scale = truth.abs().max().item() if truth.numel() else 0.0
    return (value - truth).abs() / scale if scale else (value - truth).abs()
