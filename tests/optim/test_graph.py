"""Steps inside graphs: `torch.compile` on every machine, CUDA graphs and `capturable` where there is a GPU."""

import sys

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import reimpl.optim.optimizer
from conftest import OPTIMIZERS
from helpers import OPTIONS, pair, parameters, set_gradients, snapshot, take_steps
from reimpl.verify.distance import relative_error

pytestmark = pytest.mark.filterwarnings("ignore")  # torch.compile warns of its own modules

CAPTURABLE = [name for name in OPTIMIZERS if name not in ("SGD", "Adagrad")]


def assert_close(found, expected, bound):
    assert list(found) == list(expected)
    for key, tensor in found.items():
        assert relative_error(tensor, expected[key]) < bound, key


def test_compiled_step(name, foreach):
    """In one graph, and without another compilation once the state is there."""
    torch._dynamo.reset()
    eager = take_steps(pair(name)[0](parameters(), foreach=foreach, **OPTIONS[name]), 7)
    optimizer = pair(name)[0](parameters(), foreach=foreach, **OPTIONS[name])
    compiled = torch.compile(optimizer.step, fullgraph=True, backend="aot_eager")
    for step in range(7):
        if step == 2:
            torch._dynamo.utils.counters.clear()
        set_gradients(optimizer.param_groups[0]["params"], step)
        compiled()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 0
    # Coefficients are computed from a float32 step count instead of in Python floats: measured 3e-7.
    assert_close(snapshot(optimizer), snapshot(eager), 2e-6)


def test_compiled_complex_sgd(foreach):
    torch._dynamo.reset()
    ours, _ = pair("SGD")
    eager = take_steps(ours(parameters(torch.complex64), foreach=foreach, **OPTIONS["SGD"]), 3)
    optimizer = ours(parameters(torch.complex64), foreach=foreach, **OPTIONS["SGD"])
    compiled = torch.compile(optimizer.step, backend="aot_eager")
    for step in range(3):
        set_gradients(optimizer.param_groups[0]["params"], step)
        compiled()
    assert_close(snapshot(optimizer), snapshot(eager), 1e-6)


class NothingIsRead(TorchDispatchMode):
    """Raises where a tensor's value is read back to the host, which no graph can hold."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert function is not torch.ops.aten._local_scalar_dense.default, "a value is read back to the host"
        return function(*args, **(kwargs or {}))


@pytest.fixture
def capturable_on_the_host(monkeypatch):
    """Let the host pass for an accelerator, so that `capturable=True` runs without one."""
    modules = {sys.modules[getattr(torch.optim, name).__module__] for name in CAPTURABLE} - {
        sys.modules["torch.optim.adamw"]
    }
    for module in (*modules, reimpl.optim.optimizer):
        monkeypatch.setattr(module, "_get_capturable_supported_devices", lambda supports_xla=True: ["cpu"])


TENSOR_OPTIONS = {
    "floats": lambda: {"lr": 0.01},
    "tensor lr": lambda: {"lr": torch.tensor(0.01)},
    "tensor lr and betas": lambda: {"lr": torch.tensor(0.01), "betas": (torch.tensor([0.8]), torch.tensor(0.95))},
}


@pytest.mark.usefixtures("capturable_on_the_host")
@pytest.mark.parametrize("capturable_name", CAPTURABLE)
@pytest.mark.parametrize("kind", TENSOR_OPTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
def test_capturable_on_the_host(capturable_name, foreach, kind, dtype):
    """The error against float64 is at most twice that of torch's own capturable step."""
    if kind == "tensor lr and betas" and capturable_name not in ("Adam", "AdamW"):
        return
    ours, theirs = pair(capturable_name)

    def run(cls, dtype=dtype, **more):
        options = {**OPTIONS[capturable_name], **TENSOR_OPTIONS[kind](), **more}
        return snapshot(take_steps(cls(parameters(dtype), **options), 6))

    mine, reference = (run(cls, capturable=True, foreach=foreach) for cls in (ours, theirs))
    truth = run(theirs, dtype=torch.complex128 if dtype.is_complex else torch.float64)
    assert list(mine) == list(reference) == list(truth)
    for key, tensor in truth.items():
        assert mine[key].dtype == reference[key].dtype
        assert relative_error(mine[key], tensor) <= 2 * relative_error(reference[key], tensor) + 1e-7, key


