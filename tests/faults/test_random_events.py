"""Training in which anything may happen: our optimizer and torch's meet the same events, and stay equal bit for bit.

`EVENT_SEED=7` draws other events, `EVENT_STEPS=10` ten times as many. A failure names the run, and each event with the
number that repeats it.
"""

import copy
import gc
import math
import os
import pickle
import tracemalloc
from collections import defaultdict
from functools import partial
from random import Random

import pytest
import torch

import reimpl.optim
from conftest import OPTIMIZERS, OTHER_FOREACH
from helpers import OPTIONS, outcome, pair, same, snapshot
from reimpl.verify.distance import relative_error

SEED = int(os.environ.get("EVENT_SEED", "0"))
LENGTH = float(os.environ.get("EVENT_STEPS", "1"))
"""How many times the usual number of steps are taken."""

ALL_OPTIONS = OPTIONS | {
    # Centered, torch's numbers become NaN by rounding where ours stay finite: reimpl/verify/deviations.py.
    "RMSprop": {"momentum": 0.9, "weight_decay": 0.1},
    "Adafactor": {"weight_decay": 0.1},
    "Muon": {"lr": 0.1},
    "SparseAdam": {"betas": (0.5, 0.9)},
    "LBFGS": {"max_iter": 3, "history_size": 3},
}
SHAPES = dict.fromkeys(ALL_OPTIONS, ((4, 3), (5,), (), (0, 3), (2, 2, 3, 2))) | {
    "Adafactor": ((4, 3), (5,), (), (2, 2, 3, 2)),  # torch's divides by the number of elements
    "Muon": ((4, 3), (2, 5), (3, 3)),
    "SparseAdam": ((4, 3), (5,), (6, 2)),
}
VALUES = {
    "lr": (0.0, 1e-3, 0.1, 1.0),
    "weight_decay": (0, 0.1),
    "momentum": (0, 0.5, 0.9),
    "betas": ((0.9, 0.999), (0.5, 0.9), (0.0, 0.0)),
    "eps": (1e-8, 1e-3),
    "amsgrad": (False, True),
    "nesterov": (False, True),
    "maximize": (False, True),
    "alpha": (0.99, 0.5),
    "rho": (0.9, 0.5),
    "lr_decay": (0, 0.1),
    "etas": ((0.5, 1.2), (0.3, 1.1)),
    "momentum_decay": (0, 0.1),
    "line_search_fn": (None, "strong_wolfe"),
}
"""What an option may become in the middle of a run."""


class PlannedError(Exception):
    """What hooks and closures raise here."""


class Side:
    """One of two optimizers that meet the same events."""

    def __init__(self, cls, random, dtype, options):
        self.cls, self.random, self.dtype, self.options = cls, random, dtype, options
        self.name = cls.__name__
        self.optimizer = cls(self.new_params(SHAPES[self.name]), **copy.deepcopy(options))
        self.saved = copy.deepcopy(self.optimizer.state_dict())
        self.other = None
        self.closure_error = None
        self.repairs = []
        """What ends a fault when a step has met it."""

    @property
    def params(self):
        """The parameters, in order; copies and pickles bring new ones."""
        return [param for group in self.optimizer.param_groups for param in group["params"]]

    def draw(self, shape, dtype):
        """Return normal numbers; a Python generator draws their seed, so that both sides get the same ones."""
        generator = torch.Generator().manual_seed(self.random.getrandbits(60))
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    def new_params(self, shapes):
        return [self.draw(shape, self.dtype).requires_grad_() for shape in shapes]

    def new_gradient(self, param):
        gradient = self.draw(param.shape, param.dtype)
        return sparse(gradient) if self.name == "SparseAdam" else gradient

    def step(self):
        """Take a step with the gradients that are there; LBFGS's closure counts them to those of a bowl."""
        if self.name == "LBFGS" or self.closure_error is not None:
            return self.optimizer.step(self.closure)
        return self.optimizer.step()

    def closure(self):
        """Return a loss; one in which something went wrong raises."""
        if self.closure_error is not None:
            raise self.closure_error
        if self.name == "LBFGS":
            for param in self.params:
                param.grad = param.detach() * 2 if param.grad is None else param.grad * 0.5 + param.detach()
        return sum(param.detach().double().square().sum() for param in self.params)


def sparse(gradient):
    """Return two rows of a gradient, one of them in two parts."""
    rows = torch.tensor([[0, gradient.shape[0] - 1, 0]])
    return torch.sparse_coo_tensor(rows, gradient[rows[0]], gradient.shape, check_invariants=True)


