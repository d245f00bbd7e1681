"""Tensor parallel: each matrix product is divided among processes, and its parameters with it."""

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

import reimpl
import reimpl.nn.functional
from helpers import OPTIONS, assert_same, outcome, pair, parameters, set_gradients, snapshot
from reimpl.verify.distance import relative_error

PLANS = {
    "columns, then rows": {"0": ColwiseParallel(), "2": RowwiseParallel()},
    "sequence": {
        "0": ColwiseParallel(input_layouts=Shard(0)),
        "2": RowwiseParallel(output_layouts=Shard(0)),
        "3": SequenceParallel(sequence_dim=0),
    },
}


@pytest.fixture(scope="module")
def mesh(processes, device):
    """All processes in a row."""
    return init_device_mesh(device, (processes,))


@pytest.fixture(scope="module")
def grid(processes, device):
    """Two rows of processes: a step is sharded over rows, a matrix product over columns."""
    return init_device_mesh(device, (2, processes // 2), mesh_dim_names=("data", "tensor"))


def network(device, norm):
    torch.manual_seed(1)
    layers = [torch.nn.Linear(5, 8), torch.nn.Tanh(), torch.nn.Linear(8, 8)]
    return torch.nn.Sequential(*layers, *([torch.nn.LayerNorm(8)] if norm else [])).to(device)


def train(model, optimizer, device, seed=0):
    """Take steps; the processes that share a matrix product have the same batch."""
    for step in range(3):
        generator = torch.Generator().manual_seed(1000 * seed + step)
        optimizer.zero_grad()
        model(torch.randn(8, 5, generator=generator).to(device)).square()[:, :3].mean().backward()
        optimizer.step()
    return optimizer


@pytest.mark.parametrize("plan", PLANS)
def test_as_torchs(plan, engine, mesh, device, assert_as_torchs):
    """`parallelize_module` asks for torch's `Linear`, and ours is one."""

    def end(cls, engine):
        model = network(device, norm=plan == "sequence")
        if cls is pair("AdamW")[0]:
            reimpl.swap(model)
        parallelize_module(model, mesh, PLANS[plan])
        assert model[0].weight.placements == (Shard(0),)
        return train(model, cls(model.parameters(), **engine, **OPTIONS["AdamW"]), device)

    assert_as_torchs("AdamW", engine, end)


def test_plain_layer_among_them(engine, mesh, device):
    """The parameters of a layer that no plan names stay plain; torch's foreach path refuses them among the others."""

    def end(cls, engine):
        model = parallelize_module(network(device, norm=True), mesh, PLANS["columns, then rows"])
        return snapshot(train(model, cls(model.parameters(), **engine, **OPTIONS["AdamW"]), device))

    ours, theirs = end(pair("AdamW")[0], engine), end(pair("AdamW")[1], {"foreach": False})
    assert all(relative_error(ours[key], value) < 1e-5 for key, value in theirs.items())  # measured: at most 2e-7
    if "fused" not in engine:
        assert_same(ours, theirs)


def test_first_principles(mesh, device):
    """An operation of ours gets the shards' products of tensors, as torch's kernels do."""
    ends = []
    for functional in (reimpl.nn.functional, torch.nn.functional):
        model = network(device, norm=False)
        reimpl.swap(model, functional=functional)
        parallelize_module(model, mesh, PLANS["columns, then rows"])
        ends.append(snapshot(train(model, pair("SGD")[0](model.parameters(), lr=0.1), device)))
    assert all(relative_error(ends[0][key], value) < 1e-6 for key, value in ends[1].items())  # measured: 5e-8


# Of a row of one process, where a product is a view of itself.
@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module:UserWarning")
def test_with_fsdp(engine, grid, device, assert_as_torchs):
    """Sharded by both: weights that `_StridedShard` describes."""

    def end(cls, engine):
        model = network(device, norm=False)
        parallelize_module(model, grid["tensor"], PLANS["columns, then rows"])
        for layer in (model[0], model[2], model):
            fully_shard(layer, mesh=grid["data"])
        assert ("StridedShard" in str(model[0].weight.placements)) == (grid["tensor"].size() > 1)
        seed = grid["data"].get_local_rank()
        return train(model, cls(model.parameters(), **engine, **OPTIONS["Adam"]), device, seed)

    assert_as_torchs("Adam", engine, end)


PLACEMENTS = {
    "replicated": (Replicate(), Replicate()),
    "rows": (Replicate(), Shard(0)),
    "columns": (Shard(1), Replicate()),
    "rows and columns": (Shard(0), Shard(1)),
    "rows twice": (Shard(0), Shard(0)),
}


@pytest.mark.filterwarnings("ignore:While redistributing:UserWarning")
@pytest.mark.parametrize("placed", PLACEMENTS)
@pytest.mark.parametrize("trained", ["SGD", "AdamW", "Rprop"])
def test_placements(placed, trained, engine, grid, collectives):
    """Whatever a process has of a parameter, it updates alone, and as a part of the whole."""
    plain, others = ([p.detach().to(grid.device_type) for p in parameters(shapes=((7, 3), (1, 5)))] for _ in range(2))
    shared = [torch.nn.Parameter(distribute_tensor(param, grid, PLACEMENTS[placed])) for param in others]
    optimizer, alone = (pair(trained)[0](params, **engine, **OPTIONS[trained]) for params in (shared, plain))
    for step in range(3):
        set_gradients(plain, step)
        for param, other in zip(shared, plain, strict=True):
            param.grad = distribute_tensor(other.grad, grid, PLACEMENTS[placed])
        with collectives() as in_step:
            optimizer.step()
        assert in_step.names == []
        alone.step()
    assert_same(optimizer, alone)


@pytest.mark.parametrize("trained", ["SGD", "AdamW", "Rprop"])
def test_meshes_in_one_group(trained, engine, mesh, grid):
    """The parameters of a group may be spread over different processes."""
    plain, others = (
        [p.detach().to(grid.device_type) for p in parameters(shapes=((7, 3), (5,), (4,)))] for _ in range(2)
    )
    spread = [(grid, [Shard(1), Shard(0)]), (mesh, [Shard(0)]), (mesh, [Replicate()])]
    shared = [torch.nn.Parameter(distribute_tensor(p, *at)) for p, at in zip(others, spread, strict=True)]
    optimizer, alone = (pair(trained)[0](params, **engine, **OPTIONS[trained]) for params in (shared, plain))
    for step in range(3):
        set_gradients(plain, step)
        for param, other, at in zip(shared, plain, spread, strict=True):
            param.grad = distribute_tensor(other.grad, *at)
        optimizer.step()
        alone.step()
    assert_same(optimizer, alone)


@pytest.mark.parametrize("placement", [Replicate(), Shard(0), Shard(1)], ids=str)
@pytest.mark.parametrize("special", ["Muon", "Adafactor"])
def test_rules_that_are_not_elementwise(special, placement, mesh, collectives):
    """The same results by the same collectives, or the same error."""

    def end(cls):
        (plain,) = parameters(shapes=((8, 4),))
        param = torch.nn.Parameter(distribute_tensor(plain.detach().to(mesh.device_type), mesh, [placement]))
        optimizer, names = cls([param], lr=0.1), []
        for step in range(3):
            set_gradients([plain], step)
            param.grad = distribute_tensor(plain.grad.to(mesh.device_type), mesh, [placement])
            with collectives() as in_step:
                optimizer.step()
            names += in_step.names
        return snapshot(optimizer), names

    (error, ours), (their_error, theirs) = (outcome(lambda cls=cls: end(cls)) for cls in pair(special))
    assert error == their_error, ours
    if error:
        assert ours == theirs
    else:
        assert_same(ours[0], theirs[0])
        assert ours[1] == theirs[1]
        assert bool(ours[1]) == placement.is_shard()


def test_graph_from_before_the_step(engine, mesh):
    """Its backward would use numbers that are gone, and has to say so."""
    param = torch.nn.Parameter(distribute_tensor(torch.ones(5, device=mesh.device_type), mesh, [Shard(0)]))
    optimizer = pair("SGD")[0]([param], lr=0.1, **engine)
    loss = (param * param).sum()
    loss.backward(retain_graph=True)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


UNLIKE = {
    "sums that are due": (Replicate(), Partial()),
    "whole gradient of a shard": (Shard(0), Replicate()),
    "shard of a gradient": (Replicate(), Shard(0)),
    "another dimension": (Shard(0), Shard(1)),
}


@pytest.mark.parametrize("case", UNLIKE)
@pytest.mark.parametrize("trained", ["SGD", "Adam"])
def test_gradient_that_is_spread_otherwise(case, trained, engine, mesh):
    """As torch's: brought into place if torch can, else refused. Never taken for the gradient of the shard."""

    def end(cls, engine):
        whole_param, gradient = torch.arange(15.0).reshape(5, 3) / 7, torch.full((5, 3), 1.5)
        of_param, of_gradient = UNLIKE[case]
        param = torch.nn.Parameter(distribute_tensor(whole_param, mesh, [of_param]))
        optimizer = cls([param], lr=0.1, **engine)
        for _ in range(2):
            if of_gradient.is_partial():
                param.grad = DTensor.from_local(gradient, mesh, [of_gradient])
            else:
                param.grad = distribute_tensor(gradient, mesh, [of_gradient])
            optimizer.step()
        return snapshot(optimizer)

    ours, theirs = pair(trained)
    same_as = {"foreach": True} if "fused" in engine else engine
    (error, found), (their_error, expected) = (
        outcome(lambda: end(ours, engine)),
        outcome(lambda: end(theirs, same_as)),
    )
    assert error == their_error, found
    if not error:
        assert_same(found, expected)
