"""Evidence for the eye: a table in the terminal, and a page of HTML."""

from __future__ import annotations

from importlib import resources
from typing import Any

from reimpl.verify.cases import DTYPES
from reimpl.verify.runner import Evidence
from reimpl.verify.scenarios import SCENARIOS
from reimpl.verify.training import Training

SHOWN_FAILURES = 10

CASE_COLUMNS = (
    "optimizer",
    "engine",
    "cases",
    "exact",
    "close",
    "differs",
    "worst\nULP",
    "worst\nerror",
    "torch's\nerror",
)
TRAINING_COLUMNS = (
    "optimizer",
    "steps",
    "loss",
    "accuracy",
    "torch's",
    "losses",
    "end",
    "torch\n→ ours",
    "ours →\ntorch",
)

CASE_NOTE = """
exact: every bit of parameters and state is torch's, after every step. close: the error is at most twice torch's;
claimed only where torch's for-loop mixes complex and real arithmetic, or promotes 0-dim tensors. error: against a
float64 run, relative to the tensor's largest value; the worst are those of float16 and bfloat16.
"""
TRAINING_NOTE = """
The real run: a convolutional network on 1,797 handwritten digits, trained by both from one seed; accuracy on 360
held-out images. torch → ours: a checkpoint that torch wrote in mid-training, resumed by ours, comes to the same end.
"""


def case_note(evidence: Evidence) -> str:
    """Return the note under the table of cases, with what became of the longest runs."""
    longest = max((verdict.case.scenario.steps for verdict in evidence.verdicts), default=0)
    runs = [verdict.kind for verdict in evidence.verdicts if verdict.case.scenario.steps == longest]
    exact = runs.count("exact")
    return f"{CASE_NOTE} Longest runs: {longest:,} steps without a new start, {exact:,} of {len(runs):,} exact."


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
            f"{row.worst_ulp:,}",
            f"{row.worst_error:.1e}",
            f"{row.worst_reference_error:.1e}",
        )
        for row in evidence.rows()
    ]


def training_rows(evidence: Evidence) -> list[tuple[str, ...]]:
    """Return the table of real runs."""
    return [
        (
            training.optimizer,
            str(len(training.losses)),
            f"{training.losses[0]:.2f}→{training.losses[-1]:.3f}",
            f"{training.accuracy:.1%}",
            f"{training.reference_accuracy:.1%}",
            same(training.same_losses),
            same(training.same_end),
            same(training.resumed_by_ours),
            same(training.resumed_by_torch),
        )
        for training in evidence.trainings
    ]


def same(holds: bool) -> str:
    """Say whether two things are equal."""
    return "equal" if holds else "DIFFER"


def complaints(evidence: Evidence) -> list[str]:
    """Return a line for each claim that is not met, and where to look."""
    failures = evidence.failures
    lines = [
        f"{verdict.kind}, claimed {verdict.case.claim}: {verdict.case.name}, "
        f"against torch's {verdict.reference}: {verdict.difference}"
        for verdict in failures[:SHOWN_FAILURES]
    ]
    if len(failures) > SHOWN_FAILURES:
        lines.append(f"… and {len(failures) - SHOWN_FAILURES:,} more; --json has all")
    lines += [
        f"real run with {training.optimizer}: accuracy {training.accuracy:.1%}, "
        f"first different loss at step {training.first_different_loss}"
        for training in evidence.trainings
        if not training.holds
    ]
    return lines


def print_report(evidence: Evidence) -> None:
    """Print the tables, whatever claim is not met, and the line for scripts."""
    tables = [
        (CASE_COLUMNS, case_rows(evidence), case_note(evidence)),
        (TRAINING_COLUMNS, training_rows(evidence), TRAINING_NOTE),
    ]
    for columns, rows, note in tables:
        if rows:
            print_table(columns, rows, note)
    for line in complaints(evidence):
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
        table.add_column(column, justify="left" if column in ("optimizer", "engine") else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console = Console()
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
        training_columns=TRAINING_COLUMNS,
        training_rows=training_rows(evidence),
        training_note=TRAINING_NOTE,
        complaints=complaints(evidence),
        curves=[(training, curve(training)) for training in evidence.trainings],
        matrix=matrix(evidence),
        dtypes=list(DTYPES),
        scenarios=SCENARIOS,
    )


def curve(training: Training, width: int = 220, height: int = 60) -> str:
    """Return the points of an SVG polyline of the loss."""
    losses = training.losses
    top = max(losses)
    step = width / max(len(losses) - 1, 1)
    return " ".join(f"{i * step:.1f},{height - loss / top * height:.1f}" for i, loss in enumerate(losses))


def matrix(evidence: Evidence) -> dict[str, dict[str, dict[str, dict[str, Any]]]]:
    """Count cases and exact ones by optimizer and engine, scenario and dtype."""
    counts: dict[str, dict[str, dict[str, dict[str, Any]]]] = {}
    for verdict in evidence.verdicts:
        case = verdict.case
        table = counts.setdefault(f"{case.optimizer}, {case.engine}", {})
        cell = table.setdefault(case.scenario.name, {}).setdefault(
            case.dtype_name, {"cases": 0, "exact": 0, "holds": True}
        )
        cell["cases"] += 1
        cell["exact"] += verdict.kind == "exact"
        cell["holds"] &= verdict.holds
    return counts
