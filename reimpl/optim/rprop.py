r"""Rprop: each coordinate has a step size of its own; of the gradient only the sign counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from reimpl.optim.arguments import check_lr, require
from reimpl.optim.optimizer import RuleOptimizer


def rprop_rule(
    param: Tensor,
    grad: Tensor,
    prev: Tensor,
    step_size: Tensor,
    eta_minus: float,
    eta_plus: float,
    smallest: float,
    largest: float,
) -> None:
    """Update `param` once: `prev` is the gradient before, `step_size` is Δ."""
    factor = grad.mul(prev).sign_()
    turned = factor.lt(0)
    factor.masked_fill_(factor.gt(0), eta_plus).masked_fill_(turned, eta_minus).masked_fill_(factor.eq(0), 1)
    step_size.mul_(factor).clamp_(smallest, largest)
    grad = grad.masked_fill(turned, 0)
    param.addcmul_(grad.sign(), step_size, value=-1)
    prev.copy_(grad)


def rprop_coefficients(group: dict[str, Any]) -> dict[str, Any]:
    """Return the rule's coefficients: the options as they are. `lr` is not among them."""
    (eta_minus, eta_plus), (smallest, largest) = group["etas"], group["step_sizes"]
    return {"eta_minus": eta_minus, "eta_plus": eta_plus, "smallest": smallest, "largest": largest}


class Rprop(RuleOptimizer):
    r"""Rprop, in the form without backtracking (iRprop−).

    $$
    \begin{aligned}
    \Delta_t &= \begin{cases}
      \min(\eta^{+} \Delta_{t-1},\; \Delta_{\max}) & \text{if } g_t\, \tilde g_{t-1} > 0 \\
      \max(\eta^{-} \Delta_{t-1},\; \Delta_{\min}) & \text{if } g_t\, \tilde g_{t-1} < 0 \\
      \Delta_{t-1} & \text{otherwise}
      \end{cases} \\
    \tilde g_t &= \begin{cases} 0 & \text{if } g_t\, \tilde g_{t-1} < 0 \\ g_t & \text{otherwise} \end{cases} \\
    \theta_t &= \theta_{t-1} - \operatorname{sign}(\tilde g_t)\, \Delta_t
    \end{aligned}
    $$

    Where the gradient has turned, the step was too long: it is shortened, and the coordinate waits for one step. The
    sign says nothing about a mini-batch's noise, so this is a method for full batches.

    Args:
        params: tensors, `(name, tensor)` pairs, or dicts that define parameter groups.
        lr: $\Delta_0$, in the unit of the parameter, a number or a one-element tensor. It is read once, before a
            parameter's first update; a scheduler changes nothing after that.
        etas: $\eta^{-}$ and $\eta^{+}$, $0 < \eta^{-} < 1 < \eta^{+}$.
        step_sizes: $\Delta_{\min}$ and $\Delta_{\max}$; the first step is bounded by them too.
        capturable: keep the step count on the parameter's device, so that a CUDA graph can hold the step.
        foreach: True for the foreach engine, False for the loop; None chooses as torch does (foreach on accelerators).
        maximize: climb instead of descend.
        differentiable: let autograd record the step.
        fused: True for the fused engine: the rule as one compiled kernel. torch has no such argument here; the
            parameter groups name it only if it is given.

    State:
        step: the number of updates, a 0-dim float tensor. The rule does not need it.
        prev: $\tilde g$, of the parameter's shape and dtype.
        step_size: $\Delta$, likewise, in both parts of a complex parameter.

    Raises:
        ValueError: for an `lr` of several elements, a negative `lr`, or `etas` that do not stand around 1.
        RuntimeError: from `step`, for a sparse gradient.

    Differs from the paper:
        Riedmiller and Braun take the last step back where the gradient turns; this is the variant that Igel and Hüsken
        found to do better without.

    Differs from torch:
        With `maximize` on complex parameters in the loop engine, the sign of a zero in `prev`; no step differs.

    Source:
        Riedmiller and Braun, "A direct adaptive method for faster backpropagation learning: the RPROP algorithm", ICNN
        1993; Igel and Hüsken, "Improving the Rprop learning algorithm", NC 2000; `torch/optim/rprop.py`.
    """

    rule = staticmethod(rprop_rule)
    reads_steps = False
    options_of_later_versions = {"foreach": None, "maximize": False, "differentiable": False, "capturable": False}

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-2,
        etas: tuple[float, float] = (0.5, 1.2),
        step_sizes: tuple[float, float] = (1e-6, 50),
        *,
        capturable: bool = False,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        check_lr(lr)
        require(0.0 < etas[0] < 1.0 < etas[1], f"Invalid eta values: {etas[0]}, {etas[1]}")
        defaults = {
            "lr": lr,
            "etas": etas,
            "step_sizes": step_sizes,
            "foreach": foreach,
            "maximize": maximize,
            "differentiable": differentiable,
            "capturable": capturable,
        }
        super().__init__(params, defaults if fused is None else {**defaults, "fused": fused})

    def new_state(self, group: dict[str, Any]) -> dict[str, Callable[[Tensor], Tensor] | None]:
        return {"prev": torch.zeros_like, "step_size": lambda param: torch.full_like(param, float(group["lr"]))}

    def coefficients(self, group: dict[str, Any], step: Any, param: Tensor) -> dict[str, Any]:
        return rprop_coefficients(group)
