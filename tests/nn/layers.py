"""Pairs of layers, and everything that can be observed of one."""

import copy
import warnings

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

import reimpl.nn
from reimpl.verify.distance import same_bits

LAYERS = (
    "Linear",
    *(
        f"{kind}{n}d"
        for kind in ("Conv", "MaxPool", "AvgPool", "AdaptiveMaxPool", "AdaptiveAvgPool")
        for n in (1, 2, 3)
    ),
    *("Sequential", "Flatten", "Sigmoid", "ReLU", "Tanh", "Softmax", "LogSoftmax", "Dropout"),
    *("BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "LSTM", "LSTMCell", "NLLLoss", "CrossEntropyLoss"),
)

WHOLE = torch.__version__ >= "2.13"
"""Whether an operation compiles without a graph break, see `reimpl/nn/functional/operation.py`."""


def pair(name):
    """Return our class and torch's."""
    assert name in reimpl.nn.__all__, f"reimpl.nn.{name} is torch's own"
    return getattr(reimpl.nn, name), getattr(torch.nn, name)


def leaves(value):
    """Return the tensors in a nest of tuples, lists, dicts and packed sequences."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, PackedSequence):
        return [value.data]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, (tuple, list)) else ()
    return [leaf for part in parts for leaf in leaves(part)]


def fresh(value):
    """Return a copy whose tensors are leaves of their own, with `requires_grad` as it was."""
    if isinstance(value, Tensor):
        return value.detach().clone().requires_grad_(value.requires_grad)
    if isinstance(value, PackedSequence):
        return value._replace(data=fresh(value.data))
    if isinstance(value, dict):
        return {name: fresh(part) for name, part in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(fresh(part) for part in value)
    return copy.deepcopy(value)


def observe(make, args, kwargs, training=True, seed=5):
    """Construct a layer, run it forward and back, and return all that can be seen of it, by name.

    `make` is called after the seed is set. An exception is an observation too: its type and message.
    """
    seen = {}
    always = torch.is_warn_always_enabled()
    torch.set_warn_always(True)  # kernels warn once a process, else
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.manual_seed(seed)
        try:
            layer = make().train(training)
            seen["repr"] = repr(layer)
            seen |= {f"initial {name}": value.clone() for name, value in layer.state_dict().items()}
            args, kwargs = fresh(args), fresh(kwargs)
            given = leaves([args, kwargs])
            # A clone, so that a layer may work in place; the gradient is then the leaf's.
            outputs = leaves(layer(*clone(args), **clone(kwargs)))
            seen |= {f"output {i}": output.detach().clone() for i, output in enumerate(outputs)}
            outputs = [output for output in outputs if output.requires_grad]
            if outputs:
                torch.autograd.backward(outputs, [upstream(output) for output in outputs])
            seen |= {f"gradient of input {i}": leaf.grad for i, leaf in enumerate(given) if leaf.grad is not None}
            seen |= {f"gradient of {name}": param.grad for name, param in layer.named_parameters()}
            seen |= {f"final {name}": value.clone() for name, value in layer.state_dict().items()}
        except Exception as error:
            seen["error"] = type(error), str(error)
    torch.set_warn_always(always)
    seen["warnings"] = [(w.category, str(w.message)) for w in caught]
    return seen


def clone(value):
    """Return the nest with each floating-point tensor's clone, connected to it."""
    if isinstance(value, Tensor):
        return value.clone() if value.requires_grad else value
    if isinstance(value, PackedSequence):
        return value._replace(data=clone(value.data))
    if isinstance(value, dict):
        return {name: clone(part) for name, part in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(clone(part) for part in value)
    return value


def upstream(output):
    """Return a gradient that is not uniform, the same for equal shapes."""
    generator = torch.Generator().manual_seed(output.numel())
    return torch.randn(output.shape, generator=generator, dtype=torch.float64).to(output)


def assert_same(ours, theirs):
    """Assert that two observations are equal in every bit and word."""
    assert list(ours) == list(theirs), (ours.get("error"), theirs.get("error"))
    for name, value in theirs.items():
        if isinstance(value, Tensor):
            assert same_bits(ours[name], value), name
        else:
            assert ours[name] == value, name
