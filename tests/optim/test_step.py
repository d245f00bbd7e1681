"""What is around every rule: missing gradients, groups, closures, hooks, schedulers, scaling, refused steps."""

import warnings
from functools import partial

import pytest
import torch
from torch.optim import lr_scheduler

from conftest import OPTIMIZERS
from helpers import OPTIONS, assert_same, outcome, pair, parameters, set_gradients, snapshot, take_steps

pytestmark = pytest.mark.usefixtures("torchs_loop")


def both(name, foreach, act, **more):
    """Let our optimizer and torch's act, and assert that they end equal."""
    ends = []
    for cls in pair(name):
        optimizer = cls(parameters(), foreach=foreach, **OPTIONS[name], **more)
        act(optimizer)
        ends.append(optimizer)
    assert_same(*ends)
    assert repr(ends[0]) == repr(ends[1])
    return ends[0]


def test_no_gradients_change_nothing(name, foreach):
    for cls in pair(name):
        optimizer = cls(parameters(), foreach=foreach)
        before = snapshot(optimizer)
        assert optimizer.step() is None
        assert_same(before, optimizer)


def test_state_appears_with_the_first_gradient(name, foreach):
    optimizer = both(name, foreach, lambda o: take_steps(o, 2, skip=(1,)))
    second = optimizer.param_groups[0]["params"][1]
    assert (second in optimizer.state) == (name == "Adagrad")


def test_sgd_without_momentum_keeps_no_state(foreach):
    for cls in pair("SGD"):
        assert not take_steps(cls(parameters(), foreach=foreach), 2).state


def test_gradient_is_never_changed(name, foreach):
    more = [{"maximize": True}, {"nesterov": True}] if name == "SGD" else [{"maximize": True}]
    for options in ({}, *more):
        optimizer = pair(name)[0](parameters(), foreach=foreach, **OPTIONS[name] | options)
        for step in range(3):
            params = optimizer.param_groups[0]["params"]
            set_gradients(params, step)
            kept = [(param.grad, param.grad.clone(), param.grad._version) for param in params]
            optimizer.step()
            for param, (gradient, copy, version) in zip(params, kept, strict=True):
                assert param.grad is gradient
                assert torch.equal(gradient, copy)
                assert gradient._version == version


def test_torch_changes_the_gradient_of_foreach_nesterov():
    """The deviation that the docstring of `SGD` names is still torch's."""
    optimizer = torch.optim.SGD(parameters(), foreach=True, momentum=0.9, nesterov=True)
    params = optimizer.param_groups[0]["params"]
    set_gradients(params, 0)
    copy = params[0].grad.clone()
    optimizer.step()
    assert not torch.equal(params[0].grad, copy)


def test_updates_in_place(name, foreach):
    optimizer = take_steps(pair(name)[0](parameters(), foreach=foreach, **OPTIONS[name]), 1)
    addresses = {key: tensor.data_ptr() for key, tensor in tensors(optimizer)}
    take_steps(optimizer, 2, first=1)
    assert {key: tensor.data_ptr() for key, tensor in tensors(optimizer)} == addresses


def tensors(optimizer):
    for i, param in enumerate(optimizer.param_groups[0]["params"]):
        yield f"param[{i}]", param
        for key, value in optimizer.state[param].items():
            yield f"state[{i}].{key}", value


def test_options_changed_between_steps(name, foreach):
    def act(optimizer):
        take_steps(optimizer, 2)
        optimizer.param_groups[0].update(lr=0.3, weight_decay=0, maximize=True)
        take_steps(optimizer, 2, first=2)

    both(name, foreach, act)


def test_engine_changed_between_steps(name):
    def act(optimizer):
        for step, foreach in enumerate((False, True, None, False)):
            optimizer.param_groups[0]["foreach"] = foreach
            take_steps(optimizer, 1, first=step)

    both(name, None, act)


def test_parameter_named_twice(name, foreach):
    """torch warns of it; its for-loop updates the parameter once for each mention, and so do both engines here."""
    ends = []
    for cls, engine in zip(pair(name), (foreach, False), strict=True):
        first, second = parameters(shapes=((3,), (2,)))
        with pytest.warns(UserWarning, match="duplicate parameters"):
            optimizer = cls([first, second, first], foreach=engine, **(OPTIONS[name] if name != "SGD" else {}))
        for step in range(3):
            set_gradients([first, second], step)
            optimizer.step()
        ends.append(optimizer)
    assert_same(*ends)


