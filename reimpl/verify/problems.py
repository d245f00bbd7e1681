"""What a closure evaluates: losses for optimizers that ask for them again and again within one step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Problem:
    """A loss and where to start; unlike the gradients of a scenario, its gradients depend on the parameters.

    Attributes:
        name: as the reports call it.
        about: what it looks for.
        start: the parameters' values before the first step, in float64.
        loss: a differentiable function of the parameters, the same at each call, computed in their dtype.
    """

    name: str
    about: str
    start: tuple[Tensor, ...]
    loss: Callable[[list[Tensor]], Tensor]

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """The parameters' shapes."""
        return tuple(tuple(values.shape) for values in self.start)

    def initial(self, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
        """Return the parameters' values before the first step, the same for every run."""
        return [values.to(device, dtype, copy=True) for values in self.start]


def rosenbrock_loss(params: list[Tensor]) -> Tensor:
    """Return the sum of 100 (x[i+1] - x[i]^2)^2 + (1 - x[i])^2, which is 0 at x = (1, ..., 1)."""
    (x,) = params
    return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()


def least_squares(inputs: Tensor, targets: Tensor) -> Callable[[list[Tensor]], Tensor]:
    """Return the mean squared error of `inputs @ weight + bias`."""

    def loss(params: list[Tensor]) -> Tensor:
        weight, bias = params
        return (inputs.to(weight) @ weight + bias - targets.to(weight)).square().mean()

    return loss


def tanh_network(inputs: Tensor, targets: Tensor) -> Callable[[list[Tensor]], Tensor]:
    """Return the mean squared error of `tanh(inputs @ weight1 + bias1) @ weight2 + bias2`."""

    def loss(params: list[Tensor]) -> Tensor:
        weight1, bias1, weight2, bias2 = params
        hidden = torch.tanh(inputs.to(weight1) @ weight1 + bias1)
        return (hidden @ weight2 + bias2 - targets.to(weight1)).square().mean()

    return loss


def random(shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Return normally distributed numbers, drawn in float64 and rounded."""
    if dtype.is_complex:
        return torch.randn(shape, generator=generator, dtype=torch.complex128).to(dtype)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def draw(*shapes: tuple[int, ...], seed: int) -> tuple[Tensor, ...]:
    """Return normally distributed numbers in float64, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(random(shape, torch.float64, generator) for shape in shapes)


def _problems() -> tuple[Problem, ...]:
    inputs, targets = draw((40, 6), (40, 3), seed=3)
    scaled = inputs * torch.logspace(0, -2, 6, dtype=torch.float64)
    return (
        Problem(
            "Rosenbrock",
            "a curved valley: it is followed with the line search, and left without",
            (torch.tensor([-1.2, 1.0] * 3, dtype=torch.float64),),
            rosenbrock_loss,
        ),
        Problem(
            "least squares",
            "a quadratic whose curvatures span four orders of magnitude; a matrix and a bias",
            draw((6, 3), (3,), seed=4),
            least_squares(scaled, targets),
        ),
        Problem(
            "tanh network",
            "two layers: not convex, four parameters",
            tuple(0.5 * values for values in draw((6, 8), (8,), (8, 3), (3,), seed=5)),
            tanh_network(inputs, targets),
        ),
    )


PROBLEMS = {problem.name: problem for problem in _problems()}
