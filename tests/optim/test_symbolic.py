"""A rule written down as C does what it does on tensors."""

import itertools
import math
import warnings
from functools import cache

import pytest
import torch

from helpers import assert_same, parameters, snapshot, take_steps
from reimpl.optim.engines import Batch, foreach, fused, kernel, loop
from reimpl.optim.engines.symbolic import (
    BINARY,
    COMPARISONS,
    LOGIC,
    UNARY,
    WRITTEN,
    NotElementwiseError,
    trace_rule,
)
from reimpl.optim.optimizer import RuleOptimizer

NUMBERS = (0.0, -0.0, 0.3, 1.0, 2.0, -1.0, -0.7, 3.5, -2.5, 1e-3, math.inf, -math.inf, math.nan)
A, B = 0.3, 2.0


def in_place(method):
    """Turn a method that overwrites into a function of its operands."""
    return lambda x, *others, **kwargs: getattr(x.clone(), method)(*others, **kwargs)


def unary(name):
    yield f"x.{name}()", lambda x, y, a: getattr(x, name)()
    yield f"torch.{name}(x)", lambda x, y, a: getattr(torch, name)(x)
    if name not in ("clone", "detach"):
        yield f"x.{name}_()", lambda x, y, a: in_place(f"{name}_")(x)


def binary(name):
    if name not in ("copy", "fill"):
        yield f"x.{name}(y)", lambda x, y, a: getattr(x, name)(y)
        yield f"torch.{name}(x, y)", lambda x, y, a: getattr(torch, name)(x, y)
    if name not in ("fill", "maximum", "minimum"):
        yield f"x.{name}_(y)", lambda x, y, a: in_place(f"{name}_")(x, y)
    if name not in ("copy", "maximum", "minimum", "atan2"):
        yield f"x.{name}_(a)", lambda x, y, a: in_place(f"{name}_")(x, a)
        yield f"x.{name}_(2.0)", lambda x, y, a: in_place(f"{name}_")(x, 2.0)


def comparison(name):
    yield f"x.{name}(y)", lambda x, y, a: getattr(x, name)(y)
    yield f"x.{name}(a)", lambda x, y, a: getattr(x, name)(a)
    yield f"x.{name}_(y)", lambda x, y, a: in_place(f"{name}_")(x, y)


def logic(name):
    yield f"x.{name}(y)", lambda x, y, a: getattr(x, name)(y)
    yield f"masks.{name}", lambda x, y, a: getattr(x > 0, name)(y > 0)


