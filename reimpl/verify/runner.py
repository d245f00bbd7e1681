"""Run the registry, collect the evidence."""

from __future__ import annotations

import datetime
import math
import platform
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypeAlias

import torch

import reimpl.nn
import reimpl.optim
from reimpl.verify.contract import CHECKS, Outcome, probe, run_check
from reimpl.verify.deviations import Deviation, Shown, show
from reimpl.verify.foreign import Comparison, judge_foreign
from reimpl.verify.judge import CLOSE_FACTOR, FUSED_FACTOR, judge
from reimpl.verify.layer_judge import LAYER_FACTOR, judge_layer
from reimpl.verify.layers import LayerCase
from reimpl.verify.optimizers import Case
from reimpl.verify.training import Training, train
from reimpl.verify.trial import OptimizerClass
from reimpl.verify.verdict import Verdict

Progress: TypeAlias = Callable[[str], None]
"""Called with a section's name after each of its cases."""


@dataclass(frozen=True)
class Row:
    """The cases of one section and engine, summed up; `equals` counts the exact ones by the path of torch's."""

    section: str
    engine: str
    cases: int
    exact: int
    close: int
    differs: int
    worst_ulp: int
    equals: dict[str, int]
    worst_error: float
    worst_reference_error: float


@dataclass
class Evidence:
    """What was found, and where.

    Attributes:
        verdicts: of each case.
        trainings: the real runs.
        deviations: where we differ from torch on purpose, and what came of it.
        checks: of the contract.
        notes: how a class was judged, in sentences: what was left out, and what cannot be compared.
        subject: the class that was judged, if it is not ours; its dotted name.
        environment: versions, device, threads and date.
        seconds: how long it took.
    """

    verdicts: list[Verdict] = field(default_factory=list)
    trainings: list[Training] = field(default_factory=list)
    deviations: list[Shown] = field(default_factory=list)
    checks: list[Outcome] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    subject: str = ""
    environment: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def holds(self) -> bool:
        """Whether every claim is met, and there was one."""
        results: list[Verdict | Training | Outcome | Shown] = [
            *self.verdicts,
            *self.trainings,
            *self.checks,
            *self.deviations,
        ]
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
        outcomes = [outcome.kind for outcome in self.checks]
        counts = {
            "cases": len(kinds),
            "exact": kinds.count("exact"),
            "close": kinds.count("close"),
            "differs": kinds.count("differs"),
            "claims_failed": len(self.failures),
            "trainings": len(self.trainings),
            "trainings_failed": sum(not training.holds for training in self.trainings),
            "deliberate": len(self.deviations),
            "deliberate_failed": sum(not shown.holds for shown in self.deviations),
        }
        if self.checks:
            counts = {
                "checks": len(outcomes),
                "failed": outcomes.count("fails"),
                "skipped": outcomes.count("skipped"),
            }
        fields = {
            "result": "pass" if self.holds else "fail",
            **counts,
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
            "deviations": [shown.to_json() for shown in self.deviations],
            "checks": [asdict(outcome) for outcome in self.checks],
            "notes": self.notes,
            "subject": self.subject,
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
        equals=dict(Counter(verdict.reference for verdict in verdicts if verdict.kind == "exact").most_common()),
        worst_error=max(verdict.error for verdict in verdicts),
        worst_reference_error=max(verdict.reference_error for verdict in verdicts),
    )


def verify(
    cases: Iterable[Case | LayerCase],
    trainings: Iterable[str] = (),
    device: str = "cpu",
    progress: Progress = lambda _: None,
    deviations: Iterable[Deviation] = (),
) -> Evidence:
    """Judge each case for `reimpl.optim` against `torch.optim` or `reimpl.nn` against `torch.nn`, and train.

    Args:
        cases: what to judge.
        trainings: the real runs, by the names of their plans.
        device: `cpu` or a CUDA device.
        progress: called after each case and each real run.
        deviations: what to show of where we differ from torch on purpose.

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
    evidence.deviations += map(show, deviations)
    for name in trainings:
        evidence.trainings.append(train(name, device))
        progress(f"train.{name}")
    evidence.seconds = time.monotonic() - started
    return evidence


def verify_contract(optimizer: OptimizerClass, device: str = "cpu", progress: Progress = lambda _: None) -> Evidence:
    """Run every check of the contract on a class, with its default options.

    Args:
        optimizer: the class.
        device: `cpu` or a CUDA device.
        progress: called after each check.

    Raises:
        ContractError: if no way was found in which the class takes a step.
    """
    started = time.monotonic()
    subject = probe(optimizer, device=device)
    notes = [f"tried with {subject.manner}", *(f"refused {refusal}" for refusal in subject.refusals)]
    evidence = Evidence(environment=environment(device), notes=notes, subject=full_name(optimizer))
    for name in CHECKS:
        evidence.checks.append(run_check(name, subject))
        progress(optimizer.__name__)
    evidence.seconds = time.monotonic() - started
    return evidence


def full_name(optimizer: OptimizerClass) -> str:
    """Return a class's dotted name."""
    return f"{optimizer.__module__}.{optimizer.__qualname__}"


def verify_against(of: Comparison, device: str = "cpu", progress: Progress = lambda _: None) -> Evidence:
    """Judge a class against one of torch's.

    Args:
        of: what is compared, and in which cases.
        device: `cpu` or a CUDA device.
        progress: called after each case.
    """
    started = time.monotonic()
    evidence = Evidence(environment=environment(device), notes=of.notes, subject=full_name(of.optimizer))
    for case in of.cases:
        evidence.verdicts.append(judge_foreign(of, case, device))
        progress(of.optimizer.__name__)
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
