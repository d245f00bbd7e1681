"""`torch.compile`: no graph, graph break or kernel more than with torch's own classes, and results as near to float64.

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
from reimpl.verify.distance import relative_error
from reimpl.verify.judge import CLOSE_FACTOR

ALL = (*OPTIONS, "SparseAdam", "Adafactor", "Muon", "LBFGS")
ROUNDING = torch.finfo(torch.float32).eps
STEPS = 4


@pytest.fixture(autouse=True)
def compiler():
    """Start without graphs, and leave none."""
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


class Run(NamedTuple):
    """What the compiler did in a run, and how it ended."""

    graphs: list[int]
    """How many there were after each step."""

    breaks: int
    end: dict[str, Any]


def run(act, optimizer, count=STEPS, before=lambda step: None, backend="eager", fullgraph=False):
    """Compile a function and call it `count` times."""
    torch._dynamo.reset()
    counters.clear()
    counter = CompileCounterWithBackend(backend)
    compiled = torch.compile(act, backend=counter, fullgraph=fullgraph)
    graphs = []
    for step in range(count):
        before(step)
        compiled()
        graphs.append(counter.frame_count)
    return Run(graphs, sum(counters["graph_break"].values()), snapshot(optimizer))


def run_steps(optimizer, count=STEPS, before=lambda step: None, skip=(), **options):
    """Compile `step` and take steps with the gradients of `set_gradients`."""

    def prepare(step):
        before(step)
        params = [param for group in optimizer.param_groups for param in group["params"]]
        set_gradients(params, step, skip)

    return run(optimizer.step, optimizer, count, prepare, **options)


def both(name, act=run_steps, **options):
    """Return a run of ours, compiled as a whole, and one of torch's."""
    ours, theirs = pair(name)
    mine = act(ours(parameters(), **copy.deepcopy(options)), fullgraph=True)
    return mine, act(theirs(parameters(), **copy.deepcopy(options)))


def assert_no_worse(mine, reference):
    """Assert that a run of ours has at each step no more graphs than torch's, and in all no more breaks."""
    assert all(graphs <= granted for graphs, granted in zip(mine.graphs, reference.graphs, strict=True))
    assert mine.breaks <= reference.breaks


def assert_close(mine, reference, truth):
    """Assert that the error of no tensor is more than `CLOSE_FACTOR` times that of torch's compiled run."""
    assert list(mine) == list(reference) == list(truth)
    for key, oracle in truth.items():
        assert mine[key].dtype == reference[key].dtype
        granted = max(relative_error(reference[key], oracle), ROUNDING)
        assert relative_error(mine[key], oracle) <= CLOSE_FACTOR * granted, key


def in_float64(name, count=STEPS, **options):
    """Return the end of torch's own steps in float64, uncompiled."""
    return snapshot(take_steps(pair(name)[1](parameters(torch.float64), **options), count))


# The step.


def test_the_step_is_one_graph(name, foreach):
    """From the first call on; SGD's first step has another, since it makes the buffer of the gradient."""
    options = {**OPTIONS[name], "foreach": foreach}
    mine, reference = both(name, **options)
    assert mine.graphs == reference.graphs == ([1, 2, 2, 2] if name == "SGD" else [1, 1, 1, 1])
    assert mine.breaks == 0 < reference.breaks
    # Coefficients are computed in the step count's float32, here as in torch's compiled step.
    assert_close(mine.end, reference.end, in_float64(name, **options))


@pytest.mark.parametrize("kind", ["maximize", "capturable", "tensor lr", "some without gradient", "two groups"])
def test_the_kinds_of_steps(kind):
    """All of Adam, whose step uses all that a compiled step can; bits are compared with a run that is not compiled."""
    options = {"maximize": {"maximize": True}, "capturable": {"capturable": True}, "tensor lr": {"lr": torch.tensor(0.1)}}
    skip = (1,) if kind == "some without gradient" else ()

    def steps(optimizer, **more):
        if kind == "two groups":
            optimizer.add_param_group({"params": parameters(shapes=((4,), (2, 2))), "lr": 0.5})
        return run_steps(optimizer, skip=skip, **more)

    mine, reference = both("Adam", steps, **options.get(kind, {}))
    assert_no_worse(mine, reference)
    assert_close(mine.end, reference.end, {key: value.double() for key, value in reference.end.items()})


