"""What is measured in a step: sums and extremes, which shards and devices can add up, and what is made of them."""

from __future__ import annotations

import math
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
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


USUAL = {torch.float32, torch.float64, torch.float16, torch.bfloat16}
"""The types of tensors that are measured as they are."""


class Place(NamedTuple):
    """Where a part of a tensor is, and among which processes the rest."""

    device: torch.device
    mesh: Any = None
    """Of a `DTensor`."""
    dims: tuple[int, ...] = ()
    """The dimensions of the mesh along which the tensor is sharded."""


place = cache(Place)
"""The place of a whole tensor, by its device; kept, since it is asked for each tensor in each logged step."""


class Part(NamedTuple):
    """The part of a tensor that this process has: of most tensors, all of it."""

    tensor: Tensor
    """Real and dense; it shares the memory of a dense tensor."""
    place: Place
    size: int
    """The number of elements of the whole tensor."""


def part(tensor: Tensor) -> Part:
    """Return the part of a tensor that this process has; to be called, and used, where autograd does not record."""
    if tensor.dtype in USUAL and type(tensor) in (Tensor, torch.nn.Parameter) and tensor.layout == torch.strided:
        return Part(tensor, place(tensor.device), tensor.numel())
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
    """Numbers that are computed where the tensors are, each for one tensor, and brought to the host together."""

    def __init__(self) -> None:
        self.sizes: defaultdict[tuple[int, str], int] = defaultdict(int)
        """The number of elements, by group and what is measured."""
        self._numbers: defaultdict[tuple[Place, torch.dtype, str], list[tuple[Key, Tensor]]] = defaultdict(list)
        """Numbers of one type in one place, and how those of shards are to be combined."""

    def norm(self, group: int, what: str, parts: Iterable[Part], *, zeros: bool = False) -> None:
        """Measure the norm of all elements and, if asked, how many of them are not zero."""
        for where, tensors in self._sort(group, what, parts):
            norms = torch._foreach_norm(tensors, 2, dtype=sum_dtype(tensors))  # as `clip_grad_norm_` does
            self._put(where, "square", (group, what, "square"), norms)
            if zeros:
                self._put(where, "sum", (group, what, "nonzero"), map(torch.count_nonzero, tensors))

    def spread(self, group: int, what: str, parts: Iterable[Part]) -> None:
        """Measure the sum, the smallest and the largest element."""
        for where, tensors in self._sort(group, what, parts):
            dtype = sum_dtype(tensors)
            self._put(where, "sum", (group, what, "sum"), (tensor.sum(dtype=dtype) for tensor in tensors))
            for tensor in tensors:
                low, high = (
                    tensor.aminmax() if tensor.numel() else (tensor.new_tensor(x) for x in (math.inf, -math.inf))
                )
                self._put(where, "min", (group, what, "min"), [low])
                self._put(where, "max", (group, what, "max"), [high])

    def _sort(self, group: int, what: str, parts: Iterable[Part]) -> Iterable[tuple[Place, list[Tensor]]]:
        """Count the elements, and return the tensors by their places."""
        found: dict[Place, list[Tensor]] = {}
        for tensor, where, size in parts:
            self.sizes[group, what] += size
            found.setdefault(where, []).append(tensor)
        return found.items()

    def _put(self, where: Place, kind: str, key: Key, numbers: Iterable[Tensor]) -> None:
        for number in numbers:
            self._numbers[where, number.dtype, kind].append((key, number))

    def read(self) -> dict[Key, float]:
        """Return all numbers, of the whole tensors; every process that has shards of them has to call it."""
        found: dict[Key, float] = {}
        for (where, _, kind), entries in self._numbers.items():
            numbers = torch.stack([number for _, number in entries])
            numbers = numbers.float() if where.device.type == "mps" else numbers.double()
            if kind == "square":
                numbers.square_()
            operation, merge = COMBINE[kind]
            for dim in where.dims:
                how = getattr(torch.distributed.ReduceOp, operation)
                torch.distributed.all_reduce(numbers, how, group=where.mesh.get_group(dim))
            for (key, _), number in zip(entries, numbers.tolist(), strict=True):
                found[key] = merge(found[key], number) if key in found else number
        return found


def sum_dtype(tensors: list[Tensor]) -> torch.dtype:
    """Return the type in which the elements of tensors are added up."""
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32


def smaller(a: float, b: float) -> float:
    """Return the smaller number, and NaN if one is."""
    return a if a <= b or a != a else b


def larger(a: float, b: float) -> float:
    """Return the larger number, and NaN if one is: Python's `max` depends on their order then."""
    return a if a >= b or a != a else b


COMBINE: dict[str, tuple[str, Callable[[float, float], float]]] = {
    "square": ("SUM", float.__add__),
    "sum": ("SUM", float.__add__),
    "min": ("MIN", smaller),
    "max": ("MAX", larger),
}
"""How the numbers of shards become one, and those of tensors."""


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
    measured = [what for index, what in tally.sizes if index == group]
    for what in measured:
        size = tally.sizes[group, what]
        if (group, what, "square") in numbers:
            found[f"{what}_norm"] = math.sqrt(numbers[group, what, "square"])
        if (group, what, "sum") in numbers and size:
            found[f"{what}_mean"] = numbers[group, what, "sum"] / size
            found[f"{what}_min"] = numbers[group, what, "min"]
            found[f"{what}_max"] = numbers[group, what, "max"]
        if (group, what, "nonzero") in numbers and size:
            found[f"zero_{what}s"] = 1 - numbers[group, what, "nonzero"] / size
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
