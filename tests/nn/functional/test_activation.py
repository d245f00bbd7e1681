"""Activations from first principles, where overflow, cancellation, infinities and empty rows would show a flaw."""

import math
import warnings

import pytest
import torch
import torch.nn.functional as torchs

import reimpl.nn.functional as ours
from layers import WHOLE
from reimpl.nn.functional.activation import where_nonzero
from reimpl.verify.distance import relative_error, same_bits

ELEMENTWISE = ("sigmoid", "relu", "tanh")
ALONG_DIM = ("softmax", "log_softmax")
ALL = [*((name, ()) for name in ELEMENTWISE), *((name, (-1,)) for name in ALONG_DIM)]
INF, NAN = math.inf, math.nan
EPS = torch.finfo(torch.float32).eps


def forward_and_back(function, x, *arguments, seed=1, **options):
    """Return output and gradient, with the same upstream gradient at each call."""
    leaf = x.detach().clone().requires_grad_()
    output = function(leaf, *arguments, **options)
    generator = torch.Generator().manual_seed(seed)
    output.backward(torch.randn(output.shape, generator=generator, dtype=torch.float64).to(output))
    return output.detach(), leaf.grad


def assert_as_exact(name, x, *arguments, factor=4):
    mine = forward_and_back(getattr(ours, name), x, *arguments)
    theirs = forward_and_back(getattr(torchs, name), x, *arguments)
    truth = forward_and_back(getattr(torchs, name), x.double(), *arguments)
    for what, value, reference, oracle in zip(("output", "gradient"), mine, theirs, truth, strict=True):
        assert (value.dtype, value.shape) == (reference.dtype, reference.shape)
        allowed = factor * max(relative_error(reference, oracle), torch.finfo(x.dtype).eps / 2)
        assert relative_error(value, oracle) <= allowed, what


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("scale", [1e-6, 1, 30, 1e4])
@pytest.mark.parametrize(("name", "arguments"), ALL)
def test_as_exact_as_torch(name, arguments, scale, dtype):
    x = (torch.randn(20, 30) * scale).to(dtype)
    assert_as_exact(name, x, *arguments)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("name", "arguments"), ALL)
def test_low_precision_is_rounded_once(name, arguments, dtype):
    x = torch.randn(20, 30).to(dtype)
    function = getattr(ours, name)
    assert same_bits(function(x, *arguments), function(x.float(), *arguments).to(dtype))


@pytest.mark.parametrize("name", ALONG_DIM)
def test_an_offset_costs_nothing(name):
    for offset in (1e4, -1e4):
        assert_as_exact(name, torch.randn(8, 50) + offset, 1)
    assert_as_exact(name, torch.randn(3, 50_000) * 0.1, 1)


EXTREMES = [0.0, -0.0, 1e-40, -1e-40, 1e-8, 90.0, -90.0, 104.0, -104.0, 1e4, -1e4, 1e38, -1e38, INF, -INF, NAN]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_extremes(name, dtype):
    x = torch.tensor(EXTREMES, dtype=dtype)
    mine, theirs = (forward_and_back(getattr(module, name), x) for module in (ours, torchs))
    for value, reference in zip(mine, theirs, strict=True):
        torch.testing.assert_close(
            value, reference, rtol=1e-5 if dtype != torch.bfloat16 else 1e-2, atol=0, equal_nan=True
        )
    assert same_bits(mine[0][:2], theirs[0][:2])  # the sign of a zero


def test_tanh_keeps_all_digits_of_a_small_number():
    x = torch.logspace(-30, 1, 500)
    x = torch.cat([x, -x])
    error = ((ours.tanh(x).double() - x.double().tanh()) / x.double().tanh()).abs().max()
    assert error <= 2 * EPS
    assert ours.tanh(torch.tensor(20.0, dtype=torch.float64)) == 1


ROWS = [
    [-INF, -INF, -INF],
    [-INF, 0.0, 1.0],
    [INF, 0.0, 1.0],
    [INF, -INF, 1.0],
    [NAN, 0.0, 1.0],
    [1e4, -1e4, 0.0],
    [-1e4, -1e4, -1e4],
    [1e38, -1e38, 3e38],
    [5.0, 5.0, -200.0],
]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ALONG_DIM)
def test_rows_with_infinities(name, dtype):
    for dim, x in ((1, torch.tensor(ROWS, dtype=dtype)), (0, torch.tensor(ROWS, dtype=dtype).t())):
        mine, theirs = (forward_and_back(getattr(module, name), x, dim) for module in (ours, torchs))
        for value, reference in zip(mine, theirs, strict=True):
            # torch takes the exponential of an output that is rounded already: its bfloat16 gradient is the rougher.
            rough = {"rtol": 0.05, "atol": 0} if dtype == torch.bfloat16 else {}
            torch.testing.assert_close(value, reference, equal_nan=True, **rough)


def test_log_softmax_does_not_underflow():
    x = torch.tensor([0.0, -200.0])
    assert ours.softmax(x, 0).log()[1] == -INF
    assert ours.log_softmax(x, 0).tolist() == [0, -200]