@pytest.mark.usefixtures("capturable_on_the_host")
@pytest.mark.parametrize("capturable_name", CAPTURABLE)
def test_capturable_reads_nothing_back(capturable_name, foreach):
    lr = torch.tensor(0.01)
    options = {**OPTIONS[capturable_name], "lr": lr, "capturable": True, "foreach": foreach}
    optimizer = take_steps(pair(capturable_name)[0](parameters(), **options), 1)
    set_gradients(optimizer.param_groups[0]["params"], 1)
    with NothingIsRead():
        optimizer.step()


@pytest.mark.usefixtures("capturable_on_the_host")
def test_reading_back_is_noticed():
    optimizer = take_steps(pair("Adam")[0](parameters()), 1)
    set_gradients(optimizer.param_groups[0]["params"], 1)
    with pytest.raises(AssertionError, match="read back to the host"), NothingIsRead():
        optimizer.step()


def on_cuda(cls, lr, **options):
    params = [param.detach().cuda().requires_grad_() for param in parameters()]
    return cls(params, lr=lr, capturable=True, **options)


@pytest.mark.cuda
@pytest.mark.parametrize("capturable_name", CAPTURABLE)
@pytest.mark.parametrize("tensor_lr", [False, True])
def test_capturable(capturable_name, foreach, tensor_lr):
    """Outside of a graph: no farther from torch's loop in float64 than twice torch's own capturable step."""
    options = {**OPTIONS[capturable_name], "foreach": foreach}
    ends = []
    for cls in pair(capturable_name):
        lr = torch.tensor(0.01, device="cuda") if tensor_lr else 0.01
        ends.append(snapshot(take_steps(on_cuda(cls, lr, **options), 5)))
    oracle = snapshot(
        take_steps(pair(capturable_name)[1](parameters(torch.float64), lr=0.01, **OPTIONS[capturable_name]), 5)
    )
    for key, truth in oracle.items():
        mine, reference = (relative_error(end[key].cpu(), truth) for end in ends)
        assert mine <= max(2 * reference, 1e-7), key


@pytest.mark.cuda
@pytest.mark.parametrize("capturable_name", CAPTURABLE)
def test_cuda_graph(capturable_name, foreach):
    """Replaying a captured step is taking the step, with a learning rate that changes between replays."""
    ours, _ = pair(capturable_name)
    ends = []
    for captured in (False, True):
        lr = torch.tensor(0.01, device="cuda")
        optimizer = on_cuda(ours, lr, foreach=foreach, **OPTIONS[capturable_name])
        params = optimizer.param_groups[0]["params"]
        for param in params:
            param.grad = torch.ones_like(param)
        for _ in range(2):
            optimizer.step()
        if captured:
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            before = {key: tensor.clone() for key, tensor in snapshot(optimizer).items()}
            with torch.cuda.graph(graph):
                optimizer.step()
            assert all(torch.equal(tensor, before[key]) for key, tensor in snapshot(optimizer).items())
        for rate in (0.01, 0.1, 0.001):
            lr.fill_(rate)
            graph.replay() if captured else optimizer.step()
        ends.append(snapshot(optimizer))
    for key, tensor in ends[0].items():
        assert torch.equal(tensor, ends[1][key]), key


@pytest.mark.cuda
def test_capture_without_capturable_is_refused():
    params = [param.detach().cuda().requires_grad_() for param in parameters()]
    optimizer = take_steps(pair("Adam")[0](params), 1)
    with pytest.raises(RuntimeError, match="capturable is False"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        optimizer.step()


@pytest.mark.cuda
def test_default_on_cuda_is_foreach(name):
    params = [param.detach().cuda().requires_grad_() for param in parameters()]
    optimizer = pair(name)[0](params)
    assert optimizer.chooses_foreach(optimizer.param_groups[0], params)
    if name in ("Adam", "AdamW"):
        optimizer.param_groups[0]["lr"] = torch.tensor(0.1)
        assert not optimizer.chooses_foreach(optimizer.param_groups[0], params)


@pytest.mark.cuda
def test_two_devices_in_one_group(name, foreach):
    ends = []
    for cls in pair(name):
        params = parameters()
        params[1] = params[1].detach().cuda().requires_grad_()
        ends.append(snapshot(take_steps(cls(params, foreach=foreach, **OPTIONS[name]), 3)))
    for key, tensor in ends[0].items():
        assert torch.equal(tensor, ends[1][key]), key


def test_default_on_the_host_is_the_loop(name):
    optimizer = pair(name)[0](parameters())
    assert not optimizer.chooses_foreach(optimizer.param_groups[0], optimizer.param_groups[0]["params"])
