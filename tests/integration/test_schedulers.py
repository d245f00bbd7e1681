"""Every scheduler of torch on every optimizer: what it sets, what the steps then do, and both saved and loaded."""

import copy

import pytest
import torch
from torch.optim import lr_scheduler, swa_utils
from torch.optim.lr_scheduler import LRScheduler

import reimpl.optim
from conftest import OPTIMIZERS
from helpers import assert_same, outcome, pair, snapshot

EVERY_OPTIMIZER = (*OPTIMIZERS, "SparseAdam", "Adafactor", "Muon", "LBFGS")
STEPS = 12

SCHEDULES = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda step: 0.9**step),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda step: 0.95 if step % 2 else 1.01),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 3, 0.5),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [2, 5, 5]),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, 0.25, total_iters=4),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, 0.1, total_iters=7),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.8),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, total_iters=9, power=2.0),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 5, eta_min=1e-3),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3, T_mult=2),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.001, 0.02, step_size_up=3),
    "CyclicLR, momentum kept": lambda o: lr_scheduler.CyclicLR(
        o, 0.001, 0.02, step_size_up=2, step_size_down=3, mode="exp_range", gamma=0.9, cycle_momentum=False
    ),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.05, total_steps=STEPS + 1),
    "OneCycleLR, momentum kept": lambda o: lr_scheduler.OneCycleLR(
        o, 0.05, total_steps=STEPS + 1, anneal_strategy="linear", three_phase=True, cycle_momentum=False
    ),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, factor=0.5, patience=1, threshold=0.5),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o,
        [
            lr_scheduler.LinearLR(o, 0.1, total_iters=3),
            lr_scheduler.CosineAnnealingLR(o, 5),
            lr_scheduler.ExponentialLR(o, 0.5),
        ],
        milestones=[3, 8],
    ),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o, 0.2, total_iters=4), lr_scheduler.ExponentialLR(o, 0.9)], optimizer=o
    ),
    "SWALR": lambda o: swa_utils.SWALR(o, swa_lr=0.05, anneal_epochs=6),
}
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES)


class Run:
    """An optimizer with a scheduler, on its way to the minimum of a smooth function."""

    def __init__(self, cls, schedule, **options):
        self.params = [torch.linspace(-1, 1, 6 * (i + 1)).view(6, i + 1).requires_grad_() for i in range(2)]
        # A rate that is a tensor belongs to one group: a scheduler writes into it.
        rates = [copy.deepcopy(options.get("lr", 0.01)) * factor for factor in (1, 3)]
        groups = [{"params": [param], "lr": rate} for param, rate in zip(self.params, rates, strict=True)]
        if cls.__name__ == "LBFGS":  # it has one group
            groups = self.params
        self.optimizer = cls(groups, **options)
        self.scheduler = SCHEDULES[schedule](self.optimizer)
        self.seen = []

    def closure(self):
        self.optimizer.zero_grad()
        loss = sum((param - 0.3).pow(2).sum() + param.sin().sum() for param in self.params)
        loss.backward()
        if type(self.optimizer).__name__ == "SparseAdam":
            for param in self.params:
                param.grad = param.grad.to_sparse(1)
        return loss.detach()

    def advance(self, steps):
        """Take steps, and keep of each the loss, the groups' options, and what the scheduler says that it set."""
        for _ in range(steps):
            loss = self.optimizer.step(self.closure)
            plateau = isinstance(self.scheduler, lr_scheduler.ReduceLROnPlateau)
            self.scheduler.step(*([loss] if plateau else []))
            options = [{k: v for k, v in group.items() if k != "params"} for group in self.optimizer.param_groups]
            self.seen.append(copy.deepcopy([loss, options, self.scheduler.get_last_lr()]))
        return self

    def load(self, other):
        """Go on where another run is."""
        for mine, theirs in zip(self.params, other.params, strict=True):
            mine.data.copy_(theirs.data)
        self.optimizer.load_state_dict(copy.deepcopy(other.optimizer.state_dict()))
        self.scheduler.load_state_dict(copy.deepcopy(other.scheduler.state_dict()))
        return self


def assert_same_runs(ours, theirs):
    assert ours.seen == theirs.seen
    assert_same(snapshot(ours.optimizer, ours.params), snapshot(theirs.optimizer, theirs.params))