# Events: each is done to both sides, with the same random numbers.


def nothing(side):
    """Let the step be an ordinary one."""


def some_gradients_vanish(side):
    for param in side.params:
        if side.random.random() < 0.5:
            param.grad = None


def all_gradients_vanish(side):
    side.optimizer.zero_grad()


def gradients_are_zero(side):
    side.optimizer.zero_grad(set_to_none=False)


def fill_one_gradient(value, side):
    param = side.random.choice(side.params)
    if param.grad is not None and not param.grad.is_sparse and param.numel():
        param.grad.view(-1)[side.random.randrange(param.numel())] = value


def scale_gradients(factor, side):
    for param in side.params:
        if param.grad is not None:
            param.grad.mul_(factor)


def gradient_lies_otherwise(side):
    for param in side.params:
        grad = param.grad
        if grad is None or grad.is_sparse or side.name == "LBFGS":  # torch's takes contiguous ones alone
            continue
        forms = (
            lambda grad: grad.mT.contiguous().mT if grad.dim() > 1 else grad,
            lambda grad: torch.stack([grad, grad], -1)[..., 1],
            lambda grad: grad.sum().expand(grad.shape),
            lambda grad: torch._neg_view(-grad),
        )
        param.grad = side.random.choice(forms)(grad)


def gradient_is_sparse(side):
    param = side.random.choice(side.params)
    if param.grad is not None and param.dim() and param.numel():
        param.grad = param.grad.to_dense() if param.grad.is_sparse else sparse(param.grad)


def gradients_require_grad(side):
    for param in side.params:
        if param.grad is not None and not param.grad.is_sparse:
            param.grad.requires_grad_()


def parameter_is_frozen(side):
    side.random.choice(side.params).requires_grad_(False)


def all_are_trained_again(side):
    for param in side.params:
        param.requires_grad_()


def parameter_gets_other_data(side):
    param = side.random.choice(side.params)
    param.data = side.draw(param.shape, param.dtype)


def parameter_is_overwritten(side):
    with torch.no_grad():
        param = side.random.choice(side.params)
        param.copy_(side.draw(param.shape, param.dtype))


def group_joins(side):
    if len(side.optimizer.param_groups) < 4 or side.name == "LBFGS":
        options = {"lr": side.random.choice((0.01, 0.1))} if side.random.random() < 0.5 else {}
        shapes = side.random.sample(SHAPES[side.name], side.random.randint(1, 2))
        side.optimizer.add_param_group({"params": side.new_params(shapes), **options})


def group_without_parameters_joins(side):
    if len(side.optimizer.param_groups) < 4:
        side.optimizer.add_param_group({"params": []})


def group_joins_twice(side):
    side.optimizer.add_param_group({"params": side.params[:1]})


def group_that_cannot_join(side):
    wrong = ([torch.ones(2, requires_grad=True) * 2], ["a name"], {torch.ones(2)}, 3.0)
    side.optimizer.add_param_group({"params": side.random.choice(wrong)})


def group_leaves(side):
    if len(side.optimizer.param_groups) > 1:
        for param in side.optimizer.param_groups.pop()["params"]:
            side.optimizer.state.pop(param, None)


def changeable(group):
    """Return the options for which there are values."""
    return [
        name
        for name, values in VALUES.items()
        if name in group and isinstance(group[name], tuple) == isinstance(values[0], tuple)
    ]


def option_changes(side):
    group = side.random.choice(side.optimizer.param_groups)
    name = side.random.choice(changeable(group))
    if name in ("amsgrad", "momentum"):  # the state lacks what it needs, and each later step would fail
        side.repairs.append(partial(group.__setitem__, name, group[name]))
    group[name] = side.random.choice(VALUES[name])


def lr_decays(side):
    for group in side.optimizer.param_groups:
        group["lr"] = group["lr"] * 0.9


def lr_becomes(value, side):
    group = side.random.choice(side.optimizer.param_groups)
    side.repairs.append(partial(group.__setitem__, "lr", group["lr"]))
    group["lr"] = copy.deepcopy(value)


def option_is_lost(side):
    groups = side.optimizer.param_groups  # torch's looks at the options of groups without gradients too
    groups = [group for group in groups if any(param.grad is not None for param in group["params"])]
    if groups:
        group = side.random.choice(groups)
        name = side.random.choice([name for name in changeable(group) if name != "maximize"])  # ours then descends
        side.repairs.append(partial(group.__setitem__, name, group.pop(name)))


