"""The fused engine does what the loop engine does, whatever the tensors look like and whatever becomes of them."""

import copy
import gc
import importlib
import pickle
import threading
import weakref

import pytest
import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.optim import lr_scheduler

from helpers import OPTIONS, assert_same, outcome, pair, parameters, set_gradients, snapshot, take_steps
from reimpl.optim.engines import kernel
from reimpl.verify.optimizers import WITHOUT_EPS

engine = importlib.import_module("reimpl.optim.engines.fused")  # the package has a function of this name
FUSED, LOOP = {"fused": True}, {"foreach": False}
HAVE_TORCHS = ["SGD", "Adagrad", "Adam", "AdamW"]

KERNELS = {"RAdam": 2, "ASGD": 2}
"""How many kernels a course takes: RAdam's second moment counts from the sixth step on, ASGD's mean from the fourth."""


def float64(*shapes):
    return parameters(torch.float64, shapes or ((7, 3), (5,), ()))


def assert_near(first, second, rtol=1e-12):
    first, second = (x if isinstance(x, dict) else snapshot(x) for x in (first, second))
    assert list(first) == list(second)
    for key, tensor in first.items():
        torch.testing.assert_close(
            tensor, second[key], rtol=rtol, atol=rtol / 10, equal_nan=True, msg=lambda text, key=key: f"{key}: {text}"
        )


def ends(name, act=lambda o: take_steps(o, 4), make=float64, rtol=1e-12, **more):
    """Act on a fused optimizer and on one that loops, and assert that they end near each other."""
    found = []
    for choice in (FUSED, LOOP):
        optimizer = pair(name)[0](make(), **OPTIONS[name] | more, **choice)
        act(optimizer)
        found.append(optimizer)
    assert_near(*found, rtol)
    return found


def members(optimizer):
    return [param for group in optimizer.param_groups for param in group["params"]]


@pytest.fixture
def compiled(monkeypatch):
    """The sources that are compiled from here on; no kernel is known yet."""
    sources, compile_for_processor = [], kernel.compile_for_processor

    def counting(source):
        sources.append(source)
        return compile_for_processor(source)

    monkeypatch.setattr(kernel, "KERNELS", {})
    monkeypatch.setattr(kernel, "compile_for_processor", counting)
    return sources


@pytest.fixture
def on_lists(monkeypatch):
    """The numbers of parameters that the foreach engine had to take over."""
    counts, foreach = [], engine.foreach

    def counting(rule, batch):
        counts.append(len(batch.params))
        foreach(rule, batch)

    monkeypatch.setattr(engine, "foreach", counting)
    return counts


# Kernels: one for all steps.

SCHEDULERS = {
    "warm-up from 0": lambda o, cycled: lr_scheduler.LambdaLR(o, lambda epoch: min(1.0, epoch / 10)),
    "LinearLR": lambda o, cycled: lr_scheduler.LinearLR(o, 0.01, total_iters=50),
    "OneCycleLR": lambda o, cycled: lr_scheduler.OneCycleLR(o, 0.1, total_steps=102, cycle_momentum=cycled),
    "CosineAnnealingLR": lambda o, cycled: lr_scheduler.CosineAnnealingLR(o, 100, eta_min=0),
}


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_schedulers_compile_nothing(name, scheduler, compiled):
    def act(optimizer):
        schedule = SCHEDULERS[scheduler](optimizer, name in ("SGD", "RMSprop", "Adam"))
        for step in range(100):
            take_steps(optimizer, 1, first=step)
            schedule.step()
            if step == 6:
                compiled.append("warm")

    ends(name, act, lr=0.01, rtol=1e-10)
    count = KERNELS.get(name, 1)
    assert compiled[count:] == ["warm", "warm"]  # of the fused run and of the loop
    assert sum(map(len, kernel.KERNELS.values())) == count


