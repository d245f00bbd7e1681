r"""Adadelta: the gradient in units of its own size, times the size of the recent updates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from reimpl.optim.arguments import check_lr, require
from reimpl.optim.optimizer import RuleOptimizer


def adadelta_rule(
    param: Tensor,
    grad: Tensor,
    square_avg: Tensor,
    acc_delta: Tensor,
    lr: float,
    rho: float,
    eps: float,
    weight_decay: float,
) -> None:
    """Update `param` once: `square_avg` is v, `acc_delta` is u."""
    if weight_decay != 0:
        grad = grad.add(param, alpha=weight_decay)
    square_avg.mul_(rho).addcmul_(grad, grad, value=1 - rho)
    rms_grad = square_avg.add(eps).sqrt_()
    rms_delta = acc_delta.add(eps).sqrt_()
    delta = rms_delta.div_(rms_grad).mul_(grad)
    acc_delta.mul_(rho).addcmul_(delta, delta, value=1 - rho)
    param.add_(delta, alpha=-lr)


def adadelta_coefficients(group: dict[str, Any]) -> dict[str, Any]:
    """Return the rule's coefficients: the options as they are."""
    return {name: group[name] for name in ("lr", "rho", "eps", "weight_decay")}


class Adadelta(RuleOptimizer):
    r"""Adadelta: an update with the parameter's own unit.

    $$
    \begin{aligned}
    g_t &= \nabla f(\theta_{t-1}) + \lambda\,\theta_{t-1} \\
    v_t &= \rho\, v_{t-1} + (1 - \rho)\, g_t^2 \\
    \Delta_t &= \frac{\sqrt{u_{t-1} + \epsilon}}{\sqrt{v_t + \epsilon}}\, g_t \\
    u_t &= \rho\, u_{t-1} + (1 - \rho)\, \Delta_t^2 \\
    \theta_t &= \theta_{t-1} - \gamma\, \Delta_t
    \end{aligned}
    $$

    Args:
        params: tensors, `(name, tensor)` pairs, or dicts that define parameter groups.
        lr: $\gamma$, a factor of the finished update, a number or a one-element tensor. 1 is the paper's method; the
            accumulated $u$ does not see it.
        rho: $\rho$ in $[0, 1]$, the weight of the past in both running means.
        eps: $\epsilon$, under both roots. Since $u$ starts at zero, it sets the size of the first updates:
            $\sqrt{\epsilon / (1 - \rho)}$ for gradients above that, about the gradient itself below.
        weight_decay: $\lambda$, an L2 penalty: it enters the gradient.
        foreach: True for the foreach engine, False for the loop; None chooses as torch does (foreach on accelerators).
        capturable: keep the step count on the parameter's device, so that a CUDA graph can hold the step.
        maximize: climb instead of descend.
        differentiable: let autograd record the step.
        fused: True for the fused engine: the rule as one compiled kernel. torch has no such argument here; the
            parameter groups name it only if it is given.

    State:
        step: the number of updates, a 0-dim float tensor. The rule does not need it.
        square_avg: $v$, of the parameter's shape and dtype.
        acc_delta: $u$, likewise.

    Raises:
        ValueError: for an `lr` of several elements, a negative `lr`, `eps` or `weight_decay`, or a `rho` outside
            $[0, 1]$.
        RuntimeError: from `step`, for a sparse gradient.

    Differs from the paper:
        Only in `lr` and `weight_decay`, which it has not.

    Differs from torch:
        Complex parameters in the loop engine: torch adds the update (and weight decay) in complex arithmetic and rounds
        once more.

    Source:
        Zeiler, "ADADELTA: An Adaptive Learning Rate Method", 2012, Algorithm 1; `torch/optim/adadelta.py`.
    """

    rule = staticmethod(adadelta_rule)
    reads_steps = False
    capturable_on_xla = ()
    options_of_later_versions = {"foreach": None, "maximize": False, "differentiable": False, "capturable": False}

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1.0,
        rho: float = 0.9,
        eps: float = 1e-6,
        weight_decay: float = 0,
        foreach: bool | None = None,
        *,
        capturable: bool = False,
        maximize: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        check_lr(lr)
        require(0.0 <= rho <= 1.0, f"Invalid rho value: {rho}")
        require(0.0 <= eps, f"Invalid epsilon value: {eps}")
        require(0.0 <= weight_decay, f"Invalid weight_decay value: {weight_decay}")
        defaults = {
            "lr": lr,
            "rho": rho,
            "eps": eps,
            "weight_decay": weight_decay,
            "maximize": maximize,
            "capturable": capturable,
            "foreach": foreach,
            "differentiable": differentiable,
        }
        super().__init__(params, defaults if fused is None else {**defaults, "fused": fused})

    def new_state(self, group: dict[str, Any]) -> dict[str, Callable[[Tensor], Tensor] | None]:
        return {"square_avg": torch.zeros_like, "acc_delta": torch.zeros_like}

    def coefficients(self, group: dict[str, Any], step: Any, param: Tensor) -> dict[str, Any]:
        return adadelta_coefficients(group)
