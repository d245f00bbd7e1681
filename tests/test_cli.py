"""The command `reimpl verify`: what it prints, writes and returns."""

import json
import re
import subprocess
import sys

import pytest
import torch

import reimpl.nn
import reimpl.optim
from reimpl.cli import main
from reimpl.optim.adam import adam_rule

QUICK = ["verify", "--quick", "--dtype", "float32"]


def fields(output):
    line = output.strip().splitlines()[-1]
    assert line.startswith("reimpl-verify: ")
    return dict(part.split("=") for part in line.removeprefix("reimpl-verify: ").split())


def test_pass(capsys):
    assert main([*QUICK, "--only", "optim.SGD", "--only", "optim.Adam"]) == 0
    output = capsys.readouterr().out
    found = fields(output)
    assert found["result"] == "pass"
    assert found["cases"] == str(int(found["exact"]) + int(found["close"]))
    assert int(found["exact"]) > 20
    assert found["torch"] == torch.__version__
    assert re.search(r"SGD\s+foreach", output)
    assert "Adagrad" not in output


def test_layers_pass(capsys):
    assert main(["verify", "--only", "nn.Linear", "--only", "nn.functional.tanh"]) == 0
    output = capsys.readouterr().out
    assert re.search(r"Linear +\d+ +\d+", output)
    assert re.search(r"Tanh +0 +0 +\d+", output)
    assert "Sigmoid" not in output


def test_failing_layer(capsys, monkeypatch, tmp_path):
    pytest.importorskip("jinja2")
    monkeypatch.setattr(reimpl.nn.Linear, "extra", 1e-6, raising=False)
    forward = reimpl.nn.Linear.forward
    monkeypatch.setattr(reimpl.nn.Linear, "forward", lambda self, x: forward(self, x) + self.extra)
    assert main(["verify", "nn.Linear", "--html", str(tmp_path / "page.html")]) == 1
    output = capsys.readouterr().out
    assert "differs, claimed exact: nn.Linear float64 batch Linear(in_features=7, out_features=5)" in output
    assert re.search(r"against torch's kernel: step 1, output 0\[0, 0\]: \S+ instead of \S+", output)
    assert "A claim fails" in (tmp_path / "page.html").read_text()


def broken_rule(*args, **coefficients):
    adam_rule(*args, **coefficients | {"eps": 1e-3})


