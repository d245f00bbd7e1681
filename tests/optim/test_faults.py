"""Faults planted in a rule, and the instrument that has to catch each."""

import copy

import pytest
import torch

import reimpl.optim
from helpers import pair
from reimpl.optim import adagrad, adam, asgd, nadam, radam, sgd
from reimpl.verify import cases, judge, train
from reimpl.verify.optimizers import SCENARIOS_OF


def faulty(base, change_coefficients=None, rule=None):
    """Return a subclass with other coefficients or another rule."""

    class Faulty(base):
        def coefficients(self, group, step, param):
            coefficients = super().coefficients(group, step, param)
            if change_coefficients:
                change_coefficients(coefficients, group, step)
            return coefficients

    if rule:
        Faulty.rule = staticmethod(rule)
    return Faulty


def without_bias_correction(coefficients, group, step):
    coefficients["bias_correction2_sqrt"] = 1.0


def without_first_bias_correction(coefficients, group, step):
    coefficients["step_size"] = group["lr"]


def one_step_late(coefficients, group, step):
    coefficients.update(adam.adam_coefficients(group, step + 1))


def beta_off(coefficients, group, step):
    coefficients["beta2"] += 1e-7


def eps_moved(param, grad, exp_avg, exp_avg_sq, max_exp_avg_sq, *, bias_correction2_sqrt, step_size, eps, **rest):
    """As in the paper's more efficient form: eps is divided by the bias correction too."""
    exp_avg.lerp_(grad, 1 - rest["beta1"])
    exp_avg_sq.mul_(rest["beta2"]).addcmul_(grad, grad, value=1 - rest["beta2"])
    denominator = exp_avg_sq.sqrt().add_(eps).div_(bias_correction2_sqrt)
    param.addcdiv_(exp_avg, denominator, value=-step_size)


def order_swapped(param, grad, exp_avg, exp_avg_sq, max_exp_avg_sq, **coefficients):
    """The same formula, with the mean's sum in the other order: m * beta1 + g * (1 - beta1)."""
    updated = exp_avg * coefficients["beta1"] + grad * (1 - coefficients["beta1"])
    adam.adam_rule(param, grad, exp_avg, exp_avg_sq, max_exp_avg_sq, **coefficients)
    exp_avg.copy_(updated)


def eps_under_the_root(param, grad, square_avg, momentum_buffer, grad_avg, *, lr, alpha, eps, **rest):
    square_avg.mul_(alpha).addcmul_(grad, grad, value=1 - alpha)
    param.addcdiv_(grad, square_avg.add(eps).sqrt_(), value=-lr)


def dampened_first_step(param, grad, momentum_buffer, *, first_step, dampening, **rest):
    if first_step and momentum_buffer is not None:
        momentum_buffer.zero_()
    sgd.sgd_rule(param, grad, momentum_buffer, first_step=False, dampening=dampening, **rest)


def divided_before_adding(param, grad, sum, *, lr, weight_decay, eps):
    param.addcdiv_(grad, sum.sqrt().add_(eps), value=-lr)
    sum.addcmul_(grad, grad)


def decay_in_the_gradient(coefficients, group, step):
    coefficients["decay"] = None


def eps_outside_the_maximum(param, grad, exp_avg, exp_inf, *, beta1, beta2, eps, step_size, **rest):
    exp_avg.lerp_(grad, 1 - beta1)
    exp_inf.mul_(beta2).clamp_min_(grad.abs())
    param.addcdiv_(exp_avg, exp_inf + eps, value=-step_size)


def momentum_without_look_ahead(coefficients, group, step):
    momentum = nadam.nadam_momentum(group, step)
    product = group["mu_product"].item() * momentum
    coefficients["exp_avg_step_size"] = group["lr"] * momentum / (1 - product * momentum)


def threshold_of_the_paper(coefficients, group, step):
    if 4 < step < 6 and group["betas"][1] == 0.999:  # where rho is between 4 and 5
        coefficients["rectification"] = radam.radam_rectification(0.999, 6.0)[0]


def turned_gradient_kept(param, grad, prev, step_size, *, eta_minus, eta_plus, smallest, largest):
    factor = grad.mul(prev).sign_()
    factor = torch.where(factor > 0, eta_plus, torch.where(factor < 0, eta_minus, 1.0))
    step_size.mul_(factor).clamp_(smallest, largest)
    param.addcmul_(grad.sign(), step_size, value=-1)
    prev.copy_(grad)


def eta_in_time(coefficients, group, step):
    coefficients["eta"] = asgd.asgd_next(group, step)["eta"]


