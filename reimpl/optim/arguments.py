"""What several optimizers make of their arguments: checks, with torch's messages, and the decoupled decay."""

from typing import Any

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


def decoupled_decay(group: dict[str, Any]) -> Any:
    """Return what decoupled weight decay multiplies the parameter with, None if the group has no such decay."""
    lr, weight_decay = group["lr"], group["weight_decay"]
    return 1 - lr * weight_decay if group["decoupled_weight_decay"] and weight_decay != 0 else None