EXPRESSIONS = {
    **{text: function for name in UNARY for text, function in unary(name)},
    **{text: function for name in BINARY for text, function in binary(name)},
    **{text: function for name in COMPARISONS for text, function in comparison(name)},
    **{text: function for name in LOGIC for text, function in logic(name)},
    "x.logical_not()": lambda x, y, a: x.logical_not(),
    "x.zero_()": lambda x, y, a: x.clone().zero_(),
    "x.add(y)": lambda x, y, a: x.add(y),
    "x.add(y, alpha=a)": lambda x, y, a: x.add(y, alpha=a),
    "x.add_(a)": lambda x, y, a: x.clone().add_(a),
    "x.sub(y, alpha=a)": lambda x, y, a: x.sub(y, alpha=a),
    "x.sub_(y)": lambda x, y, a: x.clone().sub_(y),
    "x.sub(1)": lambda x, y, a: x.sub(1),
    "x.addcmul(x, y)": lambda x, y, a: x.addcmul(x, y),
    "x.addcmul_(y, y, value=-a)": lambda x, y, a: x.clone().addcmul_(y, y, value=-a),
    "x.addcdiv(x, y)": lambda x, y, a: x.addcdiv(x, y),
    "x.addcdiv_(x, y, value=a)": lambda x, y, a: x.clone().addcdiv_(x, y, value=a),
    "x.lerp(y, a)": lambda x, y, a: x.lerp(y, a),
    "x.lerp(y, 1 - a)": lambda x, y, a: x.lerp(y, 1 - a),
    "x.lerp_(y, 0.1)": lambda x, y, a: x.clone().lerp_(y, 0.1),
    "x.lerp(y, x)": lambda x, y, a: x.lerp(y, x),
    "x.clamp(-1, 1)": lambda x, y, a: x.clamp(-1, 1),
    "x.clamp(min=a)": lambda x, y, a: x.clamp(min=a),
    "x.clamp(max=a)": lambda x, y, a: x.clamp(max=a),
    "x.clamp_(-a, a)": lambda x, y, a: x.clone().clamp_(-a, a),
    "x.clamp(min=y)": lambda x, y, a: x.clamp(min=y),
    "torch.clamp(x, max=0.5)": lambda x, y, a: torch.clamp(x, max=0.5),
    "x.where(y > 0, y)": lambda x, y, a: x.where(y > 0, y),
    "x.where(y > a, 0.5)": lambda x, y, a: x.where(y > a, 0.5),
    "torch.where(x > y, x, y)": lambda x, y, a: torch.where(x > y, x, y),
    "torch.where(x > a, 1.0, y)": lambda x, y, a: torch.where(x > a, 1.0, y),
    "torch.where(x > a, 1.0, -1.0)": lambda x, y, a: torch.where(x > a, 1.0, -1.0),
    "x.masked_fill(y > 0, 0.5)": lambda x, y, a: x.masked_fill(y > 0, 0.5),
    "x.masked_fill_(y > 0, a)": lambda x, y, a: x.clone().masked_fill_(y > 0, a),
    "x.copy_(y > 0)": lambda x, y, a: x.clone().copy_(y > 0),
    "x.mul_(y > 0)": lambda x, y, a: x.clone().mul_(y > 0),
    "x * (y > 0)": lambda x, y, a: x * (y > 0),
    "-x": lambda x, y, a: -x,
    "abs(x)": lambda x, y, a: abs(x),
    "~(x > 0)": lambda x, y, a: ~(x > 0),
    "x + y": lambda x, y, a: x + y,
    "2 + x": lambda x, y, a: 2 + x,
    "a + x": lambda x, y, a: a + x,
    "x - y": lambda x, y, a: x - y,
    "2 - x": lambda x, y, a: 2 - x,
    "a - x": lambda x, y, a: a - x,
    "x * y": lambda x, y, a: x * y,
    "a * x": lambda x, y, a: a * x,
    "x / y": lambda x, y, a: x / y,
    "x / a": lambda x, y, a: x / a,
    "1 / x": lambda x, y, a: 1 / x,
    "a / x": lambda x, y, a: a / x,
    "x ** y": lambda x, y, a: x**y,
    "x ** 2": lambda x, y, a: x**2,
    "x ** 3": lambda x, y, a: x**3,
    "x ** -1": lambda x, y, a: x**-1,
    "abs(x) ** a": lambda x, y, a: abs(x) ** a,
    "2 ** x": lambda x, y, a: 2**x,
    "a ** x": lambda x, y, a: a**x,
    "(x > 0) & (y > 0)": lambda x, y, a: (x > 0) & (y > 0),
    "(x > 0) | (y > 0)": lambda x, y, a: (x > 0) | (y > 0),
    "(x > 0) ^ (y > 0)": lambda x, y, a: (x > 0) ^ (y > 0),
    "x > y": lambda x, y, a: x > y,
    "x >= y": lambda x, y, a: x >= y,
    "x < a": lambda x, y, a: x < a,
    "x <= 0": lambda x, y, a: x <= 0,
    "x == y": lambda x, y, a: x == y,
    "x != y": lambda x, y, a: x != y,
    "0 < x": lambda x, y, a: 0 < x,
}


