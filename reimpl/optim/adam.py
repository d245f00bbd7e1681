r"""Adam: running means of the gradient and of its square, each corrected for its start at zero."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from reimpl.optim.arguments import check_adam_options, decoupled_decay, require
from reimpl.optim.optimizer import RuleOptimizer


def adam_rule(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    max_exp_avg_sq: Tensor | None,
    decay: float | None,
    weight_decay: float,
    beta1: float,
    beta2: float,
    bias_correction2_sqrt: float,
    eps: float,
    step_size: float,
) -> None:
    """Update `param` once: `exp_avg` is m, `exp_avg_sq` is v, `max_exp_avg_sq` the largest v (AMSGrad) or None."""
    if decay is not None:
        param.mul_(decay)
    elif weight_decay != 0:
        grad = grad.add(param, alpha=weight_decay)
    exp_avg.lerp_(grad, 1 - beta1)
    exp_avg_sq.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
    if max_exp_avg_sq is not None:
        exp_avg_sq = max_exp_avg_sq.clamp_min_(exp_avg_sq)
    denominator = exp_avg_sq.sqrt().div_(bias_correction2_sqrt).add_(eps)
    param.addcdiv_(exp_avg, denominator, value=-step_size)


def adam_coefficients(group: dict[str, Any], step: Any) -> dict[str, Any]:
    """Return the rule's coefficients in the `step`-th update: `decay` is None unless decoupled."""
    beta1, beta2 = group["betas"]
    return {
        "decay": decoupled_decay(group),
        "weight_decay": group["weight_decay"],
        "beta1": beta1,
        "beta2": beta2,
        "bias_correction2_sqrt": (1 - beta2**step) ** 0.5,
        "eps": group["eps"],
        "step_size": group["lr"] / (1 - beta1**step),
    }


