"""`torch.distributed.checkpoint`: what torch's optimizer wrote, ours resumes, and back, on all processes or on half.

Every process gets the same batch. The mean of 2 or 4 equal gradients is exact, so a run on any of these numbers of
processes has the bits of torch's undisturbed run on one.
"""

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn.parallel import DistributedDataParallel

from helpers import OPTIONS, assert_same, outcome, pair

# FSDP1 and DCP use calls that torch itself has deprecated.
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:torch.distributed"),
]

FULL = StateDictOptions(full_state_dict=True)
LEG = 2
"""The number of steps between two checkpoints of a relay."""


@pytest.fixture(scope="module")
def meshes(processes, device):
    """All processes, and the half of them that this one belongs to."""
    halves = init_device_mesh(device, (2, processes // 2), mesh_dim_names=("half", "shard"))
    return {"all": init_device_mesh(device, (processes,)), "half": halves["shard"]}


class Network(torch.nn.Module):
    """Two layers, and a gain that may be left unused."""

    def __init__(self, uses_gain=True):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = torch.nn.Linear(6, 8), torch.nn.Linear(8, 4)
        self.gain = torch.nn.Parameter(torch.ones(4))
        self.uses_gain = uses_gain

    def forward(self, input):
        output = self.second(self.first(input).tanh())
        return output * self.gain if self.uses_gain else output


def spread(model, kind, mesh):
    """Spread a network over the processes of a mesh."""
    model, group = model.to(mesh.device_type), mesh.get_group()
    if kind == "DDP":
        return DistributedDataParallel(model, process_group=group, find_unused_parameters=not model.uses_gain)
    if kind == "FSDP1":
        device = torch.device(mesh.device_type)
        return FullyShardedDataParallel(model, group, use_orig_params=True, device_id=device)
    for module in (model.first, model.second, model):
        fully_shard(module, mesh=mesh)
    return model


def optimizer_of(cls, model, **options):
    """Return an optimizer with a group of matrices and one of vectors, which have a learning rate of their own."""
    if cls.__name__ == "LBFGS":  # takes no groups
        return cls(model.parameters(), **options)
    named = list(model.named_parameters())
    matrices = {"params": [param for name, param in named if name.endswith("weight")]}
    vectors = {"params": [param for name, param in named if not name.endswith("weight")], "lr": 0.003}
    return cls([matrices] if cls.__name__ == "Muon" else [matrices, vectors], **options)


def train(model, optimizer, steps):
    """Take steps, each with a closure since LBFGS needs one."""
    device = next(model.parameters()).device
    for step in steps:
        inputs = torch.randn(16, 6, generator=torch.Generator().manual_seed(step)).to(device)

        def closure(inputs=inputs):
            optimizer.zero_grad()
            loss = model(inputs).square().mean()
            loss.backward()
            return loss

        optimizer.step(closure)
    optimizer.zero_grad()


def whole(model, optimizer):
    """Return parameters, state and options by name, as one process would have them."""
    weights, kept = get_state_dict(model, optimizer, options=FULL)
    state = {f"{name}.{key}": value for name, state in kept["state"].items() for key, value in state.items()}
    options = {
        f"group[{i}].{key}": tuple(value) if isinstance(value, list) else value  # as which torch unpacks full ones
        for i, group in enumerate(kept["param_groups"])
        for key, value in group.items()
        if key not in ("foreach", "fused")
    }
    found = weights | state | options
    return {key: found[key] for key in sorted(found)}


def straight(cls, device, steps, **options):
    """Return what an undisturbed run on one process comes to."""
    model = Network().to(device)
    optimizer = optimizer_of(cls, model, **options)
    train(model, optimizer, steps)
    return whole(model, optimizer)


def hand_over(classes, make_models, how=None, **options):
    """Train a model with an optimizer of the first class, and another one on from there with the second."""
    writer, reader = classes
    model, other_model = make_models()
    optimizer = optimizer_of(writer, model, **options)
    train(model, optimizer, range(2))
    weights, state = get_state_dict(model, optimizer, options=how)
    optimizer = optimizer_of(reader, other_model, **options)
    set_model_state_dict(other_model, weights, options=how)
    set_optimizer_state_dict(other_model, optimizer, state, options=how)
    train(other_model, optimizer, range(2, 4))
    return whole(other_model, optimizer)


def ending(action):
    """Return the snapshot that an action returns, or one of the error that it raises."""
    error, result = outcome(action)
    return result if error is None else {"error": (error, result)}


def save(path, model, optimizer, group=None):
    weights, state = get_state_dict(model, optimizer)
    dcp.save({"model": weights, "optimizer": state}, checkpoint_id=path, process_group=group)


def load(path, model, optimizer, group=None, planner=None):
    weights, state = get_state_dict(model, optimizer)
    dcp.load({"model": weights, "optimizer": state}, checkpoint_id=path, process_group=group, planner=planner)
    set_model_state_dict(model, weights)
    set_optimizer_state_dict(model, optimizer, state)


def runners(name):
    """Return the classes that train sharded parameters by whose they are: ours for torch's too where that cannot."""
    ours, theirs = pair(name)
    return {"ours": ours, "torch": ours if name == "Rprop" else theirs}  # torch's Rprop assigns by masks


def run_leg(cls, leg, mesh, checkpoint, **options):
    """Train the steps of a leg on a mesh, from the checkpoint of the one before if there is one."""
    model = spread(Network(), "FSDP2", mesh)
    optimizer = optimizer_of(cls, model, **options)
    if leg > 0:
        load(checkpoint, model, optimizer, mesh.get_group())
    train(model, optimizer, range(LEG * leg, LEG * (leg + 1)))
    return model, optimizer


def relay(classes, path, meshes, **options):
    """Train on all processes, on in each half of them, and on in all, each time from a checkpoint on disk."""
    for leg, (cls, where) in enumerate(zip(classes, ("all", "half", "all"), strict=True)):
        mesh = meshes[where]
        model, optimizer = run_leg(cls, leg, mesh, path / f"{leg - 1} by 0", **options)
        if leg < 2:
            writer = dist.get_rank() // mesh.size()
            save(path / f"{leg} by {writer}", model, optimizer, mesh.get_group())
            dist.barrier()
    return whole(model, optimizer)


@pytest.mark.usefixtures("torchs_loop")
@pytest.mark.parametrize(
    ("order", "engine"),
    [
        ("torch, ours, torch", {"foreach": False}),
        ("ours, torch, ours", {"foreach": True}),
        ("ours, ours, ours", {"fused": True}),
    ],
    ids=["loop", "foreach", "fused"],
)
def test_all_processes_then_half_then_all(name, order, engine, shared_path, meshes, device):
    """The fused kernel rounds elsewhere than torch, so its run is compared with itself on one process."""
    ours, theirs = pair(name)
    classes = [runners(name)[whose] for whose in order.split(", ")]
    expected = straight(ours if "fused" in engine else theirs, device, range(3 * LEG), **OPTIONS[name], **engine)
    assert_same(relay(classes, shared_path, meshes, **OPTIONS[name], **engine), expected)


def test_a_checkpoint_that_is_not_loaded_is_noticed(shared_path, meshes, device, monkeypatch):
    monkeypatch.setattr(dcp, "load", lambda *args, **kwargs: None)
    ours, theirs = pair("Adam")
    with pytest.raises(AssertionError):
        assert_same(relay([theirs, ours, theirs], shared_path, meshes), straight(theirs, device, range(3 * LEG)))


KEPT = {
    "default": {},
    "cpu_offload": {"cpu_offload": True},
    "flat": {"flatten_optimizer_state_dict": True},
    "full": {"full_state_dict": True},
    "rank 0": {"full_state_dict": True, "cpu_offload": True, "broadcast_from_rank0": True},
}


@pytest.mark.parametrize("kind", ["DDP", "FSDP1", "FSDP2"])
@pytest.mark.parametrize("how", KEPT)
@pytest.mark.parametrize("order", ["torch, ours", "ours, torch"])
def test_options_of_state_dicts(kind, how, order, meshes, device):
    if (kind, how, device) == ("FSDP1", "rank 0", "cpu"):
        pytest.skip("torch's FSDP1 reads memory that it has freed")
    ours, theirs = pair("Adam")
    classes = (theirs, ours) if order == "torch, ours" else (ours, theirs)

    def make_models():
        return [spread(Network(), kind, meshes["all"]) for _ in range(2)]

    found = hand_over(classes, make_models, StateDictOptions(**KEPT[how]), **OPTIONS["Adam"])
    assert_same(found, straight(theirs, device, range(4), **OPTIONS["Adam"]))


@pytest.mark.parametrize(("first", "second"), [("DDP", "FSDP2"), ("FSDP2", "DDP"), ("FSDP1", "FSDP2")])
def test_spread_in_another_way(first, second, shared_path, meshes, device):
    ours, theirs = pair("AdamW")
    model = spread(Network(), first, meshes["all"])
    optimizer = optimizer_of(theirs, model, **OPTIONS["AdamW"])
    train(model, optimizer, range(2))
    save(shared_path, model, optimizer)

    model = spread(Network(), second, meshes["all"])
    optimizer = optimizer_of(ours, model, **OPTIONS["AdamW"])
    load(shared_path, model, optimizer)
    train(model, optimizer, range(2, 4))
    assert_same(whole(model, optimizer), straight(theirs, device, range(4), **OPTIONS["AdamW"]))


@pytest.mark.parametrize("engine", [{"foreach": True}, {"fused": True}], ids=["foreach", "fused"])
def test_asynchronous_save_keeps_the_moment_of_the_call(engine, shared_path, meshes, device):
    ours, _ = pair("Adam")
    model = spread(Network(), "FSDP2", meshes["all"])
    optimizer = optimizer_of(ours, model, **engine)
    train(model, optimizer, range(2))
    weights, state = get_state_dict(model, optimizer)
    apart = dist.new_group()  # its messages must not get between those of the training that goes on
    writing = dcp.async_save({"model": weights, "optimizer": state}, checkpoint_id=shared_path, process_group=apart)
    train(model, optimizer, range(2, 4))
    writing.result()
    dist.barrier()
    assert_same(whole(model, optimizer), straight(ours, device, range(4), **engine))
    load(shared_path, model, optimizer)
    assert_same(whole(model, optimizer), straight(ours, device, range(2), **engine))


@pytest.mark.parametrize("kind", ["one process", "DDP", "FSDP2"])
@pytest.mark.parametrize("strict", [True, False])
def test_frozen_and_unused_parameters(kind, strict, meshes):
    """If `strict`, torch refuses that a parameter which had no gradient yet has no state. A frozen one need not."""

    def make_models():
        models = [Network(uses_gain) for uses_gain in (False, True)]
        for model in models:
            model.first.bias.requires_grad_(False)
        return models if kind == "one process" else [spread(model, kind, meshes["all"]) for model in models]

    def end(*classes):
        return ending(lambda: hand_over(classes, make_models, StateDictOptions(strict=strict), **OPTIONS["Adam"]))

    ours, theirs = pair("Adam")
    expected = end(theirs, theirs)
    assert ("error" in expected) == strict
    assert_same(end(theirs, ours), expected)
    assert_same(end(ours, theirs), expected)


@pytest.mark.parametrize("kind", ["DDP", "FSDP2"])
@pytest.mark.parametrize(("other_name", "options"), [("Adafactor", {}), ("Muon", {}), ("LBFGS", {"max_iter": 2})])
def test_rules_that_are_not_elementwise(other_name, options, kind, meshes):
    """They do what torch's do: the same bits, or the same error where torch's cannot be sharded or kept."""

    def make_models():
        return [spread(Network(), kind, meshes["all"]) for _ in range(2)]

    def end(*classes):
        return ending(lambda: hand_over(classes, make_models, **options))

    ours, theirs = pair(other_name)
    expected = end(theirs, theirs)
    assert_same(end(theirs, ours), expected)
    assert_same(end(ours, theirs), expected)


@pytest.mark.parametrize("kind", ["one process", "FSDP2"])
@pytest.mark.parametrize("engine", [{"foreach": False}, {"foreach": True}, {"fused": True}], ids=str)
def test_state_made_to_be_filled_moves_nothing(name, engine, kind, meshes, device):
    """torch makes it by a step with gradients and a learning rate of 0. Weight decay and a sign must not act in it."""
    ours, theirs = pair(name)
    model = Network().to(device) if kind == "one process" else spread(Network(), kind, meshes["all"])
    optimizer = optimizer_of(ours, model, **OPTIONS[name], **engine)
    whole(model, optimizer)  # makes the state, after it has read the parameters
    found = whole(model, optimizer)
    weights = {key: found[key] for key in Network().state_dict()}
    assert_same(weights, Network().to(device).state_dict())
    if "fused" not in engine:  # which rounds elsewhere
        assert_same(found, straight(theirs, device, range(0), **OPTIONS[name]))


@pytest.mark.parametrize("later_name", ["RMSprop", "Rprop"])
def test_fused_where_torch_has_no_such_option(later_name, shared_path, meshes, device):
    """What the checkpoint lacks, DCP refuses to load, unless it is asked for the rest."""
    ours, theirs = pair(later_name)
    model = spread(Network(), "DDP", meshes["all"])
    optimizer = optimizer_of(theirs, model, **OPTIONS[later_name])
    train(model, optimizer, range(2))
    save(shared_path, model, optimizer)

    model = spread(Network(), "FSDP2", meshes["all"])
    optimizer = optimizer_of(ours, model, **OPTIONS[later_name], fused=True)
    with pytest.raises(dcp.CheckpointException, match="fused"):
        load(shared_path, model, optimizer)
    load(shared_path, model, optimizer, planner=DefaultLoadPlanner(allow_partial_load=True))
    assert [group["fused"] for group in optimizer.param_groups] == [True, True]
    assert_same(whole(model, optimizer), straight(theirs, device, range(2), **OPTIONS[later_name]))
