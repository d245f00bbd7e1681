"""What every optimizer has to do, whatever its rule: the contract, check by check.

`probe` finds out how a class wants to be treated, `run_contract` runs every check of `CHECKS` on it.
"""

from __future__ import annotations

import copy
import itertools
import pickle
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR, StepLR

from reimpl.verify.distance import first_difference, mean_error, real_view, relative_error, same_bits
from reimpl.verify.judge import CLOSE_FACTOR, arguments_of
from reimpl.verify.options import name_of
from reimpl.verify.trial import EVERY_SHAPE, MATRICES, OptimizerClass, PairTrial, Subject, Trial, tensors_in

REQUIRED_LR = 0.01
"""The learning rate for a class that has no default."""

PROBE_STEPS = 8
"""How many steps may pass until one changes a parameter: a rectified rule waits for five."""

SCALE = 2.0**8
"""The scaler's factor: a power of two, so that scaling and unscaling round nothing."""

COMPLEX_ERROR = 2.0**-40
"""How far a complex128 run may be from that of the pairs of reals: far above the few roundings of a run in float64
(torch's optimizers and ours are at most 6e-17 apart), far below the distance of another formula."""


class ContractError(AssertionError):
    """What a check requires does not hold."""


class InapplicableError(Exception):
    """A check has nothing to look at in this class."""


def require(condition: bool, message: str) -> None:
    """Raise a `ContractError` unless the condition holds."""
    if not condition:
        raise ContractError(message)


def require_same(found: Any, expected: Any, when: str, name: str = "") -> None:
    """Raise a `ContractError` that names the first difference between two snapshots."""
    if isinstance(expected, dict) and isinstance(found, dict):
        require(
            list(found) == list(expected),
            f"{when}: {name or 'there'} holds {', '.join(map(str, found))} instead of {', '.join(map(str, expected))}",
        )
        for key, value in expected.items():
            require_same(found[key], value, when, f"{name}.{key}" if name else str(key))
    elif isinstance(expected, list | tuple) and isinstance(found, list | tuple):
        require(len(found) == len(expected), f"{when}: {name} has {len(found)} entries instead of {len(expected)}")
        for i, (mine, theirs) in enumerate(zip(found, expected, strict=True)):
            require_same(mine, theirs, when, f"{name}[{i}]")
    elif isinstance(expected, Tensor) and isinstance(found, Tensor):
        kinds = [f"{name_of(tensor.dtype)} {list(tensor.shape)}" for tensor in (found, expected)]
        require(kinds[0] == kinds[1], f"{when}: {name} is {kinds[0]} instead of {kinds[1]}")
        if not same_bits(found, expected):
            index = first_difference(found, expected)
            mine, theirs = (real_view(tensor)[index].item() for tensor in (found, expected))
            raise ContractError(f"{when}: {name}{list(index)} is {mine!r} instead of {theirs!r}")
    else:
        same = found is expected or (type(found) is type(expected) and (found == expected or found != found))
        require(bool(same), f"{when}: {name} is {found!r} instead of {expected!r}")


def probe(optimizer: OptimizerClass, options: dict[str, Any] | None = None, device: str = "cpu") -> Subject:
    """Find out, by trying, which parameters, gradients and steps a class takes.

    Args:
        optimizer: the class.
        options: its constructor's arguments.
        device: where.

    Raises:
        ContractError: if it takes none, with what it said to each.
    """
    options = dict(options or {})
    lr = arguments_of(optimizer).get("lr")
    if lr is not None and lr.default is lr.empty:
        options.setdefault("lr", REQUIRED_LR)
    refusals: list[str] = []
    for needs_closure in (False, True):
        for shapes, sparse in ((EVERY_SHAPE, False), (MATRICES, False), (MATRICES, True)):
            subject = Subject(optimizer, options, shapes, sparse, needs_closure, device, tuple(refusals))
            try:
                trial = Trial(subject)
                before = trial.snapshot()
                trial.step(PROBE_STEPS)
            except Exception as error:
                refusals.append(f"{subject.manner}: {describe(error)}")
                continue
            if all(same_bits(param, before[f"param[{i}]"]) for i, param in enumerate(trial.params)):
                refusals.append(f"{subject.manner}: {PROBE_STEPS} steps change no parameter")
                continue
            return subject
    raise ContractError(f"{optimizer.__name__} cannot be tried. " + "; ".join(refusals))


def describe(error: Exception) -> str:
    """Return an exception's type, and the first line of its message."""
    line = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {textwrap.shorten(line, 160, placeholder=' …')}"


