"""The grid of claims: the five oldest optimizers' whole, of the others' a sample; `reimpl verify` judges them all."""

import random
from collections import defaultdict

import pytest
import torch

import reimpl.optim
from reimpl.verify import cases, judge
from reimpl.verify.options import name_of

CELLS = defaultdict(list)
for one in cases():
    if one.section.startswith("optim."):
        CELLS[one.optimizer, one.engine, name_of(one.dtype)].append(one)
GRID = [pytest.param(*cell, id="-".join(cell)) for cell in CELLS]
WHOLE = ("SGD", "Adagrad", "RMSprop", "Adadelta", "Adam")
SHARE = 3
"""One in so many cases of the others."""


def check(optimizer, engine, dtype, device="cpu"):
    chosen = CELLS[optimizer, engine, dtype]
    assert len(chosen) >= 5
    if optimizer not in WHOLE:
        chosen = random.Random(0).sample(chosen, max(5, len(chosen) // SHARE))
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
