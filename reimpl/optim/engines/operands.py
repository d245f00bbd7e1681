"""What stands in for a tensor, and coefficients that are tensors.

`add(alpha=)`, `addcmul(value=)` and `addcdiv(value=)` take numbers only. Where a coefficient has to stay a tensor (its
gradient is wanted, or a graph is being captured and nothing may be read back to the host), it is folded into the first
operand instead: `x.addcdiv(a, b, value=c)` is `x.addcdiv(a * c, b)`, which is also the order in which torch's CPU
kernels multiply.
"""

from typing import Any

from torch import Tensor


class Operand:
    """Base of the classes that answer a tensor's methods."""

    __slots__ = ()

    def __iadd__(self, other: Any) -> Any:
        return self.add_(other)  # type: ignore[attr-defined]

    def __isub__(self, other: Any) -> Any:
        return self.sub_(other)  # type: ignore[attr-defined]

    def __imul__(self, other: Any) -> Any:
        return self.mul_(other)  # type: ignore[attr-defined]

    def __itruediv__(self, other: Any) -> Any:
        return self.div_(other)  # type: ignore[attr-defined]


def fold_scale(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return `args` and `kwargs` of a call without an `alpha=` or `value=` that is a tensor or stands in for one."""
    for name in ("alpha", "value"):
        scale = kwargs.get(name)
        if isinstance(scale, Tensor | Operand):
            first, *rest = args
            return (first.mul(scale), *rest), {key: arg for key, arg in kwargs.items() if key != name}
    return args, kwargs