def test_mixed_dtypes_in_one_group(name, foreach):
    ends = []
    for cls in pair(name):
        shapes = ((3,), (2, 2), (4,), (5,))
        dtypes = (torch.float32, torch.float64, torch.float32, torch.float64)
        params = [parameters(dtype, (shape,))[0] for shape, dtype in zip(shapes, dtypes, strict=True)]
        ends.append(take_steps(cls(params, foreach=foreach, **OPTIONS[name]), 4))
    assert_same(*ends)


def test_default_dtype_float64(name, foreach):
    try:
        torch.set_default_dtype(torch.float64)
        both(name, foreach, lambda o: take_steps(o, 3))
    finally:
        torch.set_default_dtype(torch.float32)


def test_step_count_beyond_float32(name, foreach):
    def act(optimizer):
        take_steps(optimizer, 1)
        for state in optimizer.state.values():
            if "step" in state:
                state["step"].fill_(2.0**24 - 1)
        take_steps(optimizer, 3, first=1)

    both(name, foreach, act)


def test_closure(name, foreach):
    def act(optimizer):
        params = optimizer.param_groups[0]["params"]

        def closure():
            assert torch.is_grad_enabled()
            optimizer.zero_grad()
            loss = sum((param**2).sum() for param in params)
            loss.backward()
            return loss

        with torch.no_grad():
            losses.append([optimizer.step(closure) for _ in range(3)])

    losses = []
    both(name, foreach, act)
    assert losses[0] == losses[1]
    assert losses[0][0] > losses[0][-1]


def test_hooks(name):
    calls = []

    def act(optimizer):
        mine = []
        calls.append(mine)
        optimizer.register_step_pre_hook(lambda o, args, kwargs: mine.append(("pre", o is optimizer, args, kwargs)))
        optimizer.register_step_post_hook(lambda o, args, kwargs: mine.append(("post", o is optimizer)))
        take_steps(optimizer, 2)

    both(name, False, act)
    assert [call[0] for call in calls[0]] == ["pre", "post"] * 2
    assert all(call[1] for call in calls[0])
    assert len(calls[0]) == len(calls[1])


SCHEDULERS = {
    "StepLR": lambda o: lr_scheduler.StepLR(o, 2, 0.5),
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda epoch: 0.9**epoch),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 5),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=10, cycle_momentum=False),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0),
}


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_schedulers(name, foreach, scheduler):
    def act(optimizer):
        schedule = SCHEDULERS[scheduler](optimizer)
        for step in range(6):
            take_steps(optimizer, 1, first=step)
            schedule.step(*([1.0] if scheduler == "ReduceLROnPlateau" else []))

    both(name, foreach, act, lr=0.1)


@pytest.mark.parametrize("cycled_name", ["SGD", "RMSprop", "Adam", "AdamW", "Adamax", "NAdam", "RAdam"])
def test_scheduled_momentum(cycled_name):
    def act(optimizer):
        schedule = lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=10)
        for step in range(6):
            take_steps(optimizer, 1, first=step)
            schedule.step()

    both(cycled_name, False, act, lr=0.1)


def test_scheduler_fills_a_tensor_lr(name):
    def act(optimizer):
        schedule = lr_scheduler.ExponentialLR(optimizer, 0.5)
        for step in range(4):
            take_steps(optimizer, 1, first=step)
            schedule.step()

    ends = []
    for cls in pair(name):
        optimizer = cls(parameters(), lr=torch.tensor(0.1), foreach=False)
        act(optimizer)
        ends.append(optimizer)
    assert_same(*ends)


def test_gradient_scaling_skips_a_step_with_infinities(name, foreach):
    def act(optimizer):
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2)
        params = optimizer.param_groups[0]["params"]
        for step in range(5):
            optimizer.zero_grad()
            factor = float("inf") if step == 2 else 1.0
            scaler.scale(sum((param * factor).square().sum() for param in params)).backward()
            scaler.step(optimizer)
            scaler.update()
        scales.append(scaler.get_scale())

    scales = []
    both(name, foreach, act)
    assert scales[0] == scales[1] == 2048.0  # grown, halved by the infinity, grown again