Check: TypeAlias = Callable[[Subject], None]
CHECKS: dict[str, Check] = {}
"""The contract: checks by name. Each docstring says what an optimizer has to do."""


def check(function: Check) -> Check:
    """Enter a check into the contract."""
    CHECKS[function.__name__.replace("_", " ")] = function
    return function


@check
def construction(subject: Subject) -> None:
    """Take parameters as a list, an iterator, named pairs or groups, to the same effect."""
    expected = Trial(subject).step(2).snapshot()
    arrangements: dict[str, Callable[[list[Tensor]], Any]] = {
        "an iterator": iter,
        "named parameters": lambda params: [(f"weight{i}", param) for i, param in enumerate(params)],
        "a group": lambda params: [{"params": params}],
    }
    for name, arrange in arrangements.items():
        require_same(Trial(subject, arrange=arrange).step(2).snapshot(), expected, f"constructed from {name}")


@check
def bad_arguments(subject: Subject) -> None:
    """Refuse an empty list of parameters with a ValueError, and an unknown argument with a TypeError."""
    attempts: list[tuple[str, type[Exception], Callable[[], Any]]] = [
        ("an empty list of parameters", ValueError, lambda: subject.build([])),
        ("an unknown argument", TypeError, lambda: subject.build(subject.parameters(), no_such_argument=1)),
    ]
    for what, kind, attempt in attempts:
        try:
            attempt()
        except kind:
            continue
        except Exception as error:
            raise ContractError(f"{what} raises {describe(error)} instead of a {kind.__name__}") from error
        raise ContractError(f"{what} is accepted instead of raising a {kind.__name__}")


@check
def state_dict(subject: Subject) -> None:
    """Bring state and options back from a checkpoint of plain tensors and numbers, which stays as it was."""
    trial = Trial(subject).step(3)
    loaded = Trial(subject).resume(trial.save(), trial)
    require_same(loaded.snapshot(), trial.snapshot(), "after loading")
    require_same(loaded.groups(), trial.groups(), "after loading", "param_groups")
    saved = trial.optimizer.state_dict()
    before = copy.deepcopy(saved)
    Trial(subject).optimizer.load_state_dict(saved)
    require_same(saved, before, "what load_state_dict was given")


@check
def resuming(subject: Subject) -> None:
    """Go on from a checkpoint as if never stopped, at the learning rate that was set by then."""

    def start() -> Trial:
        trial = Trial(subject).step(3)
        for group in trial.optimizer.param_groups:
            if "lr" in group:
                group["lr"] = group["lr"] * 0.5
        return trial

    straight, stopped = start(), start()
    resumed = Trial(subject).resume(stopped.save(), stopped)
    for trial in (straight, resumed):
        trial.step(3)
    require_same(resumed.snapshot(), straight.snapshot(), "resumed at step 3, at step 6")
    require_same(resumed.groups(), straight.groups(), "resumed at step 3, at step 6", "param_groups")


def require_independent_copy(duplicate: Callable[[Trial], Trial], subject: Subject) -> None:
    """Require that a copy goes on like the original, and that neither moves the other."""
    original = Trial(subject).step(3)
    before = original.snapshot()
    duplicated = duplicate(original).step(3)
    require_same(original.snapshot(), before, "the original, after steps of the copy")
    require_same(duplicated.snapshot(), original.step(3).snapshot(), "the copy, 3 steps on")


@check
def deepcopy(subject: Subject) -> None:
    """Go on after a deep copy, original and copy alike and apart from each other."""
    require_independent_copy(copy.deepcopy, subject)


@check
def pickling(subject: Subject) -> None:
    """Go on after being pickled together with the parameters, as if it had not been."""
    found: Any = sys.modules.get(subject.optimizer.__module__)
    for name in subject.optimizer.__qualname__.split("."):
        found = getattr(found, name, None)
    if found is not subject.optimizer:
        raise InapplicableError("the class cannot be imported by its name, as pickle does")
    require_independent_copy(lambda trial: pickle.loads(pickle.dumps(trial)), subject)


def build_or_skip(subject: Subject, arrange: Callable[[list[Tensor]], Any]) -> Trial:
    """Return a trial with several groups, or skip the check for a class that refuses them."""
    try:
        return Trial(subject, arrange=arrange)
    except ValueError as error:
        raise InapplicableError(f"several groups are refused: {error}") from error


