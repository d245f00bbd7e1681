"""Each statistic is what its formula says, of whatever the tensors are."""

import math

import pytest
import torch

import reimpl
import reimpl.optim
from helpers import parameters, set_gradients, take_steps
from reimpl.watch.statistics import SECOND_MOMENTS, state_tensors


def statistics(optimizer, step=None, **options):
    """Return what one step is said to have done."""
    found = {}
    with reimpl.watch(optimizer, lambda _, scalars, __: found.update(scalars), **options):
        (step or optimizer.step)()
    return found


def flat(tensors):
    """Return all elements, real and in float64."""
    real = [torch.view_as_real(one) if one.is_complex() else one for one in (x.detach().to_dense() for x in tensors)]
    return torch.cat([one.double().flatten() for one in real])


DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("package", [reimpl.optim, torch.optim])
def test_formulas(package, dtype):
    params = parameters(dtype)
    optimizer = take_steps(package.Adam(params, lr=0.1, amsgrad=True), 2)
    set_gradients(params, 2)
    params[0].grad[0, :2] = 0
    before = [param.detach().clone() for param in params]
    found = statistics(optimizer)
    theta, delta = flat(before), flat(params) - flat(before)
    grad = flat([param.grad for param in params])
    expected = {
        "lr": 0.1,
        "param_norm": theta.norm(),
        "grad_norm": grad.norm(),
        "zero_grads": (grad == 0).double().mean(),
        "update_norm": delta.norm(),
        "zero_updates": (delta == 0).double().mean(),
        "step_size": delta.norm() / theta.norm(),
    }
    for name in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"):
        values = flat([optimizer.state[param][name] for param in params])
        if name == "exp_avg":
            expected[f"{name}_norm"] = values.norm()
        else:
            expected |= {f"{name}_{what}": getattr(values, what)() for what in ("mean", "min", "max")}
    assert found.keys() == {f"group0/{name}" for name in expected}
    assert expected["zero_grads"] > 0
    for name, value in expected.items():
        # Norms are float32 sums: measured 2e-7. An update in half precision is a difference that is rounded once more.
        bound = {torch.bfloat16: 3e-3, torch.float16: 3e-4}.get(dtype, 1e-6)
        assert found[f"group0/{name}"] == pytest.approx(float(value), rel=bound), name


def test_groups_are_told_apart():
    params = parameters()
    optimizer = torch.optim.SGD([{"params": params[:1]}, {"params": params[1:], "lr": 0.5}], lr=0.1)
    set_gradients(params, 0)
    found = statistics(optimizer)
    for index, (lr, part) in enumerate(((0.1, params[:1]), (0.5, params[1:]))):
        norm = flat([param.grad for param in part]).norm().item()
        assert found[f"group{index}/lr"] == lr
        assert found[f"group{index}/grad_norm"] == pytest.approx(norm)
        assert found[f"group{index}/update_norm"] == pytest.approx(lr * norm)


def test_bfloat16_swallows_updates():
    """1e-3 is less than half of the distance to bfloat16's next number at 1, and more than that at 1/64."""
    shares = {}
    for dtype in (torch.float32, torch.bfloat16):
        param = torch.tensor([1.0] * 3 + [2.0**-6], dtype=dtype, requires_grad=True)
        param.grad = torch.ones_like(param)
        found = statistics(torch.optim.SGD([param], lr=1e-3))
        shares[dtype] = found["group0/zero_updates"]
        assert found["group0/zero_grads"] == 0
    assert shares == {torch.float32: 0, torch.bfloat16: 0.75}


@pytest.mark.parametrize("name", ["SGD", "Adagrad"])
@pytest.mark.parametrize("package", [reimpl.optim, torch.optim])
def test_sparse_gradients(package, name):
    embedding = torch.nn.Embedding(5, 4, sparse=True)
    optimizer = getattr(package, name)(embedding.parameters(), lr=0.1)
    embedding(torch.tensor([1, 3, 1])).sum().backward()
    found = statistics(optimizer, histograms=1)
    assert found["group0/grad_norm"] == pytest.approx(math.sqrt(4 * (4 + 1)))
    assert found["group0/zero_grads"] == found["group0/zero_updates"] == pytest.approx(0.6)
    assert embedding.weight.grad.is_sparse
    assert not embedding.weight.grad.is_coalesced()


