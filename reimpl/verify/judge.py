"""One case, run by two optimizers and a float64 oracle, and the verdict."""

from __future__ import annotations

import copy
import inspect
import io
from typing import Any, NamedTuple

import torch
from torch import Tensor

from reimpl.verify.distance import first_difference, mean_error, real_view, relative_error, same_bits, ulp_distance
from reimpl.verify.optimizers import ENGINES, Case, Engine
from reimpl.verify.verdict import KINDS, Difference, Verdict

CLOSE_FACTOR = 2.5
"""A *close* result's error may be this many times torch's own.

The two differ by a few roundings a step, and which of them ends nearer to the oracle is chance: over the registry's
close cases, the largest error of a case is at most 2.02 times that of torch's for-loop or foreach path.
"""


FUSED_FACTOR = 1.5
"""A fused result's error, in the mean over all elements, may be this many times that of torch's fused kernel or, where
torch has none, of its for-loop. Both make the same few roundings in another order; over the registry, the error of a
case is at most 1.35 times torch's. The largest single error would be left to chance: of a hundred elements, one."""

ORACLE_ERROR = 16 * 2.0**-53
"""The mean error that a fused result may have in float64, where the oracle has no more digits than the run."""

PATHS: dict[Engine, dict[str, Any]] = {
    "loop": {"foreach": False},
    "foreach": {"foreach": True},
    "fused": {"foreach": None, "fused": True},
}
"""The constructor's arguments that choose an engine, and torch's counterpart."""


def arguments_of(optimizer: type[torch.optim.Optimizer]) -> dict[str, inspect.Parameter]:
    """Return the arguments that a constructor takes by name, those included that it passes on as `**options`."""
    found: dict[str, inspect.Parameter] = {}
    for cls in optimizer.__mro__:
        if cls is torch.optim.Optimizer:
            break
        if "__init__" in vars(cls):
            arguments = inspect.signature(cls).parameters.values()
            found = {a.name: a for a in arguments if a.kind in (a.POSITIONAL_OR_KEYWORD, a.KEYWORD_ONLY)} | found
            if not any(argument.kind is argument.VAR_KEYWORD for argument in arguments):
                break
    return found


def path_of(optimizer: type[torch.optim.Optimizer], engine: Engine) -> dict[str, Any]:
    """Return the constructor's arguments that choose an engine; none where a class has no choice."""
    arguments = arguments_of(optimizer)
    return {name: value for name, value in PATHS[engine].items() if name in arguments}


def engines_of(optimizer: type[torch.optim.Optimizer]) -> list[Engine]:
    """Return the engines that a class has: a loop, whatever it may be, and those that its constructor can choose."""
    arguments = arguments_of(optimizer)
    return ["loop", *(engine for engine in ENGINES[1:] if engine in arguments)]


def judge(
    ours: type[torch.optim.Optimizer], theirs: type[torch.optim.Optimizer], case: Case, device: str = "cpu"
) -> Verdict:
    """Run a case with both classes and an oracle from the same inputs, and compare them after every step.

    A run of the foreach engine is compared with the reference's foreach path and, if a bit differs, with its for-loop:
    the two differ from each other in low precision. The better verdict counts.
    A run of the fused engine is compared with the reference's fused kernels where it has them for the optimizer and
    dtype, otherwise with its for-loop.

    Args:
        ours: the optimizer class under test.
        theirs: the reference, usually of `torch.optim`. It also is the oracle, in float64.
        case: what to run.
        device: where.

    Returns:
        The verdict. An exception from either class is not caught.
    """
    engine = case.engine if case.engine != "fused" or has_fused(theirs, case) else "loop"
    verdict = compare(ours, theirs, case, device, engine)
    if verdict.kind != "exact" and engine == "foreach":
        against_loop = compare(ours, theirs, case, device, "loop")
        return min(verdict, against_loop, key=lambda one: (KINDS.index(one.kind), one.ulp))
    return verdict


def has_fused(optimizer: type[torch.optim.Optimizer], case: Case) -> bool:
    """Return whether a class has fused kernels for a case.

    Those of torch take no complex parameters; that of SGD takes none that get their first momentum beside others that
    have theirs, and on the CPU leaves most of a half-precision parameter as it was.
    """
    if "fused" not in inspect.signature(optimizer).parameters or case.dtype.is_complex:
        return False
    if case.optimizer != "SGD":
        return True
    late = "momentum" in case.options and case.scenario.name in ("missing", "exchange")
    return not late and case.dtype not in (torch.float16, torch.bfloat16)


