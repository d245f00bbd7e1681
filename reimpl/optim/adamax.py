r"""Adamax: Adam with the largest recent gradient in the place of the root mean square."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from reimpl.optim.arguments import check_adam_options
from reimpl.optim.optimizer import RuleOptimizer


def adamax_rule(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_inf: Tensor,
    weight_decay: float,
    beta1: float,
    beta2: float,
    eps: float,
    step_size: float,
) -> None:
    """Update `param` once: `exp_avg` is m, `exp_inf` is u."""
    if weight_decay != 0:
        grad = grad.add(param, alpha=weight_decay)
    exp_avg.lerp_(grad, 1 - beta1)
    exp_inf.mul_(beta2).clamp_min_(grad.abs().add_(eps))
    param.addcdiv_(exp_avg, exp_inf, value=-step_size)


def adamax_coefficients(group: dict[str, Any], step: Any) -> dict[str, Any]:
    """Return the rule's coefficients in the `step`-th update."""
    beta1, beta2 = group["betas"]
    return {
        "weight_decay": group["weight_decay"],
        "beta1": beta1,
        "beta2": beta2,
        "eps": group["eps"],
        "step_size": group["lr"] / (1 - beta1**step),
    }


class Adamax(RuleOptimizer):
    r"""Adamax: Adam with the infinity norm.

    $$
    \begin{aligned}
    g_t &= \nabla f(\theta_{t-1}) + \lambda\,\theta_{t-1} \\
    m_t &= \beta_1 m_{t-1} + (1 - \beta_1)\, g_t \\
    u_t &= \max(\beta_2 u_{t-1},\; |g_t| + \epsilon) \\
    \theta_t &= \theta_{t-1} - \frac{\gamma}{1 - \beta_1^t} \cdot \frac{m_t}{u_t}
    \end{aligned}
    $$

    Adam's $v$ is an L2 norm of the past gradients with decaying weights; the same with an $L^p$ norm becomes, for
    $p \to \infty$, their maximum. A maximum that starts at 0 is not biased towards it, so $u$ needs no correction.

    Args:
        params: tensors, `(name, tensor)` pairs, or dicts that define parameter groups.
        lr: learning rate $\gamma$, a number or a one-element tensor; if $\beta_1 < \beta_2$,
            no step is longer than $\gamma\,(1 - \beta_1) / (1 - \beta_1 / \beta_2)$.
        betas: $\beta_1$ and $\beta_2$ in $[0, 1)$.
        eps: $\epsilon$, in the unit of the gradient; added to $|g|$ inside of the maximum.
        weight_decay: $\lambda$, an L2 penalty: it enters the gradient.
        foreach: True for the foreach engine, False for the loop; None chooses as torch does (foreach on accelerators).
        maximize: climb instead of descend.
        differentiable: let autograd record the step.
        capturable: keep the step count on the parameter's device, so that a CUDA graph can hold the step.
        fused: True for the fused engine: the rule as one compiled kernel. torch has no such argument here; the
            parameter groups name it only if it is given.

    State:
        step: the number of updates, a 0-dim float tensor, on the host unless `capturable`.
        exp_avg: $m$, of the parameter's shape and dtype.
        exp_inf: $u$, likewise.

    Raises:
        ValueError: for an `lr` of several elements, a negative `lr`, `eps` or `weight_decay`, or a beta outside of
            $[0, 1)$.
        RuntimeError: from `step`, for a sparse gradient.

    Differs from the paper:
        Algorithm 2 has no $\epsilon$, and divides by 0 where all gradients have been 0.

    Differs from torch:
        Complex parameters with weight decay in the loop engine: torch adds the penalty in complex arithmetic and rounds
        once more. With `capturable=True` torch folds the step size into the denominator; here the rule stays as it is.

    Source:
        Kingma and Ba, "Adam: A Method for Stochastic Optimization", ICLR 2015, section 7.1 and Algorithm 2;
        `torch/optim/adamax.py`.
    """

    rule = staticmethod(adamax_rule)
    capturable_on_xla = ("loop",)
    options_of_later_versions = {"foreach": None, "maximize": False, "differentiable": False, "capturable": False}

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 2e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        foreach: bool | None = None,
        *,
        maximize: bool = False,
        differentiable: bool = False,
        capturable: bool = False,
        fused: bool | None = None,
    ) -> None:
        check_adam_options(lr, betas, eps, weight_decay)
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "foreach": foreach,
            "maximize": maximize,
            "differentiable": differentiable,
            "capturable": capturable,
        }
        super().__init__(params, defaults if fused is None else {**defaults, "fused": fused})

    def new_state(self, group: dict[str, Any]) -> dict[str, Callable[[Tensor], Tensor] | None]:
        return {"exp_avg": torch.zeros_like, "exp_inf": torch.zeros_like}

    def coefficients(self, group: dict[str, Any], step: Any, param: Tensor) -> dict[str, Any]:
        return adamax_coefficients(group, step)
