"""The instrument itself: verdicts, scenarios and the registry."""

import dataclasses
import inspect
import itertools
from collections import Counter

import pytest
import torch

import reimpl.optim
from reimpl.verify import CLOSE_FACTOR, SCENARIOS, Case, cases, judge
from reimpl.verify.judge import Run
from reimpl.verify.optimizers import DENSE, ENGINES, ENGINES_OF, NOT_COMPLEX, SCENARIOS_OF, TORCH_FAILS, options_of
from reimpl.verify.optimizers import OPTIMIZERS as REGISTERED
from reimpl.verify.options import DTYPES

ALL = [case for case in cases() if isinstance(case, Case)]


def find(**wanted):
    return next(case for case in ALL if all(getattr(case, key) == value for key, value in wanted.items()))


def case(name="Adam", scenario="shapes", engine="loop", dtype=torch.float32, **options):
    return Case(name, options, dtype, engine, SCENARIOS[scenario])


class Tilted(torch.optim.Adam):
    """torch's Adam, with one element of one state tensor moved in the third step."""

    tilt = 0.0

    @torch.no_grad()
    def step(self, closure=None):
        super().step(closure)
        param = self.param_groups[0]["params"][3]
        if self.state[param]["step"] == 3:
            self.state[param]["exp_avg"][2, 1] += self.tilt


def test_exact():
    verdict = judge(reimpl.optim.Adam, torch.optim.Adam, case())
    assert (verdict.kind, verdict.ulp, verdict.difference) == ("exact", 0, None)
    assert verdict.holds
    assert 0 < verdict.error == verdict.reference_error < 1e-6


def test_first_difference_is_found():
    class Moved(Tilted):
        tilt = 1.0

    verdict = judge(Moved, torch.optim.Adam, case())
    assert verdict.kind == "differs"
    assert not verdict.holds
    assert (verdict.difference.step, verdict.difference.tensor) == (3, "state[3].exp_avg")
    assert verdict.difference.index == (2, 1)
    assert verdict.difference.ours == pytest.approx(verdict.difference.theirs + 1)
    assert str(verdict.difference).startswith("step 3, state[3].exp_avg[2, 1]: ")


def test_close_needs_a_claim_of_close():
    class Nudged(Tilted):
        tilt = 1e-9

    verdict = judge(Nudged, torch.optim.Adam, case())
    assert verdict.kind == "close"
    assert not verdict.holds
    assert verdict.error <= CLOSE_FACTOR * verdict.reference_error
    claimed = judge(Nudged, torch.optim.Adam, dataclasses.replace(case(), claim="close"))
    assert claimed.kind == "close"
    assert claimed.holds


def test_missing_state_differs():
    class Forgetful(torch.optim.Adam):
        def step(self, closure=None):
            super().step(closure)
            for state in self.state.values():
                state.pop("max_exp_avg_sq")

    class Fresh(Forgetful):
        def _init_group(self, group, *lists):
            for state in self.state.values():
                state["max_exp_avg_sq"] = torch.zeros_like(state["exp_avg"])
            return super()._init_group(group, *lists)

    verdict = judge(Fresh, torch.optim.Adam, case(amsgrad=True))
    assert verdict.kind == "differs"
    assert verdict.difference.tensor == "state"


def test_state_of_another_dtype_differs():
    class Wide(torch.optim.SGD):
        def step(self, closure=None):
            super().step(closure)
            for state in self.state.values():
                state["momentum_buffer"] = state["momentum_buffer"].double()

        def _init_group(self, *args):
            for param, state in self.state.items():
                state["momentum_buffer"] = state["momentum_buffer"].to(param.dtype)
            return super()._init_group(*args)

    verdict = judge(Wide, torch.optim.SGD, case("SGD", momentum=0.9))
    assert verdict.kind == "differs"
    assert "float64" in verdict.difference.ours


def test_foreach_may_equal_torchs_loop():
    """torch's Adagrad rounds once more in its foreach path of low precision."""
    verdict = judge(reimpl.optim.Adagrad, torch.optim.Adagrad, case("Adagrad", engine="foreach", dtype=torch.bfloat16))
    assert (verdict.kind, verdict.reference) == ("exact", "for-loop")
    verdict = judge(reimpl.optim.Adam, torch.optim.Adam, case("Adam", engine="foreach", dtype=torch.bfloat16))
    assert (verdict.kind, verdict.reference) == ("exact", "foreach")


def test_exceptions_are_not_swallowed():
    class Broken(torch.optim.SGD):
        def step(self, closure=None):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        judge(Broken, torch.optim.SGD, case("SGD"))


