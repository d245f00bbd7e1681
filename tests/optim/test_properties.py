"""What must hold for any parameters, options and gradients."""

import copy

import pytest
import torch

pytest.importorskip("hypothesis")
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import OPTIMIZERS
from helpers import assert_same, pair, snapshot
from reimpl.verify.distance import same_bits
from reimpl.verify.optimizers import has_tensor, options_of

pytestmark = pytest.mark.usefixtures("torchs_loop")

settings.register_profile("reimpl", deadline=None, max_examples=60, derandomize=True)
settings.load_profile("reimpl")

SHAPES = st.lists(st.lists(st.integers(0, 4), max_size=3).map(tuple), min_size=1, max_size=5)
DTYPES = st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16])
NAMES = st.sampled_from(OPTIMIZERS)
ENGINES = st.booleans()


@st.composite
def problems(draw):
    """Draw an optimizer with options, parameters, and for each of some steps gradients, some of them missing."""
    name = draw(NAMES)
    options = draw(st.sampled_from([options for options in options_of(name) if not has_tensor(options)]))
    shapes, dtype = draw(SHAPES), draw(DTYPES)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))

    def tensors():
        return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]

    missing = draw(
        st.lists(st.lists(st.booleans(), min_size=len(shapes), max_size=len(shapes)), min_size=1, max_size=5)
    )
    gradients = [[None if no else g for g, no in zip(tensors(), row, strict=True)] for row in missing]
    return name, options, tensors(), gradients


def run(cls, params, gradients, groups=None, **options):
    """Take the steps, and return parameters and state in the order of `params`."""
    params = [param.clone().requires_grad_() for param in params]
    optimizer = cls(groups(params) if groups else params, **options)
    for row in gradients:
        for param, gradient in zip(params, row, strict=True):
            param.grad = gradient
        optimizer.step()
    return snapshot(optimizer, params)


@given(problems(), ENGINES)
def test_equals_torch(problem, foreach):
    name, options, params, gradients = problem
    ours, theirs = pair(name)
    mine = run(ours, params, gradients, foreach=foreach, **options)
    try:
        assert_same(mine, run(theirs, params, gradients, foreach=foreach, **options))
    except AssertionError:
        assert foreach
        assert_same(mine, run(theirs, params, gradients, foreach=False, **options))


@given(problems(), ENGINES, st.data())
def test_splitting_into_groups_changes_nothing(problem, foreach, data):
    name, options, params, gradients = problem
    cut = data.draw(st.integers(0, len(params)))
    whole = run(pair(name)[0], params, gradients, foreach=foreach, **options)
    split = run(
        pair(name)[0],
        params,
        gradients,
        groups=lambda ps: [{"params": part} for part in (ps[:cut], ps[cut:]) if part],
        foreach=foreach,
        **options,
    )
    low_precision = params[0].dtype in (torch.float16, torch.bfloat16)
    if foreach and name == "SGD" and low_precision:
        return  # a group that creates only some buffers in a step loops over all of them, as torch's does
    assert_same(whole, split)


@given(problems(), ENGINES, st.randoms(use_true_random=False))
def test_order_of_parameters_does_not_matter(problem, foreach, random):
    name, options, params, gradients = problem
    order = list(range(len(params)))
    random.shuffle(order)
    whole = run(pair(name)[0], params, gradients, foreach=foreach, **options)
    shuffled = run(
        pair(name)[0],
        [params[i] for i in order],
        [[row[i] for i in order] for row in gradients],
        foreach=foreach,
        **options,
    )
    for new, old in enumerate(order):
        assert same_bits(whole[f"param[{old}]"], shuffled[f"param[{new}]"])


