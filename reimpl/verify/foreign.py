"""Anybody's optimizer against torch's: the class by its name, the cases that its signature allows, the verdict."""

from __future__ import annotations

import copy
import importlib
import math
import sys
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from reimpl.verify.contract import ContractError, probe
from reimpl.verify.judge import CLOSE_FACTOR, Run, arguments_of, engines_of, follow, has_fused
from reimpl.verify.optimizers import OPTIMIZERS, Case, Engine, optimizer_cases
from reimpl.verify.options import DTYPES, name_of, spell
from reimpl.verify.trial import OptimizerClass, Trial, in_training
from reimpl.verify.verdict import Difference, Verdict

HOW = {"params", "foreach", "fused", "capturable", "differentiable"}
"""Arguments that choose how a step is computed, not what."""

GRANTED_STEPS = 2 * 2.0**-53
"""The error that a float64 run may add in each step, relative to the tensor's scale: there the oracle has no more
digits than the run. Over the cases of Adam, a textbook version in plain operators adds at most 0.42 * 2**-53 a step."""


class ForeignClassError(ValueError):
    """A name is no optimizer class, or a class is no reference."""


def find_class(name: str) -> OptimizerClass:
    """Import an optimizer class by its dotted name, from an installed package or a file in the current directory.

    Raises:
        ForeignClassError: if there is no such module or attribute, or it is no optimizer class.
    """
    module_name, _, attribute = name.rpartition(".")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise ForeignClassError(f"cannot import {module_name!r}: {type(error).__name__}: {error}") from error
    found = getattr(module, attribute, None)
    if found is None:
        raise ForeignClassError(f"module {module_name!r} has no {attribute!r}")
    if not (isinstance(found, type) and issubclass(found, torch.optim.Optimizer)):
        raise ForeignClassError(f"{name} is no subclass of torch.optim.Optimizer")
    return found


def check_reference(reference: OptimizerClass) -> str:
    """Return the name under which the registry has the cases of one of torch's optimizers.

    Raises:
        ForeignClassError: if it has none.
    """
    name = reference.__name__
    if name not in OPTIMIZERS or getattr(torch.optim, name) is not reference:
        valid = ", ".join(f"torch.optim.{optimizer}" for optimizer in OPTIMIZERS)
        raise ForeignClassError(f"no cases are registered for {reference.__module__}.{name}; choose from {valid}")
    return name


@dataclass(frozen=True)
class Comparison:
    """What of the registry applies to a class.

    Attributes:
        optimizer: the class.
        reference: torch's, of which the registry has the cases.
        cases: those that the class's signature allows, each with the reference's defaults written out.
        same_state: whether both keep state of the same names and dtypes; if not, only parameters are compared.
        notes: what was left out and why, and defaults that differ.
    """

    optimizer: OptimizerClass
    reference: OptimizerClass
    cases: list[Case]
    same_state: bool
    notes: list[str]


def comparison(
    optimizer: OptimizerClass,
    reference: OptimizerClass,
    dtypes: Collection[torch.dtype] = tuple(DTYPES.values()),
    quick: bool = False,
) -> Comparison:
    """Derive the cases for a class from those registered for one of torch's.

    Args:
        optimizer: the class.
        reference: of `torch.optim`.
        dtypes: of the parameters.
        quick: only every seventh case, and none of 1,000 steps.

    Raises:
        ForeignClassError: if the registry has no cases of the reference.
    """
    name = check_reference(reference)
    mine, theirs = arguments_of(optimizer), arguments_of(reference)
    defaults = {option: theirs[option].default for option in theirs if option in mine and option not in HOW}
    engines = engines_of(optimizer)
    cases: list[Case] = []
    left_out: Counter[str] = Counter()
    for case in sample(optimizer_cases(name), dtypes, quick):
        if case.engine not in engines:
            left_out[f"no argument {case.engine}"] += 1
        elif missing := needs(case) & theirs.keys() - mine.keys():
            left_out[f"no argument {' or '.join(sorted(missing))}"] += 1
        elif case.engine == "fused" and "fused" in theirs and not has_fused(reference, case):
            left_out["torch's fused kernel does not take them"] += 1
        else:
            options = defaults | case.options
            cases.append(replace(case, optimizer=optimizer.__name__, options=options, claim="close"))
    telling = cases[-1].options if cases else {}  # the last has an unusual value for every option
    (state, groups), (reference_state, reference_groups) = (keeps(cls, telling) for cls in (optimizer, reference))
    if (state, groups) != (reference_state, reference_groups):
        allowed = [case for case in cases if case.scenario.exchange is None]
        left_out["no exchange of checkpoints, which hold something else"] = len(cases) - len(allowed)
        cases = allowed
    notes = [f"{count:,} cases left out: {reason}" for reason, count in left_out.most_common() if count]
    if state != reference_state:
        notes.append(f"only parameters are compared: its state is {say(state)}, torch's is {say(reference_state)}")
    notes += [
        f"the default of {option} is {spell(mine[option].default)}, torch's is {spell(theirs[option].default)}; "
        "compared with torch's"
        for option in defaults
        if mine[option].default is not mine[option].empty and mine[option].default != theirs[option].default
    ]
    return Comparison(optimizer, reference, cases, state == reference_state, notes)