def test_every_run_gets_the_same_inputs():
    for scenario in SCENARIOS.values():
        first, second = (Run(torch.optim.SGD, case("SGD", scenario.name), "cpu", "loop") for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(first.params, second.params, strict=True))
        for mine, theirs in zip(scenario.gradients(first.params), scenario.gradients(second.params), strict=True):
            assert all(
                a is b is None or torch.equal(a.to_dense(), b.to_dense()) for a, b in zip(mine, theirs, strict=True)
            )


def test_scenarios_are_what_they_say():
    def params(name):
        return Run(torch.optim.SGD, case("SGD", name), "cpu", "loop").params

    shapes = params("shapes")
    assert {(), (0, 3)} <= {tuple(param.shape) for param in shapes}
    assert any(not param.is_contiguous() for param in shapes)
    assert any(param.is_contiguous(memory_format=torch.channels_last) for param in shapes if param.dim() == 4)
    assert {param.dtype for param in params("mixed")} == {torch.float32, torch.float64, torch.bfloat16}
    missing = list(SCENARIOS["missing"].gradients(params("missing")))
    counts = [sum(row[i] is not None for row in missing) for i in range(4)]
    assert counts[3] == 0
    assert all(0 < count < len(missing) for count in counts[:3])
    assert len(set(counts[:3])) > 1
    assert SCENARIOS["drift"].steps == 1000
    sparse = next(iter(SCENARIOS["sparse"].gradients(params("sparse"))))
    assert {gradient.is_sparse for gradient in sparse} == {True, False}
    zeros = [any((g == 0).any() for g in row) for row in SCENARIOS["drift"].gradients(params("drift"))]
    assert sum(zeros) > 0.9 * len(zeros)


def test_registry_is_complete():
    assert set(REGISTERED) == {name for name in torch.optim.__all__ if name[0].isupper()} - {"Optimizer"}
    assert len(ALL) > 20_000
    assert len({case.name for case in ALL}) == len(ALL)
    found = {(case.optimizer, case.engine, case.dtype, case.scenario.name) for case in ALL}
    for optimizer in REGISTERED:
        for engine in ENGINES_OF.get(optimizer, ENGINES):
            for dtype in DTYPES.values():
                if dtype.is_complex and optimizer in NOT_COMPLEX:
                    continue
                scenarios = ("shapes", "missing") if dtype.is_complex else (*DENSE, "drift")
                for scenario in SCENARIOS_OF.get(optimizer, scenarios):
                    left_out = (optimizer, dtype) == ("LBFGS", torch.float16) or (optimizer, scenario) in TORCH_FAILS
                    assert ((optimizer, engine, dtype, scenario) in found) != left_out
    assert {scenario for _, _, _, scenario in found} == set(SCENARIOS)
    for optimizer in ("SGD", "Adagrad"):
        for engine, dtype in itertools.product(("loop", "foreach"), (torch.float64, torch.float32)):
            assert (optimizer, engine, dtype, "sparse") in found


@pytest.mark.parametrize("name", REGISTERED)
def test_every_option_is_varied(name):
    signature = set(inspect.signature(getattr(torch.optim, name).__init__).parameters)
    fixed = {"self", "params", "foreach", "fused", "capturable", "differentiable"}
    varied = {key for options in options_of(name) for key in options} | {"eps"}
    assert varied == signature - fixed | {"eps"}


def test_few_claims_are_close():
    claims = Counter(case.claim for case in ALL if case.engine != "fused")
    assert claims["close"] < 0.08 * claims.total()
    by_foreach = {case.optimizer for case in ALL if case.claim == "close" and case.engine == "foreach"}
    assert by_foreach == {"Adamax", "NAdam", "RAdam", "ASGD"}


def test_unknown_optimizer():
    with pytest.raises(ValueError, match="no options are registered for the optimizer 'Lion'; known are SGD"):
        options_of("Lion")


def test_case_names_read_like_calls():
    assert find(optimizer="SGD", dtype=torch.float32).name == "optim.SGD loop float32 shapes ()"
    named = case(lr=torch.tensor(0.5), betas=(torch.tensor(0.5), 0.25)).name
    assert named == "optim.Adam loop float32 shapes (lr=tensor(0.5), betas=(tensor(0.5), 0.25))"


def test_quick_is_a_sample():
    quick = [case for case in cases(quick=True) if isinstance(case, Case)]
    assert len(ALL) / 8 < len(quick) < len(ALL) / 6
    assert {case.optimizer for case in quick} == set(REGISTERED)
    assert {case.name for case in quick} <= {case.name for case in ALL}