def compare(
    ours: type[torch.optim.Optimizer],
    theirs: type[torch.optim.Optimizer],
    case: Case,
    device: str,
    reference_engine: Engine,
) -> Verdict:
    """Run a case against one path of the reference."""
    mine = Run(ours, case, device, case.engine)
    reference = Run(theirs, case, device, reference_engine)
    course = follow(mine, reference, Run(theirs, case, device, "loop", double=True))
    if case.engine == "fused":
        factor, granted = FUSED_FACTOR, ORACLE_ERROR if case.dtype == torch.float64 else 0.0
    else:
        factor, granted = CLOSE_FACTOR, 0.0
    return course.verdict(mine, reference, factor, granted)


class Course(NamedTuple):
    """What was seen of two runs of a case, beside an oracle's.

    Attributes:
        difference: where the two first part, None if they never do.
        error: the first one's error, at the end or before an exchange of checkpoints.
        reference_error: the second one's.
    """

    difference: Difference | None
    error: float
    reference_error: float

    def verdict(self, mine: Run, reference: Run, factor: float, granted: float) -> Verdict:
        """Judge the first run.

        Args:
            mine: the first run.
            reference: the second one.
            factor: how many times the second one's error is close.
            granted: an error of the second one that is assumed if it is smaller.
        """
        comparable = self.difference is None or not isinstance(self.difference.ours, str)
        close = comparable and self.error <= factor * max(self.reference_error, granted)
        return Verdict(
            case=mine.case,
            kind="exact" if self.difference is None else "close" if close else "differs",
            reference="for-loop" if reference.engine == "loop" else reference.engine,
            ulp=mine.distance(reference) if self.difference else 0,
            error=self.error,
            reference_error=self.reference_error,
            difference=self.difference,
        )


def follow(mine: Run, reference: Run, oracle: Run) -> Course:
    """Take two runs and an oracle through their case, and compare after every step."""
    difference, error, reference_error = None, 0.0, 0.0
    for step, gradients in enumerate(mine.scenario.gradients(mine.params)):
        if step == mine.scenario.exchange:
            # From here on, each side has the other's errors.
            error, reference_error = mine.error(oracle), reference.error(oracle)
            saved, saved_reference = mine.save(), reference.save()
            mine.restart(saved_reference)
            reference.restart(saved)
        for run in (mine, reference, oracle):
            run.advance(step, gradients)
        difference = difference or mine.difference(reference, step + 1)
    return Course(difference, max(error, mine.error(oracle)), max(reference_error, reference.error(oracle)))


