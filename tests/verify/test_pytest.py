"""The instrument as decorators of tests, in a test run of its own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from reimpl.verify import CHECKS
from reimpl.verify.foreign import ForeignClassError
from reimpl.verify.pytest import contract, equivalence

ROOT = Path(__file__).parents[2]
SUITE = """
import torch
from reimpl.verify.pytest import contract, equivalence

class Mine(torch.optim.Muon):
    def zero_grad(self, set_to_none=True):
        super().zero_grad()

class Nudged(torch.optim.RMSprop):
    def __init__(self, params, *args, eps=1e-8, **options):
        super().__init__(params, *args, eps=eps * 1e4, **options)

@contract(Mine, lr=0.1)
def test_contract(check):
    check()

@equivalence(Nudged, against=torch.optim.RMSprop, dtypes=[torch.float32], quick=True)
def test_equal(case):
    case()
"""


def run_suite(folder, *arguments):
    (folder / "test_mine.py").write_text(SUITE)
    command = [sys.executable, "-m", "pytest", "-v", "-rs", "-p", "no:cacheprovider", *arguments, "test_mine.py"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True).stdout


def test_one_test_for_each_check_and_case(tmp_path):
    output = run_suite(tmp_path)
    assert output.count("::test_contract[") >= len(CHECKS)
    assert "::test_contract[state-dict] PASSED" in output
    assert "::test_contract[zero-grad] FAILED" in output
    assert "ContractError: zero_grad(set_to_none=False): the gradient of param[0] is None" in output
    assert re.search(r"::test_contract\[maximize\] SKIPPED.*the constructor has no argument maximize", output)
    assert re.search(r"::test_equal\[optim\.Nudged loop float32 \w+ \(.*\)\] FAILED", output)
    assert re.search(r"AssertionError: differs, claimed close: optim\.Nudged .*: step 1, param", output)


def test_in_several_processes(tmp_path):
    pytest.importorskip("xdist")
    assert re.search(r"\d+ failed, \d+ passed, \d+ skipped in", run_suite(tmp_path, "-n", "2"))


def test_a_class_that_cannot_be_tried_fails_when_run_not_when_collected():
    marks = contract(torch.optim.Optimizer).args[1]
    with pytest.raises(AssertionError, match="Optimizer cannot be tried"):
        marks[0].values[0]()


def test_unknown_reference():
    with pytest.raises(ForeignClassError, match=r"choose from torch\.optim\.SGD"):
        equivalence(torch.optim.Adam, against=torch.optim.Optimizer)


@contract(torch.optim.Adam, lr=0.1)
def test_contract_here(check):
    check()


@equivalence(torch.optim.Adagrad, against=torch.optim.Adagrad, dtypes=[torch.float64], quick=True)
def test_equivalence_here(case):
    case()
