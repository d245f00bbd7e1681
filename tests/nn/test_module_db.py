"""PyTorch's own table of modules: each construction and each input, with our class in torch's place, bit for bit."""

import warnings

import pytest
import torch

from layers import LAYERS, assert_same, observe, pair
from reimpl.verify.layers import MISSING

pytest.importorskip("expecttest", reason="torch.testing._internal needs expecttest")
pytest.importorskip("numpy")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from torch.testing._internal.common_modules import module_db

INFOS = {info.module_cls.__name__: info for info in module_db if info.module_cls.__name__ in LAYERS}
NOT_IN_THE_TABLE = {"Sequential", "Flatten", "Dropout"}  # judged in tests of their own
DTYPES = (torch.float64, torch.float32, torch.bfloat16)


def check(name, device, dtype, training):
    ours, theirs = pair(name)
    info = INFOS[name]
    inputs = info.module_inputs_func(info, device=device, dtype=dtype, requires_grad=True, training=training)
    ran = 0
    for given in inputs:
        args, kwargs = given.constructor_input.args, dict(given.constructor_input.kwargs)
        if theirs(*args, **kwargs).state_dict():
            kwargs |= {"device": device, "dtype": dtype}
        forward = given.forward_input
        seen = [
            observe(lambda: cls(*args, **kwargs), forward.args, forward.kwargs, training)  # noqa: B023
            for cls in (ours, theirs)
        ]
        assert_same(*seen)
        ran += "error" not in seen[0]
    assert ran or (name, dtype) in MISSING


def test_every_layer_is_in_the_table():
    assert set(INFOS) == set(LAYERS) - NOT_IN_THE_TABLE


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", INFOS)
def test_every_input_gives_the_bits_of_torch(name, dtype, training):
    check(name, "cpu", dtype, training)


@pytest.mark.cuda
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", INFOS)
def test_every_input_gives_the_bits_of_torch_on_cuda(name, dtype, training):
    with torch.backends.cudnn.flags(benchmark=False, deterministic=True):
        check(name, "cuda", dtype, training)


@pytest.mark.parametrize("name", [name for name, info in INFOS.items() if info.module_error_inputs_func])
def test_every_erroneous_input_gives_the_error_of_torch(name):
    ours, theirs = pair(name)
    info = INFOS[name]
    inputs = info.module_error_inputs_func(info, device="cpu", dtype=torch.float32, requires_grad=False, training=True)
    for wrong in inputs:
        given = wrong.module_error_input
        constructor = given.constructor_input
        forward = given.forward_input
        seen = [
            observe(
                lambda: cls(*constructor.args, **constructor.kwargs),  # noqa: B023
                forward.args if forward else (),
                forward.kwargs if forward else {},
            )
            for cls in (ours, theirs)
        ]
        assert seen[1]["error"][0] is wrong.error_type
        assert_same(*seen)