@pytest.mark.parametrize("name", ALONG_DIM)
def test_dims_and_shapes(name):
    for shape in ((), (5,), (3, 4), (2, 3, 4), (2, 3, 4, 5), (0, 3), (3, 0), (0,)):
        for dim in range(-len(shape), max(len(shape), 1)):
            x = torch.randn(shape)
            mine, theirs = (forward_and_back(getattr(module, name), x, dim) for module in (ours, torchs))
            for value, reference in zip(mine, theirs, strict=True):
                torch.testing.assert_close(value, reference)
    transposed = torch.randn(4, 6).t()[::2]
    torch.testing.assert_close(getattr(ours, name)(transposed, 0), getattr(torchs, name)(transposed, 0))


@pytest.mark.parametrize("ndim", range(5))
@pytest.mark.parametrize("name", ALONG_DIM)
def test_the_dimension_chosen_without_one(name, ndim):
    x = torch.randn((2, 3, 4, 5)[:ndim])
    results = []
    for module in (ours, torchs):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            results.append(getattr(module, name)(x))
        (warning,) = caught
        assert warning.category is UserWarning
        assert warning.filename == __file__
        assert str(warning.message) == (
            f"Implicit dimension choice for {name} has been deprecated. "
            "Change the call to include dim=X as an argument."
        )
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("name", ALONG_DIM)
def test_dtype_converts_first(name):
    for x, dtype in (
        (torch.arange(6).view(2, 3), torch.float32),
        (torch.randn(2, 3), torch.float64),
        (torch.randn(2, 3) * 5, torch.bfloat16),
        (torch.randn(2, 3).bfloat16(), torch.float32),
    ):
        mine, theirs = (getattr(module, name)(x, 1, dtype=dtype) for module in (ours, torchs))
        assert mine.dtype == dtype
        assert relative_error(mine, theirs) <= 2 * torch.finfo(dtype).eps
    x = torch.randn(2, 3)
    mine, theirs = (forward_and_back(getattr(m, name), x, 1, dtype=torch.float64) for m in (ours, torchs))
    assert mine[1].dtype == torch.float32
    torch.testing.assert_close(mine[1], theirs[1])


WRONG = [
    ("softmax", (torch.ones(2, 3, dtype=torch.int64), 1), {}),
    ("softmax", (torch.ones(2, 3, dtype=torch.int32), 0), {}),
    ("softmax", (torch.ones(2, 3), 1), {"dtype": torch.int32}),
    ("log_softmax", (torch.ones(2, 3, dtype=torch.bool), -1), {}),
    ("log_softmax", (torch.ones(2, 3, dtype=torch.complex64), 0), {}),
    *((name, (torch.ones(2, 3), dim), {}) for name in ALONG_DIM for dim in (2, -3, (0, 1), 0.5, "0")),
    ("softmax", (torch.ones(3, 0), 2), {}),
    ("softmax", (torch.tensor(1.0), 1), {}),
    ("relu", (torch.tensor([True]),), {}),
    ("relu", (torch.tensor([1j]),), {}),
    ("relu", (torch.ones(1).expand(3), True), {}),
    ("relu", (torch.ones(3, requires_grad=True), True), {}),
    ("relu_", (torch.ones(3, requires_grad=True),), {}),
]


@pytest.mark.skipif(torch.__version__ < "2.13", reason="the messages are those of torch 2.13")
@pytest.mark.parametrize(("name", "arguments", "options"), WRONG, ids=range(len(WRONG)))
def test_errors_are_torchs(name, arguments, options):
    errors = []
    for module in (ours, torchs):
        with pytest.raises(Exception) as caught:
            getattr(module, name)(*arguments, **options)
        errors.append((caught.type, str(caught.value)))
    assert errors[0] == errors[1]


@pytest.mark.parametrize("name", ["sigmoid", "tanh"])
def test_integers_become_floating_point(name):
    for dtype in (torch.int64, torch.int32, torch.uint8, torch.bool):
        x = torch.tensor([0, 1, 3, 200]).to(dtype)
        torch.testing.assert_close(getattr(ours, name)(x), getattr(torchs, name)(x))
    assert getattr(ours, name)(torch.tensor(2)).dtype == torch.float32
    torch.set_default_dtype(torch.float64)
    try:
        assert getattr(ours, name)(torch.tensor([2])).dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


def test_relu_of_integers():
    x = torch.tensor([-3, 0, 4])
    assert torch.equal(ours.relu(x), torch.tensor([0, 0, 4]))
    assert ours.relu_(x) is x
    assert x.tolist() == [0, 0, 4]


def test_complex_sigmoid():
    x = torch.randn(5, dtype=torch.complex128, requires_grad=True)
    torch.testing.assert_close(ours.sigmoid(x), torch.sigmoid(x))
    assert torch.autograd.gradcheck(ours.sigmoid, x)
    assert torch.autograd.gradgradcheck(ours.sigmoid, x)
    with pytest.raises(NotImplementedError, match=r"not written for torch\.complex128"):
        ours.tanh(x)