@check
def groups(subject: Subject) -> None:
    """Treat two groups with a learning rate each like two optimizers."""
    options: list[dict[str, Any]] = [{}, {}]
    lr = Trial(subject).optimizer.param_groups[0].get("lr")
    if lr is not None:
        options = [{"lr": lr}, {"lr": lr * 0.5}]
    parts = [range(len(subject.shapes) - 1), [len(subject.shapes) - 1]]
    together = build_or_skip(
        subject,
        lambda params: [{"params": [params[i] for i in part], **o} for part, o in zip(parts, options, strict=True)],
    )
    together.step(3)
    for part, chosen in zip(parts, options, strict=True):
        alone = Trial(subject, only=part, **chosen).step(3)
        for i, param in zip(part, alone.params, strict=True):
            when = f"in two groups with {options}, against an optimizer for each"
            require_same(together.params[i].detach(), param.detach(), when, f"param[{i}]")


@check
def joining(subject: Subject) -> None:
    """Start a group that is added later as an optimizer of its own would, and leave the others alone."""
    last = len(subject.shapes) - 1
    build_or_skip(subject, lambda params: [{"params": [param]} for param in params])
    together = Trial(subject, only=range(last)).step(2)
    late = Trial(subject, only=[last])
    late.taken = together.taken
    alone = Trial(subject, only=range(last)).step(2)
    joined = subject.parameters()[last]
    together.optimizer.add_param_group({"params": [joined]})
    together.params.append(joined)
    together.indices.append(last)
    for trial in (together, late, alone):
        trial.step(2)
    for i, param in enumerate(alone.params + late.params):
        when = "2 steps after a group was added, against an optimizer for each"
        require_same(together.params[i].detach(), param.detach(), when, f"param[{i}]")


@check
def missing_gradients(subject: Subject) -> None:
    """Keep the value and the state of a parameter that has no gradient, now or ever."""
    last = len(subject.shapes) - 1
    for (engine, path), first_steps in itertools.product(subject.paths.items(), (0, 2)):
        trial = Trial(subject, **path).step(first_steps)
        before = trial.snapshot()
        trial.step(2, skip=[last])
        after = trial.snapshot()
        when = f"{engine}: {first_steps} steps with a gradient and 2 without"
        for name in (f"param[{last}]", f"state[{last}]"):
            require_same(after.get(name, {}), before.get(name, {}), when, name)


@check
def late_gradients(subject: Subject) -> None:
    """Start a parameter when it first has a gradient, as an optimizer of its own would."""
    last = len(subject.shapes) - 1
    for engine, path in subject.paths.items():
        together = Trial(subject, **path).step(2, skip=[last]).step(2)
        alone = Trial(subject, only=[last], **path)
        alone.taken = 2
        alone.step(2)
        when = f"{engine}: 2 steps without a gradient and 2 with one, against an optimizer of its own"
        require_same(together.params[last].detach(), alone.params[0].detach(), when, f"param[{last}]")


@check
def no_gradients(subject: Subject) -> None:
    """Change nothing if no parameter has a gradient: no parameter, no state, no count in a group."""
    if subject.needs_closure:
        raise InapplicableError("the step takes the gradients from its closure")
    for engine, path in subject.paths.items():
        trial = Trial(subject, **path).step(2)
        before, options = trial.snapshot(), trial.groups()
        trial.step(1, skip=range(len(trial.params)))
        require_same(trial.snapshot(), before, f"{engine}: a step without gradients")
        require_same(trial.groups(), options, f"{engine}: a step without gradients", "param_groups")


@check
def zero_grad(subject: Subject) -> None:
    """Take the gradients away with `zero_grad()`, and make them zero with `zero_grad(set_to_none=False)`."""
    trial = Trial(subject)
    trial.give()
    trial.optimizer.zero_grad(set_to_none=False)
    for i, param in enumerate(trial.params):
        require(param.grad is not None, f"zero_grad(set_to_none=False): the gradient of param[{i}] is None")
        left = real_view(param.grad if param.grad is not None else param).abs().max().item()
        require(left == 0, f"zero_grad(set_to_none=False): the gradient of param[{i}] still has {left!r}")
    trial.give()
    trial.optimizer.zero_grad()
    for i, param in enumerate(trial.params):
        require(param.grad is None, f"zero_grad(): the gradient of param[{i}] is still there, instead of None")


