"""What was measured, for the eye: tables in the terminal, and a plot."""

from __future__ import annotations

import math
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

from reimpl.bench.optimizers import ENGINES, VARIANTS, Result, Results
from reimpl.verify.report import print_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

IMAGE_FORMATS = (".svg", ".png")

TIME_COLUMNS = (
    "workload",
    "optimizer",
    "loop",
    "foreach",
    "fused",
    "torch's\nfor-loop",
    "torch's\nforeach",
    "torch's\nfused",
    "torch.\ncompile",
    "floor",
    "fused\nreaches",
)
TIME_NOTE = """
Milliseconds a step: medians of alternating rounds, all on the same parameters and gradients. floor: the time in which
memory moves the bytes that a step must move, by a copy or in one pass in place, whichever is faster, in the same
rounds; reaches: the floor as a share of our fused step.
"""
RATIO_COLUMNS = (
    "workload",
    "optimizer",
    "fused",
    "loop",
    "foreach",
    "first step\ncold, s",
    "warm, s",
    "compile's\ncold, s",
    "warm, s",
    "peak\nMiB",
    "torch's\nMiB",
)
RATIO_NOTE = """
fused: its time divided by that of the best of torch's own variants, torch.compile left out; loop, foreach: by that of
torch's own. first step: construction and one step of our fused engine and of torch.compile, in a new process, with
nothing compiled before (cold) and then once more (warm). peak: held by our fused step at once beside parameters,
gradients and state, and by that of torch's best.
"""

WIDTH = 8.0
"""In inches, of which each is 100 pixels of a web page."""
BAR = 0.115
CLIP = 3.0
"""Longer bars end here, with their number beside them."""
# Of Okabe and Ito's palette, which the colour-blind can tell apart: blues are ours, oranges torch's, from pale to full.
COLOURS = {
    "ours loop": "#b9dcf2",
    "ours foreach": "#56b4e9",
    "ours fused": "#0072b2",
    "torch loop": "#f6dfb0",
    "torch foreach": "#e69f00",
    "torch fused": "#d55e00",
    "torch compile": "#b8b8b8",
}
LABELS = {
    "ours loop": "reimpl loop",
    "ours foreach": "reimpl foreach",
    "ours fused": "reimpl fused",
    "torch loop": "torch for-loop",
    "torch foreach": "torch foreach",
    "torch fused": "torch fused",
    "torch compile": "torch.compile(step)",
}


def time_row(result: Result) -> tuple[str, ...]:
    """Return the times of a step."""
    times = [number(result.medians, variant.name, 1e3) or why_not(result, variant.name) for variant in VARIANTS]
    reached = result.reached.get("ours fused")
    return (
        result.workload.title,
        result.title,
        *times,
        "—" if math.isnan(result.floor) else f"{1e3 * result.floor:.2f}",
        "—" if reached is None else f"{reached:.0%}",
    )


def ratio_row(result: Result) -> tuple[str, ...]:
    """Return the ratios, the first steps and the memory."""
    first = [
        number(result.first_steps.get(name, {}), state) or why_not(result, name)
        for name in ("ours fused", "torch compile")
        for state in ("cold", "warm")
    ]
    return (
        result.workload.title,
        result.title,
        *(number(result.ratios, engine) or "—" for engine in ("fused", "loop", "foreach")),
        *first,
        *(number(result.peaks, name, 2**-20) or "—" for name in ("ours fused", result.best or "")),
    )


def number(found: dict[str, float] | dict[str, int], name: str, scale: float = 1) -> str:
    """Return a figure as text, empty if there is none."""
    return f"{scale * found[name]:.2f}" if name in found else ""


def why_not(result: Result, name: str) -> str:
    """Return the word for a figure that is not there."""
    return "skipped" if name in result.absent else "—"


