"""Checkpoints that do not fit, or are no checkpoints: they are refused, and nothing of them is taken over."""

import copy
import io
import os
import pickle
import re
from functools import partial

import pytest
import torch

import reimpl.optim
from helpers import OPTIONS, assert_same, outcome, pair, parameters, set_gradients, snapshot, take_steps
from reimpl.optim import RuleOptimizer

MATRICES = ((4, 3), (2, 5))
ALL = {
    **OPTIONS,
    "Adafactor": {},
    "Muon": {},
    "SparseAdam": {},
    "LBFGS": {"max_iter": 3, "history_size": 3, "line_search_fn": "strong_wolfe"},
}
ELEMENTWISE = list(OPTIONS)


def trained(cls, steps=4, dtype=torch.float32, shapes=MATRICES, **more):
    """Return an optimizer that has taken steps."""
    optimizer = cls(parameters(dtype, shapes), **ALL[cls.__name__] | more)
    params = optimizer.param_groups[0]["params"]

    def bowl():
        optimizer.zero_grad()
        loss = sum((param.abs() ** 2 + param.abs() ** 4).sum() for param in params)
        loss.backward()
        return loss

    for step in range(steps):
        set_gradients(params, step)
        if cls.__name__ == "SparseAdam":
            for param in params:
                param.grad = param.grad.to_sparse(1)
        optimizer.step(bowl) if cls.__name__ == "LBFGS" else optimizer.step()
    return optimizer


@pytest.fixture(params=ALL)
def name(request):
    """The name of an optimizer, each in turn."""
    return request.param


def everything(optimizer):
    """Return copies of all that a checkpoint may change."""
    groups = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    ids = [id(value) for value in (optimizer.state, optimizer.param_groups, *optimizer.state)]
    return snapshot(optimizer), copy.deepcopy((groups, optimizer.defaults)), ids


def assert_refused(optimizer, saved, error, match=None):
    before = everything(optimizer)
    with pytest.raises(error, match=match):
        optimizer.load_state_dict(saved)
    after = everything(optimizer)
    assert_same(before[0], after[0])
    assert repr(before[1:]) == repr(after[1:])


def torch_s_outcome(name, saved):
    return outcome(lambda: trained(pair(name)[1]).load_state_dict(copy.deepcopy(saved)))


# Shapes.


def tensors_of(state):
    """Return the keys of state tensors, and of LBFGS's lists the index of the last."""
    found = []
    for key, value in state.items():
        if isinstance(value, list) and value and isinstance(value[-1], torch.Tensor) and value[-1].dim():
            found.append((value, len(value) - 1, f"{key}[{len(value) - 1}]"))
        elif isinstance(value, torch.Tensor) and value.dim():
            found.append((state, key, key))
    return found


