"""What every operation is: a forward, and its backward under it."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor


class Operation(torch.autograd.Function):
    """A function whose derivative is written by hand.

    `forward` takes and returns tensors and knows nothing of differentiation; `setup_context` keeps what `backward`
    needs; `backward` takes the gradient of the loss by each output and returns that by each input. It is written in
    differentiable operations on saved inputs and outputs, so that torch can differentiate it once more.

    Attributes:
        autocast: what `torch.autocast` makes of the inputs, as for torch's kernel of that name: `lower` for matrix
            products, `float32` where a low precision would lose the result, `keep` for the rest.
    """

    generate_vmap_rule = True
    autocast: Literal["lower", "float32", "keep"] = "keep"

    @classmethod
    def run(cls, *inputs: Any) -> Any:
        """Apply the operation, under autocast with inputs of the dtype that it would have on torch's kernel."""
        device = next(value.device.type for value in inputs if isinstance(value, Tensor))
        if not (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)):
            return cls.apply(*inputs)  # type: ignore[no-untyped-call]
        if cls.autocast != "keep":
            dtype = torch.float32 if cls.autocast == "float32" else torch.get_autocast_dtype(device)
            inputs = tuple(cast(value, dtype) for value in inputs)
        # Inside, each product and sum has the precision that its operation has chosen.
        with torch.autocast(device, enabled=False):
            return cls.apply(*inputs)  # type: ignore[no-untyped-call]

    if torch.__version__ < "2.13":
        # The compiler of 2.11 gives no gradient to a function that returns what it has changed in place.
        run = classmethod(torch.compiler.disable(run.__func__))  # type: ignore[assignment,attr-defined,no-untyped-call]


def cast(value: Any, dtype: torch.dtype) -> Any:
    """Return a floating-point tensor in another precision; float64 and everything else as they are."""
    if isinstance(value, Tensor) and value.is_floating_point() and value.dtype != torch.float64:
        return value.to(dtype)
    return value


def widen(tensor: Tensor) -> Tensor:
    """Return float16 and bfloat16 as float32: a chain of roundings to 8 bits would cost accuracy, torch rounds once."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def scalar_type(tensor: Tensor) -> str:
    """Return what torch calls a dtype in its messages: `Float`, `Long`."""
    return tensor.type().rpartition(".")[2].removesuffix("Tensor")


def refuse_leaf(input: Tensor) -> None:
    """Raise torch's error if a leaf's value would be lost before its gradient is known; autograd would do so after."""
    if input.is_leaf and input.requires_grad and torch.is_grad_enabled():
        raise RuntimeError("a leaf Variable that requires grad is being used in an in-place operation.")
