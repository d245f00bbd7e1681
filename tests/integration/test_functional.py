"""`torch.func` on a model of our layers: gradients by sample, ensembles, higher derivatives, on either functional."""

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, jacfwd, jacrev, jvp, stack_module_state, vmap

import reimpl
import reimpl.nn.functional
from reimpl.verify.distance import same_bits

PRINCIPLES = reimpl.nn.functional
CLOSE = {"rtol": 1e-9, "atol": 1e-12}
"""In float64, for arithmetic that rounds elsewhere; measured 3e-16."""


def network(seed=1):
    """Return a small network without batch normalisation, which has no gradient by sample."""
    torch.manual_seed(seed)
    return nn.Sequential(
        *(nn.Conv2d(1, 3, 3), nn.Tanh(), nn.MaxPool2d(2), nn.Conv2d(3, 2, 2), nn.Sigmoid(), nn.AvgPool2d(2)),
        *(nn.Flatten(), nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 5), nn.LogSoftmax(1)),
    ).double()


def swapped(model, functional=nn.functional):
    model = copy.deepcopy(model)
    assert len(reimpl.swap(model, functional=functional).swapped) == 12
    return model


def batch(count=6):
    generator = torch.Generator().manual_seed(2)
    images = torch.randn(count, 1, 8, 8, generator=generator, dtype=torch.float64)
    return images, torch.randint(5, (count,), generator=generator)


def loss_of(model):
    """Return the loss as a function of the parameters and one sample."""

    def loss(parameters, image, label):
        scores = functional_call(model, parameters, (image.unsqueeze(0),))
        return nn.functional.nll_loss(scores, label.unsqueeze(0))

    return loss


def by_sample(model):
    return vmap(grad(loss_of(model)), in_dims=(None, 0, 0))(parameters_of(model), *batch())


def ensemble(model):
    models = [copy.deepcopy(model) for _ in range(3)]
    for seed, member in enumerate(models):
        torch.manual_seed(seed)
        for parameter in member.parameters():
            nn.init.normal_(parameter)
    images, _ = batch()
    return vmap(lambda *state: functional_call(model, state, images))(*stack_module_state(models))


def jacobian(model):
    return jacrev(lambda p: functional_call(model, p, batch()[0]))(parameters_of(model))


def hessian_of(model, outer):
    """Differentiate twice by the last layer's bias."""
    image, label = (tensor[0] for tensor in batch())
    parameters = parameters_of(model)
    bias = parameters.pop("9.bias")
    return outer(jacrev(lambda b: loss_of(model)({**parameters, "9.bias": b}, image, label)))(bias)


def reverse_over_reverse(model):
    return hessian_of(model, jacrev)


def forward_over_reverse(model):
    """`torch.func.hessian` is this."""
    return hessian_of(model, jacfwd)


def forward_mode(model):
    parameters = parameters_of(model)
    tangents = {name: torch.ones_like(value) for name, value in parameters.items()}
    return jvp(lambda p: functional_call(model, p, batch()[0]), (parameters,), (tangents,))


def parameters_of(model):
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


BACKWARD = (by_sample, ensemble, jacobian, reverse_over_reverse)
FORWARD = (forward_mode, forward_over_reverse)


def tensors(found):
    if isinstance(found, torch.Tensor):
        return [found]
    return [tensor for part in (found.values() if isinstance(found, dict) else found) for tensor in tensors(part)]


@pytest.mark.parametrize("transform", [*BACKWARD, *FORWARD])
def test_on_torchs_kernels(transform):
    expected = tensors(transform(network()))
    found = tensors(transform(swapped(network())))
    assert len(found) == len(expected) > 0
    assert all(map(same_bits, found, expected))


@pytest.mark.parametrize("transform", BACKWARD)
def test_from_first_principles(transform):
    expected, found = (tensors(transform(model)) for model in (network(), swapped(network(), PRINCIPLES)))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, **CLOSE)


@pytest.mark.parametrize("transform", FORWARD)
def test_no_forward_mode_from_first_principles(transform):
    """An operation has a backward alone, and torch says so."""
    with pytest.raises(NotImplementedError, match="You must implement the jvp function"):
        transform(swapped(network(), PRINCIPLES))


def test_gradients_by_sample_are_those_of_each_sample():
    model = swapped(network(), PRINCIPLES)
    found = by_sample(model)
    for i, (image, label) in enumerate(zip(*batch(), strict=True)):
        model.zero_grad()
        nn.functional.nll_loss(model(image.unsqueeze(0)), label.unsqueeze(0)).backward()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(found[name][i], parameter.grad, **CLOSE)
