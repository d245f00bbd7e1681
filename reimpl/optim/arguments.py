"""Checks of constructor arguments that several optimizers share, with torch's messages."""

from typing import Any

from torch import Tensor


def require(holds: Any, message: str) -> None:
    """Raise a `ValueError` with `message` unless `holds`."""
    if not holds:
        raise ValueError(message)


def check_tensor_lr(lr: float | Tensor) -> None:
    """Refuse a learning rate that is a tensor of more or fewer than one element."""
    require(not isinstance(lr, Tensor) or lr.numel() == 1, "Tensor lr must be 1-element")


def check_fused(fused: bool | None, foreach: bool | None, differentiable: bool) -> None:
    """Refuse options that do not go together with `fused=True`."""
    if fused:
        if differentiable:
            raise RuntimeError("`fused` does not support `differentiable`")
        if foreach:
            raise RuntimeError("`fused` and `foreach` cannot be `True` together.")
