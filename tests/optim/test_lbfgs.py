"""L-BFGS: torch's iterates and state in every bit, and each of its parts against the books."""

import copy
import inspect
import io
import pickle

import pytest
import torch

from helpers import outcome
from reimpl.optim.lbfgs import LBFGS, History, Pair, Point, cubic_minimum, strong_wolfe
from reimpl.verify.distance import same_bits
from reimpl.verify.problems import PROBLEMS, Problem

BOTH = (LBFGS, torch.optim.LBFGS)
SEARCHES = pytest.mark.parametrize("search", [None, "strong_wolfe"])
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
OPTIONS = (
    {},
    {"history_size": 1},
    {"history_size": 3, "lr": 0.05},
    {"lr": 0.01, "max_iter": 4},
    {"max_iter": 1},
    {"max_iter": 1e1},
    {"max_eval": 1},
    {"max_eval": 2},
    {"max_eval": 3},
    {"max_eval": 5},
    {"tolerance_grad": 0.5},
    {"tolerance_change": 0.05},
    {"tolerance_grad": 0, "tolerance_change": 0, "max_iter": 50},
)


class Course:
    """An optimizer on its way through a problem."""

    def __init__(self, cls, problem="Rosenbrock", dtype=torch.float64, params=None, **options):
        self.problem = PROBLEMS[problem] if isinstance(problem, str) else problem
        params = self.problem.initial(dtype, torch.device("cpu")) if params is None else params
        self.params = [param.requires_grad_() for param in params]
        self.optimizer = cls(self.params, **options)
        self.calls = 0

    def closure(self):
        self.calls += 1
        self.optimizer.zero_grad()
        loss = self.problem.loss(self.params)
        loss.backward()
        return loss

    def advance(self, steps):
        """Take steps and return everything that can be seen after each."""
        return [self.observe(self.optimizer.step(self.closure)) for _ in range(steps)]

    def observe(self, loss):
        state = {key: list(value) if isinstance(value, list) else value for key, value in self.state.items()}
        return copy.deepcopy([loss.detach(), [param.detach() for param in self.params], self.calls, state])

    @property
    def state(self):
        return self.optimizer.state[self.params[0]]

    def resumed(self, cls):
        """Return the course that another class continues from a file."""
        file = io.BytesIO()
        torch.save(self.optimizer.state_dict(), file)
        file.seek(0)
        other = Course(cls, self.problem, params=[param.detach().clone() for param in self.params], lr=123.0)
        other.optimizer.load_state_dict(torch.load(file, weights_only=True))
        other.calls = self.calls
        return other


def assert_same(first, second, where="course"):
    """Assert that nested observations agree in type and in every bit."""
    assert type(first) is type(second), where
    if isinstance(first, torch.Tensor):
        assert same_bits(first, second), where
    elif isinstance(first, dict):
        assert list(first) == list(second), where
        for key in first:
            assert_same(first[key], second[key], f"{where}.{key}")
    elif isinstance(first, list):
        assert len(first) == len(second), where
        for i, pair in enumerate(zip(first, second, strict=True)):
            assert_same(*pair, f"{where}[{i}]")
    else:
        assert first == second or (first != first and second != second), where


def complex_loss(params):
    weight, bias = params
    inputs = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(4, 3).to(weight)
    return (torch.tanh(inputs @ weight) + bias - 0.5j).abs().square().mean()


COMPLEX = Problem(
    "complex", "", (torch.full((3, 2), 0.3 - 0.2j).cdouble(), torch.ones(2, dtype=torch.complex128)), complex_loss
)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@SEARCHES
@pytest.mark.parametrize("problem", PROBLEMS)
def test_every_bit_is_torchs(problem, search, dtype, options):
    """Where a line search leaves the range of float16, also the error."""
    ours, theirs = (Course(cls, problem, dtype, line_search_fn=search, **options) for cls in BOTH)
    for _ in range(4):
        (error, mine), (their_error, reference) = outcome(lambda: ours.advance(1)), outcome(lambda: theirs.advance(1))
        assert error is their_error
        assert_same(mine, reference)
        assert_same([param.detach() for param in ours.params], [param.detach() for param in theirs.params])
        if error:
            assert "converted to type c10::Half without overflow" in reference
            break


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)
@SEARCHES
def test_complex_parameters(search, dtype):
    ours, theirs = (Course(cls, COMPLEX, dtype, line_search_fn=search) for cls in BOTH)
    assert_same(ours.advance(4), theirs.advance(4))


