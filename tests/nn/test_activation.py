"""Activations as modules: what PyTorch's table of modules leaves out."""

import inspect
import pickle
import warnings

import pytest
import torch

import reimpl.nn
import reimpl.nn.functional
from layers import assert_same, observe, pair
from reimpl.verify.distance import same_bits

ELEMENTWISE = ("Sigmoid", "ReLU", "Tanh")
ALONG_DIM = ("Softmax", "LogSoftmax")
SHAPES = [(), (4,), (3, 4), (2, 3, 4), (2, 3, 4, 5), (2, 2, 3, 2, 2), (0, 3), (3, 0)]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def both(name, *arguments, **options):
    """Return what makes our layer and torch's."""
    return [lambda cls=cls: cls(*arguments, **options) for cls in pair(name)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_every_shape_and_dtype(name, shape, dtype):
    x = torch.randn(shape).mul(5).to(dtype).requires_grad_()
    assert_same(*(observe(make, (x,), {}) for make in both(name)))


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool, torch.complex64], ids=str)
@pytest.mark.parametrize("name", [*ELEMENTWISE, *ALONG_DIM])
def test_what_is_not_real_is_taken_or_refused_as_torch_does(name, dtype):
    x = torch.tensor([[3, 0, 1], [1, 2, 0]]).to(dtype)
    arguments = (1,) if name in ALONG_DIM else ()
    seen = [observe(make, (x,), {}) for make in both(name, *arguments)]
    assert_same(*seen)


@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
@pytest.mark.parametrize("dim", [None, 0, 1, -1, -2, 3])
@pytest.mark.parametrize("name", ALONG_DIM)
def test_every_dim_and_the_one_chosen_without(name, dim, dtype):
    for shape in SHAPES:
        x = torch.randn(shape).mul(5).to(dtype).requires_grad_()
        assert_same(*(observe(make, (x,), {}) for make in both(name, dim=dim)))


@pytest.mark.parametrize("functional", [torch.nn.functional, reimpl.nn.functional], ids=["kernels", "principles"])
@pytest.mark.parametrize("name", ALONG_DIM)
def test_the_warning_points_where_torchs_does(name, functional):
    ours, theirs = (cls() for cls in pair(name))
    ours.functional = functional
    caught = []
    for layer in (ours, theirs):
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            layer(torch.ones(2, 2))
        caught.append([(w.category, str(w.message), w.filename, w.lineno) for w in found])
    assert len(caught[0]) == 1
    assert caught[0] == caught[1]


@pytest.mark.parametrize("name", ALONG_DIM)
def test_pickles_older_than_dim(name):
    layer = pair(name)[0](1)
    del layer.dim
    assert pickle.loads(pickle.dumps(layer)).dim is None
    assert pickle.loads(pickle.dumps(pair(name)[0](1))).dim == 1


@pytest.mark.parametrize("functional", [torch.nn.functional, reimpl.nn.functional], ids=["kernels", "principles"])
def test_relu_in_place(functional):
    layer = reimpl.nn.ReLU(inplace=True)
    layer.functional = functional
    leaf = torch.tensor([-1.0, 0.0, 2.0, float("nan")], requires_grad=True)
    x = leaf * 1
    y = layer(x)
    assert y is x
    y.backward(torch.ones(4))
    assert leaf.grad.tolist() == [0, 0, 1, 1]
    with pytest.raises(RuntimeError, match="a leaf Variable that requires grad is being used in an in-place operation"):
        layer(leaf)


@pytest.mark.parametrize("inplace", [False, True])
def test_relu_in_place_has_torchs_bits(inplace):
    x = torch.randn(4, 5, requires_grad=True)
    assert_same(*(observe(make, (x,), {}) for make in both("ReLU", inplace)))
    assert [repr(make()) for make in both("ReLU", inplace)] == [f"ReLU({'inplace=True' if inplace else ''})"] * 2


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_memory_format_is_kept(name):
    x = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    layer = pair(name)[0]()
    for functional in (torch.nn.functional, reimpl.nn.functional):
        layer.functional = functional
        assert layer(x).is_contiguous(memory_format=torch.channels_last)


def test_softmax_passes_on_what_torchs_passes():
    seen = []

    class Functional:
        @staticmethod
        def softmax(input, dim, _stacklevel):
            seen.append((dim, _stacklevel))
            return input

    layer = reimpl.nn.Softmax(2)
    layer.functional = Functional
    layer(torch.ones(1))
    assert seen == [(2, 5)]
    assert "_stacklevel=5" in inspect.getsource(torch.nn.Softmax.forward)


def test_a_second_softmax_bounds_the_loss_from_below():
    scores = torch.full((1, 10), -50.0)
    scores[0, 3] = 50
    loss = torch.nn.functional.cross_entropy(reimpl.nn.Softmax(1)(scores), torch.tensor([3]))
    floor = torch.tensor(1 + 9 / torch.e).log()
    torch.testing.assert_close(loss, floor)
    assert same_bits(reimpl.nn.Softmax(1)(scores), torch.nn.Softmax(1)(scores))