def test_clipping():
    """The share of the logged steps whose gradient was clipped, by the norm over all groups."""
    params = parameters()
    optimizer = torch.optim.SGD([{"params": params[:1]}, {"params": params[1:]}], lr=0.0)
    found = []
    reimpl.watch(optimizer, lambda _, scalars, __: found.append(scalars), max_norm=2.0)
    for number, size in enumerate((5.0, 1.0, 1.999, 2.0, 1e-3, 1e6)):
        set_gradients(params, number)
        norm = torch.nn.utils.get_total_norm([param.grad for param in params])
        for param in params:
            param.grad.mul_(size / norm)
        torch.nn.utils.clip_grad_norm_(params, 2.0)
        optimizer.step()
        assert found[-1]["all/grad_norm"] == pytest.approx(min(size, 2.0), rel=1e-5)
    # 1.999 was not clipped, but is within a thousandth.
    assert [scalars["all/clipped"] for scalars in found] == pytest.approx([1, 1 / 2, 2 / 3, 3 / 4, 3 / 5, 4 / 6])


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_said(value):
    params = parameters()
    set_gradients(params, 0)
    params[1].grad[2] = value
    found = statistics(torch.optim.Adam(params), max_norm=1.0)
    for name in ("group0/grad_norm", "group0/exp_avg_norm", "group0/exp_avg_sq_max", "all/grad_norm"):
        assert found[name] == pytest.approx(value, nan_ok=True), name
    assert math.isnan(found["group0/update_norm"])


def test_ratios_without_a_denominator_are_left_out():
    param = torch.zeros(3, requires_grad=True)
    param.grad = torch.ones(3)
    found = statistics(torch.optim.SGD([param], lr=0.1))
    assert found["group0/param_norm"] == 0
    assert "group0/step_size" not in found


def test_tiny_and_huge_values():
    """Second moments are not squared, and squares of norms are summed in float64."""
    for size in (1e-15, 1e15):
        params = [torch.full((4,), size, requires_grad=True) for _ in range(4)]
        for param in params:
            param.grad = torch.full((4,), size)
        found = statistics(torch.optim.Adam(params, betas=(0.9, 0.5)))
        assert found["group0/grad_norm"] == pytest.approx(4 * size)
        assert found["group0/exp_avg_sq_mean"] == pytest.approx(size**2 / 2)


def test_scalar_state_is_left_out():
    """Step counts and the like; but not the state of a 0-dim parameter among others."""
    params = parameters()
    set_gradients(params, 0)
    optimizer = torch.optim.NAdam(params)
    found = statistics(optimizer)
    assert {name for name in found if "_avg" not in name} == {
        f"group0/{name}"
        for name in ("lr", "param_norm", "grad_norm", "zero_grads", "update_norm", "zero_updates", "step_size")
    }
    expected = flat([optimizer.state[param]["exp_avg"] for param in params]).norm().item()
    assert found["group0/exp_avg_norm"] == pytest.approx(expected)


def test_second_moments_of_ones_own():
    class Own(reimpl.optim.RuleOptimizer):
        @staticmethod
        def rule(param, grad, power, *, lr=0.1):
            power.add_(grad * grad)
            param.sub_(grad, alpha=lr)

    params = parameters()
    set_gradients(params, 0)
    assert "group0/power_norm" in statistics(Own(params))
    SECOND_MOMENTS.add("power")
    try:
        assert "group0/power_mean" in statistics(Own(params))
    finally:
        SECOND_MOMENTS.remove("power")


def test_every_second_moment_of_torchs_is_known():
    """What an optimizer divides by is never negative; what is not known as such is, in some element."""
    for name in ("Adagrad", "RMSprop", "Adadelta", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "Adafactor"):
        params = parameters(shapes=((7, 3), (5,)))
        options = {"RMSprop": {"centered": True, "momentum": 0.9}, "Adam": {"amsgrad": True}}.get(name, {})
        optimizer = take_steps(getattr(torch.optim, name)(params, **options), 2)
        state = state_tensors([optimizer.state[param] for param in params])
        for kind, tensors in state.items():
            assert (flat(tensors) >= 0).all() == (kind in SECOND_MOMENTS), (name, kind)
