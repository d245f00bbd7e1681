"""Watching changes nothing of a run, goes through whatever happens to an optimizer, and ends without a trace."""

import copy
import gc
import pickle
import weakref

import pytest
import torch

import reimpl
import reimpl.optim
from helpers import OPTIONS, assert_same, pair, parameters, set_gradients, snapshot, take_steps

ENGINES = {"loop": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}


class Log:
    """A writer that keeps what it is given."""

    def __init__(self):
        self.steps, self.scalars, self.histograms = [], [], []

    def __call__(self, step, scalars, histograms):
        self.steps.append(step)
        self.scalars.append(scalars)
        self.histograms.append(histograms)

    def of(self, name):
        return [scalars[name] for scalars in self.scalars]


def adam(**options):
    return reimpl.optim.Adam(parameters(), **options)


def assert_unchanged(make, writer=None):
    """Assert that a watched run is the one that nobody watches, of parameters, state and random numbers."""
    ends = []
    for watched in (False, True):
        torch.manual_seed(7)
        optimizer = make()
        log = writer or Log()
        if watched:
            reimpl.watch(optimizer, log, every=2, histograms=2, max_norm=1.0)
        with torch.enable_grad():
            take_steps(optimizer, 5)
            assert torch.is_grad_enabled()
        grads = [p.grad for group in optimizer.param_groups for p in group["params"]]
        ends.append((snapshot(optimizer), torch.get_rng_state(), grads))
    assert_same(ends[0][0], ends[1][0])
    assert torch.equal(ends[0][1], ends[1][1])
    assert all(map(torch.equal, ends[0][2], ends[1][2]))


@pytest.mark.parametrize("engine", ENGINES)
def test_ours_keeps_its_bits(name, engine):
    assert_unchanged(lambda: pair(name)[0](parameters(), **ENGINES[engine], **OPTIONS[name]))


def test_torchs_keeps_its_bits(name, foreach):
    assert_unchanged(lambda: pair(name)[1](parameters(), foreach=foreach, **OPTIONS[name]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.complex64])
def test_other_dtypes_keep_their_bits(dtype):
    assert_unchanged(lambda: reimpl.optim.Adam(parameters(dtype)))


@pytest.mark.parametrize("package", [reimpl.optim, torch.optim])
@pytest.mark.parametrize("name", ["Muon", "Adafactor"])
def test_matrix_optimizers_keep_their_bits(package, name):
    assert_unchanged(lambda: getattr(package, name)(parameters(shapes=((7, 3), (4, 4)))))


def test_a_changed_bit_would_be_seen():
    watched = []

    def meddle(step, scalars, histograms):
        watched[-1].data[0, 0].mul_(1 + 2**-23)

    def make():
        params = parameters()
        watched.append(params[0])
        return torch.optim.SGD(params)

    with pytest.raises(AssertionError, match="param"):
        assert_unchanged(make, meddle)


@pytest.mark.parametrize("cls", [torch.optim.LBFGS, reimpl.optim.LBFGS])
def test_closures_make_the_gradients(cls):
    ends = []
    for watched in (False, True):
        param = torch.tensor([3.0, -2.0], requires_grad=True)
        optimizer, log = cls([param], lr=0.1), Log()
        if watched:
            reimpl.watch(optimizer, log)

        def closure(param=param, optimizer=optimizer):
            optimizer.zero_grad()
            loss = (param**4).sum()
            loss.backward()
            return loss

        losses = [optimizer.step(closure).item() for _ in range(3)]
        ends.append((losses, param.detach()))
    assert ends[0][0] == ends[1][0]
    assert torch.equal(ends[0][1], ends[1][1])
    assert log.of("group0/grad_norm")[-1] == pytest.approx(param.grad.norm().item())
    assert "group0/d_norm" in log.scalars[-1]


def test_every_and_start():
    optimizer, log = adam(), Log()
    watch = reimpl.watch(optimizer, log, every=3, start=4)
    take_steps(optimizer, 6)
    assert log.steps == [6, 9]
    assert watch.step == 10


def test_histograms():
    optimizer, log = adam(), Log()
    reimpl.watch(optimizer, log, every=2, histograms=4)
    take_steps(optimizer, 5)
    assert [sorted(one) for one in log.histograms] == [
        sorted(f"group0/{what}" for what in ("param", "grad", "update", "exp_avg", "exp_avg_sq")),
        [],
        sorted(f"group0/{what}" for what in ("param", "grad", "update", "exp_avg", "exp_avg_sq")),
    ]
    assert log.histograms[0]["group0/param"].equal(torch.cat([p.detach().flatten() for p in parameters()]))
    update = torch.cat([p.detach().flatten() for p in take_steps(adam(), 1).param_groups[0]["params"]])
    update -= log.histograms[0]["group0/param"]
    assert log.histograms[0]["group0/update"].equal(update)


