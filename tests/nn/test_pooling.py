"""The pooling layers, where torch's table of modules does not look."""

import itertools
import pickle

import pytest
import torch

import reimpl.nn
import reimpl.nn.functional
from layers import assert_same, observe, pair

DIMENSIONS = (1, 2, 3)
NAMES = [f"{kind}Pool{n}d" for kind in ("Max", "Avg", "AdaptiveMax", "AdaptiveAvg") for n in DIMENSIONS]


def signal(name, *leading, dtype=torch.float32):
    """Return a batch for a layer, or with `leading` dimensions that differ from (2, 3)."""
    n = int(name[-2])
    shape = (*(leading or (2, 3)), *(9, 8, 7)[:n])
    return torch.randn(shape, generator=torch.Generator().manual_seed(n)).to(dtype).requires_grad_()


def check(name, *args, x=None, **kwargs):
    seen = [observe(lambda: cls(*args, **kwargs), (signal(name) if x is None else x,), {}) for cls in pair(name)]  # noqa: B023
    assert_same(*seen)
    return seen[0]


@pytest.mark.parametrize("n", DIMENSIONS)
def test_options_of_max_pooling(n):
    for stride, padding, dilation, ceil_mode, indices in itertools.product(
        (None, 2), (0, 1), (1, 2), (False, True), (False, True)
    ):
        seen = check(f"MaxPool{n}d", 3, stride, padding, dilation, indices, ceil_mode)
        assert "error" not in seen
        assert ("output 1" in seen) == indices
    each = tuple(range(2, 2 + n))
    check(f"MaxPool{n}d", each, stride=each[::-1], padding=(1,) * n, dilation=(1,) * n)
    check(f"MaxPool{n}d", list(each))


@pytest.mark.parametrize("n", DIMENSIONS)
def test_options_of_average_pooling(n):
    for stride, padding, ceil_mode, count_include_pad in itertools.product(
        (None, 2), (0, 1), (False, True), (False, True)
    ):
        assert "error" not in check(f"AvgPool{n}d", 3, stride, padding, ceil_mode, count_include_pad)
        if n > 1:
            for divisor in (1, 5, -3, 0):
                check(f"AvgPool{n}d", 3, stride, padding, ceil_mode, count_include_pad, divisor)
    each = tuple(range(2, 2 + n))
    check(f"AvgPool{n}d", each, stride=each[::-1], padding=(1,) * n)
    check(f"AvgPool{n}d", list(each))


@pytest.mark.parametrize("n", DIMENSIONS)
def test_sizes_of_adaptive_pooling(n):
    for size in (1, 5, 20, 0, -1, None, (None,) * n, (2,) * n, [3] * n, (2,) * (n + 1), ()):
        check(f"AdaptiveAvgPool{n}d", size)
        for indices in (False, True):
            check(f"AdaptiveMaxPool{n}d", size, indices)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "dtype",
    [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool],
    ids=str,
)
def test_dtypes(name, dtype):
    x = signal(name).detach().mul(5).to(dtype)
    check(name, 2, x=x.requires_grad_() if dtype.is_floating_point else x)


@pytest.mark.parametrize("name", NAMES)
def test_inputs_that_a_user_may_pass(name):
    n = int(name[-2])
    for leading in ((3,), (0, 3), (2, 0), (0,), (1, 2, 2, 2)):
        check(name, 2, x=signal(name, *leading))
    check(name, 2, x=signal(name).detach().transpose(0, -1).requires_grad_())
    if n > 1:
        memory_format = (torch.channels_last, torch.channels_last_3d)[n - 2]
        x = signal(name).detach().contiguous(memory_format=memory_format)
        check(name, 2, x=x.requires_grad_())
        outputs = [cls(2)(x) for cls in pair(name)]
        assert outputs[0].stride() == outputs[1].stride()
    with torch.autocast("cpu", torch.bfloat16):
        check(name, 2)
    on_meta = [cls(2)(torch.empty(2, 3, *[9] * n, device="meta")) for cls in pair(name)]
    assert on_meta[0].shape == on_meta[1].shape


@pytest.mark.parametrize("name", NAMES)
def test_from_first_principles(name):
    layer = pair(name)[0](3)
    x = signal(name)
    outputs = [layer(x)]
    layer.functional = reimpl.nn.functional
    outputs.append(layer(x))
    assert type(outputs[1].grad_fn).__name__ != type(outputs[0].grad_fn).__name__
    torch.testing.assert_close(*outputs)
    torch.testing.assert_close(*(torch.autograd.grad(output.square().sum(), x)[0] for output in outputs))
    again = pickle.loads(pickle.dumps(layer))
    assert again.functional is reimpl.nn.functional
    assert torch.equal(again(x), outputs[1])


@pytest.mark.parametrize("n", DIMENSIONS)
def test_indices_undo_the_pooling(n):
    x = signal(f"MaxPool{n}d")
    maxima, indices = pair(f"MaxPool{n}d")[0](2, return_indices=True)(x)
    unpooled = getattr(torch.nn, f"MaxUnpool{n}d")(2)(maxima, indices, output_size=x.shape)
    assert torch.equal(unpooled[unpooled != 0], x[unpooled != 0])
    assert unpooled.count_nonzero() == maxima.numel()


def test_an_average_pooling_layer_of_an_old_torch():
    for cls in pair("AvgPool3d"):
        layer = cls(2)
        state = layer.__getstate__() if hasattr(layer, "__getstate__") else dict(layer.__dict__)
        for name in ("padding", "ceil_mode", "count_include_pad"):
            del state[name]
        old = cls.__new__(cls)
        old.__setstate__(state)
        assert (old.padding, old.ceil_mode, old.count_include_pad) == (0, False, True)


def test_global_pooling_ends_a_network():
    features = torch.randn(4, 6, 5, 7, generator=torch.Generator().manual_seed(9))
    head = torch.nn.Sequential(reimpl.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    torch.testing.assert_close(head(features), features.mean((2, 3)))
