"""`torch.nn`, written once: change the import, and not one bit of the result changes.

The layers of `__all__` are written here; every other name is torch's own.
"""

from typing import Any

import torch.nn

from reimpl.nn import functional
from reimpl.nn.activation import LogSoftmax, ReLU, Sigmoid, Softmax, Tanh
from reimpl.nn.batchnorm import BatchNorm1d, BatchNorm2d, BatchNorm3d
from reimpl.nn.container import Sequential
from reimpl.nn.conv import Conv1d, Conv2d, Conv3d
from reimpl.nn.dropout import Dropout
from reimpl.nn.flatten import Flatten
from reimpl.nn.layer import Layer
from reimpl.nn.linear import Linear
from reimpl.nn.loss import CrossEntropyLoss, NLLLoss
from reimpl.nn.pooling import (
    AdaptiveAvgPool1d,
    AdaptiveAvgPool2d,
    AdaptiveAvgPool3d,
    AdaptiveMaxPool1d,
    AdaptiveMaxPool2d,
    AdaptiveMaxPool3d,
    AvgPool1d,
    AvgPool2d,
    AvgPool3d,
    MaxPool1d,
    MaxPool2d,
    MaxPool3d,
)
from reimpl.nn.rnn import LSTM, LSTMCell

__all__ = [
    "LSTM",
    "AdaptiveAvgPool1d",
    "AdaptiveAvgPool2d",
    "AdaptiveAvgPool3d",
    "AdaptiveMaxPool1d",
    "AdaptiveMaxPool2d",
    "AdaptiveMaxPool3d",
    "AvgPool1d",
    "AvgPool2d",
    "AvgPool3d",
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "CrossEntropyLoss",
    "Dropout",
    "Flatten",
    "LSTMCell",
    "Layer",
    "Linear",
    "LogSoftmax",
    "MaxPool1d",
    "MaxPool2d",
    "MaxPool3d",
    "NLLLoss",
    "ReLU",
    "Sequential",
    "Sigmoid",
    "Softmax",
    "Tanh",
    "functional",
]


def __getattr__(name: str) -> Any:
    try:
        return getattr(torch.nn, name)
    except AttributeError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
