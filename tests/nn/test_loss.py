"""The modules of the losses: what PyTorch's table of modules does not reach."""

import copy
import itertools
import pickle
import warnings

import pytest
import torch

import reimpl.nn
import reimpl.nn.functional
from layers import assert_same, observe, pair

NAMES = ("NLLLoss", "CrossEntropyLoss")
WEIGHT = torch.tensor([0.5, 2.0, 0.0, 1.0])
INPUTS = {
    "samples": (torch.Size([6, 4]), torch.tensor([0, 3, 1, -100, 2, 1])),
    "sequences": (torch.Size([2, 4, 3]), torch.tensor([[0, 3, 1], [-100, 2, 1]])),
    "images": (torch.Size([1, 4, 2, 3]), torch.tensor([[[0, 3, 1], [-100, 2, 1]]])),
    "volumes": (torch.Size([1, 4, 1, 2, 3]), torch.tensor([[[[0, 3, 1], [-100, 2, 1]]]])),
    "one sample": (torch.Size([4]), torch.tensor(3)),
}


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("weight", [None, WEIGHT], ids=["plain", "weighted"])
@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize("name", NAMES)
def test_every_option_gives_the_bits_of_torch(name, kind, weight, reduction):
    shape, target = INPUTS[kind]
    x = randn(*shape).requires_grad_()
    smoothings = ({}, {"label_smoothing": 0.2}) if name == "CrossEntropyLoss" else ({},)
    for smoothing, ignored in itertools.product(smoothings, (-100, 1)):
        given = target.clamp(min=0) if ignored == 1 else target
        options = {"weight": weight, "ignore_index": ignored, "reduction": reduction, **smoothing}
        assert_same(*(observe(lambda: cls(**options), (x, given), {}) for cls in pair(name)))  # noqa: B023


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weight", [None, WEIGHT], ids=["plain", "weighted"])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_probabilities(reduction, weight, smoothing):
    x, target = randn(5, 4).requires_grad_(), randn(5, 4, seed=1).softmax(1).requires_grad_()
    options = {"weight": weight, "reduction": reduction, "label_smoothing": smoothing}
    assert_same(*(observe(lambda: cls(**options), (x, target), {}) for cls in pair("CrossEntropyLoss")))  # noqa: B023


@pytest.mark.parametrize("name", NAMES)
def test_deprecated_arguments(name):
    for size_average, reduce in itertools.product((None, True, False), repeat=2):
        options = {"size_average": size_average, "reduce": reduce, "reduction": "none"}
        x = randn(3, 4).requires_grad_()
        seen = [observe(lambda: cls(**options), (x, torch.tensor([1, 0, 3])), {}) for cls in pair(name)]  # noqa: B023
        assert_same(*seen)
        assert bool(seen[0]["warnings"]) == (size_average is not None or reduce is not None)


@pytest.mark.parametrize("name", NAMES)
def test_the_warning_shows_the_callers_line(name):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pair(name)[0](reduce=False)
    assert caught[0].filename == __file__


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("reduction", ["none", "mean", "sum", "elementwise_mean", "unheard of"])
def test_everything_ignored_and_unknown_reductions(name, reduction):
    x = randn(3, 4).requires_grad_()
    options = {"reduction": reduction}
    target = torch.full((3,), -100)
    assert_same(*(observe(lambda: cls(**options), (x, target), {}) for cls in pair(name)))  # noqa: B023


@pytest.mark.parametrize("name", NAMES)
def test_the_weight_is_a_buffer(name):
    ours, theirs = (cls(WEIGHT) for cls in pair(name))
    assert list(ours.state_dict()) == list(theirs.state_dict()) == ["weight"]
    assert not list(pair(name)[0]().state_dict())
    assert ours.double().weight.dtype == torch.float64
    theirs.load_state_dict(ours.state_dict())
    assert repr(ours) == repr(theirs)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", INPUTS)
def test_from_first_principles(name, kind):
    shape, target = INPUTS[kind]
    x = randn(*shape).log_softmax(0 if len(shape) == 1 else 1).requires_grad_()
    results = []
    for functional in (reimpl.nn.functional, torch.nn.functional):
        layer = pair(name)[0](WEIGHT)
        layer.functional = functional
        loss = layer(x, target)
        results.append((loss, *torch.autograd.grad(loss, x, torch.tensor(1.7))))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("name", NAMES)
def test_copies(name):
    layer = pair(name)[0](WEIGHT, ignore_index=2, reduction="sum")
    layer.functional = reimpl.nn.functional
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert other.functional is reimpl.nn.functional
        assert (other.ignore_index, other.reduction) == (2, "sum")
        assert torch.equal(other.weight, WEIGHT)
