"""The losses of classification."""

from __future__ import annotations

import torch
from torch import Tensor

from reimpl.nn.functional.loss import reduction_of
from reimpl.nn.layer import Layer


class NLLLoss(Layer, torch.nn.NLLLoss):
    r"""The negative log likelihood of the target classes, given the log-probabilities of all.

    $$\ell_i = -w_{t_i}\, x_{i, t_i}$$

    It picks and negates: the input is what `LogSoftmax` returns. `CrossEntropyLoss` is both in one.

    Args:
        weight: $w$ of shape $(C)$, a weight for each class.
        size_average: deprecated, see `reduction`.
        ignore_index: the target that is left out.
        reduce: deprecated, see `reduction`.
        reduction: `none` for $\ell$ itself, `sum` for $\sum_i \ell_i$, `mean` for $\sum_i \ell_i / \sum_i w_{t_i}$,
            which is the weighted mean, and NaN where every target is left out.

    Shape:
        Input $(N, C)$, $(N, C, *)$ or $(C)$; target $(N)$, $(N, *)$ or $()$, from 0 to $C - 1$.
        Output of the target's shape under `none`, else $()$.

    Attributes:
        weight: a buffer, in the `state_dict` where there is one.

    Raises:
        IndexError: if a target is no class.
        ValueError: if there is not a target for each sample.
        RuntimeError: if shapes or dtypes do not fit otherwise.

    Differs from torch: nothing.

    Source: `torch/nn/modules/loss.py`.
    """

    weight: Tensor | None

    def __init__(
        self,
        weight: Tensor | None = None,
        size_average: bool | None = None,
        ignore_index: int = -100,
        reduce: bool | None = None,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        self.reduction = reduction_of(size_average, reduce, reduction)
        self.register_buffer("weight", weight)
        self.ignore_index = ignore_index

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the loss of log-probabilities."""
        output: Tensor = self.functional.nll_loss(
            input, target, weight=self.weight, ignore_index=self.ignore_index, reduction=self.reduction
        )
        return output


class CrossEntropyLoss(Layer, torch.nn.CrossEntropyLoss):
    r"""The cross entropy of target classes or probabilities, given a score (logit) for every class.

    $$\ell_i = -\sum_c q_{ic} \log \operatorname{softmax}(x_i)_c$$

    The softmax is inside: one before it, in the model, makes the loss small gradients and a floor that it cannot leave.

    Args:
        weight: $w$ of shape $(C)$, a weight for each class.
        size_average: deprecated, see `reduction`.
        ignore_index: the target class that is left out; it stays in the softmax.
        reduce: deprecated, see `reduction`.
        reduction: `none` for $\ell$ itself, `sum` for $\sum_i \ell_i$, `mean` for $\sum_i \ell_i / \sum_i w_{t_i}$ with
            classes, and for the mean over positions with probabilities.
        label_smoothing: $\epsilon$, the part of the target that is spread over all classes:
            $q_{ic} = (1 - \epsilon)\, w_{t_i} [c = t_i] + \frac \epsilon C w_c$.

    Shape:
        Input $(N, C)$, $(N, C, *)$ or $(C)$; target $(N)$, $(N, *)$ or $()$ with classes, or the input's with
        probabilities. Output $(N)$, $(N, *)$ or $()$ under `none`, else $()$.

    Attributes:
        weight: a buffer, in the `state_dict` where there is one.

    Raises:
        IndexError: if a target is no class.
        ValueError: if there is not a target for each sample.
        RuntimeError: if shapes or dtypes do not fit otherwise.

    Differs from torch: nothing.

    Source: `torch/nn/modules/loss.py`.
    """

    weight: Tensor | None

    def __init__(
        self,
        weight: Tensor | None = None,
        size_average: bool | None = None,
        ignore_index: int = -100,
        reduce: bool | None = None,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        self.reduction = reduction_of(size_average, reduce, reduction)
        self.register_buffer("weight", weight)
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the loss of scores."""
        output: Tensor = self.functional.cross_entropy(
            input,
            target,
            weight=self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
        )
        return output