def test_gradients_that_are_conjugate_views():
    """torch's raise; ours read the numbers."""

    def take_step(cls, values):
        param = torch.ones(3, dtype=torch.complex128, requires_grad=True)
        param.grad = values
        cls([param]).step(lambda: 1.0)
        return param.detach()

    values = torch.tensor([1 + 2j, 3 - 1j, 0.5j], dtype=torch.complex128)
    assert outcome(lambda: take_step(torch.optim.LBFGS, values.conj()))[0] is RuntimeError
    assert same_bits(take_step(LBFGS, values.conj()), take_step(torch.optim.LBFGS, values.conj().resolve_conj()))


LEARNING_RATES = {
    "0-dim": lambda: torch.tensor(0.5),
    "one element": lambda: torch.tensor([0.5]),
}


@SEARCHES
@pytest.mark.parametrize("lr", LEARNING_RATES)
def test_tensor_lr(search, lr):
    ours, theirs = (Course(cls, line_search_fn=search, lr=LEARNING_RATES[lr](), max_iter=5) for cls in BOTH)
    assert_same(ours.advance(4), theirs.advance(4))


def test_a_tensor_lr_that_requires_grad_is_read():
    """torch's refuses it."""
    lr = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    assert outcome(lambda: Course(torch.optim.LBFGS, lr=lr).advance(1))[0] is TypeError
    ours, theirs = Course(LBFGS, lr=lr), Course(torch.optim.LBFGS, lr=lr.detach())
    assert_same(ours.advance(3), theirs.advance(3))


@SEARCHES
def test_sparse_and_missing_gradients(search):
    def loss(params):
        table, weight, unused = params
        rows = torch.nn.functional.embedding(torch.tensor([1, 4, 4]), table, sparse=True)
        return ((rows @ weight) ** 2 - rows.sum(1)).square().sum() + 0 * unused.detach().sum()

    start = [torch.linspace(-1, 2, count, dtype=torch.float64) for count in (18, 3, 2)]
    problem = Problem("sparse", "", (start[0].reshape(6, 3), start[1], start[2]), loss)
    ours, theirs = (Course(cls, problem, line_search_fn=search, lr=0.1) for cls in BOTH)
    assert_same(ours.advance(3), theirs.advance(3))
    assert ours.params[0].grad.is_sparse
    assert ours.params[2].grad is None


def image_problem(memory_format):
    """A convolution's weight and a matrix, in a memory order that their gradients share."""
    values = torch.linspace(-1, 1, 2 * 3 * 4 * 4, dtype=torch.float64).reshape(2, 3, 4, 4).sin()
    matrix = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(3, 4).cos()
    if memory_format == torch.channels_last:
        values, matrix = values.contiguous(memory_format=memory_format), matrix.T.contiguous().T

    def loss(params):
        values, matrix = (param.contiguous() for param in params)  # so that the sums take the same order
        return (values**4).sum() + (matrix - 3).square().sum() + values.sum()

    return [values, matrix], loss


@SEARCHES
def test_gradients_in_another_memory_order(search):
    """torch's raise; ours take the iterates of the contiguous problem."""
    (start, loss), (contiguous, _) = image_problem(torch.channels_last), image_problem(torch.contiguous_format)
    problem = Problem("images", "", (), loss)
    options = {"line_search_fn": search, "lr": 0.05}
    refused = Course(torch.optim.LBFGS, problem, params=copy.deepcopy(start), **options)
    with pytest.raises(RuntimeError, match="view size is not compatible"):
        refused.advance(1)
    ours = Course(LBFGS, problem, params=start, **options)
    theirs = Course(torch.optim.LBFGS, problem, params=contiguous, **options)
    assert_same(ours.advance(4), theirs.advance(4))
    assert ours.params[0].grad.is_contiguous(memory_format=torch.channels_last)
    assert ours.params[0].is_contiguous(memory_format=torch.channels_last)


