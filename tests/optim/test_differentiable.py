"""`differentiable=True`: gradients flow through the step."""

import pytest
import torch
from torch.autograd import gradcheck

from conftest import OPTIMIZERS
from helpers import pair

OPTIONS = {
    "SGD": [{"lr": 0.9}, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}, {"momentum": 0.9, "nesterov": True}],
    "Adagrad": [{"lr": 0.9, "weight_decay": 0.1, "lr_decay": 0.1}],
    "RMSprop": [{"lr": 0.9}, {"maximize": True, "momentum": 0.9, "centered": True, "weight_decay": 0.1}],
    "Adadelta": [{"lr": 0.9, "weight_decay": 0.1}],
    "Adam": [
        {"lr": 0.9, "amsgrad": True},
        {"lr": 0.1, "weight_decay": 0.1},
        {"weight_decay": 0.1, "decoupled_weight_decay": True},
    ],
    "AdamW": [{"weight_decay": 0.1}],
    "Adamax": [{"lr": 0.9, "weight_decay": 0.1}],
    "NAdam": [{"weight_decay": 0.1}, {"weight_decay": 0.1, "decoupled_weight_decay": True}],
    "RAdam": [{"weight_decay": 0.1}, {"betas": (0.5, 0.9), "decoupled_weight_decay": True, "weight_decay": 0.1}],
    "Rprop": [{"lr": 0.9, "etas": (0.3, 1.1)}],
    "ASGD": [{"lr": 0.9, "weight_decay": 0.1, "lambd": 0.1, "t0": 1}],
}
CASES = [pytest.param(name, options, id=f"{name}-{options}") for name, many in OPTIONS.items() for options in many]


def double(*shape):
    return torch.rand(*shape, dtype=torch.float64).requires_grad_()


def state_of(optimizer, group):
    """Return the names of the optimizer's state tensors under a group's options."""
    return [key for key, make in optimizer.new_state(group).items() if make is not None]


@pytest.mark.parametrize(("name", "options"), CASES)
def test_gradients_of_one_step(name, options):
    """Against finite differences, with respect to parameter, gradient and every state tensor."""
    ours, _ = pair(name)
    probe = ours([double(4)], **options)
    keys = state_of(probe, probe.param_groups[0])

    def step(param, gradient, *state):
        param = param.clone()
        param.grad = gradient
        optimizer = ours([param], differentiable=True, **options)
        group = optimizer.param_groups[0]
        optimizer.state[param] = optimizer.create_state(group, param)
        optimizer.state[param].update(zip(keys, (tensor.clone() for tensor in state), strict=True))
        optimizer.state[param].update({key: torch.tensor(0.5) for key in optimizer.new_scalars(group)})
        if optimizer.counts_steps:
            optimizer.state[param]["step"] = torch.tensor(10.0)
        optimizer.step()
        return (param, *(optimizer.state[param][key] for key in keys))

    # A small mean beside large squares keeps the centered difference positive.
    state = [(0.01 * double(4)).detach().requires_grad_() if key == "grad_avg" else double(4) for key in keys]
    assert gradcheck(step, (double(4), double(4), *state))


@pytest.mark.parametrize(("name", "options"), CASES)
def test_same_bits_as_the_loop(name, options):
    ours, _ = pair(name)
    start, gradients = double(6).detach(), [double(6).detach() for _ in range(4)]
    ends = []
    for differentiable in (False, True):
        param = start.clone().requires_grad_()
        param = param.clone() if differentiable else param
        optimizer = ours([param], differentiable=differentiable, **options)
        for gradient in gradients:
            param.grad = gradient.clone()
            optimizer.step()
        ends.append(param.detach())
    assert torch.equal(*ends)


HYPER = {
    "SGD": ["lr", "weight_decay"],
    "Adagrad": ["lr", "weight_decay", "lr_decay"],
    "RMSprop": ["lr", "weight_decay"],
    "Adadelta": ["lr", "weight_decay"],
    "Adam": ["lr", "weight_decay", "beta1", "beta2"],
    "AdamW": ["lr", "weight_decay", "beta1", "beta2"],
    "Adamax": ["lr", "weight_decay", "eps"],
    "NAdam": ["lr", "weight_decay"],
    "RAdam": ["lr", "weight_decay", "eps"],
    "ASGD": ["weight_decay", "lambd"],
}


"""Options that a gradient comes back to. None does to Rprop's, nor to the `lr` of Rprop and ASGD, here as in torch."""