def test_relu_stops_an_infinite_gradient_where_it_is_closed():
    x = torch.tensor([-1.0, 0.0, 4.0], requires_grad=True)
    ours.relu(x).sqrt().sum().backward()
    assert x.grad.tolist() == [0, 0, 0.25]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_bits_of_the_relu_gradient(dtype):
    output = torch.tensor([0.0, -0.0, 1.0, NAN, INF, 1e-7]).to(dtype).repeat_interleave(6)
    grad = torch.tensor([INF, -INF, NAN, -2.5, -0.0, 1e-6]).to(dtype).repeat(6)
    expected = torch.ops.aten.threshold_backward(grad, output, 0)
    with torch.no_grad():
        assert same_bits(where_nonzero(output, grad), expected)
    assert same_bits(where_nonzero(output, grad), expected)
    with torch.no_grad():
        assert where_nonzero(output.view(6, 6), torch.ones((), dtype=dtype).expand(6, 6)).shape == (6, 6)


def test_relu_in_place():
    leaf = torch.tensor([-1.0, 0.0, 2.0], requires_grad=True)
    x = leaf * 1
    y = ours.relu(x, inplace=True)
    assert y is x
    y.backward(torch.tensor([1.0, 2.0, 3.0]))
    assert leaf.grad.tolist() == [0, 0, 3]
    with pytest.raises(RuntimeError, match="is being used in an in-place operation"):
        ours.relu_(leaf)
    assert leaf.tolist() == [-1, 0, 2]
    z = leaf.exp()
    ours.relu_(z)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        z.sum().backward()


@pytest.mark.parametrize(("name", "arguments"), ALL)
def test_gradients_of_first_and_second_order(name, arguments):
    function = getattr(ours, name)
    for x in (torch.randn(3, 4), torch.randn(4, 3).t() * 3, torch.randn(())):
        x = x.double().requires_grad_()
        assert torch.autograd.gradcheck(lambda x: function(x, *arguments), x)
        assert torch.autograd.gradgradcheck(lambda x: function(x, *arguments), x, gen_non_contig_grad_outputs=True)


@pytest.mark.parametrize(("name", "arguments"), ALL)
def test_second_order_is_torchs_where_it_saturates(name, arguments):
    seconds = []
    for module in (ours, torchs):
        x = torch.tensor([[1e4, -1e4, 0.0, 30.0]], requires_grad=True)
        y = getattr(module, name)(x, *arguments)
        (first,) = torch.autograd.grad(
            y, x, torch.tensor([[1.0, -2.0, 3.0, 0.5]], requires_grad=True), create_graph=True
        )
        seconds.append(torch.autograd.grad(first, x, torch.tensor([[2.0, 1.0, -1.0, 1.0]]), allow_unused=True)[0])
    mine, theirs = (torch.zeros(1, 4) if second is None else second for second in seconds)
    torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("name", "arguments"), ALL)
def test_compiles_whole_and_maps(name, arguments):
    function, reference = getattr(ours, name), getattr(torchs, name)
    x = torch.randn(3, 4)
    compiled = torch.compile(lambda x: function(x, *arguments), fullgraph=WHOLE, backend="aot_eager")
    for value, expected in zip(forward_and_back(compiled, x), forward_and_back(reference, x, *arguments), strict=True):
        torch.testing.assert_close(value, expected)
    torch._dynamo.reset()
    torch.testing.assert_close(torch.func.vmap(lambda x: function(x, *arguments))(x), reference(x, *arguments))

    def slope(function):
        return torch.func.vmap(torch.func.grad(lambda x: (function(x, *arguments) * x).sum()))(x)

    torch.testing.assert_close(slope(function), slope(reference))


def test_relu_in_place_compiles_whole():
    compiled = torch.compile(lambda x: ours.relu(x * 1, inplace=True), fullgraph=WHOLE, backend="aot_eager")
    output, grad = forward_and_back(compiled, torch.tensor([-1.0, 2.0]))
    assert output.tolist() == [0, 2]
    assert (grad != 0).tolist() == [False, True]
    torch._dynamo.reset()


@pytest.mark.parametrize("name", [*ELEMENTWISE, *ALONG_DIM])
def test_autocast_leaves_the_dtype_alone_on_the_cpu(name):
    arguments = (0,) if name in ALONG_DIM else ()
    for dtype in (torch.float32, torch.bfloat16):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mine, theirs = (getattr(module, name)(torch.ones(3, dtype=dtype), *arguments) for module in (ours, torchs))
        assert mine.dtype == theirs.dtype


@pytest.mark.cuda
@pytest.mark.parametrize("name", ALONG_DIM)
def test_autocast_widens_softmax_on_cuda(name):
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        with torch.autocast("cuda"):
            x = torch.ones(3, dtype=dtype, device="cuda")
            mine, theirs = (getattr(module, name)(x, 0) for module in (ours, torchs))
        assert mine.dtype == theirs.dtype


@pytest.mark.parametrize(("name", "arguments"), ALL)
def test_nothing_is_computed_for_an_input_without_gradient(name, arguments):
    x = torch.randn(2, 3)
    assert not getattr(ours, name)(x, *arguments).requires_grad
    with torch.no_grad():
        assert not getattr(ours, name)(x.requires_grad_(), *arguments).requires_grad
