"""`torch.compile`: no kind of graph break and no recompilation that torch's own classes don't have, and their accuracy.

With torch's classes a compiled `optimizer.step` always breaks: torch breaks the graph itself where the step changes the
grad mode (`torch.optim.optimizer._use_grad_for_differentiable`). Ours does not, so it is compiled with `fullgraph=True`
here and torch's without. Single operations and layers are compiled in `tests/nn`.
"""

import copy
import gc
import io
import shutil
import weakref
from collections import Counter
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from torch._dynamo.testing import CompileCounter, CompileCounterWithBackend
from torch._dynamo.utils import counters
from torch._inductor import metrics
from torch.optim import lr_scheduler

import reimpl
import reimpl.nn
import reimpl.optim
from helpers import OPTIONS, assert_same, outcome, pair, parameters, set_gradients, snapshot, take_steps
from layers import WHOLE
from reimpl.verify.distance import relative_error
from reimpl.verify.judge import CLOSE_FACTOR

ALL = (*OPTIONS, "SparseAdam", "Adafactor", "Muon", "LBFGS")
ROUNDING = torch.finfo(torch.float32).eps
STEPS = 4


@pytest.fixture(autouse=True)
def compiler():
    """Start without graphs, and leave none."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Run(NamedTuple):
    """What the compiler did in a run, and how it ended."""

    graphs: list[int]
    """How many there were after each step."""

    breaks: Counter
    """How many there were of each kind."""

    end: dict[str, Any]


def run(act, optimizer, before=lambda step: None, count=STEPS, backend="eager", fullgraph=False):
    """Compile a function, unless `backend` is None, and call it `count` times."""
    torch._dynamo.reset()
    counters.clear()
    counter = CompileCounterWithBackend(backend)
    compiled = act if backend is None else torch.compile(act, backend=counter, fullgraph=fullgraph)
    graphs = []
    for step in range(count):
        before(step)
        compiled()
        graphs.append(counter.frame_count)
    breaks = Counter()
    for reason, times in counters["graph_break"].items():
        breaks[reason.partition("\n")[0]] += times  # then come details, with names of functions and files
    return Run(graphs, breaks, snapshot(optimizer))


def members(optimizer):
    return [param for group in optimizer.param_groups for param in group["params"]]


def run_steps(optimizer, before=lambda step: None, skip=(), **options):
    """Compile `step` and take steps with the gradients of `set_gradients`."""

    def prepare(step):
        before(step)
        set_gradients(members(optimizer), step, skip)

    return run(optimizer.step, optimizer, prepare, **options)


def three(name, act=run_steps, fullgraph=True, **options):
    """Return a run of ours, one of torch's that is compiled too, and one of torch's in float64 that is not."""
    ours, theirs = pair(name)
    mine = act(ours(parameters(), **copy.deepcopy(options)), fullgraph=fullgraph)
    reference = act(theirs(parameters(), **copy.deepcopy(options)))
    options.pop("capturable", None)  # which the host takes in graphs alone
    return mine, reference, act(theirs(parameters(torch.float64), **copy.deepcopy(options)), backend=None)


def assert_no_worse(mine, reference):
    """Assert that ours breaks for no other reasons than torch's, and is not compiled again more often."""
    assert set(mine.breaks) <= set(reference.breaks)
    assert mine.graphs[-1] - mine.graphs[0] <= reference.graphs[-1] - reference.graphs[0]


def assert_close(mine, reference, truth):
    """Assert that the error of no tensor is more than `CLOSE_FACTOR` times that of torch's compiled run."""
    assert list(mine.end) == list(reference.end) == list(truth.end)
    for key, oracle in truth.end.items():
        assert mine.end[key].dtype == reference.end[key].dtype
        granted = max(relative_error(reference.end[key], oracle), ROUNDING)
        assert relative_error(mine.end[key], oracle) <= CLOSE_FACTOR * granted, key


# The step.


def test_the_step_is_one_graph(name, foreach):
    """From the first call on; SGD's first step has another, since it makes the buffer of the gradient."""
    mine, reference, truth = three(name, **OPTIONS[name], foreach=foreach)
    assert mine.graphs == reference.graphs == ([1, 2, 2, 2] if name == "SGD" else [1, 1, 1, 1])
    assert not mine.breaks
    assert reference.breaks
    # Coefficients are computed in the step count's float32, here as in torch's compiled step.
    assert_close(mine, reference, truth)


