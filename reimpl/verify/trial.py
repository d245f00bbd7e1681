"""An optimizer class as it wants to be treated, and its instances on their way."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor

from reimpl.verify.distance import real_view
from reimpl.verify.judge import arguments_of, engines_of, path_of

OptimizerClass: TypeAlias = type[torch.optim.Optimizer]

EVERY_SHAPE: tuple[tuple[int, ...], ...] = ((17, 5), (33,), ())
MATRICES: tuple[tuple[int, ...], ...] = ((17, 5), (6, 4))


@dataclass(frozen=True)
class Subject:
    """A class under test, and how it wants to be treated.

    Attributes:
        optimizer: the class.
        options: its constructor's arguments.
        shapes: of the parameters that it takes.
        sparse: whether it takes sparse gradients, and no others.
        needs_closure: whether its step takes the gradients from a closure, and will not go without.
        device: where.
        refusals: what was tried before, and what the class said to it.
    """

    optimizer: OptimizerClass
    options: dict[str, Any] = field(default_factory=dict)
    shapes: tuple[tuple[int, ...], ...] = EVERY_SHAPE
    sparse: bool = False
    needs_closure: bool = False
    device: str = "cpu"
    refusals: tuple[str, ...] = ()

    @property
    def manner(self) -> str:
        """How it is treated, in words."""
        shapes = ", ".join(str(list(shape)) for shape in self.shapes)
        gradients = "sparse gradients" if self.sparse else "gradients"
        return f"parameters {shapes}, {gradients}{' from a closure' if self.needs_closure else ''}"

    @property
    def paths(self) -> dict[str, dict[str, Any]]:
        """The engines to choose from, with the arguments that choose them; one without any if it has no choice."""
        return {engine: path_of(self.optimizer, engine) for engine in engines_of(self.optimizer)}

    def parameters(self, dtype: torch.dtype = torch.float32) -> list[Tensor]:
        """Return fresh parameters, the same at each call."""
        return [draw(shape, seed, dtype, self.device).requires_grad_() for seed, shape in enumerate(self.shapes)]

    def build(self, params: Any, **options: Any) -> torch.optim.Optimizer:
        """Construct the optimizer, and put it into training mode if it has one."""
        construct: Any = self.optimizer
        return in_training(construct(params, **copy.deepcopy({**self.options, **options})))

    def takes(self, option: str) -> bool:
        """Return whether the constructor takes an argument."""
        return option in arguments_of(self.optimizer)


def in_training(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Put an optimizer into training mode if it has one, as schedule-free ones do, and return it."""
    if callable(train := getattr(optimizer, "train", None)):
        train()
    return optimizer


def draw(shape: Sequence[int], seed: int, dtype: torch.dtype, device: str) -> Tensor:
    """Return numbers between 1/2 and 2, of either sign; in float16, the square of none is lost."""
    generator = torch.Generator().manual_seed(seed)
    real = [*shape, 2] if dtype.is_complex else list(shape)
    numbers = torch.empty(real).uniform_(0.5, 2, generator=generator)
    numbers *= torch.randint(2, real, generator=generator) * 2 - 1
    return (torch.view_as_complex(numbers) if dtype.is_complex else numbers).to(device, dtype)