def test_fused():
    """A graph has no place for a kernel of ours, nor for torch's: ours takes the foreach engine, torch's breaks."""
    mine, reference = both("Adam", fused=True)
    assert mine.graphs == [1, 1, 1, 1]
    assert mine.breaks == 0 < reference.breaks
    assert_close(mine.end, reference.end, in_float64("Adam"))


@pytest.mark.parametrize("name", ALL)
def test_a_step_without_its_wrappers(name):
    """The step as it is compiled where gradients are off anyway, which in torch's is the only way to a single graph."""
    ends = []
    for cls in pair(name):
        optimizer = cls(parameters(shapes=((4, 3), (2, 5))))
        set_gradients(optimizer.param_groups[0]["params"], 0)
        if name == "SparseAdam":
            for param in optimizer.param_groups[0]["params"]:
                param.grad = param.grad.to_sparse()
        closure = {"closure": lambda: torch.ones(())} if name == "LBFGS" else {}
        step = partial(optimizer.step.__wrapped__.__wrapped__, optimizer, **closure)
        counter = CompileCounter()
        with torch.no_grad():
            found, _ = outcome(torch.compile(lambda step=step: step(), backend=counter, fullgraph=True))
        ends.append((found, counter.frame_count))
    assert ends[0] == ends[1]
    assert ends[0][0] is None or name in ("SparseAdam", "LBFGS")


@pytest.mark.parametrize("name", ["SparseAdam", "LBFGS"])
def test_what_torch_leaves_to_the_interpreter(name):
    """Nothing is compiled, and the result is that of a step that was not asked to be."""

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
        assert counter.frame_count <= compiled  # the closure's forward, in one of torch's two
        return snapshot(optimizer)

    ours, theirs = pair(name)
    expected = end(theirs, compiled=False)
    for cls in (ours, theirs):
        assert_same(end(cls, compiled=True), expected)


def test_hooks_break_as_torchs():
    def steps(optimizer, **options):
        seen.append([])
        optimizer.register_step_pre_hook(lambda *_: seen[-1].append("before"))
        optimizer.register_step_post_hook(lambda *_: seen[-1].append("after"))
        return run_steps(optimizer, **options)

    seen = []
    mine, reference = both("Adam", steps)
    assert seen == [["before", "after"] * STEPS] * 2
    assert_no_worse(mine, reference)


def test_closures_break_as_torchs():
    """At `backward`, which stands in the closure."""

    def steps(optimizer, **_):
        params = optimizer.param_groups[0]["params"]

        def closure():
            loss = sum(param.square().sum() for param in params)
            loss.backward()
            return loss

        return run(lambda: optimizer.step(closure), optimizer, before=lambda _: optimizer.zero_grad())

    mine, reference = both("Adam", steps)
    assert_no_worse(mine, reference)
    assert_close(mine.end, reference.end, {key: value.double() for key, value in reference.end.items()})


# What compiles it again.

SCHEDULES = {
    "ExponentialLR": partial(lr_scheduler.ExponentialLR, gamma=0.5),
    "OneCycleLR": partial(lr_scheduler.OneCycleLR, max_lr=0.1, total_steps=10),  # the momentum changes too
    "ReduceLROnPlateau": partial(lr_scheduler.ReduceLROnPlateau, patience=0),
}


def scheduled(schedule, optimizer, **options):
    scheduler = SCHEDULES[schedule](optimizer)
    loss = (1.0,) if schedule == "ReduceLROnPlateau" else ()

    def before(step):
        if step:
            scheduler.step(*loss)

    optimizer._opt_called = True  # which a scheduler looks for, and a compiled step does not leave behind
    return run_steps(optimizer, before=before, **options)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", ["SGD", "Adam"])
def test_a_schedule_of_numbers_compiles_no_more_often(name, schedule):
    """A learning rate that is a number is a constant of the graph: each new one is compiled, with torch's class too."""
    options = {"lr": 0.1, **({"momentum": 0.9} if name == "SGD" else {})}
    mine, reference = both(name, partial(scheduled, schedule), **options)
    assert mine.graphs[-1] > 1
    assert_no_worse(mine, reference)


