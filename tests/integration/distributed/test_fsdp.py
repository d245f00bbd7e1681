"""Fully sharded: every process has a part of each parameter, a `DTensor`, and of its state."""

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecisionPolicy, fully_shard
from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.debug import CommDebugMode

import reimpl
import reimpl.nn.functional
from helpers import OPTIONS, assert_same, outcome, pair, snapshot
from reimpl.verify.distance import relative_error


def sharded(model, **options):
    """Shard each layer that has parameters, then what is left."""
    for layer in model:
        if list(layer.parameters()):
            fully_shard(layer, **options)
    return fully_shard(model, **options)


def placements(optimizer):
    """Return how parameters and state are spread."""
    params = [param for group in optimizer.param_groups for param in group["params"]]
    tensors = [tensor for param in params for tensor in (param, *optimizer.state[param].values())]
    return [(tensor.placements, tensor.to_local().shape) for tensor in tensors if isinstance(tensor, DTensor)]


@pytest.fixture(params=["all", "halves"], scope="module")
def mesh(request, processes, device):
    """Shards over all processes, or over each half of them, where both halves have the same."""
    halves = {"all": 1, "halves": 2}[request.param]
    return init_device_mesh(device, (halves, processes // halves), mesh_dim_names=("replicate", "shard"))


@pytest.mark.usefixtures("torchs_loop")
def test_as_torchs(name, foreach, mesh, network, train):
    if name == "Rprop":
        pytest.skip("torch's Rprop cannot take sharded parameters")
    ours, theirs = (sharded(network(), mesh=mesh) for _ in range(2))
    ends = []
    for cls, model in zip(pair(name), (ours, theirs), strict=True):
        ends.append(train(model, cls(model.parameters(), foreach=foreach, **OPTIONS[name])))
    assert_same(*ends)
    assert placements(ends[0]) == placements(ends[1])


def test_as_alone(name, engine, network, assert_as_alone):
    model, plain = sharded(network()), network()
    optimizer, alone = (pair(name)[0](m.parameters(), **engine, **OPTIONS[name]) for m in (model, plain))
    assert_as_alone(optimizer, model, alone, plain)


def test_steps_without_communication(name, engine, network, train, collectives):
    model = sharded(network())
    optimizer = train(model, pair(name)[0](model.parameters(), **engine, **OPTIONS[name]), 1)
    with collectives() as step:
        optimizer.step()
    assert step.names == []
    with CommDebugMode() as watched:
        optimizer.step()
    assert watched.get_total_counts() == 0


def matrices(network):
    """Remove the biases, since Muon takes matrices only."""
    for layer in network:
        if hasattr(layer, "bias"):
            layer.register_parameter("bias", None)
    return network


@pytest.mark.parametrize("special", ["Muon", "Adafactor"])
def test_rules_that_are_not_elementwise(special, mesh, network, train, collectives):
    """The same results by the same collectives, or the same error."""

    def end(cls):
        model = sharded(matrices(network()), mesh=mesh)
        optimizer = train(model, cls(model.parameters()), 2)
        with collectives() as step:
            optimizer.step()
        return snapshot(optimizer), step.names

    (error, ours), (their_error, theirs) = (outcome(lambda cls=cls: end(cls)) for cls in pair(special))
    assert error == their_error, ours
    if error:
        assert ours == theirs
    else:
        assert_same(ours[0], theirs[0])
        assert ours[1] == theirs[1]
        assert bool(ours[1]) == (mesh["shard"].size() > 1)


def test_lbfgs(network, batch):
    """It lays all gradients out in one vector, which torch refuses for uneven shards; here with the same words."""

    def act(cls):
        model = sharded(network())
        optimizer = cls(model.parameters(), max_iter=3)

        def closure():
            optimizer.zero_grad()
            loss = model(batch(0)[0]).square().mean()
            loss.backward()
            return loss

        optimizer.step(closure)

    ours, theirs = (outcome(lambda cls=cls: act(cls)) for cls in pair("LBFGS"))
    assert ours == theirs
    assert "unevenly shard" in ours[1]


def test_mixed_precision(engine, network, train, assert_as_torchs):
    """Forward and backward in bfloat16; loss, sums of gradients, parameters and steps in float32."""

    def end(cls, engine):
        policy = MixedPrecisionPolicy(torch.bfloat16, reduce_dtype=torch.float32, output_dtype=torch.float32)
        model = sharded(network(), mp_policy=policy)
        return train(model, cls(model.parameters(), **engine, **OPTIONS["SGD"]))

    assert_as_torchs("SGD", engine, end)


def test_clipped_gradients(engine, network, batch, assert_as_torchs):
    """The norm of all shards is a `DTensor` too."""

    def end(cls, engine):
        model = sharded(network())
        optimizer = cls(model.parameters(), **engine, **OPTIONS["Adam"])
        for step in range(3):
            optimizer.zero_grad()
            model(batch(step)[0]).square().sum().backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()
        return optimizer

    assert_as_torchs("Adam", engine, end)


# Of the flag that the processes share, a plain tensor.
@pytest.mark.filterwarnings("ignore:Found a non-scalar tensor with numel=1:UserWarning")
def test_scaled_gradients(engine, network, batch, device, assert_as_torchs):
    """A loss of infinity in one process: all leave out the step."""

    def end(cls, engine):
        model = sharded(network())
        optimizer, scaler = cls(model.parameters(), **engine), ShardedGradScaler(device, init_scale=4.0)
        for step in range(4):
            optimizer.zero_grad()
            loss = model(batch(step)[0]).square().mean()
            scaler.scale(loss * float("inf") if (step, dist.get_rank()) == (2, 0) else loss).backward()
            scaler.step(optimizer)
            scaler.update()
        assert scaler.get_scale() == 2
        assert all(state["step"] == 3 for state in optimizer.state.values())
        return optimizer

    assert_as_torchs("AdamW", engine, end)


@pytest.mark.filterwarnings("ignore:FSDP will not all-gather:UserWarning")  # of layers that it leaves whole
@pytest.mark.parametrize("use_orig_params", [False, True], ids=["flat", "original"])
def test_fsdp1(use_orig_params, engine, network, train, device, assert_as_torchs):
    """Its parameters are plain tensors: flat ones, or views of them, of which a process may have nothing."""

    def end(cls, engine):
        policy = ModuleWrapPolicy({torch.nn.Linear})
        model = FullyShardedDataParallel(
            network(), auto_wrap_policy=policy, use_orig_params=use_orig_params, device_id=torch.device(device)
        )
        return train(model, cls(model.parameters(), **engine, **OPTIONS["Adam"]))

    assert_as_torchs("Adam", engine, end)


class Gained(torch.nn.Module):
    """A network, and a gain that every process keeps whole."""

    def __init__(self, network):
        super().__init__()
        self.network, self.gain = network, torch.nn.Parameter(torch.ones(3))

    def forward(self, input):
        return self.network(input) * self.gain


def gained(network):
    model = Gained(network)
    sharded(model.network)
    return fully_shard(model, ignored_params={model.gain})


@pytest.mark.parametrize("mixed", ["SGD", "AdamW", "NAdam", "Rprop"])
def test_shards_and_plain_parameters_in_one_group(mixed, engine, network, assert_as_alone):
    model, plain = gained(network()), Gained(network())
    optimizer, alone = (pair(mixed)[0](m.parameters(), **engine, **OPTIONS[mixed]) for m in (model, plain))
    assert_as_alone(optimizer, model, alone, plain)


def test_shards_and_plain_parameters_in_torchs_engines(network, train):
    """torch's for-loop takes them, its foreach path does not."""
    ends = []
    for cls in pair("Adam"):
        model = gained(network())
        ends.append(train(model, cls(model.parameters(), foreach=False, **OPTIONS["Adam"])))
    assert_same(*ends)
    with pytest.raises(RuntimeError, match="got mixed torch"):
        train(model, pair("Adam")[1](model.parameters(), foreach=True))


FUNCTIONALS = {"torch's kernels": torch.nn.functional, "first principles": reimpl.nn.functional}


@pytest.mark.parametrize("functional", FUNCTIONALS)
def test_our_layers(functional, network, train):
    """Also a backward derived by hand finds the parameters that FSDP has gathered."""
    theirs, ours = network(), network()
    reimpl.swap(ours, functional=FUNCTIONALS[functional])
    ends = []
    for model, cls in zip((ours, theirs), pair("SGD"), strict=True):
        model = sharded(model)
        ends.append(snapshot(train(model, cls(model.parameters(), foreach=True, **OPTIONS["SGD"]))))
    if functional == "torch's kernels":
        assert_same(*ends)
    assert all(relative_error(ends[0][key], value) < 1e-5 for key, value in ends[1].items())  # measured: 2e-7
