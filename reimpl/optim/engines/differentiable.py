"""The differentiable engine: the rule without a single write, so that autograd can follow it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from reimpl.optim.engines.batch import Batch, Rule
from reimpl.optim.engines.operands import Operand, fold_scale


def differentiable(rule: Rule, batch: Batch) -> None:
    """Run `rule` on each parameter out of place, then write parameters and state back once, inside the graph.

    Gradients flow to the gradient, to parameter and state as they were before the step, and to coefficients that are
    tensors.
    """
    for param, grad, *state in batch.each():
        # Clones, since autograd may have to look at the values of before when they have been overwritten.
        new_param = Value(param.clone())
        new_state = [tensor if tensor is None else Value(tensor.clone()) for tensor in state]
        rule(new_param, Value(grad), *new_state, **batch.coefficients)
        for tensor, value in zip((param, *state), (new_param, *new_state), strict=True):
            if value is not None:
                tensor.copy_(value.tensor)


class Value(Operand):
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
            if name == "copy_":
                result = args[0].clone()
            else:
                result = getattr(self.tensor, name.removesuffix("_"))(*args, **kwargs)
            if not in_place:
                return Value(result)
            self.tensor = result
            return self

        return method
