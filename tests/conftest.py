"""What all tests share: one thread, the same random numbers, and no GPU test without a GPU."""

import pytest
import torch

OPTIMIZERS = ("SGD", "Adagrad", "RMSprop", "Adadelta", "Adam")


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        skip = pytest.mark.skip(reason="torch.cuda.is_available() is False: no CUDA device here")
        for item in items:
            if "cuda" in item.keywords:
                item.add_marker(skip)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(params=OPTIMIZERS)
def name(request):
    """The name of an optimizer, each in turn."""
    return request.param


@pytest.fixture(params=[False, True], ids=["loop", "foreach"])
def foreach(request):
    """The `foreach` argument, each in turn."""
    return request.param
