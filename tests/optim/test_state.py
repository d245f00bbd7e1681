"""Checkpoints: torch's and ours are one format."""

import copy
import io
import pickle

import pytest
import torch

from helpers import OPTIONS, assert_same, pair, parameters, snapshot, take_steps

pytestmark = pytest.mark.usefixtures("torchs_loop")

DIRECTIONS = {"torch to ours": (1, 0), "ours to torch": (0, 1), "ours to ours": (0, 0)}


def through_a_file(state_dict):
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_state_dict_is_torchs(name, foreach):
    ours, theirs = (take_steps(cls(parameters(), foreach=foreach, **OPTIONS[name]), 3) for cls in pair(name))
    mine, reference = ours.state_dict(), theirs.state_dict()
    assert mine["param_groups"] == reference["param_groups"]
    assert {i: list(state) for i, state in mine["state"].items()} == {
        i: list(state) for i, state in reference["state"].items()
    }
    assert_same(ours, theirs)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_resume_equals_straight_run(name, foreach, direction):
    writer, reader = (pair(name)[i] for i in DIRECTIONS[direction])
    straight = take_steps(pair(name)[1](parameters(), foreach=foreach, **OPTIONS[name]), 6)
    first = take_steps(writer(parameters(), foreach=foreach, **OPTIONS[name]), 3)
    saved = through_a_file(first.state_dict())
    params = [param.detach().clone().requires_grad_() for param in first.param_groups[0]["params"]]
    second = reader(params, lr=123.0)
    second.load_state_dict(saved)
    assert_same(straight, take_steps(second, 3, first=3))


def test_loading_casts_as_torch_does(name):
    """State takes the parameter's dtype, the step count keeps its own."""
    loaded = []
    for cls in pair(name):
        saved = take_steps(cls(parameters(), **OPTIONS[name]), 2).state_dict()
        optimizer = cls(parameters(torch.float64))
        optimizer.load_state_dict(saved)
        loaded.append(take_steps(optimizer, 2, first=2))
    assert_same(*loaded)


def test_deepcopy_and_pickle(name, foreach):
    optimizer = take_steps(pair(name)[0](parameters(), foreach=foreach, **OPTIONS[name]), 2)
    public = {key for key in vars(optimizer) if not key.startswith("_")}
    for clone in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert {key for key in vars(clone) if not key.startswith("_")} == public
        assert repr(clone) == repr(optimizer)
        straight = take_steps(copy.deepcopy(optimizer), 2, first=2)
        assert_same(straight, take_steps(clone, 2, first=2))
        assert_same(optimizer, snapshot(optimizer))


def test_pickle_has_torchs_contents(name):
    ours, theirs = (take_steps(cls(parameters()), 1).__getstate__() for cls in pair(name))
    assert list(ours) == list(theirs)
    assert ours["defaults"] == theirs["defaults"]


def older(saved, cls):
    """Turn a checkpoint into one of a torch version without the later options and with numbers for step counts."""
    saved = copy.deepcopy(saved)
    for group in saved["param_groups"]:
        for option in cls.options_of_later_versions:
            group.pop(option, None)
    for state in saved["state"].values():
        if "step" in state:
            state["step"] = int(state["step"].item())
    return saved


def test_older_checkpoint(name):
    ours, theirs = pair(name)
    saved = take_steps(theirs(parameters()), 3).state_dict()
    ends = []
    for cls in (ours, theirs):
        optimizer = cls(parameters())
        optimizer.load_state_dict(older(saved, ours))
        ends.append(take_steps(optimizer, 3, first=3))
    assert_same(*ends)
    assert repr(ends[0]) == repr(ends[1])


def test_sgd_checkpoint_with_an_empty_buffer(foreach):
    """torch 2.0 to 2.4 saved a buffer of None before the first step with momentum."""
    ends = []
    for cls in pair("SGD"):
        optimizer = cls(parameters(), foreach=foreach, momentum=0.9)
        saved = optimizer.state_dict()
        saved["state"] = {i: {"momentum_buffer": None} for i in range(3)}
        optimizer.load_state_dict(saved)
        ends.append(take_steps(optimizer, 3))
    assert_same(*ends)


def test_state_that_someone_else_keeps_there(name):
    """A tool may keep notes in the state; torch's optimizers, but for SGD, take them for their own and fail."""
    optimizer = pair(name)[0](parameters())
    param = optimizer.param_groups[0]["params"][0]
    optimizer.state[param]["note"] = "mine"
    take_steps(optimizer, 2)
    assert optimizer.state[param]["note"] == "mine"


def test_load_refuses_another_shape_of_groups(name):
    for saved_shapes in (((3,),), ((3,), (2,), (1,), (1,))):
        saved = pair(name)[1](parameters(shapes=saved_shapes)).state_dict()
        optimizer = pair(name)[0](parameters())
        with pytest.raises(ValueError, match="doesn't match the size of optimizer's group"):
            optimizer.load_state_dict(saved)


def test_adagrad_state_exists_from_the_constructor_on():
    for initial in (0, 0.1):
        ours, theirs = (cls(parameters(), initial_accumulator_value=initial) for cls in pair("Adagrad"))
        assert_same(ours, theirs)


def test_adagrad_shares_memory():
    optimizer = pair("Adagrad")[0](parameters())
    optimizer.share_memory()
    assert all(state["sum"].is_shared() for state in optimizer.state.values())
