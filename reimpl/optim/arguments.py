"""What several optimizers make of their arguments: checks, with torch's messages, and the decoupled decay."""

import sys
from typing import Any

import torch
from torch import Tensor


def require(holds: Any, message: str) -> None:
    """Raise a `ValueError` with `message` unless `holds`."""
    if not holds:
        raise ValueError(message)


def check_fused(fused: bool | None, foreach: bool | None, differentiable: bool) -> None:
    """Refuse options that do not go together with `fused=True`."""
    if fused:
        if differentiable:
            raise RuntimeError("`fused` does not support `differentiable`")
        if foreach:
            raise RuntimeError("`fused` and `foreach` cannot be `True` together.")


def check_tensor_lr(lr: float | Tensor) -> None:
    """Refuse a learning rate that is a tensor of more or fewer than one element."""
    require(not isinstance(lr, Tensor) or lr.numel() == 1, "Tensor lr must be 1-element")


def check_lr(lr: float | Tensor) -> None:
    """Refuse a learning rate that is negative, or a tensor of more or fewer than one element."""
    check_tensor_lr(lr)
    require(0.0 <= lr, f"Invalid learning rate: {lr}")


def check_betas(betas: tuple[float | Tensor, float | Tensor]) -> None:
    """Refuse betas outside of [0, 1)."""
    require(0.0 <= betas[0] < 1.0, f"Invalid beta parameter at index 0: {betas[0]}")
    require(0.0 <= betas[1] < 1.0, f"Invalid beta parameter at index 1: {betas[1]}")


def check_adam_options(
    lr: float | Tensor, betas: tuple[float | Tensor, float | Tensor], eps: float, weight_decay: float
) -> None:
    """Refuse what Adam and its kin refuse alike, in torch's order."""
    check_lr(lr)
    require(0.0 <= eps, f"Invalid epsilon value: {eps}")
    check_betas(betas)
    require(0.0 <= weight_decay, f"Invalid weight_decay value: {weight_decay}")


def check_closure(optimizer: torch.optim.Optimizer) -> None:
    """Refuse a closure that a `GradScaler` passes on, since the gradients that it makes would be applied scaled.

    The scaler itself refuses one that is given by keyword. A fused optimizer it has told the scale; any other can only
    look who is calling.
    """
    refused = getattr(optimizer, "found_inf", None) is not None
    if refused:  # the scaler takes them back after a step that has not raised
        del optimizer.found_inf, optimizer.grad_scale  # type: ignore[attr-defined]
    frame = None if torch.compiler.is_compiling() else sys._getframe()
    while frame and not refused:
        refused = frame.f_code is torch.amp.GradScaler._maybe_opt_step.__code__
        frame = frame.f_back
    if refused:
        raise RuntimeError("Closure use is not currently supported if GradScaler is enabled.")


def decoupled_decay(group: dict[str, Any]) -> Any:
    """Return what decoupled weight decay multiplies the parameter with, None if the group has no such decay."""
    lr, weight_decay = group["lr"], group["weight_decay"]
    return 1 - lr * weight_decay if group["decoupled_weight_decay"] and weight_decay != 0 else None
