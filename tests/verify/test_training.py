"""The real run."""

import functools
from dataclasses import replace

import pytest
import torch

import reimpl.nn
import reimpl.optim
from reimpl.verify import train
from reimpl.verify.training import FULL_BATCH, HELD_OUT, PLANS, Digits, Session, Stack

pytest.importorskip("sklearn", reason="the images come from scikit-learn")

trained = functools.cache(train)


@pytest.fixture
def short(monkeypatch):
    """Let every run end after two epochs, and leave out those on first principles."""
    for name, plan in PLANS.items():
        monkeypatch.setitem(PLANS, name, replace(plan, epochs=2, first_principles=False))


@pytest.mark.parametrize("name", PLANS)
def test_both_learn_alike(name):
    training, plan = trained(name), PLANS[name]
    assert training.holds
    assert training.learned
    assert training.accuracy == training.reference_accuracy >= 0.95
    assert training.losses[-1] < 0.1 * training.losses[0]
    assert len(training.losses) == plan.epochs * -(-FULL_BATCH // plan.batch_size)


def test_every_optimizer_trains():
    optimizers = {cls.__name__ for cls in vars(torch.optim).values() if isinstance(cls, type)} - {"Optimizer"}
    assert len(optimizers) == 15
    assert {plan.optimizer for plan in PLANS.values()} == optimizers


@pytest.mark.parametrize("name", PLANS)
def test_each_parameter_has_one_optimizer(name):
    plan = PLANS[name]
    stack = Stack(reimpl.nn, getattr(reimpl.optim, plan.optimizer), reimpl.optim.AdamW)
    session = Session(plan, stack, (Digits(held_out=False), Digits(held_out=True)), "cpu")
    groups = [group for optimizer in session.optimizers for group in optimizer.param_groups]
    chosen = [id(param) for group in groups for param in group["params"]]
    assert sorted(chosen) == sorted(map(id, session.network.parameters()))
    assert len(session.optimizers) == (2 if name in ("SparseAdam", "Muon") else 1)


@pytest.mark.parametrize("name", [name for name, plan in PLANS.items() if plan.first_principles])
def test_first_principles_learn_alike(name):
    training = trained(name)
    assert abs(training.principles_accuracy - training.accuracy) <= 0.005
    assert len(training.principles_losses) == len(training.losses)
    assert training.principles_losses != training.losses, "it did not run on other functions"
    assert training.principles_losses[:10] == pytest.approx(training.losses[:10], rel=1e-3)


@pytest.mark.parametrize("name", PLANS)
def test_fused_learns_alike_where_there_is_a_kernel(name):
    training = trained(name)
    if name in ("SparseAdam", "LBFGS", "Adafactor", "Muon"):
        assert training.fused_distance is training.reference_fused_distance is None
    else:
        assert training.fused_distance <= 2 * training.reference_fused_distance
        if name not in ("Adamax", "Rprop"):  # their kernels gave the loop's bits, where this was measured
            assert training.fused_distance > 0, "it did not run fused"


def off(optimizer, coefficient):
    """Return an optimizer with one coefficient wrong in the sixth digit."""

    class Off(getattr(reimpl.optim, optimizer)):
        def coefficients(self, group, step, param):
            found = super().coefficients(group, step, param)
            return found | {coefficient: found[coefficient] * (1 + 1e-5)}

    return Off


class LongLBFGS(reimpl.optim.LBFGS):
    """Moves a little too far."""

    def _move(self, t, d):
        super()._move(t * (1 + 1e-6), d)


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("SparseAdam", off("SparseAdam", "beta1")),
        ("Muon", off("Muon", "momentum")),
        ("Adafactor", off("Adafactor", "one_minus_beta2")),
        ("LBFGS", LongLBFGS),
    ],
)
def test_a_fault_is_caught(name, fault):
    sound, faulty = train(name), train(name, ours=fault)
    assert sound.same_losses
    assert sound.same_end
    assert not faulty.same_losses
    assert not faulty.same_end
    assert not faulty.resumed_by_ours


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("name", ["SparseAdam", "Muon"])
def test_a_fault_in_the_optimizer_of_the_others_is_caught(name, monkeypatch):
    monkeypatch.setattr(reimpl.optim, "AdamW", off("AdamW", "beta1"))
    training = train(name)
    assert not training.same_losses
    assert not training.same_end


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("name", ["SparseAdam", "Muon"])
def test_state_that_the_optimizer_of_the_others_forgets_is_missed(name, monkeypatch):
    class Forgetful(reimpl.optim.AdamW):
        def load_state_dict(self, state_dict):
            pass

    monkeypatch.setattr(reimpl.optim, "AdamW", Forgetful)
    training = train(name)
    assert training.same_losses
    assert training.same_end
    assert training.resumed_by_torch
    assert not training.resumed_by_ours


def test_images_are_held_out():
    learned, held_out = Digits(held_out=False), Digits(held_out=True)
    assert (len(learned), len(held_out)) == (1797 - HELD_OUT, HELD_OUT)
    assert learned.images.shape[1:] == (1, 8, 8)
    assert 0 <= learned.images.min() < learned.images.max() <= 1
    assert set(held_out.labels.tolist()) == set(range(10))
    image, label = held_out[3]
    assert torch.equal(image, held_out.images[3])
    assert label == held_out.labels[3]


@pytest.mark.usefixtures("short")
def test_callers_random_numbers_and_threads_are_left_alone():
    torch.manual_seed(3)
    expected, threads = torch.rand(2), torch.get_num_threads()
    torch.manual_seed(3)
    train("SGD")
    assert torch.equal(torch.rand(2), expected)
    assert torch.get_num_threads() == threads


@pytest.mark.cuda
@pytest.mark.parametrize("name", PLANS)
def test_on_cuda(name):
    assert train(name, "cuda").holds