def state_is_saved(side):
    side.saved = copy.deepcopy(side.optimizer.state_dict())


def state_is_loaded(side):
    side.optimizer.load_state_dict(copy.deepcopy(side.saved))  # else both share memory


def state_is_exchanged(side):
    """Load what the other has saved: first torch's into ours, then ours into torch's."""
    side.optimizer.load_state_dict(copy.deepcopy(side.other.optimizer.state_dict()))


def state_is_forgotten(side):
    if side.name != "Adagrad":  # torch's has no state but that of its constructor
        side.optimizer.state.clear()


def deepcopy_is_taken(side):
    copy.deepcopy(side.optimizer)


def copy_goes_on(side):
    if side.name != "LBFGS":  # torch's cannot take another step
        side.optimizer = copy.deepcopy(side.optimizer)


def pickle_goes_on(side):
    if side.name != "LBFGS":
        side.optimizer = pickle.loads(pickle.dumps(side.optimizer))


def dtype_moves(side):
    dtype = side.random.choice((torch.float32, torch.float64))
    for param in side.params:
        param.data = param.data.to(dtype)
        param.grad = None if param.grad is None else param.grad.to(dtype)
    side.optimizer.load_state_dict(side.optimizer.state_dict())  # without it, types mix in the middle of a step


def hook_raises(register, side):
    def hook(*args):
        raise PlannedError(register)

    handle = getattr(side.optimizer, register)(hook)
    try:
        side.optimizer.load_state_dict(side.optimizer.state_dict()) if "state" in register else side.step()
    finally:
        handle.remove()


def closure_raises(error, side):
    side.closure_error = error
    try:
        side.step()
    finally:
        side.closure_error = None


def gradients_come(side):
    for param in side.params:
        param.grad = side.new_gradient(param) if param.requires_grad else None


def faults_end(side):
    while side.repairs:
        side.repairs.pop()()


EVENTS = {
    "nothing": nothing,
    "some gradients vanish": some_gradients_vanish,
    "all gradients vanish": all_gradients_vanish,
    "gradients are zero": gradients_are_zero,
    "a gradient has a NaN": partial(fill_one_gradient, math.nan),
    "a gradient has an inf": partial(fill_one_gradient, math.inf),
    "gradients are huge": partial(scale_gradients, 1e20),
    "gradients are tiny": partial(scale_gradients, 1e-30),
    "gradients lie otherwise": gradient_lies_otherwise,
    "a gradient is sparse": gradient_is_sparse,
    "gradients require grad": gradients_require_grad,
    "a parameter is frozen": parameter_is_frozen,
    "all are trained again": all_are_trained_again,
    "a parameter gets other data": parameter_gets_other_data,
    "a parameter is overwritten": parameter_is_overwritten,
    "a group joins": group_joins,
    "a group without parameters joins": group_without_parameters_joins,
    "a group joins twice": group_joins_twice,
    "a group that cannot join": group_that_cannot_join,
    "a group leaves": group_leaves,
    "an option changes": option_changes,
    "lr decays": lr_decays,
    "lr becomes a tensor": partial(lr_becomes, torch.tensor(0.01)),
    "lr becomes negative": partial(lr_becomes, -0.1),
    "lr becomes NaN": partial(lr_becomes, math.nan),
    "an option is lost": option_is_lost,
    "state is saved": state_is_saved,
    "state is loaded": state_is_loaded,
    "state is exchanged": state_is_exchanged,
    "state is forgotten": state_is_forgotten,
    "a deepcopy is taken": deepcopy_is_taken,
    "a copy goes on": copy_goes_on,
    "a pickle goes on": pickle_goes_on,
    "dtype moves": dtype_moves,
    "a hook before the step raises": partial(hook_raises, "register_step_pre_hook"),
    "a hook after the step raises": partial(hook_raises, "register_step_post_hook"),
    "a hook of the checkpoint raises": partial(hook_raises, "register_state_dict_post_hook"),
    "a hook before loading raises": partial(hook_raises, "register_load_state_dict_pre_hook"),
    "a hook after loading raises": partial(hook_raises, "register_load_state_dict_post_hook"),
    "the closure raises": partial(closure_raises, PlannedError),
    "the closure is interrupted": partial(closure_raises, KeyboardInterrupt),
}


