"""Dropout from first principles: on the CPU every bit is torch's."""

import pytest
import torch
import torch.nn.functional as torchs

import reimpl.nn.functional as ours
from layers import WHOLE
from reimpl.verify.distance import same_bits

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def forward_and_back(function, x, *arguments, **options):
    """Return output, gradient, second-order gradient, and where the random numbers stand, from the same seed."""
    torch.manual_seed(11)
    leaf = x.detach().clone().requires_grad_()
    output = function(leaf * 1, *arguments, **options)
    upstream = torch.linspace(-2, 2, output.numel()).view(output.shape).to(output).requires_grad_()
    (grad,) = torch.autograd.grad(output, leaf, upstream, create_graph=True)
    (second,) = torch.autograd.grad(grad, upstream, torch.ones_like(grad))
    return output.detach(), grad.detach(), second, torch.get_rng_state()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.7, 1.0, True])
def test_bits(p, training, inplace, dtype):
    for x in (
        torch.randn(33, 5),
        torch.randn(()),
        torch.randn(0, 3),
        torch.randn(6, 4).t(),
        torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        torch.tensor([float("inf"), float("nan"), -0.0, 1.0]),
    ):
        mine, theirs = (
            forward_and_back(module.dropout, x.to(dtype), p, training, inplace) for module in (ours, torchs)
        )
        assert all(same_bits(a, b) for a, b in zip(mine, theirs, strict=True))
        assert mine[0].stride() == theirs[0].stride()


def test_defaults():
    mine, theirs = (forward_and_back(module.dropout, torch.ones(50)) for module in (ours, torchs))
    assert same_bits(mine[0], theirs[0])
    assert mine[0].unique().tolist() == [0, 2]


@pytest.mark.parametrize("p", [-0.1, 1.1, float("inf"), "0.5", None])
@pytest.mark.parametrize("training", [True, False])
def test_a_wrong_probability(p, training):
    errors = []
    for module in (ours, torchs):
        with pytest.raises((ValueError, TypeError)) as caught:
            module.dropout(torch.ones(3), p, training)
        errors.append((caught.type, str(caught.value)))
    assert errors[0][0] is errors[1][0]
    if errors[1][0] is ValueError:
        assert errors[0] == errors[1]


def test_nan_is_no_probability():
    with pytest.raises(ValueError, match="dropout probability has to be between 0 and 1, but got nan"):
        ours.dropout(torch.ones(3), float("nan"))


def test_integers_and_leaves_are_refused_as_torch_does():
    for x, inplace in (
        (torch.tensor([1, 2]), False),
        (torch.tensor([1, 2]), True),
        (torch.ones(3, requires_grad=True), True),
        (torch.ones(1).expand(3), True),
    ):
        errors = []
        for module in (ours, torchs):
            with pytest.raises(RuntimeError) as caught:
                module.dropout(x, 0.5, True, inplace)
            errors.append(str(caught.value))
        assert errors[0] == errors[1]
    assert torch.equal(ours.dropout(torch.tensor([1, 2]), 1.0), torch.tensor([0, 0]))


@pytest.mark.parametrize("p", [0.3, 1.0])
def test_gradients_of_first_and_second_order(p):
    def function(x):
        torch.manual_seed(1)
        return ours.dropout(x, p)

    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(function, x)
    assert torch.autograd.gradgradcheck(function, x)


@pytest.mark.parametrize("inplace", [False, True])
def test_compiles_whole(inplace):
    compiled = torch.compile(
        lambda x: ours.dropout(x * 1, 0.5, True, inplace), fullgraph=WHOLE, backend="aot_eager", dynamic=False
    )
    x = torch.ones(40, requires_grad=True)
    y = compiled(x)
    assert set(y.unique().tolist()) == {0, 2}
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())
    torch._dynamo.reset()


@pytest.mark.parametrize("randomness", ["same", "different"])
def test_maps_as_torchs(randomness):
    x = torch.ones(4, 30)
    results = []
    for module in (ours, torchs):
        torch.manual_seed(2)
        results.append(torch.func.vmap(lambda x: module.dropout(x, 0.5), randomness=randomness)(x))  # noqa: B023
    assert same_bits(*results)


@pytest.mark.cuda
def test_the_distribution_on_cuda():
    y = ours.dropout(torch.ones(100_000, device="cuda"), 0.3)
    assert y.mean().item() == pytest.approx(1, abs=0.01)
