"""`Linear` and the convolutional layers: what torch's table of modules leaves out."""

import copy
import itertools
import pickle
import re
import warnings

import pytest
import torch

import reimpl.nn
import reimpl.nn.functional
from layers import assert_same, observe, pair, upstream
from reimpl.verify.distance import relative_error

SIZES = {1: (11,), 2: (9, 8), 3: (6, 5, 7)}
MODES = ("zeros", "reflect", "replicate", "circular")
OPTIONS = {
    "padding": {"padding": 2},
    "same": {"padding": "same"},
    "same, even": {"padding": "same", "kernel_size": 4},
    "valid": {"padding": "valid"},
    "strided": {"padding": 1, "stride": 2, "groups": 2, "bias": False},
    "dilated": {"padding": 2, "dilation": 2, "groups": 4},
}
EVEN = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")


def sample(n, dtype=torch.float32, batch=(2,)):
    generator = torch.Generator().manual_seed(8)
    return torch.randn((*batch, 4, *SIZES[n]), generator=generator, dtype=torch.float64).to(dtype).requires_grad_()


def both(name, arguments, options, *inputs):
    """Assert that our layer and torch's show the same."""
    seen = [observe(lambda: cls(*arguments, **options), inputs, {}) for cls in pair(name)]  # noqa: B023
    assert_same(*seen)
    return seen[0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("n", SIZES)
def test_every_way_to_pad(n, name, mode, dtype):
    options = {"kernel_size": 3, "padding_mode": mode, "dtype": dtype, **OPTIONS[name]}
    # torch warns once in a process, so one of the two is silent.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.nn.functional.conv1d(torch.zeros(1, 1, 4), torch.zeros(1, 1, 2), padding="same")
    for batch in ((2,), ()):
        assert "error" not in both(f"Conv{n}d", (4, 8), options, sample(n, dtype, batch))


@pytest.mark.parametrize("mode", MODES)
def test_a_number_for_each_dimension(mode):
    options = {"stride": (2, 1), "padding": (2, 0), "dilation": [1, 2], "padding_mode": mode}
    assert "error" not in both("Conv2d", (4, 6, (1, 3)), options, sample(2))
    options = {"stride": 2, "padding": (0, 1, 2), "dilation": (1, 2, 1), "padding_mode": mode}
    assert "error" not in both("Conv3d", (4, 6, (3, 2, 1)), options, sample(3))


def test_what_linear_takes():
    for shape in ((7,), (3, 7), (2, 3, 7), (0, 7), (2, 0, 7)):
        for bias in (True, False):
            assert "error" not in both("Linear", (7, 5), {"bias": bias}, torch.randn(shape, requires_grad=True))
    assert "error" not in both("Linear", (7, 5), {"dtype": torch.complex64}, torch.randn(3, 7, dtype=torch.complex64))
    assert "error" in both("Linear", (7, 5), {}, torch.randn(3, 6))
    assert "error" in both("Linear", (7, 5), {}, torch.randn(3, 7, dtype=torch.float64))


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        *(("Linear", sizes) for sizes in ((0, 3), (3, 0))),
        *((f"Conv{n}d", sizes) for n in SIZES for sizes in ((0, 3, 2), (3, 0, 2), (3, 3, 0))),
    ],
)
def test_nothing_to_initialise_warns_at_the_callers_line(name, arguments):
    seen = [observe(lambda: cls(*arguments), (), {}) for cls in pair(name)]  # noqa: B023
    for part in seen:
        part.pop("error")
        if torch.__version__ < "2.13":
            part.pop("initial bias")  # torch left a bias without inputs as the memory was
    assert_same(*seen)
    with pytest.warns(UserWarning, match="no-op") as caught:
        pair(name)[0](*arguments)
    assert caught[0].filename == __file__


@pytest.mark.parametrize(
    "options",
    [
        {"groups": 0}, {"groups": -1}, {"groups": 3}, {"groups": 4, "out_channels": 6}, {"padding": "full"},
        {"padding": "same", "stride": 2}, {"padding_mode": "symmetric"}, {"groups": 0, "padding": "full"},
        {"padding": "full", "padding_mode": "symmetric"}, {"groups": 3, "padding": "same", "stride": 2},
        {"padding": "same", "stride": 2, "padding_mode": "symmetric"},
    ],
)  # fmt: skip
def test_errors_of_the_constructor(options):
    for n in SIZES:
        messages = []
        for cls in pair(f"Conv{n}d"):
            with pytest.raises(ValueError) as error:
                cls(**{"in_channels": 4, "out_channels": 8, "kernel_size": 3, **options})
            # The names stand in a set, in an order of its own.
            messages.append(sorted(re.findall(r"[\w']+", str(error.value))))
        assert messages[0] == messages[1]


@pytest.mark.parametrize(
    ("n", "arguments", "options", "shape"),
    [
        (2, (4, 6, 3), {}, (2, 3, 9, 8)), (2, (4, 6, 3), {}, (9, 8)), (2, (4, 6, 3), {}, (2, 4, 2, 9)),
        (2, (4, 6, 3), {"stride": 0}, (2, 4, 9, 8)), (2, (4, 6, 3), {"padding": -1}, (2, 4, 9, 8)),
        (2, (4, 6, 3), {"padding": 9, "padding_mode": "reflect"}, (2, 4, 9, 8)),
        (2, (4, 6, 3), {"padding": 10, "padding_mode": "circular"}, (2, 4, 9, 8)),
        (2, (4, 6, (3, 3, 3)), {}, (2, 4, 9, 8)), (2, (4, 6, 3), {"stride": (1, 2, 1)}, (2, 4, 9, 8)),
        (1, (4, 6, 3), {"dilation": 0}, (2, 4, 9)), (3, (4, 6, 3), {}, (2, 4, 9)),
    ],
)  # fmt: skip
def test_errors_of_an_input(n, arguments, options, shape):
    assert both(f"Conv{n}d", arguments, options, torch.zeros(shape))["error"][0] is RuntimeError