def test_unexpected_gradient_scale(name, foreach):
    """Refused by the optimizers that torch has a fused kernel for, as by torch; the others do not look."""

    def step(cls):
        optimizer = cls(parameters(), foreach=foreach)
        optimizer.found_inf = torch.tensor(0.0)
        take_steps(optimizer, 1)

    ours, theirs = (outcome(partial(step, cls)) for cls in pair(name))
    assert ours == theirs
    assert (ours[0] is AssertionError) == (name in ("SGD", "Adagrad", "Adam", "AdamW"))


def test_duplicate_free_profile_and_zero_grad(name, foreach):
    optimizer = take_steps(pair(name)[0](parameters(), foreach=foreach), 1)
    optimizer.zero_grad(set_to_none=False)
    assert all(not param.grad.any() for param in optimizer.param_groups[0]["params"])
    optimizer.zero_grad()
    assert all(param.grad is None for param in optimizer.param_groups[0]["params"])


def test_add_param_group_errors(name):
    for group in ({"params": 3}, [1], {"params": parameters()[0] * 2}, "same"):
        found = []
        for cls in pair(name):
            optimizer = cls(parameters())
            added = {"params": optimizer.param_groups[0]["params"][:1]} if group == "same" else group
            found.append(outcome(lambda optimizer=optimizer, added=added: optimizer.add_param_group(added)))
        assert found[0][0] is not None
        assert found[0] == found[1]


SPARSE = torch.sparse_coo_tensor([[0]], [1.0], (5,), check_invariants=True)


@pytest.mark.parametrize("refusing_name", [name for name in OPTIMIZERS if name not in ("SGD", "Adagrad")])
def test_sparse_gradient_is_refused(refusing_name, foreach):
    def step(cls):
        param = torch.ones(5, requires_grad=True)
        param.grad = SPARSE.clone()
        cls([param], foreach=foreach).step()

    ours, theirs = (outcome(lambda cls=cls: step(cls)) for cls in pair(refusing_name))
    assert ours[0] is RuntimeError
    assert ours == theirs


@pytest.mark.parametrize("taking_name", ["SGD", "Adagrad"])
def test_sparse_gradient_with_weight_decay_is_refused(taking_name):
    def step(cls):
        param = torch.ones(5, requires_grad=True)
        param.grad = SPARSE.clone()
        cls([param], weight_decay=0.1).step()

    ours, theirs = (outcome(lambda cls=cls: step(cls)) for cls in pair(taking_name))
    assert ours[0] is RuntimeError
    assert ours == theirs


@pytest.mark.parametrize("state", ["new", "old"])
def test_refused_step_changes_nothing(name, foreach, state):
    """The bad gradient is in the last of three groups; torch has updated the others when it raises."""
    ours, _ = pair(name)
    first, second, third = parameters(shapes=((3,), (2,), (5,)))
    decay = {"weight_decay": 0.1}
    optimizer = ours([{"params": [first]}, {"params": [second]}, {"params": [third], **decay}], foreach=foreach)
    if state == "old":
        take_steps(optimizer, 2)
    before, keys = snapshot(optimizer), list(optimizer.state)
    set_gradients([first, second], 2)
    third.grad = SPARSE.clone()
    with pytest.raises(RuntimeError):
        optimizer.step()
    assert_same(before, optimizer)
    assert len(optimizer.state) == len(keys)


def test_bad_option_changes_nothing(name, foreach):
    ours, _ = pair(name)
    first, second = parameters(shapes=((3,), (2,)))
    optimizer = take_steps(ours([{"params": [first]}, {"params": [second]}], lr=0.1, foreach=foreach), 2)
    option = "etas" if name == "Rprop" else "lr"  # which Rprop reads only once
    del optimizer.param_groups[1][option]
    before = snapshot(optimizer)
    set_gradients([first, second], 2)
    with pytest.raises(KeyError, match=option):
        optimizer.step()
    assert_same(before, optimizer)


def test_no_warnings(name, foreach):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        take_steps(pair(name)[0](parameters(), foreach=foreach, **OPTIONS[name]), 3)
