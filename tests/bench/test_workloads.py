"""The workloads are those of the real networks."""

import pytest
import torch

from reimpl.bench import WORKLOADS
from reimpl.bench.workloads import parameters


@pytest.mark.parametrize(
    ("name", "tensors", "elements"),
    [
        ("resnet50", 161, 25_557_032),
        ("small", 1000, 1_000_000),
        ("large", 1, 64 * 2**20),
        ("gpt2", 148, 124_439_808),
    ],
)
def test_size(name, tensors, elements):
    workload = WORKLOADS[name]
    assert len(workload.shapes) == tensors
    assert workload.elements == elements


def test_parameters():
    first, second = parameters(((3, 2), ()), "cpu")
    assert first.shape == (3, 2)
    assert first.requires_grad
    assert second.dim() == 0
    for param in (first, second):
        assert param.dtype == torch.float32
        assert param.grad.shape == param.shape
