"""Optimizers made of a rule alone: what its signature gives them, and that every engine runs them alike."""

import copy
import inspect
import pickle
import warnings

import pytest
import torch

import reimpl.optim
from helpers import assert_same, outcome, parameters, set_gradients, snapshot, take_steps
from reimpl.optim import RuleOptimizer
from reimpl.optim.engines.kernel import KERNELS
from reimpl.verify import SCENARIOS, Case, judge


class Lion(RuleOptimizer):
    @staticmethod
    def rule(param, grad, exp_avg, *, lr=1e-4, betas=(0.9, 0.99), weight_decay=0.0):
        beta1, beta2 = betas
        param.mul_(1 - lr * weight_decay)
        param.sub_(exp_avg.lerp(grad, 1 - beta1).sign(), alpha=lr)
        exp_avg.lerp_(grad, 1 - beta2)


class OwnAdam(RuleOptimizer):
    @staticmethod
    def rule(param, grad, exp_avg, exp_avg_sq, *, step, lr=1e-3, betas=(0.9, 0.999), eps=1e-8):
        beta1, beta2 = betas
        exp_avg.lerp_(grad, 1 - beta1)
        exp_avg_sq.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        denominator = exp_avg_sq.sqrt().div_((1 - beta2**step) ** 0.5).add_(eps)
        param.addcdiv_(exp_avg, denominator, value=-(lr / (1 - beta1**step)))


class ByFunctions(RuleOptimizer):
    """A rule that calls functions of torch, operators and comparisons."""

    @staticmethod
    def rule(param, grad, mean, *, lr=0.1, weight=0.3, floor=0.05):
        mean.copy_(torch.lerp(mean, grad, weight))
        size = torch.sqrt(torch.abs(mean)) * (2 - weight)
        size = torch.where(mean > 0, size, -torch.clamp(size, min=floor))
        param -= (torch.maximum(size, grad) + grad / 2) * lr


class Normalised(RuleOptimizer):
    """A rule for whole tensors, which no list and no kernel can run."""

    elementwise = False

    @staticmethod
    def rule(param, grad, *, lr=0.1):
        if grad.norm().item() > 0 and grad.dim() < 3:
            param.sub_(grad / grad.norm(), alpha=lr)


class WithMethods(RuleOptimizer):
    """A rule with a keyword that is computed, and a state that does not start at zero."""

    @staticmethod
    def rule(param, grad, scale, *, lr=0.1, power=0.5, decayed):
        scale.add_(grad.abs())
        param.addcdiv_(grad, scale, value=-decayed)

    def new_state(self, group):
        return {"scale": torch.ones_like}

    def coefficients(self, group, step, param):
        return {**super().coefficients(group, step, param), "decayed": group["lr"] / step ** group["power"]}

    counts_steps = True


ALL = (Lion, OwnAdam, ByFunctions, WithMethods)
each = pytest.mark.parametrize("optimizer", ALL, ids=lambda cls: cls.__name__)


def end(optimizer, dtype=torch.float32, steps=6, **options):
    return snapshot(take_steps(optimizer(parameters(dtype), **options), steps))


