"""`torch.nn.functional` from first principles: each operation's forward, and under it its backward, derived by hand.

No operation calls the kernel that it explains. What is not written here yet is torch's own.
"""

from typing import Any

import torch.nn.functional

from reimpl.nn.functional.activation import log_softmax, relu, relu_, sigmoid, softmax, tanh
from reimpl.nn.functional.average_pooling import (
    adaptive_avg_pool1d,
    adaptive_avg_pool2d,
    adaptive_avg_pool3d,
    avg_pool1d,
    avg_pool2d,
    avg_pool3d,
)
from reimpl.nn.functional.batchnorm import batch_norm
from reimpl.nn.functional.conv import conv1d, conv2d, conv3d
from reimpl.nn.functional.dropout import dropout
from reimpl.nn.functional.linear import linear
from reimpl.nn.functional.loss import cross_entropy, nll_loss
from reimpl.nn.functional.max_pooling import (
    adaptive_max_pool1d,
    adaptive_max_pool1d_with_indices,
    adaptive_max_pool2d,
    adaptive_max_pool2d_with_indices,
    adaptive_max_pool3d,
    adaptive_max_pool3d_with_indices,
    max_pool1d,
    max_pool1d_with_indices,
    max_pool2d,
    max_pool2d_with_indices,
    max_pool3d,
    max_pool3d_with_indices,
)
from reimpl.nn.functional.padding import pad
from reimpl.nn.functional.rnn import lstm, lstm_cell

__all__ = [
    "adaptive_avg_pool1d",
    "adaptive_avg_pool2d",
    "adaptive_avg_pool3d",
    "adaptive_max_pool1d",
    "adaptive_max_pool1d_with_indices",
    "adaptive_max_pool2d",
    "adaptive_max_pool2d_with_indices",
    "adaptive_max_pool3d",
    "adaptive_max_pool3d_with_indices",
    "avg_pool1d",
    "avg_pool2d",
    "avg_pool3d",
    "batch_norm",
    "conv1d",
    "conv2d",
    "conv3d",
    "cross_entropy",
    "dropout",
    "linear",
    "log_softmax",
    "lstm",
    "lstm_cell",
    "max_pool1d",
    "max_pool1d_with_indices",
    "max_pool2d",
    "max_pool2d_with_indices",
    "max_pool3d",
    "max_pool3d_with_indices",
    "nll_loss",
    "pad",
    "relu",
    "relu_",
    "sigmoid",
    "softmax",
    "tanh",
]


def __getattr__(name: str) -> Any:
    try:
        return getattr(torch.nn.functional, name)
    except AttributeError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