NUMBERS = {
    "SGD": {"lr": 0.3, "weight_decay": 0.2, "momentum": 0.5, "dampening": 0.1},
    "Adagrad": {"lr": 0.3, "weight_decay": 0.2, "lr_decay": 0.01, "eps": 1e-3},
    "RMSprop": {"lr": 0.3, "weight_decay": 0.2, "alpha": 0.5, "momentum": 0.1, "eps": 1e-3},
    "Adadelta": {"lr": 0.3, "weight_decay": 0.2, "rho": 0.5, "eps": 1e-3},
    "Adam": {"lr": 0.3, "weight_decay": 0.2, "betas": (0.5, 0.6), "eps": 1e-3},
    "AdamW": {"lr": 0.3, "weight_decay": 0.2, "betas": (0.5, 0.6), "eps": 1e-3},
    "Adamax": {"lr": 0.3, "weight_decay": 0.2, "betas": (0.5, 0.6), "eps": 1e-3},
    "NAdam": {"lr": 0.3, "weight_decay": 0.2, "betas": (0.5, 0.6), "eps": 1e-3, "momentum_decay": 0.2},
    "RAdam": {"lr": 0.3, "weight_decay": 0.2, "eps": 1e-3},
    "Rprop": {"lr": 0.3, "etas": (0.4, 1.3), "step_sizes": (1e-4, 2.0)},
    "ASGD": {"lr": 0.3, "weight_decay": 0.2, "lambd": 0.02, "alpha": 0.5},
}


def test_changed_numbers_compile_nothing(name, compiled):
    def act(optimizer):
        if name != "Rprop":
            optimizer.param_groups[0]["weight_decay"] = 0.1
        for step, (option, value) in enumerate(
            [("lr", 0.02), ("lr", torch.tensor(0.25, dtype=torch.float64)), *NUMBERS[name].items()]
        ):
            take_steps(optimizer, 1, first=step)
            optimizer.param_groups[0][option] = value
        take_steps(optimizer, 2, first=9)

    ends(name, act)
    assert len(compiled) == KERNELS.get(name, 1)


def test_weight_decay_that_begins_is_one_more_kernel(name, compiled):
    if name == "Rprop":
        pytest.skip("has no weight decay")

    def act(optimizer):
        for step, weight_decay in enumerate((0, 0, 0.1, 0.2, 0, 0.1)):
            optimizer.param_groups[0]["weight_decay"] = weight_decay
            take_steps(optimizer, 1, first=step)

    ends(name, act)
    assert len(compiled) == {"RAdam": 3, "ASGD": 4}.get(name, 2)  # both of ASGD's kernels see both, one of RAdam's one


OTHERS = {
    "SGD": [{"nesterov": True}, {"dampening": 0.3}, {"momentum": 0}],
    "Adagrad": [{"initial_accumulator_value": 0.5}],
    "RMSprop": [{"momentum": 0}, {"centered": False}],
    "Adadelta": [],
    "Adam": [{"amsgrad": False}, {"decoupled_weight_decay": True}],
    "AdamW": [{"amsgrad": False}],
    "Adamax": [],
    "NAdam": [{"decoupled_weight_decay": True}],
    "RAdam": [{"decoupled_weight_decay": True}, {"betas": (0.9, 0.999)}],
    "Rprop": [],
    "ASGD": [{"t0": 1e6}],
}


def test_options(name, on_lists):
    for options in (
        {"maximize": True},
        {"weight_decay": 0} if name != "Rprop" else {},
        {"lr": torch.tensor(0.1, dtype=torch.float64)},
        *OTHERS[name],
    ):
        ends(name, **options)
        ends(name, **options, make=lambda: parameters(), rtol=1e-5)
    assert not on_lists


def test_groups_with_options_of_their_own(name):
    def act(optimizer):
        optimizer.param_groups[0].update(weight_decay=0, maximize=True)
        optimizer.add_param_group({"params": float64((4, 4)), "lr": 0.5})
        take_steps(optimizer, 3)

    ends(name, act)


# Tensors: how they lie in memory.


def normal(*shape):
    return torch.randn(shape, dtype=torch.float64)


