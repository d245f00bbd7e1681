"""The real run."""

import functools

import pytest
import torch

from reimpl.verify import train
from reimpl.verify.training import BATCH_SIZE, EPOCHS, HELD_OUT, PLANS, Digits

pytest.importorskip("sklearn", reason="the images come from scikit-learn")


trained = functools.cache(train)


@pytest.mark.parametrize("name", PLANS)
def test_both_learn_alike(name):
    training = trained(name)
    assert training.holds
    assert training.learned
    assert training.accuracy == training.reference_accuracy >= 0.95
    assert training.losses[-1] < 0.1 * training.losses[0]
    assert len(training.losses) == EPOCHS * -(-(1797 - HELD_OUT) // BATCH_SIZE)


def test_every_optimizer_trains():
    assert {plan.optimizer for plan in PLANS.values()} == {"SGD", "Adagrad", "RMSprop", "Adadelta", "Adam"}


@pytest.mark.parametrize("name", [name for name, plan in PLANS.items() if plan.first_principles])
def test_first_principles_learn_alike(name):
    training = trained(name)
    assert abs(training.principles_accuracy - training.accuracy) <= 0.005
    assert len(training.principles_losses) == len(training.losses)
    assert training.principles_losses != training.losses, "it did not run on other functions"
    assert training.principles_losses[:10] == pytest.approx(training.losses[:10], rel=1e-3)


@pytest.mark.parametrize("name", PLANS)
def test_fused_learns_alike(name):
    training = trained(name)
    assert 0 < training.fused_distance <= 2 * training.reference_fused_distance, "it did not run fused, or not well"


def test_images_are_held_out():
    learned, held_out = Digits(held_out=False), Digits(held_out=True)
    assert (len(learned), len(held_out)) == (1797 - HELD_OUT, HELD_OUT)
    assert learned.images.shape[1:] == (1, 8, 8)
    assert 0 <= learned.images.min() < learned.images.max() <= 1
    assert set(held_out.labels.tolist()) == set(range(10))
    image, label = held_out[3]
    assert torch.equal(image, held_out.images[3])
    assert label == held_out.labels[3]


def test_callers_random_numbers_are_left_alone():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    train("SGD")
    assert torch.equal(torch.rand(2), expected)


@pytest.mark.cuda
@pytest.mark.parametrize("name", PLANS)
def test_on_cuda(name):
    assert train(name, "cuda").holds
