"""Lion learns, resumes, and keeps the contract of an optimizer."""

import importlib
from pathlib import Path

import pytest

from reimpl.verify import run_contract

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def lion():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLES)
        yield importlib.import_module("lion")


def test_lion_learns_alike_in_every_engine(lion):
    losses = [lion.train(**engine)[0] for engine in ({"foreach": False}, {"foreach": True}, {"fused": True})]
    assert losses[0] == losses[1] == pytest.approx(losses[2], rel=1e-4)  # the fused kernel rounds elsewhere
    assert losses[0] < lion.train(steps=1)[0] / 4


def test_lion_resumes(lion):
    _, checkpoint = lion.train(steps=20)
    assert lion.train(checkpoint, steps=20)[0] < lion.train(steps=20)[0]


def test_lion_keeps_the_contract(lion):
    assert {outcome.check: outcome.found for outcome in run_contract(lion.Lion) if outcome.kind != "holds"} == {}
