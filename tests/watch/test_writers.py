"""What has been written can be read back: from CSV, TensorBoard's files, a Visdom server and a figure."""

import csv
import json
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import reimpl
from helpers import parameters, take_steps
from reimpl.watch.writers import CsvWriter, FigureWriter, make_writer

STATISTICS = ["lr", "param_norm", "grad_norm", "zero_grads", "update_norm", "zero_updates"]
STATISTICS += ["exp_avg_norm", "exp_avg_sq_mean", "exp_avg_sq_min", "exp_avg_sq_max", "step_size"]


class Rows:
    """A writer that keeps scalars as rows."""

    def __init__(self):
        self.rows = []
        self.histograms = {}

    def __call__(self, step, scalars, histograms):
        self.rows += [(step, *name.rsplit("/", 1), value) for name, value in scalars.items()]
        self.histograms |= histograms


def run(writer, steps=4, **options):
    """Take steps of Adam on two groups, watched by a writer; return the rows that it has been given."""
    rows = Rows()
    params = parameters()
    optimizer = torch.optim.Adam([{"params": params[:2]}, {"params": params[2:], "name": "scale/last"}])
    with reimpl.watch(optimizer, [writer, rows], **options):
        take_steps(optimizer, steps)
    return rows


def read_csv(path):
    with open(path, newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert header == ["step", "scope", "statistic", "value"]
    return [(int(step), scope, statistic, float(value)) for step, scope, statistic, value in rows]


@pytest.mark.parametrize("kind", [str, Path])
def test_csv(tmp_path, kind):
    path = kind(tmp_path / "log.csv")
    expected = run(path, every=2, histograms=2, max_norm=1.0).rows
    assert read_csv(path) == expected  # to the last bit
    assert {scope for _, scope, _, _ in expected} == {"group0", "scale/last", "all"}
    assert [statistic for step, scope, statistic, _ in expected if (step, scope) == (2, "group0")] == STATISTICS


def test_csv_goes_on_below(tmp_path):
    path = tmp_path / "log.csv"
    first = run(path).rows
    second = run(path, start=4).rows
    assert read_csv(path) == first + second


def test_csv_of_a_killed_run(tmp_path):
    path = tmp_path / "log.csv"
    code = f"""
import os
import torch, reimpl
param = torch.ones(3, requires_grad=True)
optimizer = torch.optim.SGD([param])
reimpl.watch(optimizer, {str(path)!r})
for step in range(3):
    param.grad = torch.ones(3)
    optimizer.step()
os.kill(os.getpid(), 9)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == -9
    assert {row[0] for row in read_csv(path)} == {0, 1, 2}


def test_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(tmp_path) as writer:
        expected = run(writer, every=2, histograms=2, name="Adam")
    found = EventAccumulator(str(tmp_path)).Reload()
    tags = found.Tags()
    assert set(tags["scalars"]) == {f"{scope}/{statistic}" for _, scope, statistic, _ in expected.rows}
    for tag in tags["scalars"]:
        assert tag.startswith(("Adam/group0/", "Adam/scale/last/"))
        rows = [(step, value) for step, scope, statistic, value in expected.rows if f"{scope}/{statistic}" == tag]
        events = [(event.step, event.value) for event in found.Scalars(tag)]
        assert events == [(step, pytest.approx(value)) for step, value in rows]  # TensorBoard keeps float32
    assert set(tags["histograms"]) == set(expected.histograms)
    newest = found.Histograms("Adam/group0/exp_avg_sq")[-1]
    values = expected.histograms["Adam/group0/exp_avg_sq"]
    assert newest.step == 2
    assert newest.histogram_value.num == values.numel()
    assert newest.histogram_value.max == pytest.approx(values.max().item())


def test_tensorboard_gets_one_event_a_step(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(tmp_path) as writer:
        rows = run(writer, steps=3).rows
    (file,) = tmp_path.iterdir()
    events = [event for event in EventFileLoader(str(file)).Load() if event.HasField("summary")]
    written = [(event.step, len(event.summary.value)) for event in events]
    assert written == [(step, sum(row[0] == step for row in rows)) for step in range(3)]


def test_tensorboard_opens_a_closed_writer_again(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(tmp_path)
    writer.close()
    expected = run(writer)
    writer.close()
    found = EventMultiplexer().AddRunsFromDirectory(str(tmp_path)).Reload()
    steps = [event.step for event in found.Scalars(".", "group0/update_norm")]
    assert steps == sorted({row[0] for row in expected.rows})


@pytest.mark.parametrize("replaced", ["subclass", "class", "object"])
def test_an_add_scalar_of_ones_own_is_called(tmp_path, monkeypatch, replaced):
    pytest.importorskip("tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    original, added = SummaryWriter.add_scalar, []

    def add_scalar(self, *args, **kwargs):
        added.append(args)
        original(self, *args, **kwargs)

    cls = type("Counting", (SummaryWriter,), {"add_scalar": add_scalar}) if replaced == "subclass" else SummaryWriter
    if replaced == "class":
        monkeypatch.setattr(SummaryWriter, "add_scalar", add_scalar)
    with cls(tmp_path) as writer:
        if replaced == "object":
            monkeypatch.setattr(writer, "add_scalar", add_scalar.__get__(writer))
        assert len(run(writer).rows) == len(added)


@pytest.fixture(scope="module")
def visdom_port(tmp_path_factory):
    """A real server on loopback. Visdom's own command would first download the page's scripts."""
    pytest.importorskip("visdom")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder = tmp_path_factory.mktemp("visdom")
    code = "from visdom.server.run_server import start_server\n"
    code += f"start_server(port={port}, base_url='', env_path={str(folder)!r}, bind_local=True)"
    with open(folder / "log.txt", "w", encoding="utf-8") as log:
        server = subprocess.Popen([sys.executable, "-c", code], stdout=log, stderr=log)
        try:
            for _ in range(600):
                if server.poll() is not None or answers(port):
                    break
                time.sleep(0.1)
            assert server.poll() is None, (folder / "log.txt").read_text(encoding="utf-8")
            yield port
        finally:
            server.kill()
            server.wait()


def answers(port):
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


@pytest.mark.filterwarnings("ignore:The 'warn' method is deprecated:DeprecationWarning")  # visdom calls logger.warn
def test_visdom(visdom_port):
    from visdom import Visdom

    # The socket is for events from the page, on a thread that would outlive the test.
    visdom = Visdom("http://127.0.0.1", port=visdom_port, raise_exceptions=True, use_incoming_socket=False)
    expected = run(visdom, steps=3, every=2, histograms=2)
    windows = json.loads(visdom.get_window_data())
    titles = {window["title"]: window["content"]["data"] for window in windows.values()}
    assert set(STATISTICS) <= set(titles)
    for statistic in STATISTICS:
        for line in titles[statistic]:
            rows = [row for row in expected.rows if row[1:3] == (line["name"], statistic)]
            assert line["x"] == [step for step, *_ in rows]
            assert line["y"] == [value for *_, value in rows]
    assert {line["name"] for line in titles["grad_norm"]} == {"group0", "scale/last"}
    assert sum(titles["group0/update, step 2"][0]["y"]) == expected.histograms["group0/update"].numel()


def test_figure():
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    figure = Figure()
    expected = run(figure, every=2).rows
    panels = {axes.get_title(): axes for axes in figure.axes}
    assert set(panels) == {name for name in STATISTICS if not name.endswith(("_min", "_max"))}
    for statistic, axes in panels.items():
        for line in axes.lines:
            rows = [(step, value) for step, *names, value in expected if names == [line.get_label(), statistic]]
            assert list(zip(*line.get_data(), strict=True)) == rows
    assert panels["step_size"].get_yscale() == "log"
    assert panels["lr"].get_xlim()[1] >= 2
    assert figure.axes[0].get_legend() is not None
    figure.canvas.draw()
    cells = {tuple(round(x, 6) for x in axes.get_position().bounds) for axes in figure.axes}
    assert len(cells) == len(panels), "no two panels in one place"


def test_one_figure_for_several_optimizers():
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    writer = FigureWriter(Figure(), statistics=["step_size", "lr"], columns=1)
    for name in ("first", "second"):
        run(writer, name=name)
    assert [axes.get_title() for axes in writer.figure.axes] == ["lr", "step_size"]
    scopes = ["first/group0", "first/scale/last", "second/group0", "second/scale/last"]
    for axes in writer.figure.axes:  # each scope in one colour, named once
        assert [(line.get_label(), line.get_color()) for line in axes.lines] == [
            (scope, f"C{number}") for number, scope in enumerate(scopes)
        ]
    legends = [axes.get_legend() for axes in writer.figure.axes]
    assert [text.get_text() for text in legends[0].get_texts()] == scopes
    assert legends[1] is None


def test_a_function_of_ones_own():
    calls = []
    run(lambda *given: calls.append(given), steps=1)
    (step, scalars, histograms), *more = calls
    assert (step, histograms, more) == (0, {}, [])
    assert list(scalars)[: len(STATISTICS)] == [f"group0/{name}" for name in STATISTICS]


def test_no_writer():
    optimizer = torch.optim.SGD(parameters())
    watch = reimpl.watch(optimizer, None, histograms=1)
    take_steps(optimizer, 2)
    assert watch.step == 2


@pytest.mark.parametrize("given", [3, object(), CsvWriter, [object()]])
def test_what_is_no_writer(given):
    with pytest.raises(TypeError, match=r"writer must be a SummaryWriter, a Visdom, a path, .* not"):
        make_writer(given)


def test_nothing_is_imported():
    """Neither by `import reimpl`, nor by a watch whose writer does not need it."""
    code = """
import sys
import torch
param = torch.ones(2, requires_grad=True)
param.grad = torch.ones(2)
optimizer = torch.optim.SGD([param])
optimizer.step()  # torch imports its compiler, with what that needs
before = set(sys.modules)
import reimpl
reimpl.watch(optimizer, lambda *given: None, histograms=1)
optimizer.step()
packages = {name.partition(".")[0] for name in set(sys.modules) - before}
assert packages <= {"reimpl"} | set(sys.stdlib_module_names), packages
"""
    subprocess.run([sys.executable, "-c", code], check=True)
