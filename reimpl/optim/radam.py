r"""RAdam: Adam that waits, as plain momentum, until its second moment can be trusted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from reimpl.optim.arguments import check_adam_options, decoupled_decay
from reimpl.optim.engines import TensorList
from reimpl.optim.optimizer import RuleOptimizer

TRUSTED_LENGTH = 5.0
r"""From this $\rho_t$ on the second moment is used."""


def radam_rule(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    decay: float | None,
    weight_decay: float,
    beta1: float,
    beta2: float,
    bias_correction1: float,
    bias_correction2_sqrt: float,
    eps: float,
    lr: float,
    rectification: float | None,
    unrectified: float | None,
) -> None:
    """Update `param` once: `exp_avg` is m, `exp_avg_sq` is v; `rectification` is None where v is not used yet.

    In a graph nobody knows that: `unrectified` is 1 there and `rectification` 0 where v is not used, and the other way
    round. Elsewhere `unrectified` is None.
    """
    if decay is not None:
        param.mul_(decay)
    elif weight_decay != 0:
        grad = grad.add(param, alpha=weight_decay)
    exp_avg.lerp_(grad, 1 - beta1)
    exp_avg_sq.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
    update = exp_avg.div(bias_correction1).mul_(lr)
    if rectification is not None:
        adaptive = exp_avg_sq.sqrt().add_(eps).reciprocal_().mul_(bias_correction2_sqrt)
        if unrectified is None:
            update.mul_(adaptive).mul_(rectification)
        else:
            update.mul_(adaptive.mul_(rectification).add_(unrectified))
    param.sub_(update)


def radam_coefficients(group: dict[str, Any], step: Any) -> dict[str, Any]:
    """Return the rule's coefficients in the `step`-th update: `decay` is None unless decoupled."""
    beta1, beta2 = group["betas"]
    rectification, unrectified = radam_rectification(beta2, step)
    return {
        "decay": decoupled_decay(group),
        "weight_decay": group["weight_decay"],
        "beta1": beta1,
        "beta2": beta2,
        "bias_correction1": 1 - beta1**step,
        "bias_correction2_sqrt": (1 - beta2**step) ** 0.5,
        "eps": group["eps"],
        "lr": group["lr"],
        "rectification": rectification,
        "unrectified": unrectified,
    }


def radam_rectification(beta2: float, step: Any) -> tuple[Any, Any]:
    r"""Return $r_t$, None where $\rho_t$ is too small; in a graph 0 there, and beside it 1 there and 0 elsewhere."""
    rho_inf = 2 / (1 - beta2) - 1
    rho = rho_inf - 2 * step * (beta2**step) / (1 - beta2**step)
    trusted = rho > TRUSTED_LENGTH
    if trusted is False:
        return None, None
    rectification = ((rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho)) ** 0.5
    if isinstance(trusted, TensorList):
        return rectification.where(trusted, 0.0), 1 - trusted.to(torch.float32)
    return rectification, None


class RAdam(RuleOptimizer):
    r"""RAdam: rectified Adam, with L2 or decoupled weight decay.

    $$
    \begin{aligned}
    g_t &= \nabla f(\theta_{t-1}) + \lambda\,\theta_{t-1} \\
    m_t &= \beta_1 m_{t-1} + (1 - \beta_1)\, g_t \\
    v_t &= \beta_2 v_{t-1} + (1 - \beta_2)\, g_t^2 \\
    \rho_t &= \rho_\infty - \frac{2 t \beta_2^t}{1 - \beta_2^t}, \qquad \rho_\infty = \frac{2}{1 - \beta_2} - 1 \\
    r_t &= \sqrt{\frac{(\rho_t - 4)(\rho_t - 2)\rho_\infty}{(\rho_\infty - 4)(\rho_\infty - 2)\rho_t}} \\
    \theta_t &= \theta_{t-1} - \gamma\, \frac{m_t}{1 - \beta_1^t} \cdot
      \begin{cases}
      r_t\, \sqrt{1 - \beta_2^t} \,/\, (\sqrt{v_t} + \epsilon) & \text{if } \rho_t > 5 \\
      1 & \text{otherwise}
      \end{cases}
    \end{aligned}
    $$

    $\rho_t$ is the length of the simple average that is as uncertain as $v_t$: in the first steps $v$ rests on so few
    gradients that dividing by it would do harm. Decoupled decay leaves $g_t$ alone and multiplies $\theta_{t-1}$ by
    $1 - \gamma\lambda$ instead.

    Args:
        params: tensors, `(name, tensor)` pairs, or dicts that define parameter groups.
        lr: learning rate $\gamma$, a number or a one-element tensor. In the first steps (five with the default betas)
            it multiplies the mean gradient itself, which may be large.
        betas: $\beta_1$ and $\beta_2$ in $[0, 1)$. With $\beta_2 \le 2/3$, $\rho_\infty$ is not above 5 and $v$ is
            never used.
        eps: $\epsilon$, in the unit of the gradient; added to the root before its bias is corrected.
        weight_decay: $\lambda$; an L2 penalty on the loss unless `decoupled_weight_decay`.
        decoupled_weight_decay: decay the parameter and not the gradient.
        foreach: True for the foreach engine, False for the loop; None chooses as torch does (foreach on accelerators).
        maximize: climb instead of descend.
        capturable: keep the step count on the parameter's device, so that a CUDA graph can hold the step.
        differentiable: let autograd record the step.
        fused: True for the fused engine: the rule as one compiled kernel. torch has no such argument here; the
            parameter groups name it only if it is given.

    State:
        step: the number of updates, a 0-dim float tensor, on the host unless `capturable`.
        exp_avg: $m$, of the parameter's shape and dtype.
        exp_avg_sq: $v$, likewise.

    Raises:
        ValueError: for an `lr` of several elements, a negative `lr`, `eps` or `weight_decay`, or a beta outside of
            $[0, 1)$.
        RuntimeError: from `step`, for a sparse gradient.

    Differs from the paper:
        Algorithm 2 asks $\rho_t > 4$, where $r_t$ begins to exist; 5 is what its authors' code asks. $\epsilon$ is not
        in it, and stands here where the bias is not corrected yet, unlike Adam's: it counts $1 / \sqrt{1 - \beta_2^t}$
        times as much.

    Differs from torch:
        torch's foreach path folds step size, rectification and bias corrections into two numbers; both engines here
        follow its for-loop.

    Source:
        Liu et al., "On the Variance of the Adaptive Learning Rate and Beyond", ICLR 2020, Algorithm 2;
        `torch/optim/radam.py`.
    """

    rule = staticmethod(radam_rule)
    capturable_on_xla = ("loop",)
    options_of_later_versions = {
        "foreach": None,
        "maximize": False,
        "differentiable": False,
        "decoupled_weight_decay": False,
        "capturable": False,
    }

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        decoupled_weight_decay: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        check_adam_options(lr, betas, eps, weight_decay)
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "maximize": maximize,
            "foreach": foreach,
            "capturable": capturable,
            "decoupled_weight_decay": decoupled_weight_decay,
            "differentiable": differentiable,
        }
        super().__init__(params, defaults if fused is None else {**defaults, "fused": fused})

    def new_state(self, group: dict[str, Any]) -> dict[str, Callable[[Tensor], Tensor] | None]:
        return {"exp_avg": torch.zeros_like, "exp_avg_sq": torch.zeros_like}

    def coefficients(self, group: dict[str, Any], step: Any, param: Tensor) -> dict[str, Any]:
        return radam_coefficients(group, step)
