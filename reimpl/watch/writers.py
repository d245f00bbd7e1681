"""Where the numbers go: a writer is a function of step, scalars and histograms, made of what people have."""

from __future__ import annotations

import csv
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor

Scalars = Mapping[str, float]
"""Numbers by name: a scope, a slash, and the name of the statistic, which has none: `group0/update_norm`."""

Histograms = Mapping[str, Tensor]
"""Values by name: a 1-dim tensor on the host, finite and not empty."""

Writer = Callable[[int, Scalars, Histograms], object]
"""What is called in each logged step, with its number."""


def make_writer(target: Any) -> Writer:
    """Return the writer for what a user has.

    Args:
        target: a `SummaryWriter` (or what else has `add_scalar` and `add_histogram`), a `Visdom`, a path for a CSV
            file, a matplotlib `Figure`, a writer, or a list or tuple of these.

    Raises:
        TypeError: for anything else.
    """
    if isinstance(target, (list, tuple)):
        return SeveralWriters([make_writer(one) for one in target])
    if isinstance(target, (str, os.PathLike)):
        return CsvWriter(target)
    if hasattr(target, "add_scalar") and hasattr(target, "add_histogram"):
        return TensorBoardWriter(target)
    if is_instance(target, "visdom", "Visdom"):
        return VisdomWriter(target)
    if is_instance(target, "matplotlib.figure", "FigureBase"):
        return FigureWriter(target)
    if callable(target) and not isinstance(target, type):
        writer: Writer = target
        return writer
    raise TypeError(
        "writer must be a SummaryWriter, a Visdom, a path, a matplotlib Figure, a function of step, scalars and "
        f"histograms, or a list of these, not {target!r}"
    )


def is_instance(target: Any, module: str, name: str) -> bool:
    """Return whether an object is of a class, whose package need not be installed and is not imported."""
    found = getattr(sys.modules.get(module), name, None)
    return found is not None and isinstance(target, found)


class SeveralWriters:
    """Gives everything to each of several writers."""

    def __init__(self, writers: Iterable[Writer]) -> None:
        self.writers = list(writers)

    def __call__(self, step: int, scalars: Scalars, histograms: Histograms) -> None:
        """Call each writer."""
        for writer in self.writers:
            writer(step, scalars, histograms)


class CsvWriter:
    """Appends rows `step,scope,statistic,value` to a file: always these columns, whatever is watched.

    The file is closed after each logged step, so a killed run keeps its rows, and a resumed one goes on below them.
    Histograms are left out.

    Args:
        path: of the file.
    """

    columns = ("step", "scope", "statistic", "value")

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = path

    def __call__(self, step: int, scalars: Scalars, histograms: Histograms) -> None:  # noqa: ARG002
        """Append the rows of a step."""
        with open(self.path, "a", newline="", encoding="utf-8") as file:
            rows = csv.writer(file, lineterminator="\n")
            if file.tell() == 0:
                rows.writerow(self.columns)
            rows.writerows((step, *scope_and_statistic(name), value) for name, value in scalars.items())


class TensorBoardWriter:
    """Writes a scalar and a histogram for each name to a `SummaryWriter`.

    Args:
        summary: the `SummaryWriter`, or what else has its `add_scalar` and `add_histogram`.
    """

    def __init__(self, summary: Any) -> None:
        self.summary = summary

    def __call__(self, step: int, scalars: Scalars, histograms: Histograms) -> None:
        """Add scalars and histograms."""
        if not self._add_at_once(step, scalars):
            for name, value in scalars.items():
                self.summary.add_scalar(name, value, step)
        for name, values in histograms.items():
            self.summary.add_histogram(name, values, step)

    def _add_at_once(self, step: int, scalars: Scalars) -> bool:
        """Add all scalars as one event, and return whether that was possible.

        An event for each fills torch's queue of ten, and the training waits for the thread that empties it: twice to
        three times the time of everything else that is done in a logged step of a small network.
        """
        module = sys.modules.get("torch.utils.tensorboard.writer")
        code = getattr(self.summary.add_scalar, "__code__", None)
        if module is None or code is None or code.co_filename != module.__file__:
            return False  # another package's writer, or an `add_scalar` that someone has replaced to see the calls
        if not scalars or self.summary.file_writer is None:  # closed: `add_scalar` opens it again
            return False
        first, *others = [module.scalar(name, value) for name, value in scalars.items()]
        for other in others:
            first.MergeFrom(other)
        self.summary.file_writer.add_summary(first, step)
        return True


