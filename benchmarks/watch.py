"""Time training steps with and without `reimpl.watch`, side by side.

    python benchmarks/watch.py [--every 10] [--device cuda] [--rounds 20] [--json FILE]

The ratio of two times from the same minute is what counts: what watching adds to a training step, to the optimizer's
step alone, and to one that is not logged.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import reimpl.nn as nn
import reimpl.optim as optim
from reimpl.bench.timing import Step, alternate
from reimpl.verify.report import print_table
from reimpl.verify.runner import environment
from reimpl.verify.training import convolutional
from reimpl.watch import Watch, watch

COLUMNS = ("network", "optimizer", "writer", "step, ms", "training\nstep", "optimizer's\nstep", "not\nlogged")
NOTE = """The shortest of alternating rounds, on the CPU in processor time of one thread. step: a training step that
nobody watches. Then the times of watched steps as multiples of unwatched ones: of the training step, of the optimizer's
step alone, and of the optimizer's step where only its first is logged."""


def mlp(layers: Any) -> torch.nn.Module:
    """Return a network whose parameters are used once for each image: the least work for an element."""
    network: torch.nn.Module = layers.Sequential(
        layers.Linear(784, 1024),
        layers.ReLU(),
        layers.Linear(1024, 1024),
        layers.ReLU(),
        layers.Linear(1024, 10),
    )
    return network


def residual(layers: Any) -> torch.nn.Module:
    """Return convolutions of the shapes of ResNet-18's third and fourth stage, with their normalisation."""
    blocks = []
    for before, after in ((3, 64), (64, 128), (128, 256), (256, 256), (256, 512)):
        blocks += [layers.Conv2d(before, after, 3, padding=1, bias=False), layers.BatchNorm2d(after), layers.ReLU()]
        blocks += [layers.MaxPool2d(2)] if before < after else []
    network: torch.nn.Module = layers.Sequential(*blocks, layers.Flatten(), layers.Linear(2048, 10))
    return network


NETWORKS: dict[str, tuple[Callable[[Any], torch.nn.Module], tuple[int, ...]]] = {
    "digits CNN": (convolutional, (64, 1, 8, 8)),
    "MLP": (mlp, (128, 784)),
    "convolutions": (residual, (4, 3, 32, 32)),
}
OPTIMIZERS: dict[str, dict[str, Any]] = {"Adam": {}, "SGD": {"momentum": 0.9}}


class Training:
    """A network in training on one batch.

    Args:
        network: its name.
        optimizer: its class's name.
        writer: what a watch is given, or None to go unwatched.
        every: which steps are logged.
        device: where.
    """

    def __init__(self, network: str, optimizer: str, writer: Any, every: int, device: str) -> None:
        torch.manual_seed(0)
        make, shape = NETWORKS[network]
        self.network = make(nn).to(device)
        self.loss = nn.CrossEntropyLoss()
        self.images = torch.randn(shape, device=device)
        self.labels = torch.randint(10, shape[:1], device=device)
        self.optimizer = getattr(optim, optimizer)(self.network.parameters(), lr=1e-3, **OPTIMIZERS[optimizer])
        self.watch: Watch | None = watch(self.optimizer, writer, every=every) if writer else None

    def step(self) -> Tensor:
        """Take a training step."""
        self.optimizer.zero_grad()
        loss: Tensor = self.loss(self.network(self.images), self.labels)
        loss.backward()
        self.optimizer.step()
        return loss

    def only_optimizer(self) -> Step:
        """Return the optimizer's step on the gradients of one pass."""
        self.step()
        step: Step = self.optimizer.step
        return step


def writers(directory: str) -> Iterator[tuple[str, Any]]:
    """Yield the writers by name, TensorBoard's if it is installed."""
    yield "CSV", Path(directory, "log.csv")
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ModuleNotFoundError:
        return
    yield "TensorBoard", SummaryWriter(directory)


def measure(network: str, optimizer: str, writer: tuple[str, Any], every: int, rounds: int, device: str) -> Any:
    """Return the times of watched and unwatched steps."""

    def training(written: Any, every: int = every) -> Training:
        return Training(network, optimizer, written, every, device)

    never = 10**9
    # As many steps in a round as there are between two logged ones, so that each round has its share of them.
    steps = [times(every, training(None).step), times(every, training(writer[1]).step)]
    alone = [training(written, often).only_optimizer() for written, often in ((None, 1), (writer[1], every))]
    idle = training(writer[1], never).only_optimizer()
    whole, watched = least(steps, rounds, device)
    bare, seen, unlogged = least([times(every, step) for step in (*alone, idle)], rounds, device)
    return {
        "network": network,
        "optimizer": optimizer,
        "writer": writer[0],
        "elements": sum(param.numel() for param in training(None).network.parameters()),
        "training": whole / every,
        "watched_training": watched / every,
        "step": bare / every,
        "watched_step": seen / every,
        "unlogged_step": unlogged / every,
    }


def least(steps: Sequence[Step], rounds: int, device: str) -> list[float]:
    """Return the shortest time of each step, measured in turn.

    On the CPU it is the time of the processor, with one thread: what other processes take does not count.
    """
    if device != "cpu":
        return [min(found) for found in alternate(steps, rounds, device)]
    found = [math.inf] * len(steps)
    for _ in range(1 + rounds):
        for index, step in enumerate(steps):
            started = time.process_time()
            step()
            found[index] = min(found[index], time.process_time() - started)
    return found


def times(count: int, step: Step) -> Step:
    """Return a function that takes several steps."""

    def steps() -> None:
        for _ in range(count):
            step()

    return steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=10)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as directory:
        found = [
            measure(network, optimizer, writer, arguments.every, arguments.rounds, arguments.device)
            for writer in writers(directory)
            for network in NETWORKS
            for optimizer in OPTIMIZERS
        ]
    rows = [
        (
            row["network"],
            row["optimizer"],
            row["writer"],
            f"{1e3 * row['training']:.2f}",
            f"{row['watched_training'] / row['training']:.3f}",
            f"{row['watched_step'] / row['step']:.3f}",
            f"{row['unlogged_step'] / row['step']:.3f}",
        )
        for row in found
    ]
    print_table(COLUMNS, rows, NOTE)
    if arguments.json:
        evidence = {
            "environment": environment(arguments.device),
            "every": arguments.every,
            "rounds": arguments.rounds,
            "watched": found,
        }
        arguments.json.write_text(json.dumps(evidence, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
