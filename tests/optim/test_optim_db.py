"""PyTorch's own table of optimizers: each configuration and each erroneous input, with our class in torch's place."""

import copy
import re
import warnings
from functools import partial

import pytest
import torch

from conftest import OPTIMIZERS
from helpers import assert_same, outcome, pair, snapshot

pytest.importorskip("expecttest", reason="torch.testing._internal needs expecttest")
pytest.importorskip("numpy")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from torch.testing._internal.common_optimizers import OptimizerErrorEnum, optim_db

INFOS = {info.optim_cls.__name__: info for info in optim_db if info.optim_cls.__name__ in OPTIMIZERS}
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def run(cls, options, foreach, dtype, device):
    generator = torch.Generator().manual_seed(0)
    params = [
        torch.randn(shape, generator=generator).to(device, dtype).requires_grad_() for shape in ((9, 4), (33,), ())
    ]
    optimizer = cls(params, **copy.deepcopy(options), foreach=foreach)
    for _ in range(6):
        for param in params:
            param.grad = torch.randn(param.shape, generator=generator).to(device, dtype)
        optimizer.step()
    return snapshot(optimizer)


def check(name, dtype, foreach, device):
    ours, theirs = pair(name)
    checked = 0
    for configuration in INFOS[name].optim_inputs_func(device=device, dtype=dtype):
        options = configuration.kwargs
        if options.get("capturable"):
            continue  # judged by its error, in test_graph.py
        result = run(ours, options, foreach, dtype, device)
        try:
            assert_same(result, run(theirs, options, foreach, dtype, device))
        except AssertionError:
            assert foreach, configuration.desc
            assert_same(result, run(theirs, options, False, dtype, device))
        checked += 1
    assert checked >= 5


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_configurations(name, dtype, foreach):
    check(name, dtype, foreach, "cpu")


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_configurations_on_cuda(name, dtype, foreach):
    check(name, dtype, foreach, "cuda")


def test_erroneous_inputs(name):
    ours, theirs = pair(name)
    for wrong in INFOS[name].optim_error_inputs_func(device="cpu", dtype=torch.float32):
        assert wrong.error_on is OptimizerErrorEnum.CONSTRUCTION_ERROR
        given = wrong.optimizer_error_input
        params = given.params if given.params is not None else [torch.randn(1, 1, requires_grad=True)]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found, expected = (outcome(partial(cls, copy.deepcopy(params), **given.kwargs)) for cls in (ours, theirs))
        assert found == expected
        assert found[0] is wrong.error_type
        assert re.search(wrong.error_regex, found[1])
