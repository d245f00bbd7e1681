"""Convolution and padding from first principles: against torch, a float64 run, and the formula element by element."""

import itertools
import re

import pytest
import torch
import torch.nn.functional as theirs

import reimpl.nn.functional as ours
from layers import WHOLE, upstream
from reimpl.nn.functional import conv
from reimpl.nn.functional.windows import add_windows, windows
from reimpl.verify.distance import relative_error

FACTOR = 4
MODES = ("constant", "reflect", "replicate", "circular")
SIZES = {1: (11,), 2: (9, 8), 3: (6, 5, 7)}
OPTIONS = {
    "plain": {},
    "stride": {"stride": 2},
    "padding": {"padding": 1},
    "dilation": {"dilation": 2},
    "groups": {"groups": 2},
    "depthwise": {"groups": 4, "padding": 1},
    "multiplier": {"groups": 4, "outputs": 8, "stride": 2},
    "valid": {"padding": "valid", "stride": 2},
    "same": {"padding": "same", "dilation": 2},
    "same, even": {"padding": "same", "kernel": 2},
    "same, depthwise": {"padding": "same", "kernel": 2, "groups": 4},
    "one tap": {"kernel": 1},
    "all": {"stride": 2, "padding": 2, "dilation": 2, "groups": 2},
    "all, depthwise": {"stride": 2, "padding": 2, "dilation": 2, "groups": 4},
    "left over": {"stride": 3, "kernel": 2},
}


