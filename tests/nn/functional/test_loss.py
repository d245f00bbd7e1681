"""The losses from first principles: what PyTorch's table of operators does not reach."""

import math
import warnings

import pytest
import torch
import torch.nn.functional
from torch.autograd import gradcheck, gradgradcheck

import reimpl.nn.functional
from reimpl.verify.distance import relative_error

OURS, THEIRS = reimpl.nn.functional, torch.nn.functional
NAMES = ("nll_loss", "cross_entropy")
REDUCTIONS = ("none", "mean", "sum")
PLACES = [(6,), (4, 3), (2, 2, 3), (2, 1, 2, 3)]
CLASSES = 5
INF = math.inf


def generator(seed):
    return torch.Generator().manual_seed(seed)


def scores(places, seed=0, dtype=torch.float64):
    shape = (places[0], CLASSES, *places[1:])
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64).to(dtype)


def targets(places, seed=1):
    return torch.randint(CLASSES, places, generator=generator(seed))


def weights(dtype=torch.float64):
    return torch.tensor([0.5, 2.0, 0.1, 1.0, 0.7], dtype=dtype)


def run(function, given, upstream=3, **options):
    """Return the loss, and its gradient by every tensor that requires one."""
    given = [t.detach().clone().requires_grad_(t.requires_grad) for t in given]
    loss = function(*given, **options)
    g = torch.randn(loss.shape, generator=generator(upstream), dtype=torch.float64).to(loss.dtype)
    return [loss.detach(), *torch.autograd.grad(loss, [t for t in given if t.requires_grad], g)]


def assert_close(name, given, **options):
    ours, theirs = (run(getattr(f, name), given, **options) for f in (OURS, THEIRS))
    for mine, reference in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-11, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("ignored", [-100, 2, 7])