@SEARCHES
@pytest.mark.parametrize("writer", BOTH, ids=["ours", "torch"])
@pytest.mark.parametrize("reader", BOTH, ids=["ours", "torch"])
def test_resume_equals_straight_run(search, writer, reader):
    options = {"line_search_fn": search, "max_iter": 3, "history_size": 5}
    straight = Course(torch.optim.LBFGS, "tanh network", **options).advance(6)
    first = Course(writer, "tanh network", **options)
    assert_same(first.advance(3) + first.resumed(reader).advance(3), straight)


def test_loading_casts_as_torch_does():
    loaded = []
    for cls in BOTH:
        saved = Course(cls, "tanh network", torch.float32, max_iter=3)
        saved.advance(2)
        course = Course(cls, "tanh network", torch.float64)
        course.optimizer.load_state_dict(saved.optimizer.state_dict())
        loaded.append(course.advance(2))
    assert_same(*loaded)


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda optimizer: pickle.loads(pickle.dumps(optimizer))])
def test_a_copy_goes_on(clone):
    """A copy of torch's lacks an attribute that its step needs."""

    def copied(course):
        other = Course(type(course.optimizer), "tanh network")
        other.optimizer, other.calls = clone(course.optimizer), course.calls
        other.params = other.optimizer.param_groups[0]["params"]
        return other

    ours, theirs = (Course(cls, "tanh network", max_iter=3) for cls in BOTH)
    assert_same(ours.advance(2), theirs.advance(2))
    assert outcome(lambda: copied(theirs).advance(1))[0] is AttributeError
    assert_same(copied(ours).advance(2), theirs.advance(2))


def test_a_scheduler_that_writes_to_a_tensor_lr_does_not_change_the_past():
    """torch's keeps the tensor itself as the `t` of the last step, and learns from a step that it has not taken."""

    def run(cls, lr):
        course = Course(cls, "least squares", lr=lr, max_iter=3)
        scheduler = torch.optim.lr_scheduler.StepLR(course.optimizer, 1, gamma=0.5)
        for _ in range(4):
            course.advance(1)
            scheduler.step()
        return course.params[0].detach()

    def tensor():
        return torch.tensor(0.5, dtype=torch.float64)

    assert same_bits(run(LBFGS, tensor()), run(LBFGS, 0.5))
    assert same_bits(run(LBFGS, 0.5), run(torch.optim.LBFGS, 0.5))
    assert not torch.allclose(run(torch.optim.LBFGS, tensor()), run(torch.optim.LBFGS, 0.5))


def test_hooks_and_return_value():
    seen = []
    for cls in BOTH:
        course = Course(cls)
        course.optimizer.register_step_pre_hook(lambda *args: seen.append("before"))
        course.optimizer.register_step_post_hook(lambda *args: seen.append("after"))
        with torch.no_grad():
            before = course.problem.loss(course.params)
            returned = course.optimizer.step(torch.enable_grad()(course.closure))
        assert same_bits(returned, before)
        assert returned.requires_grad
    assert seen == ["before", "after"] * 2


def test_what_the_closure_returns_comes_back_as_it_is():
    for cls in BOTH:
        course = Course(cls)
        assert type(course.optimizer.step(lambda course=course: course.closure().item())) is float


def test_a_line_search_may_exceed_max_eval_by_one():
    counted = []
    for max_eval in (1, 2, 3, 5, 8):
        course = Course(LBFGS, max_eval=max_eval, line_search_fn="strong_wolfe")
        course.advance(1)
        counted.append(course.calls - max_eval)
    assert counted[0] == 1
    assert max(counted) == 1