@pytest.mark.parametrize("schedule", ["ExponentialLR", "ReduceLROnPlateau"])  # OneCycleLR's betas stay numbers
def test_a_schedule_of_a_tensor_compiles_once(name, schedule):
    mine, reference = both(name, partial(scheduled, schedule), **{**OPTIONS[name], "lr": torch.tensor(0.1)})
    assert mine.graphs == reference.graphs == ([1, 2, 2, 2] if name == "SGD" else [1, 1, 1, 1])


def test_gradients_that_come_and_go():
    """Which parameters have a gradient is a property of the graph."""

    def steps(optimizer, **options):
        params = optimizer.param_groups[0]["params"]
        return run(optimizer.step, optimizer, 6, lambda step: set_gradients(params, step, [(), (1,), (0, 1, 2)][step % 3]))

    mine, reference = both("Adam", steps)
    assert_no_worse(mine, reference)
    assert mine.graphs[2:] == [2, 2, 2, 2]  # of the third kind of step there is nothing to compile
    assert_close(mine.end, reference.end, {key: value.double() for key, value in reference.end.items()})


@pytest.mark.parametrize("event", ["new group", "state cleared", "checkpoint loaded"])
def test_changes_from_outside_are_seen(event):
    def steps(optimizer, **options):
        saved = copy.deepcopy(optimizer.state_dict())

        def before(step):
            if step == 2 and event == "new group":
                optimizer.add_param_group({"params": parameters(shapes=((4,),))})
            elif step == 2 and event == "state cleared":
                optimizer.state.clear()
            elif step == 2:
                optimizer.load_state_dict(saved)

        saved = copy.deepcopy(take_steps(optimizer, 3, first=9).state_dict())
        return run_steps(optimizer, before=before, **options)

    mine, reference = both("Adam", steps)
    assert_no_worse(mine, reference)
    assert_close(mine.end, reference.end, {key: value.double() for key, value in reference.end.items()})


def test_a_compiled_step_keeps_nothing_alive():
    def take(cls):
        optimizer = cls(parameters(), lr=0.1)
        run_steps(optimizer, 2)
        return [weakref.ref(x) for x in (optimizer, *optimizer.param_groups[0]["params"])]

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


