"""The complete grid: every claim of the registry."""

import itertools

import pytest
import torch

import reimpl.optim
from conftest import OPTIMIZERS
from reimpl.verify import cases, judge
from reimpl.verify.optimizers import ENGINES
from reimpl.verify.options import DTYPES

GRID = [
    pytest.param(optimizer, engine, dtype, id=f"{optimizer}-{engine}-{dtype}")
    for optimizer, engine, dtype in itertools.product(OPTIMIZERS, ENGINES, DTYPES)
]


def check(optimizer, engine, dtype, device="cpu"):
    chosen = [
        case
        for case in cases()
        if (case.section, case.engine, case.dtype) == (f"optim.{optimizer}", engine, DTYPES[dtype])
    ]
    assert len(chosen) >= 20
    ours, theirs = getattr(reimpl.optim, optimizer), getattr(torch.optim, optimizer)
    verdicts = [judge(ours, theirs, case, device) for case in chosen]
    failed = [f"{verdict.kind}: {verdict.case.name}: {verdict.difference}" for verdict in verdicts if not verdict.holds]
    assert not failed, "\n".join([f"{len(failed)} of {len(chosen)} claims fail", *failed[:5]])


@pytest.mark.parametrize(("optimizer", "engine", "dtype"), GRID)
def test_claims(optimizer, engine, dtype):
    check(optimizer, engine, dtype)


@pytest.mark.cuda
@pytest.mark.parametrize(("optimizer", "engine", "dtype"), GRID)
def test_claims_on_cuda(optimizer, engine, dtype):
    check(optimizer, engine, dtype, "cuda")
