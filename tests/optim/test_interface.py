"""Signature, defaults, repr and errors are torch's."""

import inspect

import pytest
import torch

from conftest import OPTIMIZERS
from helpers import outcome, pair, parameters, take_steps

ONE, TWO = torch.tensor(0.1), torch.tensor([0.1, 0.2])

BAD_ARGUMENTS = {
    "SGD": [
        {"lr": -1},
        {"lr": TWO},
        {"lr": "fast"},
        {"momentum": -0.5},
        {"weight_decay": -1},
        {"nesterov": True},
        {"nesterov": True, "momentum": 0.9, "dampening": 0.5},
        {"lr": -1, "momentum": -1},
        {"fused": True, "differentiable": True},
        {"fused": True, "foreach": True},
        {"betas": 0.9},
    ],
    "Adagrad": [
        {"lr": -1},
        {"lr": TWO},
        {"lr": float("nan")},
        {"lr_decay": -0.5},
        {"weight_decay": -1},
        {"initial_accumulator_value": -1},
        {"eps": -1},
        {"eps": float("nan")},
        {"fused": True, "differentiable": True},
        {"fused": True, "foreach": True},
    ],
    "RMSprop": [
        {"lr": -1},
        {"lr": TWO},
        {"lr": float("nan")},
        {"eps": -1},
        {"momentum": -1.0},
        {"weight_decay": -1},
        {"alpha": -1},
    ],
    "Adadelta": [
        {"lr": -1},
        {"lr": TWO},
        {"rho": 1.1},
        {"rho": -0.1},
        {"eps": -1},
        {"weight_decay": -1},
    ],
    "Adam": [
        {"lr": -1},
        {"lr": TWO},
        {"lr": TWO, "foreach": True},
        {"lr": ONE, "foreach": True},
        {"eps": -1},
        {"betas": (1.0, 0.9)},
        {"betas": (0.9, 1.0)},
        {"betas": (-0.1, 0.9)},
        {"betas": (0.9,)},
        {"betas": (0, 0.999)},
        {"betas": (ONE, 0.9)},
        {"betas": (0.9, ONE)},
        {"betas": (ONE, ONE), "foreach": True},
        {"betas": (TWO, ONE)},
        {"weight_decay": -1},
        {"fused": True, "differentiable": True},
        {"fused": True, "foreach": True},
    ],
    "AdamW": [
        {"lr": -1},
        {"lr": ONE, "foreach": True},
        {"eps": -1},
        {"betas": (1.0, 0.9)},
        {"betas": (ONE, 0.9)},
        {"weight_decay": -1},
        {"decoupled_weight_decay": True},
        {"fused": True, "foreach": True},
    ],
    "Adamax": [
        {"lr": -1},
        {"lr": TWO},
        {"lr": float("nan")},
        {"eps": -1},
        {"betas": (1.0, 0.9)},
        {"betas": (0.9, 1.0)},
        {"betas": (0.9,)},
        {"weight_decay": -1},
    ],
    "NAdam": [
        {"lr": -1},
        {"lr": TWO},
        {"eps": -1},
        {"betas": (1.0, 0.9)},
        {"betas": (0.9, -0.1)},
        {"weight_decay": -1},
        {"momentum_decay": -0.2},
        {"momentum_decay": float("nan")},
    ],
    "RAdam": [
        {"lr": -1},
        {"lr": TWO},
        {"eps": -1},
        {"betas": (1.0, 0.9)},
        {"betas": (0.9, 1.0)},
        {"weight_decay": -1},
    ],
    "Rprop": [
        {"lr": -1},
        {"lr": TWO},
        {"etas": (1.0, 1.2)},
        {"etas": (0.5, 1.0)},
        {"etas": (0.0, 1.2)},
        {"etas": (0.5,)},
        {"weight_decay": 0.1},
    ],
    "ASGD": [
        {"lr": -1},
        {"lr": TWO},
        {"lr": float("nan")},
        {"weight_decay": -1},
        {"momentum": 0.9},
    ],
}


def test_signature(name):
    ours, theirs = (inspect.signature(cls.__init__).parameters for cls in pair(name))
    # The fused engine has every rule, torch's kernels four.
    added = [] if "fused" in theirs else ["fused"]
    assert list(ours) == [*theirs, *added]
    assert all(
        ours[argument].default is None and ours[argument].kind == inspect.Parameter.KEYWORD_ONLY for argument in added
    )
    for argument, parameter in theirs.items():
        assert ours[argument].default == parameter.default, argument
        assert ours[argument].kind == parameter.kind, argument


def test_defaults_and_repr(name):
    ours, theirs = (cls(parameters()) for cls in pair(name))
    assert list(ours.defaults.items()) == list(theirs.defaults.items())
    assert repr(ours) == repr(theirs)


def test_groups_and_named_parameters(name):
    def groups():
        first, second, third = parameters()
        return [{"params": [("a", first)], "lr": 0.5}, {"params": [("b", second), ("c", third)]}]

    ours, theirs = (cls(groups()) for cls in pair(name))
    assert repr(ours) == repr(theirs)
    assert ours.state_dict()["param_groups"] == theirs.state_dict()["param_groups"]


@pytest.mark.parametrize(
    ("name", "options"),
    [pytest.param(name, options, id=f"{name}-{options}") for name, many in BAD_ARGUMENTS.items() for options in many],
)
def test_bad_argument(name, options):
    ours, theirs = (outcome(lambda cls=cls: cls(parameters(), **options)) for cls in pair(name))
    assert ours[0] is not None
    assert ours == theirs


@pytest.mark.parametrize(
    "params",
    [
        [],
        torch.ones(2),
        {"params": []},
        [3],
        [torch.ones(2, requires_grad=True) * 2],
        [{"lr": 1}],
        [{"params": {1, 2}}],
    ],
    ids=["none", "a tensor", "a dict", "a number", "no leaf", "a group without", "a set"],
)
def test_bad_parameters(name, params):
    ours, theirs = (outcome(lambda cls=cls: cls(params)) for cls in pair(name))
    assert ours[0] is not None
    assert ours == theirs


@pytest.mark.parametrize("capturable_name", [name for name in OPTIMIZERS if name not in ("SGD", "Adagrad")])
def test_capturable_needs_an_accelerator(capturable_name, foreach):
    def step(cls):
        take_steps(cls(parameters(), capturable=True, foreach=foreach), 1)

    ours, theirs = (outcome(lambda cls=cls: step(cls)) for cls in pair(capturable_name))
    assert ours[0] is AssertionError
    assert ours == theirs


@pytest.mark.parametrize("adam_name", ["Adam", "AdamW"])
def test_tensor_lr_that_comes_later_is_refused_by_foreach_adam(adam_name):
    def step(cls):
        optimizer = cls(parameters(), foreach=True)
        optimizer.param_groups[0]["lr"] = torch.tensor(0.1)
        take_steps(optimizer, 1)

    ours, theirs = (outcome(lambda cls=cls: step(cls)) for cls in pair(adam_name))
    assert ours[0] is RuntimeError
    assert ours == theirs


def test_differentiable_foreach(name):
    def step(cls):
        take_steps(cls([param.clone() for param in parameters()], differentiable=True, foreach=True), 1)

    ours, theirs = (outcome(lambda cls=cls: step(cls)) for cls in pair(name))
    assert ours == theirs