class Trial:
    """An optimizer with parameters of its own, on its way.

    Args:
        subject: the class, and how to treat it.
        dtype: of the parameters.
        only: the indices of the subject's parameters that it has; by default all.
        arrange: makes the constructor's first argument of the parameters.
        options: the constructor's arguments, beside the subject's.
    """

    def __init__(
        self,
        subject: Subject,
        dtype: torch.dtype = torch.float32,
        only: Sequence[int] | None = None,
        arrange: Callable[[list[Tensor]], Any] = list,
        **options: Any,
    ) -> None:
        self.subject = subject
        every = subject.parameters(dtype)
        self.indices = list(range(len(every))) if only is None else list(only)
        self.params = [every[i] for i in self.indices]
        self.optimizer = subject.build(arrange(self.params), **options)
        self.taken = 0
        self.given: list[tuple[Tensor, Tensor, Tensor, int]] = []

    def gradient(self, param: Tensor, index: int) -> Tensor:
        """Return a parameter's gradient in the coming step: drawn, or for a closure that of a distance."""
        values = draw(param.shape, 1000 + 10 * self.taken + index, param.dtype, self.subject.device)
        if self.subject.needs_closure:
            return param.detach() - values
        if self.subject.sparse:
            rows = torch.tensor([[0, 2, 2]], device=param.device)  # a row that comes twice
            return torch.sparse_coo_tensor(rows, values[:3], param.shape, check_invariants=True)
        return values

    def give(self, skip: Collection[int] = (), factor: float = 1.0) -> Tensor:
        """Set the gradients of the coming step, and return the loss."""
        self.given = []
        loss = torch.zeros((), device=self.subject.device)
        for i, (param, index) in enumerate(zip(self.params, self.indices, strict=True)):
            param.grad = None
            if i in skip:
                continue
            gradient = self.gradient(param, index) * factor
            param.grad = gradient
            self.given.append((param, gradient, gradient.clone(), gradient._version))
            loss += real_view(gradient).float().square().sum() / 2
        return loss

    def step(self, count: int = 1, skip: Collection[int] = (), factor: float = 1.0) -> Trial:
        """Take steps; the parameters of the indices in `skip` have no gradient."""
        optimizer: Any = self.optimizer
        for _ in range(count):
            if self.subject.needs_closure:
                optimizer.step(lambda: self.give(skip, factor))
            else:
                self.give(skip, factor)
                optimizer.step()
            self.taken += 1
        return self

    def save(self) -> bytes:
        """Return a checkpoint of the optimizer."""
        file = io.BytesIO()
        torch.save(self.optimizer.state_dict(), file)
        return file.getvalue()

    def resume(self, checkpoint: bytes, other: Trial) -> Trial:
        """Go on from another trial's parameters and checkpoint."""
        with torch.no_grad():
            for param, value in zip(self.params, other.params, strict=True):
                param.copy_(value)
        self.optimizer.load_state_dict(torch.load(io.BytesIO(checkpoint), weights_only=True))
        self.taken = other.taken
        return self

    def groups(self) -> list[dict[str, Any]]:
        """Return copies of the groups' options."""
        groups = self.optimizer.param_groups
        return copy.deepcopy([{name: value for name, value in group.items() if name != "params"} for group in groups])

    def snapshot(self) -> dict[str, Any]:
        """Return copies of the parameters and of whatever state each has."""
        found: dict[str, Any] = {f"param[{i}]": param.detach().clone() for i, param in enumerate(self.params)}
        for i, param in enumerate(self.params):
            if state := self.optimizer.state.get(param, {}):
                found[f"state[{i}]"] = copy.deepcopy(state)
        return found

    def state_tensors(self) -> dict[str, Tensor]:
        """Return the tensors of the state by name, those in lists too."""
        states = {f"state[{i}]": self.optimizer.state.get(param, {}) for i, param in enumerate(self.params)}
        return dict(tensors_in(states, ""))


class PairTrial(Trial):
    """A run with the pairs of real numbers that complex parameters and gradients are made of."""

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject, torch.complex128)
        self.params = [torch.view_as_real(param.detach()).clone().requires_grad_() for param in self.params]
        self.optimizer = subject.build(self.params)

    def gradient(self, param: Tensor, index: int) -> Tensor:
        """Return the gradient of the complex run, as pairs."""
        return torch.view_as_real(super().gradient(torch.view_as_complex(param.detach()), index))


def tensors_in(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors in nested dicts and lists, by name."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, dict):
        for key, part in value.items():
            yield from tensors_in(part, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        for i, part in enumerate(value):
            yield from tensors_in(part, f"{name}[{i}]")