def print_results(found: Results) -> None:
    """Print the tables, and what was skipped for which reason."""
    print_table(TIME_COLUMNS, [time_row(result) for result in found.results], TIME_NOTE)
    print_table(RATIO_COLUMNS, [ratio_row(result) for result in found.results], RATIO_NOTE)
    skipped: dict[tuple[str, str], list[str]] = {}
    for result in found.results:
        for name, reason in result.absent.items():
            skipped.setdefault((name, reason), []).append(f"{result.title} on {result.workload.title}")
    for (name, reason), where in skipped.items():
        print(f"skipped: {LABELS[name]}, {'; '.join(where)}: {textwrap.shorten(reason, 200)}")  # noqa: T201


def plot(found: Results, file: Path) -> None:
    """Draw each variant's time relative to the best of torch's own, a panel for each workload.

    Args:
        found: what was measured.
        file: what to write, `.svg` or `.png`.

    Raises:
        ModuleNotFoundError: if matplotlib is not installed.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    panels: dict[str, list[Result]] = {}
    for result in found.results:
        if result.best:
            count, elements = len(result.workload.shapes), result.workload.elements
            size = f"{count:,} tensor{'s' * (count != 1)}, {elements / 1e6:.1f} M elements"
            panels.setdefault(f"{result.workload.title}: {size}", []).append(result)
    groups = max(map(len, panels.values()), default=1)
    columns = min(2, max(1, len(panels)))
    rows = max(1, math.ceil(len(panels) / columns))
    figure = Figure(figsize=(WIDTH, rows * (0.6 + 0.7 * groups) + 1.0), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for panel in axes[len(panels) :]:
        panel.set_visible(False)
    for panel, (title, results) in zip(axes, panels.items(), strict=False):
        draw(panel, title, results)
    names = sorted(COLOURS, key=lambda name: list(ENGINES).index(name.split()[1]))  # ours above torch's
    handles = [Patch(color=COLOURS[name], label=LABELS[name]) for name in names]
    floor = Line2D([], [], color="black", marker="|", linestyle="", markersize=10, label="memory floor")
    figure.legend(handles=[*handles, floor], loc="outside upper center", ncols=4, frameon=False, fontsize=8)
    where = found.environment
    figure.supxlabel(
        "time of a step, divided by that of the best of torch's loop, foreach and fused\n"
        f"{where['device_name']}, {where['threads']} threads, torch {where['torch']}, {where['date'][:10]}",
        fontsize=8,
    )
    figure.savefig(file, dpi=100 if file.suffix == ".svg" else 200)


def draw(panel: Axes, title: str, results: list[Result]) -> None:
    """Draw one workload: a group of bars for each optimizer, and its floor as a mark across them."""
    longest = 1.0
    for group, result in enumerate(results):
        best = result.medians[result.best or ""]
        floor = result.floor / best
        names = [name for name in COLOURS if name in result.medians]
        for index, name in enumerate(names):
            ratio = result.medians[name] / best
            longest = max(longest, ratio)
            place = group + (index - (len(names) - 1) / 2) * BAR
            panel.barh(place, min(ratio, CLIP), BAR * 0.9, color=COLOURS[name])
            if ratio > CLIP or name == "ours fused":
                end = max(ratio, floor if floor < CLIP else 0)  # the floor's mark is not to cross the number
                panel.text(min(end, CLIP), place, f" {ratio:.2f}", va="center", fontsize=7)
        reach = len(names) * BAR / 2
        panel.vlines(floor, group - reach, group + reach, color="black", linewidth=1.5)
    panel.axvline(1, color="#555555", linewidth=0.8, linestyle=":")
    panel.set_xlim(0, 1.12 * min(longest, CLIP))
    panel.set_yticks(range(len(results)), [result.title.replace("(", "\n(") for result in results], fontsize=8)
    panel.invert_yaxis()
    panel.set_title(title, fontsize=9, loc="left")
    panel.tick_params(axis="x", labelsize=8)
    panel.tick_params(axis="y", length=0)
    panel.spines[["top", "right", "left"]].set_visible(False)
