"""Pairs of optimizers, comparisons of what they did, and how they run in several processes."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import torch

import reimpl.optim
from reimpl.verify.distance import same_bits

ROOT = Path(__file__).parents[1]
OPTIONS = {
    "SGD": {"momentum": 0.9, "weight_decay": 0.1},
    "Adagrad": {"lr_decay": 0.1, "weight_decay": 0.1},
    "RMSprop": {"momentum": 0.9, "centered": True},
    "Adadelta": {"weight_decay": 0.1},
    "Adam": {"amsgrad": True, "weight_decay": 0.1},
    "AdamW": {"amsgrad": True, "weight_decay": 0.1},
    "Adamax": {"weight_decay": 0.1},
    "NAdam": {"weight_decay": 0.1, "momentum_decay": 0.1},
    "RAdam": {"weight_decay": 0.1, "betas": (0.5, 0.9)},
    "Rprop": {"etas": (0.3, 1.1)},
    "ASGD": {"weight_decay": 0.1, "lambd": 0.01, "t0": 1},
}
"""For each optimizer, options under which it keeps all of its state and uses all of its rule."""


def pair(name):
    """Return our class and torch's."""
    return getattr(reimpl.optim, name), getattr(torch.optim, name)


def parameters(dtype=torch.float32, shapes=((7, 3), (5,), ()), seed=1):
    """Return fresh parameters, the same at each call."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


def set_gradients(params, step, skip=()):
    """Give each parameter the gradient of a step, the same at each call."""
    generator = torch.Generator().manual_seed(100 + step)
    for i, param in enumerate(params):
        gradient = torch.randn(param.shape, generator=generator, dtype=torch.float64).to(param.dtype)
        param.grad = None if i in skip else gradient


def take_steps(optimizer, count, first=0, skip=()):
    """Take steps with the gradients of `set_gradients`."""
    params = [param for group in optimizer.param_groups for param in group["params"]]
    for step in range(first, first + count):
        set_gradients(params, step, skip)
        optimizer.step()
    return optimizer


def snapshot(optimizer, params=None):
    """Return copies of parameters and state by name, in the order of `params` or else of the groups."""
    params = params or [param for group in optimizer.param_groups for param in group["params"]]
    found = {f"param[{i}]": whole(param).clone() for i, param in enumerate(params)}
    for i, param in enumerate(params):
        for key, value in optimizer.state.get(param, {}).items():
            found[f"state[{i}].{key}"] = copy.deepcopy(whole(value) if isinstance(value, torch.Tensor) else value)
    return found


def whole(tensor):
    """Return a tensor without its history; a `DTensor` as a whole, for which each process has to ask."""
    tensor = tensor.detach()
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def same(first, second):
    """Return whether two values of a snapshot agree in type and every bit."""
    if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        return same_bits(first, second)
    if isinstance(first, list) and isinstance(second, list):
        return len(first) == len(second) and all(map(same, first, second))
    both_nan = first != first and second != second
    return type(first) is type(second) and (first == second or both_nan)


def assert_same(first, second):
    """Assert that two snapshots, or the optimizers that they are taken of, agree in every bit."""
    first, second = (x if isinstance(x, dict) else snapshot(x) for x in (first, second))
    assert list(first) == list(second)
    for key, value in first.items():
        assert same(value, second[key]), key


def outcome(action):
    """Return the type and message of the exception that an action raises, or None and its result."""
    try:
        return None, action()
    except Exception as error:
        return type(error), str(error)


def torchrun(processes, *command, timeout, **environment):
    """Run a command of torchrun's in processes on this machine, in the repository's root; return how it ended.

    What torchrun or pytest say to the processes that they start themselves is not handed on.
    """
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "TORCHELASTIC_"))}
    run = subprocess.Popen(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes)),
            *("--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "--local-addr", "127.0.0.1"),
            *map(str, command),
        ],
        env={**inherited, "PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", **environment},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        output, _ = run.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        run.terminate()  # which torchrun hands on to its processes; killed, it would leave them behind
        output, _ = run.communicate()
    return subprocess.CompletedProcess(run.args, run.returncode, output)
