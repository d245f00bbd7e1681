"""Data parallel: every process has all parameters, and gradients are averaged between backward and step."""

import contextlib
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.distributed.algorithms.model_averaging.averagers import PeriodicModelAverager
from torch.distributed.optim import (
    PostLocalSGDOptimizer,
    _apply_optimizer_in_backward,
    _get_in_backward_optimizers,
)
from torch.nn.parallel import DistributedDataParallel

import reimpl
import reimpl.nn.functional
from helpers import OPTIONS, assert_same, pair, snapshot
from reimpl.verify.distance import relative_error

SMALL_BUCKETS = {"bucket_cap_mb": 1e-4}
"""So small that a network has several, and one ends between a weight and its bias."""

SETTINGS = {
    "small buckets": SMALL_BUCKETS,
    "gradients are views of buckets": {"gradient_as_bucket_view": True, **SMALL_BUCKETS},
    "static graph": {"static_graph": True},
}


def assert_same_everywhere(model):
    """Assert that the parameters of all processes agree in every bit."""
    found = torch.cat([param.detach().flatten() for param in model.parameters()])
    everywhere = [torch.empty_like(found) for _ in range(dist.get_world_size())]
    dist.all_gather(everywhere, found)
    assert all(torch.equal(found, other) for other in everywhere)


@pytest.mark.usefixtures("torchs_loop")
def test_as_torchs(name, foreach, network, train):
    ends = []
    for cls in pair(name):
        model = DistributedDataParallel(network())
        ends.append(train(model, cls(model.parameters(), foreach=foreach, **OPTIONS[name])))
        assert_same_everywhere(model)
    assert_same(*ends)


def test_as_alone(name, engine, network, assert_as_alone):
    model, plain = DistributedDataParallel(network()), network()
    optimizer, alone = (pair(name)[0](m.parameters(), **engine, **OPTIONS[name]) for m in (model, plain))
    assert_as_alone(optimizer, model, alone, plain)


@pytest.mark.parametrize("setting", SETTINGS)
def test_settings(setting, engine, network, assert_as_alone, train):
    def start(cls, engine):
        model = DistributedDataParallel(network(), **SETTINGS[setting])
        return model, cls(model.parameters(), **engine, **OPTIONS["Adam"])

    (model, optimizer), plain = start(pair("Adam")[0], engine), network()
    assert_as_alone(optimizer, model, pair("Adam")[0](plain.parameters(), **engine, **OPTIONS["Adam"]), plain)
    if "fused" not in engine:
        model, theirs = start(pair("Adam")[1], engine)
        assert_same(optimizer, train(model, theirs))


class Sometimes(torch.nn.Module):
    """A network that leaves out a layer, in every other step and then only in some processes."""

    def __init__(self, network):
        super().__init__()
        self.network, self.extra, self.never, self.calls = network, torch.nn.Linear(5, 5), torch.nn.Linear(2, 2), 0

    def forward(self, input):
        self.calls += 1
        used = self.calls % 2 and self.calls % dist.get_world_size() == dist.get_rank()
        return self.network(self.extra(input) if used else input)


@pytest.mark.parametrize("seldom", ["SGD", "AdamW", "Rprop"])
def test_unused_parameters(seldom, foreach, network, train):
    """Those that no process has used keep their place; those that one has used move in all."""
    ends = []
    for cls in pair(seldom):
        torch.manual_seed(2)
        model = DistributedDataParallel(Sometimes(network()), find_unused_parameters=True)
        ends.append(train(model, cls(model.parameters(), foreach=foreach, **OPTIONS[seldom]), 4))
        assert_same_everywhere(model)
        assert model.module.never.weight not in ends[-1].state
    assert_same(*ends)


def channels_last():
    torch.manual_seed(3)
    layers = [torch.nn.Conv2d(3, 4, 3), torch.nn.Tanh(), torch.nn.Flatten(), torch.nn.Linear(64, 3)]
    return torch.nn.Sequential(*layers).to(memory_format=torch.channels_last)