LAYOUTS = {
    "transposed": lambda: normal(5, 7).t(),
    "permuted": lambda: normal(2, 3, 4).permute(2, 0, 1),
    "channels_last": lambda: normal(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
    "channels_last with sizes of 1": lambda: normal(4, 1, 3, 1).contiguous(memory_format=torch.channels_last),
    "channels_last_3d": lambda: normal(2, 3, 2, 4, 5).contiguous(memory_format=torch.channels_last_3d),
    "0-dim": normal,
    "empty": lambda: normal(0, 3),
    "one": lambda: normal(1, 1),
    "odd": lambda: normal(13, 11),
    "large": lambda: normal(70_001),
    "offset": lambda: normal(40)[3:],
    "columns": lambda: normal(6, 8)[:, ::2],
    "window": lambda: normal(6, 8)[1:4, 2:5],
}


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(name, layout, alone):
    def make():
        torch.manual_seed(1)
        found = [LAYOUTS[layout](), *([] if alone else [normal(3), normal(2, 2)])]
        return [param.requires_grad_() for param in found]

    def act(optimizer):
        before = [(param.data_ptr(), param.stride()) for param in members(optimizer)]
        take_steps(optimizer, 3)
        assert [(param.data_ptr(), param.stride()) for param in members(optimizer)] == before

    fused, loop = ends(name, act, make)
    for ours, theirs in zip(members(fused), members(loop), strict=True):
        for key, tensor in fused.state[ours].items():
            assert tensor.stride() == loop.state[theirs][key].stride(), key


def like_params(optimizer):
    """Give each gradient the strides of its parameter, as backward does."""
    for param in members(optimizer):
        param.grad = torch.empty_like(param).copy_(param.grad)


@pytest.mark.parametrize("layout", ["transposed", "permuted", "channels_last", "channels_last_3d"])
def test_dense_layouts_stay_with_the_kernel(name, layout, on_lists):
    def make():
        torch.manual_seed(1)
        return [LAYOUTS[layout]().requires_grad_() for _ in range(2)]

    def act(optimizer):
        for step in range(3):
            set_gradients(members(optimizer), step)
            like_params(optimizer)
            optimizer.step()

    fused, _ = ends(name, act, make)
    assert not on_lists
    for param in members(fused):
        assert all(tensor.stride() == param.stride() for tensor in fused.state[param].values() if tensor.dim())


def test_what_lies_beside_a_slice_stays(name):
    base = normal(6, 8)
    copy_of_base = base.clone()
    take_steps(pair(name)[0]([base[1:5, 2:6].requires_grad_()], **OPTIONS[name], **FUSED), 3)
    changed = base != copy_of_base
    assert changed[1:5, 2:6].all()
    assert changed.sum() == 16


def negative(grad):
    """Return a view with the bit that says that its numbers have the other sign."""
    view = torch.complex(torch.zeros_like(grad), -grad).conj().imag
    assert view.is_neg()
    return view


GRADIENTS = {
    "transposed": lambda grad: grad.mT.contiguous().mT,
    "part of a bucket": lambda grad: torch.cat([normal(5), grad.flatten(), normal(2)])[5:-2].view_as(grad),
    "part of a row": lambda grad: torch.stack([grad, grad], -1)[..., 1],
    "expanded": lambda grad: grad[:1, :1].expand_as(grad),
    "negative": negative,
    "dense and negative": lambda grad: torch._neg_view(-grad),
    "part of a graph": lambda grad: grad.clone().requires_grad_() * 1,
}


@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("form", GRADIENTS)
def test_gradients_are_read_as_they_are(name, form, maximize):
    def act(optimizer):
        for step in range(3):
            set_gradients(members(optimizer), step)
            for param in members(optimizer)[:2]:
                param.grad = GRADIENTS[form](param.grad)
            kept = [(param.grad, param.grad.clone(), param.grad._version) for param in members(optimizer)]
            optimizer.step()
            for param, (gradient, clone, version) in zip(members(optimizer), kept, strict=True):
                assert param.grad is gradient
                assert torch.equal(gradient, clone)
                assert gradient._version == version

    ends(name, act, make=lambda: float64((4, 3), (5, 5), (2,)), maximize=maximize)


def complex_parameters():
    torch.manual_seed(2)
    return [torch.randn(shape, dtype=torch.complex128).requires_grad_() for shape in ((3, 2), (4,), ())]


@pytest.mark.parametrize("conjugated", [False, True])
def test_complex(name, conjugated):
    def act(optimizer):
        torch.manual_seed(3)
        for _ in range(4):
            for param in members(optimizer):
                grad = torch.randn(param.shape, dtype=param.dtype)
                param.grad = grad.conj() if conjugated else grad
            optimizer.step()

    for options in ({}, {"maximize": True}):
        ends(name, act, complex_parameters, **options)


def test_mixed_dtypes_in_one_group(name, on_lists):
    def make():
        dtypes = (torch.float32, torch.float64, torch.float32, torch.float64)
        return [parameters(dtype, ((3, index + 1),))[0] for index, dtype in enumerate(dtypes)]

    ends(name, make=make, rtol=1e-5)
    assert not on_lists


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_once_a_step(name, dtype, on_lists):
    """As a step in float64 on the same numbers that is then rounded."""
    options = OPTIONS[name] | ({"eps": 1e-3} if name not in WITHOUT_EPS else {})
    (param,) = params = parameters(dtype, ((300,),))
    optimizer = take_steps(pair(name)[0](params, **options, **FUSED), 1)
    wide = param.detach().double().requires_grad_()
    exact = pair(name)[0]([wide], **options, **LOOP)
    exact.load_state_dict(copy.deepcopy(optimizer.state_dict()))  # else they share the step count, as with torch's
    set_gradients(params, 1)
    wide.grad = param.grad.double()
    exact.param_groups[0].update(fused=None, **LOOP)
    optimizer.step()
    exact.step()
    eps = torch.finfo(dtype).eps
    for key, tensor in snapshot(exact).items():
        torch.testing.assert_close(
            snapshot(optimizer)[key].double(),
            tensor.double(),
            rtol=0.6 * eps,
            atol=1e-6,
            msg=lambda m, key=key: key + m,
        )
    assert not on_lists


def test_gradients_of_another_dtype(name, on_lists):
    """Of the first of two parameters, rounded to what float32 holds."""
    ends = []
    for first_dtype in (torch.float32, torch.float64):
        params = float64((4, 3), (5,))
        params[0].grad_dtype = first_dtype
        optimizer = pair(name)[0](params, **OPTIONS[name], **FUSED)
        torch.manual_seed(4)
        for _ in range(3):
            for param in params:
                param.grad = torch.randn(param.shape).to(param.grad_dtype)
            optimizer.step()
        ends.append({key: value.double() for key, value in snapshot(optimizer).items()})
    assert_near(*ends, rtol=1e-6 if name == "SGD" else 1e-12)  # the buffer has the gradient's dtype
    assert not on_lists


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_share_the_elements(name, threads):
    """Wherever a tensor begins or ends."""
    before = torch.get_num_threads()
    shapes = ((40_000,), (1,), (0,), (50_000,), (7,), (0,), (30_001,))
    options = OPTIONS[name] | FUSED
    single = take_steps(pair(name)[0](float64(*shapes), **options), 2)
    try:
        torch.set_num_threads(threads)
        several = take_steps(pair(name)[0](float64(*shapes), **options), 2)
    finally:
        torch.set_num_threads(before)
    assert_near(single, several)


# Life: what happens to gradients, parameters, groups and state between steps.


def test_missing_gradients_come_and_go(name, on_lists):
    def act(optimizer):
        for step, skip in enumerate([(), (1,), (0, 2), (0, 1, 2), (), (2,), ()]):
            take_steps(optimizer, 1, first=step, skip=skip)

    fused, loop = ends(name, act)
    assert not on_lists
    order = [
        [list(map(id, members(optimizer))).index(id(param)) for param in optimizer.state] for optimizer in (fused, loop)
    ]
    assert order[0] == order[1]


def test_the_first_parameter_is_left_out(name):
    """The one by which something may be remembered."""

    def act(optimizer):
        for step in range(6):
            take_steps(optimizer, 1, first=step, skip=(0,) if step % 2 else (2,))

    ends(name, act)


def test_parameters_added_later(name):
    def act(optimizer):
        take_steps(optimizer, 2)
        optimizer.add_param_group({"params": float64((3, 3), (2,)), "lr": 0.3})
        take_steps(optimizer, 2, first=2)
        optimizer.param_groups[0]["params"].extend(float64((6,)))
        if name == "Adagrad":  # its state is made by the constructor
            param = members(optimizer)[3]
            optimizer.state[param] = optimizer.create_state(optimizer.param_groups[0], param)
        take_steps(optimizer, 2, first=4)
        del optimizer.param_groups[1]
        take_steps(optimizer, 2, first=6)
        del optimizer.param_groups[0]["params"][0]
        take_steps(optimizer, 2, first=8)

    ends(name, act)


def replace_parameter(optimizer):
    (new,) = float64((4, 4))
    params = optimizer.param_groups[0]["params"]
    optimizer.state[new] = optimizer.state.pop(params[0], {})
    params[0] = new


def halve_precision(optimizer):
    for param in members(optimizer):
        param.grad = None
        param.data = param.data.float()
    saved = optimizer.state_dict()
    optimizer.load_state_dict(saved)  # casts the state


def transpose_parameter(optimizer):
    for param in members(optimizer)[:1]:
        param.grad = None
        param.data = param.data.t()


def replace_state(optimizer):
    for param in members(optimizer):
        for key, value in optimizer.state[param].items():
            optimizer.state[param][key] = value * 2


def move_state(optimizer):
    for param in members(optimizer):
        for value in optimizer.state[param].values():
            value.data = value.data.clone()


def transpose_state(optimizer):
    for key, value in optimizer.state[members(optimizer)[0]].items():
        optimizer.state[members(optimizer)[0]][key] = value.t()


def swap_state(optimizer):
    first, second = members(optimizer)[:2]
    optimizer.state[first], optimizer.state[second] = optimizer.state[second], optimizer.state[first]


def other_values(optimizer):
    for param in members(optimizer):
        param.data.mul_(2)


def new_memory(optimizer):
    for param in members(optimizer):
        param.data = param.data * 2


REPLACEMENTS = {
    function.__name__: function
    for function in (
        replace_parameter,
        halve_precision,
        transpose_parameter,
        replace_state,
        move_state,
        transpose_state,
        swap_state,
        other_values,
        new_memory,
    )
}
REPLACEMENTS["clear the state"] = lambda optimizer: optimizer.state.clear()
REPLACEMENTS["load a checkpoint"] = lambda optimizer: optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
REPLACEMENTS["reverse the parameters"] = lambda optimizer: optimizer.param_groups[0]["params"].reverse()


@pytest.mark.parametrize("replacement", REPLACEMENTS)
def test_replaced_between_steps(name, replacement):
    def act(optimizer):
        for step in range(5):
            take_steps(optimizer, 1, first=step)
            if step in (1, 2):
                REPLACEMENTS[replacement](optimizer)

    ends(name, act, lambda: float64((4, 4), (4, 4), (3,)), rtol=1e-5 if replacement == "halve_precision" else 1e-12)


def resumed(name):
    """Return a loop that has gone on from its own checkpoint: loading casts all state but the step count to float64."""
    first = take_steps(pair(name)[0](float64(), **OPTIONS[name], **LOOP), 4)
    second = pair(name)[0]([param.detach().clone().requires_grad_() for param in members(first)])
    second.load_state_dict(first.state_dict())
    return take_steps(second, 4, first=4)


@pytest.mark.parametrize("writer", ["torch", "loop", "fused", "torch's fused"])
def test_checkpoint_in_mid_run(name, writer):
    """Of any engine into a fused optimizer, which then goes on fused; a checkpoint brings its options along."""
    if writer == "torch's fused" and name not in HAVE_TORCHS:
        pytest.skip("torch has no fused kernel for it")
    ours, theirs = pair(name)
    cls, choice = (theirs, LOOP) if writer == "torch" else (ours, LOOP) if writer == "loop" else (ours, FUSED)
    if writer == "torch's fused":
        cls = theirs
    optimizer = take_steps(ours(float64(), **OPTIONS[name], **FUSED), 2)
    first = take_steps(cls(float64(), **OPTIONS[name], **choice), 4)
    for param, other in zip(members(optimizer), members(first), strict=True):
        param.data.copy_(other.data)
    optimizer.load_state_dict(first.state_dict())
    optimizer.param_groups[0].update(foreach=None, fused=True)
    assert_near(resumed(name), take_steps(optimizer, 4, first=4))


@pytest.mark.parametrize("reader", ["torch", "loop"])
def test_fused_checkpoint_elsewhere(name, reader):
    first = take_steps(pair(name)[0](float64(), **OPTIONS[name], **FUSED), 4)
    second = pair(name)[reader == "torch"]([param.detach().clone().requires_grad_() for param in members(first)])
    second.load_state_dict(first.state_dict())
    second.param_groups[0].update(fused=None, **LOOP)
    assert_near(resumed(name), take_steps(second, 4, first=4))


def test_engine_changed_between_steps(name):
    def act(optimizer):
        for step, choice in enumerate((True, None, True, False, True)):
            optimizer.param_groups[0].update(fused=optimizer.defaults.get("fused") and choice, foreach=False)
            if optimizer.param_groups[0]["fused"]:
                optimizer.param_groups[0]["foreach"] = None
            take_steps(optimizer, 1, first=step)

    ends(name, act)


def test_state_dict_is_torchs(name):
    theirs = {"fused": True} if name in HAVE_TORCHS else {}
    ours, reference = (
        take_steps(cls(parameters(), **OPTIONS[name], **choice), 3).state_dict()
        for cls, choice in zip(pair(name), (FUSED, theirs), strict=True)
    )
    for mine, other in zip(ours["param_groups"], reference["param_groups"], strict=True):
        assert {"fused": True, **other} == {**mine, "fused": True}
        assert mine["fused"] is True
    assert ours["state"].keys() == reference["state"].keys()
    for index, state in ours["state"].items():
        assert list(state) == list(reference["state"][index])
        for key, tensor in state.items():
            other = reference["state"][index][key]
            assert (tensor.shape, tensor.dtype, tensor.device) == (other.shape, other.dtype, other.device)
            assert tensor.untyped_storage().nbytes() == other.untyped_storage().nbytes()


def test_deepcopy_and_pickle(name):
    optimizer = take_steps(pair(name)[0](float64(), **OPTIONS[name], **FUSED), 2)
    straight = take_steps(pair(name)[0](float64(), **OPTIONS[name], **FUSED), 4)
    clones = copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))
    before = snapshot(optimizer)
    for clone in clones:
        assert clone.param_groups[0]["fused"]
        assert_same(straight, take_steps(clone, 2, first=2))
    assert_same(before, optimizer)
    assert_same(straight, take_steps(optimizer, 2, first=2))