class Twin:
    """Our optimizer and torch's, made alike.

    Args:
        classes: ours and torch's.
        engines: the options that choose an engine, for each.
        dtype: of the parameters.
        options: for both.
        seed: of the first parameters.
        bound: the largest error beside torch's numbers; if it is 0, every bit has to agree.
    """

    def __init__(self, classes, engines, dtype, options, seed, bound):
        self.bound = bound
        sides = zip(classes, engines, strict=True)
        self.ours, self.theirs = (Side(cls, Random(seed), dtype, options | engine) for cls, engine in sides)
        self.ours.other, self.theirs.other = self.theirs, self.ours
        self.trace = [f"{self.ours.optimizer} of {dtype} parameters", f"seed {seed}"]

    def do(self, event, action, seed):
        """Do something to both sides; its outcome, parameters and state have to agree.

        After an error, which may leave torch's in the middle of a step, ours is as before or as torch's.
        """
        self.trace.append(f"{event} ({seed})")
        before = snapshot(self.ours.optimizer)
        found = []
        for side in (self.ours, self.theirs):
            side.random = Random(seed)
            found.append(interruptible(partial(action, side)))
        (error, message), (expected_error, expected_message) = found
        worded = error not in (None, TypeError)  # Python's words for a type error quote an expression of the source
        if error is not expected_error or (worded and message != expected_message):
            raise self.failure(f"{error}: {message}\nwhere torch has\n{expected_error}: {expected_message}")
        in_search = error is not None and self.ours.name == "LBFGS"  # where it counts evaluations as they come
        if error is None or not (in_search or all_same(snapshot(self.ours.optimizer), before)):
            self.compare()
        if error is not None or self.bound:
            self.reconcile()

    def compare(self):
        found, expected = snapshot(self.ours.optimizer), snapshot(self.theirs.optimizer)
        if list(found) != list(expected):
            raise self.failure(f"{list(found)}\nwhere torch has\n{list(expected)}")
        for key, value in found.items():
            if not (self.is_near if self.bound else same)(number(value), number(expected[key])):
                raise self.failure(f"{key} is\n{value}\nwhere torch has\n{expected[key]}")

    def is_near(self, found, expected):
        """Return whether errors are small beside the tensor's largest magnitude or 1, which may cancel."""
        found, expected = (torch.cat([one.flatten(), one.new_ones(1)]) for one in (found, expected))
        return found.dtype == expected.dtype and relative_error(found, expected) <= self.bound

    def reconcile(self):
        """Let both go on from our numbers."""
        state = self.theirs.optimizer.state
        state.clear()
        for param, mine in zip(self.theirs.params, self.ours.params, strict=True):
            param.data.copy_(mine.data)
            if mine in self.ours.optimizer.state:
                state[param] = copy.deepcopy(self.ours.optimizer.state[mine])

    def is_lost(self):
        """Return whether a parameter is NaN or infinite, after which a comparison sees little."""
        return not all(param.isfinite().all() for param in self.ours.params)

    def failure(self, what):
        return AssertionError("\n".join([what, *self.trace[:2], "…", *self.trace[-12:]]))


def all_same(first, second):
    """Return whether two snapshots agree in every bit."""
    return list(first) == list(second) and all(map(same, first.values(), second.values()))


def number(value):
    """Return a value with one NaN for all: sign and payload only say which operand a NaN came from."""
    if isinstance(value, list):
        return [number(one) for one in value]
    return torch.where(value.isnan(), math.nan, value) if isinstance(value, torch.Tensor) else value


def interruptible(action):
    """Return the outcome of an action; an interrupt is one of them."""
    try:
        return outcome(action)
    except KeyboardInterrupt:
        return KeyboardInterrupt, ""


def run(classes, engines, seed, steps, dtypes, without=(), bound=0.0):
    """Take steps, before most of which something happens; start anew now and then, and when all is NaN."""
    random = Random(f"{classes[0].__name__} {engines} {seed}")
    if classes[1] is torch.optim.Adagrad and torch.__version__ < "2.13":
        without = (*without, "a group joins")  # it has state for the parameters of its constructor alone
    events = [event for event in EVENTS if event not in without]
    twin = None
    for step in range(steps):
        if step % 50 == 0 or (twin.is_lost() and random.random() < 0.3):
            few = {"max_iter": 2} if classes[0] is reimpl.optim.LBFGS else {}
            options = random.choice((few, ALL_OPTIONS[classes[0].__name__]))
            twin = Twin(classes, engines, random.choice(dtypes), options, random.getrandbits(30), bound)
        twin.do("gradients come", gradients_come, random.getrandbits(30))
        if random.random() < 0.8:
            event = random.choice(events)
            twin.do(event, EVENTS[event], random.getrandbits(30))
        twin.do("a step", Side.step, random.getrandbits(30))
        twin.do("faults end", faults_end, 0)