def all_expressions(param, grad, *results, a):
    for result, expression in zip(results, EXPRESSIONS.values(), strict=True):
        result.copy_(expression(param, grad, a))


@cache
def all_results(dtype):
    """Every expression for every pair of numbers: of the kernel, and of the loop."""
    found = []
    for run in (fused, loop):
        pairs = torch.tensor(list(itertools.product(NUMBERS, NUMBERS)), dtype=dtype).T
        param, grad = pairs.contiguous()
        state = [[torch.full_like(param, 7.0)] for _ in EXPRESSIONS]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            run(all_expressions, Batch([param], [grad], state, {"a": A}, maximize=False))
        found.append({name: tensor for name, (tensor,) in zip(EXPRESSIONS, state, strict=True)})
    return *found, pairs


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_expressions(expression, dtype):
    ours, expected, pairs = all_results(dtype)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    close = torch.isclose(ours[expression], expected[expression], rtol=tolerance, atol=tolerance / 100, equal_nan=True)
    assert close.all(), [
        (x.item(), y.item(), mine.item(), other.item())
        for x, y, mine, other in zip(
            *pairs[:, ~close], ours[expression][~close], expected[expression][~close], strict=True
        )
    ]


def test_every_method_is_tried():
    for name in (*UNARY, *BINARY, *COMPARISONS, *LOGIC, *WRITTEN):
        assert any(f".{name}(" in text or f".{name}_(" in text for text in EXPRESSIONS), name


SCALARS = {
    "a": lambda a, b: a,
    "a + b": lambda a, b: a + b,
    "1 + a": lambda a, b: 1 + a,
    "a - b": lambda a, b: a - b,
    "1 - a": lambda a, b: 1 - a,
    "a - -0.5": lambda a, b: a - -0.5,
    "2 * a": lambda a, b: 2 * a,
    "a * b": lambda a, b: a * b,
    "a / b": lambda a, b: a / b,
    "1 / a": lambda a, b: 1 / a,
    "a ** b": lambda a, b: a**b,
    "a ** 0.5": lambda a, b: a**0.5,
    "2 ** a": lambda a, b: 2**a,
    "-a": lambda a, b: -a,
    "-(a - b)": lambda a, b: -(a - b),
    "abs(-a)": lambda a, b: abs(-a),
    "max(a, b)": lambda a, b: max(a, b),
    "min(a, 0.1)": lambda a, b: min(a, 0.1),
    "1 - a ** b / (2 - b * a)": lambda a, b: 1 - a**b / (2 - b * a),
    "1e-30": lambda a, b: 1e-30,
    "inf": lambda a, b: math.inf,
    "-inf": lambda a, b: -math.inf,
    "nan": lambda a, b: math.nan,
    "a * inf": lambda a, b: a * math.inf,
    "an integer": lambda a, b: 3,
}


def all_scalars(param, grad, *results, a, b):
    for result, scalar in zip(results, SCALARS.values(), strict=True):
        result.copy_(param * scalar(a, b))


def test_coefficients_are_computed_in_double_precision():
    for a, b in ((A, B), (0.999, 17)):  # without another kernel
        state = [[torch.zeros(1, dtype=torch.float64)] for _ in SCALARS]
        one = torch.ones(1, dtype=torch.float64)
        fused(all_scalars, Batch([one], [one.clone()], state, {"a": a, "b": b}, maximize=False))
        for (text, scalar), (tensor,) in zip(SCALARS.items(), state, strict=True):
            assert tensor.item() == pytest.approx(scalar(a, b), rel=1e-14, nan_ok=True), text


def run(rule, engine=fused, dtype=torch.float64, **coefficients):
    """Run a rule on a parameter and one state tensor; return both."""
    maximize, grad_scale = coefficients.pop("maximize", False), coefficients.pop("grad_scale", None)
    generator = torch.Generator().manual_seed(0)
    param, grad, state = torch.randn(3, 40, dtype=dtype, generator=generator)
    engine(rule, Batch([param], [grad], [[state]], coefficients, maximize, grad_scale))
    return torch.stack([param, state])