@given(problems(), ENGINES, st.data())
def test_resuming_equals_running_on(problem, foreach, data):
    name, options, params, gradients = problem
    cut = data.draw(st.integers(0, len(gradients)))
    ours, _ = pair(name)
    straight = run(ours, params, gradients, foreach=foreach, **options)
    first = [param.clone().requires_grad_() for param in params]
    optimizer = ours(first, foreach=foreach, **options)
    for step, row in enumerate(gradients):
        if step == cut:
            saved = copy.deepcopy(optimizer.state_dict())
            first = [param.detach().clone().requires_grad_() for param in first]
            optimizer = ours(first)
            optimizer.load_state_dict(saved)
        for param, gradient in zip(first, row, strict=True):
            param.grad = gradient
        optimizer.step()
    assert_same(straight, snapshot(optimizer, first))


@given(problems(), ENGINES)
def test_maximize_is_descent_on_negated_gradients(problem, foreach):
    name, options, params, gradients = problem
    options = {key: value for key, value in options.items() if key != "maximize"}
    negated = [[None if gradient is None else -gradient for gradient in row] for row in gradients]
    up = run(pair(name)[0], params, gradients, foreach=foreach, maximize=True, **options)
    assert_same(up, run(pair(name)[0], params, negated, foreach=foreach, **options))


@given(problems())
def test_foreach_equals_loop(problem):
    """In float32 and float64; in lower precision torch multiplies lists by numbers in another order on the CPU."""
    name, options, params, gradients = problem
    if params[0].dtype not in (torch.float32, torch.float64):
        return
    loop, foreach = (run(pair(name)[0], params, gradients, foreach=engine, **options) for engine in (False, True))
    assert_same(loop, foreach)


@given(problems(), ENGINES)
def test_gradients_stay(problem, foreach):
    name, options, params, gradients = problem
    before = copy.deepcopy(gradients)
    run(pair(name)[0], params, gradients, foreach=foreach, **options)
    for row, old in zip(gradients, before, strict=True):
        assert all(a is b is None or same_bits(a, b) for a, b in zip(row, old, strict=True))


@given(NAMES, ENGINES, SHAPES, st.integers(0, 2**16), st.data())
def test_complex_equals_its_real_view(name, foreach, shapes, seed, data):
    options = data.draw(st.sampled_from([options for options in options_of(name) if not has_tensor(options)]))
    if name == "Adagrad":
        options.pop("initial_accumulator_value", None)  # a complex start is the same in both parts, as in the view
    generator = torch.Generator().manual_seed(seed)
    params = [torch.randn(shape, generator=generator, dtype=torch.complex64) for shape in shapes]
    gradients = [[torch.randn(shape, generator=generator, dtype=torch.complex64) for shape in shapes] for _ in range(3)]
    whole = run(pair(name)[0], params, gradients, foreach=foreach, **options)
    real = run(
        pair(name)[0],
        [torch.view_as_real(param) for param in params],
        [[torch.view_as_real(gradient) for gradient in row] for row in gradients],
        foreach=foreach,
        **options,
    )
    for key, tensor in whole.items():
        tensor = torch.view_as_real(tensor) if tensor.is_complex() else tensor
        if name == "SGD":  # as in torch, in complex arithmetic: one more rounding, of 6e-8 relative to the largest term
            torch.testing.assert_close(tensor, real[key], rtol=1e-5, atol=1e-5)
        else:
            assert same_bits(tensor, real[key]), key


@given(problems(), ENGINES)
def test_step_counts_are_each_parameters_own(problem, foreach):
    name, options, params, gradients = problem
    end = run(pair(name)[0], params, gradients, foreach=foreach, **options)
    for i in range(len(params)):
        taken = sum(row[i] is not None for row in gradients)
        if f"state[{i}].step" in end:
            assert end[f"state[{i}].step"].item() == taken
        assert (f"state[{i}].step" in end) == (name != "SGD" and (taken > 0 or name == "Adagrad"))


def test_snapshot_sees_a_change(name):
    """The comparison that all of these rest on is not blind."""
    params = [torch.ones(2)]
    optimizer = pair(name)[0]([params[0].requires_grad_()])
    before = snapshot(optimizer)
    params[0].grad = torch.ones(2)
    optimizer.step()
    with pytest.raises(AssertionError):
        assert_same({key: before[key] for key in before}, {key: snapshot(optimizer)[key] for key in before})
