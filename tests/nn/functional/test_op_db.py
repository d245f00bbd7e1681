"""PyTorch's own table of operators: each sample, run from first principles and judged against a float64 run."""

import re
import warnings

import pytest
import torch
from torch import Tensor

import reimpl.nn.functional
from layers import fresh, leaves, upstream
from reimpl.verify.distance import relative_error

pytest.importorskip("expecttest", reason="torch.testing._internal needs expecttest")
pytest.importorskip("numpy")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from torch.testing._internal.common_methods_invocations import op_db

POOLS = [f"{kind}_pool{n}d" for kind in ("max", "avg", "adaptive_max", "adaptive_avg") for n in (1, 2, 3)]
CONVS = ["conv1d", "conv2d", "conv3d"]
LOSSES = ["nll_loss", "cross_entropy"]
NAMES = [
    *("linear", "pad", *CONVS, *POOLS),
    *("sigmoid", "relu", "tanh", "softmax", "log_softmax", "dropout", "batch_norm", *LOSSES),
]
INFOS = {
    f"{info.name.removeprefix('nn.functional.')} {info.variant_test_name}".strip(): info
    for info in op_db
    if info.name.removeprefix("nn.functional.") in NAMES and "cudnn" not in info.variant_test_name
}
FACTOR = 4
"""How many times torch's own error ours may be."""

EVERY = {"max_pool1d": 8, "max_pool2d": 13, "max_pool3d": 5}
"""torch has over a thousand samples of these; every so-manieth is run here, every one of `dtype=float32` forward."""


def pair(info):
    """Return our function and torch's."""
    name = info.name.removeprefix("nn.functional.")
    assert name in reimpl.nn.functional.__all__, f"reimpl.nn.functional.{name} is torch's own"
    return getattr(reimpl.nn.functional, name), getattr(torch.nn.functional, name)


def samples(info, dtype, every=1, requires_grad=True):
    """Yield the arguments of each sample, and what is done with its output."""
    for i, sample in enumerate(info.sample_inputs("cpu", dtype, requires_grad=requires_grad)):
        if i % every == 0:
            yield (sample.input, *sample.args), sample.kwargs


def widened(value):
    """Return the nest in float64."""
    if isinstance(value, Tensor):
        wide = value.detach().clone()
        if wide.is_floating_point():
            wide = wide.double()
        return wide.requires_grad_(value.requires_grad)
    if isinstance(value, dict):
        return {name: torch.float64 if part is torch.float32 else widened(part) for name, part in value.items()}
    return type(value)(map(widened, value)) if isinstance(value, (tuple, list)) else value


def run(function, args, kwargs):
    """Return output and gradients."""
    torch.manual_seed(3)
    given = [leaf for leaf in leaves([args, kwargs]) if leaf.requires_grad]
    outputs = leaves(function(*args, **kwargs))
    with_grad = [output for output in outputs if output.requires_grad]
    grads = ()
    if with_grad and given:
        grads = torch.autograd.grad(with_grad, given, [upstream(output) for output in with_grad], allow_unused=True)
    return [output.detach() for output in outputs], grads


def assert_close(ours, theirs, oracle, what):
    for i, (mine, reference, truth) in enumerate(zip(ours, theirs, oracle, strict=True)):
        if reference is None or mine is None:
            # torch calls the derivative of what does not matter None, or zero.
            assert not any(x is not None and x.count_nonzero() for x in (mine, reference)), (what, i)
            continue
        assert (mine.shape, mine.dtype) == (reference.shape, reference.dtype), (what, i)
        if not mine.is_floating_point():
            assert torch.equal(mine, reference), (what, i)
            continue
        error, allowed = relative_error(mine, truth), FACTOR * relative_error(reference, truth)
        # torch's result may be exact by luck, so a result that is correctly rounded must always do.
        floor = torch.finfo(mine.dtype).eps / 2
        assert error <= max(allowed, FACTOR * floor), f"{what} {i}: error {error:.2e}, torch's {allowed / FACTOR:.2e}"


def test_every_function_is_in_the_table():
    assert {info.name.removeprefix("nn.functional.") for info in INFOS.values()} == set(NAMES)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", INFOS)
def test_every_sample_is_as_exact_as_torch(name, dtype):
    info = INFOS[name]
    if dtype not in info.dtypes:
        pytest.skip(f"torch's {name} has no {dtype}")
    every = 1 if dtype == torch.float32 else EVERY.get(name, 1)
    mine, torchs = pair(info)
    for args, kwargs in samples(info, dtype, every):
        ours = run(mine, fresh(args), fresh(kwargs))
        theirs = run(torchs, fresh(args), fresh(kwargs))
        oracle = run(torchs, widened(args), widened(kwargs))
        for what, *values in zip(("output", "gradient"), ours, theirs, oracle, strict=True):
            assert_close(*values, (what, [getattr(a, "shape", a) for a in args], kwargs))


@pytest.mark.parametrize("name", [name for name, info in INFOS.items() if info.error_inputs_func])
def test_every_erroneous_input_gives_the_error_of_torch(name):
    info = INFOS[name]
    mine, torchs = pair(info)
    for wrong in info.error_inputs("cpu"):
        sample = wrong.sample_input
        with pytest.raises(wrong.error_type) as theirs:
            torchs(sample.input, *sample.args, **sample.kwargs)
        with pytest.raises(wrong.error_type, match=wrong.error_regex) as ours:
            mine(sample.input, *sample.args, **sample.kwargs)
        assert re.sub(r"\W+", " ", str(ours.value)) == re.sub(r"\W+", " ", str(theirs.value))


@pytest.mark.parametrize("name", INFOS)
def test_gradients_of_first_and_second_order(name):
    info = INFOS[name]
    every = 8 * EVERY.get(name, 1)
    mine, _ = pair(info)
    checked = 0
    for args, kwargs in samples(info, torch.float64, every):
        args, kwargs = fresh(args), fresh(kwargs)
        tensors = [leaf for leaf in leaves([args, kwargs]) if leaf.requires_grad]
        if not tensors or max(tensor.numel() for tensor in tensors) > 600:
            continue

        def function(*_, args=args, kwargs=kwargs):
            torch.manual_seed(3)
            outputs = leaves(mine(*args, **kwargs))
            return tuple(output for output in outputs if output.is_floating_point())

        assert torch.autograd.gradcheck(function, tensors, fast_mode=True)
        assert torch.autograd.gradgradcheck(function, tensors, fast_mode=True, gen_non_contig_grad_outputs=True)
        checked += 1
    assert checked