WRONG = {
    "transposed": lambda tensor: tensor.reshape(tensor.shape[::-1]) if tensor.dim() > 1 else tensor[:-1],
    "truncated": lambda tensor: tensor[:-1],
    "flat": lambda tensor: tensor.reshape(-1) if tensor.dim() > 1 else tensor.reshape(1, -1),
    "one element": lambda tensor: tensor.reshape(-1)[0],
    "another model's": lambda tensor: tensor.new_zeros(7, 7, 7),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_another_shape(name, wrong):
    """Of each state tensor of each parameter; torch takes it, and the next step fails or broadcasts."""
    good = trained(pair(name)[1]).state_dict()
    checked = 0
    for index in good["state"]:
        for number in range(len(tensors_of(good["state"][index]))):
            saved = copy.deepcopy(good)
            container, key, label = tensors_of(saved["state"][index])[number]
            shape = tuple(container[key].shape)
            container[key] = WRONG[wrong](container[key])
            found = tuple(container[key].shape)
            assert torch_s_outcome(name, saved) == (None, None)
            of = "the parameters" if name == "LBFGS" else f"parameter {index}"
            message = f"size mismatch for {label} of {of}: it has shape {found} where {shape} is expected"
            assert_refused(trained(pair(name)[0], 2), saved, ValueError, re.escape(message))
            checked += 1
    assert checked >= (name != "SGD") + 1


def test_shapes_that_fit_are_taken(name):
    """Whole and half-trained ones, and of parameters without dimensions or elements."""
    ours, theirs = pair(name)
    others = ((3, 2), (), (0, 2), (2,)) if name in ELEMENTWISE else MATRICES
    for dtype in (torch.float32, torch.complex64) if name in ELEMENTWISE else (torch.float32,):
        for steps in (0, 1, 4):
            for shapes in (MATRICES, others):
                saved = trained(theirs, steps, dtype, shapes).state_dict()
                optimizer = trained(ours, 2, dtype, shapes)
                optimizer.load_state_dict(saved)
                assert len(optimizer.state) == len(saved["state"])
                pickle.loads(pickle.dumps(copy.deepcopy(optimizer)))


def test_the_message_has_the_parameter_s_name():
    optimizer = reimpl.optim.Adam([("first", parameters()[0]), ("second", parameters()[1])])
    saved = take_steps(optimizer, 1).state_dict()
    saved["state"][1]["exp_avg"] = torch.zeros(4)
    assert_refused(optimizer, saved, ValueError, r"exp_avg of parameter 1 \(second\): it has shape \(4,\) where \(5,\)")


def test_parameters_are_counted_across_groups():
    first, second = parameters(shapes=((2,), (3,)))
    optimizer = take_steps(reimpl.optim.SGD([{"params": [first]}, {"params": [second]}], momentum=0.9), 1)
    saved = copy.deepcopy(optimizer.state_dict())
    saved["state"][1]["momentum_buffer"] = torch.zeros(2)
    assert_refused(optimizer, saved, ValueError, "momentum_buffer of parameter 1")


@pytest.mark.parametrize("key", ["step", "mu_product", "eta", "mu"])
def test_one_element_makes_a_number(key):
    optimizer_name = {"mu_product": "NAdam", "eta": "ASGD", "mu": "ASGD"}.get(key, "Adam")
    optimizer = trained(pair(optimizer_name)[0])
    saved = copy.deepcopy(optimizer.state_dict())
    saved["state"][0][key] = saved["state"][0][key].reshape(1)
    optimizer.load_state_dict(saved)
    take_steps(optimizer, 1)
    saved["state"][0][key] = torch.ones(2)
    assert_refused(optimizer, saved, ValueError, rf"{key} of parameter 0: it has shape \(2,\) where one number")


def test_what_others_keep_in_the_state_may_have_any_shape(name):
    optimizer = trained(pair(name)[0])
    saved = copy.deepcopy(optimizer.state_dict())
    saved["state"][0] |= {"note": torch.zeros(7, 7), "text": None}
    optimizer.load_state_dict(saved)


def test_hooks_have_the_first_word():
    """A hook may bring shapes into order before they are looked at."""
    optimizer = trained(reimpl.optim.Adam)
    saved = copy.deepcopy(optimizer.state_dict())
    saved["state"][0]["exp_avg"] = saved["state"][0]["exp_avg"].mT

    def transpose(optimizer, saved):
        saved["state"][0]["exp_avg"] = saved["state"][0]["exp_avg"].mT

    assert_refused(optimizer, copy.deepcopy(saved), ValueError, "size mismatch")
    optimizer.register_load_state_dict_pre_hook(transpose)
    optimizer.load_state_dict(saved)


class Anchored(RuleOptimizer):
    """Its state is made of more than the parameter's shape."""

    @staticmethod
    def rule(param, grad, anchor, *, lr=0.1):
        param.sub_(grad + param - anchor, alpha=lr)

    def new_state(self, group):
        return {"anchor": lambda param: param.detach().clone() if param.sum() > 0 else torch.zeros_like(param)}


def test_state_of_which_only_the_maker_knows_the_shape():
    optimizer = take_steps(Anchored(parameters()), 1)
    take_steps(optimizer, 1).load_state_dict(optimizer.state_dict())


# Contents.


def first_state(saved):
    return next(iter(saved["state"].values()))


def hostile(change):
    def changed(saved):
        saved = copy.deepcopy(saved)
        change(saved)
        return saved

    return changed


HOSTILE = {
    "no groups": hostile(lambda saved: saved.pop("param_groups")),
    "no state": hostile(lambda saved: saved.pop("state")),
    "fewer groups": hostile(lambda saved: saved["param_groups"].clear()),
    "more groups": hostile(lambda saved: saved["param_groups"].append(saved["param_groups"][0])),
    "fewer parameters": hostile(lambda saved: saved["param_groups"][0]["params"].pop()),
    "a group without parameters": hostile(lambda saved: saved["param_groups"][0].pop("params")),
    "parameters are a number": hostile(lambda saved: saved["param_groups"][0].update(params=3)),
    "groups are None": hostile(lambda saved: saved.update(param_groups=None)),
    "a group is a list": hostile(lambda saved: saved["param_groups"].__setitem__(0, ["lr"])),
    "state is a list": hostile(lambda saved: saved.update(state=[1, 2])),
    "state is None": hostile(lambda saved: saved.update(state=None)),
    "a list": lambda saved: [saved],
    "None": lambda saved: None,
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_what_torch_refuses(name, kind):
    """With torch's error; torch's own is not half-loaded here either."""
    saved = HOSTILE[kind](trained(pair(name)[1]).state_dict())
    error, message = torch_s_outcome(name, saved)
    assert error is not None
    assert_refused(trained(pair(name)[0], 2), saved, error, re.escape(message))


WRONG_STATE = {
    "a list": lambda state: [1.0, 2.0],
    "a number": lambda state: 3.0,
    "None": lambda state: None,
    "a tensor": lambda state: torch.zeros(3),
}


@pytest.mark.parametrize("kind", WRONG_STATE)
def test_a_state_that_is_no_dict(name, kind):
    """torch takes some for some optimizers, and is half-loaded after others."""
    saved = trained(pair(name)[1]).state_dict()
    saved["state"] = {**saved["state"], 0: WRONG_STATE[kind](saved["state"][0])}
    assert_refused(trained(pair(name)[0], 2), saved, TypeError, "the state of .* is of type .*, not a dict")


@pytest.mark.parametrize("value", ["a word", [1.0], 3.0, {"a": 1}], ids=str)
def test_a_state_tensor_that_is_none(name, value):
    saved = copy.deepcopy(trained(pair(name)[1]).state_dict())
    container, key, label = tensors_of(first_state(saved))[0]
    container[key] = value
    assert_refused(
        trained(pair(name)[0], 2), saved, TypeError, rf"{re.escape(label)} of .* is of type .*, not a tensor"
    )


COUNTING = [name for name in OPTIONS if name not in ("SGD",)] + ["Adafactor"]


@pytest.mark.parametrize("value", ["three", None, [3.0], {}], ids=str)
@pytest.mark.parametrize("counting", COUNTING)
def test_a_step_count_that_is_none(counting, value):
    """torch's error; torch's optimizer has then taken over the rest."""
    saved = copy.deepcopy(trained(pair(counting)[1]).state_dict())
    first_state(saved)["step"] = value
    error, _ = torch_s_outcome(counting, saved)
    assert error in (TypeError, ValueError)
    assert_refused(trained(pair(counting)[0], 2), saved, error)


@pytest.mark.parametrize("counting", COUNTING)
def test_a_missing_step_count(counting):
    saved = copy.deepcopy(trained(pair(counting)[1]).state_dict())
    first_state(saved).pop("step")
    error, message = torch_s_outcome(counting, saved)
    assert error is KeyError
    assert_refused(trained(pair(counting)[0], 2), saved, KeyError, message)


def test_missing_state_and_options(name):
    """Loading takes them, as torch's; what a step then misses it says, as torch's."""
    good = copy.deepcopy(trained(pair(name)[1]).state_dict())
    cases = [("state", key) for key in first_state(good) if key != "step"]
    cases += [("option", key) for key in good["param_groups"][0] if key != "params"]
    for kind, key in cases:
        if name == "LBFGS" and kind == "state":
            continue  # torch's goes on with what is left, and fails where it needs a pair
        saved = copy.deepcopy(good)
        (first_state(saved) if kind == "state" else saved["param_groups"][0]).pop(key)

        def go_on(cls, saved=saved):
            optimizer = trained(cls, 0)
            optimizer.load_state_dict(copy.deepcopy(saved))
            return snapshot(take_a_step(optimizer))

        mine, reference = (outcome(partial(go_on, cls)) for cls in pair(name))
        general = ("maximize", "foreach", "capturable", "differentiable", "fused")
        if reference[0] is None:
            assert mine[0] is None, key
            assert_same(mine[1], reference[1])
        elif key not in general:  # without these, ours takes the default
            assert mine == reference or name == "Adafactor", key  # torch's asserts that it is there


def take_a_step(optimizer):
    """Take a step with gradients of the kind that the optimizer takes."""
    params = optimizer.param_groups[0]["params"]
    set_gradients(params, 5)
    if type(optimizer).__name__ == "SparseAdam":
        for param in params:
            param.grad = param.grad.to_sparse(1)
    if type(optimizer).__name__ == "LBFGS":
        optimizer.step(lambda: 1.0)
    else:
        optimizer.step()
    return optimizer


@pytest.mark.parametrize("other", ALL)
def test_another_optimizer_s(name, other):
    """It is refused as torch refuses it; or the next step misses an option, and nothing moves."""
    saved = trained(pair(other)[1]).state_dict()
    sides = [trained(cls, 2) for cls in pair(name)]
    ours, theirs = sides
    before = snapshot(ours)
    mine, reference = (outcome(partial(side.load_state_dict, copy.deepcopy(saved))) for side in sides)
    if mine != reference:  # a tensor of the same name has another shape; torch's next step fails
        assert mine[0] in (TypeError, ValueError)
    if mine[0] is not None:
        assert_same(snapshot(ours), before)
        return
    loaded = snapshot(ours)
    mine, reference = (outcome(partial(take_a_step, side)) for side in sides)
    assert mine[0] is reference[0] or name == "Adafactor"  # whose torch's reads the options first
    if mine[0] is not None:
        assert_same(snapshot(ours), loaded)
    elif name != "SparseAdam":  # torch's computes in float32 with a count that is a tensor
        assert_same(ours, theirs)


def test_an_error_in_the_middle_of_many(name):
    """The last parameter's state is wrong; nothing of the others' is taken over."""
    saved = copy.deepcopy(trained(pair(name)[1]).state_dict())
    last = max(saved["state"])
    saved["state"][last] = 7
    assert_refused(trained(pair(name)[0], 2), saved, TypeError, "not a dict")
    del saved["state"][last]
    trained(pair(name)[0], 2).load_state_dict(saved)


def test_an_error_in_a_hook_before():
    def fail(optimizer, saved):
        raise RuntimeError("not today")

    optimizer = trained(reimpl.optim.Adam, 2)
    optimizer.register_load_state_dict_pre_hook(fail)
    assert_refused(optimizer, trained(torch.optim.Adam).state_dict(), RuntimeError, "not today")


# Files.


def as_bytes(optimizer):
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    return file.getvalue()


@pytest.mark.parametrize("part", [0.0, 0.01, 0.5, 0.9, 0.999])
def test_truncated_files(name, part):
    """`torch.load` refuses them, whoever wrote them."""
    whole = [as_bytes(trained(cls)) for cls in pair(name)]
    for content in whole:
        with pytest.raises((RuntimeError, ValueError, EOFError, pickle.UnpicklingError)):
            torch.load(io.BytesIO(content[: int(part * len(content))]), weights_only=True)


class RunsACommand:
    """A pickle that would run a command where it is loaded."""

    def __reduce__(self):
        return os.system, ("exit 1",)


def test_foreign_pickles():
    """`weights_only=True` refuses what is neither tensor nor number: a command, and an optimizer as a whole."""
    for foreign in (RunsACommand(), trained(reimpl.optim.Adam)):
        file = io.BytesIO()
        torch.save({"state": foreign, "param_groups": []}, file)
        file.seek(0)
        with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
            torch.load(file, weights_only=True)


def test_whole_files(name):
    """State of both is loaded with `weights_only=True`."""
    for cls in pair(name):
        trained(pair(name)[0], 2).load_state_dict(torch.load(io.BytesIO(as_bytes(trained(cls))), weights_only=True))


# The test sees a fault.


def test_a_state_that_is_taken_before_it_is_checked(monkeypatch):
    def hasty(self, state):
        vars(self).update(state)
        original(self, state)

    original = RuleOptimizer.__setstate__
    monkeypatch.setattr(RuleOptimizer, "__setstate__", hasty)
    with pytest.raises(AssertionError):
        test_a_step_count_that_is_none("Adam", "three")
