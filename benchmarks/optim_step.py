"""Time a step of each engine beside torch's, in one run, alternating.

    python benchmarks/optim_step.py [--device cuda] [--rounds 9] [--json FILE]

The machines that this runs on are noisy; the ratio of two medians from the same minute is what counts.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from timing import compare

import reimpl.optim
from reimpl.verify.report import print_table
from reimpl.verify.runner import environment

Shape = tuple[int, ...]

OPTIMIZERS: list[tuple[str, dict[str, Any]]] = [
    ("SGD", {}),
    ("SGD", {"momentum": 0.9}),
    ("Adagrad", {}),
    ("RMSprop", {}),
    ("Adadelta", {}),
    ("Adam", {}),
]
COLUMNS = ("workload", "optimizer", "engine", "ours, ms", "torch, ms", "ratio")
NOTE = """Medians of alternating rounds, each of as many steps as take 20 ms, on parameters allocated three times: where
memory lies moves a time by up to a fifth. ratio: ours divided by torch's."""
ALLOCATIONS = 3


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


WORKLOADS: dict[str, list[Shape]] = {"ResNet-50": list(resnet50()), "1,000 small": [(1000,)] * 1000}


def parameters(shapes: list[Shape], device: str) -> list[torch.Tensor]:
    """Return parameters with gradients; both sides update the same ones, since where memory lies changes the time."""
    params = [torch.randn(shape, device=device).requires_grad_() for shape in shapes]
    for param in params:
        param.grad = torch.randn_like(param)
    return params


def prepare(module: Any, name: str, options: dict[str, Any], params: list[torch.Tensor]) -> Callable[[], None]:
    """Return the step of an optimizer whose state is there."""
    optimizer = getattr(module, name)(params, **options)
    for _ in range(2):
        optimizer.step()
    step: Callable[[], None] = optimizer.step
    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    found = []
    for workload, shapes in WORKLOADS.items():
        for name, options in OPTIMIZERS:
            for engine in ("loop", "foreach"):
                chosen = {**options, "foreach": engine == "foreach"}
                runs = []
                for _ in range(ALLOCATIONS):
                    params = parameters(shapes, arguments.device)
                    steps = [prepare(module, name, chosen, params) for module in (reimpl.optim, torch.optim)]
                    runs.append(compare(steps, arguments.rounds, arguments.device))
                ours, theirs = (statistics.median(times) for times in zip(*runs, strict=True))
                label = f"{name} with momentum" if options else name
                found.append(
                    {"workload": workload, "optimizer": label, "engine": engine, "ours": ours, "torch": theirs}
                )
    rows = [
        (
            str(row["workload"]),
            str(row["optimizer"]),
            str(row["engine"]),
            f"{1e3 * row['ours']:.2f}",
            f"{1e3 * row['torch']:.2f}",
            f"{row['ours'] / row['torch']:.2f}",
        )
        for row in found
    ]
    print_table(COLUMNS, rows, NOTE)
    if arguments.json:
        evidence = {"environment": environment(arguments.device), "rounds": arguments.rounds, "steps": found}
        arguments.json.write_text(json.dumps(evidence, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
