"""What an optimizer does, step by step: sizes of updates, gradients and state, for a dashboard, a table or a figure."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from itertools import takewhile
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from reimpl.watch.statistics import SECOND_MOMENTS, Part, Tally, describe, is_clipped, part, state_tensors
from reimpl.watch.writers import (
    CsvWriter,
    FigureWriter,
    TensorBoardWriter,
    VisdomWriter,
    Writer,
    make_writer,
)

__all__ = ["SECOND_MOMENTS", "CsvWriter", "FigureWriter", "TensorBoardWriter", "VisdomWriter", "Writer"]
"""Beside `watch` and `Watch`, which are names of `reimpl`."""

RECENT = 100
"""The number of logged steps over which the share of clipped ones is taken."""


class Looked(NamedTuple):
    """A parameter group, before the step."""

    label: str
    lr: float | None
    params: list[Tensor]
    copies: list[Part]
    """The values before the step, in memory of ours."""


class Watch:
    """A watched optimizer; made by `watch`. As a context manager it ends with the block.

    Attributes:
        step: the number of the next step.
    """

    step: int

    def __init__(
        self,
        optimizer: Optimizer,
        writer: Writer | None,
        *,
        every: int,
        histograms: int,
        max_norm: float | None,
        name: str,
        start: int,
    ) -> None:
        self.step = start
        self._writer = writer
        self._every = every
        self._histograms = histograms
        self._max_norm = max_norm
        self._name = name
        self._clipped: deque[bool] = deque(maxlen=RECENT)
        self._memory: list[Tensor] = []
        self._forget()
        # A hook is called with the optimizer; to keep it would keep a removed one alive.
        self._hooks = [
            optimizer.register_step_pre_hook(outside_of_graphs(self._before)),
            optimizer.register_step_post_hook(outside_of_graphs(self._after)),
        ]

    def remove(self) -> None:
        """Stop watching, and let go of the writer and all memory; again has no effect."""
        for hook in self._hooks:
            hook.remove()
        self._writer = None
        self._memory = []
        self._forget()

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def _forget(self) -> None:
        """Be between two steps."""
        self._stepping = False
        self._groups: list[Looked] = []
        self._tally: Tally | None = None
        self._values: dict[str, list[Tensor]] = {}

    def _before(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Keep what the step will overwrite."""
        self._forget()  # of a step that has raised
        self._stepping = True
        if self.step % self._every or is_captured():
            return
        with torch.no_grad():
            self._tally = Tally()
            self._groups = self._look(self._tally, optimizer)
            # A closure makes the gradients, and a fused step under a `GradScaler` unscales them. Any other step may
            # overwrite them: torch's foreach SGD with Nesterov's momentum does.
            made_by = (*args[1:], *kwargs.values(), getattr(optimizer, "grad_scale", None))
            if all(one is None for one in made_by):
                self._measure_gradients(self._tally)

    def _after(self, optimizer: Optimizer, *_: Any) -> None:
        """Measure what the step has overwritten it with."""
        if not self._stepping:  # a step within a step has been logged: `super().step()` calls the hooks too
            return
        try:
            if self._tally is not None:
                self._log(self._tally, optimizer)
        finally:  # also if the writer has raised, the step has been taken
            self.step += 1
            self._forget()

    def _log(self, tally: Tally, optimizer: Optimizer) -> None:
        """Write what the step has done."""
        with torch.no_grad():
            if not any(what == "grad" for _, what in tally.sizes):
                self._measure_gradients(tally)
            self._measure_updates(tally, optimizer)
            scalars = self._describe(tally)
        if self._writer is not None:
            histograms = {name: values for name, parts in self._values.items() for values in joined(parts)}
            self._writer(self.step, scalars, histograms)

    def _look(self, tally: Tally, optimizer: Optimizer) -> list[Looked]:
        """Copy the parameters of each group."""
        groups = [[part(param) for param in group["params"]] for group in optimizer.param_groups]
        originals = [one.tensor for parts in groups for one in parts]
        if [like(tensor) for tensor in self._memory] != [like(tensor) for tensor in originals]:
            self._memory = [torch.empty_like(tensor, memory_format=torch.preserve_format) for tensor in originals]
        if originals:
            torch._foreach_copy_(self._memory, originals)
        memory = iter(self._memory)
        copies = [[one._replace(tensor=next(memory)) for one in parts] for parts in groups]
        found = []
        for index, (label, group) in enumerate(zip(labels(optimizer), optimizer.param_groups, strict=True)):
            found.append(Looked(label, number(group.get("lr")), list(group["params"]), copies[index]))
            tally.norm(index, "param", copies[index])
            self._keep(f"{label}/param", copies[index])
        return found

    def _measure_gradients(self, tally: Tally) -> None:
        for index, group in enumerate(self._groups):
            grads = [part(param.grad) for param in group.params if param.grad is not None]
            tally.norm(index, "grad", grads, zeros=True)
            self._keep(f"{group.label}/grad", grads)

    def _measure_updates(self, tally: Tally, optimizer: Optimizer) -> None:
        after = [part(param).tensor for group in self._groups for param in group.params]
        if after:
            torch._foreach_sub_(self._memory, after)  # the update with its sign turned
        for index, group in enumerate(self._groups):
            tally.norm(index, "update", group.copies, zeros=True)
            self._keep(f"{group.label}/update", group.copies, sign=-1)
            states = [optimizer.state.get(param) for param in group.params]
            for name, tensors in state_tensors([one for one in states if isinstance(one, Mapping)]).items():
                parts = [part(tensor) for tensor in tensors]
                (tally.spread if name in SECOND_MOMENTS else tally.norm)(index, name, parts)
                self._keep(f"{group.label}/{name}", parts)

    def _keep(self, name: str, parts: list[Part], sign: int = 1) -> None:
        """Keep values for a histogram, if one is due."""
        if self._writer is not None and self._histograms and self.step % self._histograms == 0:
            self._values[self._name + name] = [host(one.tensor, sign) for one in parts]

    def _describe(self, tally: Tally) -> dict[str, float]:
        """Return the statistics of all groups by their full names."""
        numbers = tally.read()
        scalars: dict[str, float] = {}
        for index, group in enumerate(self._groups):
            found = {} if group.lr is None else {"lr": group.lr}
            found |= describe(tally, numbers, index)
            scalars |= {f"{self._name}{group.label}/{name}": value for name, value in found.items()}
        if self._max_norm is not None:
            squares = [value for (_, what, measure), value in numbers.items() if (what, measure) == ("grad", "square")]
            norm = sum(squares) ** 0.5
            self._clipped.append(is_clipped(norm, self._max_norm))
            scalars[f"{self._name}all/grad_norm"] = norm
            scalars[f"{self._name}all/clipped"] = sum(self._clipped) / len(self._clipped)
        return scalars


