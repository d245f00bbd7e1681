"""Pipeline parallel: every process has some of the layers, and an optimizer of its own for them."""

import pytest
import torch
import torch.distributed as dist
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe

import reimpl
import reimpl.nn.functional
from helpers import OPTIONS, assert_same, pair, snapshot
from reimpl.verify.distance import relative_error

SCHEDULES = pytest.mark.parametrize("schedule", [ScheduleGPipe, Schedule1F1B])
MICROBATCHES = 4


def layers(stage, device):
    """Return the layers of a stage."""
    torch.manual_seed(stage)
    return torch.nn.Sequential(torch.nn.Linear(6, 6), torch.nn.Tanh()).to(device)


def batch(step, device):
    generator = torch.Generator().manual_seed(step)
    return [torch.randn(8, 6, generator=generator).to(device) for _ in range(2)]


def train(module, optimizer, schedule, device):
    """Take steps with this process's stage."""
    rank, last = dist.get_rank(), dist.get_world_size() - 1
    stage = PipelineStage(module, rank, last + 1, torch.device(device))
    pipeline = schedule(stage, MICROBATCHES, loss_fn=torch.nn.functional.mse_loss)
    for step in range(3):
        inputs, targets = batch(step, device)
        optimizer.zero_grad()
        pipeline.step(*([inputs] if rank == 0 else []), **({"target": targets} if rank == last else {}))
        optimizer.step()
    return optimizer


@SCHEDULES
@pytest.mark.parametrize("trained", ["SGD", "AdamW", "Muon", "Adafactor"])
def test_as_torchs(schedule, trained, device):
    """With our layers in ours, and torch's in torch's."""
    ends = []
    for cls in pair(trained):
        module = layers(dist.get_rank(), device)
        if trained == "Muon":
            module[0].register_parameter("bias", None)
        if not ends:
            reimpl.swap(module)
        ends.append(train(module, cls(module.parameters()), schedule, device))
    assert_same(*ends)


@SCHEDULES
def test_as_in_one_process(schedule, engine, device):
    """The stages' gradients are those of the whole network, summed over parts of the batch in the same order."""
    rank, count = dist.get_rank(), dist.get_world_size()
    cls, options = pair("AdamW")[0], {**engine, **OPTIONS["AdamW"]}
    module = layers(rank, device)
    reimpl.swap(module)
    stage = train(module, cls(module.parameters(), **options), schedule, device)

    whole = torch.nn.Sequential(*(layers(index, device) for index in range(count)))
    reimpl.swap(whole)
    optimizers = [cls(part.parameters(), **options) for part in whole]
    for step in range(3):
        whole.zero_grad()
        for inputs, targets in zip(*(tensor.chunk(MICROBATCHES) for tensor in batch(step, device)), strict=True):
            torch.nn.functional.mse_loss(whole(inputs), targets).backward()
        for part, optimizer in zip(whole, optimizers, strict=True):
            for param in part.parameters():
                param.grad /= MICROBATCHES
            optimizer.step()
    assert_same(stage, optimizers[rank])


@SCHEDULES
def test_first_principles(schedule, device):
    ends = []
    for functional in (reimpl.nn.functional, torch.nn.functional):
        module = layers(dist.get_rank(), device)
        reimpl.swap(module, functional=functional)
        ends.append(snapshot(train(module, pair("SGD")[0](module.parameters(), lr=0.1), schedule, device)))
    for key, value in ends[1].items():
        assert relative_error(ends[0][key], value) < 1e-6, key  # measured: at most 8e-8
