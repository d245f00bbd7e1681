"""The differentiable engine: the rule without a single write, so that autograd can follow it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from reimpl.optim.engines.batch import Batch, Rule
from reimpl.optim.engines.operands import fold_scale


def differentiable(rule: Rule, batch: Batch) -> None:
    """Run `rule` on each parameter out of place, then write parameters and state back once, inside the graph.

    Gradients flow to the gradient, to the parameter and state before the step, and to every coefficient that is a tensor.
    """
    for param, grad, state in batch.each():
        values = {name: Value(tensor) for name, tensor in state.items()}
        new_param = Value(param)
        rule(new_param, Value(grad), **values, **batch.coefficients)
        for name, tensor in state.items():
            tensor.copy_(values[name].tensor)
        param.copy_(new_param.tensor)


class Value:
    """A tensor whose in-place methods give it a new value instead of overwriting the old one.

    An operation that autograd has recorded may need its operands later; `x.add_(y)` here becomes `x = x.add(y)`.
    """

    __slots__ = ("tensor",)

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def __getattr__(self, name: str) -> Callable[..., Value]:
        if name.startswith("__"):
            raise AttributeError(name)
        in_place = name.endswith("_")

        def method(*args: Any, **kwargs: Any) -> Value:
            args, kwargs = fold_scale(tuple(arg.tensor if isinstance(arg, Value) else arg for arg in args), kwargs)
            result = args[0].clone() if name == "copy_" else getattr(self.tensor, name.removesuffix("_"))(*args, **kwargs)
            if not in_place:
                return Value(result)
            self.tensor = result
            return self

        return method
