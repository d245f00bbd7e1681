"""`TensorList` answers like its tensors."""

import pytest
import torch

from reimpl.optim.engines import Batch, TensorList, foreach


def lists(count=3):
    return [TensorList([torch.rand(4) + 0.5, torch.rand(2, 3) + 0.5]) for _ in range(count)]


def assert_each(result, expected):
    assert isinstance(result, TensorList)
    for tensor, value in zip(result.tensors, expected, strict=True):
        torch.testing.assert_close(tensor, value, rtol=1e-6, atol=1e-7)


METHODS = {
    "add": (1, {"alpha": 0.3}),
    "addcmul": (2, {"value": -0.5}),
    "addcdiv": (2, {"value": 0.7}),
    "mul": (1, {}),
    "div": (1, {}),
    "clamp_min": (1, {}),
    "sqrt": (0, {}),
    "neg": (0, {}),
    "square": (0, {}),  # torch has no foreach of it
    "hypot": (1, {}),  # nor of this
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("in_place", [False, True])
def test_methods(method, in_place):
    count, kwargs = METHODS[method]
    receiver, *operands = lists(1 + count)
    expected = [
        getattr(tensor, method)(*(operand.tensors[i] for operand in operands), **kwargs)
        for i, tensor in enumerate(receiver.tensors)
    ]
    before = [tensor.clone() for tensor in receiver.tensors]
    result = getattr(receiver, method + "_" * in_place)(*operands, **kwargs)
    assert_each(result, expected)
    assert (result is receiver) == in_place
    if not in_place:
        assert_each(receiver, before)


def test_lerp_with_a_number():
    start, end = lists(2)
    assert_each(start.lerp(end, 0.3), [a.lerp(b, 0.3) for a, b in zip(start.tensors, end.tensors, strict=True)])


def test_lerp_with_a_list():
    start, end, weight = lists(3)
    expected = [a.lerp(b, w) for a, b, w in zip(start.tensors, end.tensors, weight.tensors, strict=True)]
    assert_each(start.lerp_(end, weight), expected)


OPERATORS = {
    "-x": lambda x, other: -x,
    "x + y": lambda x, other: x + other,
    "y + x": lambda x, other: 2.0 + x,
    "x - y": lambda x, other: x - other,
    "y - x": lambda x, other: 1 - x,
    "x * y": lambda x, other: x * other,
    "y * x": lambda x, other: 3 * x,
    "x / y": lambda x, other: x / other,
    "y / x": lambda x, other: 0.1 / x,
    "x ** y": lambda x, other: x**0.5,
    "y ** x": lambda x, other: 0.9**x,
}


@pytest.mark.parametrize("operator", OPERATORS)
def test_operators(operator):
    left, right = lists(2)
    expected = [OPERATORS[operator](a, b) for a, b in zip(left.tensors, right.tensors, strict=True)]
    before = [tensor.clone() for tensor in left.tensors]
    assert_each(OPERATORS[operator](left, right), expected)
    assert_each(left, before)


@pytest.mark.parametrize("scale", [torch.tensor(0.3), "list"], ids=["a tensor", "a list"])
@pytest.mark.parametrize(("method", "option"), [("add_", "alpha"), ("addcmul_", "value"), ("addcdiv_", "value")])
def test_coefficients_that_are_tensors(method, option, scale):
    """They are folded into the first operand: nothing is read back to the host."""
    receiver, *operands = lists(2 if method == "add_" else 3)
    factors = [0.3, 0.3] if isinstance(scale, torch.Tensor) else [0.3, 0.7]
    expected = [
        getattr(tensor.clone(), method)(*(operand.tensors[i] for operand in operands), **{option: factors[i]})
        for i, tensor in enumerate(receiver.tensors)
    ]
    given = TensorList([torch.tensor(factor) for factor in factors]) if isinstance(scale, str) else scale
    assert_each(getattr(receiver, method)(*operands, **{option: given}), expected)


def test_length_and_repr():
    (some,) = lists(1)
    assert len(some) == 2
    assert repr(some).startswith("TensorList([tensor(")


def test_no_special_method_is_invented():
    (some,) = lists(1)
    with pytest.raises(AttributeError):
        some.__array__()


def test_unknown_method():
    with pytest.raises(AttributeError, match="no_such_method"):
        lists(1)[0].no_such_method()


def test_engine_calls_the_rule_once_with_the_lists():
    calls = []
    params, grads, state = ([torch.ones(2), torch.ones(3)] for _ in range(3))
    batch = Batch(params, grads, [state, None], {"lr": 0.5}, maximize=True)
    foreach(lambda *args, **kwargs: calls.append((args, kwargs)), batch)
    (((param, grad, first, second), coefficients),) = calls
    assert param.tensors is params
    assert_each(grad, [-tensor for tensor in grads])
    assert first.tensors is state
    assert second is None
    assert coefficients == {"lr": 0.5}
    assert torch.equal(grads[0], torch.ones(2))
