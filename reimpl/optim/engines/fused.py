"""The fused engine: the rule compiled to one kernel, which reads and writes every number once."""

from __future__ import annotations

import warnings
import weakref
from array import array
from collections import defaultdict
from collections.abc import Callable
from functools import cache
from itertools import accumulate
from operator import attrgetter, call, is_
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from reimpl.optim.engines.batch import Batch, Rule
from reimpl.optim.engines.foreach import foreach
from reimpl.optim.engines.kernel import Kernel, NoKernelError, Spec, find_kernel
from reimpl.optim.engines.symbolic import static, variable

WARNED: set[str] = set()
shape_of, dtype_of = attrgetter("shape"), attrgetter("dtype")


def fused(rule: Rule, batch: Batch) -> None:
    """Run `rule` as one kernel on all tensors of the batch.

    If no kernel can be made, the foreach engine takes over, and a warning names the cause, once. It also has the
    parameters whose gradient or state lies in memory in another order than they, or not densely.
    """
    places = find_places(batch)
    if places is not None:
        run_kernel(rule, batch, places)
        return
    parts = defaultdict(list)
    for index in range(len(batch.params)):
        alone = batch.pick([index])
        parts[find_places(alone) is not None, *(dtype_of(tensor) for (tensor,) in alone.tensors())].append(index)
    for (regular, *_), indices in parts.items():
        part = batch.pick(indices)
        if regular:
            run_kernel(rule, part, Places.of([part.params, *part.tensors()[2:]]))
        else:
            unscaled_foreach(rule, part)


def run_kernel(rule: Rule, batch: Batch, places: Places) -> None:
    """Run `rule` as one kernel on tensors whose places are known, or else on lists."""
    try:
        kernel, numbers = kernel_for(rule, batch)
    except NoKernelError as cause:
        name = rule.__qualname__.rpartition("<locals>.")[-1]
        warn_once(f"fused=True: the foreach engine takes over {name}: {cause}")
        unscaled_foreach(rule, batch)
        return
    params, *state = places.addresses
    addresses = [params, list(map(Tensor.data_ptr, batch.grads)), *state]
    kernel.launch(places.ends, addresses, numbers, batch.params[0].device)
    torch.autograd.graph.increment_version(batch.params)


def kernel_for(rule: Rule, batch: Batch) -> tuple[Kernel, list[float]]:
    """Return the kernel for a batch, and the numbers that it takes.

    Raises:
        NoKernelError: if there is none.
    """
    firsts = [None if tensors is None else tensors[0] for tensors in (batch.params, batch.grads, *batch.state)]
    numbers = variable(batch.coefficients, batch.grad_scale)
    spec = Spec(
        rule=rule,
        dtypes=tuple(None if first is None else first.dtype for first in firsts),
        constants=static(batch.coefficients),
        maximize=batch.maximize,
        scaled=batch.grad_scale is not None,
        device=batch.params[0].device,
    )
    return find_kernel(spec, batch.coefficients, batch.grad_scale), list(numbers.values())


def unscaled_foreach(rule: Rule, batch: Batch) -> None:
    """Run the foreach engine, on gradients that are divided by their scale first."""
    if batch.grad_scale is not None:
        for grad in batch.grads:  # of any layout: `_foreach_div_` takes no negated views
            grad.div_(batch.grad_scale)
    foreach(rule, batch._replace(grad_scale=None))


def warn_once(message: str) -> None:
    """Warn, once a process for each message."""
    if message not in WARNED:
        WARNED.add(message)
        warnings.warn(message, RuntimeWarning, stacklevel=2)


class Places(NamedTuple):
    """Where parameters and state tensors are, and where each parameter would end if they lay one behind the other."""

    addresses: list[list[int]]
    strides: list[list[tuple[int, ...]]]
    sizes: list[int]
    ends: array[int]
    references: list[list[Callable[[], Tensor | None]]]

    @classmethod
    def of(cls, columns: list[list[Tensor]]) -> Places:
        """Look up where tensors are, without keeping them alive."""
        sizes = list(map(Tensor.numel, columns[0]))
        return cls(
            addresses=[list(map(Tensor.data_ptr, column)) for column in columns],
            strides=[list(map(Tensor.stride, column)) for column in columns],
            sizes=sizes,
            ends=array("q", accumulate(sizes)),
            references=[[weakref.ref(tensor) for tensor in column] for column in columns],
        )

    def hold(self, columns: list[list[Tensor]]) -> bool:
        """Return whether these are the same tensors and begin where they began, with the same strides.

        Then nobody has replaced them or given them other data, and they need not be looked at again, which takes longer
        than to update them if they are small.
        """
        return (
            len(columns[0]) == len(self.ends)
            and all(all(map(is_, new, map(call, old))) for new, old in zip(columns, self.references, strict=True))
            and [list(map(Tensor.data_ptr, column)) for column in columns] == self.addresses
            and [list(map(Tensor.stride, column)) for column in columns] == self.strides
        )


PLACES: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
"""What is remembered from step to step, by the first tensor of an optimizer's last state."""


def find_places(batch: Batch) -> Places | None:
    """Return where parameters and state are, or None if a kernel could not go by addresses.

    It can if number i in the memory of each tensor belongs to number i in that of its parameter.
    """
    columns = batch.tensors()
    kept = [batch.params, *columns[2:]]
    if any(map(Tensor.is_neg, batch.grads)) or not are_alike(batch.grads):
        return None
    places: Places | None = PLACES.get(kept[-1][0])  # type: ignore[no-untyped-call]
    if places is None or not places.hold(kept):
        if not all(map(are_alike, kept)) or not all(map(lie_alike, *columns)):
            return None
        places = PLACES[kept[-1][0]] = Places.of(kept)
    if list(map(Tensor.numel, batch.grads)) != places.sizes:
        return None
    same = list(map(Tensor.stride, batch.grads)) == places.strides[0]
    return places if same or all(map(lie_alike, batch.params, batch.grads)) else None


def are_alike(tensors: list[Tensor]) -> bool:
    """Return whether all tensors are of one dtype, and hold numbers."""
    return all(map(has_address, set(map(type, tensors)))) and len(set(map(dtype_of, tensors))) == 1


def lie_alike(param: Tensor, *others: Tensor) -> bool:
    """Return whether gradient and state lie in memory in the order of their parameter, and all of them densely."""
    return (
        is_dense(param)
        and not param.is_neg()
        and all(tensor.shape == param.shape and layout(tensor) == layout(param) for tensor in others)
    )


@cache
def has_address(kind: type) -> bool:
    """Return whether tensors of a class hold numbers at `data_ptr()`, as those do that leave dispatch to torch."""
    default: Any = Tensor.__torch_dispatch__
    return bool(kind.__torch_dispatch__ == default)  # type: ignore[attr-defined]


def is_dense(tensor: Tensor) -> bool:
    """Return whether each number of the tensor's memory belongs to exactly one of its elements."""
    return tensor.is_contiguous() or layout(tensor) == layout(torch.empty_like(tensor, device="meta"))


def layout(tensor: Tensor) -> list[int]:
    """Return the strides of the dimensions that have several entries."""
    return [stride for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1]
