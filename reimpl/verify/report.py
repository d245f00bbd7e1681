"""Evidence for the eye: a table in the terminal, and a page of HTML."""

from __future__ import annotations

import shutil
import textwrap
from collections import Counter
from importlib import resources
from typing import Any, NamedTuple

import torch

from reimpl.verify.judge import CLOSE_FACTOR, FUSED_FACTOR
from reimpl.verify.layer_judge import LAYER_FACTOR, excess
from reimpl.verify.layers import LayerCase
from reimpl.verify.optimizers import Case
from reimpl.verify.options import DTYPES
from reimpl.verify.runner import Evidence
from reimpl.verify.scenarios import SCENARIOS
from reimpl.verify.training import Training
from reimpl.verify.verdict import Verdict

SHOWN_FAILURES = 10

CASE_COLUMNS = (
    "optimizer",
    "engine",
    "cases",
    "exact",
    "close",
    "differs",
    "exact with\ntorch's",
    "worst\nULP",
    "worst\nerror",
    "torch's\nerror",
)
LAYER_COLUMNS = (
    "layer",
    "cases on\nkernels",
    "exact",
    "from first\nprinciples",
    "hold",
    "worst\nerror",
    "torch's\nerror",
    "ratio",
)
TRAINING_COLUMNS = (
    "run",
    "loss",
    "accuracy",
    "torch's",
    "losses\nand end",
    "resumed",
    "fused",
    "torch's\nfused",
    "first\nprin-\nciples",
)
CHECK_COLUMNS = ("check", "result", "what was found")
DEVIATION_COLUMNS = ("optimizer", "where", "torch", "ours", "why torch does")
WRAPPED_WIDTH = 100
LEFT = {"optimizer", "engine", "layer", "run", "input", "workload", *CHECK_COLUMNS, *DEVIATION_COLUMNS}

CASE_NOTE = f"""
exact: every bit of parameters and state is torch's, after every step, on the path that is named. close: the error is at
most {CLOSE_FACTOR:g} times torch's; claimed only where torch's for-loop mixes complex and real arithmetic or promotes
0-dim tensors, and where its foreach path is other arithmetic than its for-loop, which our text follows. fused: the mean
error of all elements is at most {FUSED_FACTOR:g} times that of torch's fused kernel or, where torch has none, its
for-loop. error: of the cases that are not exact, against a float64 run and relative to the tensor's largest value; the
worst are those of float16 and bfloat16. ∞: NaN or an infinity on one side.
"""
LAYER_NOTE = f"""
kernels: on torch's kernels every bit of initial values, outputs, gradients and buffers is torch's. first principles:
the largest error of any tensor against a float64 run is at most {LAYER_FACTOR:g} times torch's; worst is the case where
it is the largest multiple (ratio), and torch's counts as one rounding at least.
"""
CHECK_NOTE = "What each check requires: docs/write.md. skipped: the class has nothing that the check could look at."
FOREIGN_NOTE = f"""
exact: every bit that is compared is torch's, after every step. close: the error is at most {CLOSE_FACTOR:g} times
torch's, both against a float64 run of torch's and relative to the tensor's largest value; with fused, in the mean of
all elements.
"""
DEVIATION_NOTE = """
Deliberate: what torch does there loses or corrupts a result, so we do not do as it does. All else is as in torch.
"""
TRAINING_NOTE = """
The real run on 1,797 handwritten digits, with torch's layers and optimizer and with ours, from one seed: a
convolutional network with each optimizer (SparseAdam trains its embedding, Muon its hidden matrices, AdamW what these
leave), and an LSTM; the last loss, and accuracy on 360 held-out images. losses and end: those of every step, and
weights, buffers and state after the last. resumed: the checkpoint that each side wrote in mid-training, resumed by the
other, comes to the same end. fused: how far the losses of our run with fused=True are from those of torch's for-loop,
in the mean, where the optimizer has that option; torch's: the same of torch's fused run, or of its for-loop from
weights rounded once more, whichever is farther. first principles: the accuracy of the same network trained on
reimpl.nn.functional.
"""


def case_note(evidence: Evidence) -> str:
    """Return the note under the table of cases, with what became of the longest runs."""
    note = FOREIGN_NOTE if evidence.subject else CASE_NOTE
    steps = [(v.case.scenario.steps, v.kind) for v in evidence.verdicts if isinstance(v.case, Case)]
    longest = max((count for count, _ in steps), default=0)
    runs = [kind for count, kind in steps if count == longest]
    exact = runs.count("exact")
    return f"{note} Longest runs: {longest:,} steps without a new start, {exact:,} of {len(runs):,} exact."