def test_nothing_is_kept_alive(name):
    params = float64()
    optimizer = take_steps(pair(name)[0](params, **OPTIONS[name], **FUSED), 3)
    kept = [
        *params,
        *(param.grad for param in params),
        *(t for state in optimizer.state.values() for t in state.values()),
    ]
    watched = [weakref.ref(tensor) for tensor in kept]
    assert len(watched) > 8
    del kept, params, optimizer
    gc.collect()
    assert not any(reference() is not None for reference in watched)


def test_a_parameter_that_goes_is_not_kept_alive(name):
    params = float64()
    optimizer = take_steps(pair(name)[0](params, **OPTIONS[name], **FUSED), 3)
    watched = [weakref.ref(tensor) for tensor in (params[0], *optimizer.state[params[0]].values())]
    del optimizer.state[params[0]], params[0], optimizer.param_groups[0]["params"][0]
    gc.collect()
    assert not any(reference() is not None for reference in watched)
    take_steps(optimizer, 1, first=3)


WRONG = {
    "shorter": lambda state: state[:2].clone(),
    "longer": lambda state: torch.zeros(9, dtype=state.dtype),
    "of one element": lambda state: state[:1].clone(),
    "0-dim": lambda state: state[0].clone(),
    "folded": lambda state: state.reshape(2, 3).clone(),
    "empty": lambda state: state[:0].clone(),
    "a column": lambda state: state.reshape(6, 1).clone(),
}