KINDS = {
    "maximize": {"maximize": True},
    "capturable": {"capturable": True},
    "lr is a tensor": {"lr": torch.tensor(0.1)},
    "a parameter without gradient": {},
    "two groups": {},
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_kinds_of_steps(kind):
    """All with Adam: how its step is compiled does not depend on the rule."""
    skip = (1,) if kind == "a parameter without gradient" else ()

    def steps(optimizer, **more):
        if kind == "two groups":
            dtype = members(optimizer)[0].dtype
            optimizer.add_param_group({"params": parameters(dtype, shapes=((4,), (2, 2))), "lr": 0.5})
        return run_steps(optimizer, skip=skip, **more)

    mine, reference, truth = three("Adam", steps, **KINDS[kind])
    assert mine.graphs == reference.graphs == [1, 1, 1, 1]
    assert_close(mine, reference, truth)


def test_fused():
    """A graph has no place for a kernel of ours, nor for torch's: ours takes the foreach engine, torch's breaks."""
    mine, reference, truth = three("Adam", fused=True)
    assert mine.graphs == [1, 1, 1, 1]
    assert not mine.breaks
    assert reference.breaks
    assert_close(mine, reference, truth)


@pytest.mark.parametrize("name", ALL)
def test_a_step_without_its_wrappers(name):
    """Where gradients are off anyway it can be compiled alone; only so is torch's a single graph."""
    ends = []
    for cls in pair(name):
        optimizer = cls(parameters(shapes=((4, 3), (2, 5))))
        set_gradients(members(optimizer), 0)
        if name == "SparseAdam":
            for param in members(optimizer):
                param.grad = param.grad.to_sparse()
        closure = {"closure": lambda: torch.ones(())} if name == "LBFGS" else {}
        step = partial(optimizer.step.__wrapped__.__wrapped__, optimizer, **closure)
        counter = CompileCounter()
        with torch.no_grad():
            error, _ = outcome(torch.compile(lambda step=step: step(), backend=counter, fullgraph=True))
        ends.append((error, counter.frame_count))
    assert ends[0] == ends[1]
    assert ends[0][0] is None or name in ("SparseAdam", "LBFGS")


@pytest.mark.parametrize("name", ["SparseAdam", "LBFGS"])
def test_what_torch_leaves_to_the_interpreter(name):
    """Not asked for a whole graph, the step is not compiled at all, and its result is that of any step."""

    def end(cls, compiled):
        torch.manual_seed(0)
        model = torch.nn.Embedding(7, 3, sparse=name == "SparseAdam")
        optimizer = cls(model.parameters())

        def closure():
            optimizer.zero_grad()
            loss = model(torch.tensor([1, 4, 1])).square().sum()
            loss.backward()
            return loss

        counter = CompileCounter()
        step = torch.compile(optimizer.step, backend=counter) if compiled else optimizer.step
        for _ in range(2):
            closure()
            step(closure)
        assert counter.frame_count == 0
        return snapshot(optimizer)

    ours, theirs = pair(name)
    expected = end(theirs, compiled=False)
    for cls in (ours, theirs):
        assert_same(end(cls, compiled=True), expected)


def test_hooks():
    """What a hook computes becomes a part of the graph; one that is kept out of it breaks the graph, with any class."""

    def steps(optimizer, inside, **more):
        calls = torch.zeros(())

        def hook(*_):
            calls.add_(1)

        if not inside:
            hook = torch.compiler.disable(hook)
        optimizer.register_step_pre_hook(hook)
        optimizer.register_step_post_hook(hook)
        found = run_steps(optimizer, **more)
        assert calls == 2 * STEPS
        return found

    mine, reference, truth = three("Adam", partial(steps, inside=True))
    assert mine.graphs == [1, 1, 1, 1]
    assert_close(mine, reference, truth)
    mine, reference, truth = three("Adam", partial(steps, inside=False), fullgraph=False)
    assert_no_worse(mine, reference)
    assert_close(mine, reference, truth)


def test_closures():
    """They break at `backward`, where no graph of torch's can go on."""

    def steps(optimizer, **more):
        def closure():
            loss = sum(param.square().sum() for param in members(optimizer))
            loss.backward()
            return loss

        return run(lambda: optimizer.step(closure), optimizer, lambda _: optimizer.zero_grad(), **more)

    mine, reference, truth = three("Adam", steps, fullgraph=False)
    assert_no_worse(mine, reference)
    assert_close(mine, reference, truth)


# What compiles it again.

SCHEDULES = {
    "ExponentialLR": partial(lr_scheduler.ExponentialLR, gamma=0.5),
    "OneCycleLR": partial(lr_scheduler.OneCycleLR, max_lr=0.1, total_steps=10),  # the momentum changes too
    "ReduceLROnPlateau": partial(lr_scheduler.ReduceLROnPlateau, patience=0),
}


def scheduled(schedule, optimizer, **more):
    scheduler = SCHEDULES[schedule](optimizer)
    optimizer._opt_called = True  # which a scheduler looks for, and a compiled step does not leave behind
    loss = (1.0,) if schedule == "ReduceLROnPlateau" else ()
    return run_steps(optimizer, before=lambda step: scheduler.step(*loss) if step else None, **more)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", ["SGD", "Adam"])
def test_a_schedule_of_numbers(name, schedule):
    """A number is a constant of the first graph; when it changes, the compiler makes it an input of the second."""
    options = {"lr": 0.1, **({"momentum": 0.9} if name == "SGD" else {})}
    # A scheduler wraps the step in a function of its own, before which the graph breaks.
    mine, reference, truth = three(name, partial(scheduled, schedule), fullgraph=False, **options)
    assert mine.graphs == reference.graphs
    assert mine.graphs[-1] == mine.graphs[-2] > 1
    assert_no_worse(mine, reference)
    assert_close(mine, reference, truth)


@pytest.mark.parametrize("schedule", ["ExponentialLR", "ReduceLROnPlateau"])  # OneCycleLR's momenta stay numbers
@pytest.mark.parametrize("name", ["SGD", "Adam"])
def test_a_schedule_of_a_tensor_compiles_nothing(name, schedule):
    mine, reference, truth = three(name, partial(scheduled, schedule), fullgraph=False, lr=torch.tensor(0.1))
    assert mine.graphs == reference.graphs == [1, 1, 1, 1]
    assert_close(mine, reference, truth)


def test_gradients_that_come_and_go():
    """Which parameters have a gradient is a property of the graph; where none has, ours only switches the grad mode."""

    def steps(optimizer, **more):
        skips = [(), (1,), (0, 1, 2)]
        return run(optimizer.step, optimizer, lambda t: set_gradients(members(optimizer), t, skips[t % 3]), 6, **more)

    mine, reference, truth = three("Adam", steps)
    assert reference.graphs == [1, 2, 2, 2, 2, 2]
    assert mine.graphs == [1, 2, 3, 3, 3, 3]
    assert_close(mine, reference, truth)


@pytest.mark.parametrize("event", ["new group", "state cleared", "checkpoint loaded"])
def test_changes_from_outside(event):
    def steps(optimizer, **more):
        saved = copy.deepcopy(take_steps(optimizer, 3, first=9).state_dict())

        def before(step):
            if step == 2 and event == "new group":
                optimizer.add_param_group({"params": parameters(members(optimizer)[0].dtype, shapes=((4,),))})
            elif step == 2 and event == "state cleared":
                optimizer.state.clear()
            elif step == 2:
                optimizer.load_state_dict(saved)

        return run_steps(optimizer, before, **more)

    mine, reference, truth = three("Adam", steps)
    assert mine.graphs == reference.graphs == [1, 1, 2, 2]
    assert_close(mine, reference, truth)


def test_a_compiled_step_keeps_nothing_alive():
    def take(cls):
        optimizer = cls(parameters(), lr=0.1)
        run_steps(optimizer, count=2)
        return [weakref.ref(x) for x in (optimizer, *members(optimizer))]

    for cls in pair("Adam"):
        refs = take(cls)
        gc.collect()
        assert [ref() for ref in refs] == [None] * len(refs), cls


# A whole training step.


def cnn(nn):
    """Return a network with a layer of each kind but LSTM."""
    return nn.Sequential(
        *(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.AvgPool2d(2)),
        *(nn.Flatten(), nn.Dropout(0.25), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 10)),
    )


