"""What all tests share: one thread, the same random numbers, and no GPU test without a GPU."""

import sys

import pytest
import torch

OPTIMIZERS = (
    "SGD",
    "Adagrad",
    "RMSprop",
    "Adadelta",
    "Adam",
    "AdamW",
    "Adamax",
    "NAdam",
    "RAdam",
    "Rprop",
    "ASGD",
)
"""Those whose rule is elementwise."""

OTHER_FOREACH = ("NAdam", "RAdam", "ASGD")
"""Whose foreach paths in torch are other arithmetic than the for-loops, which both engines here follow."""


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        skip = pytest.mark.skip(reason="torch.cuda.is_available() is False: no CUDA device here")
        for item in items:
            if "cuda" in item.keywords:
                item.add_marker(skip)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture
def torchs_loop(monkeypatch):
    """Let torch's NAdam, RAdam and ASGD loop, whatever `foreach` is."""
    for name in OTHER_FOREACH:
        module, lower = sys.modules[f"torch.optim.{name.lower()}"], name.lower()
        monkeypatch.setattr(module, f"_multi_tensor_{lower}", getattr(module, f"_single_tensor_{lower}"))


@pytest.fixture(params=OPTIMIZERS)
def name(request):
    """The name of an optimizer, each in turn."""
    return request.param


@pytest.fixture(params=[False, True], ids=["loop", "foreach"])
def foreach(request):
    """The `foreach` argument, each in turn."""
    return request.param
