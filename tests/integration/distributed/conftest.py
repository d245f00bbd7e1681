"""Tests that several processes run together: `torchrun --nproc-per-node 4 -m pytest -x tests/integration/distributed`.

Each process runs every test, in the same order. Without torchrun nothing here is collected; `test_distributed.py`
starts it.
"""

import os

import pytest
import torch
import torch.distributed as dist

from helpers import assert_same, pair, snapshot, whole
from reimpl.verify.distance import relative_error

UNDER_TORCHRUN = "TORCHELASTIC_RUN_ID" in os.environ
ENGINES = {"loop": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}
collect_ignore_glob = [] if UNDER_TORCHRUN else ["test_*.py"]


@pytest.fixture(scope="session", autouse=True)
def processes():
    """The number of processes, which have been joined in a group: by gloo, or by NCCL if each has a GPU."""
    on_gpus = torch.cuda.device_count() >= int(os.environ["LOCAL_WORLD_SIZE"])
    if on_gpus:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpus else "gloo")
    yield dist.get_world_size()
    dist.destroy_process_group()


@pytest.fixture(scope="session")
def device(processes):
    """The kind of device on which this process trains."""
    return "cuda" if "nccl" in dist.get_backend_config() else "cpu"


@pytest.fixture
def shared_path(tmp_path):
    """A folder that all processes see."""
    paths = [str(tmp_path)]
    dist.broadcast_object_list(paths)
    return type(tmp_path)(paths[0])


@pytest.fixture(params=ENGINES)
def engine(request):
    """The options that choose an engine, each in turn."""
    return ENGINES[request.param]


@pytest.fixture
def network(device):
    """Return a function that makes the same network each time; one matrix has fewer rows than there are processes."""

    def make():
        torch.manual_seed(1)
        layers = [torch.nn.Linear(5, 7), torch.nn.Tanh(), torch.nn.Linear(7, 1), torch.nn.Tanh(), torch.nn.Linear(1, 3)]
        return torch.nn.Sequential(*layers).to(device)

    return make


@pytest.fixture
def batch(device):
    """Return a function that makes a step's inputs and targets, this process's own."""

    def make(step, inputs=(5,), outputs=(3,)):
        generator = torch.Generator().manual_seed(1000 * step + dist.get_rank())
        return [torch.randn((4, *shape), generator=generator).to(device) for shape in (inputs, outputs)]

    return make


@pytest.fixture
def train(batch):
    """Return a function that takes steps with a model, each on another batch."""

    def steps(model, optimizer, count=3, first=0):
        for step in range(first, first + count):
            inputs, targets = batch(step)
            optimizer.zero_grad()
            torch.nn.functional.mse_loss(model(inputs), targets).backward()
            optimizer.step()
        return optimizer

    return steps


@pytest.fixture
def assert_as_alone(train):
    """Return a function that trains, and asserts that plain parameters with the same gradients end with the same bits.

    It is also the oracle of the fused engine, whose bits are its own.
    """

    def check(optimizer, model, alone, plain, count=3):
        for step in range(count):
            train(model, optimizer, 1, first=step)
            for param, other in zip(model.parameters(), plain.parameters(), strict=True):
                other.grad = None if param.grad is None else whole(param.grad).clone()
            alone.step()
        assert_same(optimizer, alone)

    return check


@pytest.fixture
def assert_as_torchs():
    """Return a function that runs `end(class, engine)`, which trains, with our class and with torch's.

    Both end with the same bits; the fused engine ends near torch's for-loop.
    """

    def check(name, engine, end):
        ours, theirs = pair(name)
        if "fused" not in engine:
            assert_same(end(ours, engine), end(theirs, engine))
            return
        found, expected = (
            run if isinstance(run, dict) else snapshot(run) for run in (end(ours, engine), end(theirs, ENGINES["loop"]))
        )
        for key, value in expected.items():
            assert relative_error(found[key], value) < 1e-5, key  # measured: at most 4e-7

    return check


class Collectives:
    """Counts the collectives that run inside: `with Collectives() as collectives: …`, then `collectives.names`.

    torch's `CommDebugMode` is a dispatch mode, and inside one the fused engine leaves its work to the foreach engine.
    """

    def __enter__(self):
        self.profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], acc_events=True)
        self.profiler.start()
        return self

    def __exit__(self, *error):
        self.profiler.stop()
        self.names = [event.name for event in self.profiler.events() if event.name.startswith("c10d::")]


@pytest.fixture
def collectives():
    """The class that counts collectives."""
    return Collectives
