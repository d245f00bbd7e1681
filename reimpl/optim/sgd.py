r"""Stochastic gradient descent, with momentum as torch defines it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from reimpl.optim.arguments import check_tensor_lr, require
from reimpl.optim.optimizer import FIRST, RuleOptimizer


def sgd_rule(
    param: Tensor,
    grad: Tensor,
    momentum_buffer: Tensor | None,
    lr: float,
    weight_decay: float,
    momentum: float,
    dampening: float,
    nesterov: bool,
    first_step: bool,
) -> None:
    """Update `param` once: `momentum_buffer` is b, already $b_1$ in the first step, None without momentum."""
    if weight_decay != 0:
        grad = grad.add(param, alpha=weight_decay)
    if momentum_buffer is not None:
        if not first_step:
            momentum_buffer.mul_(momentum).add_(grad, alpha=1 - dampening)
        grad = grad.add(momentum_buffer, alpha=momentum) if nesterov else momentum_buffer
    param.add_(grad, alpha=-lr)


def sgd_coefficients(group: dict[str, Any], step: float) -> dict[str, Any]:
    """Return the rule's coefficients: the options as they are, and whether this is the first update."""
    names = ("lr", "weight_decay", "momentum", "dampening", "nesterov")
    coefficients = {name: group[name] for name in names} | {"first_step": step == FIRST}
    if group["fused"] and step == FIRST:  # b_1 = g_1 follows from b_0 = 0 too, without a kernel of its own
        coefficients |= {"dampening": 0, "first_step": False}
    return coefficients


def first_buffer(group: dict[str, Any], param: Tensor) -> Tensor:
    """Return the buffer of the first step: the gradient as it is, undampened, with weight decay."""
    assert param.grad is not None
    if group["fused"]:
        return torch.zeros_like(param.grad)
    grad = -param.grad if group["maximize"] else param.grad
    weight_decay = group["weight_decay"]
    if isinstance(weight_decay, Tensor) and weight_decay.requires_grad:
        return grad.addcmul(param.clone(), weight_decay)  # autograd will look at the value of before
    return grad.add(param, alpha=weight_decay) if weight_decay != 0 else grad.clone()


class SGD(RuleOptimizer):
    r"""Stochastic gradient descent, optionally with (Nesterov) momentum.

    $$
    \begin{aligned}
    g_t &= \nabla f(\theta_{t-1}) + \lambda\,\theta_{t-1} \\
    b_1 &= g_1, \qquad b_t = \mu\, b_{t-1} + (1 - \tau)\, g_t \\
    \theta_t &= \theta_{t-1} - \gamma\, b_t
      \qquad\text{(Nesterov: } \theta_{t-1} - \gamma\,(g_t + \mu\, b_t)\text{)}
    \end{aligned}
    $$

    Args:
        params: tensors, `(name, tensor)` pairs, or dicts that define parameter groups.
        lr: learning rate $\gamma$, a number or a one-element tensor.
        momentum: $\mu$; 0 keeps no buffer.
        dampening: $\tau$, how much of each new gradient is kept out of the buffer. The first is taken whole.
        weight_decay: $\lambda$, an L2 penalty: it enters the gradient, and so the buffer.
        nesterov: step along the gradient plus the decayed buffer. Needs momentum, and no dampening.
        maximize: climb instead of descend: $-\nabla f$ takes the place of $\nabla f$; weight decay still decays.
        foreach: True for the foreach engine, False for the loop; None chooses as torch does (foreach on accelerators).
        differentiable: let autograd record the step.
        fused: True for the fused engine: the rule as one compiled kernel.

    State:
        momentum_buffer: $b$, of the shape, dtype and layout of $g_1$; absent if `momentum` is 0.

    Raises:
        ValueError: for an `lr` of several elements, a negative `lr`, `momentum` or `weight_decay`, or `nesterov`
            without momentum or with dampening.
        RuntimeError: for `fused=True` with `foreach` or `differentiable`; from `step`, for a sparse gradient together
            with weight decay or `fused=True`.

    Differs from the paper:
        Sutskever et al. scale the gradient by the learning rate as it enters the velocity, $v_t = \mu v_{t-1} - \gamma
        g_t$; here $\gamma$ scales the finished buffer. The paths are equal while $\gamma$ is constant. The Nesterov
        form keeps the look-ahead point as the parameter.

    Differs from torch:
        With `foreach=True` and `nesterov=True`, torch's step overwrites `p.grad`; this one does not. With `fused=True`
        on the CPU, torch's leaves most of a float16 or bfloat16 parameter as it was; this one moves all of it. With
        `differentiable=True`, gradients flow through the first step's buffer too, which torch detaches.

    Source:
        Sutskever, Martens, Dahl and Hinton, "On the importance of initialization and momentum in deep learning", ICML
        2013, equations 1 to 4; `torch/optim/sgd.py`.
    """

    rule = staticmethod(sgd_rule)
    counts_steps = False
    linear = True
    options_of_later_versions = {
        "nesterov": False,
        "maximize": False,
        "foreach": None,
        "differentiable": False,
        "fused": False,
    }

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float | Tensor = 0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        check_tensor_lr(lr)
        require(not lr < 0.0, f"Invalid learning rate: {lr}")
        require(not momentum < 0.0, f"Invalid momentum value: {momentum}")
        require(not weight_decay < 0.0, f"Invalid weight_decay value: {weight_decay}")
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "maximize": maximize,
            "foreach": foreach,
            "differentiable": differentiable,
            "fused": fused,
        }
        require(
            not nesterov or (momentum > 0 and dampening == 0),
            "Nesterov momentum requires a momentum and zero dampening",
        )
        super().__init__(params, defaults)

    def new_state(self, group: dict[str, Any]) -> dict[str, Callable[[Tensor], Tensor] | None]:
        return {"momentum_buffer": partial(first_buffer, group) if group["momentum"] != 0 else None}

    def coefficients(self, group: dict[str, Any], step: Any, param: Tensor) -> dict[str, Any]:
        return sgd_coefficients(group, step)

    def check_sparse(self, group: dict[str, Any], param: Tensor) -> None:
        if group["fused"]:
            raise RuntimeError("`_fused_sgd` does not support sparse gradients")
        if group["weight_decay"] != 0 and param.grad is not None:
            param.grad.add(param, alpha=group["weight_decay"])  # raises: torch adds no dense tensor to a sparse one
