"""Running the registry, in one process and in several."""

import dataclasses

import pytest
import torch

import reimpl.optim
from reimpl.verify import cases, verify
from reimpl.verify.runner import processes_for

SOME = [case for case in cases(quick=True) if case.section in ("optim.Rprop", "optim.LBFGS", "nn.Linear", "nn.Softmax")]


def test_several_processes_find_what_one_does():
    seen = []
    alone = verify(SOME)
    shared = verify(SOME, processes=2, progress=seen.append)
    assert len(SOME) > 50
    assert [dataclasses.astuple(verdict)[1:] for verdict in shared.verdicts] == [
        dataclasses.astuple(verdict)[1:] for verdict in alone.verdicts
    ]
    assert [verdict.case for verdict in shared.verdicts] == SOME
    assert seen == [case.section for case in SOME]
    assert (alone.environment["processes"], shared.environment["processes"]) == (1, 2)


def test_a_fault_is_found_in_every_process(monkeypatch):
    rule = reimpl.optim.Rprop.rule
    monkeypatch.setattr(
        reimpl.optim.Rprop, "rule", staticmethod(lambda p, *args, **named: rule(p, *args, **named) or p.add_(1))
    )
    chosen = [case for case in SOME if case.section == "optim.Rprop"]
    assert len(verify(chosen, processes=2).failures) == len(chosen)


def test_an_exception_comes_through(monkeypatch):
    def fail(*args, **named):
        raise RuntimeError("not today")

    monkeypatch.setattr(reimpl.optim.Rprop, "rule", staticmethod(fail))
    with pytest.raises(RuntimeError, match="not today"):
        verify(SOME, processes=2)


def test_how_many_processes(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    assert [processes_for(count, "cpu") for count in (1, 999, 2500, 100_000)] == [1, 1, 2, 8]
    assert processes_for(100_000, "cuda") == 1
    monkeypatch.setattr("sys.platform", "darwin")
    assert processes_for(100_000, "cpu") == 1


def test_threads_stay_as_they_were():
    threads = torch.get_num_threads()
    verify(SOME[:20], processes=2)
    assert torch.get_num_threads() == threads
