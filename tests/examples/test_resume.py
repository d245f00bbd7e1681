"""`python examples/resume.py`, as a user runs it, and without a line that it needs."""

import os
import subprocess
import sys

import pytest

from helpers import ROOT

EXAMPLE = ROOT / "examples" / "resume.py"


def run(script):
    done = subprocess.run(
        [sys.executable, script],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_bit_agrees():
    printed = run(EXAMPLE)
    assert "reimpl.optim.Adam, 20 steps" in printed
    assert "The checkpoints agree in every bit." in printed


@pytest.mark.parametrize("part", ["model", "optimizer", "schedule"])
def test_forgetting_a_part_is_noticed(part, tmp_path):
    script = tmp_path / "forgetful.py"
    text = EXAMPLE.read_text()
    script.write_text(text.replace(f'{part}.load_state_dict(checkpoint["{part}"])', "pass"))
    assert script.read_text() != text
    assert "The checkpoints differ." in run(script)
