"""What an optimizer has to update: the parameters of real networks, and the two extremes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Workload:
    """Parameters of given shapes.

    Attributes:
        name: what one types.
        title: what one reads.
        shapes: of the parameters.
    """

    name: str
    title: str
    shapes: tuple[Shape, ...]

    @property
    def elements(self) -> int:
        """The number of elements in all."""
        return sum(map(math.prod, self.shapes))


def resnet50() -> Iterator[Shape]:
    """Yield the shapes of ResNet-50's 161 parameters."""
    yield from ((64, 3, 7, 7), (64,), (64,))
    channels = 64
    for blocks, width in ((3, 64), (4, 128), (6, 256), (3, 512)):
        for block in range(blocks):
            for shape in ((width, channels, 1, 1), (width, width, 3, 3), (4 * width, width, 1, 1)):
                yield from (shape, shape[:1], shape[:1])
            if block == 0:
                yield from ((4 * width, channels, 1, 1), (4 * width,), (4 * width,))
            channels = 4 * width
    yield from ((1000, 2048), (1000,))


def gpt2() -> Iterator[Shape]:
    """Yield the shapes of GPT-2 small's 148 parameters; the output layer shares the embedding's."""
    width = 768
    yield from ((50257, width), (1024, width))
    norm = ((width,), (width,))
    for _ in range(12):
        yield from (*norm, (width, 3 * width), (3 * width,), (width, width), (width,))
        yield from (*norm, (width, 4 * width), (4 * width,), (4 * width, width), (width,))
    yield from norm


WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("resnet50", "ResNet-50", tuple(resnet50())),
        Workload("small", "1,000 of 1,000", ((1000,),) * 1000),
        Workload("large", "one of 64 Mi", ((2**26,),)),
        Workload("gpt2", "GPT-2 small", tuple(gpt2())),
    )
}
"""The sets of parameters that a step is timed on, by name."""


def parameters(shapes: tuple[Shape, ...], device: str) -> list[Tensor]:
    """Return float32 parameters with gradients."""
    params = [torch.randn(shape, dtype=torch.float32, device=device).requires_grad_() for shape in shapes]
    for param in params:
        param.grad = torch.randn_like(param)
    return params