@check
def closure(subject: Subject) -> None:
    """Call a closure before the update, with gradients enabled, and return its loss; take None for no closure."""
    trial, modes, losses = Trial(subject), [], []

    def evaluate() -> float:
        modes.append(torch.is_grad_enabled())
        losses.append(trial.give().item())
        return losses[-1]

    # The closure of LBFGS has to return a tensor or a number: a number keeps no graph.
    returned: Any = trial.optimizer.step(evaluate)
    require(bool(modes), "step(closure) never calls the closure")
    require(all(modes), "step(closure) calls the closure with gradients disabled, so its backward() would fail")
    require(returned is not None, "step(closure) returns None instead of the closure's loss")
    require(float(returned) == losses[0], f"step(closure) returns {float(returned)!r} instead of {losses[0]!r}")
    require_same(trial.snapshot(), Trial(subject).step().snapshot(), "step(closure), against the same step without")
    if not subject.needs_closure:
        trial.optimizer.step(None)


@check
def gradients(subject: Subject) -> None:
    """Read `p.grad` and never change it: the same object, bits and version, in every engine."""
    ways = dict(subject.paths)
    if subject.takes("maximize"):
        ways |= {f"{engine}, maximize": {**path, "maximize": True} for engine, path in subject.paths.items()}
    for way, path in ways.items():
        trial = Trial(subject, **path)
        for _ in range(3):  # some rules do something else in their first step
            trial.step()
            when = f"{way}, step {trial.taken}"
            for i, (param, gradient, value, version) in enumerate(trial.given):
                require(param.grad is gradient, f"{when}: the gradient of param[{i}] is another object")
                require_same(gradient, value, when, f"the gradient of param[{i}]")
                changed = f"{when}: the gradient of param[{i}] was written to, though its values are the same"
                require(gradient._version == version, changed)


def extent(tensor: Tensor) -> tuple[int, int]:
    """Return the addresses between which a strided tensor lies."""
    if tensor.layout != torch.strided or not tensor.numel():
        return 0, 0
    steps = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (steps + 1) * tensor.element_size()


@check
def memory(subject: Subject) -> None:
    """Share no memory between state, parameters and gradients, and leave parameters where they are."""
    for engine, path in subject.paths.items():
        trial = Trial(subject, **path)
        addresses = [param.data_ptr() for param in trial.params]
        for _ in range(2):
            trial.step()
            for i, (param, address) in enumerate(zip(trial.params, addresses, strict=True)):
                require(param.data_ptr() == address, f"{engine}: param[{i}] has moved to other memory")
        tensors = {f"param[{i}]": param.detach() for i, param in enumerate(trial.params)}
        tensors |= {f"the gradient of param[{i}]": gradient for i, (_, gradient, _, _) in enumerate(trial.given)}
        lying = sorted((*extent(tensor), name) for name, tensor in (tensors | trial.state_tensors()).items())
        lying = [entry for entry in lying if entry[1] > entry[0]]
        for (_, end, first), (begin, _, second) in itertools.pairwise(lying):
            require(begin >= end, f"{engine}: {second} shares memory with {first}")


@check
def hooks(subject: Subject) -> None:
    """Call every hook of step, state_dict and load_state_dict once."""
    trial, calls = Trial(subject), []
    optimizer: Any = trial.optimizer
    for kind in ("step", "state_dict", "load_state_dict"):
        for moment in ("pre", "post"):
            name = f"{kind} {moment}-hook"
            getattr(optimizer, f"register_{kind}_{moment}_hook")(lambda *_, name=name: calls.append(name))
    trial.step()
    optimizer.load_state_dict(optimizer.state_dict())
    for name in ("step", "state_dict", "load_state_dict"):
        for moment in ("pre", "post"):
            count = calls.count(f"{name} {moment}-hook")
            require(count == 1, f"the {name} {moment}-hook is called {count} times instead of once")


@check
def learning_rate(subject: Subject) -> None:
    """Read the learning rate from the group: one that is set there acts like one given to the constructor."""
    if not subject.takes("lr"):
        raise InapplicableError("the constructor has no argument lr")
    lr = Trial(subject).optimizer.param_groups[0].get("lr")
    if lr is None:
        raise ContractError("the groups hold no lr for schedulers to change")
    given, written = Trial(subject, lr=lr * 0.5), Trial(subject)
    for group in written.optimizer.param_groups:
        group["lr"] = lr * 0.5
    when = f"lr {lr * 0.5} set in the group, against the constructor's"
    require_same(written.step(2).snapshot(), given.step(2).snapshot(), when)