def rebinding(param, grad, state, lr):
    """New values, old ones kept under another name, and a tensor that is two at once."""
    old, same = param.clone(), param
    same.mul_(2).add_(grad, alpha=-lr)
    old = old.mul_(3)
    state.copy_(old - param)
    param.copy_(state).neg_()
    grad = grad.add(param)
    state.add_(grad)


def swapping(param, grad, state, lr):
    old = param.clone()
    param.copy_(state)
    state.copy_(old)


def overwritten_gradient(param, grad, state, lr):
    grad.mul_(2)
    param.add_(grad, alpha=-lr)


def reading_only(param, grad, state, lr):
    param.sqrt().add_(grad)


@pytest.mark.parametrize("rule", [rebinding, swapping, overwritten_gradient, reading_only])
@pytest.mark.parametrize("maximize", [False, True])
def test_names_and_values(rule, maximize):
    found = run(rule, lr=0.1, maximize=maximize)
    torch.testing.assert_close(found, run(rule, loop, lr=0.1, maximize=maximize), rtol=1e-12, atol=1e-14)


def test_the_gradient_stays():
    param, grad, state = torch.ones(3, 4)
    fused(overwritten_gradient, Batch([param], [grad], [[state]], {"lr": 0.1}, maximize=False))
    assert torch.equal(grad, torch.ones(4))


def test_maximize_and_scale():
    found = run(overwritten_gradient, lr=0.1, maximize=True, grad_scale=4.0)
    expected = run(overwritten_gradient, lr=-0.1 / 4)
    torch.testing.assert_close(found, expected)


# Decisions.


def deciding(param, grad, state, lr, limit):
    if lr > limit:
        param.add_(grad, alpha=-limit)
    elif lr == 0:
        state.zero_()
    else:
        param.add_(grad, alpha=-lr)


def chained(param, grad, state, lr, limit):
    if not 0 <= lr < limit:
        param.add_(grad)
    if limit:
        param.mul_(lr if lr >= 0.5 else 1 - lr)


@pytest.mark.parametrize("rule", [deciding, chained])
def test_a_decision_by_coefficients_makes_a_kernel_for_each_answer(rule, monkeypatch):
    monkeypatch.setattr(kernel, "KERNELS", {})
    cases = [(0.1, 0.5), (0.2, 0.6), (0.9, 0.5), (0.0, 0.5), (0.8, 0.3), (0.0, 0.1), (0.3, 0.9), (0.7, 0.9)]
    for lr, limit in cases * 2:
        found, expected = (run(rule, engine, lr=lr, limit=limit) for engine in (fused, loop))
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    (kernels,) = kernel.KERNELS.values()
    assert len(kernels) == 3
    assert not any(isinstance(known, str) for known in kernels)


def by_constant(param, grad, state, lr, mode):
    if mode == "fast" or mode is True:
        param.add_(grad, alpha=-lr)
    elif mode is None:
        state.add_(grad, alpha=lr)


def test_coefficients_that_are_no_numbers():
    for mode in ("fast", "slow", True, False, None):
        torch.testing.assert_close(run(by_constant, lr=0.1, mode=mode), run(by_constant, loop, lr=0.1, mode=mode))


# What cannot be written down.


def if_an_element(param, grad, state, lr):
    if grad > 0:
        param.add_(grad)


def norm(param, grad, state, lr):
    param.add_(grad / grad.norm(), alpha=-lr)


def torch_norm(param, grad, state, lr):
    param.add_(grad / torch.linalg.vector_norm(grad), alpha=-lr)


def mean_in_place(param, grad, state, lr):
    param.add_(grad.mean())


def root_of_a_coefficient(param, grad, state, lr):
    param.add_(grad, alpha=-math.sqrt(lr))


