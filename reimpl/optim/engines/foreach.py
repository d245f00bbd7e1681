"""The foreach engine: the rule on lists of tensors, one dispatch for a whole batch."""

from __future__ import annotations

from collections.abc import Callable
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


COMMON = {"dtype", "device"}
"""What all tensors of a list share."""
REDUCTIONS = {"norm", "max"}
"""Whose `_foreach_` functions take whole tensors only; with arguments, each tensor is reduced by itself."""
UNSHARDED = {"copy_", "sign", "sign_"}
"""Whose `_foreach_` functions do not know sharded tensors in every version of torch; these go one by one."""


class TensorList(Operand):
    """Tensors that answer a method or an operator together, with `torch._foreach_NAME`.

    `TensorList(xs).addcdiv_(TensorList(ys), TensorList(zs), value=2.0)` calls
    `torch._foreach_addcdiv_(xs, ys, zs, value=2.0)`. An operand is another list, a number, or a 0-dim tensor; a name
    ending in `_` works in place and returns the list itself. A method for which torch has no `_foreach_` function is
    called on one tensor after the other. `torch.sqrt(xs)` is taken for `xs.sqrt()`.

    Args:
        tensors: the tensors, of one device and dtype for torch's fast path.
    """

    __slots__ = ("tensors",)
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, tensors: list[Tensor] | tuple[Tensor, ...]) -> None:
        self.tensors = tensors

    def __len__(self) -> int:
        return len(self.tensors)

    def __repr__(self) -> str:
        return f"TensorList({list(self.tensors)!r})"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name in COMMON:
            return getattr(self.tensors[0], name)
        if not callable(getattr(Tensor, name, None)):
            raise AttributeError(
                f"the rule asks for `{name}`, which each tensor has its own: set `elementwise = False`"
            )

        def method(*args: Any, **kwargs: Any) -> TensorList:
            return self._call(name, *args, **kwargs)

        return method

    def _call(self, name: str, *args: Any, **kwargs: Any) -> TensorList:
        args, kwargs = fold_scale(args, kwargs)
        function = getattr(torch, f"_foreach_{name}", None)
        if name in UNSHARDED and hasattr(self.tensors[0], "to_local"):
            function = None
        if function is not None and not (name in REDUCTIONS and (args or kwargs)):
            args = tuple(arg.tensors if isinstance(arg, TensorList) else arg for arg in args)
            result = function(self.tensors, *args, **kwargs)
        else:
            result = one_by_one(getattr(Tensor, name), (self, *args), kwargs)
        return self if name.endswith("_") else TensorList(result)

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> TensorList:
        """Take `torch.sqrt(xs)` for `xs.sqrt()`."""
        first = args[0]
        if isinstance(first, TensorList) and hasattr(torch, f"_foreach_{func.__name__}"):
            return first._call(func.__name__, *args[1:], **(kwargs or {}))
        return TensorList(one_by_one(func, args, kwargs or {}))

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

    def __abs__(self) -> TensorList:
        return self._call("abs")

    def __invert__(self) -> TensorList:
        return self._call("logical_not")

    def __gt__(self, other: Any) -> TensorList:
        return self._call("gt", other)

    def __ge__(self, other: Any) -> TensorList:
        return self._call("ge", other)

    def __lt__(self, other: Any) -> TensorList:
        return self._call("lt", other)

    def __le__(self, other: Any) -> TensorList:
        return self._call("le", other)

    def __eq__(self, other: object) -> TensorList:  # type: ignore[override]
        return self._call("eq", other)

    def __ne__(self, other: object) -> TensorList:  # type: ignore[override]
        return self._call("ne", other)

    def __and__(self, other: Any) -> TensorList:
        return self._call("logical_and", other)

    def __or__(self, other: Any) -> TensorList:
        return self._call("logical_or", other)

    def __bool__(self) -> bool:
        raise TypeError("the rule decides by a tensor's value; `torch.where` would do it for each element")

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
        return self._call("neg")._call("add_", other)

    def __rtruediv__(self, other: Any) -> TensorList:
        return self._call("reciprocal")._call("mul_", other)

    def __rpow__(self, base: Any) -> TensorList:
        return TensorList(torch._foreach_pow(base, self.tensors))


def one_by_one(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """Call a function on the first tensors of all lists among its arguments, then on the second ones, and so on."""
    length = next(len(arg) for arg in (*args, *kwargs.values()) if isinstance(arg, TensorList))

    def at(index: int, arg: Any) -> Any:
        return arg.tensors[index] if isinstance(arg, TensorList) else arg

    results = [
        function(*(at(i, arg) for arg in args), **{name: at(i, arg) for name, arg in kwargs.items()})
        for i in range(length)
    ]
    if not all(isinstance(result, Tensor) for result in results):
        name = function.__name__
        raise TypeError(
            f"the rule calls `{name}`, which gives each tensor a value of its own: set `elementwise = False`"
        )
    return results
