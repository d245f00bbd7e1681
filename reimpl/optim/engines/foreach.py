"""The foreach engine: the rule on lists of tensors, one dispatch for a whole batch."""

from __future__ import annotations

from collections.abc import Callable
from itertools import repeat
from typing import Any

import torch
from torch import Tensor

from reimpl.optim.engines.batch import Batch, Rule
from reimpl.optim.engines.operands import Operand, fold_scale


def foreach(rule: Rule, batch: Batch) -> None:
    """Run `rule` once, on a `TensorList` of parameters, one of gradients and one of each state tensor."""
    grads = TensorList(batch.grads)
    rule(
        TensorList(batch.params),
        -grads if batch.maximize else grads,
        *(tensors and TensorList(tensors) for tensors in batch.state),
        **batch.coefficients,
    )


class TensorList(Operand):
    """Tensors that answer a method or an operator together, with `torch._foreach_NAME`.

    `TensorList(xs).addcdiv_(TensorList(ys), TensorList(zs), value=2.0)` calls
    `torch._foreach_addcdiv_(xs, ys, zs, value=2.0)`. An operand is another list, a number, or a 0-dim tensor; a name
    ending in `_` works in place and returns the list itself. A method for which torch has no `_foreach_` function is
    called on one tensor after the other.

    Args:
        tensors: the tensors, of one device and dtype for torch's fast path.
    """

    __slots__ = ("tensors",)

    def __init__(self, tensors: list[Tensor] | tuple[Tensor, ...]) -> None:
        self.tensors = tensors

    def __len__(self) -> int:
        return len(self.tensors)

    def __repr__(self) -> str:
        return f"TensorList({list(self.tensors)!r})"

    def __getattr__(self, name: str) -> Callable[..., TensorList]:
        if name.startswith("__"):
            raise AttributeError(name)

        def method(*args: Any, **kwargs: Any) -> TensorList:
            return self._call(name, *args, **kwargs)

        return method

    def _call(self, name: str, *args: Any, **kwargs: Any) -> TensorList:
        args, kwargs = fold_scale(args, kwargs)
        function = getattr(torch, f"_foreach_{name}", None)
        if function is not None:
            args = tuple(arg.tensors if isinstance(arg, TensorList) else arg for arg in args)
            result = function(self.tensors, *args, **kwargs)
        else:
            columns = (arg.tensors if isinstance(arg, TensorList) else repeat(arg) for arg in args)
            rows = zip(self.tensors, *columns, strict=False)
            result = [getattr(tensor, name)(*row, **kwargs) for tensor, *row in rows]
        return self if name.endswith("_") else TensorList(result)

    def clamp_min_(self, other: Any) -> TensorList:
        """Take the larger one; of lists, `torch._foreach_maximum_` does and takes sharded tensors in every version."""
        if isinstance(other, TensorList):
            return self._call("maximum_", other)
        return self._call("clamp_min_", other)

    def lerp_(self, end: TensorList, weight: Any) -> TensorList:
        """Move towards `end` by `weight`; `torch._foreach_lerp_` cannot be compiled with a list of weights."""
        if isinstance(weight, TensorList):
            return self._call("add_", end._call("sub", self)._call("mul", weight))
        return self._call("lerp_", end, weight)

    def __neg__(self) -> TensorList:
        return self._call("neg")

    def __add__(self, other: Any) -> TensorList:
        return self._call("add", other)

    def __sub__(self, other: Any) -> TensorList:
        return self._call("sub", other)

    def __mul__(self, other: Any) -> TensorList:
        return self._call("mul", other)

    def __truediv__(self, other: Any) -> TensorList:
        return self._call("div", other)

    def __pow__(self, exponent: Any) -> TensorList:
        return self._call("pow", exponent)

    __radd__ = __add__
    __rmul__ = __mul__

    def __rsub__(self, other: Any) -> TensorList:
        return self._call("neg").add_(other)

    def __rtruediv__(self, other: Any) -> TensorList:
        return self._call("reciprocal").mul_(other)

    def __rpow__(self, base: Any) -> TensorList:
        return TensorList(torch._foreach_pow(base, self.tensors))
