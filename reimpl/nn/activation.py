"""Activations: what stands between linear layers, and what turns the last one's outputs into probabilities."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from reimpl.nn.layer import Layer


class Sigmoid(Layer, torch.nn.Sigmoid):
    r"""Squeeze every element into $(0, 1)$.

    $$y = \frac{1}{1 + e^{-x}}$$

    Shape:
        Input and output $(*)$, any.

    Differs from torch: nothing.

    Source: `torch/nn/modules/activation.py`.
    """

    def forward(self, input: Tensor) -> Tensor:
        r"""Return $\sigma(x)$."""
        output: Tensor = self.functional.sigmoid(input)
        return output


class ReLU(Layer, torch.nn.ReLU):
    r"""Pass what is positive, and make the rest 0.

    $$y = \max(x, 0)$$

    Args:
        inplace: whether the output takes the input's place in memory. It is an error if a backward needs that input.

    Shape:
        Input and output $(*)$, any.

    Differs from torch: nothing.

    Source: `torch/nn/modules/activation.py`.
    """

    def __init__(self, inplace: bool = False) -> None:
        super().__init__()
        self.inplace = inplace

    def forward(self, input: Tensor) -> Tensor:
        r"""Return $\max(x, 0)$."""
        output: Tensor = self.functional.relu(input, inplace=self.inplace)
        return output

    def extra_repr(self) -> str:
        """Describe the layer in a model's `repr`."""
        return "inplace=True" if self.inplace else ""


class Tanh(Layer, torch.nn.Tanh):
    r"""Squeeze every element into $(-1, 1)$.

    $$y = \frac{e^x - e^{-x}}{e^x + e^{-x}}$$

    Shape:
        Input and output $(*)$, any.

    Differs from torch: nothing.

    Source: `torch/nn/modules/activation.py`.
    """

    def forward(self, input: Tensor) -> Tensor:
        r"""Return $\tanh x$."""
        output: Tensor = self.functional.tanh(input)
        return output


class AlongDim(Layer):
    """What Softmax and LogSoftmax share: the dimension along which probabilities sum to 1."""

    def __init__(self, dim: int | None = None) -> None:
        super().__init__()
        self.dim = dim

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Pickles are older than the argument.
        super().__setstate__({"dim": None, **state})

    def extra_repr(self) -> str:
        """Describe the layer in a model's `repr`."""
        return f"dim={self.dim}"


class Softmax(AlongDim, torch.nn.Softmax):
    r"""Turn scores into probabilities that sum to 1 along a dimension.

    $$y_i = \frac{e^{x_i}}{\sum_j e^{x_j}}$$

    `CrossEntropyLoss` wants scores, not these: it takes their logarithmic softmax itself.

    Args:
        dim: along which $y$ sums to 1. None is deprecated: it chooses by the input's number of dimensions, 1 for 2, 4
            or more, else 0, and warns. Three dimensions without a batch are an image's, and 0 its channels.

    Shape:
        Input and output $(*)$, any.

    Raises:
        IndexError: if the input has no such dimension.

    Differs from torch: nothing.

    Source: Bridle, Probabilistic Interpretation of Feedforward Classification Network Outputs, 1990;
    `torch/nn/modules/activation.py`.
    """

    def forward(self, input: Tensor) -> Tensor:
        r"""Return $e^x / \sum e^x$."""
        output: Tensor = self.functional.softmax(input, self.dim, _stacklevel=5)
        return output


class LogSoftmax(AlongDim, torch.nn.LogSoftmax):
    r"""Turn scores into logarithms of probabilities, as `NLLLoss` takes them.

    $$y_i = x_i - \ln \sum_j e^{x_j}$$

    Args:
        dim: along which $e^y$ sums to 1. None as for `Softmax`.

    Shape:
        Input and output $(*)$, any.

    Raises:
        IndexError: if the input has no such dimension.

    Differs from torch: nothing.

    Source: `torch/nn/modules/activation.py`.
    """

    def forward(self, input: Tensor) -> Tensor:
        r"""Return $x - \ln \sum e^x$."""
        output: Tensor = self.functional.log_softmax(input, self.dim, _stacklevel=5)
        return output
