"""What `bench` measures: every variant that exists, on the same memory, beside the right floor."""

import math
import os

import pytest
import torch

from reimpl.bench import ENGINES, OPTIMIZERS, VARIANTS, Result, Variant, Workload, bench, optimizers
from reimpl.bench.workloads import parameters

TINY = Workload("tiny", "tiny", ((5, 3), (7,)))
LOOPS = [variant for variant in VARIANTS if variant.engine in ("loop", "foreach")]


def variant(name):
    return next(variant for variant in VARIANTS if variant.name == name)


def test_variants():
    assert [variant.name for variant in VARIANTS] == [
        "ours loop",
        "ours foreach",
        "ours fused",
        "torch loop",
        "torch foreach",
        "torch fused",
        "torch compile",
    ]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_which_exist(name):
    missing = [variant.name for variant in VARIANTS if not variant.exists(name)]
    assert missing == ([] if name in ("SGD", "Adam", "AdamW", "Adagrad") else ["torch fused"])


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("engine", ["loop", "foreach"])
def test_variants_take_the_same_step(name, engine):
    results = []
    for package in ("reimpl.optim", "torch.optim"):
        torch.manual_seed(0)
        params = parameters(TINY.shapes, "cpu")
        optimizer, step = Variant(package, engine).start(name, OPTIMIZERS[name], params)
        assert type(optimizer).__module__.startswith(package)
        assert optimizer.defaults["foreach"] is (engine == "foreach")
        step()
        results.append(params)
    other = name == "ASGD" and engine == "foreach"  # there torch's foreach path is other arithmetic, by two roundings
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-7 if other else 0, atol=2e-7 if other else 0)


@pytest.mark.parametrize(
    ("name", "bytes_an_element"),
    [("SGD", 20), ("Adam", 28), ("Adagrad", 20), ("RMSprop", 20), ("Adadelta", 28), ("ASGD", 20)],
)
@pytest.mark.parametrize("package", ["reimpl.optim", "torch.optim"])
def test_bytes_moved(name, bytes_an_element, package):
    optimizer, step = Variant(package, "loop").start(name, OPTIMIZERS[name], parameters(TINY.shapes, "cpu"))
    step()
    assert optimizers.bytes_moved(optimizer) == bytes_an_element * TINY.elements


def test_floor_passes_move_what_is_said(monkeypatch):
    scale, passes = optimizers.floor_passes(28 * 100, "cpu")
    assert scale == 1
    assert set(passes) == {"copy", "in place"}
    assert 2 * passes["copy"]().nbytes == 2 * passes["in place"]().nbytes == 28 * 100
    monkeypatch.setattr(optimizers, "FLOOR_BYTES", 700)
    assert optimizers.floor_passes(28 * 100, "cpu")[0] == 4


def test_result():
    result = Result(
        "SGD",
        {"momentum": 0.9},
        TINY,
        moved=100,
        times={
            "ours loop": [3.0, 1.0, 2.0],
            "ours fused": [0.5],
            "torch loop": [4.0],
            "torch foreach": [1.0],
            "torch compile": [0.1],
        },
        floor_times={"copy": [0.3, 0.4, 0.5], "in place": [0.25]},
    )
    assert result.title == "SGD(momentum=0.9)"
    assert result.best == "torch foreach", "torch.compile is left out"
    assert result.ratios == {"fused": 0.5, "loop": 0.5}
    assert result.floor == 0.25
    assert result.reached["ours fused"] == 0.5
    assert result.to_json()["bytes_per_second"] == {"copy": 250, "in place": 400}


def test_result_of_nothing():
    result = Result("Adam", {}, TINY)
    assert result.best is None
    assert result.ratios == {}
    assert math.isnan(result.floor)
    assert result.to_json()["floor_seconds"] is None


def test_every_round_is_kept():
    (result,) = bench(["Adadelta"], [TINY], rounds=4, variants=LOOPS).results
    assert set(result.times) == {"ours loop", "ours foreach", "torch loop", "torch foreach"}
    assert all(len(times) == 4 for times in [*result.times.values(), *result.floor_times.values()])
    assert result.moved == 28 * TINY.elements
    assert result.peaks["ours loop"] > 0
    assert result.absent == {}


def test_all_update_the_same_memory(monkeypatch):
    seen = []
    start = Variant.start

    def spy(self, name, options, params):
        seen.append([(param.data_ptr(), param.grad.data_ptr()) for param in params])
        return start(self, name, options, params)

    monkeypatch.setattr(Variant, "start", spy)
    bench(["SGD"], [TINY], rounds=1, variants=LOOPS)
    assert len(seen) == len(LOOPS)
    assert all(addresses == seen[0] for addresses in seen)


def test_a_refused_variant_is_left_out(monkeypatch):
    def refuse(self, closure=None):
        raise NotImplementedError("no kernel\nfor this device")

    monkeypatch.setattr(torch.optim.Adam, "step", refuse)
    (result,) = bench(["Adam"], [TINY], rounds=2, variants=LOOPS).results
    assert result.absent == dict.fromkeys(["torch loop", "torch foreach"], "no kernel for this device")
    assert set(result.times) == {"ours loop", "ours foreach"}
    assert result.best is None


def test_compile_is_skipped_on_many_tensors(monkeypatch):
    monkeypatch.setattr(optimizers, "COMPILE_LIMIT", 1)
    (result,) = bench(["SGD"], [TINY], rounds=1, variants=[variant("torch loop"), variant("torch compile")]).results
    assert "more than 1" in result.absent["torch compile"]
    assert set(result.times) == {"torch loop"}
    assert result.first_steps == {}


def test_first_steps_have_an_empty_cache_of_their_own(monkeypatch):
    monkeypatch.setitem(ENGINES, "fused", {"foreach": True})  # nothing to compile
    monkeypatch.setenv(optimizers.CACHE, "as before")
    folders = []

    def pretend(function, *arguments):
        assert function is optimizers.first_step
        assert function(*arguments) > 0
        folders.append((os.environ[optimizers.CACHE], os.listdir(os.environ[optimizers.CACHE])))
        return float(len(folders))

    monkeypatch.setattr(optimizers, "alone", pretend)
    results = bench(["SGD", "Adam"], [TINY], rounds=1, variants=[variant("ours fused")]).results
    assert [result.first_steps["ours fused"] for result in results] == [
        {"cold": 1.0, "warm": 2.0},
        {"cold": 3.0, "warm": 4.0},
    ]
    assert all(content == [] for _, content in folders)
    assert folders[0] == folders[1] != folders[2] == folders[3]
    assert os.environ[optimizers.CACHE] == "as before"


def test_alone_is_another_process():
    assert optimizers.alone(os.getpid) != os.getpid()
