"""Deliberate deviations: torch is wrong, we are not, and the instrument would see it if we were."""

import pytest
import torch

import reimpl.optim
from reimpl.cli import main
from reimpl.optim.muon import muon_rule
from reimpl.optim.rmsprop import RMSprop
from reimpl.verify.deviations import DEVIATIONS, Deviation, Finding, show

each = pytest.mark.parametrize("deviation", DEVIATIONS, ids=lambda one: f"{one.optimizer}, {one.where}")


@each
def test_ours_is_right(deviation):
    shown = show(deviation)
    assert shown.ours.right, shown.ours.seen
    assert shown.holds


@each
def test_torch_is_wrong(deviation):
    """When a later torch is not, its class can be followed again."""
    if torch.__version__ >= "2.14":
        pytest.skip("written against torch 2.11 to 2.13")
    assert not show(deviation).theirs.right


@each
def test_torch_s_own_class_in_our_place_is_caught(deviation, monkeypatch):
    monkeypatch.setattr(reimpl.optim, deviation.optimizer, getattr(torch.optim, deviation.optimizer))
    assert not show(deviation).holds


def test_an_exception_is_wrong():
    def fail(make):
        raise RuntimeError("a line\nand another")

    shown = show(Deviation("SGD", "always", "a test", fail))
    assert shown.ours == Finding(False, "RuntimeError: a line and another")


def test_command_shows_both_sides(capsys):
    assert main(["verify", "optim.Muon", "--dtype", "bfloat16"]) == 0
    output = " ".join(capsys.readouterr().out.split())
    assert "nesterov=False" in output
    assert "Deliberate: what torch does there loses or corrupts a result" in output
    assert "deliberate=1 deliberate_failed=0" in output


def test_command_fails_where_ours_is_wrong(capsys, monkeypatch):
    def unclamped(param, grad, square_avg, momentum_buffer, grad_avg, lr, alpha, eps, weight_decay, momentum):
        square_avg.mul_(alpha).addcmul_(grad, grad, value=1 - alpha)
        grad_avg.lerp_(grad, 1 - alpha)
        param.addcdiv_(grad, square_avg.addcmul(grad_avg, grad_avg, value=-1).sqrt_().add_(eps), value=-lr)

    monkeypatch.setattr(RMSprop, "rule", staticmethod(unclamped))
    assert not show(next(one for one in DEVIATIONS if one.optimizer == "RMSprop")).holds

    def in_place(param, grad, momentum_buffer, **coefficients):
        muon_rule(param, grad, momentum_buffer, **coefficients)
        momentum_buffer.div_(momentum_buffer.norm())

    monkeypatch.setattr(reimpl.optim.Muon, "rule", staticmethod(in_place))
    assert main(["verify", "optim.Muon", "--dtype", "bfloat16"]) == 1
    output = capsys.readouterr().out
    assert "deliberate, and wrong: Muon, bfloat16 parameters with nesterov=False: the momentum's norm is 1.00" in output
    assert "deliberate_failed=1" in output