def sample(every: Iterable[Case], dtypes: Collection[torch.dtype], quick: bool) -> list[Case]:
    """Return the cases of some dtypes, if `quick` a seventh of those that are short."""
    found = [case for case in every if case.dtype in dtypes]
    return [case for case in found if case.scenario.name != "drift"][::7] if quick else found


def needs(case: Case) -> set[str]:
    """Return the arguments that a case sets, in the constructor or in a group."""
    return set(case.options).union(*case.scenario.groups)


def keeps(optimizer: OptimizerClass, options: dict[str, Any]) -> tuple[dict[str, str], set[str]]:
    """Return the kind of each entry of the state after a step, and the names of a group's options; none on failure."""
    try:
        trial = Trial(probe(optimizer, copy.deepcopy(options))).step()
    except ContractError:  # each case will say so
        return {}, set()
    state = {
        name: name_of(value.dtype) if isinstance(value, Tensor) else type(value).__name__
        for name, value in trial.optimizer.state[trial.params[0]].items()
    }
    return state, trial.optimizer.param_groups[0].keys() - HOW


def say(state: dict[str, str]) -> str:
    """Write the state's names and kinds."""
    return ", ".join(f"{name} ({kind})" for name, kind in state.items()) or "none"


class ForeignRun(Run):
    """A run of an optimizer that may have a training mode."""

    def build(self, count: int) -> torch.optim.Optimizer:
        """Construct the optimizer for the first `count` parameters, in training mode."""
        return in_training(super().build(count))


class ParameterRun(ForeignRun):
    """A run of which only the parameters are compared."""

    def tensors(self) -> dict[str, Tensor]:
        """Return the parameters by name."""
        return {f"param[{i}]": param for i, param in enumerate(self.params)}


def judge_foreign(of: Comparison, case: Case, device: str = "cpu") -> Verdict:
    """Run a case with the class, with the reference and with the reference in float64, and compare after every step.

    What the class raises is a difference: torch's raises nothing in any registered case.

    Args:
        of: what is compared.
        case: one of its cases.
        device: where.
    """
    engine: Engine = case.engine if case.engine in engines_of(of.reference) else "loop"
    start = ForeignRun if of.same_state else ParameterRun
    reference = start(of.reference, case, device, engine)
    oracle = start(of.reference, case, device, "loop", double=True)
    mine = None
    try:
        mine = start(of.optimizer, case, device, case.engine)
        course = follow(mine, reference, oracle)
    except Exception as raised:
        what = f"{type(raised).__name__}: {raised}"
        difference = Difference(mine.begun if mine else 0, "whole", (), what, "no exception")
        return Verdict(case, "differs", "for-loop" if engine == "loop" else engine, 0, math.inf, 0.0, difference)
    granted = case.scenario.steps * GRANTED_STEPS if case.dtype == torch.float64 else 0.0
    return course.verdict(mine, reference, CLOSE_FACTOR, granted)