class VisdomWriter:
    """Draws a window for each statistic, with a line for each scope, and the newest histograms.

    Each number is a request to the server: log every tenth step or fewer.

    Args:
        visdom: the connection, `visdom.Visdom()`.
    """

    def __init__(self, visdom: Any) -> None:
        self.visdom = visdom

    def __call__(self, step: int, scalars: Scalars, histograms: Histograms) -> None:
        """Lengthen the lines, and draw the histograms anew."""
        for name, value in scalars.items():
            scope, statistic = scope_and_statistic(name)
            options = {"title": statistic, "xlabel": "step", "showlegend": True}
            self.visdom.line([value], [step], win=statistic, name=scope, update="append", opts=options)
        several = {name: values for name, values in histograms.items() if len(values) > 1}  # it refuses a single one
        for name, values in several.items():
            self.visdom.histogram(values.numpy(), win=name, opts={"title": f"{name}, step {step}"})


class FigureWriter:
    """Draws a panel for each statistic into a matplotlib figure, with a line for each scope.

    It can be given to several calls of `watch`, each with a `name`, to have their lines side by side. Histograms are
    left out.

    Args:
        figure: matplotlib's; it is redrawn when it is shown or saved.
        statistics: those to draw. By default all but the mean, minimum and maximum of second moments, of which the
            mean is drawn.
        columns: how many panels stand in a row.
    """

    def __init__(self, figure: Any, statistics: Iterable[str] | None = None, columns: int = 3) -> None:
        self.figure = figure
        self.statistics = None if statistics is None else set(statistics)
        self.columns = columns
        self.panels: dict[str, Any] = {}
        self.points: dict[str, tuple[Any, list[float], list[float]]] = {}
        self.named: dict[str, Any] = {}
        """The panel whose legend names a scope."""

    def __call__(self, step: int, scalars: Scalars, histograms: Histograms) -> None:  # noqa: ARG002
        """Lengthen the lines."""
        for name, value in scalars.items():
            scope, statistic = scope_and_statistic(name)
            if not self.draws(statistic):
                continue
            if name not in self.points:
                self.points[name] = (self.line(statistic, scope), [], [])
            line, steps, values = self.points[name]
            steps.append(step)
            values.append(value)
            line.set_data(steps, values)
        for panel in self.panels.values():
            panel.relim()
            panel.autoscale_view()

    def draws(self, statistic: str) -> bool:
        """Return whether a statistic is to be drawn."""
        if self.statistics is not None:
            return statistic in self.statistics
        return not statistic.endswith(("_min", "_max"))

    def panel(self, statistic: str) -> Any:
        """Return the axes of a statistic; new ones are put behind those that are there."""
        if statistic not in self.panels:
            self.panels[statistic] = new = self.figure.add_subplot()
            new.set_title(statistic)
            if statistic.endswith(("_norm", "_mean", "step_size")) and statistic != "param_norm":
                new.set_yscale("log")
            rows = -(-len(self.panels) // self.columns)
            grid = new.get_gridspec().__class__(rows, min(self.columns, len(self.panels)), figure=self.figure)
            for place, panel in enumerate(self.panels.values()):
                panel.set_subplotspec(grid[place])
                panel.set_xlabel("step" if place >= len(self.panels) - self.columns else "")
        return self.panels[statistic]

    def line(self, statistic: str, scope: str) -> Any:
        """Return a new line: of its scope's colour, and named by a legend if the scope is new and not the only one."""
        panel = self.panel(statistic)
        owner = self.named.setdefault(scope, panel)
        (line,) = panel.plot([], [], label=scope, color=f"C{list(self.named).index(scope)}")
        if owner is panel and len(self.named) > 1:
            panel.legend(handles=[each for each in panel.lines if self.named[each.get_label()] is panel])
        return line


def scope_and_statistic(name: str) -> tuple[str, str]:
    """Return the two parts of a scalar's name."""
    scope, _, statistic = name.rpartition("/")
    return scope, statistic
