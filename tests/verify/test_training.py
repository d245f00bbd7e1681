"""The real run."""

import pytest
import torch

from reimpl.verify import train
from reimpl.verify.training import BATCH_SIZE, EPOCHS, HELD_OUT, OPTIONS, Digits

pytest.importorskip("sklearn", reason="the images come from scikit-learn")


def test_both_learn_alike(name):
    training = train(name)
    assert training.holds
    assert training.learned
    assert training.accuracy == training.reference_accuracy >= 0.95
    assert training.losses[-1] < 0.1 * training.losses[0]
    assert len(training.losses) == EPOCHS * -(-(1797 - HELD_OUT) // BATCH_SIZE)


def test_every_optimizer_has_options():
    assert set(OPTIONS) == {"SGD", "Adagrad", "RMSprop", "Adadelta", "Adam"}


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
def test_on_cuda(name):
    assert train(name, "cuda").holds