def test_max_eval_of_nothing():
    """torch's line search then returns what it has not assigned."""
    course = Course(torch.optim.LBFGS, max_eval=0, line_search_fn="strong_wolfe")
    assert outcome(lambda: course.advance(1))[0] is UnboundLocalError
    ours = [Course(LBFGS, max_eval=max_eval, line_search_fn="strong_wolfe") for max_eval in (0, 1)]
    assert_same(*[course.advance(3) for course in ours])


def test_history_size_can_change():
    def change(cls):
        course = Course(cls, "tanh network", max_iter=5, lr=0.1)
        for size in (6, 2, 9):
            course.optimizer.param_groups[0]["history_size"] = size
            course.advance(3)
            yield len(course.state["ro"]), len(course.state["al"])

    assert outcome(lambda: list(change(torch.optim.LBFGS)))[0] is IndexError
    assert list(change(LBFGS)) == [(6, 6), (2, 2), (9, 9)]


def test_signature_is_torchs():
    ours, theirs = (inspect.signature(cls).parameters for cls in BOTH)
    assert [(p.name, p.default, p.kind) for p in ours.values()] == [
        (p.name, p.default, p.kind) for p in theirs.values()
    ]
    first, second = (cls([torch.zeros(2)]) for cls in BOTH)
    assert repr(first) == repr(second)
    assert issubclass(LBFGS, torch.optim.Optimizer)


ONE = torch.zeros(2)
BAD_ARGUMENTS = {
    "negative lr": lambda cls: cls([ONE], lr=-1),
    "lr is NaN": lambda cls: cls([ONE], lr=float("nan")),
    "lr of two": lambda cls: cls([ONE], lr=torch.ones(2)),
    "lr is text": lambda cls: cls([ONE], lr="fast"),
    "two groups": lambda cls: cls([{"params": [ONE]}, {"params": [ONE.clone()]}]),
    "two groups and lr": lambda cls: cls([{"params": [ONE]}, {"params": [ONE.clone()]}], lr=-1),
    "no params": lambda cls: cls([]),
    "not a leaf": lambda cls: cls([ONE.clone().requires_grad_() * 2]),
    "unknown option": lambda cls: cls([ONE], maximize=True),
    "no closure": lambda cls: cls([ONE]).step(),
    "closure is None": lambda cls: cls([ONE]).step(None),
    "closure returns None": lambda cls: cls([ONE]).step(lambda: None),
    "empty parameter": lambda cls: cls([torch.zeros(0)]).step(lambda: 0.0),
    "history_size=0": lambda cls: Course(cls, history_size=0).advance(1),
    "line search": lambda cls: Course(cls, line_search_fn="weak").advance(1),
    "line search ''": lambda cls: Course(cls, line_search_fn="").advance(1),
}


@pytest.mark.parametrize("case", BAD_ARGUMENTS)
def test_bad_input_gets_torchs_error(case):
    (ours, message), theirs = (outcome(lambda cls=cls: BAD_ARGUMENTS[case](cls)) for cls in BOTH)
    assert (ours, message) == theirs
    assert ours is not None


def test_a_group_added_later_is_refused():
    found = []
    for cls in BOTH:
        course = Course(cls)
        course.optimizer.add_param_group({"params": [torch.zeros(2)]})
        found.append((outcome(lambda course=course: course.advance(1)), course.calls, len(course.optimizer.state)))
    assert found[0] == found[1]
    assert found[0][0][0] is AssertionError


def test_a_step_that_is_refused_changes_nothing():
    course = Course(LBFGS)
    course.optimizer.param_groups[0]["line_search_fn"] = "weak"
    with pytest.raises(RuntimeError, match="only 'strong_wolfe' is supported"):
        course.advance(1)
    assert course.calls == 0
    assert not course.optimizer.state
    course.optimizer.param_groups[0]["line_search_fn"] = None
    assert_same(course.advance(2), Course(LBFGS).advance(2))