@pytest.mark.parametrize("places", PLACES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_classes(name, places, ignored, weighted, reduction):
    target = targets(places)
    target.view(-1)[1] = ignored
    options = {"ignore_index": ignored, "reduction": reduction, "weight": weights() if weighted else None}
    assert_close(name, [scores(places).requires_grad_(), target], **options)
    if name == "cross_entropy":
        for smoothing in (-0.5, 0.1, 1.0):
            assert_close(name, [scores(places).requires_grad_(), target], label_smoothing=smoothing, **options)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("places", PLACES, ids=str)
def test_probabilities_and_all_their_gradients(places, weighted, smoothing, reduction):
    given = [scores(places), scores(places, seed=4).softmax(1)] + [weights()] * weighted
    given = [t.requires_grad_() for t in given]
    assert_close("cross_entropy", given, label_smoothing=smoothing, reduction=reduction)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("target", [torch.tensor(3), torch.tensor(-100), torch.tensor(3).byte()])
@pytest.mark.parametrize("name", NAMES)
def test_one_sample_alone(name, target, reduction):
    x = scores((1,))[0].requires_grad_()
    assert_close(name, [x, target], reduction=reduction)
    assert_close(name, [x, target], weight=weights(), reduction=reduction)
    if name == "cross_entropy":
        assert_close(name, [x, x.detach().softmax(0)], weight=weights(), reduction=reduction)


@pytest.mark.parametrize("name", NAMES)
def test_one_sample_alone_with_a_target_of_one_dimension(name):
    """Torch's backward refuses it (nll_loss_backward: size mismatch)."""
    x = scores((1,))[0].requires_grad_()
    for reduction in REDUCTIONS:
        ours = run(getattr(OURS, name), [x, torch.tensor([3])], reduction=reduction)
        theirs = run(getattr(THEIRS, name), [x, torch.tensor(3)], reduction=reduction)
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("places", [(0,), (0, 3), (0, 2, 2), (2, 0), (2, 0, 2)], ids=str)
def test_nothing_to_lose(places, reduction):
    x = scores(places).requires_grad_()
    for name in NAMES:
        assert_close(name, [x, targets(places)], reduction=reduction)
    assert_close("cross_entropy", [x, x.detach()], reduction=reduction)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("name", NAMES)
def test_everything_ignored_is_nan_on_average_and_has_no_gradient(name, reduction):
    given = [scores((6,)).requires_grad_(), torch.full((6,), -100)]
    for options in ({}, {"weight": weights()}, {"label_smoothing": 0.1} if name == "cross_entropy" else {}):
        assert_close(name, given, reduction=reduction, **options)
    loss, grad = run(getattr(OURS, name), given, reduction=reduction)
    assert loss.isnan().all() == (reduction == "mean")
    assert not grad.count_nonzero()


@pytest.mark.parametrize("name", NAMES)
def test_weights_of_zero_are_not_ignored(name):
    weight = torch.tensor([0.0, 1, 1, 1, 1], dtype=torch.float64)
    for reduction in REDUCTIONS:
        assert_close(name, [scores((3,)).requires_grad_(), torch.zeros(3).long(), weight], reduction=reduction)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("name", NAMES)
def test_infinite_and_undefined_scores(name, reduction):
    rows = [[-INF, 0, 1], [INF, 0, 1], [math.nan, 0, 1], [-INF, -INF, -INF], [-INF, 2, 1]]
    for row in rows:
        for target in (0, 1, -100):
            x = torch.tensor([row, [1, 2, 3]], dtype=torch.float64).requires_grad_()
            assert_close(name, [x, torch.tensor([target, 2])], reduction=reduction)
            if name == "cross_entropy":
                assert_close(name, [x, torch.eye(3).double()[[target % 3, 2]]], reduction=reduction)


@pytest.mark.parametrize("places", [(512,), (8, 16, 16)], ids=str)
@pytest.mark.parametrize(("spread", "centre"), [(1, 0), (30, 0), (1e4, 0), (1, 1e4), (1, -1e4)])
@pytest.mark.parametrize("kind", ["classes", "weights", "smoothing", "probabilities"])
def test_as_exact_as_torch_whatever_the_scores(kind, spread, centre, places):
    x = (scores(places) * spread + centre).float().requires_grad_()
    weight = weights(torch.float32) if kind in ("weights", "smoothing") else None
    target = scores(places, seed=4).softmax(1).float() if kind == "probabilities" else targets(places)
    smoothing = 0.1 if kind == "smoothing" else 0.0
    for reduction in REDUCTIONS:
        options = {"reduction": reduction, "label_smoothing": smoothing}
        results = []
        for f, wide in ((OURS, False), (THEIRS, False), (THEIRS, True)):
            given = [x, target, *([] if weight is None else [weight])]
            given = [t.double() if wide and t.is_floating_point() else t for t in given]
            given[0] = given[0].detach().requires_grad_()
            results.append(run(f.cross_entropy, given, **options))
        for mine, reference, truth in zip(*results, strict=True):
            assert relative_error(mine, truth) <= 4 * max(relative_error(reference, truth), 2**-24)


@pytest.mark.parametrize("kind", ["classes", "weights", "smoothing", "probabilities"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_derivatives_of_first_and_second_order(reduction, kind):
    places = (3, 2)
    x, target = scores(places).requires_grad_(), targets(places)
    target.view(-1)[2] = -100
    if kind == "probabilities":
        given = [x, scores(places, seed=4).softmax(1).requires_grad_(), weights().requires_grad_()]
    else:
        given = [x]
    options = {"reduction": reduction}
    if kind in ("smoothing", "probabilities"):
        options["label_smoothing"] = 0.2
    if kind in ("weights", "smoothing"):
        options["weight"] = weights()

    def function(x, *others):
        return OURS.cross_entropy(x, *(others or (target,)), **options)

    assert gradcheck(function, given)
    assert gradgradcheck(function, given, gen_non_contig_grad_outputs=True)
    if kind in ("classes", "weights"):

        def picked(x):
            return OURS.nll_loss(x, target, **options)

        assert gradcheck(picked, given)
        assert gradgradcheck(picked, given)


def test_the_gradient_is_softmax_minus_one_hot():
    x, target = scores((4,)).requires_grad_(), targets((4,))
    (grad,) = torch.autograd.grad(OURS.cross_entropy(x, target, reduction="sum"), x)
    torch.testing.assert_close(grad, x.detach().softmax(1) - torch.eye(CLASSES).double()[target])


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_what_follows_may_work_in_place(name, batched, reduction):
    x, target = scores((3,)).requires_grad_(), targets((3,))
    soft = [x.detach().softmax(1)] if name == "cross_entropy" else []
    for goal in (target, *soft):
        given = [x, goal] if batched else [x[0], goal[0]]
        results = []
        for f in (OURS, THEIRS):
            loss = getattr(f, name)(*given, reduction=reduction).mul_(3)
            results.append((loss, *torch.autograd.grad(loss.sum(), x)))
        torch.testing.assert_close(*results)


def test_smoothing_weights_the_uniform_part_by_each_class():
    x, target, w, e = scores((4,)), targets((4,)), weights(), 0.3
    log_p = x.log_softmax(1)
    peak = -(w[target] * log_p[range(4), target])
    floor = -(w * log_p).sum(1)
    expected = ((1 - e) * peak + e / CLASSES * floor).sum() / w[target].sum()
    torch.testing.assert_close(OURS.cross_entropy(x, target, w, label_smoothing=e), expected)


def test_strides_do_not_matter():
    """Torch's backward refuses some of them (nll_loss2d_backward: grad_input must be contiguous)."""
    x = scores((2, 3, 4)).permute(0, 1, 3, 2).contiguous(memory_format=torch.channels_last).requires_grad_()
    target = targets((2, 3, 4)).transpose(1, 2)
    weight = weights().repeat_interleave(2)[::2]
    for name in NAMES:
        ours = run(getattr(OURS, name), [x, target], weight=weight)
        theirs = run(getattr(THEIRS, name), [x.detach().contiguous().requires_grad_(), target], weight=weight)
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_low_precision_is_rounded_once(dtype):
    x, target = scores((64,), dtype=dtype).requires_grad_(), targets((64,))
    results = [run(f, [x, target], weight=weights(dtype)) for f in (OURS.cross_entropy, THEIRS.cross_entropy)]
    wide = [x.detach().double().requires_grad_(), target]
    truth = run(THEIRS.cross_entropy, wide, weight=weights(dtype).double())
    assert [t.dtype for t in results[0]] == [dtype, dtype]
    # The gradient that comes in has been rounded too, for the oracle it has not.
    assert relative_error(results[0][0], truth[0]) <= torch.finfo(dtype).eps / 2
    assert relative_error(results[0][1], truth[1]) <= torch.finfo(dtype).eps


@pytest.mark.parametrize("dtypes", [(torch.float32, torch.float64), (torch.bfloat16, torch.float32)], ids=str)
def test_probabilities_of_another_dtype(dtypes):
    for first, second in (dtypes, dtypes[::-1]):
        x, target = scores((3,), dtype=first).requires_grad_(), scores((3,), seed=4).softmax(1).to(second)
        ours, theirs = (run(f.cross_entropy, [x, target.requires_grad_()]) for f in (OURS, THEIRS))
        assert [t.dtype for t in ours] == [t.dtype for t in theirs]


X, T, W = torch.ones(4, 3), torch.tensor([0, 1, 2, 0]), torch.ones(3)
SPATIAL = torch.ones(2, 3, 4, 5)
WRONG = {
    "above the classes": ((X, T + 2), {}),
    "below the classes": ((X, T - 1), {}),
    "above, with weights": ((X, T * 0 + 5, W), {}),
    "above, in an image": ((SPATIAL, torch.full((2, 4, 5), 3)), {}),
    "too few targets": ((X, T[:3]), {}),
    "no batch of targets": ((X, T[0]), {}),
    "targets in two dimensions": ((X, T[:, None]), {}),
    "two targets for one sample": ((X[0], T[:2]), {}),
    "three dimensions": ((SPATIAL[..., 0], torch.zeros(2, 5).long()), {}),
    "four dimensions": ((SPATIAL, torch.zeros(2, 4, 4).long()), {}),
    "four dimensions, too few": ((SPATIAL, torch.zeros(2, 4).long()), {}),
    "five dimensions": ((SPATIAL[..., None], torch.zeros(2, 4, 5).long()), {}),
    "int32": ((X, T.int()), {}),
    "bool": ((X, T.bool()), {}),
    "floats that are no probabilities": ((X, T.float()), {}),
    "uint8 in an image": ((SPATIAL, torch.zeros(2, 4, 5).byte()), {}),
    "size of weight": ((X, T, W[:2]), {}),
    "shape of weight": ((X, T, W[None]), {}),
    "size of weight in an image": ((SPATIAL, torch.zeros(2, 4, 5).long(), W[:2]), {}),
    "dtype of weight": ((X, T, W.double()), {}),
    "weight with a gradient": ((X, T, W.clone().requires_grad_()), {}),
    "weight with a gradient, in an image": (
        (SPATIAL, torch.zeros(2, 4, 5).long(), W.clone().requires_grad_()),
        {},
    ),
    "integer scores": ((X.long(), T), {}),
    "integer scores in an image": ((SPATIAL.long(), torch.zeros(2, 4, 5).long()), {}),
    "reduction": ((X, T), {"reduction": "average"}),
}
WRONG_PROBABILITIES = {
    "integers": ((X, X.long()), {}),
    "ignore_index": ((X, X), {"ignore_index": 1}),
    "smoothing": ((X, X), {"label_smoothing": 1.5}),
    "smoothing of classes": ((X, T), {"label_smoothing": 2.0}),
    "size of weight": ((X, X, W[:2]), {}),
    "a scalar": ((X[0, 0], T[0]), {}),
}


@pytest.mark.parametrize(("name", "case"), [(n, c) for n in NAMES for c in WRONG])
def test_errors(name, case):
    if torch.__version__ < "2.13" and case in ("int32", "bool", "floats that are no probabilities"):
        pytest.skip("another message")
    assert_same_error(name, *WRONG[case])


@pytest.mark.parametrize("case", WRONG_PROBABILITIES)
def test_errors_with_probabilities(case):
    assert_same_error("cross_entropy", *WRONG_PROBABILITIES[case])


def test_a_score_without_classes():
    assert_same_error("nll_loss", (X[0, 0], T[0]), {})


def assert_same_error(name, args, kwargs):
    with pytest.raises(Exception) as theirs:
        getattr(THEIRS, name)(*args, **kwargs)
    with pytest.raises(type(theirs.value)) as ours:
        getattr(OURS, name)(*args, **kwargs)
    assert str(ours.value) == str(theirs.value)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("deprecated", [{"size_average": False}, {"reduce": False}, {"reduction": "elementwise_mean"}])
def test_deprecated_arguments_warn_at_the_callers_line(name, deprecated):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        mine = getattr(OURS, name)(X, T, **deprecated)
        theirs = getattr(THEIRS, name)(X, T, **deprecated)
    torch.testing.assert_close(mine, theirs)
    assert caught[0].filename == __file__
    assert caught[0].category is caught[1].category
    assert str(caught[0].message) == str(caught[1].message)


def test_autocast_computes_in_float32():
    with torch.autocast("cpu", torch.bfloat16):
        for args in ((X.bfloat16(), T), (X, T, W.bfloat16()), (X.bfloat16(), T, W), (X.double(), T)):
            for name in NAMES:
                mine, theirs = (getattr(f, name)(*args) for f in (OURS, THEIRS))
                assert mine.dtype == theirs.dtype
                torch.testing.assert_close(mine, theirs)


@pytest.mark.skipif(torch.__version__ < "2.13", reason="operations are left to the interpreter there")
@pytest.mark.parametrize("name", NAMES)
def test_compiled(name):
    function = getattr(OURS, name)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    given = [scores((4, 3)).requires_grad_(), targets((4, 3)), weights()]
    torch.testing.assert_close(run(compiled, given), run(function, given))


def test_vmap_of_gradients_by_sample():
    x, target = scores((6,)), targets((6,))
    by_sample = torch.func.vmap(torch.func.grad(OURS.cross_entropy))(x, target)
    torch.testing.assert_close(by_sample, x.softmax(1) - torch.eye(CLASSES).double()[target])
