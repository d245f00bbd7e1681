"""Source code is quoted as it is installed, by lines that are named."""

import inspect

import pytest
import torch

import reimpl.optim
from reimpl.read import QuoteError, align, source

SGD = "torch.optim.sgd._single_tensor_sgd"


def test_lines_have_the_numbers_of_their_file():
    of = source(SGD)
    file = inspect.getsourcefile(torch.optim.SGD)
    with open(file, encoding="utf-8") as text:
        lines = text.read().splitlines()
    assert of.file == "torch/optim/sgd.py"
    assert all(lines[line.number - 1].endswith(line.text) for line in of.lines)


def test_a_long_docstring_is_left_out_and_the_numbers_stay_right():
    of = source("reimpl.optim.SGD")
    lines = inspect.getsource(reimpl.optim.SGD).splitlines()
    start = inspect.getsourcelines(reimpl.optim.SGD)[1]
    assert len(of.lines) < len(lines) - 40
    assert all(lines[line.number - start] == line.text for line in of.lines)


def test_a_file_of_torch_is_quoted():
    of = source("torch/include/ATen/native/Pool.h")
    assert of.url_of(of.lines[:1]).endswith("/aten/src/ATen/native/Pool.h#L1")


def test_an_anchor_means_one_line():
    of = source(SGD)
    assert "momentum" in of.lines[of.find("if momentum != 0")].text
    with pytest.raises(QuoteError, match=r"no line of .* has 'momentun'"):
        of.find("momentun")
    with pytest.raises(QuoteError, match=r"6 lines \(.*\) of .* has 'else:'"):
        of.find("else:")


def test_an_anchor_may_be_the_first_line_after_another():
    of = source(SGD)
    assert of.lines[of.find("if nesterov >> else:") + 1].text.strip() == "grad = buf"


def test_what_is_not_there_is_refused():
    for path in ("torch.optim.sgd.nothing", "nowhere.at_all", "torch/no/file.h", "torch.add"):
        with pytest.raises(QuoteError):
            source(path)


STEPS = f"""
ours: reimpl.optim.sgd.sgd_rule
torch: {SGD}
== Before
== Decay | $g + \\lambda\\theta$
ours: if weight_decay != 0:
torch: if weight_decay != 0:
== Rest
ours: if momentum_buffer is not None:
torch: if momentum != 0:
"""


def test_steps_hold_every_line_of_both_functions_once():
    steps = align(STEPS)
    for side, path in (("ours", "reimpl.optim.sgd.sgd_rule"), ("torch", SGD)):
        shown = [line for step in steps for _, lines in getattr(step, side).parts for line in lines]
        assert shown == sorted(shown, key=lambda line: line.number)
        assert {line.number for line in shown} == {line.number for line in source(path).lines if line.text.strip()} | {
            line.number for line in shown
        }
    assert [step.title for step in steps] == ["Before", "Decay", "Rest"]
    assert steps[1].ours.parts[0][1][0].text.strip() == "if weight_decay != 0:"


def test_a_line_that_a_change_has_removed_fails():
    with pytest.raises(QuoteError, match="weight_decay >= 0"):
        align(STEPS.replace("ours: if weight_decay != 0:", "ours: if weight_decay >= 0:"))