class Adam(RuleOptimizer):
    r"""Adam, with AMSGrad and decoupled weight decay (AdamW) as options.

    $$
    \begin{aligned}
    g_t &= \nabla f(\theta_{t-1}) + \lambda\,\theta_{t-1} \\
    m_t &= \beta_1 m_{t-1} + (1 - \beta_1)\, g_t \\
    v_t &= \beta_2 v_{t-1} + (1 - \beta_2)\, g_t^2 \\
    \theta_t &= \theta_{t-1} - \frac{\gamma}{1 - \beta_1^t} \cdot
      \frac{m_t}{\sqrt{v_t} / \sqrt{1 - \beta_2^t} + \epsilon}
    \end{aligned}
    $$

    AMSGrad puts $\max(v_1, \dots, v_t)$ in the place of $v_t$ in the last line. Decoupled decay leaves $g_t$ alone and
    multiplies $\theta_{t-1}$ by $1 - \gamma\lambda$ instead: `AdamW` is this rule with that option and another default.

    Args:
        params: tensors, `(name, tensor)` pairs, or dicts that define parameter groups.
        lr: learning rate $\gamma$, a number or a one-element tensor.
        betas: $\beta_1$ and $\beta_2$ in $[0, 1)$, two floats or two one-element tensors.
        eps: $\epsilon$, in the unit of the gradient; added to the root, not under it.
        weight_decay: $\lambda$; an L2 penalty on the loss unless `decoupled_weight_decay`.
        amsgrad: divide by the largest $v$ so far, which is taken before the bias correction.
        foreach: True for the foreach engine, False for the loop; None chooses as torch does (foreach on accelerators).
        maximize: climb instead of descend.
        capturable: keep the step count on the parameter's device, so that a CUDA graph can hold the step.
        differentiable: let autograd record the step.
        fused: True for the fused engine: the rule as one compiled kernel.
        decoupled_weight_decay: decay the parameter and not the gradient.

    State:
        step: the number of updates, a 0-dim float tensor, on the host unless `capturable`.
        exp_avg: $m$, of the parameter's shape and dtype.
        exp_avg_sq: $v$, likewise.
        max_exp_avg_sq: the largest $v$ so far; only with `amsgrad`.

    Raises:
        ValueError: for an `lr` or beta of several elements, a negative `lr`, `eps` or `weight_decay`, a beta outside
            $[0, 1)$, betas of two kinds, or a tensor `lr` or beta with `foreach=True` and not `capturable`.
        RuntimeError: for `fused=True` with `foreach` or `differentiable`; from `step`, for a sparse gradient.

    Differs from the paper:
        Nothing in Algorithm 1; the more efficient form just before its section 2.1, with another $\hat\epsilon$, is not
        what is computed. Loshchilov and Hutter decay by the schedule's multiplier times $\lambda$, here by
        $\gamma\lambda$.

    Differs from torch:
        Complex parameters with L2 weight decay in the loop engine: torch adds the penalty in complex arithmetic and
        rounds once more. With `differentiable=True` or `capturable=True` torch folds the step size into the
        denominator; here the rule stays as it is. With `differentiable=True` it also computes the bias corrections in
        the step count's float32; here they are Python floats. With tensor betas it computes the denominator of 0-dim
        float16 and bfloat16 parameters in float32.

    Source:
        Kingma and Ba, "Adam: A Method for Stochastic Optimization", ICLR 2015, Algorithm 1; Reddi, Kale and Kumar, "On
        the Convergence of Adam and Beyond", ICLR 2018, Algorithm 2; Loshchilov and Hutter, "Decoupled Weight Decay
        Regularization", ICLR 2019, Algorithm 2; `torch/optim/adam.py`.
    """

    rule = staticmethod(adam_rule)
    capturable_on_xla = ("loop",)
    options_of_later_versions = {
        "amsgrad": False,
        "maximize": False,
        "foreach": None,
        "capturable": False,
        "differentiable": False,
        "decoupled_weight_decay": False,
        "fused": None,
    }

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        amsgrad: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        decoupled_weight_decay: bool = False,
    ) -> None:
        if foreach and not capturable and isinstance(lr, Tensor):
            raise ValueError("lr as a Tensor is not supported for capturable=False and foreach=True")
        check_adam_options(lr, betas, eps, weight_decay)
        require(
            all(isinstance(beta, float) for beta in betas) or all(isinstance(beta, Tensor) for beta in betas),
            "betas must be either both floats or both Tensors",
        )
        for index, beta in enumerate(betas):
            if isinstance(beta, Tensor):
                require(
                    capturable or not foreach,
                    f"betas[{index}] as a Tensor is not supported for capturable=False and foreach=True",
                )
                require(beta.numel() == 1, f"Tensor betas[{index}] must be 1-element")
        defaults = {
            "lr": lr,
            "betas": tuple(beta.squeeze() if isinstance(beta, Tensor) and beta.dim() else beta for beta in betas),
            "eps": eps,
            "weight_decay": weight_decay,
            "amsgrad": amsgrad,
            "maximize": maximize,
            "foreach": foreach,
            "capturable": capturable,
            "differentiable": differentiable,
            "fused": fused,
            "decoupled_weight_decay": decoupled_weight_decay,
        }
        super().__init__(params, defaults)

    def new_state(self, group: dict[str, Any]) -> dict[str, Callable[[Tensor], Tensor] | None]:
        zeros = torch.zeros_like
        return {"exp_avg": zeros, "exp_avg_sq": zeros, "max_exp_avg_sq": zeros if group["amsgrad"] else None}

    def coefficients(self, group: dict[str, Any], step: Any, param: Tensor) -> dict[str, Any]:
        coefficients = adam_coefficients(group, step)
        if not isinstance(coefficients["beta1"], float):  # `lerp_` takes a weight of the parameter's dtype only
            coefficients["beta1"] = coefficients["beta1"].to(param)
        return coefficients

    def chooses_foreach(self, group: dict[str, Any], params: list[Tensor]) -> bool:
        tensor_lr = isinstance(group["lr"], Tensor) and not group["capturable"]
        return super().chooses_foreach(group, params) and (bool(group["foreach"]) or not tensor_lr)

    def check_group(self, group: dict[str, Any]) -> None:
        super().check_group(group)
        if group["foreach"] and not group["capturable"] and isinstance(group["lr"], Tensor):
            raise RuntimeError("lr as a Tensor is not supported for capturable=False and foreach=True")
        for index, beta in enumerate(group["betas"], start=1):
            if group["foreach"] and not group["capturable"] and isinstance(beta, Tensor):
                raise ValueError(f"beta{index} as a Tensor is not supported for capturable=False and foreach=True")

    def check_sparse(self, group: dict[str, Any], param: Tensor) -> None:
        raise RuntimeError("Adam does not support sparse gradients, please consider SparseAdam instead")
