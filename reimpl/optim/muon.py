r"""Muon: the momentum's matrix, with all its singular values brought near one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from reimpl.optim.arguments import check_tensor_lr, require
from reimpl.optim.optimizer import RuleOptimizer


def muon_rule(
    param: Tensor,
    grad: Tensor,
    momentum_buffer: Tensor,
    lr: float,
    weight_decay: float,
    momentum: float,
    nesterov: bool,
    ns_coefficients: tuple[float, float, float],
    ns_steps: int,
    eps: float,
    adjust_lr_fn: str | None,
) -> None:
    """Update the matrix `param` once: `momentum_buffer` is B."""
    momentum_buffer.lerp_(grad, 1 - momentum)
    update = grad.lerp(momentum_buffer, momentum) if nesterov else momentum_buffer
    update = orthogonalize(update, ns_coefficients, ns_steps, eps)
    param.mul_(1 - lr * weight_decay)
    param.add_(update, alpha=-(lr * lr_ratio(param.shape, adjust_lr_fn)))


def orthogonalize(matrix: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    r"""Return a matrix with the singular vectors of `matrix` and singular values near 1, in bfloat16.

    A Newton–Schulz iteration: with $X = U \Sigma V^\top$, the odd polynomial $a X + b\, X X^\top X + c\, (X X^\top)^2
    X$ is $U\, p(\Sigma)\, V^\top$, $p(\sigma) = a\sigma + b\sigma^3 + c\sigma^5$. From $\sigma \le 1$ on, repeating $p$
    drives the singular values away from 0 and towards 1 without ever computing them.

    Args:
        matrix: of two dimensions.
        coefficients: $a$, $b$ and $c$. Muon's make $p$ steep at 0; repeated five times, it brings what
            was above 0.01 to between 0.68 and 1.14, not to 1.
        steps: how often.
        eps: the smallest Frobenius norm that the matrix is divided by, so that no singular value is above 1.
    """
    a, b, c = coefficients
    tall = matrix.size(0) > matrix.size(1)
    x = matrix.bfloat16()
    x = x.T if tall else x  # the smaller of the two products
    x = x / x.norm().clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


def lr_ratio(shape: torch.Size, adjust_lr_fn: str | None) -> float:
    """Return what the learning rate of a matrix of this shape is multiplied with."""
    rows, columns = shape
    if adjust_lr_fn == "match_rms_adamw":
        return float(0.2 * max(rows, columns) ** 0.5)
    return float(max(1, rows / columns) ** 0.5)


class Muon(RuleOptimizer):
    r"""Muon, for the weight matrices of hidden layers: momentum, orthogonalized.

    $$
    \begin{aligned}
    B_t &= \mu B_{t-1} + (1 - \mu)\, G_t \\
    \tilde B_t &= \mu B_t + (1 - \mu)\, G_t \quad\text{(Nesterov), else } B_t \\
    O_t &= \operatorname{orthogonalize}(\tilde B_t) \approx U V^\top
      \quad\text{where}\quad \tilde B_t = U \Sigma V^\top \\
    \Theta_t &= (1 - \gamma\lambda)\,\Theta_{t-1} - \gamma\, \rho\, O_t
    \end{aligned}
    $$

    A gradient's few large singular values would otherwise decide the whole step; here every direction counts the same.
    The size of the gradient counts for nothing. Biases, gains, embeddings and the output layer go to another optimizer,
    as a rule `AdamW`.

    Args:
        params: matrices, `(name, tensor)` pairs, or dicts that define parameter groups.
        lr: learning rate $\gamma$, a number or a one-element tensor.
        weight_decay: $\lambda$, decoupled: each step multiplies the parameter by $1 - \gamma\lambda$, without $\rho$.
        momentum: $\mu$.
        nesterov: look one step ahead.
        ns_coefficients: $a$, $b$ and $c$ of the Newton–Schulz iteration, see `orthogonalize`.
        eps: the smallest norm that $\tilde B$ is divided by, in the unit of the gradient.
        ns_steps: how many iterations, less than 100.
        adjust_lr_fn: $\rho$ for a matrix of $n$ rows and $m$ columns: $\sqrt{\max(1, n / m)}$ (None or "original"), or
            $0.2 \sqrt{\max(n, m)}$ ("match_rms_adamw"), with which the root mean square of a step is a little
            below $0.2\,\gamma$, as AdamW's.

    State:
        momentum_buffer: $B$, of the parameter's shape and dtype.

    Raises:
        ValueError: for an `lr` of several elements, a negative `lr`, `momentum` or `weight_decay`, an unknown
            `adjust_lr_fn`, or a parameter that is no matrix; from `step`, for 100 iterations or more, or other than
            three coefficients.
        RuntimeError: from `step`, for a complex parameter or a sparse gradient.

    Differs from the paper:
        Jordan adds gradients to $\mu B$ with weight 1; since $O$ does not depend on the size of $\tilde B$, the steps
        are the same.

    Differs from torch:
        bfloat16 parameters without `nesterov`: torch 2.13 divides the momentum buffer itself by its norm, as its
        conversion to bfloat16 makes no copy then; the buffer forgets its size, and the next gradient counts for too
        much or too little. Here it stays as it is (deliberately; `reimpl verify` shows both). An invalid `ns_steps`,
        `ns_coefficients` or shape is refused before the buffer has changed.

    Source:
        Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024; Liu et al., "Muon is Scalable
        for LLM Training", 2025, equation 4; `torch/optim/_muon.py`.
    """

    rule = staticmethod(muon_rule)
    counts_steps = reads_steps = False
    elementwise = False

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_coefficients: tuple[float, float, float] = (3.4445, -4.7750, 2.0315),
        eps: float = 1e-7,
        ns_steps: int = 5,
        adjust_lr_fn: str | None = None,
    ) -> None:
        check_tensor_lr(lr)
        require(0.0 <= lr, f"Learning rate should be >= 0 but is: {lr}")
        require(0.0 <= momentum, f"momentum should be >= 0 but is: {momentum}")
        require(0.0 <= weight_decay, f"weight decay should be >= 0 but is: {weight_decay}")
        require(
            adjust_lr_fn in (None, "original", "match_rms_adamw"),
            f"Adjust learning rate function {adjust_lr_fn} is not supported",
        )
        defaults = {
            "lr": lr,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "nesterov": nesterov,
            "ns_coefficients": ns_coefficients,
            "eps": eps,
            "ns_steps": ns_steps,
            "adjust_lr_fn": adjust_lr_fn,
        }
        super().__init__(params, defaults)
        for group in self.param_groups:
            for param in group["params"]:
                require(
                    param.ndim == 2,
                    f"Muon only supports 2D parameters whereas we found a parameter with size: {param.size()}",
                )

    def new_state(self, group: dict[str, Any]) -> dict[str, Callable[[Tensor], Tensor] | None]:
        return {"momentum_buffer": torch.zeros_like}

    def coefficients(self, group: dict[str, Any], step: Any, param: Tensor) -> dict[str, Any]:
        names = ("lr", "weight_decay", "momentum", "nesterov", "ns_coefficients", "ns_steps", "eps", "adjust_lr_fn")
        return {name: group[name] for name in names}

    def check_params(self, group: dict[str, Any], params: list[Tensor]) -> None:
        if any(param.is_complex() for param in params):
            raise RuntimeError("Muon does not support complex parameters")
        require(all(param.ndim == 2 for param in params), "Param gradient must be a 2D matrix")
        require(group["ns_steps"] < 100, "Number of steps must be less than 100 for computational efficiency")
        require(len(group["ns_coefficients"]) == 3, "Coefficients must be a tuple of exactly 3 values")
