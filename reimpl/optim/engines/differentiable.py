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
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if not callable(getattr(Tensor, name, None)):
            return getattr(self.tensor, name)
        in_place = name.endswith("_")

        def method(*args: Any, **kwargs: Any) -> Any:
            args, kwargs = fold_scale(tuple(map(unwrapped, args)), kwargs)
            if name == "copy_":
                result = args[0].clone()
            else:
                result = getattr(self.tensor, name.removesuffix("_"))(*args, **kwargs)
            if not in_place:
                return wrapped(result)
            self.tensor = result
            return self

        return method

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        named = {name: unwrapped(arg) for name, arg in (kwargs or {}).items()}
        return wrapped(func(*map(unwrapped, args), **named))

    def __neg__(self) -> Any:
        return wrapped(-self.tensor)

    def __abs__(self) -> Any:
        return wrapped(abs(self.tensor))

    def __invert__(self) -> Any:
        return wrapped(~self.tensor)

    def __bool__(self) -> bool:
        return bool(self.tensor)

    def __float__(self) -> float:
        return float(self.tensor)


def delegate(name: str) -> Callable[[Value, Any], Any]:
    """Return an operator that works on the tensor."""
    return lambda self, other: wrapped(getattr(self.tensor, name)(unwrapped(other)))


ARITHMETIC = ("add", "sub", "mul", "truediv", "pow", "radd", "rsub", "rmul", "rtruediv", "rpow")
COMPARISON = ("gt", "ge", "lt", "le", "eq", "ne", "and", "or", "xor")
for operator in ARITHMETIC + COMPARISON:
    setattr(Value, f"__{operator}__", delegate(f"__{operator}__"))


def wrapped(result: Any) -> Any:
    """Return a tensor as a `Value`, and anything else as it is."""
    return Value(result) if isinstance(result, Tensor) else result


def unwrapped(arg: Any) -> Any:
    """Return a `Value`'s tensor, and anything else as it is."""
    return arg.tensor if isinstance(arg, Value) else arg
