r"""RMSprop: the gradient divided by a running root mean square of itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from reimpl.optim.arguments import check_lr, require
from reimpl.optim.optimizer import RuleOptimizer


def rmsprop_rule(
    param: Tensor,
    grad: Tensor,
    square_avg: Tensor,
    momentum_buffer: Tensor | None,
    grad_avg: Tensor | None,
    lr: float,
    alpha: float,
    eps: float,
    weight_decay: float,
    momentum: float,
) -> None:
    """Update `param` once: `square_avg` is v, `momentum_buffer` is b or None, `grad_avg` is the mean or None."""
    if weight_decay != 0:
        grad = grad.add(param, alpha=weight_decay)
    square_avg.mul_(alpha).addcmul_(grad, grad, value=1 - alpha)
    if grad_avg is not None:
        grad_avg.lerp_(grad, 1 - alpha)
        variance = square_avg.addcmul(grad_avg, grad_avg, value=-1).clamp_min_(0)  # rounding can make it negative
        denominator = variance.sqrt_().add_(eps)
    else:
        denominator = square_avg.sqrt().add_(eps)
    if momentum_buffer is not None:
        momentum_buffer.mul_(momentum).addcdiv_(grad, denominator)
        param.add_(momentum_buffer, alpha=-lr)
    else:
        param.addcdiv_(grad, denominator, value=-lr)


def rmsprop_coefficients(group: dict[str, Any]) -> dict[str, Any]:
    """Return the rule's coefficients: the options as they are."""
    return {name: group[name] for name in ("lr", "alpha", "eps", "weight_decay", "momentum")}


class RMSprop(RuleOptimizer):
    r"""RMSprop, optionally centered and with momentum.

    $$
    \begin{aligned}
    g_t &= \nabla f(\theta_{t-1}) + \lambda\,\theta_{t-1} \\
    v_t &= \alpha\, v_{t-1} + (1 - \alpha)\, g_t^2 \\
    d_t &= \sqrt{v_t} + \epsilon \qquad\text{(centered: } \sqrt{v_t - \bar g_t^2} + \epsilon,\;
      \bar g_t = \alpha\, \bar g_{t-1} + (1 - \alpha)\, g_t\text{)} \\
    b_t &= \mu\, b_{t-1} + g_t / d_t \\
    \theta_t &= \theta_{t-1} - \gamma\, b_t
    \end{aligned}
    $$

    Args:
        params: tensors, `(name, tensor)` pairs, or dicts that define parameter groups.
        lr: learning rate $\gamma$, a number or a one-element tensor.
        alpha: $\alpha$, the weight of the past in the running mean of squares.
        eps: $\epsilon$, in the unit of the gradient; added to the root, not under it.
        weight_decay: $\lambda$, an L2 penalty: it enters the gradient.
        momentum: $\mu$, of a buffer of gradients that are already divided; 0 keeps no buffer.
        centered: divide by the running standard deviation instead of the root mean square.
        capturable: keep the step count on the parameter's device, so that a CUDA graph can hold the step.
        foreach: True for the foreach engine, False for the loop; None chooses as torch does (foreach on accelerators).
        maximize: climb instead of descend.
        differentiable: let autograd record the step.
        fused: True for the fused engine: the rule as one compiled kernel. torch has no such argument here; the
            parameter groups name it only if it is given.

    State:
        step: the number of updates, a 0-dim float tensor. The rule does not need it.
        square_avg: $v$, of the parameter's shape and dtype.
        momentum_buffer: $b$, likewise; only with `momentum`.
        grad_avg: $\bar g$, likewise; only with `centered`.

    Raises:
        ValueError: for an `lr` of several elements, or a negative `lr`, `eps`, `momentum`, `weight_decay` or `alpha`.
        RuntimeError: from `step`, for a sparse gradient.

    Differs from the paper:
        There is only a lecture: its slides have neither $\epsilon$ nor a bias correction, and so the first step is
        $\gamma / \sqrt{1 - \alpha}$ whatever the gradient. Graves has $\epsilon$ under the root, and the learning rate
        inside the buffer.

    Differs from torch:
        Complex parameters with weight decay in the loop engine: torch adds the penalty in complex arithmetic and rounds
        once more. Where rounding makes the centered difference negative, as it can if the gradient hardly changes, it
        is taken as 0 here, so that the step is $\gamma g / \epsilon$; torch's root of it is NaN, and the parameter with
        it.

    Source:
        Tieleman and Hinton, "Neural Networks for Machine Learning", lecture 6.5, 2012; Graves, "Generating
        Sequences With Recurrent Neural Networks", 2013, equations 38 to 45; `torch/optim/rmsprop.py`.
    """

    rule = staticmethod(rmsprop_rule)
    reads_steps = False
    options_of_later_versions = {
        "momentum": 0,
        "centered": False,
        "foreach": None,
        "maximize": False,
        "differentiable": False,
        "capturable": False,
    }

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0,
        momentum: float = 0,
        centered: bool = False,
        capturable: bool = False,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
        *,
        fused: bool | None = None,
    ) -> None:
        check_lr(lr)
        require(0.0 <= eps, f"Invalid epsilon value: {eps}")
        require(0.0 <= momentum, f"Invalid momentum value: {momentum}")
        require(0.0 <= weight_decay, f"Invalid weight_decay value: {weight_decay}")
        require(0.0 <= alpha, f"Invalid alpha value: {alpha}")
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "alpha": alpha,
            "eps": eps,
            "centered": centered,
            "weight_decay": weight_decay,
            "capturable": capturable,
            "foreach": foreach,
            "maximize": maximize,
            "differentiable": differentiable,
        }
        super().__init__(params, defaults if fused is None else {**defaults, "fused": fused})

    def new_state(self, group: dict[str, Any]) -> dict[str, Callable[[Tensor], Tensor] | None]:
        zeros = torch.zeros_like
        return {
            "square_avg": zeros,
            "momentum_buffer": zeros if group["momentum"] > 0 else None,
            "grad_avg": zeros if group["centered"] else None,
        }

    def coefficients(self, group: dict[str, Any], step: Any, param: Tensor) -> dict[str, Any]:
        return rmsprop_coefficients(group)
