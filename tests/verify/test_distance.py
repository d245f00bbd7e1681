import math

import pytest
import torch

from reimpl.verify.distance import first_difference, relative_error, same_bits, ulp_distance

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def neighbour(tensor):
    return torch.nextafter(tensor, torch.full_like(tensor, math.inf))


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_ulp(dtype):
    for value in (1.0, -1.0, 0.0, 1e-30 if dtype != torch.float16 else 1e-6):
        tensor = torch.tensor([3.0, value], dtype=dtype)
        other = tensor.clone()
        other[1] = neighbour(tensor[1])
        assert not same_bits(tensor, other)
        assert ulp_distance(tensor, other) == ulp_distance(other, tensor) == 1
        assert first_difference(tensor, other) == (1,)


@pytest.mark.parametrize("dtype", DTYPES)
def test_across_zero(dtype):
    zero = torch.zeros(1, dtype=dtype)
    up, down = neighbour(zero), -neighbour(zero)
    assert ulp_distance(up, down) == 2
    assert ulp_distance(zero, -zero) == 0
    assert not same_bits(zero, -zero)


def test_nan():
    nan, one = torch.tensor([math.nan]), torch.tensor([1.0])
    assert same_bits(nan, nan.clone())
    assert ulp_distance(nan, nan.clone()) == 0
    assert ulp_distance(nan, one) == torch.iinfo(torch.int64).max
    payload = torch.tensor([0x7FC00001], dtype=torch.int32).view(torch.float32)
    assert not same_bits(nan, payload)


def test_farthest_float64():
    big = torch.tensor([torch.finfo(torch.float64).max], dtype=torch.float64)
    assert ulp_distance(big, -big) == torch.iinfo(torch.int64).max


def test_dtype_shape_and_layout_count():
    one = torch.ones(2)
    assert not same_bits(one, one.double())
    assert not same_bits(one, torch.ones(1, 2))
    assert not same_bits(one, one.to_sparse())
    assert same_bits(one.to_sparse(), one.to_sparse())
    assert same_bits(torch.ones(2, 3).T, torch.ones(3, 2))
    assert same_bits(torch.ones(2, dtype=torch.int64), torch.ones(2, dtype=torch.int64))


def test_complex():
    one = torch.ones(2, dtype=torch.complex64)
    other = one.clone()
    other[1] += 1e-7j
    assert first_difference(one, other) == (1, 1)
    assert not same_bits(one, other)


def test_empty():
    empty = torch.ones(0, 3)
    assert same_bits(empty, empty.clone())
    assert ulp_distance(empty, empty.clone()) == 0
    assert relative_error(empty, empty.double()) == 0


def test_relative_error_is_relative_to_the_tensor():
    truth = torch.tensor([100.0, 1e-9], dtype=torch.float64)
    assert relative_error(torch.tensor([100.0, 1e-4]), truth) == pytest.approx(1e-6, rel=1e-3)
    assert relative_error(torch.zeros(2), torch.zeros(2)) == 0
    assert relative_error(torch.full((2,), 0.5), torch.zeros(2)) == 0.5


def test_relative_error_of_what_is_not_finite():
    truth = torch.tensor([1.0, math.nan])
    assert relative_error(torch.tensor([1.0, math.inf]), truth) == 0
    assert relative_error(torch.tensor([math.inf, math.nan]), truth) == math.inf
    assert relative_error(torch.tensor([math.nan]), torch.tensor([math.nan])) == 0
