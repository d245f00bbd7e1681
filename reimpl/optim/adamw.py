r"""AdamW: Adam whose weight decay does not pass through the running means."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.optim.optimizer import ParamsT

from reimpl.optim.adam import Adam


class AdamW(Adam):
    r"""AdamW: `Adam` with decoupled weight decay. The rule is Adam's; only the defaults differ.

    $$
    \begin{aligned}
    \theta'_{t-1} &= (1 - \gamma\lambda)\,\theta_{t-1} \\
    m_t &= \beta_1 m_{t-1} + (1 - \beta_1)\, g_t \\
    v_t &= \beta_2 v_{t-1} + (1 - \beta_2)\, g_t^2 \\
    \theta_t &= \theta'_{t-1} - \frac{\gamma}{1 - \beta_1^t} \cdot
      \frac{m_t}{\sqrt{v_t} / \sqrt{1 - \beta_2^t} + \epsilon}
    \end{aligned}
    $$

    Args:
        params: tensors, `(name, tensor)` pairs, or dicts that define parameter groups.
        lr: learning rate $\gamma$, a number or a one-element tensor.
        betas: $\beta_1$ and $\beta_2$ in $[0, 1)$, two floats or two one-element tensors.
        eps: $\epsilon$, in the unit of the gradient; added to the root, not under it.
        weight_decay: $\lambda$; each step multiplies the parameter by $1 - \gamma\lambda$.
        amsgrad: divide by the largest $v$ so far, which is taken before the bias correction.
        maximize: climb instead of descend.
        foreach: True for the foreach engine, False for the loop; None chooses as torch does (foreach on accelerators).
        capturable: keep the step count on the parameter's device, so that a CUDA graph can hold the step.
        differentiable: let autograd record the step.
        fused: True for the fused engine: the rule as one compiled kernel.

    State:
        As `Adam`.

    Raises:
        As `Adam`.

    Differs from the paper:
        Loshchilov and Hutter decay by the schedule's multiplier times $\lambda$, here it is by $\gamma\lambda$: a
        smaller learning rate decays less. $1 - \gamma\lambda$ is rounded to the parameter's dtype: in float32 a
        $\gamma\lambda$ below $2^{-25}$ decays nothing.

    Differs from torch:
        As `Adam`.

    Source:
        Loshchilov and Hutter, "Decoupled Weight Decay Regularization", ICLR 2019, Algorithm 2; `torch/optim/adamw.py`.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            amsgrad,
            foreach=foreach,
            maximize=maximize,
            capturable=capturable,
            differentiable=differentiable,
            fused=fused,
            decoupled_weight_decay=True,
        )

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:  # a checkpoint of Adam goes on as AdamW
            group["decoupled_weight_decay"] = True
