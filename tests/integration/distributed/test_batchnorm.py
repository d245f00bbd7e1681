"""Batch normalisation, whose statistics are those of a process or of all."""

import copy

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import reimpl
import reimpl.nn
import reimpl.nn.functional
from helpers import OPTIONS, assert_same, pair
from reimpl.verify.distance import same_bits

FUNCTIONALS = pytest.mark.parametrize(
    "functional", [torch.nn.functional, reimpl.nn.functional], ids=["kernels", "first principles"]
)


def convolutions(device):
    torch.manual_seed(1)
    layers = [torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU(), torch.nn.Flatten()]
    return torch.nn.Sequential(*layers, torch.nn.Linear(64, 3), torch.nn.BatchNorm1d(3)).to(device)


def train(model, optimizer, batch, count=3):
    for step in range(count):
        inputs, targets = batch(step, inputs=(3, 6, 6))
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(model(inputs), targets).backward()
        optimizer.step()
    return optimizer


def trained_with_ours_and_torchs(wrap, batch, device):
    """Return parameters and buffers of a network of our layers and of one of torch's, both wrapped and trained."""
    ends = []
    for cls, ours in zip(pair("SGD"), (True, False), strict=True):
        model = convolutions(device)
        if ours:
            reimpl.swap(model)
        model = wrap(model)
        train(model, cls(model.parameters(), foreach=False, **OPTIONS["SGD"]), batch)
        ends.append({name: tensor.detach().clone() for name, tensor in model.state_dict().items()})
    return ends


# A newer name exists since torch 2.13.
@pytest.mark.filterwarnings("ignore:`broadcast_buffers` is deprecated:FutureWarning")
@pytest.mark.parametrize("broadcast", [True, False])
def test_under_ddp(broadcast, batch, device):
    """Each process normalises by its own batch; before each pass all take process 0's running statistics, or not."""
    ours, theirs = trained_with_ours_and_torchs(
        lambda model: DistributedDataParallel(model, broadcast_buffers=broadcast), batch, device
    )
    assert_same(ours, theirs)
    everywhere = [torch.empty_like(ours["module.1.running_mean"]) for _ in range(dist.get_world_size())]
    dist.all_gather(everywhere, ours["module.1.running_mean"])
    assert not torch.equal(everywhere[0], everywhere[-1])


@FUNCTIONALS
def test_conversion(functional, device):
    """`convert_sync_batchnorm` makes torch's `SyncBatchNorm` of ours: the same tensors, on torch's kernels."""
    model = convolutions(device)
    reimpl.swap(model, functional=functional)
    before, state = model[1], copy.deepcopy(model.state_dict())
    converted = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
    assert type(converted[1]) is type(converted[5]) is torch.nn.SyncBatchNorm
    assert converted[1].weight is before.weight
    assert converted[1].running_mean is before.running_mean
    assert type(converted[0]) is reimpl.nn.Conv2d
    assert converted[0].functional is functional
    assert_same(dict(converted.state_dict()), dict(state))


@FUNCTIONALS
def test_converted_in_evaluation(functional, batch, device):
    """With running statistics there is nothing to ask of other processes, and also a processor can."""
    ours, theirs = convolutions(device), convolutions(device)
    train(theirs, torch.optim.SGD(theirs.parameters(), lr=0.1), batch)
    ours.load_state_dict(theirs.state_dict())
    reimpl.swap(ours[1], functional=functional)
    inputs = batch(5, inputs=(3, 6, 6))[0]
    found, expected = (torch.nn.SyncBatchNorm.convert_sync_batchnorm(model).eval()(inputs) for model in (ours, theirs))
    assert same_bits(found, expected)


def test_converted_in_training_needs_a_gpu(batch, device):
    """torch's `SyncBatchNorm` refuses tensors on the processor, before anything else has changed."""
    if device != "cpu":
        pytest.skip("each process has a GPU")
    model = convolutions(device)
    reimpl.swap(model)
    converted = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
    with pytest.raises(ValueError, match="SyncBatchNorm expected input tensor to be on GPU"):
        converted(batch(0, inputs=(3, 6, 6))[0])


@pytest.mark.cuda
def test_converted_in_training(batch, device):
    """All processes normalise by the statistics of the whole batch, and end with the same running ones."""
    if device == "cpu":
        pytest.skip("not every process has a GPU")

    def wrap(model):
        return DistributedDataParallel(torch.nn.SyncBatchNorm.convert_sync_batchnorm(model))

    ours, theirs = trained_with_ours_and_torchs(wrap, batch, device)
    assert_same(ours, theirs)
    everywhere = [torch.empty_like(ours["module.1.running_mean"]) for _ in range(dist.get_world_size())]
    dist.all_gather(everywhere, ours["module.1.running_mean"])
    assert torch.equal(everywhere[0], everywhere[-1])


def test_without_running_statistics(batch, device):
    """`torch.func.replace_all_batch_norm_modules_` finds ours too."""
    outputs = []
    for ours in (True, False):
        model = convolutions(device)
        if ours:
            reimpl.swap(model)
        torch.func.replace_all_batch_norm_modules_(model)
        assert list(model.buffers()) == []
        outputs.append(model.eval()(batch(0, inputs=(3, 6, 6))[0]))
    assert same_bits(*outputs)
