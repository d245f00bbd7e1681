"""Batch normalisation from first principles: what PyTorch's table of operators does not reach."""

import pytest
import torch
import torch.nn.functional
from torch.autograd import gradcheck, gradgradcheck

import reimpl.nn.functional
from reimpl.verify.distance import relative_error

OURS, THEIRS = reimpl.nn.functional.batch_norm, torch.nn.functional.batch_norm
SHAPES = [(6, 3), (4, 3, 5), (3, 3, 4, 5), (2, 3, 2, 3, 4)]


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def statistics(channels=3, dtype=torch.float64):
    return randn(channels, seed=8, dtype=dtype), randn(channels, seed=9, dtype=dtype).square() + 0.5


def run(function, x, mean, var, weight, bias, upstream, **options):
    """Return output, gradients, and the running statistics afterwards."""
    mean, var = (None if t is None else t.clone() for t in (mean, var))
    leaves = [t if t is None else t.detach().clone().requires_grad_() for t in (x, weight, bias)]
    output = function(leaves[0], mean, var, *leaves[1:], **options)
    given = [t for t in leaves if t is not None]
    grads = torch.autograd.grad(output, given, upstream)
    return [t for t in (output.detach(), *grads, mean, var) if t is not None]


@pytest.mark.parametrize("affine", ["both", "weight", "bias", "neither"])
@pytest.mark.parametrize(("training", "tracked"), [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_option(shape, training, tracked, affine):
    x, g = randn(*shape), randn(*shape, seed=1)
    weight = randn(3, seed=2) if affine in ("both", "weight") else None
    bias = randn(3, seed=3) if affine in ("both", "bias") else None
    mean, var = statistics() if tracked else (None, None)
    options = {"training": training, "momentum": 0.3, "eps": 1e-3}
    ours, theirs = (run(f, x, mean, var, weight, bias, g, **options) for f in (OURS, THEIRS))
    for mine, reference in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("shape", [(64, 16), (8, 4, 28, 28), (128, 4, 14, 14), (32, 4, 512)], ids=str)
@pytest.mark.parametrize(("centre", "spread"), [(0, 1), (1e4, 1), (-1e3, 10), (1e4, 0.01)])
@pytest.mark.parametrize("training", [True, False])
def test_as_exact_as_torch_whatever_the_mean(shape, centre, spread, training):
    channels = shape[1]
    x = (randn(*shape) * spread + centre).float()
    mean, var = (randn(channels, seed=8) * spread + centre).float(), torch.full((channels,), spread**2 / 2)
    weight, bias, g = randn(channels, seed=2).float(), randn(channels, seed=3).float(), randn(*shape, seed=1).float()
    given = [x, mean, var, weight, bias, g]
    ours, theirs = (run(f, *given, training=training) for f in (OURS, THEIRS))
    oracle = run(THEIRS, *(t.double() for t in given), training=training)
    for i, (mine, reference, truth) in enumerate(zip(ours, theirs, oracle, strict=True)):
        assert relative_error(mine, truth) <= 4 * max(relative_error(reference, truth), 2**-24), i


def test_the_mean_is_taken_out_to_the_last_digit():
    x = (randn(64, 8, 49) + 1e4).float()
    output = OURS(x, None, None, training=True)
    truth = THEIRS(x.double(), None, None, training=True)
    assert relative_error(output, truth) < 3e-7
    assert relative_error(THEIRS(x, None, None, training=True), truth) > 1e-5  # torch's kernel: x scale + shift


def test_a_constant_channel():
    x = torch.full((5, 2), 0.1).requires_grad_()
    output = OURS(x, None, None, training=True)
    (grad,) = torch.autograd.grad(output, x, randn(5, 2).float())
    assert output.count_nonzero() == 0
    assert grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("training", [True, False])
def test_low_precision_beside_float32_parameters(dtype, training):
    given = [
        randn(6, 3, 7, dtype=dtype),
        *statistics(dtype=torch.float32),
        *(randn(3, seed=s, dtype=torch.float32) for s in (2, 3)),
    ]
    g = randn(6, 3, 7, seed=1, dtype=dtype)
    ours, theirs = (run(f, *given, g, training=training) for f in (OURS, THEIRS))
    oracle = run(THEIRS, *(t.double() for t in (*given, g)), training=training)
    for mine, reference, truth in zip(ours, theirs, oracle, strict=True):
        assert mine.dtype == reference.dtype
        floor = torch.finfo(mine.dtype).eps / 2
        assert relative_error(mine, truth) <= 4 * max(relative_error(reference, truth), floor)


@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("training", [True, False])
def test_memory_format_is_kept(format, training):
    x = randn(2, 3, 4, 5).to(memory_format=format).requires_grad_()
    output = OURS(x, *statistics(), training=training)
    (grad,) = torch.autograd.grad(output, x, randn(2, 3, 4, 5, seed=1))
    assert output.is_contiguous(memory_format=format)
    assert grad.shape == x.shape
    torch.testing.assert_close(output, THEIRS(x, *statistics(), training=training))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_what_follows_may_work_in_place(shape, training):
    x = randn(*shape).requires_grad_()
    results = []
    for function in (OURS, THEIRS):
        output = function(x, *statistics(), training=training).relu_()
        results.append((output, *torch.autograd.grad(output, x, randn(*shape, seed=1))))
    torch.testing.assert_close(*results)


def test_inputs_in_any_strides():
    x, g = randn(5, 4, 3).transpose(1, 2), randn(3, 4, 5, seed=1).permute(2, 0, 1)
    weight = randn(6, seed=2)[::2]
    ours, theirs = (run(f, x, *statistics(), weight, None, g, training=True) for f in (OURS, THEIRS))
    for mine, reference in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, reference)


@pytest.mark.parametrize("shape", [(0, 3), (0, 3, 4), (2, 3, 0)], ids=str)
@pytest.mark.parametrize("training", [True, False])
def test_nothing_to_normalise(shape, training):
    channels = shape[1]
    mean, var = statistics(channels)
    given = randn(*shape), mean, var, randn(channels), randn(channels), randn(*shape)
    ours, theirs = (run(f, *given, training=training) for f in (OURS, THEIRS))
    for mine, reference in zip(ours, theirs, strict=True):
        assert torch.equal(mine, reference)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", SHAPES[:3], ids=str)
def test_derivatives_of_first_and_second_order(shape, affine, training):
    given = [randn(*shape), *([randn(3, seed=2), randn(3, seed=3)] if affine else [])]
    given = [t.requires_grad_() for t in given]

    def function(x, *parameters):
        mean, var = (t.clone() for t in statistics())
        return OURS(x, mean, var, *parameters, training=training)

    assert gradcheck(function, given)
    assert gradgradcheck(function, given, gen_non_contig_grad_outputs=True)


def test_a_gradient_is_only_asked_of_what_needs_one():
    x, weight, bias = randn(5, 3), randn(3, seed=2).requires_grad_(), randn(3, seed=3)
    for training in (True, False):
        output = OURS(x, *statistics(), weight, bias, training=training)
        (grad,) = torch.autograd.grad(output.sum() + output.square().sum(), weight)
        reference = THEIRS(x, *statistics(), weight, bias, training=training)
        (expected,) = torch.autograd.grad(reference.sum() + reference.square().sum(), weight)
        torch.testing.assert_close(grad, expected)


def test_biased_variance_normalises_and_unbiased_is_stored():
    x = torch.tensor([[0.0], [2.0]])
    mean, var = torch.zeros(1), torch.zeros(1)
    output = OURS(x, mean, var, training=True, momentum=1.0, eps=1e-12)
    assert output.flatten().tolist() == [-1, 1]  # (x - 1) / sqrt(1)
    assert (mean.item(), var.item()) == (1, 2)


MEAN, VAR = torch.zeros(3), torch.ones(3)
WRONG = {
    "one value a channel": ((torch.ones(1, 3, 1), None, None), {"training": True}),
    "eps in training": ((torch.ones(2, 3), None, None), {"training": True, "eps": 0.0}),
    "eps in evaluation": ((torch.ones(2, 3), MEAN, VAR), {"eps": -1.0}),
    "no statistics": ((torch.ones(2, 3), None, None), {}),
    "no variance": ((torch.ones(2, 3), MEAN, None), {}),
    "mean alone in training": ((torch.ones(2, 3), MEAN, None), {"training": True}),
    "size of mean": ((torch.ones(2, 3), MEAN[:2], VAR), {}),
    "size of variance": ((torch.ones(2, 3), MEAN, VAR[:2]), {}),
    "size of weight": ((torch.ones(2, 3), MEAN, VAR, VAR[:2]), {}),
    "size of bias": ((torch.ones(2, 3), MEAN, VAR, VAR, VAR[:2]), {}),
    "no channels": ((torch.ones(3), None, None), {"training": True}),
    "no channels but statistics": ((torch.ones(3), MEAN, VAR), {}),
    "integers": ((torch.ones(2, 3, dtype=torch.long), MEAN, VAR), {}),
    "complex": ((torch.ones(2, 3, dtype=torch.cfloat), None, None), {"training": True}),
    "wider parameters": ((torch.ones(2, 3), MEAN.double(), VAR.double()), {}),
    "narrower parameters": ((torch.ones(2, 3), MEAN.bfloat16(), VAR.bfloat16()), {}),
    "narrower than float64": ((torch.ones(2, 3).double(), MEAN, VAR), {}),
    "statistics of another dtype": ((torch.ones(2, 3).bfloat16(), MEAN, VAR, VAR.bfloat16()), {"training": True}),
    "bias of another dtype": ((torch.ones(2, 3).bfloat16(), None, None, VAR, VAR.bfloat16()), {"training": True}),
    "mean with a gradient": ((torch.ones(2, 3), MEAN.clone().requires_grad_(), VAR), {}),
}


@pytest.mark.parametrize("name", WRONG)
def test_errors(name):
    args, kwargs = WRONG[name]
    with pytest.raises(Exception) as theirs:
        THEIRS(*args, **kwargs)
    if torch.__version__ < "2.13" and name.startswith("eps"):
        pytest.skip("another message")
    with pytest.raises(type(theirs.value)) as ours:
        OURS(*args, **kwargs)
    assert str(ours.value) == str(theirs.value)


def test_an_error_leaves_the_statistics_alone():
    mean, var = statistics()
    with pytest.raises(RuntimeError, match="weight should contain"):
        OURS(randn(4, 3), mean, var, torch.ones(2), training=True)
    assert torch.equal(mean, statistics()[0])
    assert torch.equal(var, statistics()[1])


@pytest.mark.skipif(torch.__version__ < "2.13", reason="operations are left to the interpreter there")
def test_compiled():
    x, weight, bias = randn(5, 3).requires_grad_(), randn(3, seed=2), randn(3, seed=3)
    results = []
    for function in (OURS, torch.compile(OURS, fullgraph=True, backend="aot_eager")):
        mean, var = statistics()
        output = function(x, mean, var, weight, bias, True)
        results.append((output, mean, var, *torch.autograd.grad(output, x, randn(5, 3, seed=1))))
    torch.testing.assert_close(*results)


def test_vmap_over_models():
    x, weight, bias = randn(4, 6, 3), randn(4, 3, seed=2), randn(4, 3, seed=3)
    mean, var = torch.zeros(4, 3).double(), torch.ones(4, 3).double()

    def model(x, mean, var, weight, bias):
        return OURS(x, mean, var, weight, bias, training=True)

    output = torch.func.vmap(model)(x, mean, var, weight, bias)
    for i in range(4):
        alone = statistics()[0].zero_(), statistics()[1].fill_(1)
        torch.testing.assert_close(output[i], THEIRS(x[i], *alone, weight[i], bias[i], training=True))
        torch.testing.assert_close((mean[i], var[i]), alone)