def case_rows(evidence: Evidence) -> list[tuple[str, ...]]:
    """Return the table of cases, one row an optimizer and engine."""
    return [
        (
            row.section.removeprefix("optim."),
            row.engine,
            f"{row.cases:,}",
            f"{row.exact:,}",
            f"{row.close:,}",
            f"{row.differs:,}",
            ", ".join(f"{path} {count:,}" for path, count in row.equals.items()),
            "∞" if row.worst_ulp == torch.iinfo(torch.int64).max else f"{row.worst_ulp:,}",
            f"{row.worst_error:.1e}" if row.exact < row.cases else "",
            f"{row.worst_reference_error:.1e}" if row.exact < row.cases else "",
        )
        for row in evidence.rows()
        if row.section.startswith("optim.")
    ]


def layer_rows(evidence: Evidence) -> list[tuple[str, ...]]:
    """Return the table of layers, a row each: on torch's kernels, and from first principles."""
    verdicts: dict[str, dict[str, list[Verdict]]] = {}
    for verdict in evidence.verdicts:
        if isinstance(verdict.case, LayerCase):
            verdicts.setdefault(verdict.case.layer, {}).setdefault(verdict.case.engine, []).append(verdict)
    rows: list[tuple[str, ...]] = []
    for layer, found in verdicts.items():
        kernels, principles = found.get("kernels", []), found.get("first principles", [])
        worst = max(principles, key=excess, default=None)
        rows.append(
            (
                layer,
                f"{len(kernels):,}",
                f"{sum(verdict.kind == 'exact' for verdict in kernels):,}",
                f"{len(principles):,}",
                f"{sum(verdict.holds for verdict in principles):,}",
                f"{worst.error:.1e}" if worst else "",
                f"{worst.reference_error:.1e}" if worst else "",
                f"{excess(worst):.2f}" if worst else "",
            )
        )
    return rows


def deviation_rows(evidence: Evidence) -> list[tuple[str, ...]]:
    """Return the table of where we differ from torch on purpose."""
    return [
        (
            shown.deviation.optimizer,
            shown.deviation.where,
            shown.theirs.seen + (" (right, too)" if shown.theirs.right else ""),
            shown.ours.seen + ("" if shown.ours.right else " (WRONG)"),
            shown.deviation.why,
        )
        for shown in evidence.deviations
    ]


def check_rows(evidence: Evidence) -> list[tuple[str, ...]]:
    """Return the table of the contract's checks."""
    return [(outcome.check, outcome.kind, textwrap.shorten(outcome.found, 90)) for outcome in evidence.checks]


def training_rows(evidence: Evidence) -> list[tuple[str, ...]]:
    """Return the table of real runs."""
    return [
        (
            training.name,
            f"{training.losses[-1]:.3f}",
            f"{training.accuracy:.1%}",
            f"{training.reference_accuracy:.1%}",
            same(training.same_losses and training.same_end),
            same(training.resumed_by_ours and training.resumed_by_torch),
            distance(training.fused_distance),
            distance(training.reference_fused_distance),
            "" if training.principles_accuracy is None else f"{training.principles_accuracy:.1%}",
        )
        for training in evidence.trainings
    ]


def distance(value: float | None, digits: int = 0) -> str:
    """Write a distance of losses; nothing where there was no such run."""
    return "" if value is None else f"{value:.{digits}e}"


def same(holds: bool) -> str:
    """Say whether two things are equal."""
    return "equal" if holds else "DIFFER"


def complaint(verdict: Verdict) -> str:
    """Say what a verdict found."""
    return (
        f"{verdict.kind}, claimed {verdict.case.claim}: {verdict.case.name}, "
        f"against torch's {verdict.reference}: {verdict.difference}"
    )


def complaints(evidence: Evidence) -> list[str]:
    """Return a line for each claim that is not met, and where to look."""
    failures = evidence.failures
    lines = [f"{outcome.check}: {outcome.found}" for outcome in evidence.checks if not outcome.holds]
    lines += [complaint(verdict) for verdict in failures[:SHOWN_FAILURES]]
    if len(failures) > SHOWN_FAILURES:
        lines.append(f"… and {len(failures) - SHOWN_FAILURES:,} more; --json has all")
    lines += [
        f"deliberate, and wrong: {shown.deviation.optimizer}, {shown.deviation.where}: {shown.ours.seen}"
        for shown in evidence.deviations
        if not shown.holds
    ]
    lines += [
        f"real run {training.name}: accuracy {training.accuracy:.1%}, torch's {training.reference_accuracy:.1%}, "
        f"first different loss at step {training.first_different_loss}, "
        f"fused {distance(training.fused_distance, 1) or 'none'} away, "
        f"torch's {distance(training.reference_fused_distance, 1) or 'none'}"
        for training in evidence.trainings
        if not training.holds
    ]
    return lines