def moments_of_a_first_step(coefficients, group, step):
    coefficients["step_size"] = group["lr"]


def decay_from_one_step_later(coefficients, group, step):
    coefficients["one_minus_beta2"] = (step + 1) ** group["beta2_decay"]


def one_iteration_less(coefficients, group, step):
    coefficients["ns_steps"] -= 1


class StateLeftOutOfTheCheckpoint(reimpl.optim.RMSprop):
    def state_dict(self):
        saved = copy.deepcopy(super().state_dict())
        for state in saved["state"].values():
            state["square_avg"].zero_()
        return saved


FAULTS = {
    "dropped second bias correction": ("Adam", faulty(reimpl.optim.Adam, without_bias_correction)),
    "dropped first bias correction": ("Adam", faulty(reimpl.optim.Adam, without_first_bias_correction)),
    "step counted late": ("Adam", faulty(reimpl.optim.Adam, one_step_late)),
    "beta off by 1e-7": ("Adam", faulty(reimpl.optim.Adam, beta_off)),
    "moved eps": ("Adam", faulty(reimpl.optim.Adam, rule=eps_moved)),
    "swapped order": ("Adam", faulty(reimpl.optim.Adam, rule=order_swapped)),
    "eps under the root": ("RMSprop", faulty(reimpl.optim.RMSprop, rule=eps_under_the_root)),
    "dampened first step": ("SGD", faulty(reimpl.optim.SGD, rule=dampened_first_step)),
    "divided before adding": ("Adagrad", faulty(reimpl.optim.Adagrad, rule=divided_before_adding)),
    "decay added to the gradient": ("AdamW", faulty(reimpl.optim.AdamW, decay_in_the_gradient)),
    "eps outside the maximum": ("Adamax", faulty(reimpl.optim.Adamax, rule=eps_outside_the_maximum)),
    "no look-ahead": ("NAdam", faulty(reimpl.optim.NAdam, momentum_without_look_ahead)),
    "threshold of 4": ("RAdam", faulty(reimpl.optim.RAdam, threshold_of_the_paper)),
    "turned gradient kept": ("Rprop", faulty(reimpl.optim.Rprop, rule=turned_gradient_kept)),
    "eta in time": ("ASGD", faulty(reimpl.optim.ASGD, eta_in_time)),
    "uncorrected moments": ("SparseAdam", faulty(reimpl.optim.SparseAdam, moments_of_a_first_step)),
    "beta2 of the next step": ("Adafactor", faulty(reimpl.optim.Adafactor, decay_from_one_step_later)),
    "one iteration less": ("Muon", faulty(reimpl.optim.Muon, one_iteration_less)),
    "state not saved": ("RMSprop", StateLeftOutOfTheCheckpoint),
}


def float32_cases(name):
    """Return the float32 cases of the loop engine, but for the long ones."""
    return [
        case
        for case in cases()
        if case.section == f"optim.{name}"
        and case.engine == "loop"
        and case.dtype == torch.float32
        and case.scenario.name in SCENARIOS_OF.get(name, ("shapes", "missing", "exchange"))
    ]


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_caught(fault):
    name, cls = FAULTS[fault]
    verdicts = [judge(cls, pair(name)[1], case) for case in float32_cases(name)]
    caught = [verdict for verdict in verdicts if not verdict.holds]
    assert caught
    assert all(verdict.difference is not None for verdict in caught)


def test_the_instrument_is_quiet_without_a_fault(name):
    cls = faulty(pair(name)[0], lambda coefficients, group, step: None)
    assert all(judge(cls, pair(name)[1], case).holds for case in float32_cases(name)[:20])


def test_lost_state_is_seen_only_where_a_checkpoint_is_loaded():
    _, cls = FAULTS["state not saved"]
    plain = {case.scenario.name: case for case in float32_cases("RMSprop") if not case.options}
    assert judge(cls, torch.optim.RMSprop, plain["shapes"]).holds
    verdict = judge(cls, torch.optim.RMSprop, plain["exchange"])
    assert not verdict.holds
    assert verdict.difference.step == plain["exchange"].scenario.exchange + 1


@pytest.mark.parametrize("fault", ["beta off by 1e-7", "moved eps", "state not saved"])
def test_fault_is_caught_by_the_real_run(fault):
    pytest.importorskip("sklearn")
    name, cls = FAULTS[fault]
    training = train(name, ours=cls)
    assert not training.holds
    assert training.learned, "the network learns all the same: accuracy would not have shown it"


def test_rules_have_their_modules_names():
    assert adagrad.Adagrad.rule is adagrad.adagrad_rule
    assert adam.Adam.rule is adam.adam_rule