class Reader(torch.nn.Module):
    """An LSTM that reads an image row by row."""

    def __init__(self, nn):
        super().__init__()
        self.lstm = nn.LSTM(8, 6, batch_first=True)
        self.head = nn.Linear(6, 10)

    def forward(self, x):
        return self.head(self.lstm(x.squeeze(1))[0][:, -1])


def classifier(nn):
    """Return the smallest network."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


def train(nn, cls, make=cnn, functional=torch.nn.functional, backend="eager", **options):
    """Compile a function that holds a whole training step, and return what the compiler and the steps did."""
    torch.manual_seed(0)
    model, criterion = make(nn), nn.CrossEntropyLoss()
    if nn is reimpl.nn:
        for part in (model, criterion):
            reimpl.swap(part, functional=functional)
    optimizer = cls(model.parameters(), **options)
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(4, 1, 8, 8, generator=generator), torch.tensor([1, 2, 3, 4])

    def step():
        optimizer.zero_grad()
        loss = criterion(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    return run(step, optimizer, backend=backend)


def test_a_training_step_with_each_optimizer(name):
    """`zero_grad` and `backward` break the graph with every class; `step` does with torch's alone."""
    mine, reference = (
        train(nn, cls, classifier, **OPTIONS[name]) for nn, cls in zip((reimpl.nn, torch.nn), pair(name), strict=True)
    )
    assert_no_worse(mine, reference)
    assert (mine.breaks.total(), reference.breaks.total()) == (2, 4)