class Table(NamedTuple):
    """A table, and what is written under it."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]
    note: str


def tables(evidence: Evidence) -> list[Table]:
    """Return the tables that are not empty."""
    every = [
        Table("Optimizers", CASE_COLUMNS, case_rows(evidence), case_note(evidence)),
        Table("Layers", LAYER_COLUMNS, layer_rows(evidence), LAYER_NOTE),
        Table("Deliberate deviations", DEVIATION_COLUMNS, deviation_rows(evidence), DEVIATION_NOTE),
        Table("Real runs", TRAINING_COLUMNS, training_rows(evidence), TRAINING_NOTE),
        Table("Contract", CHECK_COLUMNS, check_rows(evidence), CHECK_NOTE),
    ]
    return [table for table in every if table.rows]


def print_report(evidence: Evidence) -> None:
    """Print the tables, whatever claim is not met, and the line for scripts."""
    for table in tables(evidence):
        print_table(table.columns, table.rows, table.note)
    for line in (*evidence.notes, *complaints(evidence)):
        print(line)  # noqa: T201
    print(evidence.summary())  # noqa: T201


def print_table(columns: tuple[str, ...], rows: list[tuple[str, ...]], note: str) -> None:
    """Print a table, plainly if `rich` is not installed."""
    note = " ".join(note.split())
    try:
        from rich import box
        from rich.console import Console
        from rich.table import Table
    except ModuleNotFoundError:
        columns = tuple(column.replace("\n", " ") for column in columns)
        widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
        for row in (columns, *rows):
            print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())  # noqa: T201
        print(note, end="\n\n")  # noqa: T201
        return
    table = Table(
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        caption=note,
        caption_justify="left",
        header_style="bold",
    )
    for column in columns:
        table.add_column(column, justify="left" if column in LEFT else "right", no_wrap=columns != DEVIATION_COLUMNS)
    for row in rows:
        table.add_row(*row)
    # A narrow terminal may break lines, but must not lose columns.
    needed = WRAPPED_WIDTH if columns == DEVIATION_COLUMNS else Console(width=1000).measure(table).maximum
    console = Console(width=max(needed, shutil.get_terminal_size(fallback=(120, 40)).columns))
    console.print(table)
    console.print()


def to_html(evidence: Evidence) -> str:
    """Return one self-contained page.

    Raises:
        ModuleNotFoundError: if jinja2 is not installed.
    """
    import jinja2

    template = resources.files("reimpl.verify").joinpath("report.html.jinja").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    return environment.from_string(template).render(
        evidence=evidence,
        case_columns=CASE_COLUMNS,
        case_rows=case_rows(evidence),
        case_note=case_note(evidence),
        layer_columns=LAYER_COLUMNS,
        layer_rows=layer_rows(evidence),
        layer_note=LAYER_NOTE,
        deviation_columns=DEVIATION_COLUMNS,
        deviation_rows=deviation_rows(evidence),
        deviation_note=DEVIATION_NOTE,
        training_columns=TRAINING_COLUMNS,
        training_rows=training_rows(evidence),
        training_note=TRAINING_NOTE,
        check_columns=CHECK_COLUMNS,
        check_rows=check_rows(evidence),
        check_note=CHECK_NOTE,
        notes=evidence.notes,
        complaints=complaints(evidence),
        curves=[
            (training, curve(training.losses, training), curve(training.principles_losses, training))
            for training in evidence.trainings
        ],
        matrix=matrix(evidence),
        dtypes=list(DTYPES),
        scenarios=SCENARIOS,
    )


def curve(losses: list[float], training: Training, width: int = 220, height: int = 60) -> str:
    """Return the points of an SVG polyline of losses, on the scale of the run's own."""
    top = max(training.losses)
    step = width / max(len(training.losses) - 1, 1)
    return " ".join(f"{i * step:.1f},{height - loss / top * height:.1f}" for i, loss in enumerate(losses))


def matrix(evidence: Evidence) -> dict[str, dict[str, dict[str, dict[str, Any]]]]:
    """Count cases and exact ones by subject and engine, scenario and dtype."""
    counts: dict[str, dict[str, dict[str, dict[str, Any]]]] = {}
    for verdict in evidence.verdicts:
        case = verdict.case
        table = counts.setdefault(f"{case.subject}, {case.engine}", {})
        cell = table.setdefault(case.scenario.name, {}).setdefault(
            case.dtype_name, {"cases": 0, "exact": 0, "holds": True, "paths": Counter(), "ulp": 0}
        )
        cell["cases"] += 1
        cell["ulp"] = max(cell["ulp"], verdict.ulp)
        cell["paths"].update([verdict.reference] if verdict.kind == "exact" else [])
        cell["exact"] += verdict.kind == "exact"
        cell["holds"] &= verdict.holds
    return counts
