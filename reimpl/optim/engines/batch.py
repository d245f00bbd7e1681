"""What an engine is given: parameters that a rule may treat alike."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import repeat
from typing import Any, NamedTuple, TypeAlias, TypeVar

import torch
from torch import Tensor

Rule: TypeAlias = Callable[..., None]
"""`rule(param, grad, *state, **coefficients)`: one update, in place. Absent state is None."""
T = TypeVar("T")


class Batch(NamedTuple):
    """Parameters of one group, with one step count and one dtype (for the foreach engine also one device).

    Attributes:
        params: the parameters.
        grads: their gradients, in the same order. An engine never changes them.
        state: a list like `params` for each state tensor that the rule takes, or None for one that is not kept.
        coefficients: the rule's scalars, computed once for the whole batch.
        maximize: whether to climb: the rule then sees the negated gradients.
        grad_scale: what the gradients were multiplied with, and have to be divided by; None if they were not. Only the
            fused engine takes scaled gradients, and as torch's fused optimizers it leaves them divided.
    """

    params: list[Tensor]
    grads: list[Tensor]
    state: list[list[Tensor] | None]
    coefficients: dict[str, Any]
    maximize: bool
    grad_scale: float | None = None

    def tensors(self) -> list[list[Tensor]]:
        """Return the lists of parameters, of gradients and of each state tensor that is kept."""
        return [self.params, self.grads, *(tensors for tensors in self.state if tensors is not None)]

    def pick(self, indices: Sequence[int]) -> Batch:
        """Return the part of the batch at `indices`."""
        return self._replace(
            params=pick(self.params, indices),
            grads=pick(self.grads, indices),
            state=[tensors and pick(tensors, indices) for tensors in self.state],
        )

    def columns(self) -> list[Iterable[Any]]:
        """Return parameters, gradients and each state tensor, as the rule takes them."""
        grads: Iterable[Tensor] = map(torch.neg, self.grads) if self.maximize else self.grads
        return [self.params, grads, *(repeat(None) if tensors is None else tensors for tensors in self.state)]

    def each(self) -> Iterator[tuple[Any, ...]]:
        """Yield parameter, gradient and state tensors of one parameter after the other."""
        return zip(*self.columns(), strict=False)

    def as_real(self) -> Batch:
        """View complex tensors as real ones, with a last dimension for real and imaginary part."""
        return self._replace(
            params=[torch.view_as_real(param) for param in self.params],
            grads=[torch.view_as_real(grad.resolve_conj()) for grad in self.grads],
            state=[tensors and [torch.view_as_real(tensor) for tensor in tensors] for tensors in self.state],
        )


Engine: TypeAlias = Callable[[Rule, Batch], None]
"""`engine(rule, batch)`: run the rule on the batch, in place."""


def pick(column: list[T], indices: Sequence[int]) -> list[T]:
    """Return the entries of `column` at `indices`, which are all of them or fewer."""
    return column if len(indices) == len(column) else [column[index] for index in indices]