@pytest.mark.parametrize("as_view", [False, True], ids=["copied", "view"])
def test_memory_order(as_view, engine, batch, device, assert_as_torchs):
    """Gradients in the memory order of a convolution's weight, in a bucket or not."""

    def end(cls, engine):
        model = DistributedDataParallel(channels_last().to(device), gradient_as_bucket_view=as_view)
        optimizer = cls(model.parameters(), **engine, **OPTIONS["Adam"])
        for step in range(3):
            inputs, targets = batch(step, inputs=(3, 6, 6))
            optimizer.zero_grad()
            torch.nn.functional.mse_loss(model(inputs), targets).backward()
            optimizer.step()
        weight = next(model.parameters())
        assert weight.stride() == optimizer.state[weight]["exp_avg"].stride() == (27, 1, 9, 3)
        return optimizer

    assert_as_torchs("Adam", engine, end)


def power_sgd(model):
    state = powerSGD_hook.PowerSGDState(None, start_powerSGD_iter=2, min_compression_rate=1)
    model.register_comm_hook(state, powerSGD_hook.powerSGD_hook)


HOOKS = {
    "allreduce": lambda model: model.register_comm_hook(None, default_hooks.allreduce_hook),
    "fp16": lambda model: model.register_comm_hook(None, default_hooks.fp16_compress_hook),
    "PowerSGD": power_sgd,
}


@pytest.mark.parametrize("hook", HOOKS)
def test_communication_hooks(hook, foreach, network, train):
    ends = []
    for cls in pair("SGD"):
        model = DistributedDataParallel(network(), gradient_as_bucket_view=True)
        HOOKS[hook](model)
        ends.append(train(model, cls(model.parameters(), foreach=foreach, **OPTIONS["SGD"]), 5))
        assert_same_everywhere(model)
    assert_same(*ends)


def test_accumulated_gradients(foreach, network, batch):
    ends = []
    for cls in pair("Adam"):
        model = DistributedDataParallel(network(), gradient_as_bucket_view=True)
        optimizer = cls(model.parameters(), foreach=foreach, **OPTIONS["Adam"])
        for step in range(3):
            optimizer.zero_grad()
            with model.no_sync():
                model(batch(10 + step)[0]).square().mean().backward()
            model(batch(step)[0]).square().mean().backward()
            optimizer.step()
        ends.append(optimizer)
    assert_same(*ends)


@pytest.mark.parametrize("uneven", ["SGD", "AdamW"])
def test_join_with_uneven_inputs(uneven, foreach, network, train):
    """A process without a batch goes along in the averages, and gets the parameters of the last that had one."""
    ends = []
    for cls in pair(uneven):
        model = DistributedDataParallel(network())
        with model.join():
            ends.append(train(model, cls(model.parameters(), foreach=foreach, **OPTIONS[uneven]), 2 + dist.get_rank()))
        assert_same_everywhere(model)
    assert_same(*ends)


@pytest.fixture
def streams(monkeypatch, device):
    """Stand in for the streams of an accelerator, on which DDP's overlapped steps run, where there is none."""
    if device == "cpu":
        monkeypatch.setattr(torch, "Stream", contextlib.nullcontext)
        monkeypatch.setattr(torch.accelerator, "current_stream", mock.Mock)


@pytest.mark.usefixtures("streams")
@pytest.mark.parametrize("shared", [False, True], ids=["alone", "DDP"])
def test_in_backward(name, engine, shared, network, batch):
    """An optimizer for each parameter, stepped as soon as the parameter's gradient is there."""

    def end(cls, engine, in_backward):
        model = network()
        options = {**engine, **OPTIONS[name]}
        optimizers = [cls(model.parameters(), **options)]
        if in_backward:
            _apply_optimizer_in_backward(cls, model.parameters(), options, register_hook=not shared)
            optimizers = _get_in_backward_optimizers(model)
        model = DistributedDataParallel(model, **SMALL_BUCKETS) if shared else model
        for step in range(3):
            inputs, targets = batch(step)
            torch.nn.functional.mse_loss(model(inputs), targets).backward()
            if not in_backward:
                optimizers[0].step()
                optimizers[0].zero_grad()
            assert all(param.grad is None for param in model.parameters())
        return [snapshot(optimizer) for optimizer in optimizers]

    ours, _ = pair(name)
    found, (expected,) = end(ours, engine, in_backward=True), end(ours, engine, in_backward=False)
    for i, alone in enumerate(found):
        assert_same(alone, {k.replace(f"[{i}]", "[0]"): v for k, v in expected.items() if f"[{i}]" in k})