def test_failure(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(reimpl.optim.Adam, "rule", staticmethod(broken_rule))
    file = tmp_path / "evidence.json"
    assert main([*QUICK, "--only", "optim.Adam", "--json", str(file)]) == 1
    output = capsys.readouterr().out
    assert fields(output)["result"] == "fail"
    assert "differs, claimed exact: optim.Adam loop float32" in output
    assert re.search(r"step 1, param\[0\]\[\]: \S+ instead of \S+", output)
    assert "more; --json has all" in output
    assert json.loads(file.read_text())["holds"] is False


def test_failing_real_run(capsys, monkeypatch):
    pytest.importorskip("sklearn")
    monkeypatch.setattr(reimpl.optim.Adam, "rule", staticmethod(broken_rule))
    assert main(["verify", "train.Adam"]) == 1
    output = capsys.readouterr().out
    assert "DIFFER" in output
    assert "real run Adam" in output
    assert fields(output)["trainings_failed"] == "1"


def test_training_and_files(capsys, tmp_path):
    pytest.importorskip("sklearn")
    evidence, page = tmp_path / "evidence.json", tmp_path / "page.html"
    assert main([*QUICK, "optim.Adadelta", "train.Adadelta", "--json", str(evidence), "--html", str(page)]) == 0
    found = fields(capsys.readouterr().out)
    assert found["trainings"] == "1"

    data = json.loads(evidence.read_text())
    assert data["holds"] is True
    assert data["summary"].startswith("reimpl-verify: result=pass")
    assert {"torch", "reimpl", "python", "device", "device_name", "threads", "date"} <= set(data["environment"])
    assert len(data["cases"]) == int(found["cases"])
    assert {"name", "verdict", "claim", "ulp", "error", "reference_error"} <= set(data["cases"][0])
    (training,) = data["trainings"]
    assert training["accuracy"] >= 0.95
    assert len(training["losses"]) == 230
    assert [row["engine"] for row in data["rows"]] == ["loop", "foreach", "fused"]

    html = page.read_text()
    assert "Every claim holds" in html
    assert "<polyline points=" in html
    assert not re.search(r"(src|href)=", html), "one self-contained page"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["verify", "--only", "optim.Lion"],
            "there is no section 'optim.Lion'; choose from optim, nn, nn.functional, train,",
        ),
        (["verify", "training"], "there is no section 'training'; choose from"),
        (["verify", "--dtype", "float8"], "choose from 'float64', 'float32'"),
        (["verify", "--device", "tpu"], "there is no device 'tpu' here; choose from cpu"),
        (
            ["verify", "--json", "no/such/folder/file.json"],
            "there is no folder 'no/such/folder' to write 'file.json' into",
        ),
        (["verify", "train", "--dtype", "float16"], "no case has this dtype in these sections"),
        (["verfy"], "invalid choice: 'verfy'"),
        ([], "the following arguments are required: COMMAND"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_argument(arguments, message, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err.replace(
        "choose from float64, float32", "choose from 'float64', 'float32'"
    )


def test_list(capsys):
    assert main(["verify", "--list"]) == 0
    output = capsys.readouterr().out
    assert re.search(r"optim\.SGD\s+4,\d{3} cases", output)
    assert "train.Adam" in output
    assert re.search(r"nn\.Conv2d +\d{3} cases", output)
    assert re.search(r"nn\.functional\.conv2d +\d{3} cases", output)
    assert "exchange" in output


def test_version(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["--version"])
    assert exit_.value.code == 0
    assert capsys.readouterr().out.startswith(f"reimpl {reimpl.__version__}, torch {torch.__version__}")


def test_plain_without_rich(monkeypatch, capsys):
    for name in ("rich", "rich.console", "rich.table", "rich.progress"):
        monkeypatch.setitem(sys.modules, name, None)
    assert main([*QUICK, "--only", "optim.SGD"]) == 0
    output = capsys.readouterr().out
    assert re.search(r"^optimizer +engine +cases +exact", output)
    assert fields(output)["result"] == "pass"


def test_real_run_without_scikit_learn(monkeypatch, capsys):
    for name in ("sklearn", "sklearn.datasets"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(SystemExit) as exit_:
        main(["verify", "train.SGD"])
    assert exit_.value.code == 2
    assert "pip install 'reimpl[cli]'" in capsys.readouterr().err


def test_module_runs():
    done = subprocess.run([sys.executable, "-m", "reimpl", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("reimpl ")


def test_read_prints_the_short_answer(capsys):
    pytest.importorskip("rich")
    assert main(["read", "what", "does", "dampening", "do"]) == 0
    output = capsys.readouterr().out
    assert output.startswith("What is dampening for")
    assert "optim/sgd/#dampening" in output


@pytest.mark.parametrize("name", ["optim.SGD", "sgd", "reimpl.optim.SGD"])
def test_read_shows_both_sources(name, capsys):
    pytest.importorskip("rich")
    assert main(["read", name]) == 0
    output = capsys.readouterr().out
    assert "reimpl/optim/sgd.py:" in output
    assert "torch/optim/sgd.py:" in output
    assert "momentum_buffer.mul_(momentum)" in output


def test_read_shows_any_function(capsys):
    pytest.importorskip("rich")
    assert main(["read", "optim.arguments.require"]) == 0
    assert "def require" in capsys.readouterr().out


@pytest.mark.parametrize("what", ["zxqv", "optim.Nothing"])
def test_read_refuses_what_is_not_there(what, capsys):
    pytest.importorskip("rich")
    with pytest.raises(SystemExit) as caught:
        main(["read", what])
    assert caught.value.code == 2
    assert repr(what) in capsys.readouterr().err


def test_read_drift_says_what_has_changed(capsys, monkeypatch):
    pytest.importorskip("rich")
    from reimpl.read.drift import Change

    monkeypatch.setattr("reimpl.cli.changes", lambda: [Change("torch.f", ("optim/sgd.md",), ("+ new",))])
    assert main(["read", "drift"]) == 1
    assert "torch.f  (quoted in optim/sgd.md)" in capsys.readouterr().out
    monkeypatch.setattr("reimpl.cli.changes", list)
    assert main(["read", "drift"]) == 0
