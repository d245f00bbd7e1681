"""Averages of weights: `swa_utils` over models of our layers, trained by our optimizers."""

import copy

import pytest
import torch
from torch import nn
from torch.optim import swa_utils

import reimpl
import reimpl.nn.functional
import reimpl.optim
from conftest import OPTIMIZERS
from helpers import pair
from reimpl.verify.distance import same_bits

AVERAGES = {
    "mean": {},
    "mean, buffers too": {"use_buffers": True},
    "mean on lists": {"multi_avg_fn": swa_utils.get_swa_multi_avg_fn()},
    "exponential": {"avg_fn": swa_utils.get_ema_avg_fn(0.9), "use_buffers": True},
    "exponential on lists": {"multi_avg_fn": swa_utils.get_ema_multi_avg_fn(0.9)},
}


def network(ours, functional=nn.functional):
    torch.manual_seed(1)
    model = nn.Sequential(
        *(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(36, 8), nn.BatchNorm1d(8, momentum=None), nn.Linear(8, 5)),
    )
    if ours:
        reimpl.swap(model, functional=functional)
    return model


def batches():
    generator = torch.Generator().manual_seed(2)
    return [
        (torch.randn(8, 1, 6, 6, generator=generator), torch.randint(5, (8,), generator=generator)) for _ in range(4)
    ]


def train(name, ours, epochs=3, resumed=False, functional=nn.functional, **average):
    """Return the averaged model, whose batch normalisation has seen the data, and the rates that `SWALR` set."""
    model = network(ours, functional)
    optimizer = pair(name)[0 if ours else 1](model.parameters())
    averaged = swa_utils.AveragedModel(model, **average)
    schedule = swa_utils.SWALR(optimizer, swa_lr=0.05, anneal_epochs=2)
    rates = []
    for epoch in range(epochs):
        for images, labels in batches():
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
        averaged.update_parameters(model)
        schedule.step()
        rates.append(schedule.get_last_lr())
        if resumed and epoch == 0:
            saved = copy.deepcopy(averaged.state_dict())
            averaged = swa_utils.AveragedModel(network(not ours), **average)
            averaged.load_state_dict(saved)
    swa_utils.update_bn(batches(), averaged)
    return averaged, rates


def assert_same_models(first, second):
    ours, theirs = first.state_dict(), second.state_dict()
    assert list(ours) == list(theirs)
    assert all(same_bits(ours[key], theirs[key]) for key in theirs)
    images = batches()[0][0]
    assert same_bits(first.eval()(images), second.eval()(images))


@pytest.mark.parametrize("average", AVERAGES)
def test_every_average(average):
    (ours, rates), (theirs, expected) = (train("Adam", ours, **AVERAGES[average]) for ours in (True, False))
    assert rates == expected
    assert_same_models(ours, theirs)


@pytest.mark.parametrize("name", [*OPTIMIZERS, "Adafactor"])
def test_every_optimizer(name):
    assert_same_models(*(train(name, ours)[0] for ours in (True, False)))


def test_average_loaded_by_the_others_model():
    expected, _ = train("Adam", False)
    for ours in (True, False):
        assert_same_models(train("Adam", ours, resumed=True)[0], expected)


def test_statistics_from_first_principles():
    """`update_bn` finds our batch normalisation by its base class, and sets its momentum and back."""
    ours, _ = train("Adam", True, epochs=0, functional=reimpl.nn.functional)
    theirs, _ = train("Adam", False, epochs=0)
    layers = [module for module in ours.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    assert [layer.momentum for layer in layers] == [0.1, None]
    assert all(layer.num_batches_tracked == len(batches()) for layer in layers)
    for first, second in zip(ours.buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(first, second)


def test_a_missing_update_is_noticed():
    theirs, _ = train("Adam", False)
    ours, _ = train("Adam", True, epochs=2)
    with pytest.raises(AssertionError):
        assert_same_models(ours, theirs)
