"""`python examples/digits.py`, as a user runs it."""

import csv
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("sklearn")
pytest.importorskip("PIL")
pytest.importorskip("matplotlib")

ROOT = Path(__file__).parent.parent.parent
OPTIMIZERS = ["SGD", "RMSprop", "Adam", "AdamW"]


def test_digits(tmp_path):
    command = [sys.executable, ROOT / "examples" / "digits.py", "--epochs", "1", "--logdir", tmp_path]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    for _ in range(2):  # another run begins another table
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
    accuracies = dict(re.findall(r"^(\w+) +reads ([\d.]+)%", done.stdout, re.M))
    assert list(accuracies) == OPTIMIZERS
    assert min(map(float, accuracies.values())) > 70  # after one epoch, measured 87 to 92
    with open(tmp_path / "watch.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    steps = sorted({int(row["step"]) for row in rows})
    assert steps == list(range(0, 23, 5))
    assert {row["scope"] for row in rows} == {f"{name}/{part}" for name in OPTIMIZERS for part in ("group0", "all")}
    assert len({tuple(row.values())[:3] for row in rows}) == len(rows)
    assert (tmp_path / "watch.png").read_bytes().startswith(b"\x89PNG")
    if importlib.util.find_spec("tensorboard"):
        assert {file.parent.name for file in tmp_path.rglob("events.*")} == set(OPTIMIZERS)