def train(nn, cls, make=cnn, functional=None, backend="aot_eager", dtype=torch.float32, **options):
    """Compile a function that holds a whole training step, and return what the compiler and the steps did."""
    torch.manual_seed(0)
    model, criterion = make(nn).to(dtype), nn.CrossEntropyLoss()
    if functional is not None:
        for part in (model, criterion):
            reimpl.swap(part, functional=functional)
    optimizer = cls(model.parameters(), **options)
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(4, 1, 8, 8, generator=generator).to(dtype), torch.tensor([1, 2, 3, 4])

    def step():
        optimizer.zero_grad()
        loss = criterion(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    if backend is None:
        for _ in range(STEPS):
            step()
        return snapshot(optimizer)
    return run(step, optimizer, backend=backend)


def test_a_training_step_with_each_optimizer(name):
    """`zero_grad` and `backward` break the graph with every class; `step` does with torch's only."""
    ours, theirs = pair(name)
    mine, reference = train(reimpl.nn, ours, **OPTIONS[name]), train(torch.nn, theirs, **OPTIONS[name])
    assert_no_worse(mine, reference)
    assert mine.breaks == 2
    assert reference.breaks == 4
    if name == "SGD":  # which has no coefficient to compute
        assert_same(mine.end, reference.end)


@pytest.mark.parametrize("make", [cnn, Reader])
def test_a_training_step_from_first_principles(make):
    """Operations with backwards of their own make no further graph; an LSTM is refused, from where the rest resumes."""
    mine, own = (train(reimpl.nn, reimpl.optim.SGD, make, f, lr=0.1) for f in (None, reimpl.nn.functional))
    reference = train(torch.nn, torch.optim.SGD, make, lr=0.1)
    assert_same(mine.end, reference.end)
    assert_no_worse(mine, reference)
    assert own.breaks <= reference.breaks
    assert_same(own.end, train(reimpl.nn, reimpl.optim.SGD, make, reimpl.nn.functional, backend=None, lr=0.1))


def test_an_lstm_where_the_compiler_is_let():
    """Dynamo refuses torch's LSTM by its class, and so ours, unless told otherwise."""

    def end(nn):
        torch.manual_seed(0)
        model, counter = Reader(nn), CompileCounterWithBackend("aot_eager")
        compiled = torch.compile(model, backend=counter, fullgraph=True)
        for _ in range(2):
            loss = compiled(torch.ones(2, 1, 8, 8)).square().sum()
            loss.backward()
        gradients = {name: param.grad for name, param in model.named_parameters()}
        return counter.frame_count, gradients | {"loss": loss.detach()}

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
    """The copy computes the same; what cannot be pickled with torch's layers cannot with ours."""

    def end(nn):
        torch.manual_seed(0)
        model, x = torch.compile(cnn(nn).eval(), backend="aot_eager"), torch.ones(4, 1, 8, 8)
        expected = model(x).detach()
        if duplicate == "deepcopy":
            twin = copy.deepcopy(model)
        elif duplicate == "pickle":
            file = io.BytesIO()
            torch.save(model, file)
            twin = torch.load(io.BytesIO(file.getvalue()), weights_only=False)
        else:
            twin = torch.compile(cnn(nn).eval(), backend="aot_eager")
            twin.load_state_dict(model.state_dict())
        return {"first": expected, "second": twin(x).detach()}

    mine, reference = outcome(partial(end, reimpl.nn)), outcome(partial(end, torch.nn))
    assert mine[0] == reference[0]
    if mine[0] is None:
        assert_same(mine[1], reference[1])
        assert_same({"x": mine[1]["first"]}, {"x": mine[1]["second"]})


# Inductor, the default backend.

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs g++")


@needs_compiler
@pytest.mark.parametrize(("name", "foreach"), [("SGD", False), ("Adam", True)])
def test_inductor_makes_no_more_kernels(name, foreach):
    options = {**OPTIONS[name], "foreach": foreach}
    ends, kernels = [], []
    for cls in pair(name):
        metrics.reset()
        ends.append(run_steps(cls(parameters(), **options), 2, backend="inductor").end)
        kernels.append(metrics.generated_kernel_count)
    assert 0 < kernels[0] <= kernels[1]
    assert_close(*ends, in_float64(name, 2, **options))


@needs_compiler
def test_inductor_trains_a_network():
    options = {"lr": 0.1, "momentum": 0.9, "backend": "inductor"}
    mine, reference = train(reimpl.nn, reimpl.optim.SGD, **options), train(torch.nn, torch.optim.SGD, **options)
    assert_no_worse(mine, reference)
    assert_same(mine.end, reference.end)


# What the checks above must see.


def test_a_step_that_reads_a_value_is_noticed():
    class Reading(reimpl.optim.RuleOptimizer):
        @staticmethod
        def rule(param, grad, *, lr=0.1):
            param.sub_(grad, alpha=lr if bool(param.flatten()[0] > 0) else 0.0)

        elementwise = False

    with pytest.raises(torch._dynamo.exc.Unsupported):
        run_steps(Reading(parameters()), fullgraph=True)


def test_state_made_in_the_graph_is_noticed(monkeypatch):
    monkeypatch.setattr(reimpl.optim.RuleOptimizer, "_init_group", lambda *_: None)
    assert run_steps(reimpl.optim.Adam(parameters())).graphs == [1, 2, 2, 2]


# On a GPU.


@pytest.mark.cuda
def test_cuda_graphs_of_a_compiled_step(name, foreach):
    """`mode="reduce-overhead"` replays a CUDA graph: state keeps its address, as that of torch's classes does."""
    ends = []
    for cls in pair(name):
        torch._dynamo.reset()
        counters.clear()
        params = [param.detach().cuda().requires_grad_() for param in parameters()]
        optimizer = cls(params, **OPTIONS[name], foreach=foreach)
        compiled = torch.compile(optimizer.step, mode="reduce-overhead")
        for step in range(STEPS):
            set_gradients(params, step)
            compiled()
        ends.append(({key: value.cpu() for key, value in snapshot(optimizer).items()}, Counter(counters["graph_break"])))
    (mine, breaks), (reference, _) = ends
    assert not breaks
    assert_close(mine, reference, in_float64(name, **OPTIONS[name], foreach=foreach))