@check
def schedulers(subject: Subject) -> None:
    """Work with schedulers: an option that they change acts as if changed by hand."""
    first = Trial(subject).optimizer.param_groups[0]
    if "lr" not in first:
        raise InapplicableError("the groups hold no lr")
    cycles = "betas" in first or "momentum" in first
    makers: dict[str, Callable[[torch.optim.Optimizer], LRScheduler]] = {
        "StepLR": lambda optimizer: StepLR(optimizer, step_size=2, gamma=0.5),
        "LambdaLR": lambda optimizer: LambdaLR(optimizer, lambda step: 1 / (1 + step)),
        "OneCycleLR": lambda optimizer: OneCycleLR(optimizer, first["lr"] * 2, 10, cycle_momentum=cycles),
    }
    for name, make in makers.items():
        scheduled, by_hand = Trial(subject), Trial(subject)
        scheduler = make(scheduled.optimizer)
        for _ in range(4):
            groups = zip(by_hand.optimizer.param_groups, scheduled.optimizer.param_groups, strict=True)
            for mine, theirs in groups:
                for option in {"lr", "betas", "momentum"} & theirs.keys():
                    mine[option] = copy.deepcopy(theirs[option])
            for trial in (scheduled, by_hand):
                trial.step()
            scheduler.step()
        require_same(scheduled.snapshot(), by_hand.snapshot(), f"{name}, against the same options set by hand")


@check
def scaler(subject: Subject) -> None:
    """Give the unscaled run's bits under a `GradScaler`, and change nothing for an infinite gradient."""
    if subject.needs_closure:
        raise InapplicableError("a GradScaler takes no closure")
    for engine, path in subject.paths.items():
        trial, plain = Trial(subject, **path), Trial(subject, **path)
        scaler = torch.amp.GradScaler(torch.device(subject.device).type, init_scale=SCALE, growth_interval=1000)
        scaler.scale(torch.ones((), device=subject.device))  # makes the scale
        for _ in range(3):
            trial.give(factor=SCALE)
            scaler.step(trial.optimizer)
            scaler.update()
            trial.taken += 1
        require_same(trial.snapshot(), plain.step(3).snapshot(), f"{engine}: scaled by {SCALE:g}")
        before = trial.snapshot()
        trial.give(factor=SCALE)
        if (gradient := trial.params[0].grad) is not None:
            gradient.mul_(torch.inf)
        scaler.step(trial.optimizer)
        require_same(trial.snapshot(), before, f"{engine}: a step with an infinite gradient")


@check
def determinism(subject: Subject) -> None:
    """Give the same bits in two runs from the same seed."""
    runs = []
    for _ in range(2):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            runs.append(Trial(subject).step(4).snapshot())
    require_same(runs[1], runs[0], "the second of two equal runs")


@check
def maximize(subject: Subject) -> None:
    """Climb with `maximize=True` as if the gradient's sign were turned."""
    if not subject.takes("maximize"):
        raise InapplicableError("the constructor has no argument maximize")
    for engine, path in subject.paths.items():
        turned = Trial(subject, **path).step(3, factor=-1.0)
        climbing = Trial(subject, **path, maximize=True).step(3)
        require_same(climbing.snapshot(), turned.snapshot(), f"{engine}: maximize, against the gradient turned")


@check
def engines(subject: Subject) -> None:
    """Give the loop's bits with foreach and fused, or at most `CLOSE_FACTOR` times its error against a float64 run."""
    if len(subject.paths) < 2:
        raise InapplicableError("the constructor has neither foreach nor fused")
    loop, *others = subject.paths.items()
    expected = Trial(subject, **loop[1]).step(6)
    oracle = Trial(subject, torch.float64, **loop[1]).step(6)
    truth = dict(tensors_in(oracle.snapshot(), ""))
    theirs = dict(tensors_in(expected.snapshot(), ""))
    granted = max(mean_error([(theirs[name], truth[name]) for name in truth]), torch.finfo(torch.float32).eps / 2)
    for engine, path in others:
        trial = Trial(subject, **path).step(6)
        mine = dict(tensors_in(trial.snapshot(), ""))
        require(list(mine) == list(theirs), f"{engine} keeps {', '.join(mine)}; {loop[0]} keeps {', '.join(theirs)}")
        if all(same_bits(mine[name], theirs[name]) for name in theirs):
            continue
        error = mean_error([(mine[name], truth[name]) for name in truth])
        farthest = max(truth, key=lambda name: relative_error(mine[name], theirs[name]))
        require(
            error <= CLOSE_FACTOR * granted,
            f"{engine}: mean error {error:.1e} against a float64 run, {loop[0]} {granted:.1e}; "
            f"farthest apart is {farthest}",
        )


