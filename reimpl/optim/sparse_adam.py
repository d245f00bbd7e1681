r"""SparseAdam: Adam on the rows that a sparse gradient names, and on no others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._compile import _disable_dynamo
from torch.optim.optimizer import ParamsT

from reimpl.optim.arguments import check_betas, check_tensor_lr, require
from reimpl.optim.optimizer import RuleOptimizer


def sparse_adam_rule(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    beta1: float,
    beta2: float,
    eps: float,
    step_size: float,
) -> None:
    """Update rows of `param` once: `exp_avg` is m, `exp_avg_sq` is v."""
    exp_avg.lerp_(grad, 1 - beta1)
    exp_avg_sq.lerp_(grad.square(), 1 - beta2)
    denominator = exp_avg_sq.sqrt().add_(eps)
    param.add_(-step_size * exp_avg.div(denominator))


def sparse_adam_coefficients(group: dict[str, Any], step: int) -> dict[str, Any]:
    """Return the rule's coefficients in the `step`-th update."""
    beta1, beta2 = group["betas"]
    return {
        "beta1": beta1,
        "beta2": beta2,
        "eps": group["eps"],
        "step_size": group["lr"] * (1 - beta2**step) ** 0.5 / (1 - beta1**step),
    }


class SparseAdam(RuleOptimizer):
    r"""SparseAdam, for dense parameters with sparse gradients, such as those of `torch.nn.Embedding(sparse=True)`.

    $$
    \begin{aligned}
    m_t &= m_{t-1} + (1 - \beta_1)\,(g_t - m_{t-1}) \\
    v_t &= v_{t-1} + (1 - \beta_2)\,(g_t^2 - v_{t-1}) \\
    \theta_t &= \theta_{t-1} - \gamma\, \frac{\sqrt{1 - \beta_2^t}}{1 - \beta_1^t}
      \cdot \frac{m_t}{\sqrt{v_t} + \epsilon}
    \end{aligned}
    $$

    for the rows that $g_t$ names, be their values 0 or not. The other rows are not even read: their $m$ and $v$ do not
    decay, and they do not move. $t$ counts the updates of the whole parameter, so that a row which comes late is
    corrected as if it had been there from the start.

    Args:
        params: dense real tensors, `(name, tensor)` pairs, or dicts that define parameter groups.
        lr: learning rate $\gamma > 0$, a number or a one-element tensor.
        betas: $\beta_1$ and $\beta_2$ in $[0, 1)$.
        eps: $\epsilon > 0$, in the unit of the gradient; added to the root before its bias is corrected.
        maximize: climb instead of descend.

    State:
        step: the number of updates, a Python int.
        exp_avg: $m$, of the parameter's shape and dtype.
        exp_avg_sq: $v$, likewise.

    Raises:
        ValueError: for an `lr` of several elements, an `lr` or `eps` that is not positive, a beta outside of
            $[0, 1)$, or a sparse or complex parameter.
        RuntimeError: from `step`, for a dense gradient.

    Differs from the paper:
        Algorithm 1 decays the moments of every coordinate in every step. $\epsilon$ stands where the bias is not
        corrected yet, as in the more efficient form just before the paper's section 2.1.

    Differs from torch:
        A dense gradient is refused before anything has changed.

    Source:
        Kingma and Ba, "Adam: A Method for Stochastic Optimization", ICLR 2015, Algorithm 1;
        `torch/optim/sparse_adam.py`, `torch/optim/_functional.py`.
    """

    rule = staticmethod(sparse_adam_rule)
    count_is_number = True
    elementwise = False
    step = _disable_dynamo(RuleOptimizer.step)  # as torch's: the compiler does not know sparse tensors

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        maximize: bool = False,
    ) -> None:
        check_tensor_lr(lr)
        require(0.0 < lr, f"Invalid learning rate: {lr}")
        require(0.0 < eps, f"Invalid epsilon value: {eps}")
        check_betas(betas)
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "maximize": maximize})
        places = [(i, j, p) for i, group in enumerate(self.param_groups) for j, p in enumerate(group["params"])]
        sparse = [[i, j] for i, j, param in places if param.is_sparse]
        require(not sparse, f"Sparse params at indices {sparse}: SparseAdam requires dense parameter tensors")
        complex_ = [[i, j] for i, j, param in places if param.is_complex()]
        require(not complex_, f"Complex params at indices {complex_}: SparseAdam does not support complex parameters")

    def new_state(self, group: dict[str, Any]) -> dict[str, Callable[[Tensor], Tensor] | None]:
        return {"exp_avg": torch.zeros_like, "exp_avg_sq": torch.zeros_like}

    def coefficients(self, group: dict[str, Any], step: Any, param: Tensor) -> dict[str, Any]:
        return sparse_adam_coefficients(group, step)

    def check_params(self, group: dict[str, Any], params: list[Tensor]) -> None:
        if not all(param.grad.is_sparse for param in params if param.grad is not None):
            raise RuntimeError("SparseAdam does not support dense gradients, please consider Adam instead")

    def check_sparse(self, group: dict[str, Any], param: Tensor) -> None:
        pass