def test_histograms_hold_finite_values_alone():
    param = torch.ones(4, requires_grad=True)
    param.grad = torch.tensor([1.0, float("nan"), float("inf"), 2.0])
    log = Log()
    optimizer = torch.optim.SGD([param], lr=1.0)
    reimpl.watch(optimizer, log, histograms=1)
    optimizer.step()
    assert log.histograms[0]["group0/grad"].tolist() == [1, 2]
    assert log.histograms[0]["group0/update"].tolist() == [-1, -2]


def test_handle_removes():
    optimizer, log = adam(), Log()
    watch = reimpl.watch(optimizer, log)
    take_steps(optimizer, 1)
    watch.remove()
    watch.remove()
    take_steps(optimizer, 1)
    assert log.steps == [0]
    with reimpl.watch(optimizer, log):
        take_steps(optimizer, 1)
    take_steps(optimizer, 1)
    assert log.steps == [0, 0]
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks


def tensors_alive():
    gc.collect()
    return sum(issubclass(type(each), torch.Tensor) for each in gc.get_objects())


def test_nothing_is_kept():
    optimizer = take_steps(adam(), 1)
    before = tensors_alive()
    watch = reimpl.watch(optimizer, Log(), every=2, histograms=2)
    take_steps(optimizer, 3)
    watch.remove()
    assert tensors_alive() == before  # the log went with the watch's hooks


def test_a_handle_keeps_no_optimizer_alive():
    optimizer = adam()
    seen = weakref.ref(optimizer)
    watch = reimpl.watch(optimizer, Log())
    take_steps(optimizer, 1)
    del optimizer
    gc.collect()
    assert seen() is None
    watch.remove()


def test_removed_inside_a_step():
    optimizer, log = adam(), Log()
    watch = reimpl.watch(optimizer, log)

    def closure():
        watch.remove()

    optimizer.step(closure)
    assert log.steps == []


def test_several_watches():
    optimizer, first, second = adam(), Log(), Log()
    reimpl.watch(optimizer, first, every=2)
    reimpl.watch(optimizer, [second, first], every=3, name="second")
    take_steps(optimizer, 4)
    assert first.steps == [0, 0, 2, 3]
    assert second.steps == [0, 3]
    assert all(name.startswith("second/group0/") for name in second.scalars[0])


def test_a_step_that_raises_is_not_counted():
    optimizer, log = adam(), Log()
    watch = reimpl.watch(optimizer, log)

    def closure():
        raise KeyError("data")

    with pytest.raises(KeyError):
        optimizer.step(closure)
    assert watch.step == 0
    take_steps(optimizer, 1)
    assert log.steps == [0]


def test_a_writer_that_raises():
    """The step has been taken, and the next one is logged."""
    optimizer, log = adam(), Log()

    def full(step, scalars, histograms):
        if step == 1:
            raise OSError("No space left on device")

    watch = reimpl.watch(optimizer, [full, log])
    take_steps(optimizer, 1)
    with pytest.raises(OSError, match="No space"):
        take_steps(optimizer, 1, first=1)
    take_steps(optimizer, 1, first=2)
    assert watch.step == 3
    assert log.steps == [0, 2]
    assert_same(optimizer, take_steps(adam(), 3))


def test_a_step_within_a_step_is_one():
    """The base's step calls the hooks too, if the base was ever made itself."""

    class Adam(torch.optim.Adam):
        def step(self, closure=None):
            return super().step(closure)

    torch.optim.Adam(parameters())
    optimizer, log = Adam(parameters()), Log()
    reimpl.watch(optimizer, log)
    take_steps(optimizer, 3)
    assert log.steps == [0, 1, 2]


def test_state_that_is_loaded():
    optimizer, log = adam(), Log()
    reimpl.watch(optimizer, log)
    take_steps(optimizer, 2)
    saved = copy.deepcopy(optimizer.state_dict())
    take_steps(optimizer, 2, first=2)
    optimizer.load_state_dict(saved)
    take_steps(optimizer, 1, first=9)
    assert log.steps == [0, 1, 2, 3, 4]
    state = [optimizer.state[p]["exp_avg"] for p in optimizer.param_groups[0]["params"]]
    expected = torch.cat([one.flatten() for one in state]).norm().item()
    assert log.of("group0/exp_avg_norm")[-1] == pytest.approx(expected)


