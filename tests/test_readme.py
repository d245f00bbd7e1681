"""What the README shows is what the package holds."""

import inspect
import re
from pathlib import Path

import torch

import reimpl.optim
from reimpl.optim.adam import adam_rule

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def body(function):
    """Return a function's source without its signature."""
    source = inspect.getsource(function)
    return source[source.index(") -> None:\n") + len(") -> None:\n") :]


def test_adam_rule_is_the_source():
    assert body(adam_rule) in README


def test_python_blocks_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = torch.nn.Linear(3, 2)
    scope = {"torch": torch, "model": model, "input": torch.randn(4, 3), "target": torch.randn(4, 2)}
    blocks = re.findall(r"```python run\n(.*?)```", README, re.S)
    assert blocks
    for block in blocks:
        exec(block, scope)
    assert isinstance(scope["optimizer"], reimpl.optim.Optimizer)
