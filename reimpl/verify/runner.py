"""Run the registry, collect the evidence."""

from __future__ import annotations

import datetime
import math
import platform
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypeAlias

import torch

import reimpl.nn
import reimpl.optim
from reimpl.verify.judge import CLOSE_FACTOR, FUSED_FACTOR, judge
from reimpl.verify.layer_judge import LAYER_FACTOR, judge_layer
from reimpl.verify.layers import LayerCase
from reimpl.verify.optimizers import Case
from reimpl.verify.training import Training, train
from reimpl.verify.verdict import Verdict

Progress: TypeAlias = Callable[[str], None]
"""Called with a section's name after each of its cases."""


@dataclass(frozen=True)
class Row:
    """The cases of one section and engine, summed up."""

    section: str
    engine: str
    cases: int
    exact: int
    close: int
    differs: int
    worst_ulp: int
    worst_error: float
    worst_reference_error: float


@dataclass
class Evidence:
    """What was found, and where.

    Attributes:
        verdicts: of each case.
        trainings: the real runs.
        environment: versions, device, threads and date.
        seconds: how long it took.
    """

    verdicts: list[Verdict] = field(default_factory=list)
    trainings: list[Training] = field(default_factory=list)
    environment: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def holds(self) -> bool:
        """Whether every claim is met, and there was one."""
        results: list[Verdict | Training] = [*self.verdicts, *self.trainings]
        return bool(results) and all(result.holds for result in results)

    @property
    def failures(self) -> list[Verdict]:
        """The verdicts that do not meet their case's claim."""
        return [verdict for verdict in self.verdicts if not verdict.holds]

    def rows(self) -> list[Row]:
        """Sum up by section and engine."""
        groups: dict[tuple[str, str], list[Verdict]] = {}
        for verdict in self.verdicts:
            groups.setdefault((verdict.case.section, verdict.case.engine), []).append(verdict)
        return [summarise(section, engine, verdicts) for (section, engine), verdicts in groups.items()]

    def summary(self) -> str:
        """Return the line that scripts read."""
        kinds = [verdict.kind for verdict in self.verdicts]
        fields = {
            "result": "pass" if self.holds else "fail",
            "cases": len(kinds),
            "exact": kinds.count("exact"),
            "close": kinds.count("close"),
            "differs": kinds.count("differs"),
            "claims_failed": len(self.failures),
            "trainings": len(self.trainings),
            "trainings_failed": sum(not training.holds for training in self.trainings),
            "device": self.environment["device"],
            "torch": self.environment["torch"],
            "seconds": round(self.seconds, 1),
        }
        return "reimpl-verify: " + " ".join(f"{name}={value}" for name, value in fields.items())

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON's types."""
        return {
            "holds": self.holds,
            "summary": self.summary(),
            "environment": self.environment,
            "close_factor": CLOSE_FACTOR,
            "fused_factor": FUSED_FACTOR,
            "layer_factor": LAYER_FACTOR,
            "seconds": round(self.seconds, 1),
            "rows": [{name: finite(value) for name, value in asdict(row).items()} for row in self.rows()],
            "trainings": [training.to_json() for training in self.trainings],
            "cases": [
                {
                    "name": verdict.case.name,
                    "section": verdict.case.section,
                    "engine": verdict.case.engine,
                    "dtype": verdict.case.dtype_name,
                    "scenario": verdict.case.scenario.name,
                    "claim": verdict.case.claim,
                    "verdict": verdict.kind,
                    "holds": verdict.holds,
                    "reference": verdict.reference,
                    "ulp": verdict.ulp,
                    "error": finite(verdict.error),
                    "reference_error": finite(verdict.reference_error),
                    "difference": str(verdict.difference) if verdict.difference else None,
                }
                for verdict in self.verdicts
            ],
        }


def finite(value: Any) -> Any:
    """Return what JSON can hold: infinities and NaN by name."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def summarise(section: str, engine: str, verdicts: Sequence[Verdict]) -> Row:
    """Sum up the verdicts of one section and engine."""
    kinds = [verdict.kind for verdict in verdicts]
    return Row(
        section=section,
        engine=engine,
        cases=len(verdicts),
        exact=kinds.count("exact"),
        close=kinds.count("close"),
        differs=kinds.count("differs"),
        worst_ulp=max(verdict.ulp for verdict in verdicts),
        worst_error=max(verdict.error for verdict in verdicts),
        worst_reference_error=max(verdict.reference_error for verdict in verdicts),
    )


def verify(
    cases: Iterable[Case | LayerCase],
    trainings: Iterable[str] = (),
    device: str = "cpu",
    progress: Progress = lambda _: None,
) -> Evidence:
    """Judge each case for `reimpl.optim` against `torch.optim` or `reimpl.nn` against `torch.nn`, and train.

    Args:
        cases: what to judge.
        trainings: the real runs, by the names of their plans.
        device: `cpu` or a CUDA device.
        progress: called after each case and each real run.

    Raises:
        ModuleNotFoundError: if a real run is asked for and scikit-learn, which has the images, is not installed.
    """
    started = time.monotonic()
    evidence = Evidence(environment=environment(device))
    for case in cases:
        if isinstance(case, LayerCase):
            layers = getattr(reimpl.nn, case.layer), getattr(torch.nn, case.layer)
            verdict = judge_layer(*layers, case, device)
        else:
            optimizers = getattr(reimpl.optim, case.optimizer), getattr(torch.optim, case.optimizer)
            verdict = judge(*optimizers, case, device)
        evidence.verdicts.append(verdict)
        progress(case.section)
    for name in trainings:
        evidence.trainings.append(train(name, device))
        progress(f"train.{name}")
    evidence.seconds = time.monotonic() - started
    return evidence


def environment(device: str) -> dict[str, Any]:
    """Describe where the evidence was gathered."""
    return {
        "reimpl": reimpl.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": torch.device(device).type,
        "device_name": torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else processor(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def processor() -> str:
    """Return the processor's name, as far as the system tells."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()
