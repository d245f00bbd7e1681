"""`autocast` and `GradScaler`: the same steps taken, the same skipped, in every engine."""

import pytest
import torch

import reimpl.nn
from helpers import OPTIONS, assert_same, outcome, pair, parameters, set_gradients, snapshot
from reimpl.verify.distance import same_bits

ENGINES = {"loop": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}
DTYPES = [torch.float16, torch.bfloat16]
CLOSURE_REFUSED = (RuntimeError, "Closure use is not currently supported if GradScaler is enabled.")


def train(nn, cls, dtype, unscale=False, clip=False, **options):
    """Train a network under a scale at which float16 overflows again and again; return its course and its end."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(9, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))
    optimizer = cls(model.parameters(), **options)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**18, growth_interval=2)
    course = []
    for _ in range(12):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=dtype):
            loss = nn.CrossEntropyLoss()(model(torch.randn(8, 9)), torch.arange(8) % 4)
        scaler.scale(loss).backward()
        if unscale or clip:
            scaler.unscale_(optimizer)
        if clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        before = model[0].weight.clone()
        scaler.step(optimizer)
        taken = not torch.equal(before, model[0].weight)
        scaler.update()
        course.append((loss.item(), scaler.get_scale(), taken))
        if taken:
            scheduler.step()
    gradients = [param.grad.clone() for param in model.parameters()]
    return course, snapshot(optimizer), gradients


def assert_alike(first, second):
    assert first[0] == second[0]
    assert_same(first[1], second[1])
    assert all(map(same_bits, first[2], second[2]))


@pytest.mark.usefixtures("torchs_loop")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("clip", [False, True], ids=["", "clipped"])
def test_the_course_is_torchs(name, foreach, dtype, clip):
    ours, theirs = pair(name)
    options = {**OPTIONS[name], "foreach": foreach}
    mine = train(reimpl.nn, ours, dtype, clip=clip, **options)
    assert_alike(mine, train(torch.nn, theirs, dtype, clip=clip, **options))
    taken = [taken for _, _, taken in mine[0]]
    assert all(taken) if dtype is torch.bfloat16 else 4 <= sum(taken) < 12  # which has float32's range


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_kernel_unscales_as_the_scaler_does(name, dtype):
    """The kernel divides by the scale, a power of two; `unscale_` multiplies by its reciprocal. Neither rounds."""
    ours, _ = pair(name)
    options = {**OPTIONS[name], "fused": True}
    inside = train(reimpl.nn, ours, dtype, **options)
    before = train(reimpl.nn, ours, dtype, unscale=True, **options)
    assert inside[0] == before[0]
    assert_same(inside[1], before[1])


def scaled(optimizer):
    """Give each parameter a scaled gradient, and return the scaler."""
    params = optimizer.param_groups[0]["params"]
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(sum(param.square().sum() for param in params)).backward()
    return scaler


def never():
    raise AssertionError("the closure is called")


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("scheduled", [False, True])
def test_positional_closure_is_refused(name, engine, scheduled):
    """Where torch calls it, and applies gradients that are scaled; a keyword is refused by the scaler itself."""
    optimizer = pair(name)[0](parameters(), **OPTIONS[name], **ENGINES[engine])
    if scheduled:  # which wraps `step`
        torch.optim.lr_scheduler.StepLR(optimizer, 1)
    before = snapshot(optimizer)
    assert outcome(lambda: scaled(optimizer).step(optimizer, never)) == CLOSURE_REFUSED
    assert outcome(lambda: scaled(optimizer).step(optimizer, closure=never)) == CLOSURE_REFUSED
    assert_same(before, optimizer)


@pytest.mark.parametrize("other", ["Adafactor", "LBFGS", "Muon", "SparseAdam"])
def test_others_refuse_it_too(other):
    optimizer = pair(other)[0](parameters(shapes=((3, 2),)))
    assert outcome(lambda: scaled(optimizer).step(optimizer, never)) == CLOSURE_REFUSED


@pytest.mark.parametrize("engine", ENGINES)
def test_closures_that_no_scaler_sees_are_called(name, engine):
    """By a scaler that is switched off, as None, and after a step that was refused."""
    optimizer, other = (pair(name)[0](parameters(), **OPTIONS[name], **ENGINES[engine]) for _ in range(2))
    outcome(lambda: scaled(optimizer).step(optimizer, never))
    off = torch.amp.GradScaler("cpu", enabled=False)

    def closure():
        set_gradients(optimizer.param_groups[0]["params"], 0)
        return 3.0

    assert off.step(optimizer, closure) == optimizer.step(closure) == 3.0
    scaler = scaled(optimizer)
    set_gradients(optimizer.param_groups[0]["params"], 0)
    for param in optimizer.param_groups[0]["params"]:
        param.grad *= 1024
    scaler.step(optimizer, None)
    for _ in range(3):
        set_gradients(other.param_groups[0]["params"], 0)
        other.step()
    assert_same(optimizer, other)


def test_torch_applies_the_scaled_gradient():
    """Why: the parameter of 1 has a gradient of 2, and moves by 1,024 times a tenth of it."""
    param = torch.ones(1, requires_grad=True)
    optimizer, scaler = torch.optim.SGD([param], lr=0.1), torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(param.square().sum()).backward()

    def closure():
        optimizer.zero_grad()
        scaler.scale(param.square().sum()).backward()

    scaler.step(optimizer, closure)
    if torch.__version__ < "2.14":
        assert param.item() == pytest.approx(1 - 0.1 * 2 * 1024)