def test_lion_is_its_formula():
    lr, beta1, beta2, decay = 0.01, 0.8, 0.95, 0.1
    ours = end(Lion, torch.float64, lr=lr, betas=(beta1, beta2), weight_decay=decay)
    params = parameters(torch.float64)
    momentum = [torch.zeros_like(param) for param in params]
    for step in range(6):
        set_gradients(params, step)
        for i, param in enumerate(params):
            update = torch.sign(beta1 * momentum[i] + (1 - beta1) * param.grad)
            param.data = param.data - lr * (update + decay * param.data)
            momentum[i] = beta2 * momentum[i] + (1 - beta2) * param.grad
    for i, param in enumerate(params):  # the order of a few operations: at most some roundings a step
        torch.testing.assert_close(ours[f"param[{i}]"], param.data, rtol=1e-14, atol=1e-14)
        torch.testing.assert_close(ours[f"state[{i}].exp_avg"], momentum[i], rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("scenario", ["shapes", "missing", "groups", "mixed"])
@pytest.mark.parametrize("engine", ["loop", "foreach"])
def test_adam_as_a_rule_is_torch_s(scenario, engine):
    verdict = judge(OwnAdam, torch.optim.Adam, Case("Adam", {}, torch.float32, engine, SCENARIOS[scenario]))
    if scenario == "groups":  # two of them name `weight_decay`, which this Adam has not
        assert verdict.difference.tensor.startswith("param[1]")
    else:
        assert verdict.kind == "exact", verdict.difference


@each
def test_engines_agree(optimizer):
    loop = end(optimizer, foreach=False)
    assert_same(loop, end(optimizer, foreach=True))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no engine takes over
        fused = end(optimizer, fused=True)
    for name, tensor in loop.items():  # one kernel rounds where it stores
        torch.testing.assert_close(fused[name], tensor, rtol=1e-5, atol=1e-6, msg=name)


@each
def test_recorded_by_autograd(optimizer):
    def after(lr):
        params = [param.detach().clone().requires_grad_() for param in parameters(torch.float64)]
        leaves = [param.clone() for param in params]
        optimizer_ = optimizer(leaves, lr=lr, differentiable=True)
        for step in range(2):
            set_gradients(leaves, step)
            optimizer_.step()
        return sum(leaf.square().sum() for leaf in leaves)

    lr = torch.tensor(0.05, dtype=torch.float64, requires_grad=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # `.grad` of a tensor that is not a leaf
        assert torch.autograd.gradcheck(after, (lr,))


@each
def test_maximize_and_complex(optimizer):
    params, negated = parameters(), parameters()
    climbs, descends = optimizer(params, maximize=True), optimizer(negated)
    for step in range(3):
        set_gradients(params, step)
        for param, other in zip(params, negated, strict=True):
            other.grad = -param.grad
        climbs.step()
        descends.step()
    assert_same(climbs, descends)

    numbers = [torch.view_as_complex(parameters(shapes=((4, 2),))[0].detach().clone()).requires_grad_()]
    pairs = [torch.view_as_real(numbers[0].detach().clone()).requires_grad_()]
    gradient = torch.randn(4, 2)
    for group, grad in ((numbers, torch.view_as_complex(gradient)), (pairs, gradient)):
        group[0].grad = grad
        optimizer(group).step()
    assert torch.equal(torch.view_as_real(numbers[0].detach()), pairs[0].detach())


def test_signature_is_that_of_a_constructor():
    assert str(inspect.signature(Lion)) == (
        "(params, lr=0.0001, betas=(0.9, 0.99), weight_decay=0.0, *, foreach=None, maximize=False, capturable=False,"
        " differentiable=False, fused=None)"
    )
    assert list(inspect.signature(Normalised).parameters) == ["params", "lr", "maximize", "differentiable"]
    assert Lion(parameters(), 0.5).defaults["lr"] == 0.5
    assert list(Lion(parameters()).state_dict()["param_groups"][0])[:3] == ["lr", "betas", "weight_decay"]


def test_steps_are_counted_where_the_rule_asks():
    assert OwnAdam.counts_steps
    assert not Lion.counts_steps
    assert [key for key in end(OwnAdam) if "step" in key] == ["state[0].step", "state[1].step", "state[2].step"]
    assert not [key for key in end(Lion) if "step" in key]


def test_a_rule_for_whole_tensors_runs_on_each():
    params = parameters()
    optimizer = take_steps(Normalised(params), 1)
    before = parameters()
    for old, new in zip(before, params, strict=True):
        torch.testing.assert_close((old - new).norm(), torch.tensor(0.1))  # the norm of the step is lr
    assert not optimizer.state


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"lr": -1.0}, (ValueError, "Invalid learning rate: -1.0")),
        ({"lr": torch.ones(2)}, (ValueError, "Tensor lr must be 1-element")),
        ({"rl": 1.0}, (TypeError, "Lion.__init__(): got an unexpected keyword argument 'rl'")),
        ({"fused": True, "foreach": True}, (RuntimeError, "`fused` and `foreach` cannot be `True` together.")),
        ({"fused": True, "differentiable": True}, (RuntimeError, "`fused` does not support `differentiable`")),
    ],
)
def test_bad_options(wrong, message):
    assert outcome(lambda: Lion(parameters(), **wrong)) == message


def test_bad_rules():
    def define(rule, **members):
        return outcome(lambda: type("Own", (RuleOptimizer,), {"rule": staticmethod(rule), **members}))

    assert define(lambda param, *, lr=1: None) == (
        TypeError,
        "Own.rule(param, *, lr=1) is not a rule: rule(param, grad, *state, *, **options)",
    )
    assert define(lambda param, grad, *state, lr=1: None)[0] is TypeError
    assert define(lambda param, grad, *, maximize=False: None) == (
        TypeError,
        "Own.rule takes maximize, which every optimizer has and no rule sees",
    )
    _, own = define(lambda param, grad, lr: None)
    assert outcome(lambda: own(parameters(), lr=1)) == (
        TypeError,
        "Own has no options: its rule has no keywords, and it has no constructor",
    )


