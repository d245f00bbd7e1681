"""The contract: every check catches a planted fault, and torch's own optimizers and ours keep it."""

import re
from pathlib import Path

import pytest
import torch

import reimpl.optim
from reimpl.verify.contract import (
    CHECKS,
    REQUIRED_LR,
    ContractError,
    InapplicableError,
    probe,
    require_same,
    run_check,
    run_contract,
)
from reimpl.verify.trial import MATRICES, Subject, Trial


class Momentum(torch.optim.Optimizer):
    """Gradient descent with momentum, as one would write it. It keeps the contract; each fault breaks it in one way."""

    def __init__(self, params, lr=0.1, momentum=0.9, maximize=False, foreach=None):
        super().__init__(params, {"lr": lr, "momentum": momentum, "maximize": maximize, "foreach": foreach})

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None:
                    self.update(param, -param.grad if group["maximize"] else param.grad, group, self.state[param])
        return loss

    def update(self, param, grad, group, state):
        if not state:
            state["average"] = torch.zeros_like(param)
        state["average"].mul_(group["momentum"]).add_(grad)
        param.add_(state["average"], alpha=-group["lr"])


FAULTS = []


def breaks(check, message):
    """Register a class that breaks a check, with what the check then says."""

    def register(cls):
        FAULTS.append(pytest.param(cls, check, message, id=f"{check.replace(' ', '-')}-{cls.__name__}"))
        return cls

    return register


@breaks("construction", "raises TypeError: object of type 'list_iterator' has no len")
class CountsParameters(Momentum):
    def __init__(self, params, **options):
        self.count = len(params)
        super().__init__(params, **options)


@breaks("bad arguments", "an unknown argument is accepted instead of raising a TypeError")
class TakesAnything(Momentum):
    def __init__(self, params, lr=0.1, **ignored):
        super().__init__(params, lr)


@breaks("bad arguments", "an empty list of parameters raises IndexError.* instead of a ValueError")
class LooksAtTheFirst(Momentum):
    def __init__(self, params, **options):
        params = list(params)
        self.first = params[0]
        super().__init__(params, **options)


class Note:
    """What no checkpoint should hold."""


@breaks("state dict", "raises UnpicklingError")
class KeepsAnObject(Momentum):
    def update(self, param, grad, group, state):
        super().update(param, grad, group, state)
        state["note"] = Note()


@breaks("state dict", r"after loading: state\[0\]\.average\[0, 0\] is 0.0 instead of")
class LoadsZeros(Momentum):
    def load_state_dict(self, state_dict):
        super().load_state_dict(state_dict)
        for state in self.state.values():
            state["average"].zero_()


@breaks("resuming", r"resumed at step 3, at step 6: param\[0\]\[0, 0\] is \S+ instead of")
class KeepsStateToItself(Momentum):
    def __init__(self, params, **options):
        super().__init__(params, **options)
        self.averages = {}

    def update(self, param, grad, group, state):
        super().update(param, grad, group, self.averages.setdefault(id(param), {}))


@breaks("deepcopy", "raises AttributeError: 'KeepsAnAttribute' object has no attribute 'factor'")
@breaks("pickling", "raises AttributeError: 'KeepsAnAttribute' object has no attribute 'factor'")
class KeepsAnAttribute(Momentum):
    def __init__(self, params, **options):
        super().__init__(params, **options)
        self.factor = 1.0

    def update(self, param, grad, group, state):
        super().update(param, grad * self.factor, group, state)


@breaks("groups", r"param\[2\]\[\] is \S+ instead of")
class ReadsTheFirstGroup(Momentum):
    def update(self, param, grad, group, state):
        super().update(param, grad, self.param_groups[0], state)


@breaks("joining", "raises KeyError: 'average'")
class AllocatesAtOnce(Momentum):
    def __init__(self, params, **options):
        super().__init__(params, **options)
        for param in (param for group in self.param_groups for param in group["params"]):
            self.state[param]["average"] = torch.zeros_like(param)

    def update(self, param, grad, group, state):
        super().update(param, grad, group, {"average": state["average"]})


@breaks("missing gradients", r"loop: 0 steps with a gradient and 2 without: state\[2\] holds average instead of")
@breaks("no gradients", r"a step without gradients: param\[0\]\[0, 0\] is \S+ instead of")
class TakesNoneForZero(Momentum):
    def step(self, closure=None):
        for param in self.param_groups[0]["params"]:
            param.grad = torch.zeros_like(param) if param.grad is None else param.grad
        return super().step(closure)