class Run:
    """An optimizer on its way through a case.

    Args:
        optimizer: the class.
        case: what to run.
        device: where.
        engine: which of the optimizer's paths.
        double: whether to run in float64, with Python numbers for tensor options.
    """

    def __init__(
        self, optimizer: type[torch.optim.Optimizer], case: Case, device: str, engine: Engine, double: bool = False
    ) -> None:
        self.optimizer_class = optimizer
        self.engine = engine
        self.begun = 0
        self.case = case
        self.scenario = case.scenario
        self.options = case.options if double else copy.deepcopy(case.options)
        self.double = double
        if double:
            self.options = {name: as_numbers(option) for name, option in self.options.items()}
        self.path = path_of(optimizer, engine)
        self.options = {**self.options, **self.path}
        params = self.scenario.initial(case.dtype, torch.device(device))
        self.params = [self.precise(param).requires_grad_() for param in params]
        self.optimizer = self.build(len(self.params) - (self.scenario.joins is not None))

    def precise(self, tensor: Tensor) -> Tensor:
        """Return the tensor, in double precision for the oracle."""
        if not self.double:
            return tensor
        return tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)

    def group(self, index: int) -> dict[str, Any]:
        """Return the parameter group of one parameter."""
        return {"params": [self.params[index]], **self.scenario.groups[index]}

    def build(self, count: int) -> torch.optim.Optimizer:
        """Construct the optimizer for the first `count` parameters."""
        params = [self.group(i) for i in range(count)] if self.scenario.groups else self.params[:count]
        construct: Any = self.optimizer_class
        built: torch.optim.Optimizer = construct(params, **self.options)
        return built

    def advance(self, step: int, gradients: list[Tensor | None]) -> None:
        """Take a step."""
        self.begun = step + 1
        if step == self.scenario.joins:
            self.optimizer.add_param_group(self.group(len(self.params) - 1))
        for param, gradient in zip(self.params, gradients, strict=True):
            param.grad = None if gradient is None else self.precise(gradient).clone()
        check = torch.sparse.check_sparse_tensor_invariants(self.scenario.sparse)  # type: ignore[no-untyped-call]
        with check:
            self.optimizer.step(*(() if self.scenario.problem is None else (self.evaluate,)))

    def evaluate(self) -> Any:
        """Return the scenario's loss, and leave its gradients."""
        assert self.scenario.problem is not None
        self.optimizer.zero_grad()
        loss = self.scenario.problem.loss(self.params)
        torch.autograd.backward(loss)
        return loss

    def save(self) -> io.BytesIO:
        """Write a checkpoint."""
        file = io.BytesIO()
        torch.save(self.optimizer.state_dict(), file)
        return file

    def restart(self, checkpoint: io.BytesIO) -> None:
        """Go on with a new optimizer and somebody's checkpoint."""
        checkpoint.seek(0)
        self.optimizer = self.build(len(self.params))
        self.optimizer.load_state_dict(torch.load(checkpoint, weights_only=True))
        for group in self.optimizer.param_groups:
            group.update({"fused": None} | self.path if "fused" in group else self.path)

    def tensors(self) -> dict[str, Tensor]:
        """Return parameters and state by name."""
        found = {f"param[{i}]": param for i, param in enumerate(self.params)}
        for i, param in enumerate(self.params):
            for name, value in self.optimizer.state.get(param, {}).items():
                found |= tensors_of(value, f"state[{i}].{name}")
        return found

    def difference(self, other: Run, step: int) -> Difference | None:
        """Return where the bits first differ, if they do."""
        mine, theirs = self.tensors(), other.tensors()
        if list(mine) != list(theirs):
            return Difference(step, "state", (), f"tensors {', '.join(mine)}", ", ".join(theirs))
        for (name, tensor), reference in zip(mine.items(), theirs.values(), strict=True):
            if tensor.dtype != reference.dtype or tensor.shape != reference.shape:
                return Difference(
                    step, name, (), f"{tensor.dtype} {list(tensor.shape)}", f"{reference.dtype} {list(reference.shape)}"
                )
            if not same_bits(tensor, reference):
                index = first_difference(tensor, reference)
                return Difference(
                    step, name, index, real_view(tensor)[index].item(), real_view(reference)[index].item()
                )
        return None

    def distance(self, other: Run) -> int:
        """Return the largest distance of any element, in units in the last place."""
        theirs = other.tensors()
        pairs = [(tensor, theirs[name]) for name, tensor in self.tensors().items() if name in theirs]
        return max(
            ulp_distance(*pair) for pair in pairs if pair[0].shape == pair[1].shape and pair[0].dtype == pair[1].dtype
        )

    def error(self, oracle: Run) -> float:
        """Return the largest error of any tensor; of the fused engine and its reference, the mean one."""
        truth = oracle.tensors()
        pairs = [(tensor, truth[name]) for name, tensor in self.tensors().items() if name in truth]
        return mean_error(pairs) if self.case.engine == "fused" else max(relative_error(*pair) for pair in pairs)


def tensors_of(value: Any, name: str) -> dict[str, Tensor]:
    """Return the tensors of a state's entry by name: itself, those of a list, or a number as one."""
    if isinstance(value, list):
        return {key: tensor for i, part in enumerate(value) for key, tensor in tensors_of(part, f"{name}[{i}]").items()}
    if isinstance(value, Tensor):
        return {name: value if value.dim() else value.cpu()}  # a step count may be on either side
    return {} if value is None else {name: torch.tensor(value, dtype=torch.float64)}


def as_numbers(option: Any) -> Any:
    """Read tensors among an option."""
    if isinstance(option, tuple):
        return tuple(as_numbers(part) for part in option)
    return option.item() if isinstance(option, Tensor) else option
