"""Sharded tensors, as FSDP2 and tensor parallelism make them: each process updates its own part, and asks no other."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from reimpl.optim.engines.batch import Batch, Engine, Rule


def any_sharded(params: list[Tensor]) -> bool:
    """Return whether any parameter is a `DTensor`."""
    return any(hasattr(kind, "to_local") for kind in set(map(type, params)))


def splits_alike(row: tuple[Any, ...]) -> bool:
    """Return whether a parameter, its gradient and its state are plain, or `DTensor`s with the same placements.

    Then number i of one tensor's part belongs to number i of the other's. Sums that are still due have no parts.
    """
    placements = [getattr(tensor, "placements", None) for tensor in row]
    due = any(placement.is_partial() for placement in placements[0] or ())
    return not due and all(other == placements[0] for other in placements)


def on_shards(engine: Engine) -> Engine:
    """Return an engine that gives another one this process's part of each tensor; the rule must be elementwise."""

    def run(rule: Rule, batch: Batch) -> None:
        params, grads, *kept = [list(map(to_local, tensors)) for tensors in batch.tensors()]
        state = iter(kept)
        engine(
            rule,
            batch._replace(params=params, grads=grads, state=[tensors and next(state) for tensors in batch.state]),
        )
        torch.autograd.graph.increment_version(batch.params)  # a graph that still needs them has to know

    return run


def to_local(tensor: Any) -> Tensor:
    """Return the part of this process, which shares memory with the whole, or a plain tensor itself."""
    local: Tensor = tensor.to_local().detach() if hasattr(tensor, "to_local") else tensor
    return local