@breaks("late gradients", r"loop: 2 steps without a gradient and 2 with one, against .*: param\[2\]\[\] is")
@breaks("no gradients", r"param_groups\[0\]\.count is 3 instead of 2")
class CountsInTheGroup(Momentum):
    def step(self, closure=None):
        for group in self.param_groups:
            group["count"] = group.get("count", 0) + 1
        return super().step(closure)

    def update(self, param, grad, group, state):
        super().update(param, grad / (1 - 0.9 ** group["count"]), group, state)


@breaks("zero grad", r"zero_grad\(\): the gradient of param\[0\] is still there")
class OnlyZeroes(Momentum):
    def zero_grad(self, set_to_none=True):
        super().zero_grad(set_to_none=False)


@breaks("zero grad", r"zero_grad\(set_to_none=False\): the gradient of param\[0\] is None")
class OnlyTakesAway(Momentum):
    def zero_grad(self, set_to_none=True):
        super().zero_grad()


@breaks("closure", "calls the closure with gradients disabled")
class ForgetsEnableGrad(Momentum):
    @torch.no_grad()
    def step(self, closure=None):
        loss = None if closure is None else closure()
        super().step()
        return loss


@breaks("closure", "returns None instead of the closure's loss")
class ForgetsTheLoss(Momentum):
    def step(self, closure=None):
        super().step(closure)


@breaks("closure", "step.closure., against the same step without: param|there")
class AsksTooLate(Momentum):
    def step(self, closure=None):
        super().step()
        return None if closure is None else closure()


@breaks("gradients", r"loop, step 1: the gradient of param\[0\]\[0, 0\] is \S+ instead of")
class DecaysTheGradient(Momentum):
    def update(self, param, grad, group, state):
        super().update(param, param.grad.add_(param, alpha=0.1), group, state)


@breaks("gradients", "was written to, though its values are the same")
class NegatesTwice(Momentum):
    def update(self, param, grad, group, state):
        param.grad.neg_().neg_()
        super().update(param, grad, group, state)


@breaks("gradients", r"the gradient of param\[0\] is another object")
class ReplacesTheGradient(Momentum):
    def update(self, param, grad, group, state):
        param.grad = param.grad.clone()
        super().update(param, grad, group, state)


@breaks("memory", r"loop: (state|the gradient of param)\S+ shares memory with (state|the gradient)")
class KeepsTheGradient(Momentum):
    def update(self, param, grad, group, state):
        super().update(param, grad, group, state)
        state["last"] = param.grad


@breaks("memory", r"loop: param\[0\] has moved to other memory")
class MovesTheParameter(Momentum):
    def update(self, param, grad, group, state):
        super().update(param, grad, group, state)
        param.data = param.data.clone()


@breaks("hooks", "the state_dict pre-hook is called 2 times instead of once")
class SavesTwice(Momentum):
    def state_dict(self):
        super().state_dict()
        return super().state_dict()


@breaks("learning rate", r"lr 0.05 set in the group, against the constructor's: param\[0\]\[0, 0\] is")
class RemembersTheLearningRate(Momentum):
    def __init__(self, params, lr=0.1, **options):
        super().__init__(params, lr, **options)
        self.lr = lr

    def update(self, param, grad, group, state):
        super().update(param, grad, group | {"lr": self.lr}, state)


@breaks("schedulers", "raises AttributeError: 'function' object has no attribute '__func__'")
class StepIsNoMethod(Momentum):
    def __init__(self, params, **options):
        super().__init__(params, **options)
        step = self.step
        self.step = lambda closure=None: step(closure)


@breaks("schedulers", r"StepLR, against the same options set by hand: param\[0\]")
class MindsTheScheduler(Momentum):
    def update(self, param, grad, group, state):
        super().update(param, grad * (0.5 if "initial_lr" in group else 1.0), group, state)


@breaks("scaler", r"loop: scaled by 256: param\[0\]\[0, 0\] is")
class ForgetsToUnscale(Momentum):
    _step_supports_amp_scaling = True


@breaks("determinism", r"the second of two equal runs: param\[0\]\[0, 0\] is")
class SharesAmongAll(Momentum):
    steps = []

    def update(self, param, grad, group, state):
        self.steps.append(None)
        super().update(param, grad * len(self.steps), group, state)


@breaks("maximize", r"loop: maximize, against the gradient turned: param\[0\]\[0, 0\] is")
class NeverClimbs(Momentum):
    def update(self, param, grad, group, state):
        super().update(param, param.grad, group, state)


@breaks("engines", r"foreach: mean error \S+ against a float64 run, loop \S+; farthest apart is")
class RoundsInForeach(Momentum):
    def update(self, param, grad, group, state):
        super().update(param, grad * (1 + 1e-5) if group["foreach"] else grad, group, state)


