"""One case, run by two optimizers and a float64 oracle, and the verdict."""

from __future__ import annotations

import copy
import io
from typing import Any

import torch
from torch import Tensor

from reimpl.verify.distance import first_difference, real_view, relative_error, same_bits, ulp_distance
from reimpl.verify.optimizers import Case
from reimpl.verify.verdict import Difference, Verdict

CLOSE_FACTOR = 2.0
"""A *close* result's error may be this many times torch's own.

The two differ by one rounding a step, and which of them ends nearer to the oracle is chance: over the registry's close
cases, the largest error of a case is 0.56 to 1.75 times torch's.
"""


def judge(
    ours: type[torch.optim.Optimizer], theirs: type[torch.optim.Optimizer], case: Case, device: str = "cpu"
) -> Verdict:
    """Run a case with both classes and an oracle from the same inputs, and compare them after every step.

    A run of the foreach engine is compared with the reference's foreach path and, if a bit differs, with its for-loop:
    the two differ from each other in low precision.

    Args:
        ours: the optimizer class under test.
        theirs: the reference, usually of `torch.optim`. It also is the oracle, in float64.
        case: what to run.
        device: where.

    Returns:
        The verdict. An exception from either class is not caught.
    """
    verdict = compare(ours, theirs, case, device, reference_foreach=case.engine == "foreach")
    if verdict.kind != "exact" and case.engine == "foreach":
        against_loop = compare(ours, theirs, case, device, reference_foreach=False)
        return against_loop if against_loop.kind == "exact" else verdict
    return verdict


def compare(
    ours: type[torch.optim.Optimizer],
    theirs: type[torch.optim.Optimizer],
    case: Case,
    device: str,
    reference_foreach: bool,
) -> Verdict:
    """Run a case against one path of the reference."""
    mine = Run(ours, case, device, foreach=case.engine == "foreach")
    reference = Run(theirs, case, device, foreach=reference_foreach)
    oracle = Run(theirs, case, device, foreach=False, double=True)
    difference = None
    for step, gradients in enumerate(case.scenario.gradients(mine.params)):
        if step == case.scenario.exchange:
            saved, saved_reference = mine.save(), reference.save()
            mine.restart(saved_reference)
            reference.restart(saved)
        for run in (mine, reference, oracle):
            run.advance(step, gradients)
        difference = difference or mine.difference(reference, step + 1)
    error, reference_error = mine.error(oracle), reference.error(oracle)
    comparable = difference is None or not isinstance(difference.ours, str)
    close = comparable and error <= CLOSE_FACTOR * reference_error
    return Verdict(
        case=case,
        kind="exact" if difference is None else "close" if close else "differs",
        reference="foreach" if reference_foreach else "for-loop",
        ulp=mine.distance(reference) if difference else 0,
        error=error,
        reference_error=reference_error,
        difference=difference,
    )


class Run:
    """An optimizer on its way through a case.

    Args:
        optimizer: the class.
        case: what to run.
        device: where.
        foreach: the `foreach` argument.
        double: whether to run in float64, with Python numbers for tensor options.
    """

    def __init__(
        self, optimizer: type[torch.optim.Optimizer], case: Case, device: str, foreach: bool, double: bool = False
    ) -> None:
        self.optimizer_class = optimizer
        self.scenario = case.scenario
        self.options = case.options if double else copy.deepcopy(case.options)
        self.double = double
        if double:
            self.options = {name: as_numbers(option) for name, option in self.options.items()}
        self.options = {**self.options, "foreach": foreach}
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
        if step == self.scenario.joins:
            self.optimizer.add_param_group(self.group(len(self.params) - 1))
        for param, gradient in zip(self.params, gradients, strict=True):
            param.grad = None if gradient is None else self.precise(gradient).clone()
        check = torch.sparse.check_sparse_tensor_invariants(self.scenario.sparse)  # type: ignore[no-untyped-call]
        with check:
            self.optimizer.step()

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
            group["foreach"] = self.options["foreach"]

    def tensors(self) -> dict[str, Tensor]:
        """Return parameters and state by name."""
        found = {f"param[{i}]": param for i, param in enumerate(self.params)}
        for i, param in enumerate(self.params):
            for name, value in self.optimizer.state.get(param, {}).items():
                found[f"state[{i}].{name}"] = value
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
        """Return the largest error of any tensor."""
        truth = oracle.tensors()
        return max(relative_error(tensor, truth[name]) for name, tensor in self.tensors().items() if name in truth)


def as_numbers(option: Any) -> Any:
    """Read tensors among an option."""
    if isinstance(option, tuple):
        return tuple(as_numbers(part) for part in option)
    return option.item() if isinstance(option, Tensor) else option