def meta_loss(cls, name, options):
    """Return the loss after some steps as a function of the hyper-parameters."""
    start = torch.linspace(0.2, 1, 5, dtype=torch.float64)

    def loss(*values):
        arguments = dict(zip(HYPER[name], values, strict=True))
        if "beta1" in arguments:
            arguments["betas"] = (arguments.pop("beta1"), arguments.pop("beta2"))
        param = start.clone().requires_grad_().clone()
        optimizer = cls([param], differentiable=True, **arguments, **options)
        for _ in range(7 if name == "RAdam" else 3):  # in its first five, RAdam's second moment counts for nothing
            param.grad = torch.autograd.grad((param.clone() ** 3).sum(), param, create_graph=True)[0]
            optimizer.step()
        return (param**2).sum()

    return loss


@pytest.mark.parametrize("options", [{}, {"momentum": 0.9}], ids=str)
def test_gradients_of_hyper_parameters(name, options):
    if options and name not in ("SGD", "RMSprop"):
        pytest.skip("has no momentum")
    if name not in HYPER:
        pytest.skip("reads its options as numbers")
    loss = meta_loss(pair(name)[0], name, options)
    start = {"lr": 0.05, "weight_decay": 0.1, "lr_decay": 0.1, "beta1": 0.8, "beta2": 0.9}
    start |= {"eps": 0.1, "lambd": 0.1}
    values = [torch.tensor(start[key], dtype=torch.float64, requires_grad=True) for key in HYPER[name]]
    assert gradcheck(loss, values)
    assert all(gradient.abs() > 0 for gradient in torch.autograd.grad(loss(*values), values))


@pytest.fixture
def double_by_default():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("double_by_default")
@pytest.mark.parametrize("torch_name", ["SGD", "Adam", "AdamW", "RAdam"])
def test_gradient_of_lr_is_torchs(torch_name):
    """That is where torch has one: its NAdam overwrites in the second step what autograd still needs.

    With float64 step counts: torch's Adam computes the bias corrections from them, 7e-6 off with float32 ones."""
    gradients = []
    for cls in pair(torch_name):
        lr = torch.tensor(0.05, dtype=torch.float64, requires_grad=True)
        param = torch.linspace(0.2, 1, 5, dtype=torch.float64).requires_grad_().clone()
        optimizer = cls([param], lr=lr, differentiable=True)
        for _ in range(2):
            param.grad = torch.autograd.grad((param.clone() ** 3).sum(), param, create_graph=True)[0]
            optimizer.step()
        gradients.append(torch.autograd.grad((param**2).sum(), lr)[0])
    # A few roundings apart, measured 1.8e-16: torch folds Adam's step size into the denominator.
    torch.testing.assert_close(*gradients, rtol=1e-14, atol=0)


def test_lr_that_requires_gradients_without_differentiable(name):
    """Used as a number."""
    ours, _ = pair(name)
    ends = []
    for lr in (0.25, torch.tensor(0.25, requires_grad=True)):
        param = torch.ones(3, requires_grad=True)
        param.grad = torch.ones(3)
        ours([param], lr=lr).step()
        assert param.is_leaf
        ends.append(param.detach())
    assert torch.equal(*ends)


def test_leaf_is_refused(name):
    """As torch: a leaf that requires gradients cannot be changed in place inside the graph."""
    for cls in pair(name):
        param = torch.ones(3, requires_grad=True)
        param.grad = torch.ones(3)
        with pytest.raises(
            RuntimeError, match="a leaf Variable that requires grad is being used in an in-place operation"
        ):
            cls([param], differentiable=True).step()


@pytest.mark.parametrize("counting_name", [name for name in OPTIMIZERS if name != "SGD"])
def test_step_count_that_requires_gradients_is_refused(counting_name):
    param = double(3).clone()
    param.grad = torch.ones(3, dtype=torch.float64)
    optimizer = pair(counting_name)[0]([param], differentiable=True)
    optimizer.state[param] = optimizer.create_state(optimizer.param_groups[0], param)
    optimizer.state[param]["step"].requires_grad_()
    with pytest.raises(RuntimeError, match="`requires_grad` is not supported for `step` in differentiable mode"):
        optimizer.step()


@pytest.mark.parametrize("option", ["momentum_decay", "beta1"])
def test_gradients_of_nadams_momentum(option):
    """As torch's, in one step."""

    def loss(cls, value):
        param = torch.linspace(0.2, 1, 5, dtype=torch.float64).requires_grad_().clone()
        param.grad = torch.ones(5, dtype=torch.float64)
        options = {"momentum_decay": value} if option == "momentum_decay" else {"betas": (value, 0.999)}
        cls([param], lr=0.05, differentiable=True, **options).step()
        return (param**2).sum()

    value = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    ours, theirs = (torch.autograd.grad(loss(cls, value), value)[0] for cls in pair("NAdam"))
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)  # torch's bias corrections are in float32