def test_a_group_that_joins():
    optimizer, log = adam(), Log()
    reimpl.watch(optimizer, log)
    take_steps(optimizer, 1)
    optimizer.add_param_group({"params": parameters(seed=2), "name": "head"})
    take_steps(optimizer, 1)
    scopes = [{name.rpartition("/")[0] for name in scalars} for scalars in log.scalars]
    assert scopes == [{"group0"}, {"group0", "head"}]
    assert list(log.scalars[0]) == [name for name in log.scalars[1] if name.startswith("group0/")]


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ([{}, {}], ["group0", "group1"]),
        ([{"name": "decayed"}, {}], ["decayed", "group1"]),
        ([{"name": "one"}, {"name": "one"}], ["one", "one_1"]),
    ],
)
def test_labels(groups, expected):
    params = parameters()
    groups = [{"params": [param], **group} for param, group in zip(params, groups, strict=False)]
    log = Log()
    optimizer = torch.optim.SGD(groups)
    reimpl.watch(optimizer, log)
    take_steps(optimizer, 1)
    assert list(dict.fromkeys(name.rpartition("/")[0] for name in log.scalars[0])) == expected


def test_labels_of_named_parameters():
    model = torch.nn.ModuleDict({"body": torch.nn.Sequential(torch.nn.Linear(2, 2)), "head": torch.nn.Linear(2, 1)})
    named = dict(model.named_parameters())
    body = [pair for pair in named.items() if pair[0].startswith("body")]
    groups = [{"params": body}, {"params": [("head.weight", named["head.weight"])]}]
    log = Log()
    optimizer = torch.optim.SGD(groups)
    reimpl.watch(optimizer, log)
    take_steps(optimizer, 1)
    assert list(dict.fromkeys(name.rpartition("/")[0] for name in log.scalars[0])) == ["body.0", "head.weight"]


def test_missing_gradients():
    optimizer, log = torch.optim.SGD([{"params": [param]} for param in parameters()], lr=0.1), Log()
    reimpl.watch(optimizer, log, histograms=1)
    take_steps(optimizer, 1, skip=(1,))
    assert log.scalars[0]["group1/update_norm"] == 0
    assert log.scalars[0]["group1/zero_updates"] == 1
    assert "group1/grad_norm" not in log.scalars[0]
    assert "group1/grad" not in log.histograms[0]
    for param in (param for group in optimizer.param_groups for param in group["params"]):
        param.grad = None
    optimizer.step()
    assert log.of("group0/step_size")[1] == 0


def test_parameters_that_move():
    """To another dtype or other memory, between two steps."""
    optimizer, log = adam(), Log()
    reimpl.watch(optimizer, log)
    take_steps(optimizer, 1)
    for param in optimizer.param_groups[0]["params"]:
        param.data = param.data.double()
    optimizer.load_state_dict(optimizer.state_dict())
    take_steps(optimizer, 1)
    assert log.scalars[1]["group0/update_norm"] > 0


def test_no_elements():
    log = Log()
    optimizer = torch.optim.Adam([torch.zeros(0, 3, requires_grad=True)])
    reimpl.watch(optimizer, log, histograms=1)
    take_steps(optimizer, 1)
    assert log.scalars[0] == {
        "group0/lr": 1e-3,
        "group0/param_norm": 0,
        "group0/grad_norm": 0,
        "group0/update_norm": 0,
        "group0/exp_avg_norm": 0,
    }
    assert log.histograms[0] == {}


