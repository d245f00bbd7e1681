"""The rows engine: the rule on the entries that a sparse gradient touches, and on no others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from reimpl.optim.engines.batch import Batch, Rule


def rows(rule: Rule, batch: Batch) -> None:
    """Run `rule` on the rows of each parameter that its sparse gradient names.

    Repeated indices are summed first: a rule that is not linear in the gradient needs each row once.
    """
    for param, grad, *state in batch.each():
        grad = grad.coalesce()
        rule(
            Rows(param, grad),
            grad._values(),
            *(tensor if tensor is None else Rows(tensor, grad) for tensor in state),
            **batch.coefficients,
        )


class Rows:
    """The rows of a dense tensor that a coalesced sparse gradient touches.

    A reading method (`sqrt`, …) answers with the values of those rows, as a plain tensor. A method that adds in place
    (`add_`, `addcmul_`, `addcdiv_`, `lerp_`) adds a sparse tensor to the dense one, so that the other rows are not even
    read.

    Args:
        dense: the parameter or state tensor.
        sparse: the gradient, coalesced; its indices name the rows.
    """

    __slots__ = ("dense", "sparse")

    def __init__(self, dense: Tensor, sparse: Tensor) -> None:
        self.dense = dense
        self.sparse = sparse

    def add_(self, values: Tensor, *, alpha: float = 1) -> Rows:
        """Add `alpha * values` to the rows."""
        indices, size = self.sparse._indices(), self.sparse.size()
        self.dense.add_(torch.sparse_coo_tensor(indices, values, size, check_invariants=False), alpha=alpha)
        return self

    def addcmul_(self, first: Tensor, second: Tensor, *, value: float = 1) -> Rows:
        """Add `value * first * second` to the rows."""
        return self.add_(first.pow(2) if first is second else first * second, alpha=value)

    def addcdiv_(self, first: Tensor, second: Tensor, *, value: float = 1) -> Rows:
        """Add `value * first / second` to the rows."""
        return self.add_(first / second, alpha=value)

    def lerp_(self, end: Tensor, weight: float) -> Rows:
        """Add `weight * (end - rows)` to the rows."""
        return self.add_(end.sub(self.values()).mul_(weight))

    def values(self) -> Tensor:
        """Return the rows as they are now."""
        return self.dense.sparse_mask(self.sparse)._values()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__") or name.endswith("_"):
            raise AttributeError(name)
        method: Callable[..., Any] = getattr(self.values(), name)
        return method
