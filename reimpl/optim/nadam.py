r"""NAdam: Adam with Nesterov's look-ahead in the first moment."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from reimpl.optim.arguments import check_adam_options, decoupled_decay, require
from reimpl.optim.optimizer import RuleOptimizer, as_number


def nadam_rule(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    decay: float | None,
    weight_decay: float,
    beta1: float,
    beta2: float,
    bias_correction2: float,
    eps: float,
    grad_step_size: float,
    exp_avg_step_size: float,
) -> None:
    """Update `param` once: `exp_avg` is m, `exp_avg_sq` is v."""
    if decay is not None:
        param.mul_(decay)
    elif weight_decay != 0:
        grad = grad.add(param, alpha=weight_decay)
    exp_avg.lerp_(grad, 1 - beta1)
    exp_avg_sq.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
    denominator = exp_avg_sq.div(bias_correction2).sqrt_().add_(eps)
    param.addcdiv_(grad, denominator, value=-grad_step_size)
    param.addcdiv_(exp_avg, denominator, value=-exp_avg_step_size)


def nadam_momentum(group: dict[str, Any], step: Any) -> Any:
    r"""Return the momentum $\mu_t$ of the `step`-th update."""
    return group["betas"][0] * (1.0 - 0.5 * 0.96 ** (step * group["momentum_decay"]))


def nadam_coefficients(group: dict[str, Any], step: Any) -> dict[str, Any]:
    """Return the rule's coefficients in the `step`-th update: `decay` is None unless decoupled."""
    lr, (beta1, beta2) = group["lr"], group["betas"]
    momentum, next_momentum = nadam_momentum(group, step), nadam_momentum(group, step + 1)
    product = group["mu_product"] * momentum
    product = product if isinstance(momentum, Tensor) else as_number(product)
    return {
        "decay": decoupled_decay(group),
        "weight_decay": group["weight_decay"],
        "beta1": beta1,
        "beta2": beta2,
        "bias_correction2": 1 - beta2**step,
        "eps": group["eps"],
        "grad_step_size": lr * (1.0 - momentum) / (1.0 - product),
        "exp_avg_step_size": lr * next_momentum / (1.0 - product * next_momentum),
    }


class NAdam(RuleOptimizer):
    r"""NAdam, with L2 or decoupled weight decay.

    $$
    \begin{aligned}
    g_t &= \nabla f(\theta_{t-1}) + \lambda\,\theta_{t-1} \\
    \mu_t &= \beta_1 \bigl(1 - \tfrac{1}{2}\, 0.96^{\,t \psi}\bigr) \\
    m_t &= \beta_1 m_{t-1} + (1 - \beta_1)\, g_t \\
    v_t &= \beta_2 v_{t-1} + (1 - \beta_2)\, g_t^2 \\
    \hat m_t &= \frac{\mu_{t+1}\, m_t}{1 - \prod_{i=1}^{t+1} \mu_i}
      + \frac{(1 - \mu_t)\, g_t}{1 - \prod_{i=1}^{t} \mu_i} \\
    \theta_t &= \theta_{t-1} - \gamma\, \frac{\hat m_t}{\sqrt{v_t / (1 - \beta_2^t)} + \epsilon}
    \end{aligned}
    $$

    Decoupled decay leaves $g_t$ alone and multiplies $\theta_{t-1}$ by $1 - \gamma\lambda$ instead.

    Args:
        params: tensors, `(name, tensor)` pairs, or dicts that define parameter groups.
        lr: learning rate $\gamma$, a number or a one-element tensor.
        betas: $\beta_1$ and $\beta_2$ in $[0, 1)$.
        eps: $\epsilon$, in the unit of the gradient; added to the root, not under it.
        weight_decay: $\lambda$; an L2 penalty on the loss unless `decoupled_weight_decay`.
        momentum_decay: $\psi$, how fast the momentum $\mu_t$ rises from about $\beta_1 / 2$ to $\beta_1$. With the
            default it is half way there after some 4,200 steps; with 0 it stays at $\beta_1 / 2$.
        decoupled_weight_decay: decay the parameter and not the gradient.
        foreach: True for the foreach engine, False for the loop; None chooses as torch does (foreach on accelerators).
        maximize: climb instead of descend.
        capturable: keep step count and product on the parameter's device, so that a CUDA graph can hold the step.
        differentiable: let autograd record the step.
        fused: True for the fused engine: the rule as one compiled kernel. torch has no such argument here; the
            parameter groups name it only if it is given.

    State:
        step: the number of updates, a 0-dim float tensor, on the host unless `capturable`.
        mu_product: $\prod_{i \le t} \mu_i$, likewise.
        exp_avg: $m$, of the parameter's shape and dtype.
        exp_avg_sq: $v$, likewise.

    Raises:
        ValueError: for an `lr` of several elements, a negative `lr`, `eps`, `weight_decay` or `momentum_decay`, or a
            beta outside of $[0, 1)$.
        RuntimeError: from `step`, for a sparse gradient.

    Differs from the paper:
        The paper's running mean $m$ is made with $\mu_t$, this one with $\beta_1$. $\psi$ is a constant there, 1/250.

    Differs from torch:
        torch's foreach path divides $\sqrt{v_t}$ by $\sqrt{1 - \beta_2^t}$; both engines here divide $v_t$, as its
        for-loop does. With `capturable=True` or `differentiable=True` torch multiplies the step sizes into the
        numerators first; here the rule stays as it is.

    Source:
        Dozat, "Incorporating Nesterov Momentum into Adam", ICLR workshop 2016; `torch/optim/nadam.py`.
    """

    rule = staticmethod(nadam_rule)
    captured = ("params, mu_products and state_steps", "params, mu_products, and state_steps")
    capturable_on_xla = ("loop",)
    options_of_later_versions = {
        "maximize": False,
        "foreach": None,
        "capturable": False,
        "differentiable": False,
        "decoupled_weight_decay": False,
    }

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 2e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        momentum_decay: float = 4e-3,
        decoupled_weight_decay: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        check_adam_options(lr, betas, eps, weight_decay)
        require(0.0 <= momentum_decay, f"Invalid momentum_decay value: {momentum_decay}")
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "momentum_decay": momentum_decay,
            "decoupled_weight_decay": decoupled_weight_decay,
            "maximize": maximize,
            "foreach": foreach,
            "capturable": capturable,
            "differentiable": differentiable,
        }
        super().__init__(params, defaults if fused is None else {**defaults, "fused": fused})

    def new_state(self, group: dict[str, Any]) -> dict[str, Callable[[Tensor], Tensor] | None]:
        return {"exp_avg": torch.zeros_like, "exp_avg_sq": torch.zeros_like}

    def new_scalars(self, group: dict[str, Any]) -> dict[str, Any]:
        return {"mu_product": 1.0}

    def next_scalars(self, group: dict[str, Any], step: Any) -> dict[str, Any]:
        return {"mu_product": group["mu_product"] * nadam_momentum(group, step)}

    def coefficients(self, group: dict[str, Any], step: Any, param: Tensor) -> dict[str, Any]:
        return nadam_coefficients(group, step)