@SEARCHES
def test_an_interrupted_step_does_not_spoil_the_next(search):
    def interrupt(cls):
        course = Course(cls, "least squares", line_search_fn=search)
        failing = iter([False, False, True])

        def closure():
            if next(failing):
                raise KeyboardInterrupt
            return course.closure()

        with pytest.raises(KeyboardInterrupt):
            course.optimizer.step(closure)
        return course

    assert outcome(lambda: interrupt(torch.optim.LBFGS).advance(1))[0] is TypeError
    ours = interrupt(LBFGS)
    losses = [ours.closure().item(), *(ours.advance(1) and ours.closure().item() for _ in range(2))]
    assert losses == sorted(losses, reverse=True)


@pytest.mark.parametrize("seed", range(10))
def test_two_loops_are_the_product_of_dense_updates(seed):
    """BFGS written out: H becomes (I - rho s y') H (I - rho y s') + rho s s' (Nocedal and Wright, 6.17)."""
    generator = torch.Generator().manual_seed(seed)
    size, count, kept = 8, 6, 4
    factor = torch.randn(size, size, generator=generator, dtype=torch.float64)
    hessian = factor @ factor.T / size + torch.eye(size, dtype=torch.float64)
    steps = torch.randn(count, size, generator=generator, dtype=torch.float64)
    history = History(kept)
    for s in steps:
        history.update(s, hessian @ s)
    s, y = steps[-1], hessian @ steps[-1]
    inverse, eye = s.dot(y) / y.dot(y) * torch.eye(size, dtype=torch.float64), torch.eye(size, dtype=torch.float64)
    for s in steps[-kept:]:
        y = hessian @ s
        rho = 1 / s.dot(y)
        inverse = (eye - rho * torch.outer(s, y)) @ inverse @ (eye - rho * torch.outer(y, s)) + rho * torch.outer(s, s)
    gradient = torch.randn(size, generator=generator, dtype=torch.float64)
    found, expected = history.direction(gradient)[0], -inverse @ gradient
    # Two orders of the same sums: at most 6.1e-16 relative was measured over these seeds.
    assert (found - expected).abs().max() < 1e-14 * expected.abs().max()


def test_history_leaves_out_pairs_without_curvature():
    s = torch.tensor([1.0, 0.0])
    history = History(3)
    for y in (torch.tensor([-1.0, 0.0]), torch.tensor([1e-10, 5.0]), torch.tensor([float("nan"), 0.0])):
        history.update(s, y)
    assert not history.pairs
    assert history.scale == 1
    history.update(s, torch.tensor([2.0, 1.0]))
    assert history.pairs == [Pair(s, history.pairs[0].y, torch.tensor(0.5))]
    assert history.scale == pytest.approx(2 / 5)


def point(function, t):
    """Return the point of a function of one variable."""
    at = torch.as_tensor(t, dtype=torch.float64).detach().requires_grad_()
    value = function(at)
    (slope,) = torch.autograd.grad(value, at)
    return Point(t, value.item(), slope, slope)