def another_tensor(param, grad, state, lr):
    param.add_(torch.ones(40))


def tensor_first(param, grad, state, lr):
    param.copy_(torch.mul(torch.ones(40), grad))


def text(param, grad, state, lr):
    param.add_(grad, alpha=lr * "2")


def unknown_option(param, grad, state, lr):
    param.div_(grad, rounding_mode="floor")


IMPOSSIBLE = {
    if_an_element: "it decides by an element's value; `torch.where` would do it for each element",
    norm: "it calls `norm`, which the fused engine has not",
    torch_norm: "which the fused engine has not",
    mean_in_place: "it calls `mean`, which the fused engine has not",
    root_of_a_coefficient: r"it turns a coefficient into a number; `x \*\* 0.5` does what `math.sqrt\(x\)` would",
    another_tensor: "it combines an element with Tensor",
    tensor_first: "it calls `torch.mul` with Tensor first",
    text: "it combines a coefficient with str",
    unknown_option: "it calls `div`, which the fused engine has not",
}


@pytest.mark.parametrize("rule", IMPOSSIBLE, ids=lambda rule: rule.__name__)
def test_what_is_not_elementwise(rule):
    with pytest.raises(NotElementwiseError, match=IMPOSSIBLE[rule]):
        trace_rule(rule, ["param", "grad", "state"], {"lr": 0.1})


@pytest.mark.parametrize("rule", [norm, mean_in_place, root_of_a_coefficient], ids=lambda rule: rule.__name__)
def test_lists_take_it_over(rule):
    with pytest.warns(RuntimeWarning, match=f"the foreach engine takes over {rule.__name__}"):
        found = run(rule, lr=0.1)
    assert torch.equal(found, run(rule, foreach, lr=0.1))


# A rule of someone else's.


def lion_rule(param, grad, exp_avg, lr, beta1, beta2, weight_decay):
    """Chen et al., "Symbolic Discovery of Optimization Algorithms", 2023."""
    param.mul_(1 - lr * weight_decay)
    update = exp_avg * beta1 + grad * (1 - beta1)
    param.add_(torch.sign(update), alpha=-lr)
    exp_avg.lerp_(grad, 1 - beta2)


class Lion(RuleOptimizer):
    rule = staticmethod(lion_rule)
    counts_steps = reads_steps = False

    def __init__(self, params, lr=1e-2, betas=(0.9, 0.99), weight_decay=0.0, foreach=None, fused=None, maximize=False):
        super().__init__(
            params,
            {
                "lr": lr,
                "betas": betas,
                "weight_decay": weight_decay,
                "foreach": foreach,
                "fused": fused,
                "maximize": maximize,
                "differentiable": False,
            },
        )

    def new_state(self, group):
        return {"exp_avg": torch.zeros_like}

    def coefficients(self, group, step, param):
        beta1, beta2 = group["betas"]
        return {"lr": group["lr"], "beta1": beta1, "beta2": beta2, "weight_decay": group["weight_decay"]}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.complex128])
@pytest.mark.parametrize("options", [{}, {"weight_decay": 0.1}, {"maximize": True, "lr": torch.tensor(0.5)}], ids=str)
def test_lion(dtype, options):
    ends = [
        take_steps(Lion(parameters(dtype), **options, **engine), 5) for engine in ({"fused": True}, {"foreach": False})
    ]
    first, second = map(snapshot, ends)
    for key, tensor in first.items():
        rtol = 1e-5 if dtype == torch.float32 else 1e-12
        torch.testing.assert_close(tensor, second[key], rtol=rtol, atol=rtol / 10)
    again = Lion(parameters(dtype), **options, fused=True)
    again.load_state_dict(ends[0].state_dict())
    assert_same(
        {key: value for key, value in snapshot(again).items() if "state" in key},
        {key: value for key, value in first.items() if "state" in key},
    )