@pytest.mark.parametrize("how", ["another tensor", "other data"])
@pytest.mark.parametrize("wrong", WRONG)
def test_state_of_another_shape(name, wrong, how):
    """Refused, as by the loop; or broadcast, where the loop can."""

    def step(choice):
        optimizer = take_steps(pair(name)[0](float64((3,), (6,)), **OPTIONS[name], **choice), 2)
        state = optimizer.state[members(optimizer)[1]]
        key = next(key for key in state if key != "step")
        guard = torch.cat([state[key].detach(), torch.full((64,), 7.0, dtype=torch.float64)])
        replaced = WRONG[wrong](guard[:6])
        if how == "another tensor":
            state[key] = replaced
        else:
            state[key].data = replaced
        take_steps(optimizer, 1, first=2)
        assert replaced.numel() == state[key].numel()
        return snapshot(optimizer)

    fused, loop = outcome(lambda: step(FUSED)), outcome(lambda: step(LOOP))
    assert (fused[0] is None) == (loop[0] is None), (fused, loop)
    if loop[0] is None:
        assert_near(fused[1], loop[1])


# The surroundings: closures, hooks, autograd, torch.compile, threads.


def test_closure(name):
    def act(optimizer):
        def closure():
            assert torch.is_grad_enabled()
            optimizer.zero_grad()
            loss = sum((param**2).sum() for param in members(optimizer))
            loss.backward()
            return loss

        losses.append([optimizer.step(closure).item() for _ in range(3)])

    losses = []
    ends(name, act)
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)


