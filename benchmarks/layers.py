"""Time a forward and backward pass of each layer beside torch's: on torch's kernels, and from first principles.

    python benchmarks/layers.py [--only conv] [--device cuda] [--rounds 9] [--json FILE]

The ratio of two medians from the same minute is what counts.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence

import reimpl.nn
import reimpl.nn.functional
from reimpl.bench.timing import Step, compare, peak_memory
from reimpl.verify.report import print_table
from reimpl.verify.runner import environment

COLUMNS = ("layer", "input", "torch, ms", "kernels", "first\nprinciples", "target", "peak\nMiB", "torch's\nMiB")
NOTE = """Forward and backward, medians of alternating rounds. kernels: the time of `reimpl.nn` on torch's kernels,
divided by torch's. first principles: the same layer on `reimpl.nn.functional`. target: what its ratio should stay
below; that of LSTM is for the average over its sizes. peak: memory held at once by the pass, from first principles and
by torch."""


@dataclass(frozen=True)
class Workload:
    """A layer and an input.

    Attributes:
        layer: the class's name.
        arguments: of its constructor.
        shape: of the input.
        target: the ratio that first principles should stay below.
        options: further arguments of the constructor.
        packed: whether the sequences are of many lengths, and packed.
    """

    layer: str
    arguments: tuple[Any, ...]
    shape: tuple[int, ...]
    target: float = 3
    options: dict[str, Any] = field(default_factory=dict)
    packed: bool = False

    @property
    def name(self) -> str:
        """The layer as one would type it."""
        parts = [*map(repr, self.arguments), *(f"{name}={value!r}" for name, value in self.options.items())]
        return f"{self.layer}({', '.join(parts)}){' packed' if self.packed else ''}"


WORKLOADS = [
    Workload("Linear", (512, 512), (128, 512)),
    Workload("Linear", (1024, 4096), (64, 1024)),
    Workload("Conv1d", (64, 64, 5), (16, 64, 512), 4),
    Workload("Conv2d", (3, 32, 5), (16, 3, 64, 64), 4),
    Workload("Conv2d", (64, 64, 3), (16, 64, 28, 28), 4, {"padding": 1}),
    Workload("Conv2d", (64, 128, 3), (16, 64, 28, 28), 4, {"padding": 1, "stride": 2}),
    Workload("Conv2d", (64, 64, 3), (16, 64, 28, 28), 4, {"padding": 2, "dilation": 2}),
    Workload("Conv2d", (64, 64, 3), (16, 64, 28, 28), 4, {"padding": 1, "groups": 64}),
    Workload("Conv2d", (64, 256, 1), (16, 64, 28, 28), 4),
    Workload("Conv3d", (16, 32, 3), (4, 16, 12, 20, 20), 4),
    Workload("MaxPool1d", (4,), (32, 64, 1024), 8),
    Workload("MaxPool2d", (2,), (16, 64, 56, 56), 8),
    Workload("MaxPool2d", (3, 2, 1), (16, 64, 56, 56), 8),
    Workload("MaxPool3d", (2,), (4, 32, 16, 28, 28), 8),
    Workload("AvgPool1d", (4,), (32, 64, 1024), 8),
    Workload("AvgPool2d", (2,), (16, 64, 56, 56), 8),
    Workload("AvgPool2d", (3, 2, 1), (16, 64, 56, 56), 8),
    Workload("AvgPool3d", (2,), (4, 32, 16, 28, 28), 8),
    Workload("AdaptiveMaxPool2d", (1,), (16, 256, 14, 14), 8),
    Workload("AdaptiveMaxPool2d", (7,), (16, 64, 28, 28), 8),
    Workload("AdaptiveAvgPool2d", (1,), (16, 256, 14, 14), 8),
    Workload("AdaptiveAvgPool2d", (7,), (16, 64, 28, 28), 8),
    *(
        Workload(name, arguments, shape)
        for name, arguments in (
            ("Sigmoid", ()),
            ("ReLU", ()),
            ("Tanh", ()),
            ("Softmax", (-1,)),
            ("LogSoftmax", (-1,)),
            ("Dropout", ()),
        )
        for shape in ((64, 1024), (32, 64, 28, 28), (8, 128, 4096))
    ),
    Workload("BatchNorm1d", (256,), (256, 256)),
    Workload("BatchNorm1d", (64,), (32, 64, 512)),
    Workload("BatchNorm2d", (64,), (32, 64, 28, 28)),
    Workload("BatchNorm2d", (128,), (16, 128, 56, 56)),
    Workload("BatchNorm3d", (16,), (4, 16, 8, 28, 28)),
    Workload("NLLLoss", (), (256, 1000)),
    Workload("CrossEntropyLoss", (), (512, 10)),
    Workload("CrossEntropyLoss", (), (256, 1000)),
    Workload("CrossEntropyLoss", (), (256, 1000), options={"label_smoothing": 0.1}),
    Workload("CrossEntropyLoss", (), (8, 21, 64, 64)),
    Workload("CrossEntropyLoss", (), (512, 32000)),
    Workload("LSTM", (8, 64), (8, 64, 8), 1.5),
    Workload("LSTM", (28, 128), (28, 128, 28), 1.5),
    Workload("LSTM", (64, 128), (50, 32, 64), 1.5),
    Workload("LSTM", (128, 256), (100, 16, 128), 1.5),
    Workload("LSTM", (32, 64), (200, 1, 32), 1.5),
    Workload("LSTM", (64, 64, 2), (30, 16, 64), 1.5, {"bidirectional": True}),
    Workload("LSTM", (64, 128), (50, 32, 64), 1.5, {"proj_size": 64}),
    Workload("LSTM", (64, 128), (50, 32, 64), 1.5, packed=True),
    Workload("LSTM", (128, 256), (100, 16, 128), 1.5, packed=True),
    Workload("LSTMCell", (64, 128), (64, 64), 3),
]


def prepare(workload: Workload, package: Any, functional: Any, device: str) -> Step:
    """Return a forward and backward pass."""
    torch.manual_seed(0)
    layer = getattr(package, workload.layer)(*workload.arguments, **workload.options).to(device)
    if functional is not None:
        layer.functional = functional
    leaf = torch.randn(workload.shape, device=device)
    given: Any = leaf
    if workload.packed:
        longest, count, _ = workload.shape
        given = pack_padded_sequence(leaf, torch.linspace(longest, longest / 4, count).long())
        leaf = given.data
    leaf.requires_grad_()
    targets = ()
    if workload.layer.endswith("Loss"):
        size = (workload.shape[0], *workload.shape[2:])
        targets = (torch.randint(workload.shape[1], size, device=device),)
    leaves = [leaf, *layer.parameters()]
    output = first(layer(given, *targets))
    upstream = torch.randn_like(output)

    def step() -> tuple[Tensor, ...]:
        return torch.autograd.grad(first(layer(given, *targets)), leaves, upstream)

    return step


def first(output: Any) -> Tensor:
    """Return the tensor that a layer computes first."""
    while not isinstance(output, Tensor):
        output = output[0]
    return output


def measure(workload: Workload, rounds: int, device: str) -> dict[str, Any]:
    """Return the times and the peak memory of a workload."""
    make: list[Callable[[], Step]] = [
        lambda: prepare(workload, reimpl.nn, None, device),
        lambda: prepare(workload, reimpl.nn, reimpl.nn.functional, device),
        lambda: prepare(workload, torch.nn, None, device),
    ]
    steps = [build() for build in make]
    kernels, principles, theirs = compare(steps, rounds, device)
    return {
        "layer": workload.name,
        "kind": workload.layer,
        "shape": list(workload.shape),
        "target": workload.target,
        "torch": theirs,
        "kernels": kernels,
        "first_principles": principles,
        "peak": peak_memory(steps[1], device),
        "torch_peak": peak_memory(steps[2], device),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="layers whose name contains this, in any case")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    chosen = [workload for workload in WORKLOADS if arguments.only.lower() in workload.layer.lower()]
    found = [measure(workload, arguments.rounds, arguments.device) for workload in chosen]
    rows = [
        (
            row["layer"],
            "×".join(map(str, row["shape"])),
            f"{1e3 * row['torch']:.3f}",
            f"{row['kernels'] / row['torch']:.2f}",
            f"{row['first_principles'] / row['torch']:.2f}",
            f"{row['target']:g}",
            f"{row['peak'] / 2**20:.1f}",
            f"{row['torch_peak'] / 2**20:.1f}",
        )
        for row in found
    ]
    print_table(COLUMNS, rows, NOTE)
    lstm = [row["first_principles"] / row["torch"] for row in found if row["kind"] == "LSTM"]
    if lstm:
        print(f"LSTM on average: {statistics.mean(lstm):.2f}")
    if arguments.json:
        evidence = {"environment": environment(arguments.device), "rounds": arguments.rounds, "layers": found}
        arguments.json.write_text(json.dumps(evidence, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