def assert_both_do(name, act):
    """Assert that ours and torch's run alike, or are refused with the same words; return ours."""
    (error, ours), (expected, theirs) = (outcome(lambda: act(cls)) for cls in pair(name))  # noqa: B023
    assert error == expected
    if error is not None:
        assert ours == theirs
        return None
    assert_same_runs(ours, theirs)
    return ours


def test_no_scheduler_is_forgotten():
    known = {
        name
        for module in (lr_scheduler, swa_utils)
        for name, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, LRScheduler) and not name.endswith("LRScheduler")
    }
    assert {key.split(",")[0] for key in SCHEDULES} == known


@every_schedule
@pytest.mark.parametrize("name", EVERY_OPTIMIZER)
def test_rates_and_steps(name, schedule):
    run = assert_both_do(name, lambda cls: Run(cls, schedule).advance(STEPS))
    if run is None:  # the scheduler wants to cycle a momentum, and the optimizer has none
        assert schedule in ("CyclicLR", "OneCycleLR")
    else:
        assert len({str(rate) for _, _, rate in run.seen}) > 1, "the schedule changed nothing"


@pytest.mark.usefixtures("torchs_loop")
@every_schedule
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_rates_and_steps_with_foreach(name, schedule):
    assert_both_do(name, lambda cls: Run(cls, schedule, foreach=True).advance(STEPS))


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("schedule", ["CyclicLR", "OneCycleLR"])
def test_cycled_momentum(schedule, momentum):
    """Also where it was 0 at first, so that its buffer is made later."""
    run = assert_both_do("SGD", lambda cls: Run(cls, schedule, momentum=momentum).advance(STEPS))
    assert len({options[0]["momentum"] for _, options, _ in run.seen}) > 2


@every_schedule
@pytest.mark.parametrize("name", ["SGD", "RMSprop", "Adam", "AdamW", "NAdam", "Rprop"])
def test_rate_that_is_a_tensor(name, schedule):
    run = assert_both_do(name, lambda cls: Run(cls, schedule, lr=torch.tensor(0.01), foreach=False).advance(STEPS))
    if run is not None:
        assert all(isinstance(group["lr"], torch.Tensor) for group in run.optimizer.param_groups)


@every_schedule
@pytest.mark.parametrize("name", ["SGD", "Adam", "ASGD"])
def test_resumed_from_the_others_state(name, schedule):
    """Saved by one, gone on in the other, in both directions."""
    options = {"momentum": 0.9} if name == "SGD" else {}
    whole = [outcome(lambda: Run(cls, schedule, **options).advance(STEPS)) for cls in pair(name)]  # noqa: B023
    if whole[0][0] is not None:
        assert whole[0] == whole[1]
        return
    for first, second in (pair(name), pair(name)[::-1]):
        begun = Run(first, schedule, **options).advance(5)
        ended = Run(second, schedule, **options).load(begun).advance(STEPS - 5)
        ended.seen = begun.seen + ended.seen
        assert_same_runs(ended, whole[0][1])


def test_begun_again_at_an_epoch(name):
    """`last_epoch` finds the first rate in the groups, where an earlier scheduler has left it."""

    def act(cls):
        run = Run(cls, "StepLR").advance(4)
        saved = copy.deepcopy(run.optimizer.state_dict())
        run.optimizer.load_state_dict(saved)
        run.scheduler = lr_scheduler.StepLR(run.optimizer, 3, 0.5, last_epoch=run.scheduler.last_epoch)
        return run.advance(4)

    assert_both_do(name, act)


@pytest.mark.parametrize("name", ["SGD", "Adam", "ASGD"])
def test_group_added_under_a_schedule(name):
    """It has no first rate, which the scheduler looks up: torch's KeyError, or its rates if the group brings one."""
    for more in ({}, {"initial_lr": 0.02}):

        def act(cls, more=more):
            run = Run(cls, "ExponentialLR").advance(3)
            run.params.append(torch.ones(3, requires_grad=True))
            run.optimizer.add_param_group({"params": [run.params[-1]], "lr": 0.02, **more})
            run.scheduler.base_lrs.append(0.02)
            return run.advance(3)

        assert_both_do(name, act)


class Deaf(reimpl.optim.SGD):
    """Goes on with the rate that it was made with."""

    def coefficients(self, group, step, param):
        return super().coefficients({**group, "lr": group["initial_lr"]}, step, param)


def test_an_unheard_scheduler_is_noticed():
    deaf, theirs = (Run(cls, "StepLR").advance(STEPS) for cls in (Deaf, torch.optim.SGD))
    with pytest.raises(AssertionError):
        assert_same_runs(deaf, theirs)