def test_functional_optimizers_are_torchs_own(network):
    """DDP's older overlap looks a class up in a table of torch's own; ours is refused like any other that it lacks."""
    for cls in (reimpl.optim.Adam, torch.optim.NAdam):
        with pytest.raises(ValueError, match="does not have a functional counterpart"):
            DistributedDataParallel(network())._register_fused_optim(cls, lr=0.1)


@pytest.mark.parametrize("local", ["SGD", "AdamW"])
def test_post_local_sgd(local, foreach, network, train):
    ends = []
    for cls in pair(local):
        model = network()
        inner = cls(model.parameters(), foreach=foreach, **OPTIONS[local])
        optimizer = PostLocalSGDOptimizer(inner, PeriodicModelAverager(period=2, warmup_steps=1))
        train(model, optimizer, 4)
        optimizer.load_state_dict(optimizer.state_dict())
        train(model, optimizer, 2, first=4)
        ends.append(inner)
    assert_same(*ends)


@pytest.mark.parametrize("special", ["Muon", "Adafactor", "LBFGS"])
def test_other_optimizers(special, network, batch):
    """What they read, a matrix, a norm or a loss, is the same in all processes, or differs alike with torch's."""
    ends = []
    for cls in pair(special):
        layers = network()
        params = [param for param in layers.parameters() if special != "Muon" or param.dim() == 2]
        model, optimizer = DistributedDataParallel(layers), cls(params, lr=0.1)
        for inputs, _ in map(batch, range(3)):

            def closure(inputs=inputs, model=model, optimizer=optimizer):
                optimizer.zero_grad()
                loss = model(inputs).square().mean()
                loss.backward()
                return loss

            optimizer.step(closure)
        ends.append(optimizer)
    assert_same(*ends)


@pytest.mark.parametrize("sparse", ["SparseAdam", "SGD", "Adagrad"])
def test_sparse_gradients(sparse, device):
    """The processes' rows are put together."""
    ends = []
    for cls in pair(sparse):
        torch.manual_seed(4)
        model = DistributedDataParallel(torch.nn.Embedding(9, 2, sparse=True).to(device))
        ends.append(cls(model.parameters(), lr=0.1))
        for step in range(3):
            ends[-1].zero_grad()
            rows = torch.tensor([step, 2 * dist.get_rank(), 2 * dist.get_rank() + 1], device=device)
            model(rows).square().sum().backward()
            assert model.module.weight.grad.is_sparse
            ends[-1].step()
        assert_same_everywhere(model)
    assert_same(*ends)


FUNCTIONALS = {"torch's kernels": torch.nn.functional, "first principles": reimpl.nn.functional}


@pytest.mark.parametrize("functional", FUNCTIONALS)
def test_our_layers(functional, network, train):
    theirs, ours = network(), network()
    reimpl.swap(ours, functional=FUNCTIONALS[functional])
    ends = []
    for model, cls in zip((ours, theirs), pair("AdamW"), strict=True):
        model = DistributedDataParallel(model, gradient_as_bucket_view=True)
        ends.append(snapshot(train(model, cls(model.parameters(), foreach=False))))
        assert_same_everywhere(model)
    if functional == "torch's kernels":
        assert_same(*ends)
    # A step of AdamW is as long for a small gradient as for a large one: measured 3e-7.
    assert all(relative_error(ends[0][key], value) < 1e-5 for key, value in ends[1].items())