@breaks("float64", r"state\[0\].average is float32; load_state_dict will make it float64")
@breaks("bfloat16", r"state\[0\].average is float32; load_state_dict will make it bfloat16")
class KeepsFloat32(Momentum):
    def update(self, param, grad, group, state):
        if not state:
            state["average"] = torch.zeros(param.shape)
        super().update(param, grad, group, state)


@breaks("float16", r"param\[0\] has values that are not finite")
class DividesByTooLittle(Momentum):
    def update(self, param, grad, group, state):
        super().update(param, grad / (grad.abs() * 1e-8) * 1e-8, group, state)


@breaks("complex parameters", r"param\[0\] is \S+ from the update of its pairs of real numbers")
class TakesTheSign(Momentum):
    def update(self, param, grad, group, state):
        super().update(param, grad.sgn(), group, state)


@breaks("replaced data", r"loop: 2 steps after p.data was replaced: param\[0\]\[0, 0\] is")
class RemembersTheMemory(Momentum):
    def update(self, param, grad, group, state):
        where = self.__dict__.setdefault("where", {}).setdefault(param, param.data)
        super().update(where, grad, group, state)


@breaks("graph", r"loop: autograd follows state\[0\].before")
class KeepsAGraph(Momentum):
    def update(self, param, grad, group, state):
        with torch.enable_grad():
            before = param * 2
        super().update(param, grad, group, state)
        state["before"] = before


def test_the_sound_optimizer_keeps_the_contract():
    assert {outcome.kind for outcome in run_contract(Momentum)} == {"holds"}


@pytest.mark.parametrize(("optimizer", "name", "message"), FAULTS)
def test_check_catches_a_planted_fault(optimizer, name, message):
    outcome = run_check(name, probe(optimizer))
    assert outcome.kind == "fails"
    assert re.search(message, outcome.found), outcome.found


def test_every_check_has_a_planted_fault():
    assert {fault.values[1] for fault in FAULTS} == set(CHECKS)


def test_every_check_says_what_it_requires():
    assert all(function.__doc__ and function.__doc__.endswith(".") for function in CHECKS.values())


RUNS = [
    ("SGD", {"momentum": 0.9, "dampening": 0.1, "weight_decay": 0.1}),
    ("SGD", {"momentum": 0.9, "nesterov": True}),
    ("Adagrad", {"lr_decay": 0.1, "initial_accumulator_value": 0.1}),
    ("RMSprop", {"momentum": 0.9, "centered": True, "weight_decay": 0.1}),
    ("Adadelta", {"weight_decay": 0.1}),
    ("Adam", {"amsgrad": True, "weight_decay": 0.1}),
    ("AdamW", {"amsgrad": True}),
    ("Adamax", {"weight_decay": 0.1}),
    ("NAdam", {"weight_decay": 0.1}),
    ("RAdam", {"betas": (0.9, 0.9), "weight_decay": 0.1}),  # rectified from the sixth step on, as with the defaults
    ("Rprop", {}),
    ("ASGD", {"t0": 2, "weight_decay": 0.1}),
    ("SparseAdam", {}),
    ("LBFGS", {}),
    ("LBFGS", {"line_search_fn": "strong_wolfe"}),
    ("Adafactor", {"weight_decay": 0.1}),
    ("Muon", {}),
]

ONE_VECTOR = "all parameters are one vector to LBFGS, and its directions are of all gradients so far"
FUSED_SGD = "a defect: the fused kernel takes a list of momentum buffers that are all there, or all not yet"
FINDINGS = {
    ("LBFGS", "missing gradients"): f"by design: {ONE_VECTOR}",
    ("LBFGS", "deepcopy"): "a defect: `_params` is set by the constructor, and torch's `__getstate__` leaves it out",
    ("LBFGS", "pickling"): "a defect: the same",
    ("SGD", "late gradients"): FUSED_SGD,
    ("SGD nesterov", "late gradients"): FUSED_SGD,
    ("LBFGS", "late gradients"): f"by design: {ONE_VECTOR}",
    (
        "SGD nesterov",
        "gradients",
    ): "a defect of the foreach path: it makes the update in `p.grad` (sgd.py, `_multi_tensor_sgd`)",
}
"""What the contract finds in torch's optimizers, each looked up in torch's source."""
if torch.__version__ < "2.13":
    FINDINGS["Adagrad", "joining"] = "a defect, mended in 2.13: the constructor alone makes the state"


