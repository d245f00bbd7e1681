"""Initial values: how far from zero a layer's weights begin."""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor


def draw_uniform(weight: Tensor, bias: Tensor | None) -> None:
    r"""Draw weight, then bias, of a linear or convolutional layer from $\mathcal U(-1/\sqrt n, 1/\sqrt n)$.

    $n$ (`fan_in`) is the number of inputs that one output sums: all of the weight's dimensions but the first,
    multiplied. An output is then a sum of $n$ products with weights of variance $1/(3n)$, so that its variance is a
    third of its inputs' mean square, however many they are. He's rule for ReLU would have $2/n$: six times as much.

    Args:
        weight: of shape (outputs, inputs, ...), filled in place.
        bias: of shape (outputs), filled in place, or None.

    Differs from torch: nothing. torch reaches the weight's bound as `kaiming_uniform_(a=sqrt(5))`, the He rule for a
    leaky ReLU of slope $\sqrt 5$, whose gain is $\sqrt{2 / (1 + 5)} = \sqrt{1/3}$.

    Source: LeCun et al., Efficient BackProp, 1998, section 4.6; `torch/nn/modules/linear.py`, `torch/nn/init.py`.
    """
    fan_in = weight[0].numel() if len(weight) else math.prod(weight.shape[1:])
    with torch.no_grad():
        if weight.numel():
            # 1 / sqrt(fan_in), with torch's roundings: the bits of a float64 weight depend on them.
            gain = math.sqrt(2.0 / (1 + math.sqrt(5) ** 2))
            bound = math.sqrt(3.0) * (gain / math.sqrt(fan_in))
            weight.uniform_(-bound, bound)
        else:
            warnings.warn("Initializing zero-element tensors is a no-op", stacklevel=4)
        if bias is not None:
            bound = 1 / math.sqrt(fan_in) if fan_in > 0 else 0
            bias.uniform_(-bound, bound)