@pytest.mark.parametrize("where", ["closure", "pre", "post"])
def test_an_exception_leaves_whole_steps(name, where):
    def act(optimizer):
        def fail(*_):
            raise InterruptedError

        take_steps(optimizer, 1)
        before = snapshot(optimizer)
        hook = None if where == "closure" else getattr(optimizer, f"register_step_{where}_hook")(fail)
        set_gradients(members(optimizer), 1)
        with pytest.raises(InterruptedError):
            optimizer.step(fail if where == "closure" else None)
        if where != "post":
            assert_same(before, optimizer)
        if hook:
            hook.remove()
        take_steps(optimizer, 2, first=2)

    ends(name, act)


def test_old_graphs_notice_the_step(name):
    for params in (float64(), complex_parameters()):
        optimizer = pair(name)[0](params, **OPTIONS[name], **FUSED)
        stale = sum((param * param).abs().sum() for param in params)
        versions = [param._version for param in params]
        take_steps(optimizer, 1)
        assert all(param._version > version for param, version in zip(params, versions, strict=True))
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            stale.backward()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_modes(name, mode):
    def act(optimizer):
        set_gradients(members(optimizer), 0)
        with mode():
            for _ in range(2):
                optimizer.step()

    ends(name, act)


def test_parameters_that_are_inference_tensors(name):
    def make():
        with torch.inference_mode():
            return [torch.ones(3, dtype=torch.float64), torch.ones(2, 2, dtype=torch.float64)]

    def act(optimizer):
        with torch.inference_mode():
            take_steps(optimizer, 2)

    ends(name, act, make)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name", ["SGD", "Adagrad", "RMSprop", "Adadelta", "Adam", "RAdam", "ASGD"]
)  # compiling is slow
def test_compiled_step(name):
    torch._dynamo.reset()

    def act(optimizer):
        step = torch.compile(optimizer.step, backend="aot_eager") if optimizer.defaults.get("fused") else optimizer.step
        for index in range(3):
            set_gradients(members(optimizer), index)
            step()

    # A graph computes coefficients in the step count's float32. No 0-dim float64 parameter: with `aot_eager`, the
    # state of torch's own RAdam ends as 0 there.
    ends(name, act, lambda: float64((7, 3), (5,)), rtol=1e-5)


