"""What is measured in a step: sums and extremes, which shards and devices can add up, and what is made of them."""

from __future__ import annotations

import math
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

SECOND_MOMENTS = {
    "exp_avg_sq",
    "max_exp_avg_sq",
    "exp_inf",
    "square_avg",
    "acc_delta",
    "sum",
    "row_var",
    "col_var",
    "variance",
}
"""The state that updates are divided by, or by whose root: none of it is negative. Names of your own can be added."""

CLIPPED = 1e-3
"""How far below the maximum, relatively, the norm of a clipped gradient may be.

`clip_grad_norm_` multiplies by `max_norm / (norm + 1e-6)`, and the product is rounded.
"""


class Place(NamedTuple):
    """Where a part of a tensor is, and among which processes the rest."""

    device: torch.device
    mesh: Any = None
    """Of a `DTensor`."""
    dims: tuple[int, ...] = ()
    """The dimensions of the mesh along which the tensor is sharded."""


class Part(NamedTuple):
    """The part of a tensor that this process has: of most tensors, all of it."""

    tensor: Tensor
    """Real, dense, and without a graph; it shares the memory of a dense tensor."""
    place: Place
    size: int
    """The number of elements of the whole tensor."""


def part(tensor: Tensor) -> Part:
    """Return the part of a tensor that this process has."""
    tensor = tensor.detach()
    size = tensor.numel()
    mesh: Any = None
    dims: tuple[int, ...] = ()
    distributed = sys.modules.get("torch.distributed.tensor")  # without it there is no `DTensor`
    if distributed is not None and isinstance(tensor, distributed.DTensor):
        whole = [distributed.Replicate() if one.is_partial() else one for one in tensor.placements]
        mesh = tensor.device_mesh
        dims = tuple(dim for dim, one in enumerate(whole) if not one.is_replicate())
        tensor = tensor.redistribute(placements=whole).to_local()
    if tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
        size *= 2
    if tensor.element_size() == 1:  # 8-bit floats, for which torch has no reductions
        tensor = tensor.float()
    return Part(tensor, Place(tensor.device, mesh, dims), size)


Key = tuple[int, str, str]
"""A group's index, what is measured (`"grad"`), and which measure of it (`"square"`)."""


class Tally:
    """Numbers that are computed where the tensors are, and brought to the host together."""

    def __init__(self) -> None:
        self.counts: defaultdict[tuple[int, str], int] = defaultdict(int)
        """The number of elements, by group and what is measured."""
        self._sums: defaultdict[Place, dict[Key, Tensor]] = defaultdict(dict)
        self._maxima: defaultdict[Place, dict[Key, Tensor]] = defaultdict(dict)

    def norm(self, group: int, what: str, parts: Iterable[Part], *, zeros: bool = False) -> None:
        """Measure the norm of all elements and, if asked, how many of them are not zero."""
        for place, tensors in self._sort(group, what, parts):
            self._sums[place][group, what, "square"] = over(tensors, place, square)
            if zeros:
                self._sums[place][group, what, "nonzero"] = over(tensors, place, nonzero)

    def spread(self, group: int, what: str, parts: Iterable[Part]) -> None:
        """Measure the sum, the smallest and the largest element."""
        for place, tensors in self._sort(group, what, parts):
            self._sums[place][group, what, "sum"] = over(tensors, place, total)
            limits = [torch.aminmax(tensor) for tensor in tensors]
            low, high = ([limit[i] for limit in limits] for i in (0, 1))
            self._maxima[place][group, what, "-min"] = -over(low, place, smallest, math.inf)
            self._maxima[place][group, what, "max"] = over(high, place, largest, -math.inf)

    def _sort(self, group: int, what: str, parts: Iterable[Part]) -> Iterable[tuple[Place, list[Tensor]]]:
        """Count the elements, and return what is not empty by its place: an empty shard's place is there too."""
        found: dict[Place, list[Tensor]] = {}
        for tensor, place, size in parts:
            self.counts[group, what] += size
            tensors = found.setdefault(place, [])
            if tensor.numel():
                tensors.append(tensor)
        return found.items()

    def read(self) -> dict[Key, float]:
        """Return all numbers, of the whole tensors; every process that has shards of them has to call it."""
        found: dict[Key, float] = {}
        merges: tuple[tuple[Any, str, Callable[[float, float], float]], ...] = (
            (self._sums, "SUM", float.__add__),
            (self._maxima, "MAX", larger),
        )
        for table, operation, merge in merges:
            for place, entries in table.items():
                numbers = torch.stack(list(entries.values()))
                for dim in place.dims:
                    how = getattr(torch.distributed.ReduceOp, operation)
                    torch.distributed.all_reduce(numbers, how, group=place.mesh.get_group(dim))
                for key, number in zip(entries, numbers.tolist(), strict=True):
                    found[key] = merge(found[key], number) if key in found else number
        return found


