"""What single optimizers' papers and torch's documentation say, in numbers that can be computed by hand."""

import pytest
import torch

import reimpl.optim
from reimpl.optim.nadam import nadam_momentum
from reimpl.optim.radam import radam_rectification


def path(cls, gradients, start=0.0, between=None, **options):
    """Return a float64 number after each step with the given gradients, and the optimizer."""
    param = torch.tensor([start], dtype=torch.float64, requires_grad=True)
    optimizer = cls([param], **options)
    found = []
    for step, gradient in enumerate(gradients):
        param.grad = torch.tensor([gradient], dtype=torch.float64)
        optimizer.step()
        found.append(param.item())
        if between:
            between(optimizer, step)
    return found, optimizer.state[param]


def test_rprop_waits_for_one_step_after_a_turn():
    """No backtracking: the step is shortened, and the gradient counts as 0 there and in the next comparison."""
    found, state = path(reimpl.optim.Rprop, [1, 1, 1, -1, -1, -1], lr=0.1)
    # Steps of 0.1, 0.1 * 1.2, 0.12 * 1.2, none, 0.144 * 0.5 and 0.072 * 1.2.
    assert found == pytest.approx([-0.1, -0.22, -0.364, -0.364, -0.292, -0.2056], rel=1e-12)
    assert state["step_size"].item() == pytest.approx(0.0864)


def test_rprop_reads_lr_once_and_keeps_within_its_bounds():
    def change(optimizer, step):
        optimizer.param_groups[0]["lr"] = 1e-9

    gradients = [1, 2, 3]
    assert (
        path(reimpl.optim.Rprop, gradients, lr=0.1, between=change)[0] == path(reimpl.optim.Rprop, gradients, lr=0.1)[0]
    )
    assert path(reimpl.optim.Rprop, [1, 1], lr=100)[0] == [-50, -100]
    assert path(reimpl.optim.Rprop, [1, -1, 0, -1], lr=1, step_sizes=(0.8, 2))[1]["step_size"] == 0.8


def test_asgd_changes_its_step_one_update_late():
    def cut(optimizer, step):
        if step == 1:
            optimizer.param_groups[0]["lr"] = 0.01

    found, _ = path(reimpl.optim.ASGD, [1] * 4, lr=0.1, lambd=0, between=cut)
    assert found == pytest.approx([-0.1, -0.2, -0.3, -0.31], rel=1e-6)  # eta is a float32


def test_asgd_averages_the_path_from_t0_on():
    """With t0=1, mu is 1 in the first three steps, then 1/2, 1/3 and so on: the mean of the third and later points."""
    found, state = path(reimpl.optim.ASGD, [1, -2, 3, 1, -1, 2], lr=0.1, lambd=0, t0=1)
    assert state["ax"].item() == pytest.approx(sum(found[2:]) / 4, rel=1e-6)


def test_radam_adapts_from_the_sixth_step_on():
    """With the default betas; before it is momentum, whose step is lr times the gradient."""
    found, _ = path(reimpl.optim.RAdam, [100] * 6, lr=1e-3)
    steps = [before - after for before, after in zip([0.0, *found], found, strict=False)]
    assert steps[:5] == pytest.approx([0.1] * 5)
    assert steps[5] == pytest.approx(2.6e-5, rel=0.02)


@pytest.mark.parametrize("beta2", [0.0, 0.5, 0.6, 2 / 3])
def test_radam_with_a_short_memory_never_adapts(beta2):
    assert all(radam_rectification(beta2, step) == (None, None) for step in (1.0, 5.0, 6.0, 100.0, 1e6))


def test_radam_takes_the_second_moment_where_rho_exceeds_five():
    assert radam_rectification(0.999, 5.0) == (None, None)
    rectification, unrectified = radam_rectification(0.999, 6.0)
    rho, rho_inf = 1999 - 12 * 0.999**6 / (1 - 0.999**6), 1999
    expected = ((rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho)) ** 0.5
    assert rectification == pytest.approx(expected, rel=1e-9)
    assert unrectified is None


def test_nadam_momentum_rises_from_half_of_beta1():
    group = {"betas": (0.9, 0.999), "momentum_decay": 4e-3}
    schedule = {1: 0.450, 1000: 0.518, 10_000: 0.812, 100_000: 0.9}
    for step, expected in schedule.items():
        assert nadam_momentum(group, step) == pytest.approx(expected, abs=5e-4)
    assert nadam_momentum({**group, "momentum_decay": 0}, 1e6) == pytest.approx(0.45)


def test_nadam_keeps_the_product_of_its_momenta():
    group = {"betas": (0.9, 0.999), "momentum_decay": 0.1}
    _, state = path(reimpl.optim.NAdam, [1.0] * 5, momentum_decay=0.1)
    expected = torch.tensor([nadam_momentum(group, step) for step in range(1, 6)]).prod()
    torch.testing.assert_close(state["mu_product"], expected)


def test_adamax_has_eps_inside_the_maximum():
    """u = max(beta2 u, |g| + eps): 1.1 at first, then 0.999 * 1.1."""
    _, state = path(reimpl.optim.Adamax, [1.0], eps=0.1)
    assert state["exp_inf"].item() == pytest.approx(1.1, rel=1e-12)
    found, state = path(reimpl.optim.Adamax, [1.0, 0.001], lr=0.01, eps=0.1)
    assert state["exp_inf"].item() == pytest.approx(0.999 * 1.1, rel=1e-12)
    first = 0.01 * 1 / 1.1
    second = 0.01 * (0.09 + 0.0001) / (1 - 0.9**2) / (0.999 * 1.1)
    assert found == pytest.approx([-first, -first - second], rel=1e-12)


def test_adamw_decays_by_lr_times_weight_decay():
    found, _ = path(reimpl.optim.AdamW, [0.0], start=1.0, lr=0.01, weight_decay=0.1)
    assert found == [0.999]


@pytest.mark.parametrize("amsgrad", [False, True])
def test_adamw_is_adam_with_decoupled_decay(amsgrad):
    gradients = [0.3, -2.0, 0.01]
    options = {"amsgrad": amsgrad, "weight_decay": 0.1, "lr": 0.1}
    decoupled, _ = path(reimpl.optim.Adam, gradients, start=1.0, decoupled_weight_decay=True, **options)
    assert path(reimpl.optim.AdamW, gradients, start=1.0, **options)[0] == decoupled


@pytest.mark.parametrize("cls", [reimpl.optim.AdamW, torch.optim.AdamW], ids=["ours", "torch"])
@pytest.mark.parametrize(("decay", "kept"), [(2.0**-25.1, True), (2.0**-24.9, False)])
def test_adamw_loses_a_decay_below_half_a_rounding(cls, decay, kept):
    param = torch.ones(1, requires_grad=True)
    param.grad = torch.zeros(1)
    cls([param], lr=1.0, weight_decay=decay).step()
    assert (param.item() == 1) is kept