def test_fake_tensors(name):
    with FakeTensorMode():
        take_steps(pair(name)[0](parameters(), **OPTIONS[name], **FUSED), 2)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(not dist.is_available(), reason="torch was built without torch.distributed")
def test_sharded_parameters(name, tmp_path):
    from torch.distributed.tensor import Shard, distribute_tensor

    def act(optimizer):
        for step in range(3):
            whole = float64((6, 2), (4,))
            set_gradients(whole, step)
            for param, plain in zip(members(optimizer), whole, strict=True):
                sharded = optimizer.defaults.get("fused")
                param.grad = distribute_tensor(plain.grad, mesh, [Shard(0)]) if sharded else plain.grad
            optimizer.step()

    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    try:
        mesh = dist.init_device_mesh("cpu", (1,))
        plain = pair(name)[0](float64((6, 2), (4,)), **OPTIONS[name], **LOOP)
        shards = [distribute_tensor(param.detach(), mesh, [Shard(0)]) for param in float64((6, 2), (4,))]
        sharded = pair(name)[0](list(map(torch.nn.Parameter, shards)), **OPTIONS[name], **FUSED)
        act(plain)
        act(sharded)
        assert_near(
            {
                key: getattr(value, "full_tensor", lambda value=value: value)()
                for key, value in snapshot(sharded).items()
            },
            snapshot(plain),
        )
    finally:
        dist.destroy_process_group()


