"""Faults planted in operations: each is caught by the registry.

Low precision that is not widened is none of them: the factor of 4 allows a chain of three roundings. The tests of the
operations catch it (`tests/nn/functional/test_activation.py`).
"""

import pytest
import torch

import reimpl.nn
from reimpl.nn.functional import activation, average_pooling, batchnorm, conv, loss, max_pooling, padding, rnn
from reimpl.verify import judge_layer
from reimpl.verify.layers import layer_cases


def scaled(factor):
    """Return a change of a function: its result, off by a factor."""
    return lambda function: lambda *args: function(*args) * factor


def one_term_less(backward):
    """Return batch norm's backward, but without what moves through the mean."""

    def broken(ctx, grad, *others):
        by_input, *rest = backward(ctx, grad, *others)
        by_input = by_input + torch.randn(1, dtype=by_input.dtype).abs() * grad.mean()
        return by_input, *rest

    return staticmethod(broken)


def from_the_end(function):
    """Return `first_maximum`, but with the last of equal ones."""

    def broken(taps):
        maxima, found = function(taps.flip(-1))
        return maxima, taps.shape[-1] - 1 - found

    return broken


FAULTS = {
    "a sum off by 1e-5": (batchnorm, "total", scaled(1 + 1e-5), "BatchNorm2d"),
    "a term of the backward": (batchnorm.BatchNorm, "backward", one_term_less, "BatchNorm1d"),
    "no smoothing": (loss, "peak_and_mass", lambda _: lambda w, *others: (w, w), "CrossEntropyLoss"),
    "maximum not subtracted": (loss, "shift", lambda _: lambda x: x, "CrossEntropyLoss"),
    "windows added twice": (conv, "add_windows", scaled(2), "Conv2d"),
    "border counted wrong": (average_pooling, "window_sizes", scaled(2), "AvgPool2d"),
    "the last of equal maxima": (max_pooling, "first_maximum", from_the_end, "MaxPool2d"),
    "reflection at the edge": (padding, "source", lambda function: lambda *args: function(*args).clamp(1), "Conv1d"),
    "biases once": (rnn, "from_input", lambda function: lambda x, w, b, _: function(x, w, b, None), "LSTM"),
    "exponentials of differences": (activation, "minus_largest", scaled(1 + 1e-5), "Softmax"),
    "a gate's derivative": (rnn, "joined", scaled(1 + 1e-4), "LSTM"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_caught(fault, monkeypatch):
    place, name, change, layer = FAULTS[fault]
    monkeypatch.setattr(place, name, change(getattr(place, name)))
    cases = [case for case in layer_cases(layer) if case.engine == "first principles"]
    classes = getattr(reimpl.nn, layer), getattr(torch.nn, layer)
    assert any(not judge_layer(*classes, case).holds for case in cases[:: max(1, len(cases) // 60)])
