"""Dropout as a module: the same mask from the same seed, in every mode and dtype."""

import copy

import pytest
import torch

import reimpl.nn
import reimpl.nn.functional
from layers import assert_same, observe
from reimpl.verify.distance import same_bits

KINDS = [reimpl.nn.Dropout, torch.nn.Dropout]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("p", [0, 0.1, 0.5, 0.999, 1])
def test_bits_on_kernels_and_from_first_principles(p, inplace, training, dtype):
    def principles():
        layer = reimpl.nn.Dropout(p, inplace)
        layer.functional = reimpl.nn.functional
        return layer

    for shape in ((), (0, 3), (6, 7), (3, 4, 8, 8)):
        x = torch.randn(shape, dtype=torch.float64).to(dtype).requires_grad_()
        reference = observe(lambda: torch.nn.Dropout(p, inplace), (x,), {}, training)
        for make in (lambda: reimpl.nn.Dropout(p, inplace), principles):
            assert_same(observe(make, (x,), {}, training), reference)


@pytest.mark.parametrize("p", [-0.1, 1.1, float("inf"), "0.5", None])
def test_errors_are_torchs(p):
    errors = []
    for cls in KINDS:
        with pytest.raises((ValueError, TypeError)) as caught:
            cls(p)
        errors.append((caught.type, str(caught.value)))
    assert errors[0] == errors[1]


@pytest.mark.parametrize("functional", [torch.nn.functional, reimpl.nn.functional], ids=["kernels", "principles"])
def test_evaluation_returns_the_input_itself(functional):
    layer = reimpl.nn.Dropout(0.5).eval()
    layer.functional = functional
    x = torch.ones(3)
    state = torch.get_rng_state()
    assert layer(x) is x
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("functional", [torch.nn.functional, reimpl.nn.functional], ids=["kernels", "principles"])
def test_in_place(functional):
    layer = reimpl.nn.Dropout(0.5, inplace=True)
    layer.functional = functional
    leaf = torch.ones(100, requires_grad=True)
    x = leaf * 1
    y = layer(x)
    assert y is x
    y.sum().backward()
    assert torch.equal(leaf.grad, y.detach())
    with pytest.raises(RuntimeError, match="a leaf Variable that requires grad is being used in an in-place operation"):
        layer(leaf)
    assert leaf.unique().tolist() == [1]


@pytest.mark.parametrize("functional", [torch.nn.functional, reimpl.nn.functional], ids=["kernels", "principles"])
def test_the_mean_is_kept(functional):
    layer = reimpl.nn.Dropout(0.3)
    layer.functional = functional
    y = layer(torch.ones(100_000))
    assert y.unique().tolist() == pytest.approx([0, 1 / 0.7])
    assert y.mean().item() == pytest.approx(1, abs=0.01)
    assert y.var().item() == pytest.approx(0.3 / 0.7, abs=0.01)


def test_the_generator_goes_on_as_torchs():
    after = []
    for cls in KINDS:
        torch.manual_seed(3)
        layer = cls(0.2)
        layer(torch.ones(7))
        layer(torch.ones(5))
        after.append(torch.rand(4))
    assert same_bits(*after)


def test_attributes_can_be_changed_as_torchs():
    layer = reimpl.nn.Dropout()
    assert repr(layer) == repr(torch.nn.Dropout()) == "Dropout(p=0.5, inplace=False)"
    layer.p = 1.0
    assert not copy.deepcopy(layer)(torch.ones(5)).count_nonzero()


@pytest.mark.cuda
def test_bits_on_cuda():
    x = torch.randn(4, 5, device="cuda", requires_grad=True)
    assert_same(*(observe(lambda: cls(0.3), (x,), {}) for cls in KINDS))  # noqa: B023