def watch(
    optimizer: Optimizer,
    writer: Any,
    *,
    every: int = 1,
    histograms: int = 0,
    max_norm: float | None = None,
    name: str = "",
    start: int = 0,
) -> Watch:
    """Log what an optimizer does, for each parameter group: `reimpl.watch.statistics.describe` lists the statistics.

        watch = reimpl.watch(optimizer, SummaryWriter(), every=10)
        ...
        watch.remove()

    The run stays the same, bit for bit. A step that is not logged costs two function calls; one that is, some passes
    over parameters, gradients and state, and while it is watched memory for a copy of the parameters.

    Of sharded parameters (`DTensor`) the statistics are those of the whole tensors: every process has to call `watch`,
    those without a writer with None. Histograms are of the writing process's shards.

    A step that raises, or that a `GradScaler` leaves out, is not counted. A deep copy or a pickle of the optimizer is
    not watched, since torch drops its hooks. A compiled step gets a graph break at each hook, so `fullgraph=True` is
    refused by torch; in a captured CUDA graph nothing is logged.

    Args:
        optimizer: any of torch's, of ours, or a subclass, or Accelerate's wrapper of one.
        writer: a `SummaryWriter`, a `Visdom`, a path for a CSV file, a matplotlib `Figure`, a function of step, scalars
            and histograms, a list of these, or None.
        every: log the steps whose number is a multiple of this.
        histograms: write histograms of parameters, gradients, updates and state in steps whose number is a multiple of
            this, a multiple of `every`; 0 for never.
        max_norm: what the gradients are clipped at by `clip_grad_norm_`: logs `all/grad_norm`, the norm over all
            groups, and `all/clipped`, the share of the last 100 logged steps in which it was at least that, but for a
            thousandth.
        name: of the optimizer, to stand before each name if several share a writer.
        start: the number of the first step, where a run is resumed.

    Returns:
        A handle, whose `remove` ends it.

    Raises:
        TypeError: if `optimizer` or `writer` is something else.
        ValueError: if `every` is not positive, or `histograms` is not a multiple of it.
    """
    inner = getattr(optimizer, "optimizer", None)
    if isinstance(inner, Optimizer) and not hasattr(optimizer, "_optimizer_step_pre_hooks"):  # Accelerate's wrapper
        optimizer = inner
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer must be a torch.optim.Optimizer, not {optimizer!r}")
    if every < 1:
        raise ValueError(f"every must be at least 1, not {every}")
    if histograms < 0 or histograms % every:
        raise ValueError(f"histograms must be 0 or a multiple of every={every}, not {histograms}")
    return Watch(
        optimizer,
        None if writer is None else make_writer(writer),
        every=every,
        histograms=histograms,
        max_norm=max_norm,
        name=f"{name}/" if name else "",
        start=start,
    )


def labels(optimizer: Optimizer) -> list[str]:
    """Return a name for each group: its own, or the module that all its named parameters are in, or a number."""
    found: list[str] = []
    for index, group in enumerate(optimizer.param_groups):
        label = str(group.get("name") or common_module(group.get("param_names") or []) or f"group{index}")
        found.append(f"{label}_{index}" if label in found else label)
    return found


def common_module(names: list[str]) -> str:
    """Return the dotted name of the innermost module that holds all parameters."""
    levels = zip(*(name.split(".") for name in names), strict=False)
    return ".".join(level[0] for level in takewhile(lambda level: len(set(level)) == 1, levels))


def number(option: Any) -> float | None:
    """Return an option that is one number, or None."""
    if isinstance(option, Tensor):
        return option.item() if option.numel() == 1 else None
    return float(option) if isinstance(option, (int, float)) else None


def like(tensor: Tensor) -> tuple[Any, ...]:
    """Return what a copy of a tensor has to have."""
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device


def host(tensor: Tensor, sign: int) -> Tensor:
    """Return the finite values of a tensor on the host, in memory of their own."""
    values = tensor.flatten()
    values = sign * values[values.isfinite()]
    return values.to("cpu", torch.float64 if values.dtype == torch.float64 else torch.float32)


def joined(parts: list[Tensor]) -> list[Tensor]:
    """Return the values of all parameters as one tensor, or nothing if there are none."""
    return [values] if parts and (values := torch.cat(parts)).numel() else []


def is_captured() -> bool:
    """Return whether a CUDA graph is being captured, in which nothing may be read back to the host."""
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


def outside_of_graphs(hook: Callable[..., None]) -> Callable[..., None]:
    """Return a hook that torch.compile does not look into: it reads values."""
    found: Callable[..., None] = torch.compiler.disable(hook, reason="reimpl.watch reads values")  # type: ignore[no-untyped-call]
    return found