def require_precision(subject: Subject, dtype: torch.dtype) -> None:
    """Require that a run in a dtype stays finite, in that dtype, with state of that dtype."""
    try:
        trial = Trial(subject, dtype).step(3)
    except Exception as error:
        raise InapplicableError(f"refused: {describe(error)}") from error
    for i, param in enumerate(trial.params):
        require(param.dtype == dtype, f"param[{i}] has become {name_of(param.dtype)}")
        require(bool(param.isfinite().all()), f"param[{i}] has values that are not finite")
    shapes = {f"state[{i}]": param.shape for i, param in enumerate(trial.params) if param.dim()}
    for name, tensor in trial.state_tensors().items():
        if tensor.is_floating_point():
            require(bool(tensor.isfinite().all()), f"{name} has values that are not finite")
            alike = tensor.shape != shapes.get(name.partition(".")[0]) or tensor.dtype == dtype
            require(alike, f"{name} is {name_of(tensor.dtype)}; load_state_dict will make it {name_of(dtype)}")


@check
def float64(subject: Subject) -> None:
    """Keep float64 parameters finite and float64, with state of their dtype, to which `load_state_dict` casts it."""
    require_precision(subject, torch.float64)


@check
def float16(subject: Subject) -> None:
    """Keep float16 parameters finite and float16, with state of their dtype, to which `load_state_dict` casts it."""
    require_precision(subject, torch.float16)


@check
def bfloat16(subject: Subject) -> None:
    """Keep bfloat16 parameters finite and bfloat16, with state of their dtype, to which `load_state_dict` casts it."""
    require_precision(subject, torch.bfloat16)


@check
def complex_parameters(subject: Subject) -> None:
    """Update complex parameters as pairs of real numbers, or refuse them."""
    try:
        trial = Trial(subject, torch.complex128).step(3)
    except Exception as error:
        raise InapplicableError(f"refused: {describe(error)}") from error
    pairs = PairTrial(subject).step(3)
    for i, (param, real) in enumerate(zip(trial.params, pairs.params, strict=True)):
        distance = relative_error(param, real)
        require(distance <= COMPLEX_ERROR, f"param[{i}] is {distance:.1e} from the update of its pairs of real numbers")


@check
def replaced_data(subject: Subject) -> None:
    """Update a parameter where it is now, after its memory was exchanged through `.data`."""
    for engine, path in subject.paths.items():
        straight, replaced = Trial(subject, **path).step(4), Trial(subject, **path).step(2)
        for param in replaced.params:
            param.data = param.data.clone()
        require_same(replaced.step(2).snapshot(), straight.snapshot(), f"{engine}: 2 steps after p.data was replaced")


@check
def graph(subject: Subject) -> None:
    """Leave no graph behind: parameters are still leaves that require a gradient, and autograd follows no state."""
    for engine, path in subject.paths.items():
        trial = Trial(subject, **path).step(2)
        for i, param in enumerate(trial.params):
            require(param.is_leaf and param.requires_grad, f"{engine}: param[{i}] is no leaf that requires a gradient")
        for name, tensor in trial.state_tensors().items():
            require(not tensor.requires_grad, f"{engine}: autograd follows {name}, which keeps a graph alive")


@dataclass(frozen=True)
class Outcome:
    """What came out of a check.

    Attributes:
        check: its name.
        kind: whether what it requires holds, or why not.
        found: what was found instead, or why it was skipped.
    """

    check: str
    kind: Literal["holds", "fails", "skipped"]
    found: str = ""

    @property
    def holds(self) -> bool:
        """Whether nothing was found against it."""
        return self.kind != "fails"


def run_check(name: str, subject: Subject) -> Outcome:
    """Run one check; whatever the class raises in it is a failure."""
    try:
        CHECKS[name](subject)
    except InapplicableError as reason:
        return Outcome(name, "skipped", str(reason))
    except ContractError as error:
        return Outcome(name, "fails", str(error))
    except Exception as error:
        return Outcome(name, "fails", f"raises {describe(error)}")
    return Outcome(name, "holds")


def run_contract(
    optimizer: OptimizerClass, options: dict[str, Any] | None = None, device: str = "cpu"
) -> list[Outcome]:
    """Run every check on a class.

    Args:
        optimizer: the class.
        options: its constructor's arguments.
        device: where.

    Raises:
        ContractError: if no way was found in which it takes a step.
    """
    subject = probe(optimizer, options, device)
    return [run_check(name, subject) for name in CHECKS]