ONE_ENGINE = ("Adafactor", "Muon", "SparseAdam", "LBFGS")
"""Whose parameters are updated one after the other here, or as one vector."""
FULL = (torch.float32, torch.float64)
LOW_TOO = (*FULL, torch.bfloat16)


def dtypes_of(name, foreach):
    """Return the dtypes in which torch's foreach path has the bits of its loop, or else of ours."""
    differs = foreach and name in (*OTHER_FOREACH, "Adagrad")
    return FULL if differs or name in ("Muon", "LBFGS") else LOW_TOO


RUNS = [(name, {"foreach": foreach}) for name in OPTIMIZERS for foreach in (False, True)]
RUNS += [(name, {}) for name in ONE_ENGINE]
STEPS = int(LENGTH * 10_000) // len(RUNS)
every_run = pytest.mark.parametrize(
    ("name", "engine"),
    RUNS,
    ids=lambda one: one if isinstance(one, str) else "foreach" if one.get("foreach") else "loop",
)
pytestmark = [
    pytest.mark.usefixtures("torchs_loop"),
    # torch warns of much that is done here, a parameter that is listed twice for one.
    pytest.mark.filterwarnings("ignore"),
]


@every_run
def test_same_bits_or_the_same_error(name, engine):
    # A tensor lr: the quotient is taken in float32, by torch's foreach path alone.
    without = ("lr becomes a tensor",) if (name, engine) == ("Adamax", {"foreach": True}) else ()
    run(pair(name), (engine, engine), SEED, STEPS, dtypes_of(name, engine.get("foreach")), without)


FUSED_BOUND = 1e-5
"""Of an error in float32: each step starts from our numbers, so that errors do not add up."""


def test_fused_is_near_or_fails_alike(name):
    """Against torch's loop, which takes sparse gradients where no kernel does."""
    engines = {"fused": True}, {"foreach": False}
    run(pair(name), engines, SEED, STEPS // 4, FULL, ("a gradient is sparse", "state is exchanged"), FUSED_BOUND)


# The instrument sees a fault.


def forget_an_error(monkeypatch):
    monkeypatch.setattr(reimpl.optim.Adam, "check_sparse", lambda self, group, param: None)


def skip_nan(monkeypatch):
    rule = reimpl.optim.Adam.rule
    monkeypatch.setattr(
        reimpl.optim.Adam,
        "rule",
        staticmethod(lambda param, grad, *rest, **more: rule(param, grad.nan_to_num(), *rest, **more)),
    )


def count_refused_steps(monkeypatch):
    step = reimpl.optim.Adam._check_graph_capture

    def counting(self):
        step(self)
        for state in self.state.values():
            state["step"] += self.state_dict()["param_groups"][0]["lr"] < 0

    monkeypatch.setattr(reimpl.optim.Adam, "_check_graph_capture", counting)


def copy_without_state(monkeypatch):
    monkeypatch.setattr(reimpl.optim.Adam, "__getstate__", lambda self: {**vars(self), "state": defaultdict(dict)})


@pytest.mark.parametrize("plant", [forget_an_error, skip_nan, count_refused_steps, copy_without_state])
def test_a_planted_fault_is_seen(plant, monkeypatch):
    plant(monkeypatch)
    with pytest.raises(AssertionError, match="where torch has"):
        run(pair("Adam"), ({"foreach": False},) * 2, 0, 500, FULL)


# Memory.


def resident():
    """Return the process's memory in bytes."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="/proc/self/statm is not there")
@pytest.mark.parametrize("engine", ["foreach=False", "foreach=True", "fused=True"])
def test_memory_is_flat(engine):
    """Events happen to our optimizer alone, the same ones again and again; they may take 1 MB more in all."""
    option, value = engine.split("=")
    ours, _ = pair("Adam")

    def growth(measure, warm, passes):
        for number in range(warm + passes):
            if number == warm:
                before = measure()
            run((ours, ours), ({option: value == "True"},) * 2, SEED, int(80 * LENGTH), FULL)
            gc.collect()
        return measure() - before

    assert growth(resident, 2, 3) <= 2**20
    tracemalloc.start()
    try:
        assert growth(lambda: tracemalloc.get_traced_memory()[0], 1, 1) <= 2**20
    finally:
        tracemalloc.stop()
