"""The clock: who has a turn when, and what is counted. Never how long it took."""

import pytest
import torch

from reimpl.bench import timing
from reimpl.bench.timing import alternate, compare, peak_memory, seconds


def test_rounds_alternate(monkeypatch):
    seen = []

    def pretend(step, repeats, device):
        seen.append((step, repeats))
        return {"quick": 0.001, "slow": 0.5}[step]

    monkeypatch.setattr(timing, "seconds", pretend)
    assert alternate(["quick", "slow"], 3, "cpu") == [[0.001] * 3, [0.5] * 3]
    assert seen[-6:] == [("slow", 1), ("quick", 20), ("quick", 20), ("slow", 1), ("slow", 1), ("quick", 20)]


def test_compare_gives_medians(monkeypatch):
    times = iter([9.0, 9.0, 30.0, 1.0, 2.0])  # two of them before the first round
    monkeypatch.setattr(timing, "seconds", lambda *_: next(times))
    assert compare(["one"], 3, "cpu") == [2.0]


def test_seconds_repeats():
    calls = []
    assert seconds(lambda: calls.append(1), 7, "cpu") > 0
    assert len(calls) == 7


@pytest.mark.cuda
def test_seconds_by_events():
    data = torch.zeros(2**26, device="cuda")
    assert seconds(data.neg_, 10, "cuda") > data.nbytes / 20e12, "the work was waited for"


def test_peak_memory():
    data = torch.zeros(2**16)
    assert peak_memory(data.neg_, "cpu") == 0
    assert peak_memory(lambda: data.neg().neg(), "cpu") == 2 * data.nbytes
