"""A step of each optimizer in every way there is to take it, ours and torch's, in one run."""

from __future__ import annotations

import contextlib
import gc
import importlib
import inspect
import logging
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from typing import Any

import torch
from torch import Tensor

from reimpl.bench.timing import Step, alternate, peak_memory
from reimpl.bench.workloads import Shape, Workload, parameters
from reimpl.verify.runner import environment

OPTIMIZERS: dict[str, dict[str, Any]] = {
    "SGD": {"momentum": 0.9},
    "Adam": {},
    "Adagrad": {},
    "RMSprop": {},
    "Adadelta": {},
    "AdamW": {},
    "Adamax": {},
    "NAdam": {},
    "RAdam": {},
    "Rprop": {},
    "ASGD": {},
}
"""The elementwise optimizers, and the options that each is timed with beside its defaults."""

ENGINES: dict[str, dict[str, Any]] = {
    "loop": {"foreach": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
    "compile": {},
}
"""The ways of taking a step, and the options that choose them; `compile` is `torch.compile` of torch's step."""

ROUNDS = 9
ALLOCATIONS = 3
"""Where memory lies changes a step's time by up to a fifth, so the rounds are shared out among as many allocations."""
WARM_UP = 3
"""SGD has its buffer, and torch.compile a second kernel for it, only after two steps."""
COMPILE_LIMIT = 200
"""`torch.compile(opt.step)` unrolls the loop over tensors: 161 take it 45 s on two cores, 1,000 many minutes."""
FLOOR_BYTES = 2**30
"""What moves this much is out of every cache; to move more takes time in proportion."""
CACHE = "TORCHINDUCTOR_CACHE_DIR"
"""Where torch keeps compiled kernels, and our fused engine beside them."""


@dataclass(frozen=True)
class Variant:
    """A way of taking the step.

    Attributes:
        package: whose optimizer.
        engine: the key of `ENGINES`.
    """

    package: str
    engine: str

    @property
    def ours(self) -> bool:
        """Whether the optimizer is reimpl's."""
        return self.package == "reimpl.optim"

    @property
    def name(self) -> str:
        """What results are filed under."""
        return f"{'ours' if self.ours else 'torch'} {self.engine}"

    @property
    def compiled(self) -> bool:
        """Whether the first step waits for a compiler."""
        return self.engine == "compile" or (self.ours and self.engine == "fused")

    def optimizer(self, name: str) -> type[torch.optim.Optimizer]:
        """Return the optimizer's class."""
        found: type[torch.optim.Optimizer] = getattr(importlib.import_module(self.package), name)
        return found

    def exists(self, name: str) -> bool:
        """Whether the optimizer has this engine."""
        return set(ENGINES[self.engine]) <= set(inspect.signature(self.optimizer(name)).parameters)

    def start(self, name: str, options: dict[str, Any], params: list[Tensor]) -> tuple[torch.optim.Optimizer, Step]:
        """Return an optimizer without state, and its step."""
        optimizer = self.optimizer(name)(params, **options, **ENGINES[self.engine])
        if self.engine != "compile":
            return optimizer, optimizer.step
        # Or it would say of each optimizer that it ignores the mark for the profiler.
        logging.getLogger("torch._dynamo.variables.ctx_manager").setLevel(logging.ERROR)
        return optimizer, torch.compile(optimizer.step)


VARIANTS = [
    *(Variant("reimpl.optim", engine) for engine in ("loop", "foreach", "fused")),
    *(Variant("torch.optim", engine) for engine in ("loop", "foreach", "fused", "compile")),
]
"""Every way that is timed: ours and torch's."""


@dataclass
class Result:
    """What was measured for one optimizer and workload.

    Attributes:
        optimizer: its name.
        options: of its constructor, beside the engine.
        workload: what it updated.
        moved: the bytes that one step must move.
        times: of a step by variant, each round.
        floor_times: of moving so many bytes by a `copy`, and by one pass `in place`, each round.
        first_steps: seconds of construction and first step, in a new process, by variant: with nothing compiled
            before (`cold`), and once more with what that has left on disk (`warm`).
        peaks: bytes that a step holds at once beside parameters, gradients and state, by variant.
        absent: why a variant was left out.
    """

    optimizer: str
    options: dict[str, Any]
    workload: Workload
    moved: int = 0
    times: dict[str, list[float]] = field(default_factory=dict)
    floor_times: dict[str, list[float]] = field(default_factory=dict)
    first_steps: dict[str, dict[str, float]] = field(default_factory=dict)
    peaks: dict[str, int] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """The optimizer as one would type it."""
        options = ", ".join(f"{name}={value!r}" for name, value in self.options.items())
        return f"{self.optimizer}({options})" if options else self.optimizer

    @property
    def medians(self) -> dict[str, float]:
        """The time of a step, by variant."""
        return {name: statistics.median(times) for name, times in self.times.items()}

    @property
    def best(self) -> str | None:
        """The fastest of torch's own variants, `torch.compile` left out."""
        medians = self.medians
        own = [name for name in medians if name.startswith("torch ") and name != "torch compile"]
        return min(own, key=medians.__getitem__, default=None)

    @property
    def ratios(self) -> dict[str, float]:
        """Our fused step to torch's best, and our loop and foreach to torch's."""
        medians = self.medians
        pairs = {"fused": self.best, "loop": "torch loop", "foreach": "torch foreach"}
        return {
            engine: medians[f"ours {engine}"] / medians[other]
            for engine, other in pairs.items()
            if f"ours {engine}" in medians and other in medians
        }

    @property
    def bandwidths(self) -> dict[str, float]:
        """The bytes a second of a copy, and of a pass in place."""
        return {name: self.moved / statistics.median(times) for name, times in self.floor_times.items()}

    @property
    def floor(self) -> float:
        """The time in which memory moves the bytes that a step must move, at the higher bandwidth.

        A processor reads what a copy is about to overwrite, and so moves half as much again as is counted; in place, as
        in a step, it does not.
        """
        return self.moved / max(self.bandwidths.values(), default=math.nan)

    @property
    def reached(self) -> dict[str, float]:
        """The floor as a share of the step's time, by variant."""
        return {name: self.floor / median for name, median in self.medians.items()}

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON's types."""
        return {
            "optimizer": self.optimizer,
            "options": self.options,
            "workload": self.workload.name,
            "tensors": len(self.workload.shapes),
            "elements": self.workload.elements,
            "seconds": self.medians,
            "best_of_torch": self.best,
            "ratios": self.ratios,
            "bytes_moved": self.moved,
            "bytes_per_second": self.bandwidths,
            "floor_seconds": self.floor if self.floor_times else None,
            "floor_reached": self.reached,
            "first_step_seconds": self.first_steps,
            "peak_bytes": self.peaks,
            "absent": self.absent,
            "rounds": {**self.times, **self.floor_times},
        }


@dataclass
class Results:
    """All that was measured, and where."""

    environment: dict[str, Any]
    rounds: int
    results: list[Result] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON's types."""
        return {
            "environment": self.environment,
            "rounds": self.rounds,
            "results": [result.to_json() for result in self.results],
        }


def bench(
    optimizers: Iterable[str],
    workloads: Sequence[Workload],
    device: str = "cpu",
    rounds: int = ROUNDS,
    variants: Sequence[Variant] = VARIANTS,
    progress: Callable[[Result], None] = lambda _: None,
) -> Results:
    """Time a step of each optimizer on each workload, in every variant.

    Args:
        optimizers: names in `OPTIMIZERS`.
        workloads: what they update.
        device: `cpu` or a CUDA device.
        rounds: how often each variant has its turn.
        variants: which.
        progress: called before each optimizer and workload.
    """
    found = Results(environment(device), rounds)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as caches:
        for name in optimizers:
            for workload in workloads:
                result = Result(name, OPTIMIZERS[name], workload)
                progress(result)
                measure(result, [variant for variant in variants if variant.exists(name)], rounds, device, caches)
                found.results.append(result)
    return found


def measure(result: Result, variants: Sequence[Variant], rounds: int, device: str, caches: str) -> None:
    """Fill in the result: first steps in new processes, then all variants in turn."""
    # Each compiled variant has a folder of its own: what another one left there would warm its first step.
    folders = {variant: tempfile.mkdtemp(dir=caches) for variant in variants if variant.compiled}
    for variant, folder in folders.items():
        if variant.engine == "compile" and len(result.workload.shapes) > COMPILE_LIMIT:
            result.absent[variant.name] = f"it unrolls the loop over tensors, and there are more than {COMPILE_LIMIT}"
            continue
        with refusal(result, variant), compile_cache(folder):
            arguments = (variant, result.optimizer, result.options, result.workload.shapes, device)
            result.first_steps[variant.name] = {state: alone(first_step, *arguments) for state in ("cold", "warm")}
    for allocation in range(min(ALLOCATIONS, rounds)):
        # Dynamo compiles `Adam.step` at most eight times a process, and then runs it uncompiled without a word.
        torch.compiler.reset()
        gc.collect()
        if device.startswith("cuda"):
            torch.cuda.empty_cache()
        time_rounds(result, variants, folders, len(range(allocation, rounds, ALLOCATIONS)), device)


def time_rounds(
    result: Result, variants: Sequence[Variant], folders: dict[Variant, str], rounds: int, device: str
) -> None:
    """Add some rounds on newly allocated memory; parameters and gradients are the same for all, state is their own."""
    params = parameters(result.workload.shapes, device)
    steps: dict[str, Step] = {}
    for variant in variants:
        if variant.name in result.absent:
            continue
        with refusal(result, variant), compile_cache(folders.get(variant)):
            optimizer, step = variant.start(result.optimizer, result.options, params)
            for _ in range(WARM_UP):
                step()
            if variant.name not in result.peaks:
                result.peaks[variant.name] = peak_memory(step, device)
            result.moved = bytes_moved(optimizer)
            steps[variant.name] = step
    if steps:
        scale, passes = floor_passes(result.moved, device)
        times = alternate([*steps.values(), *passes.values()], rounds, device)
        for name, found in zip(steps, times, strict=False):
            result.times.setdefault(name, []).extend(found)
        for name, found in zip(passes, times[len(steps) :], strict=True):
            result.floor_times.setdefault(name, []).extend(scale * seconds for seconds in found)


@contextlib.contextmanager
def refusal(result: Result, variant: Variant) -> Iterator[None]:
    """Leave out a variant that cannot take the step here, such as a kernel that torch lacks on this device."""
    try:
        yield
    except (RuntimeError, TypeError, ValueError) as error:
        result.absent[variant.name] = " ".join(str(error).split())


@contextlib.contextmanager
def compile_cache(folder: str | None) -> Iterator[None]:
    """Keep what is compiled in this folder, if one is given."""
    before = os.environ.get(CACHE)
    if folder is not None:
        os.environ[CACHE] = folder
    try:
        yield
    finally:
        os.environ.pop(CACHE, None)
        if before is not None:
            os.environ[CACHE] = before


def alone(function: Callable[..., float], *arguments: Any) -> float:
    """Return what the function returns in a new process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def first_step(variant: Variant, name: str, options: dict[str, Any], shapes: tuple[Shape, ...], device: str) -> float:
    """Return the time of construction and first step."""
    params = parameters(shapes, device)
    cuda = device.startswith("cuda")
    if cuda:
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    _, step = variant.start(name, options, params)
    step()
    if cuda:
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def bytes_moved(optimizer: torch.optim.Optimizer) -> int:
    """Return what a step must move at least: parameters and state read and written, gradients read.

    0-dim state, such as a step count, is none of the parameter's arithmetic and need not be a tensor.
    """
    total = 0
    for group in optimizer.param_groups:
        for param in group["params"]:
            state = [value for value in optimizer.state[param].values() if isinstance(value, Tensor) and value.dim()]
            total += 2 * sum(tensor.nbytes for tensor in (param, *state)) + param.grad.nbytes
    return total


def floor_passes(moved: int, device: str) -> tuple[float, dict[str, Step]]:
    """Return two ways of moving so many bytes, or `FLOOR_BYTES`, and the factor from their time to that of them all."""
    actual = min(moved, FLOOR_BYTES)
    source = torch.ones(actual // 2 // 4, device=device)
    target = torch.ones_like(source)
    return moved / actual, {"copy": lambda: target.copy_(source), "in place": source.neg_}
