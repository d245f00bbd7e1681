"""One case, run by two layers and a float64 oracle, and the verdict."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

import reimpl.nn.functional
from reimpl.verify.distance import first_difference, relative_error, same_bits, ulp_distance
from reimpl.verify.layers import Draw, LayerCase
from reimpl.verify.verdict import Difference, Verdict

LAYER_FACTOR = 4.0
"""The largest error of any tensor of a case, from first principles, may be this many times torch's own.

The same numbers are summed in another order; which of the two ends nearer to the oracle is chance.
"""
PASSES = (True, True, False)
"""A pass through the layer each, forward and back: whether in training."""
EXCHANGE = 1
"""Before this pass, counted from 0, the two layers exchange their `state_dict`."""


def judge_layer(
    ours: type[torch.nn.Module], theirs: type[torch.nn.Module], case: LayerCase, device: str = "cpu"
) -> Verdict:
    """Run a case with both classes and an oracle from the same seed and inputs, and compare all that can be observed.

    That is the initial values, then outputs, the gradients of inputs and parameters, and buffers after every pass.

    Args:
        ours: the class under test; for first principles it has to have the attribute `functional`.
        theirs: the reference, of `torch.nn`. It also is the oracle, in float64.
        case: what to run.
        device: where.

    Returns:
        The verdict. An exception from either class is not caught.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of deprecated options, which are judged too, and of kernels that torch lacks
        mine, reference, oracle = (LayerRun(layer, case, device) for layer in (ours, theirs, theirs))
        return run_passes(mine, reference, oracle, case)


def run_passes(mine: LayerRun, reference: LayerRun, oracle: LayerRun, case: LayerCase) -> Verdict:
    """Advance all three pass by pass, and compare."""
    oracle.double(reference)
    if case.engine == "first principles":
        mine.layer.functional = reimpl.nn.functional  # type: ignore[assignment]
    difference = compare(mine.state(), reference.state(), 0)
    ulp, error, reference_error, comparable = 0, 0.0, 0.0, True
    for number, training in enumerate(PASSES):
        if number == EXCHANGE:
            saved, saved_reference = mine.state(), reference.state()
            mine.layer.load_state_dict(saved_reference)
            reference.layer.load_state_dict(saved)
        seen, expected, truth = (run.advance(number, training) for run in (mine, reference, oracle))
        found = compare(seen, expected, number + 1)
        difference = difference or found
        if found is not None and isinstance(found.ours, str):
            comparable = False
            break
        for name, tensor in seen.items():
            if tensor.is_floating_point():
                ulp = max(ulp, ulp_distance(tensor, expected[name]))
                error = max(error, relative_error(tensor, truth[name]))
                reference_error = max(reference_error, relative_error(expected[name], truth[name]))
            else:
                comparable = comparable and torch.equal(tensor, expected[name])
    close = ratio(error, reference_error, case.dtype) <= LAYER_FACTOR
    return Verdict(
        case=case,
        kind="exact" if difference is None else "close" if comparable and close else "differs",
        reference="kernel",
        ulp=ulp,
        error=error,
        reference_error=reference_error,
        difference=difference,
    )


def ratio(error: float, reference_error: float, dtype: torch.dtype) -> float:
    """Return an error as a multiple of torch's; torch's may be none by luck, so it counts as one rounding at least."""
    return error / max(reference_error, torch.finfo(dtype).eps / 2)


def excess(verdict: Verdict) -> float:
    """Return the error of a verdict as a multiple of torch's."""
    return ratio(verdict.error, verdict.reference_error, verdict.case.dtype)


def compare(ours: dict[str, Tensor], theirs: dict[str, Tensor], number: int) -> Difference | None:
    """Return where the bits of two observations first differ, if they do."""
    if list(ours) != list(theirs):
        return Difference(number, "all", (), f"tensors {', '.join(ours)}", ", ".join(theirs))
    for name, tensor in ours.items():
        expected = theirs[name]
        if tensor.dtype != expected.dtype or tensor.shape != expected.shape:
            mine, reference = (f"{x.dtype} {list(x.shape)}" for x in (tensor, expected))
            return Difference(number, name, (), mine, reference)
        if not same_bits(tensor, expected):
            index = first_difference(tensor, expected)
            return Difference(number, name, index, tensor[index].item(), expected[index].item())
    return None


class LayerRun:
    """A layer on its way through a case.

    Args:
        layer: the class.
        case: what to run.
        device: where.
    """

    def __init__(self, layer: type[torch.nn.Module], case: LayerCase, device: str) -> None:
        self.case = case
        self.device = device
        self.dtype = case.dtype
        options = {name: self.given(value) for name, value in case.options.items()}
        if hasattr(layer, "reset_parameters"):
            options |= {"device": device, "dtype": case.dtype}
        torch.manual_seed(0)
        self.layer = layer(**options)

    def double(self, other: LayerRun) -> None:
        """Go on in float64, from the other's initial values."""
        self.dtype = torch.float64
        self.layer.double().load_state_dict(other.state())

    def given(self, value: Any) -> Any:
        """Return a nest of tensors with each floating-point one rounded to the case's dtype, in the run's."""
        if isinstance(value, PackedSequence):
            return value._replace(data=self.given(value.data))
        if isinstance(value, tuple):
            return tuple(map(self.given, value))
        if not isinstance(value, Tensor):
            return value
        value = value.to(self.device)
        return value.to(self.case.dtype).to(self.dtype) if value.is_floating_point() else value

    def state(self) -> dict[str, Tensor]:
        """Return parameters and buffers, copied."""
        return {name: value.detach().clone() for name, value in self.layer.state_dict().items()}

    def advance(self, number: int, training: bool) -> dict[str, Tensor]:
        """Pass through the layer, forward and back, and return all that can be observed, by name."""
        inputs = self.given(self.case.scenario.make(Draw(number)))
        leaves = [leaf.requires_grad_() for leaf in tensors(inputs) if leaf.is_floating_point()]
        self.layer.train(training).zero_grad()
        torch.manual_seed(number)
        outputs = tensors(self.layer(*copies(inputs)))
        differentiable = [output for output in outputs if output.requires_grad]
        draw = Draw(100 + number)
        upstream = [self.given(draw.normal(*output.shape)) for output in differentiable]
        torch.autograd.backward(differentiable, upstream)
        named = {f"gradient of {name}": param.grad for name, param in self.layer.named_parameters()}
        named |= {f"gradient of input {i}": leaf.grad for i, leaf in enumerate(leaves)}
        return {
            **{f"output {i}": output.detach().clone() for i, output in enumerate(outputs)},
            **{name: grad.clone() for name, grad in named.items() if grad is not None},
            **{name: buffer.detach().clone() for name, buffer in self.layer.named_buffers()},
        }


def tensors(value: Any) -> list[Tensor]:
    """Return the tensors in a nest of tuples and packed sequences."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, PackedSequence):
        return [value.data]
    return [tensor for part in value for tensor in tensors(part)] if isinstance(value, tuple) else []


def copies(value: Any) -> Any:
    """Return the nest with a differentiable copy of each leaf, on which a layer may work in place."""
    if isinstance(value, PackedSequence):
        return value._replace(data=value.data.clone())
    if isinstance(value, tuple):
        return tuple(map(copies, value))
    return value.clone() if isinstance(value, Tensor) else value