@pytest.mark.parametrize("again", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_a_copy_is_not_watched(again):
    optimizer, log = adam(), Log()
    watch = reimpl.watch(optimizer, log)
    take_steps(optimizer, 1)
    take_steps(again(optimizer), 1)
    assert watch.step == 1
    take_steps(optimizer, 1)
    assert log.steps == [0, 1]


SCALED = {
    "ours, loop": lambda params: reimpl.optim.Adam(params, foreach=False),
    "ours, fused": lambda params: reimpl.optim.Adam(params, fused=True),
    "torch's, fused": lambda params: torch.optim.Adam(params, fused=True),
}


@pytest.mark.parametrize("kind", SCALED)
def test_under_a_scaler(kind):
    """Gradients are logged as they are without the scale, and a step that overflows changes nothing."""
    param = torch.linspace(1, 2, 8).requires_grad_()
    optimizer, log = SCALED[kind]([param]), Log()
    watch = reimpl.watch(optimizer, log)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for factor in (1.0, float("inf"), 1.0):
        optimizer.zero_grad()
        scaler.scale((param**2).sum() * factor).backward()
        before = param.detach().clone()
        scaler.step(optimizer)
        scaler.update()
        if factor == 1:
            assert log.of("group0/grad_norm")[-1] == pytest.approx((2 * before).norm().item())
    skipped = "fused" not in kind  # then the scaler does not call the step
    assert watch.step == (2 if skipped else 3)
    if not skipped:
        assert log.of("group0/zero_updates") == [0, 1, 0]
        assert log.of("group0/grad_norm")[1] == float("inf")


def test_gradients_that_a_step_overwrites():
    """torch's foreach SGD makes Nesterov's update in `p.grad`."""
    optimizer = torch.optim.SGD(parameters(), lr=0.1, momentum=0.9, nesterov=True, foreach=True)
    log = Log()
    reimpl.watch(optimizer, log)
    set_gradients(optimizer.param_groups[0]["params"], 0)
    grads = [param.grad.clone() for param in optimizer.param_groups[0]["params"]]
    optimizer.step()
    assert not optimizer.param_groups[0]["params"][0].grad.equal(grads[0])
    assert log.scalars[0]["group0/grad_norm"] == pytest.approx(torch.nn.utils.get_total_norm(grads).item())


@pytest.mark.filterwarnings("ignore")  # torch.compile warns of its own modules
def test_a_compiled_step():
    torch._dynamo.reset()
    ends = []
    for compiled in (False, True):
        optimizer, log = adam(foreach=True), Log()
        reimpl.watch(optimizer, log, every=2)
        step = torch.compile(optimizer.step, backend="eager") if compiled else optimizer.step
        for number in range(4):
            set_gradients(optimizer.param_groups[0]["params"], number)
            step()
        ends.append(log)
    assert ends[0].steps == ends[1].steps == [0, 2]
    for eager, traced in zip(ends[0].scalars, ends[1].scalars, strict=True):
        assert traced == pytest.approx(eager, rel=1e-5)  # coefficients in float32: tests/optim/test_graph.py


@pytest.mark.filterwarnings("ignore")  # torch.compile warns of its own modules
def test_a_step_in_one_graph_is_refused():
    """And says who breaks it, instead of logging nothing."""
    torch._dynamo.reset()
    optimizer = take_steps(adam(foreach=True), 1)
    reimpl.watch(optimizer, Log())
    with pytest.raises(torch._dynamo.exc.Unsupported, match=r"reimpl\.watch reads values"):
        torch.compile(optimizer.step, backend="eager", fullgraph=True)()


def test_accelerates_wrapper():
    accelerate = pytest.importorskip("accelerate")
    wrapped = accelerate.Accelerator(cpu=True).prepare_optimizer(adam())
    log = Log()
    reimpl.watch(wrapped, log)
    set_gradients(wrapped.param_groups[0]["params"], 0)
    wrapped.step()
    assert log.steps == [0]


@pytest.mark.parametrize("given", [None, torch.nn.Linear(1, 1), "adam"])
def test_what_is_no_optimizer(given):
    with pytest.raises(TypeError, match=r"optimizer must be a torch\.optim\.Optimizer, not"):
        reimpl.watch(given, Log())


@pytest.mark.parametrize("options", [{"every": 0}, {"every": -1}, {"every": 4, "histograms": 6}, {"histograms": -1}])
def test_bad_arguments(options):
    optimizer = adam()
    with pytest.raises(ValueError, match=r"every|histograms"):
        reimpl.watch(optimizer, Log(), **options)
    assert not optimizer._optimizer_step_pre_hooks


@pytest.mark.cuda
@pytest.mark.parametrize("engine", ENGINES)
def test_on_cuda(engine):
    ends = []
    for watched in (False, True):
        params = [param.detach().cuda().requires_grad_() for param in parameters()]
        optimizer, log = reimpl.optim.Adam(params, **ENGINES[engine]), Log()
        if watched:
            reimpl.watch(optimizer, log, histograms=1)
        for step in range(3):
            for param, given in zip(params, parameters(seed=step), strict=True):
                param.grad = given.detach().cuda()
            optimizer.step()
        ends.append(snapshot(optimizer))
    assert_same(*ends)
    assert log.steps == [0, 1, 2]