def test_numbers_are_updated_alike_wherever_they_stand(name):
    """In one tensor or cut into many, so that a vector of the processor holds others beside them, or none."""

    def end(size):
        numbers, *gradients = torch.randn(4, 61, generator=torch.Generator().manual_seed(0)).unbind()
        optimizer = pair(name)[0]([part.clone() for part in numbers.split(size)], **OPTIONS[name], **FUSED)
        for gradient in gradients:
            for param, part in zip(members(optimizer), gradient.split(size), strict=True):
                param.grad = part.clone()
            optimizer.step()
        return torch.cat(members(optimizer))

    for size in (1, 3, 17):
        assert torch.equal(end(size), end(61)), size


def test_threads_step_at_once(name):
    def run(seed):
        params = [param for i in range(3) for param in parameters(torch.float64, ((50, 3), (7,)), seed + i)]
        return take_steps(pair(name)[0](params, **OPTIONS[name], **FUSED), 20)

    expected, found = [run(seed) for seed in range(4)], [None] * 4

    def work(seed):
        barrier.wait()
        found[seed] = run(seed)

    barrier = threading.Barrier(4)
    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    for first, second in zip(expected, found, strict=True):
        assert_same(first, second)


def test_threads_compile_once(compiled):
    def work():
        barrier.wait()
        take_steps(pair("Adam")[0](float64(), **OPTIONS["Adam"], **FUSED), 1)

    barrier = threading.Barrier(4)
    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert len(compiled) == 1


# Refusals.


@pytest.mark.parametrize("other", ["foreach", "differentiable"])
def test_options_that_exclude_each_other(name, other):
    ours, theirs = pair(name)
    found = outcome(lambda: ours(parameters(), **FUSED, **{other: True}))
    assert found == outcome(lambda: pair("Adam")[1](parameters(), **FUSED, **{other: True}))
    if name in HAVE_TORCHS:
        assert found == outcome(lambda: theirs(parameters(), **FUSED, **{other: True}))
    assert found[0] is RuntimeError


def test_sparse_gradients(name):
    def step(cls, **choice):
        first, param = torch.ones(2, requires_grad=True), torch.ones(5, requires_grad=True)
        first.grad = torch.ones(2)
        param.grad = torch.sparse_coo_tensor([[0]], [1.0], (5,), check_invariants=True)
        optimizer = cls([first, param], **choice)
        try:
            optimizer.step()
        finally:
            assert torch.equal(first, torch.ones(2))

    ours, theirs = pair(name)
    found = outcome(lambda: step(ours, **FUSED))
    assert found[0] is RuntimeError
    assert found == outcome(lambda: step(theirs, **(FUSED if name in HAVE_TORCHS else {})))


@pytest.mark.parametrize("choice", [None, False, True])
def test_fused_is_an_option_only_if_given(choice):
    for name in ("RMSprop", "Adadelta"):
        ours, theirs = pair(name)
        optimizer = ours(parameters(), fused=choice)
        expected = theirs(parameters()).param_groups[0].keys()
        assert optimizer.param_groups[0].keys() == expected | ({"fused"} if choice is not None else set())
        assert optimizer.defaults.get("fused") == choice
        assert getattr(optimizer, "_step_supports_amp_scaling", False) == bool(choice)