@pytest.mark.parametrize("make", [cnn, Reader])
def test_a_training_step_on_torchs_kernels(make):
    """SGD has no coefficient to compute, so that every bit of the network is torch's."""
    options = {"lr": 0.1, "momentum": 0.9, "foreach": True}  # torch 2.11 compiles its for-loop to another arithmetic
    mine, reference = (
        train(nn, optim.SGD, make, backend="aot_eager", **options)
        for nn, optim in ((reimpl.nn, reimpl.optim), (torch.nn, torch.optim))
    )
    assert_no_worse(mine, reference)
    assert_same(mine.end, reference.end)


@pytest.mark.skipif(not WHOLE, reason="the compiler of torch 2.11 is kept out of operations")
@pytest.mark.parametrize("make", [cnn, Reader])
def test_a_training_step_from_first_principles(make):
    """Operations with a backward of their own break no graph, and give the bits that they give uncompiled."""
    own = partial(train, reimpl.nn, reimpl.optim.SGD, make, reimpl.nn.functional, lr=0.1)
    compiled = own(backend="aot_eager")
    assert_no_worse(compiled, train(torch.nn, torch.optim.SGD, make, lr=0.1))
    assert_same(compiled.end, own(backend=None).end)


def test_an_lstm_where_the_compiler_is_let():
    """Dynamo leaves torch's LSTM to the interpreter by its class, and so ours, unless told otherwise."""

    def end(nn):
        torch.manual_seed(0)
        model = Reader(nn)
        counter = CompileCounter()
        compiled = torch.compile(model, backend=counter, fullgraph=True)
        for _ in range(2):
            compiled(torch.ones(2, 1, 8, 8)).square().sum().backward()
        return counter.frame_count, {name: param.grad for name, param in model.named_parameters()}

    with torch._dynamo.config.patch(allow_rnn=True):
        mine, reference = end(reimpl.nn), end(torch.nn)
    assert mine[0] == reference[0] == 1
    assert_same(mine[1], reference[1])


def test_a_model_swapped_after_it_was_compiled():
    """The class of each layer is guarded, so the next call compiles our layers; the state keeps its names."""
    torch.manual_seed(0)
    model, x = cnn(torch.nn).eval(), torch.randn(4, 1, 8, 8)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    expected, names = compiled(x), list(compiled.state_dict())
    reimpl.swap(compiled)
    assert isinstance(model[0], reimpl.nn.Conv2d)
    assert_same({"output": compiled(x).detach()}, {"output": expected.detach()})
    assert counter.frame_count == 2
    assert list(compiled.state_dict()) == names


