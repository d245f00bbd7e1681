r"""ASGD: gradient descent beside a running mean of the parameters it has passed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from reimpl.optim.arguments import check_lr, require
from reimpl.optim.engines import TensorList
from reimpl.optim.optimizer import RuleOptimizer, as_number


def asgd_rule(
    param: Tensor,
    grad: Tensor,
    ax: Tensor,
    weight_decay: float,
    decay: float,
    eta: float,
    mu: float | None,
) -> None:
    """Update `param` once: `ax` is the mean of the parameter, a copy if `mu` is None."""
    if weight_decay != 0:
        grad = grad.add(param, alpha=weight_decay)
    param.mul_(decay).add_(grad, alpha=-eta)
    if mu is None:
        ax.copy_(param)
    else:
        ax.add_(param.sub(ax).mul_(mu))


def asgd_coefficients(group: dict[str, Any]) -> dict[str, Any]:
    """Return the rule's coefficients: `eta` and `mu` are those that the update before has left."""
    eta, mu = as_number(group["eta"]), as_number(group["mu"])
    return {
        "weight_decay": group["weight_decay"],
        "decay": 1 - group["lambd"] * eta,
        "eta": eta,
        "mu": None if isinstance(mu, float) and mu == 1 else mu,
    }


def asgd_next(group: dict[str, Any], step: Any) -> dict[str, Any]:
    """Return `eta` and `mu` for the update after the `step`-th."""
    lr, since_start = group["lr"], step - group["t0"]
    averaged = since_start.clamp_min(1) if isinstance(step, TensorList) else max(1, since_start)
    return {"eta": lr / (1 + group["lambd"] * lr * step) ** group["alpha"], "mu": 1 / averaged}


class ASGD(RuleOptimizer):
    r"""Averaged SGD: descent with a decaying step, and the mean of its path.

    $$
    \begin{aligned}
    g_t &= \nabla f(\theta_{t-1}) + \lambda_2\,\theta_{t-1} \\
    \theta_t &= (1 - \lambda\,\eta_t)\,\theta_{t-1} - \eta_t\, g_t \\
    \bar\theta_t &= \bar\theta_{t-1} + \mu_t\,(\theta_t - \bar\theta_{t-1}) \\
    \eta_{t+1} &= \frac{\gamma}{(1 + \lambda \gamma t)^{\alpha}}, \qquad \eta_1 = \gamma \\
    \mu_{t+1} &= \frac{1}{\max(1,\; t - t_0)}, \qquad \mu_1 = 1
    \end{aligned}
    $$

    The model is trained, and evaluated, on $\theta$. The mean $\bar\theta$ stands in `state[param]["ax"]`, and nothing
    puts it into the model: copy it there to use it. Until $t_0 + 2$ it is a copy of $\theta$.

    Args:
        params: tensors, `(name, tensor)` pairs, or dicts that define parameter groups.
        lr: learning rate $\gamma$, a number or a one-element tensor. $\eta$ is computed for the next step, so that a
            change of `lr` acts one step late.
        lambd: $\lambda$, how fast $\eta$ falls; it also decays the parameter, by default.
        alpha: $\alpha$, the power with which $\eta$ falls.
        t0: $t_0$, the step at which averaging starts; by default after a million.
        weight_decay: $\lambda_2$, an L2 penalty: it enters the gradient.
        foreach: True for the foreach engine, False for the loop; None chooses as torch does (foreach on accelerators).
        maximize: climb instead of descend.
        differentiable: let autograd record the step. No gradient flows to `lr`.
        capturable: keep step count, $\eta$ and $\mu$ on the parameter's device, so that a CUDA graph can hold the step.
        fused: True for the fused engine: the rule as one compiled kernel. torch has no such argument here; the
            parameter groups name it only if it is given.

    State:
        step: the number of updates, a 0-dim float tensor, on the host unless `capturable`.
        eta: $\eta_{t+1}$, likewise; of float32 whatever the parameter's dtype.
        mu: $\mu_{t+1}$, likewise.
        ax: $\bar\theta$, of the parameter's shape and dtype.

    Raises:
        ValueError: for an `lr` of several elements, or a negative `lr` or `weight_decay`.
        RuntimeError: from `step`, for a sparse gradient.

    Differs from the paper:
        Polyak and Juditsky average from the start. That $\eta$ falls with a power of $1 + \lambda\gamma t$ is Xu's.

    Differs from torch:
        torch's foreach path multiplies $\theta_{t-1}$ by $\lambda$ and adds it to the gradient; both engines here
        follow its for-loop, which rounds $1 - \lambda\eta_t$. torch keeps the step count, $\eta$ and $\mu$ on the
        parameter's device also if not `capturable`.

    Source:
        Polyak and Juditsky, "Acceleration of Stochastic Approximation by Averaging", SIAM J. Control and Optimization
        30, 1992; Xu, "Towards Optimal One Pass Large Scale Learning with Averaged Stochastic Gradient Descent", 2011;
        `torch/optim/asgd.py`.
    """

    rule = staticmethod(asgd_rule)
    captured = ("params, mus, etas, and state_steps", "params, mus, etas, and state_steps")
    capturable_on_xla = ("loop",)
    options_of_later_versions = {"foreach": None, "maximize": False, "differentiable": False, "capturable": False}

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-2,
        lambd: float = 1e-4,
        alpha: float = 0.75,
        t0: float = 1e6,
        weight_decay: float = 0,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
        capturable: bool = False,
        *,
        fused: bool | None = None,
    ) -> None:
        check_lr(lr)
        require(0.0 <= weight_decay, f"Invalid weight_decay value: {weight_decay}")
        defaults = {
            "lr": lr,
            "lambd": lambd,
            "alpha": alpha,
            "t0": t0,
            "weight_decay": weight_decay,
            "foreach": foreach,
            "maximize": maximize,
            "differentiable": differentiable,
            "capturable": capturable,
        }
        super().__init__(params, defaults if fused is None else {**defaults, "fused": fused})

    def new_state(self, group: dict[str, Any]) -> dict[str, Callable[[Tensor], Tensor] | None]:
        return {"ax": torch.zeros_like}

    def new_scalars(self, group: dict[str, Any]) -> dict[str, Any]:
        return {"eta": group["lr"], "mu": 1.0}

    def next_scalars(self, group: dict[str, Any], step: Any) -> dict[str, Any]:
        return asgd_next(group, step)

    def coefficients(self, group: dict[str, Any], step: Any, param: Tensor) -> dict[str, Any]:
        return asgd_coefficients(group)
