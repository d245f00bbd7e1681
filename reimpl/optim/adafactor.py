r"""Adafactor: Adam's second moment from row and column means, with steps in the unit of the weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from reimpl.optim.arguments import check_tensor_lr, require
from reimpl.optim.optimizer import RuleOptimizer


def adafactor_rule(
    param: Tensor,
    grad: Tensor,
    row_var: Tensor | None,
    col_var: Tensor | None,
    variance: Tensor | None,
    decay: float | None,
    one_minus_beta2: float,
    relative_step: float,
    eps1: float,
    eps2: float,
    d: float,
) -> None:
    """Update `param` once: `row_var` is R and `col_var` is C of a matrix, `variance` is v of anything smaller."""
    if param.numel() == 0:
        return
    step_size = max(eps2, root_mean_square(param)) * relative_step
    if decay is not None:
        param.mul_(decay)
    if row_var is not None and col_var is not None:
        row_var.lerp_(mean_square(grad, -1), one_minus_beta2)
        col_var.lerp_(mean_square(grad, -2), one_minus_beta2)
        estimate = (row_var @ col_var).div_(row_var.mean(dim=-2, keepdim=True).clamp_(min=eps1))
    elif variance is not None:
        variance.lerp_(grad * grad, one_minus_beta2)
        estimate = variance.clone()
    update = estimate.clamp_(min=eps1 * eps1).rsqrt_().mul_(grad)
    param.add_(update, alpha=-step_size / max(1.0, root_mean_square(update) / d))


def root_mean_square(tensor: Tensor) -> float:
    """Return the root of the mean of all squares."""
    return float(tensor.norm(2).item() / tensor.numel() ** 0.5)


def mean_square(tensor: Tensor, dim: int) -> Tensor:
    """Return the means of squares over a dimension, which stays with size 1, without a tensor of all squares."""
    norm: Tensor = tensor.norm(dim=dim, keepdim=True)
    return norm.square_().div_(tensor.size(dim))


def adafactor_coefficients(group: dict[str, Any], step: float, dtype: torch.dtype) -> dict[str, Any]:
    """Return the rule's coefficients in the `step`-th update, for parameters of a dtype."""
    lr, weight_decay = group["lr"], group["weight_decay"]
    eps1, eps2 = group["eps"]
    if eps1 is None:
        eps1 = usable_eps(group["first_dtype"], dtype)
    return {
        "decay": 1 - lr * weight_decay if weight_decay != 0 else None,
        "one_minus_beta2": step ** group["beta2_decay"],
        "relative_step": min(lr, 1 / step**0.5),
        "eps1": eps1,
        "eps2": eps2,
        "d": group["d"],
    }


def usable_eps(first: torch.dtype, dtype: torch.dtype) -> float:
    """Return the machine epsilon of the group's first dtype, as torch does, if its square is not 0 in `dtype`."""
    eps = torch.finfo(first).eps
    info = torch.finfo(dtype)
    smallest = info.smallest_normal * info.eps  # of the subnormal numbers; half of it is rounded to 0
    return eps if eps * eps > smallest / 2 else info.eps