def random_function(seed):
    """Return a function that falls at 0 and is bounded below, with several minima."""
    a, b, c, d = torch.rand(4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return lambda t: 10 ** (4 * d - 2) * (t - 5 * a - 0.2) ** 2 + b * 2 * torch.sin(6 * c * t) - 15 * b * c * t


def flattening_function(seed):
    """Return a function that falls steeply at 0, then hardly, and rises far away."""
    a, b = torch.rand(2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return lambda t: torch.exp(-(1 + 20 * a) * t) + 1e-9 * (t - 1e4 * b) ** 2 + 1e-3 * torch.sin(t)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("lr", [1e-3, 1.0, 1e2, 1e5])
@pytest.mark.parametrize("family", [random_function, flattening_function])
def test_searches_on_a_line_are_torchs(family, lr, dtype):
    """Functions that reach every branch of both phases."""
    for seed in range(40):
        function = family(seed)
        problem = Problem("line", "", (torch.zeros(1).double(),), lambda params, f=function: f(params[0]).sum())
        options = {"line_search_fn": "strong_wolfe", "lr": lr, "max_iter": 3, "max_eval": 60}
        ours, theirs = (Course(cls, problem, dtype, **options) for cls in BOTH)
        assert_same(ours.advance(1), theirs.advance(1))


@pytest.mark.parametrize("t", [1e-3, 1.0, 30.0])
def test_strong_wolfe_satisfies_both_conditions(t):
    """Without a tolerance it can end by success or for want of evaluations only."""
    budget, succeeded = 25, 0
    for seed in range(100):
        function = random_function(seed)
        start = point(function, 0.0)
        found, used = strong_wolfe(lambda t, f=function: point(f, t), start, t, 1.0, budget, tolerance=0.0)
        assert used <= budget + 1
        if used <= budget:
            assert found.f <= start.f + 1e-4 * found.t * start.slope
            assert abs(found.slope) <= -0.9 * start.slope
            assert found.f == point(function, found.t).f
            succeeded += 1
    assert succeeded == 100


LOST = (
    (lambda t: -t, 1.0, 2, 100.0),
    (lambda t: (t - 1) ** 2, 9.0, 0, 0.0),
)


@pytest.mark.parametrize(("function", "t", "budget", "expected"), LOST, ids=["falls for ever", "first trial beyond"])
def test_strong_wolfe_returns_the_lower_end_for_want_of_evaluations(function, t, budget, expected):
    start = point(function, 0.0)
    found, used = strong_wolfe(lambda t: point(function, t), start, t, 1.0, budget)
    assert used == budget + 1
    assert found.t == pytest.approx(expected)


def test_strong_wolfe_ends_where_the_bracket_is_small():
    """A step downward right behind the start: no point satisfies both conditions, and halving finds none."""
    slope = torch.tensor(-1.0)
    start = Point(0, 0.0, slope, slope)
    found, used = strong_wolfe(lambda t: Point(t, 1.0, slope, slope), start, 1.0, 1.0, 100, tolerance=1e-3)
    assert found == start
    assert used < 20


@pytest.mark.parametrize("seed", range(20))
def test_cubic_minimum_is_where_the_slope_is_zero(seed):
    """The cubic's derivative is k (t - maximum) (t - minimum)."""
    k, low, high, left, right = torch.rand(5, generator=torch.Generator().manual_seed(seed)).double()
    maximum, minimum = -low - 0.1, high + 0.1

    def cubic(t):
        return (0.1 + k) * (t**3 / 3 - (maximum + minimum) * t**2 / 2 + maximum * minimum * t)

    a, b = point(cubic, float(-left)), point(cubic, float(0.2 + 2 * right))
    far = (-100.0, 100.0)
    found = cubic_minimum(a, b, far)
    # Roundings of values below 10: at most 1.3e-15 was measured over these seeds.
    assert abs(float(found - minimum)) < 1e-14
    assert same_bits(found, cubic_minimum(b, a, far))
    assert float(cubic_minimum(a, b)) == min(float(found), b.t)


def test_cubic_without_a_minimum_gives_the_middle():
    """Through these two points goes a cubic that falls everywhere."""
    slope = torch.tensor(-1.0)
    a, b = Point(1.0, 0.0, slope, slope), Point(3.0, -1.0, slope, slope)
    assert cubic_minimum(a, b) == 2.0
    assert cubic_minimum(a, b, (4.0, 10.0)) == 7.0


@pytest.mark.parametrize("problem", PROBLEMS)
def test_problems_are_solved(problem):
    """Each has a minimum that L-BFGS finds, and the same start each time."""
    course, again = (Course(LBFGS, problem, line_search_fn="strong_wolfe", max_iter=200) for _ in range(2))
    assert_same(course.advance(5), again.advance(5))
    assert [tuple(param.shape) for param in course.params] == list(course.problem.shapes)
    largest = max(param.grad.abs().max() for param in course.params)
    # The searches end where they cannot lower the loss: 1.7e-4 was measured for Rosenbrock, the steepest.
    assert largest < 1e-3