@pytest.mark.parametrize("question", ["shape", "grad_fn"])
def test_what_each_tensor_has_its_own_is_refused_on_lists(question):
    class Asks(RuleOptimizer):
        @staticmethod
        def rule(param, grad, *, lr=0.1):
            getattr(grad, question)
            param.sub_(grad, alpha=lr)

    take_steps(Asks(parameters()), 1)
    optimizer = Asks(parameters(), foreach=True)
    with pytest.raises(AttributeError, match=f"the rule asks for `{question}`, which each tensor has its own"):
        take_steps(optimizer, 1)


def test_deciding_by_a_value_is_refused_on_lists():
    class Decides(RuleOptimizer):
        @staticmethod
        def rule(param, grad, *, lr=0.1):
            if grad.sum() > 0:
                param.sub_(grad, alpha=lr)

    with pytest.raises(TypeError, match="decides by a tensor's value"):
        take_steps(Decides(parameters(), foreach=True), 1)


@pytest.mark.parametrize("sign", [1, -1])
def test_deciding_by_a_value_is_recorded_as_the_loop_decides(sign):
    class Decides(RuleOptimizer):
        @staticmethod
        def rule(param, grad, *, lr=0.1):
            param.sub_(grad if grad.sum() > 0 else grad * float(grad.sum()), alpha=lr)

    ends = []
    for differentiable in (False, True):
        param = torch.ones(3)
        param.grad = sign * torch.tensor([1.0, 2.0, -0.5])
        Decides([param], differentiable=differentiable).step()
        ends.append(param)
    assert torch.equal(*ends)


def test_comparisons_are_elementwise_in_every_engine():
    class Skips(RuleOptimizer):
        @staticmethod
        def rule(param, grad, *, lr=0.1):
            param.sub_(torch.where((grad == 0) | (grad != grad), 1.0, grad), alpha=lr)

    ends = []
    for engine in ({"foreach": False}, {"foreach": True}, {"fused": True}, {"differentiable": True}):
        param = torch.ones(3)
        param.grad = torch.tensor([1.0, 0.0, float("nan")])
        Skips([param], **engine).step()
        ends.append(param)
    assert all(torch.equal(end, torch.full((3,), 0.9)) for end in ends)


def test_subclass_with_another_rule_has_its_options():
    class Cautious(Lion):
        @staticmethod
        def rule(param, grad, exp_avg, *, lr=1e-4, beta=0.9):
            exp_avg.lerp_(grad, 1 - beta)
            param.sub_(exp_avg.sign() * (exp_avg * grad > 0), alpha=lr)

    assert list(inspect.signature(Cautious).parameters)[:3] == ["params", "lr", "beta"]
    assert_same(end(Cautious, foreach=False), end(Cautious, foreach=True))

    class Renamed(Lion):
        pass

    assert_same(end(Renamed), end(Lion))


def test_another_value_of_an_option_needs_no_new_kernel():
    optimizer = take_steps(Lion(parameters(), fused=True), 1)
    known = {spec: list(kernels) for spec, kernels in KERNELS.items() if spec.rule is Lion.rule}
    optimizer.param_groups[0].update(lr=0.5, betas=(0.3, 0.7), weight_decay=0.2)
    take_steps(optimizer, 1, first=1)
    assert {spec: list(kernels) for spec, kernels in KERNELS.items() if spec.rule is Lion.rule} == known


@each
def test_copies_go_on_alike(optimizer):
    original = take_steps(optimizer(parameters()), 2)
    copies = [copy.deepcopy(original), pickle.loads(pickle.dumps(original))]
    for one in (original, *copies):
        take_steps(one, 2, first=2)
    assert_same(original, copies[0])
    assert_same(original, copies[1])


def test_scaled_gradients():
    """The fused engine divides by the scale itself, and leaves out a step that has overflowed."""
    ends = []
    for scale in (1.0, 1024.0):
        optimizer = Lion(parameters(), lr=0.01, fused=True)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        params = optimizer.param_groups[0]["params"]
        for step in range(3):
            set_gradients(params, step)
            for param in params:
                param.grad = scaler.scale(param.grad)
            if step == 1:
                params[0].grad[0] = float("inf")
            scaler.step(optimizer)
            scaler.update(scale)
        ends.append(snapshot(optimizer))
    assert_same(*ends)


def test_whole_module_replaces_torch_s():
    for name in torch.optim.__all__:
        assert hasattr(reimpl.optim, name)
        if name[0].isupper() and name != "Optimizer":
            assert getattr(reimpl.optim, name) is not getattr(torch.optim, name)
    assert outcome(lambda: reimpl.optim.Lion) == (AttributeError, "module 'reimpl.optim' has no attribute 'Lion'")