class Adafactor(RuleOptimizer):
    r"""Adafactor, without first moment.

    $$
    \begin{aligned}
    \hat\beta_t &= 1 - t^{\tau} \\
    R_t &= \hat\beta_t R_{t-1} + (1 - \hat\beta_t)\, \tfrac{1}{m} \textstyle\sum_j G_{t,ij}^2, \qquad
    C_t = \hat\beta_t C_{t-1} + (1 - \hat\beta_t)\, \tfrac{1}{n} \textstyle\sum_i G_{t,ij}^2 \\
    \hat V_t &= \frac{R_t C_t}{\max(\tfrac{1}{n} \sum_i R_{t,i},\; \epsilon_1)} \\
    U_t &= \frac{G_t}{\sqrt{\max(\hat V_t,\; \epsilon_1^2)}} \\
    \Theta_t &= (1 - \gamma\lambda)\,\Theta_{t-1} - \max\bigl(\epsilon_2, \operatorname{RMS}(\Theta_{t-1})\bigr)\,
      \min\Bigl(\gamma, \frac{1}{\sqrt t}\Bigr)\, \frac{U_t}{\max(1, \operatorname{RMS}(U_t) / d)}
    \end{aligned}
    $$

    A matrix of $n$ rows and $m$ columns keeps $n + m$ numbers instead of $n m$; $R C / \operatorname{mean}(R)$ is the
    matrix of rank one that has these row and column means. More than two dimensions are a batch of matrices, of the
    last two. Fewer keep the whole $V$, $V_t = \hat\beta_t V_{t-1} + (1 - \hat\beta_t)\, G_t^2$.

    Args:
        params: real tensors, `(name, tensor)` pairs, or dicts that define parameter groups.
        lr: $\gamma$, the largest step relative to the weights' root mean square, a number or a one-element tensor.
        beta2_decay: $\tau \le 0$; the more negative, the longer the memory of late steps.
        eps: $\epsilon_1$, the smallest root of $\hat V$, in the unit of the gradient, and also the smallest mean of the
            row statistics, which are squared gradients: where it exceeds them, updates are longer, until $d$ clips
            them; and $\epsilon_2$, the smallest root mean square that weights count with, without which weights of 0
            would never move. An $\epsilon_1$ of None is the machine epsilon of the dtype of the first parameter of the
            group that has a gradient: give parameters of different dtypes groups of their own, or a number.
        d: the largest root mean square of $U$, at least 1.
        weight_decay: $\lambda$, decoupled: each step multiplies the parameter by $1 - \gamma\lambda$.
        foreach: accepted and without effect: a step reads two norms of each parameter, so each is updated by itself.
        maximize: climb instead of descend.

    State:
        step: the number of updates, a 0-dim float tensor on the host.
        row_var: $R$, of the parameter's shape with a last dimension of 1; of matrices and above.
        col_var: $C$, of the parameter's shape with a last but one dimension of 1; likewise.
        variance: $V$, of the parameter's shape; of vectors and scalars.

    Raises:
        ValueError: for an `lr` of several elements, a negative `lr`, `weight_decay` or part of `eps`, a positive
            `beta2_decay`, or a `d` below 1.
        RuntimeError: from `step`, for a complex parameter or a sparse gradient.

    Differs from the paper:
        Algorithms 4 and 5 add $\epsilon_1$ to the squares as they enter the means, here it bounds $\hat V$; they sum
        over rows and columns where this takes means, which is the same quotient; $\gamma$ is 0.01 there, and there is
        no weight decay.

    Differs from torch:
        The machine epsilon of a first float32 parameter has a square that is 0 in float16; torch then computes
        $0 / 0$ for a float16 parameter of the same group where its gradient is 0, and keeps the NaN. There the
        parameter's own dtype is taken instead (deliberately; `reimpl verify` shows both). A parameter without elements
        is left alone; torch divides by their number. torch's foreach path rounds in another order; here `foreach=True`
        gives the bits of its for-loop.

    Source:
        Shazeer and Stern, "Adafactor: Adaptive Learning Rates with Sublinear Memory Cost", ICML 2018, Algorithms 4 to
        6; `torch/optim/_adafactor.py`.
    """

    rule = staticmethod(adafactor_rule)
    elementwise = False
    options_of_later_versions = {"foreach": None}

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-2,
        beta2_decay: float = -0.8,
        eps: tuple[float | None, float] = (None, 1e-3),
        d: float = 1.0,
        weight_decay: float = 0.0,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
    ) -> None:
        check_tensor_lr(lr)
        require(0.0 <= lr, f"Learning rate should be >= 0 but is: {lr}")
        require(0.0 >= beta2_decay, f"beta2_decay should be <= 0 but is: {beta2_decay}")
        require(eps[0] is None or 0.0 <= eps[0], f"epsilon1 should be >= 0 but is: {eps[0]}")
        require(0.0 <= eps[1], f"epsilon2 should be >= 0 but is: {eps[1]}")
        require(1.0 <= d, f"Clipping threshold d should be >= 1 but is: {d}")
        require(0.0 <= weight_decay, f"weight_decay should be >= 0 but is: {weight_decay}")
        defaults = {
            "lr": lr,
            "beta2_decay": beta2_decay,
            "eps": eps,
            "d": d,
            "weight_decay": weight_decay,
            "foreach": foreach,
            "maximize": maximize,
        }
        super().__init__(params, defaults)

    def parts(self, group: dict[str, Any], params: list[Tensor]) -> list[tuple[dict[str, Any], list[Tensor]]]:
        group = {**group, "first_dtype": params[0].dtype}
        matrices = [param for param in params if param.dim() > 1]
        others = [param for param in params if param.dim() <= 1]
        parts = [({**group, "factored": True}, matrices), ({**group, "factored": False}, others)]
        return [part for part in parts if part[1]]

    def new_state(self, group: dict[str, Any]) -> dict[str, Callable[[Tensor], Tensor] | None]:
        factored = group["factored"]
        return {
            "row_var": (lambda param: param.new_zeros((*param.shape[:-1], 1))) if factored else None,
            "col_var": (lambda param: param.new_zeros((*param.shape[:-2], 1, param.shape[-1]))) if factored else None,
            "variance": None if factored else torch.zeros_like,
        }

    def coefficients(self, group: dict[str, Any], step: Any, param: Tensor) -> dict[str, Any]:
        return adafactor_coefficients(group, step, param.dtype)

    def check_group(self, group: dict[str, Any]) -> None:
        super().check_group(group)
        if getattr(self, "grad_scale", None) is not None or getattr(self, "found_inf", None) is not None:
            raise AssertionError("Grad scaling should occur outside of optimizer.step()")

    def check_params(self, group: dict[str, Any], params: list[Tensor]) -> None:
        if any(param.is_complex() for param in params):
            raise RuntimeError("Adafactor does not support complex parameters")
