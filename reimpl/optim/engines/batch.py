"""What an engine is given: tensors that share a device, a dtype, their options and their step count."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeAlias

from torch import Tensor

Rule: TypeAlias = Callable[..., None]
"""`rule(param, grad, **state, **coefficients)`: one update, in place."""


class Batch(NamedTuple):
    """Parameters that a rule may treat alike.

    Attributes:
        params: the parameters.
        grads: their gradients, in the same order. An engine never changes them.
        state: for each state tensor's name the tensors, in the same order.
        coefficients: the rule's scalars, computed once for the whole batch.
        maximize: whether to climb: the rule then sees the negated gradients.
    """

    params: list[Tensor]
    grads: list[Tensor]
    state: dict[str, list[Tensor]]
    coefficients: dict[str, Any]
    maximize: bool

    def each(self) -> Iterator[tuple[Tensor, Tensor, dict[str, Tensor]]]:
        """Yield parameter, gradient and state of one parameter after the other."""
        for param, grad, *tensors in zip(self.params, self.grads, *self.state.values(), strict=True):
            yield param, -grad if self.maximize else grad, dict(zip(self.state, tensors, strict=True))


Engine: TypeAlias = Callable[[Rule, Batch], None]
"""`engine(rule, batch)`: run the rule on the batch, in place."""
