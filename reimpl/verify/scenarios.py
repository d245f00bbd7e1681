"""What parameters an optimizer is given, and what happens to them step by step."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from reimpl.verify.problems import PROBLEMS, Problem, random

LOW_PRECISION_EPS = 1e-3
"""`eps` of the float16 cases: the defaults, 1e-8 and 1e-10, are zero in float16, and 0 / 0 is in everyone's way."""


@dataclass(frozen=True)
class Layout:
    """A parameter's shape, and how it lies in memory."""

    shape: tuple[int, ...]
    transposed: bool = False
    channels_last: bool = False
    dtype: torch.dtype | None = None
    """Instead of the case's."""

    def make(self, values: Tensor) -> Tensor:
        """Return `values` of this shape, in this layout."""
        if self.transposed:
            return values.T.contiguous().T
        return values.contiguous(memory_format=torch.channels_last) if self.channels_last else values


def always(_step: int, _index: int) -> bool:
    """Give every parameter a gradient in every step."""
    return True


def in_turn(step: int, index: int) -> bool:
    """Leave out every parameter now and then, the fourth always."""
    return index != 3 and (step + index) % (index + 2) != 0


@dataclass(frozen=True)
class Scenario:
    """A course of steps.

    Attributes:
        name: as the reports call it.
        about: what it looks for.
        layouts: the parameters.
        steps: how many steps.
        gives_gradient: whether the parameter of an index gets a gradient in a step.
        groups: the options of each parameter group on top of the case's, by parameter index; one group if empty.
        joins: the step before which the last parameter joins, with `add_param_group`; never if None.
        exchange: the step before which both sides continue from the other's checkpoint; never if None.
        sparse: whether matrices get sparse gradients, with repeated rows.
        problem: what a closure evaluates in each step, from its own start; no gradients are given then.
    """

    name: str
    about: str
    layouts: tuple[Layout, ...]
    steps: int = 8
    gives_gradient: Callable[[int, int], bool] = always
    groups: tuple[dict[str, Any], ...] = ()
    joins: int | None = None
    exchange: int | None = None
    sparse: bool = False
    problem: Problem | None = None

    def initial(self, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
        """Return the parameters' values before the first step, the same for every run."""
        if self.problem is not None:
            return self.problem.initial(dtype, device)
        generator = torch.Generator().manual_seed(1)
        return [
            layout.make(random(layout.shape, layout.dtype or dtype, generator)).to(device) for layout in self.layouts
        ]

    def gradients(self, params: list[Tensor]) -> Iterable[list[Tensor | None]]:
        """Yield the gradients of each step, the same for every run.

        They span several orders of magnitude, hold exact zeros, and lie in memory like the parameter.
        """
        generator = torch.Generator().manual_seed(2)
        for step in range(self.steps):
            yield [
                self._gradient(param, generator) if self.problem is None and self.gives_gradient(step, i) else None
                for i, param in enumerate(params)
            ]

    def _gradient(self, param: Tensor, generator: torch.Generator) -> Tensor:
        scale = 10.0 ** float(torch.empty(()).uniform_(-3, 1, generator=generator))
        if self.sparse and param.dim() == 2:
            rows = torch.randint(param.shape[0], (4,), generator=generator)
            values = random((4, param.shape[1]), param.dtype, generator) * scale
            return torch.sparse_coo_tensor(rows[None], values, param.shape, device=param.device, check_invariants=True)
        values = random(tuple(param.shape), param.dtype, generator)
        kept = torch.rand(param.shape, generator=generator) > 0.05
        return torch.empty_like(param).copy_(values * kept * scale)


VECTOR, MATRIX = Layout((33,)), Layout((17, 5))
WIDE, SQUARE = Layout((5, 17)), Layout((8, 8))
ODD = (
    Layout(()),
    VECTOR,
    MATRIX,
    Layout((6, 4), transposed=True),
    Layout((2, 3, 4, 4), channels_last=True),
)
GROUPS: tuple[dict[str, Any], ...] = ({}, {"lr": 0.05, "weight_decay": 0.2}, {"lr": 0.002, "maximize": True})

SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario(
            "shapes",
            "0-dim, empty, odd-sized, transposed and channels_last parameters",
            (ODD[0], Layout((0, 3)), *ODD[1:]),
        ),
        Scenario("filled", "0-dim, odd-sized, transposed and channels_last parameters, none of them empty", ODD),
        Scenario(
            "missing",
            "gradients that are missing in some steps, or in all",
            (VECTOR, MATRIX, Layout((4,)), Layout((3, 2))),
            gives_gradient=in_turn,
        ),
        Scenario(
            "groups",
            "three groups with options of their own, the last added in mid-run",
            (VECTOR, MATRIX, Layout((4,))),
            groups=GROUPS,
            joins=4,
        ),
        Scenario(
            "exchange",
            "each side's checkpoint, saved and loaded, goes on in the other",
            (VECTOR, MATRIX, Layout(())),
            gives_gradient=lambda step, index: step > 2 or index != 1,
            exchange=4,
        ),
        Scenario(
            "mixed",
            "float32, float64 and bfloat16 parameters beside the case's dtype in one group",
            (
                VECTOR,
                Layout((9,), dtype=torch.float32),
                MATRIX,
                Layout((9,), dtype=torch.float64),
                Layout((9,), dtype=torch.bfloat16),
            ),
        ),
        Scenario("drift", "1,000 steps without a new start", (VECTOR, MATRIX), steps=1000),
        Scenario(
            "sparse",
            "sparse gradients with repeated rows, beside dense ones",
            (MATRIX, VECTOR, Layout((5, 3))),
            sparse=True,
        ),
        Scenario(
            "sparse rows",
            "matrices with sparse gradients, missing in some steps; each side's checkpoint goes on in the other",
            (MATRIX, Layout((5, 3)), WIDE, SQUARE),
            gives_gradient=in_turn,
            exchange=4,
            sparse=True,
        ),
        Scenario(
            "sparse groups",
            "three groups of matrices with sparse gradients, the last added in mid-run",
            (MATRIX, Layout((5, 3)), SQUARE),
            groups=GROUPS,
            joins=4,
            sparse=True,
        ),
        Scenario(
            "matrices",
            "tall, wide, square and transposed matrices, gradients that are missing in some steps, and an exchange",
            (MATRIX, WIDE, SQUARE, Layout((3, 2)), Layout((6, 4), transposed=True)),
            gives_gradient=in_turn,
            exchange=4,
        ),
        Scenario(
            "matrix groups",
            "three groups of matrices with options of their own, the last added in mid-run",
            (MATRIX, WIDE, SQUARE),
            groups=GROUPS,
            joins=4,
        ),
        *(
            Scenario(problem.name, f"a closure: {problem.about}", (), steps=4, exchange=2, problem=problem)
            for problem in PROBLEMS.values()
        ),
    )
}
"""What the optimizers are run on, by name."""
