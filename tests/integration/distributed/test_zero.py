"""`ZeroRedundancyOptimizer`: each process steps some of the parameters, and sends them to the others."""

import pytest
import torch
import torch.distributed as dist
from torch.distributed.algorithms.join import Join
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.parallel import DistributedDataParallel

from helpers import OPTIONS, assert_same, pair, snapshot


def whole_state(optimizer):
    """Return the state of all processes, in the first of them, and nothing in the others."""
    optimizer.consolidate_state_dict(to=0)
    if dist.get_rank() != 0:
        return {}
    states = optimizer.state_dict()["state"]
    return {f"state[{i}].{key}": value for i, state in states.items() for key, value in state.items()}


def ends(optimizer):
    """Return parameters and all state; of `optimizer.state` a process has its part."""
    params = [param for group in optimizer.param_groups for param in group["params"]]
    return {f"param[{i}]": param.detach().clone() for i, param in enumerate(params)} | whole_state(optimizer)


@pytest.mark.parametrize("as_view", [False, True], ids=["parameters", "buckets"])
@pytest.mark.usefixtures("torchs_loop")
def test_as_torchs(name, foreach, as_view, network, train):
    found = []
    for cls in pair(name):
        model = DistributedDataParallel(network())
        optimizer = ZeroRedundancyOptimizer(
            model.parameters(), cls, parameters_as_bucket_view=as_view, foreach=foreach, **OPTIONS[name]
        )
        found.append(ends(train(model, optimizer)))
    assert_same(*found)


def test_as_without(name, engine, network, train):
    """The parameters' bits are those of our optimizer without it, the fused engine's too."""
    cls, options = pair(name)[0], {**engine, **OPTIONS[name]}
    model, plain = (DistributedDataParallel(network()) for _ in range(2))
    sharing = ZeroRedundancyOptimizer(model.parameters(), cls, parameters_as_bucket_view=True, **options)
    alone = snapshot(train(plain, cls(plain.parameters(), **options)))
    found = ends(train(model, sharing))
    assert_same(found, {key: alone[key] for key in found})


def test_scheduler_group_and_checkpoint(engine, network, train, assert_as_torchs):
    """A group that joins later, a learning rate that changes, and a start from the whole state."""

    def make(cls, engine, model):
        options = {**engine, **OPTIONS["Adam"]}
        return ZeroRedundancyOptimizer(model[:2].parameters(), cls, **options)

    def end(cls, engine):
        model = network()
        first = make(cls, engine, model)
        first.add_param_group({"params": list(model[2:].parameters()), "lr": 0.1})
        scheduler = torch.optim.lr_scheduler.StepLR(first, 1, 0.5)
        for step in range(3):
            train(model, first, 1, first=step)
            scheduler.step()
        first.consolidate_state_dict(to=0)
        saved = [first.state_dict() if dist.get_rank() == 0 else None]
        dist.broadcast_object_list(saved)
        second = make(cls, engine, model)
        second.add_param_group({"params": list(model[2:].parameters())})
        second.load_state_dict(saved[0])
        train(model, second, 2, first=3)
        return ends(second)

    assert_as_torchs("Adam", engine, end)


@pytest.mark.parametrize("uneven", ["SGD", "AdamW"])
def test_join_with_uneven_inputs(uneven, foreach, network, train):
    found = []
    for cls in pair(uneven):
        model = DistributedDataParallel(network())
        optimizer = ZeroRedundancyOptimizer(model.parameters(), cls, foreach=foreach, **OPTIONS[uneven])
        with Join([model, optimizer]):
            train(model, optimizer, 2 + dist.get_rank())
        found.append(ends(optimizer))
    assert_same(*found)


def test_overlap_is_for_torchs_own(network):
    """It replaces a class by another of torch's own, from a table; a class that the table lacks is refused."""
    for cls in (pair("Adam")[0], torch.optim.NAdam):
        with pytest.raises(ValueError, match="no supported functional optimizer equivalent"):
            ZeroRedundancyOptimizer(network().parameters(), cls, overlap_with_ddp=True)
