"""What README and design show is what the package holds."""

import inspect
import re
from pathlib import Path

import torch

import reimpl.optim
from reimpl.optim.adadelta import adadelta_rule
from reimpl.optim.adam import adam_rule
from reimpl.optim.engines.kernel import argument_names, parts
from reimpl.optim.engines.symbolic import trace_rule
from reimpl.optim.sgd import sgd_rule

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def statements(function):
    """Return the lines of a function's body, but for its conditions."""
    source = inspect.getsource(function)
    lines = [line.strip() for line in source.partition(") -> None:\n")[2].splitlines()]
    return [line for line in lines if not line.startswith(('"""', "if ", "elif ", "else:"))]


def test_adam_is_shown_as_it_runs():
    shown = re.findall(r"^\| .* \| `(.*)` \|$", README, re.M)
    assert shown == statements(adam_rule)


def test_design_shows_adadelta_as_it_runs():
    design = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    shown = design.partition("def adadelta_rule(")[2].partition("```")[0].splitlines()[1:]
    assert [line.strip() for line in shown if not line.strip().startswith("if ")] == statements(adadelta_rule)


def test_design_shows_the_kernel_of_sgd():
    options = {
        "lr": 0.1,
        "weight_decay": 0.1,
        "momentum": 0.9,
        "dampening": 0.5,
        "nesterov": False,
        "first_step": False,
    }
    trace, written = trace_rule(sgd_rule, argument_names(sgd_rule, 3), options)
    columns = dict.fromkeys(argument_names(sgd_rule, 3), "float")
    design = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    shown = design.partition("```cpp\n")[2].partition("```")[0].splitlines()
    assert shown == [line.strip() for line in parts(trace, columns, written)["body"].splitlines()]


def test_torchs_adam_is_as_long_as_it_says():
    assert "a thousand lines" in README
    assert 900 < len(Path(inspect.getsourcefile(torch.optim.Adam)).read_text().splitlines()) < 1100


def test_python_blocks_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = torch.nn.Linear(3, 2)
    scope = {"torch": torch, "model": model, "input": torch.randn(4, 3), "target": torch.randn(4, 2)}
    blocks = re.findall(r"```python run\n(.*?)```", README, re.S)
    assert blocks
    for block in blocks:
        exec(block, scope)
    assert isinstance(scope["optimizer"], reimpl.optim.Optimizer)


def test_each_example_is_named_tested_and_says_how_to_run_it():
    examples = sorted((ROOT / "examples").glob("*.py"))
    assert len(examples) == 5
    for example in examples:
        assert f"(examples/{example.name})" in README
        assert (ROOT / "tests" / "examples" / f"test_{example.name}").is_file()
        assert re.search(rf"^Run it: .*examples/{example.name}", example.read_text(encoding="utf-8"), re.M)


def test_lion_is_shown_as_in_the_example():
    example = (ROOT / "examples" / "lion.py").read_text(encoding="utf-8")
    shown = example.partition("class Lion(")[2].partition("\n\n\n")[0]
    assert len(shown) > 300
    assert shown in README