def over(tensors: list[Tensor], place: Place, measure: Callable[[list[Tensor]], Tensor], empty: float = 0) -> Tensor:
    """Return a measure of tensors as a 0-dim tensor of the widest type that the device has."""
    wide = torch.float32 if place.device.type == "mps" else torch.float64
    return measure(tensors).to(wide) if tensors else torch.full((), empty, dtype=wide, device=place.device)


def square(tensors: list[Tensor]) -> Tensor:
    """Return the sum of all squares, with the norms that `clip_grad_norm_` takes."""
    dtype = torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32
    norms = torch.stack(torch._foreach_norm(tensors, 2, dtype=dtype))
    return (norms if norms.device.type == "mps" else norms.double()).square().sum()


def nonzero(tensors: list[Tensor]) -> Tensor:
    """Return how many elements are not zero."""
    return torch.stack([torch.count_nonzero(tensor) for tensor in tensors]).sum()


def total(tensors: list[Tensor]) -> Tensor:
    """Return the sum of all elements."""
    dtype = torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32
    return torch.stack([tensor.sum(dtype=dtype) for tensor in tensors]).sum()


def smallest(limits: list[Tensor]) -> Tensor:
    """Return the smallest of 0-dim tensors."""
    return torch.stack([limit.to(limits[0].dtype) for limit in limits]).amin()


def largest(limits: list[Tensor]) -> Tensor:
    """Return the largest of 0-dim tensors."""
    return torch.stack([limit.to(limits[0].dtype) for limit in limits]).amax()


def larger(a: float, b: float) -> float:
    """Return the larger number, and NaN if one is: Python's `max` depends on their order then."""
    return a if a >= b or a != a else b


def describe(tally: Tally, numbers: Mapping[Key, float], group: int) -> dict[str, float]:
    """Return the statistics of a group by their names.

    θ are the parameters before the step, Δ what the step adds to them, g the gradients that it was given.

        param_norm      ‖θ‖, the root of the sum of squares over all elements of the group
        grad_norm       ‖g‖
        update_norm     ‖Δ‖
        step_size       ‖Δ‖ / ‖θ‖, the effective step size
        zero_grads      the share of elements of g that are 0
        zero_updates    the share of elements of Δ that are 0
        NAME_norm       the norm of a state tensor, over all parameters
        NAME_mean, NAME_min, NAME_max   instead, of `SECOND_MOMENTS`

    A ratio with denominator 0 is left out, and so is what the group does not have.
    """
    found = {}
    measured = [what for index, what in tally.counts if index == group]
    for what in measured:
        count = tally.counts[group, what]
        if (group, what, "square") in numbers:
            found[f"{what}_norm"] = math.sqrt(numbers[group, what, "square"])
        if (group, what, "sum") in numbers and count:
            found[f"{what}_mean"] = numbers[group, what, "sum"] / count
            found[f"{what}_min"] = -numbers[group, what, "-min"]
            found[f"{what}_max"] = numbers[group, what, "max"]
        if (group, what, "nonzero") in numbers and count:
            found[f"zero_{what}s"] = 1 - numbers[group, what, "nonzero"] / count
    if found.get("param_norm"):
        found["step_size"] = found["update_norm"] / found["param_norm"]
    return found


def is_clipped(grad_norm: float, max_norm: float) -> bool:
    """Return whether a gradient's norm is what clipping at a maximum leaves, or more."""
    return grad_norm >= (1 - CLIPPED) * max_norm


def state_tensors(states: Sequence[Mapping[str, Any]]) -> dict[str, list[Tensor]]:
    """Return the state of parameters by name: what is a tensor of numbers, and not one number for a parameter."""
    found: dict[str, list[Tensor]] = {}
    for state in states:
        for name, value in state.items():
            if isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex()):
                found.setdefault(name, []).append(value)
    return {name: tensors for name, tensors in found.items() if any(tensor.dim() for tensor in tensors)}
