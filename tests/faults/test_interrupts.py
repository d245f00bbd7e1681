"""Ctrl-C at any moment of a step: what is guaranteed, and that the next step runs.

The guarantee, which `docs/questions/training.md` repeats:

- while a step is planned nothing changes; then parameters and state are updated, then counts, then new state is kept;
- so a step count is never ahead of its update, and new state is kept whole or not at all;
- one tensor operation, or the kernel of the fused engine, runs to its end: every number is that of before or of after;
- between two operations of a rule a parameter may have its new moments, and not yet its new value.
"""

import signal
import sys
import threading

import pytest
import torch

import reimpl.optim
from helpers import OPTIONS, assert_same, pair, parameters, set_gradients, snapshot, take_steps

pytestmark = pytest.mark.skipif(
    threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"),
    reason="signals of timers are not there",
)
ENGINES = {"loop": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}
SHAPES = ((7, 3), (5,), (), (4, 4), (2, 3))


@pytest.fixture(params=ENGINES)
def engine(request):
    """The options that choose an engine, each in turn."""
    return ENGINES[request.param]


@pytest.fixture(autouse=True)
def grad_mode():
    """Let autograd be on afterwards: an interrupt while `torch.no_grad()` ends, here as anywhere, leaves it off."""
    yield
    torch.set_grad_enabled(True)


def new(name, engine, **more):
    return pair(name)[0](parameters(shapes=SHAPES), **OPTIONS[name], **engine, **more)


def interrupted(action, at=None):
    """Run an action, with Ctrl-C before line number `at` of our package; return how many lines were run."""
    count = 0

    def trace(frame, event, _):
        nonlocal count
        if "reimpl" not in frame.f_globals.get("__name__", ""):
            return None
        if event == "line":
            count += 1
            if count == at:
                raise KeyboardInterrupt
        return trace

    sys.settrace(trace)
    try:
        action()
    finally:
        sys.settrace(None)
    return count


def assert_consistent(optimizer, before, straight):
    """Assert the guarantee, for a step from `before` that, without interrupt, is `straight`."""
    after = snapshot(optimizer)
    for key, value in after.items():
        if isinstance(value, torch.Tensor):
            assert value.isfinite().all(), key
            assert value.shape == straight[key].shape, key
    for i in range(len(SHAPES)):
        count = f"state[{i}].step"
        if count in after and after[count] == straight[count]:
            for key in [f"param[{i}]", *(key for key in after if key.startswith(f"state[{i}]"))]:
                assert_same({key: after[key]}, {key: straight[key]})
        elif count in after:
            assert after[count] == before[count]
        names = [key for key in straight if key.startswith(f"state[{i}]")]
        assert [key for key in after if key.startswith(f"state[{i}]")] in (names, [])


@pytest.mark.parametrize("first", [True, False], ids=["first step", "later step"])
@pytest.mark.parametrize("name", OPTIONS)
def test_between_lines(name, engine, first):
    """Steps are interrupted before a dozen of our lines; each is consistent then, its state loads, and it goes on."""
    done = 0 if first else 2
    take_steps(new(name, engine), 3)  # what is compiled is compiled
    optimizer = take_steps(new(name, engine), done)
    set_gradients(optimizer.param_groups[0]["params"], done)
    lines = interrupted(optimizer.step)
    straight = snapshot(optimizer)
    stride = max(1, lines // 12)
    for at in range(1, lines, stride):
        optimizer = take_steps(new(name, engine), done)
        before = snapshot(optimizer)
        set_gradients(optimizer.param_groups[0]["params"], done)
        with pytest.raises(KeyboardInterrupt):
            interrupted(optimizer.step, at)
        assert_consistent(optimizer, before, straight)
        other = new(name, engine)
        other.load_state_dict(optimizer.state_dict())
        take_steps(optimizer, 2, first=done)
        assert all(param.isfinite().all() for param in optimizer.param_groups[0]["params"])
        assert all(state["step"] >= done + 2 for state in optimizer.state.values() if "step" in state)


@pytest.mark.parametrize("name", ["SGD", "Adam", "NAdam", "ASGD"])
def test_at_random_moments(name, engine):
    """SIGINT from a timer, many times; Python raises it between two of its own instructions."""
    optimizer = take_steps(new(name, engine), 1)
    generator = torch.Generator().manual_seed(1)
    met = 0

    def interrupt(*_):
        signal.raise_signal(signal.SIGINT)

    interrupting = signal.signal(signal.SIGINT, signal.default_int_handler)  # as Ctrl-C has it
    previous = signal.signal(signal.SIGALRM, interrupt)
    try:
        for step in range(1, 200):
            set_gradients(optimizer.param_groups[0]["params"], step)
            try:
                signal.setitimer(signal.ITIMER_REAL, 1e-5 + 3e-4 * torch.rand((), generator=generator).item())
                optimizer.step()
            except KeyboardInterrupt:
                met += 1
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
    except KeyboardInterrupt:  # between the step and the end of the timer
        met += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
        signal.signal(signal.SIGINT, interrupting)
    assert met > 0
    counts = [int(state["step"]) for state in optimizer.state.values() if "step" in state]
    assert all(1 <= count <= 200 for count in counts)
    before = snapshot(optimizer)
    assert all(value.isfinite().all() for value in before.values())
    other = new(name, engine)
    other.load_state_dict(optimizer.state_dict())
    assert [key for key in snapshot(other) if "state" in key] == [key for key in before if "state" in key]
    take_steps(optimizer, 2)


@pytest.mark.parametrize("name", OPTIONS)
def test_an_interrupted_first_step_can_be_taken_again(name):
    """Before the arithmetic begins nothing has changed, and the step taken again is the step."""
    optimizer, straight = new(name, {"foreach": False}), take_steps(new(name, {"foreach": False}), 3)
    set_gradients(optimizer.param_groups[0]["params"], 0)

    def stop(*_):
        raise KeyboardInterrupt

    optimizer._carry_out = stop
    with pytest.raises(KeyboardInterrupt):
        optimizer.step()
    del optimizer._carry_out
    assert_same(take_steps(optimizer, 3), straight)


def test_a_count_that_runs_ahead_is_seen(monkeypatch):
    """Counting first, as torch does, breaks the guarantee."""
    carry_out = reimpl.optim.Adam._carry_out

    def count_first(self, plan):
        for state in plan.states:
            state["step"] += 1
        carry_out(self, plan)
        for state in plan.states:
            state["step"] -= 1

    monkeypatch.setattr(reimpl.optim.Adam, "_carry_out", count_first)
    with pytest.raises(AssertionError):
        test_between_lines("Adam", {"foreach": False}, first=False)
