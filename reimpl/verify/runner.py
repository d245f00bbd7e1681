"""Run the registry, collect the evidence."""

from __future__ import annotations

import ast
import datetime
import hashlib
import math
import multiprocessing
import os
import platform
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
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

CASES_WORTH_A_PROCESS = 1000
"""A process takes a second to start."""


@dataclass(frozen=True)
class Row:
    """The cases of a section and engine, summed up: the exact ones by the path of torch's, the errors of the others."""

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
        code: what was judged: a digest of each file of `reimpl.optim` and `reimpl.nn`.
        seconds: how long it took.
    """

    verdicts: list[Verdict] = field(default_factory=list)
    trainings: list[Training] = field(default_factory=list)
    deviations: list[Shown] = field(default_factory=list)
    checks: list[Outcome] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    subject: str = ""
    environment: dict[str, Any] = field(default_factory=dict)
    code: dict[str, str] = field(default_factory=dict)
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
            "code": self.code,
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
    others = [verdict for verdict in verdicts if verdict.kind != "exact"]
    return Row(
        section=section,
        engine=engine,
        cases=len(verdicts),
        exact=kinds.count("exact"),
        close=kinds.count("close"),
        differs=kinds.count("differs"),
        worst_ulp=max(verdict.ulp for verdict in verdicts),
        equals=dict(Counter(verdict.reference for verdict in verdicts if verdict.kind == "exact").most_common()),
        worst_error=max((verdict.error for verdict in others), default=0.0),
        worst_reference_error=max((verdict.reference_error for verdict in others), default=0.0),
    )


def verify(
    cases: Iterable[Case | LayerCase],
    trainings: Iterable[str] = (),
    device: str = "cpu",
    progress: Progress = lambda _: None,
    deviations: Iterable[Deviation] = (),
    processes: int = 1,
) -> Evidence:
    """Judge each case for `reimpl.optim` against `torch.optim` or `reimpl.nn` against `torch.nn`, and train.

    Args:
        cases: what to judge.
        trainings: the real runs, by the names of their plans.
        device: `cpu` or a CUDA device.
        progress: called after each case and each real run.
        deviations: what to show of where we differ from torch on purpose.
        processes: among how many to share the cases, on the CPU.

    Raises:
        ModuleNotFoundError: if a real run is asked for and scikit-learn, which has the images, is not installed.
    """
    started = time.monotonic()
    evidence = Evidence(environment={**environment(device), "processes": processes}, code=digests())
    for outcome in carry_out([*cases, *trainings], device, processes):
        if isinstance(outcome, Training):
            evidence.trainings.append(outcome)
            progress(f"train.{outcome.name}")
        else:
            evidence.verdicts.append(outcome)
            progress(outcome.case.section)
    evidence.deviations += map(show, deviations)
    evidence.seconds = time.monotonic() - started
    return evidence


Job: TypeAlias = Case | LayerCase | str
"""A case, or a real run by its plan's name."""


def carry_out(jobs: list[Job], device: str, processes: int) -> Iterator[Verdict | Training]:
    """Yield what comes out of each job, in their order."""
    if processes == 1:
        yield from (do(job, device) for job in jobs)
        return
    # Forked processes have the jobs, which could not be sent: inputs and scenarios hold functions.
    with multiprocessing.get_context("fork").Pool(processes, initializer=begin, initargs=(jobs, device)) as pool:
        for job, outcome in zip(jobs, pool.imap(do_by_number, range(len(jobs)), chunksize=4), strict=True):
            yield outcome if isinstance(job, str) else Verdict(case=job, **outcome)


def do(job: Job, device: str) -> Verdict | Training:
    """Judge a case, or train."""
    if isinstance(job, str):
        return train(job, device)
    if isinstance(job, LayerCase):
        return judge_layer(getattr(reimpl.nn, job.layer), getattr(torch.nn, job.layer), job, device)
    return judge(getattr(reimpl.optim, job.optimizer), getattr(torch.optim, job.optimizer), job, device)


WORK: list[Any] = []
"""The jobs and the device of a process that has been forked."""


def begin(jobs: list[Job], device: str) -> None:
    """Take over the jobs. A process has one thread: there is one for each core."""
    torch.set_num_threads(1)
    WORK[:] = jobs, device


def do_by_number(number: int) -> Any:
    """Return a real run, or what a verdict says beside its case, of the job of this number."""
    jobs, device = WORK
    outcome = do(jobs[number], device)
    if isinstance(outcome, Training):
        return outcome
    return {field.name: getattr(outcome, field.name) for field in fields(outcome) if field.name != "case"}


def processes_for(count: int, device: str) -> int:
    """Return how many processes are worth their start for so many cases: at most one for each core, on the CPU."""
    if device != "cpu" or sys.platform != "linux":  # where else there is `fork`, it is not safe beside system libraries
        return 1
    return max(1, min(os.cpu_count() or 1, count // CASES_WORTH_A_PROCESS))


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


def digests(root: Path = Path(reimpl.__file__).parent) -> dict[str, str]:
    """Return a digest of the code of each file of `reimpl.optim` and `reimpl.nn`, by its path.

    Args:
        root: of the package.
    """
    files = sorted(file for part in ("optim", "nn") for file in root.joinpath(part).rglob("*.py"))
    return {file.relative_to(root.parent).as_posix(): digest(file.read_text(encoding="utf-8")) for file in files}


def digest(source: str) -> str:
    """Return a digest of Python code, the same whatever its comments and docstrings are."""
    return hashlib.sha256(repr(skeleton(ast.parse(source))).encode()).hexdigest()[:16]


def skeleton(node: Any) -> Any:
    """Return a syntax tree as nested tuples, without places and texts that stand for themselves."""
    if isinstance(node, list):
        return tuple(skeleton(part) for part in node if not is_text(part))
    if not isinstance(node, ast.AST):
        return node
    parts = [(name, skeleton(value)) for name, value in ast.iter_fields(node)]
    # Newer Pythons have more fields, empty in older code.
    return type(node).__name__, *(part for part in parts if part[1] is not None and part[1] != ())


def is_text(node: Any) -> bool:
    """Return whether a statement is a docstring."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def processor() -> str:
    """Return the processor's name, as far as the system tells."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()