@EVEN
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("n", SIZES)
def test_first_principles(n, name, mode):
    layer = pair(f"Conv{n}d")[0](4, 8, **{"kernel_size": 3, "padding_mode": mode, **OPTIONS[name]})
    outcomes = []
    for functional, dtype in (
        (reimpl.nn.functional, torch.float32),
        (torch.nn.functional, torch.float32),
        (torch.nn.functional, torch.float64),
    ):
        one, x = copy.deepcopy(layer).to(dtype), sample(n, torch.float32).detach().to(dtype).requires_grad_()
        one.functional = functional
        output = one(x)
        outcomes.append((output.detach(), *torch.autograd.grad(output, [x, *one.parameters()], upstream(output))))
    for mine, reference, truth in zip(*outcomes, strict=True):
        assert relative_error(mine, truth) <= 4 * max(relative_error(reference, truth), torch.finfo(mine.dtype).eps)


@pytest.mark.parametrize("n", SIZES)
def test_padding_goes_by_the_name_that_other_code_reads(n):
    for options in (
        {"padding": 2},
        {"padding": "same", "dilation": 2},
        {"padding": "valid"},
        {"kernel_size": 4, "padding": "same"},
    ):
        ours, theirs = (cls(4, 4, **{"kernel_size": 3, **options}) for cls in pair(f"Conv{n}d"))
        for name in (*theirs.__constants__, "transposed", "_reversed_padding_repeated_twice"):
            assert getattr(ours, name) == getattr(theirs, name)
            assert type(getattr(ours, name)) is type(getattr(theirs, name))
        assert ours.__constants__ == theirs.__constants__
        assert ours._version == theirs._version


def test_subclasses_may_change_the_weight():
    class Standardised(reimpl.nn.Conv2d):
        def forward(self, x):
            weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
            return self._conv_forward(x, weight, self.bias)

    torch.manual_seed(1)
    layer, x = Standardised(4, 6, 3, padding=1, padding_mode="reflect"), sample(2)
    weight = layer.weight - layer.weight.mean((1, 2, 3), keepdim=True)
    padded = torch.nn.functional.pad(x, (1, 1, 1, 1), "reflect")
    assert torch.equal(layer(x), torch.nn.functional.conv2d(padded, weight, layer.bias))


def test_layers_that_were_pickled_before_there_were_modes():
    layer = pickle.loads(pickle.dumps(reimpl.nn.Conv2d(4, 6, 3)))
    state = layer.__getstate__()
    del state["padding_mode"]
    other = reimpl.nn.Conv2d.__new__(reimpl.nn.Conv2d)
    other.__setstate__(state)
    assert other.padding_mode == "zeros"
    assert torch.equal(other(sample(2)), layer(sample(2)))


@pytest.mark.skipif(torch.__version__ < "2.13", reason="torch drew in the order of memory")
@pytest.mark.parametrize("n", [2, 3])
def test_initial_values_do_not_depend_on_the_layout(n):
    layout = {2: torch.channels_last, 3: torch.channels_last_3d}[n]
    seen = []
    for cls in pair(f"Conv{n}d"):
        layer = cls(4, 6, 3).to(memory_format=layout)
        assert not layer.weight.is_contiguous()
        torch.manual_seed(3)
        layer.reset_parameters()
        assert layer.weight.is_contiguous(memory_format=layout)
        seen.append((layer.weight, layer.bias))
    assert all(torch.equal(mine, reference) for mine, reference in zip(*seen, strict=True))
    torch.manual_seed(3)
    assert torch.equal(pair(f"Conv{n}d")[0](4, 6, 3).weight, seen[0][0])


def test_initial_values_have_the_variance_that_the_text_gives():
    torch.manual_seed(0)
    for layer, fan_in in ((reimpl.nn.Linear(300, 400), 300), (reimpl.nn.Conv2d(64, 64, 3, groups=4), 16 * 9)):
        assert layer.weight.abs().max() <= fan_in**-0.5
        assert layer.weight.var().item() == pytest.approx(1 / (3 * fan_in), rel=0.02)


def test_meta_device_and_dtype():
    for name, arguments in (("Linear", (7, 5)), *((f"Conv{n}d", (4, 6, 3)) for n in SIZES)):
        layer = pair(name)[0](*arguments, device="meta", dtype=torch.bfloat16)
        for parameter in layer.parameters():
            assert (parameter.device.type, parameter.dtype) == ("meta", torch.bfloat16)


def test_torchs_layers_load_ours_and_back():
    for n, (mode, groups) in itertools.product(SIZES, (("zeros", 1), ("reflect", 2))):
        ours, theirs = (cls(4, 6, 3, padding=1, padding_mode=mode, groups=groups) for cls in pair(f"Conv{n}d"))
        assert isinstance(ours, type(theirs))
        theirs.load_state_dict(ours.state_dict())
        assert torch.equal(ours(sample(n)), theirs(sample(n)))
        assert str(ours) == str(theirs)
