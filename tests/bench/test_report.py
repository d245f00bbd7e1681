"""The command `reimpl bench`: what it prints, writes and refuses."""

import json
import re
import sys

import pytest
import torch

from reimpl.bench import ENGINES, OPTIMIZERS, WORKLOADS, Workload, optimizers
from reimpl.cli import main

TINY = Workload("tiny", "five and seven", ((5,), (7,)))


@pytest.fixture
def tiny(monkeypatch):
    """One small workload, and engines that have nothing to compile."""
    monkeypatch.setitem(WORKLOADS, "tiny", TINY)
    monkeypatch.setitem(ENGINES, "fused", {"foreach": True})
    monkeypatch.setattr(optimizers, "alone", lambda *_: 1.25)
    return ["bench", "--workload", "tiny", "--rounds", "1", "--no-compile"]


def test_tables(tiny, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")  # a slow machine's numbers are wide
    assert main([*tiny, "SGD", "RMSprop"]) == 0
    output, progress = capsys.readouterr()
    assert progress.splitlines() == ["five and seven, SGD(momentum=0.9) …", "five and seven, RMSprop …"]
    number, missing = r"\d+\.\d\d", "—"
    assert re.search(rf"five and seven +RMSprop +({number} +){{6}}{missing} +{number} +\d+%", output)
    assert re.search(rf"five and seven +RMSprop +({number} +){{3}}1\.25 +1\.25 +{missing} +{missing}", output)
    assert "Adam" not in output


def test_plain_without_rich(tiny, monkeypatch, capsys):
    for name in ("rich", "rich.console", "rich.table"):
        monkeypatch.setitem(sys.modules, name, None)
    assert main([*tiny, "Adam"]) == 0
    assert re.search(r"^workload +optimizer +loop +foreach +fused", capsys.readouterr().out)


def test_reasons(tiny, monkeypatch, capsys):
    monkeypatch.setattr(optimizers, "COMPILE_LIMIT", 1)
    assert main([argument for argument in tiny if argument != "--no-compile"] + ["SGD", "Adam"]) == 0
    output = " ".join(capsys.readouterr().out.split())
    assert "skipped: torch.compile(step), SGD(momentum=0.9) on five and seven; Adam on five and seven:" in output


def test_json(tiny, tmp_path):
    file = tmp_path / "times.json"
    assert main([*tiny, "Adam", "--json", str(file)]) == 0
    found = json.loads(file.read_text())
    assert {"torch", "reimpl", "device", "device_name", "threads", "date"} <= set(found["environment"])
    assert found["rounds"] == 1
    (result,) = found["results"]
    assert (result["optimizer"], result["workload"], result["tensors"], result["elements"]) == ("Adam", "tiny", 2, 12)
    assert result["bytes_moved"] == 28 * 12
    assert set(result["ratios"]) == {"fused", "loop", "foreach"}
    assert result["best_of_torch"] in result["seconds"]
    assert set(result["bytes_per_second"]) == {"copy", "in place"}
    assert result["first_step_seconds"] == {"ours fused": {"cold": 1.25, "warm": 1.25}}
    assert set(result["peak_bytes"]) == set(result["seconds"]) == set(result["floor_reached"])
    assert all(len(times) == 1 for times in result["rounds"].values())


@pytest.mark.parametrize(("name", "start"), [("times.svg", b"<?xml"), ("times.png", b"\x89PNG")])
def test_plot(tiny, name, start, tmp_path):
    pytest.importorskip("matplotlib")
    assert main([*tiny, "SGD", "Adadelta", "--plot", str(tmp_path / name)]) == 0
    assert (tmp_path / name).read_bytes().startswith(start)


def test_plot_of_nothing(tiny, monkeypatch, tmp_path):
    pytest.importorskip("matplotlib")

    def refuse(self, closure=None):
        raise RuntimeError("not here")

    monkeypatch.setattr(torch.optim.Adam, "step", refuse)
    assert main([*tiny, "Adam", "--plot", str(tmp_path / "times.svg")]) == 0
    assert (tmp_path / "times.svg").is_file()


def test_no_plot_without_matplotlib(tiny, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr("reimpl.cli.bench", None)  # nothing is measured
    with pytest.raises(SystemExit) as exit_:
        main([*tiny, "--plot", "times.svg"])
    assert exit_.value.code == 2
    assert "pip install 'reimpl[bench]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("quick", "workloads", "rounds"),
    [([], ["resnet50", "small", "large", "gpt2"], 9), (["--quick"], ["resnet50", "small"], 3)],
    ids=["all", "quick"],
)
def test_defaults(quick, workloads, rounds, monkeypatch):
    asked = {}

    def pretend(names, chosen, device, count, variants, progress):
        asked.update(names=names, chosen=[workload.name for workload in chosen], rounds=count, variants=variants)
        return optimizers.Results({}, count)

    monkeypatch.setattr("reimpl.cli.bench", pretend)
    assert main(["bench", *quick]) == 0
    assert asked["names"] == list(OPTIMIZERS)
    assert asked["chosen"] == workloads
    assert asked["rounds"] == rounds
    assert any(variant.engine == "compile" for variant in asked["variants"]) is not bool(quick)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["Lion"], "there is no optimizer 'Lion'; choose from SGD, Adam, Adagrad, RMSprop, Adadelta"),
        (["--workload", "bert"], "there is no workload 'bert'; choose from resnet50, small, large, gpt2"),
        (["--device", "tpu"], "there is no device 'tpu' here; choose from cpu"),
        (["--rounds", "0"], "argument --rounds: '0' is not a number, 1 or more"),
        (["--json", "no/such/folder/times.json"], "there is no folder 'no/such/folder' to write 'times.json' into"),
        (["--plot", "times.gif"], "--plot cannot write 'times.gif'; choose a name in .svg or .png"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_argument(arguments, message, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["bench", *arguments])
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err