def failing(optimizer, options):
    """Return the checks that fail, with what they found."""
    return {o.check: o.found for o in run_contract(optimizer, options) if o.kind == "fails"}


@pytest.mark.parametrize(("name", "options"), RUNS, ids=lambda value: str(value) if value else "")
def test_torch_keeps_the_contract_but_for_known_findings(name, options):
    variant = f"{name} nesterov" if options.get("nesterov") else name
    found = failing(getattr(torch.optim, name), options)
    assert set(found) == {check for subject, check in FINDINGS if subject == variant}, found


OURS = [(name, options) for name, options in RUNS if hasattr(reimpl.optim, name)]


@pytest.mark.parametrize(("name", "options"), OURS, ids=lambda value: str(value) if value else "")
def test_ours_keep_the_contract(name, options):
    """Fused included, where torch has no such argument."""
    found = failing(getattr(reimpl.optim, name), options)
    assert set(found) == ({"missing gradients", "late gradients"} if name == "LBFGS" else set()), found


def test_what_a_class_wants_is_found_out():
    assert probe(torch.optim.SGD).shapes[-1] == ()
    assert probe(torch.optim.Muon).shapes == MATRICES
    assert probe(torch.optim.SparseAdam).sparse
    assert probe(torch.optim.LBFGS).needs_closure
    assert "refused" not in probe(torch.optim.SGD).manner
    assert any("SparseAdam does not support dense gradients" in text for text in probe(torch.optim.SparseAdam).refusals)


def test_engines_are_those_of_the_signature():
    assert list(Subject(torch.optim.Adam).paths) == ["loop", "foreach", "fused"]
    assert list(Subject(torch.optim.RMSprop).paths) == ["loop", "foreach"]
    assert Subject(torch.optim.Muon).paths == {"loop": {}}
    assert Subject(KeepsAnAttribute).takes("maximize"), "passed on as **options"
    assert not Subject(torch.optim.LBFGS).takes("maximize")


def test_required_learning_rate():
    class NoDefault(Momentum):
        def __init__(self, params, lr):
            super().__init__(params, lr)

    assert probe(NoDefault).options == {"lr": REQUIRED_LR}
    assert probe(NoDefault, {"lr": 0.5}).options == {"lr": 0.5}


def test_a_tensor_as_learning_rate_is_nobodys_but_the_optimizers():
    lr = torch.tensor(0.1)
    assert failing(torch.optim.RMSprop, {"lr": lr}) == {}
    assert lr == torch.tensor(0.1), "no scheduler has reached it"


def test_a_training_mode_is_entered():
    class HasModes(Momentum):
        training = False

        def train(self):
            self.training = True

        def step(self, closure=None):
            assert self.training
            return super().step(closure)

    assert Trial(probe(HasModes)).optimizer.training


def test_a_class_that_never_steps():
    class Still(Momentum):
        def update(self, param, grad, group, state):
            pass

    with pytest.raises(ContractError, match=r"Still cannot be tried.*8 steps change no parameter"):
        probe(Still)


def test_skipped_is_not_passed():
    outcomes = {outcome.check: outcome for outcome in run_contract(torch.optim.LBFGS)}
    assert outcomes["scaler"].kind == "skipped"
    assert outcomes["scaler"].found == "a GradScaler takes no closure"
    assert outcomes["groups"].found.startswith("several groups are refused: LBFGS doesn't support")
    assert all(outcome.found for outcome in outcomes.values() if outcome.kind == "skipped")

    class Local(Momentum):
        pass

    with pytest.raises(InapplicableError, match="cannot be imported by its name"):
        CHECKS["pickling"](probe(Local))


def test_differences_are_named():
    with pytest.raises(ContractError, match=r"^then: a\.b\[1\]\[0\] is 2\.0 instead of 1\.0$"):
        require_same({"a": {"b": [1, torch.tensor([2.0])]}}, {"a": {"b": [1, torch.tensor([1.0])]}}, "then")
    with pytest.raises(ContractError, match=r"^then: a is float64 \[1\] instead of float32 \[1\]$"):
        require_same({"a": torch.ones(1).double()}, {"a": torch.ones(1)}, "then")
    require_same({"a": [float("nan"), None]}, {"a": [float("nan"), None]}, "then")


def test_the_documentation_lists_every_check():
    page = (Path(__file__).parents[2] / "docs" / "write.md").read_text(encoding="utf-8")
    section = page.partition("## The contract")[2].partition("## Against")[0]
    listed = re.findall(r"^\| ([\w ]+) \| (.*) \|$", section, re.M)
    assert dict(listed[1:]) == {name: function.__doc__ for name, function in CHECKS.items()}
