"""The fully connected layer."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import Parameter

from reimpl.nn.initial import draw_uniform
from reimpl.nn.layer import Layer


class Linear(Layer, torch.nn.Linear):
    r"""Every output is a weighted sum of all inputs, and a constant.

    $$y = x W^\top + b$$

    The weight is stored as (outputs, inputs), a row for each output, as torch's BLAS takes it at no cost.

    Args:
        in_features: inputs of each sample, $n$.
        out_features: outputs of each sample, $m$.
        bias: whether there is a $b$.
        device: of the parameters.
        dtype: of the parameters.

    Shape:
        Input $(*, n)$, output $(*, m)$, where $*$ is any number of dimensions, none included.

    Attributes:
        weight: $W$ of shape $(m, n)$, at first from $\mathcal U(-1/\sqrt n, 1/\sqrt n)$.
        bias: $b$ of shape $(m)$, at first from the same.

    Raises:
        RuntimeError: if the input's last dimension is not $n$, or its dtype is not the weight's.

    Differs from torch: nothing.

    Source: `torch/nn/modules/linear.py`.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.weight = Parameter(torch.empty(out_features, in_features, device=device, dtype=dtype))
        self.register_parameter(
            "bias", Parameter(torch.empty(out_features, device=device, dtype=dtype)) if bias else None
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the initial values anew."""
        draw_uniform(self.weight, self.bias)

    def forward(self, input: Tensor) -> Tensor:
        r"""Return $x W^\top + b$."""
        output: Tensor = self.functional.linear(input, self.weight, self.bias)
        return output

    def extra_repr(self) -> str:
        """Describe the layer in a model's `repr`."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