@pytest.mark.parametrize("duplicate", ["deepcopy", "state_dict", "pickle"])
def test_copies_of_a_compiled_model(duplicate):
    """They compute the same, or are refused as with torch's layers."""

    def outputs(nn):
        torch.manual_seed(0)
        model, x = torch.compile(cnn(nn).eval(), backend="eager"), torch.ones(4, 1, 8, 8)
        expected = model(x).detach()
        if duplicate == "deepcopy":
            twin = copy.deepcopy(model)
        elif duplicate == "pickle":
            file = io.BytesIO()
            torch.save(model, file)
            twin = torch.load(io.BytesIO(file.getvalue()), weights_only=False)
        else:
            twin = torch.compile(cnn(nn).eval(), backend="eager")
            twin.load_state_dict(model.state_dict())
        assert torch.equal(twin(x), expected)
        return {"output": expected}

    (refused, mine), (granted, reference) = outcome(partial(outputs, reimpl.nn)), outcome(partial(outputs, torch.nn))
    assert refused == granted
    if refused is None:
        assert_same(mine, reference)


# Inductor, the default backend.

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs g++")


def with_kernels(act):
    """Return what `act` returns, and how many kernels inductor made meanwhile."""
    metrics.reset()
    return act(), metrics.generated_kernel_count


@needs_compiler
def test_inductor_makes_no_more_kernels():
    options = {**OPTIONS["Adam"], "foreach": True}
    (mine, kernels), (reference, granted) = (
        with_kernels(partial(run_steps, cls(parameters(), **options), backend="inductor")) for cls in pair("Adam")
    )
    assert 0 < kernels <= granted
    truth = run_steps(torch.optim.Adam(parameters(torch.float64), **options), backend=None)
    assert_close(mine, reference, truth)


@needs_compiler
def test_inductor_trains_a_network():
    (mine, kernels), (reference, granted) = (
        with_kernels(partial(train, nn, optim.SGD, backend="inductor", lr=0.1))
        for nn, optim in ((reimpl.nn, reimpl.optim), (torch.nn, torch.optim))
    )
    assert 0 < kernels <= granted
    assert_no_worse(mine, reference)
    assert_same(mine.end, reference.end)


# What the checks above must see.


def test_a_step_that_reads_a_value_is_noticed():
    class Reading(reimpl.optim.RuleOptimizer):
        elementwise = False

        @staticmethod
        def rule(param, grad, *, lr=0.1):
            param.sub_(grad, alpha=lr if param.sum() > 0 else 0.0)

    with pytest.raises((torch._dynamo.exc.Unsupported, torch._dynamo.exc.UserError)):
        run_steps(Reading(parameters()), fullgraph=True)


def test_state_made_in_the_graph_is_noticed(monkeypatch):
    monkeypatch.setattr(reimpl.optim.RuleOptimizer, "_init_group", lambda *_: None)
    mine, reference = (run_steps(cls(parameters())) for cls in pair("Adam"))
    assert mine.graphs == [1, 2, 2, 2]
    with pytest.raises(AssertionError):
        assert_no_worse(mine, reference)


# On a GPU.


@pytest.mark.cuda
def test_a_compiled_step_in_a_cuda_graph(name, foreach):
    """`mode="reduce-overhead"` replays a CUDA graph: parameters and state have to keep their addresses."""

    def end(cls):
        torch._dynamo.reset()
        params = [param.detach().cuda().requires_grad_() for param in parameters()]
        optimizer = cls(params, **OPTIONS[name], foreach=foreach)
        compiled = torch.compile(optimizer.step, mode="reduce-overhead")
        for step in range(STEPS):
            set_gradients(params, step)
            compiled()
        return Run([], Counter(), {key: value.cpu() for key, value in snapshot(optimizer).items()})

    mine, reference = map(end, pair(name))
    truth = run_steps(pair(name)[1](parameters(torch.float64), **OPTIONS[name], foreach=foreach), backend=None)
    assert_close(mine, reference, truth)