def make(n, kernel=3, outputs=4, groups=1, batch=(2,), dtype=torch.float64, **options):
    """Return x, weight, bias and the options that are left."""
    generator = torch.Generator().manual_seed(4)
    shapes = ((*batch, 4, *SIZES[n]), (outputs, 4 // groups, *[kernel] * n), (outputs,))
    tensors = [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]
    return tensors, {"groups": groups, **options}


def run(module, n, tensors, options):
    output = getattr(module, f"conv{n}d")(*tensors, **options)
    given = [tensor for tensor in tensors if tensor is not None and tensor.requires_grad]
    return output.detach(), *torch.autograd.grad(output, given, upstream(output))


def assert_close(tensors, n, options):
    """Assert that our error is at most a few times torch's, both against a float64 run."""
    wide = [tensor.detach().double().requires_grad_() for tensor in tensors]
    for mine, reference, truth in zip(
        run(ours, n, tensors, options), run(theirs, n, tensors, options), run(theirs, n, wide, options), strict=True
    ):
        assert (mine.shape, mine.dtype) == (reference.shape, reference.dtype)
        # Twice the rounding of one operation: sums of some twenty products are added up in one order or another.
        floor = torch.finfo(mine.dtype).eps
        assert relative_error(mine, truth) <= FACTOR * max(relative_error(reference, truth), floor)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("name", OPTIONS)
def test_as_exact_as_torch(name, n, dtype):
    tensors, options = make(n, dtype=dtype, **OPTIONS[name])
    assert_close(tensors, n, options)


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("name", OPTIONS)
def test_gradients_of_first_and_second_order(name, n):
    tensors, options = make(n, **OPTIONS[name])
    function = getattr(ours, f"conv{n}d")
    assert torch.autograd.gradcheck(lambda *args: function(*args, **options), tensors, fast_mode=True)
    assert torch.autograd.gradgradcheck(
        lambda *args: function(*args, **options), tensors, fast_mode=True, gen_non_contig_grad_outputs=True
    )


@pytest.mark.parametrize("name", ["all", "all, depthwise"])
def test_gradients_of_complex_numbers(name):
    tensors, options = make(2, dtype=torch.complex128, **OPTIONS[name])
    for mine, reference in zip(run(ours, 2, tensors, options), run(theirs, 2, tensors, options), strict=True):
        assert torch.allclose(mine, reference)
    assert torch.autograd.gradcheck(lambda *args: ours.conv2d(*args, **options), tensors, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda *args: ours.conv2d(*args, **options), tensors, fast_mode=True)


def test_the_formula_element_by_element():
    (x, weight, bias), _ = make(2, groups=2)
    stride, padding, dilation, group = (2, 1), (1, 2), (1, 2), 2
    expected = theirs.conv2d(x, weight, bias, stride, padding, dilation, 2)
    for n, m, i, j in itertools.product(*map(range, expected.shape)):
        total = bias[m]
        for c, k, l in itertools.product(*map(range, weight.shape[1:])):  # noqa: E741
            row, column = i * stride[0] + k * dilation[0] - padding[0], j * stride[1] + l * dilation[1] - padding[1]
            if 0 <= row < x.shape[2] and 0 <= column < x.shape[3]:
                total = total + weight[m, c, k, l] * x[n, m // 2 * group + c, row, column]
        assert torch.isclose(total, expected[n, m, i, j])


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_blocks_of_any_size_give_the_same(groups, monkeypatch):
    tensors, options = make(2, batch=(5,), groups=groups, padding=1)
    whole = run(ours, 2, tensors, options)
    for block in (1, 4 * 9 * 72 * 2, 4 * 11 * 10 * 3):
        monkeypatch.setattr(conv, "BLOCK", block)
        for first, second in zip(run(ours, 2, tensors, options), whole, strict=True):
            assert torch.allclose(first, second, rtol=1e-12)


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("n", SIZES)
def test_unbatched_empty_and_strided_inputs(n, groups):
    (x, weight, bias), options = make(n, groups=groups, padding=1)
    alone, *grads = run(ours, n, [x.detach()[0].requires_grad_(), weight, bias], options)
    assert torch.allclose(alone, theirs.__dict__[f"conv{n}d"](x[0], weight, bias, **options))
    assert grads[0].shape == x[0].shape

    output, *grads = run(ours, n, [x.detach()[:0].requires_grad_(), weight, bias], options)
    assert output.shape == (0, *alone.shape)
    assert grads[0].shape == (0, *x.shape[1:])
    assert not grads[1].any()
    assert not grads[2].any()

    other = x.detach().transpose(0, -1).contiguous().transpose(0, -1).requires_grad_()
    assert not other.is_contiguous()
    flipped = weight.detach().transpose(0, -1).contiguous().transpose(0, -1).requires_grad_()
    for mine, reference in zip(
        run(ours, n, [other, flipped, bias], options), run(theirs, n, [x, weight, bias], options), strict=True
    ):
        assert torch.allclose(mine, reference)
    assert run(ours, n, [other, flipped, bias], options)[0].is_contiguous()


def test_no_channels_leave_the_bias():
    bias = torch.tensor([1.0, 2.0, 3.0])
    output = ours.conv2d(torch.zeros(2, 0, 6, 6), torch.zeros(3, 0, 3, 3), bias)
    assert torch.equal(output, bias.reshape(3, 1, 1).expand(2, 3, 4, 4))


@pytest.mark.parametrize("groups", [1, 4])
def test_gradients_are_computed_only_where_asked_for(groups):
    tensors, options = make(2, groups=groups)
    expected = run(theirs, 2, tensors, options)[1:]
    for i, tensor in enumerate(tensors):
        given = [other if other is tensor else other.detach() for other in tensors]
        (grad,) = run(ours, 2, given, options)[1:]
        assert torch.allclose(grad, expected[i])
    without = [*tensors[:2], None]
    for mine, reference in zip(run(ours, 2, without, options), run(theirs, 2, without, options), strict=True):
        assert torch.allclose(mine, reference)


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", [0, 1])
def test_what_is_not_finite_goes_as_far_as_in_torch(where, value, groups):
    tensors, options = make(2, groups=groups, padding=1)
    with torch.no_grad():
        tensors[where][0, 0, 2, 2] = value
    for mine, reference in zip(run(ours, 2, tensors, options), run(theirs, 2, tensors, options), strict=True):
        assert torch.allclose(mine, reference, equal_nan=True)


@pytest.mark.parametrize("groups", [1, 4])
def test_integers(groups):
    generator = torch.Generator().manual_seed(1)
    x, weight = (torch.randint(-9, 9, shape, generator=generator) for shape in ((2, 4, 7, 7), (4, 4 // groups, 3, 3)))
    options = {"stride": 2, "padding": 1, "groups": groups}
    assert torch.equal(ours.conv2d(x, weight, **options), theirs.conv2d(x, weight, **options))


@pytest.mark.parametrize("groups", [1, 4])
def test_vmap(groups):
    generator = torch.Generator().manual_seed(1)
    shapes = ((3, 2, 4, 6, 6), (3, 4, 4 // groups, 3, 3), (3, 4))
    stacks = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]

    def grads(module, *tensors):
        loss = lambda *args: module.conv2d(*args, padding=1, groups=groups).sin().sum()  # noqa: E731
        return torch.func.grad(loss, argnums=(0, 1, 2))(*tensors)

    for dims in ((0, 0, 0), (0, None, None), (None, 0, None), (None, None, 0)):
        tensors = [stack if dim == 0 else stack[0] for stack, dim in zip(stacks, dims, strict=True)]
        mine, reference = (
            torch.vmap(lambda *args: grads(module, *args), dims)(*tensors)  # noqa: B023
            for module in (ours, theirs)
        )
        for first, second in zip(mine, reference, strict=True):
            assert torch.allclose(first, second)


@pytest.mark.skipif(torch.__version__ < "2.13", reason="operations are left to the interpreter there")
@pytest.mark.parametrize("groups", [1, 4])
def test_compiles_whole(groups):
    tensors, options = make(2, groups=groups, padding="same", dilation=2)
    compiled = torch.compile(
        lambda *args: ours.conv2d(ours.pad(args[0], (1, 2, -1, 1), "reflect"), *args[1:], **options),
        fullgraph=WHOLE,
        backend="aot_eager",
    )
    output = compiled(*tensors)
    expected = theirs.conv2d(theirs.pad(tensors[0], (1, 2, -1, 1), "reflect"), *tensors[1:], **options)
    assert torch.allclose(output, expected)
    for mine, reference in zip(
        torch.autograd.grad(output, tensors, upstream(output)),
        torch.autograd.grad(expected, tensors, upstream(output)),
        strict=True,
    ):
        assert torch.allclose(mine, reference)


@pytest.mark.parametrize("groups", [1, 4])
def test_autocast_lowers_as_for_torch(groups):
    tensors, options = make(2, groups=groups, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        mine, reference = (module.conv2d(*tensors, **options) for module in (ours, theirs))
    assert mine.dtype == reference.dtype == torch.bfloat16
    assert torch.allclose(mine, reference, atol=0.05)


IMAGES, KERNEL = (2, 4, 6, 6), (4, 4, 3, 3)
WRONG = [
    *((2, shapes, {}) for shapes in (
        ((2, 4, 6), KERNEL), ((6, 6), KERNEL), ((1, *IMAGES), KERNEL), (IMAGES, (4, 4, 3)), (IMAGES, (4, 4)),
        (IMAGES, (4, 4, 3, 3, 3)), (IMAGES, (4, 3, 3, 3)), (IMAGES, KERNEL, (3,)), (IMAGES, KERNEL, (4, 1)),
        (IMAGES, KERNEL, (1,)), (IMAGES, KERNEL, ()), (IMAGES, (4, 4, 7, 7)), ((2, 4, 0, 6), KERNEL),
        (IMAGES, (0, 4, 3, 3)), ((0, 4, 6, 6), (4, 3, 3, 3)), ((2, 0, 6, 6), KERNEL), (IMAGES, (4, 4, 7, 7), (3,)),
    )),
    *((2, (IMAGES, KERNEL), options) for options in (
        {"stride": 0}, {"stride": -1}, {"dilation": 0}, {"dilation": -1}, {"padding": -1}, {"groups": 0},
        {"groups": -1}, {"groups": 2}, {"groups": 3}, {"groups": 8}, {"stride": (1, 2, 3)}, {"padding": (1, 2, 3)},
        {"dilation": (1, 1, 1)}, {"stride": ()}, {"padding": ()}, {"dilation": 3}, {"stride": 0, "padding": -1},
        {"stride": 0, "dilation": -1}, {"stride": 0, "dilation": 0}, {"groups": 0, "stride": 0},
        {"groups": 3, "dilation": 0},
        {"padding": "same", "stride": 2}, {"padding": "same", "stride": 0}, {"padding": "same", "dilation": 0},
        {"padding": "same", "dilation": -1}, {"padding": "same", "groups": 0}, {"padding": "same", "groups": 3},
        {"padding": "valid", "stride": 0}, {"padding": "foo"}, {"padding": "foo", "stride": 0},
    )),
    (2, (IMAGES, (4, 3, 3, 3)), {"padding": "same"}),
    (2, (IMAGES, KERNEL, (3,)), {"padding": "same"}),
    (2, ((2, 4), KERNEL), {"padding": "same"}),
    (2, (IMAGES, KERNEL, (3,)), {"stride": 0}),
    (2, (IMAGES, (4, 3, 3, 3)), {"dilation": 0, "padding": -1}),
    (2, (IMAGES, (5, 4, 3, 3)), {"groups": 2, "stride": 0}),
    (2, (IMAGES, (6, 1, 3, 3)), {"groups": 4}),
    *((1, shapes, options) for shapes, options in (
        (((6,), (4, 4, 3)), {}), (((2, 4, 6, 6), (4, 4, 3)), {}), (((2, 4, 6), (4, 4, 9)), {}),
        (((2, 4, 6), KERNEL), {}), (((2, 3, 6), (4, 4, 3)), {}), (((2, 4, 6), (4, 4, 3)), {"stride": (1, 2)}),
        (((2, 4, 6), (4, 4, 3)), {"padding": "same", "stride": 2}),
    )),
    *((3, ((*IMAGES, 6), (4, 4, 3, 3, last)), options) for last, options in (
        (3, {"stride": 0}), (9, {"padding": 1}), (3, {"padding": (1, 2)}),
    )),
    (3, ((6, 6, 6), (4, 4, 3, 3, 3)), {}),
]  # fmt: skip


@pytest.mark.parametrize(("n", "shapes", "options"), WRONG)
def test_errors_of_convolution(n, shapes, options):
    tensors = [torch.zeros(shape) for shape in shapes]
    messages = []
    for module in (theirs, ours):
        with pytest.raises(RuntimeError) as error:
            getattr(module, f"conv{n}d")(*tensors, **options)
        messages.append(re.sub(r"\W+", " ", str(error.value)))
    assert messages[1] == messages[0]


def test_errors_of_dtypes():
    x, weight, bias = torch.zeros(IMAGES), torch.zeros(KERNEL), torch.zeros(4)
    for tensors in ((x.double(), weight), (x, weight.bfloat16()), (x, weight.double(), bias)):
        for module in (theirs, ours):
            with pytest.raises(RuntimeError):
                module.conv2d(*tensors)
    for dtype in (torch.float64, torch.bfloat16, torch.complex64, torch.int64):
        messages = []
        for module in (theirs, ours):
            with pytest.raises(RuntimeError) as error:
                module.conv2d(x.to(dtype), weight.to(dtype), bias)
            messages.append(str(error.value))
        assert messages[1] == messages[0]
    for stride in (1.5, (1, 2.0)):
        for module in (theirs, ours):
            with pytest.raises(TypeError):
                module.conv2d(x, weight, stride=stride)


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (1, 2), (3, 2)])
def test_add_windows_is_the_adjoint_of_windows(kernel, stride, dilation):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(2, 3, 9, 8, 7, generator=generator, dtype=torch.float64)
    numbers = [(kernel,) * 3, (stride,) * 3, (dilation,) * 3]
    seen = windows(x, *numbers)
    other = torch.randn(seen.shape, generator=generator, dtype=torch.float64)
    assert torch.isclose((seen * other).sum(), (x * add_windows(other, x.shape[2:], *numbers)).sum())


WIDTHS = range(-5, 8)


@pytest.mark.parametrize("mode", MODES)
def test_padding_of_one_dimension_by_any_width(mode):
    values = torch.arange(1.0, 5).reshape(1, 1, 4).requires_grad_()
    ran = 0
    for before, after in itertools.product(WIDTHS, WIDTHS):
        if mode == "circular" and max(before, after) > max(4 + min(before, 0) + min(after, 0), 0):
            # torch compares with what there was before the cut, and copies what it has not written.
            with pytest.raises(RuntimeError, match="wrapping around more than once"):
                ours.pad(values, (before, after), mode)
            continue
        widths, seen = (before, after), []
        for module in (theirs, ours):
            try:
                output = module.pad(values, widths, mode)
                seen.append((output.detach(), *torch.autograd.grad(output, values, upstream(output))))
            except RuntimeError as error:
                seen.append(str(error))
        if isinstance(seen[0], str):
            assert seen[1] == seen[0], widths
        else:
            assert torch.equal(seen[1][0], seen[0][0]), widths
            assert torch.allclose(seen[1][1], seen[0][1]), widths
            ran += 1
    assert ran > 40


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("batch", [(), (2,)])
@pytest.mark.parametrize("n", SIZES)
def test_padding_of_several_dimensions(n, batch, mode):
    generator = torch.Generator().manual_seed(5)
    x = torch.randn((*batch, 3, *SIZES[n]), generator=generator, dtype=torch.float64, requires_grad=True)
    for widths in ((1, 2, 3, 0, 2, 1), (2, -1, -2, 3, 1, 1), (-1, -1, 0, 0, -2, 1)):
        output, expected = (module.pad(x, widths[: 2 * n], mode) for module in (ours, theirs))
        assert torch.equal(output, expected)
        grads = (torch.autograd.grad(result, x, upstream(output)) for result in (output, expected))
        assert all(torch.allclose(mine, reference) for mine, reference in zip(*grads, strict=True))
    function = lambda x: ours.pad(x, widths[: 2 * n], mode)  # noqa: E731
    assert torch.autograd.gradcheck(function, x, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, x, fast_mode=True)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.complex64, torch.int64, torch.bool], ids=str)
def test_padding_of_other_dtypes(dtype, mode):
    x = (torch.arange(24).reshape(2, 3, 4) % 5).to(dtype)
    expected = theirs.pad(x.to(torch.int64 if dtype == torch.bool else dtype), (2, 1), mode).to(dtype)
    assert torch.equal(ours.pad(x, [2, 1], mode), expected)


def test_padding_adds_gradients_up_in_float32():
    x = torch.zeros(1, 1, 2, dtype=torch.bfloat16, requires_grad=True)
    ours.pad(x, (300, 0), "replicate").sum().backward()
    # Added up one by one in bfloat16, as by torch, the sum stops at 256.
    assert x.grad.tolist() == [[[torch.tensor(301.0).bfloat16().item(), 1.0]]]


def test_padding_copies_and_takes_torchs_values():
    x = torch.randn(2, 3, 4)
    for mode in MODES:
        output = ours.pad(x, (0, 0), mode)
        assert torch.equal(output, x)
        assert output.data_ptr() != x.data_ptr()
    for value in (None, 0, 1.5, float("inf"), float("nan"), True):
        assert torch.equal(
            ours.pad(x, (1, 1), value=value).nan_to_num(), theirs.pad(x, (1, 1), value=value).nan_to_num()
        )
    integers = torch.arange(6).reshape(2, 3)
    assert torch.equal(ours.pad(integers, (1, 1), value=1.5), theirs.pad(integers, (1, 1), value=1.5))
    assert torch.equal(ours.pad(integers, ()), integers)
    assert ours.pad(torch.zeros(0, 3, 4), (1, 1), "reflect").shape == (0, 3, 6)


@pytest.mark.parametrize(
    ("shape", "widths", "mode", "value"),
    [
        *(((2, 3, 4), widths, mode, None) for mode in MODES for widths in ((1,), (1,) * 8)),
        *(((2, 3, 4), (1, 1), mode, 1.0) for mode in MODES[1:]),
        *(((3,), (1, 1), mode, None) for mode in MODES[1:]),
        *(((2, 3, 4, 5), (1, 1), mode, None) for mode in MODES[1:]),
        *(((4, 5), (1,) * 4, mode, None) for mode in MODES[1:]),
        *(((2, 3, 4), (), mode, None) for mode in MODES[1:]),
        *((shape, (1,) * 4, mode, None) for mode in MODES[1:3] for shape in ((1, 0, 3, 3), (0, 3, 3), (1, 1, 0, 3))),
        *(((1, 1, 3, 3), widths, "reflect", None) for widths in ((3, 0, 0, 0), (0, 0, 3, 0), (4, 0, 4, 0))),
        *(((1, 1, 3, 3), widths, "circular", None) for widths in ((4, 0, 4, 0), (-4, 0, 0, 0), (0, 0, 4, 0))),
        ((1, 1, 3, 3, 3), (0, 0, 0, 0, 3, 0), "reflect", None),
        ((1, 1, 3, 3), (-4, 0, 0, 0), "constant", None),
        ((2, 3), (1, 1), "foo", None),
        ((2, 3), (1,), "foo", None),
    ],
)  # fmt: skip
def test_errors_of_padding(shape, widths, mode, value):
    messages = []
    for module in (theirs, ours):
        with pytest.raises((RuntimeError, NotImplementedError)) as error:
            module.pad(torch.zeros(shape), widths, mode, value)
        messages.append((type(error.value), str(error.value)))
    assert messages[1] == messages[0]


@pytest.mark.parametrize("mode", MODES[1:3])
@pytest.mark.parametrize("n", [2, 3])
def test_padding_never_cuts_off_more_than_there_is(n, mode):
    with pytest.raises(RuntimeError, match=r"is too small\. Calculated output"):
        ours.pad(torch.zeros(1, 1, *[3] * n), (-4, 0) + (0, 0) * (n - 1), mode)
    with pytest.raises(TypeError):
        ours.pad(torch.zeros(1, 1, 3), (1.5, 1), mode)


@pytest.mark.parametrize("mode", MODES)
def test_vmap_of_padding(mode):
    x = torch.randn(3, 2, 4, 6, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    mine, reference = (
        torch.vmap(torch.func.grad(lambda x: module.pad(x, (1, 2, -1, 2), mode).sin().sum()))(x)  # noqa: B023
        for module in (ours, theirs)
    )
    assert torch.allclose(mine, reference)
