r"""Adagrad: the gradient divided by the root of the sum of all its squares."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from reimpl.optim.arguments import check_lr, require
from reimpl.optim.optimizer import RuleOptimizer


def adagrad_rule(
    param: Tensor,
    grad: Tensor,
    sum: Tensor,
    lr: float,
    weight_decay: float,
    eps: float,
) -> None:
    """Update `param` once: `sum` is s, `lr` the decayed learning rate."""
    if weight_decay != 0:
        grad = grad.add(param, alpha=weight_decay)
    sum.addcmul_(grad, grad)
    param.addcdiv_(grad, sum.sqrt().add_(eps), value=-lr)


def adagrad_coefficients(group: dict[str, Any], step: Any) -> dict[str, Any]:
    """Return the rule's coefficients in the `step`-th update."""
    lr = group["lr"] / (1 + (step - 1) * group["lr_decay"])
    return {"lr": lr, "weight_decay": group["weight_decay"], "eps": group["eps"]}


class Adagrad(RuleOptimizer):
    r"""Adagrad: a learning rate for each coordinate, smaller the more gradient it has seen.

    $$
    \begin{aligned}
    g_t &= \nabla f(\theta_{t-1}) + \lambda\,\theta_{t-1} \\
    s_t &= s_{t-1} + g_t^2, \qquad s_0 = \tau \\
    \theta_t &= \theta_{t-1} - \frac{\gamma}{1 + (t - 1)\,\eta} \cdot \frac{g_t}{\sqrt{s_t} + \epsilon}
    \end{aligned}
    $$

    Args:
        params: tensors, `(name, tensor)` pairs, or dicts that define parameter groups.
        lr: learning rate $\gamma$, a number or a one-element tensor.
        lr_decay: $\eta$, a decay on top of the one that the growing sum brings; the first step is not decayed.
        weight_decay: $\lambda$, an L2 penalty: it enters the gradient.
        initial_accumulator_value: $\tau$, where the sum of squares starts, in both parts of a complex parameter. Above
            0 it keeps the first steps from having the size $\gamma$ whatever the gradient.
        eps: $\epsilon$, in the unit of the gradient; added to the root, not under it.
        foreach: True for the foreach engine, False for the loop; None chooses as torch does (foreach on accelerators).
        maximize: climb instead of descend.
        differentiable: let autograd record the step.
        fused: True for the fused engine: the rule as one compiled kernel.

    State:
        step: the number of updates, a 0-dim float tensor.
        sum: $s$, of the parameter's shape and dtype. Both exist from the constructor on.

    Raises:
        ValueError: for an `lr` of several elements, or a negative argument.
        RuntimeError: for `fused=True` with `foreach` or `differentiable`; from `step`, for a sparse gradient together
            with weight decay or `fused=True`.

    Differs from the paper:
        Only the diagonal form; $\epsilon$ stands outside the root, where the paper's $\delta$ also stands. `lr_decay`,
        `weight_decay` and $\tau$ are not in it.

    Differs from torch:
        Complex parameters with weight decay in the loop engine: torch adds the penalty in complex arithmetic and rounds
        once more. In float16 and bfloat16 torch's foreach path rounds $\gamma g_t$ before it divides; the foreach
        engine here gives the loop's bits.

    Source:
        Duchi, Hazan and Singer, "Adaptive Subgradient Methods for Online Learning and Stochastic Optimization", JMLR
        12, 2011, Figure 1; `torch/optim/adagrad.py`.
    """

    rule = staticmethod(adagrad_rule)
    options_of_later_versions = {"foreach": None, "maximize": False, "differentiable": False, "fused": None}

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-2,
        lr_decay: float = 0,
        weight_decay: float = 0,
        initial_accumulator_value: float = 0,
        eps: float = 1e-10,
        foreach: bool | None = None,
        *,
        maximize: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        check_lr(lr)
        require(0.0 <= lr_decay, f"Invalid lr_decay value: {lr_decay}")
        require(0.0 <= weight_decay, f"Invalid weight_decay value: {weight_decay}")
        require(
            0.0 <= initial_accumulator_value,
            f"Invalid initial_accumulator_value value: {initial_accumulator_value}",
        )
        require(0.0 <= eps, f"Invalid epsilon value: {eps}")
        defaults = {
            "lr": lr,
            "lr_decay": lr_decay,
            "eps": eps,
            "weight_decay": weight_decay,
            "initial_accumulator_value": initial_accumulator_value,
            "foreach": foreach,
            "maximize": maximize,
            "differentiable": differentiable,
            "fused": fused,
        }
        super().__init__(params, defaults)
        for group in self.param_groups:
            for param in group["params"]:
                self.state[param] = self.create_state(group, param)

    def share_memory(self) -> None:
        """Move the sums to shared memory, so that several processes can train one model (Hogwild)."""
        for group in self.param_groups:
            for param in group["params"]:
                self.state[param]["sum"].share_memory_()

    def new_state(self, group: dict[str, Any]) -> dict[str, Callable[[Tensor], Tensor] | None]:
        # torch reads the constructor's value, also for a group that names one of its own.
        start = self.defaults["initial_accumulator_value"]
        return {"sum": lambda param: torch.full_like(param, start)}

    def coefficients(self, group: dict[str, Any], step: Any, param: Tensor) -> dict[str, Any]:
        return adagrad_coefficients(group, step)

    def check_sparse(self, group: dict[str, Any], param: Tensor) -> None:
        if group["fused"]:
            raise RuntimeError("`fused` does not support sparse grad or complex param")
        if group["weight_decay"] != 0:
            raise RuntimeError("weight_decay option is not compatible with sparse gradients")
