"""The registry of layers: every combination of layer, options, input, dtype and engine about which a claim is made."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence

from reimpl.verify.options import Claim, grid, name_of, spell

LayerEngine = Literal["kernels", "first principles"]
Options = dict[str, Any]

LAYER_DTYPES = {
    "kernels": (torch.float64, torch.float32, torch.bfloat16),
    # float64 has no finer oracle.
    "first principles": (torch.float32, torch.bfloat16),
}
SIZES = {1: (11,), 2: (9, 8), 3: (6, 5, 7)}
CLASSES = 5
CLASS_WEIGHTS = torch.tensor([0.3, 1.0, 0.0, 2.0, 0.7])


class Draw:
    """A source of inputs: the same ones from the same seed."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int) -> Tensor:
        """Return numbers of both signs."""
        return torch.randn(shape, generator=self.generator, dtype=torch.float64)

    def few(self, *shape: int) -> Tensor:
        """Return numbers of which many are equal."""
        return torch.randint(-2, 3, shape, generator=self.generator).double()

    def classes(self, *shape: int) -> Tensor:
        """Return class indices, the first of which is never one that the registry ignores."""
        found = torch.randint(CLASSES, shape, generator=self.generator)
        found.view(-1)[:1] = CLASSES - 1
        return found


@dataclass(frozen=True)
class Input:
    """What a layer is given.

    Attributes:
        name: what is special about it.
        make: returns the arguments of `forward`, in float64.
    """

    name: str
    make: Callable[[Draw], tuple[Any, ...]]


@dataclass(frozen=True)
class LayerCase:
    """One comparison.

    Attributes:
        layer: the class's name.
        function: its counterpart in `reimpl.nn.functional`, None if the layer computes nothing.
        options: its constructor's arguments.
        scenario: the input.
        dtype: of input and parameters.
        engine: `kernels`: on `torch.nn.functional`. `first principles`: on `reimpl.nn.functional`.
    """

    layer: str
    function: str | None
    options: Options
    scenario: Input
    dtype: torch.dtype
    engine: LayerEngine

    @property
    def subject(self) -> str:
        """What is judged."""
        return self.layer

    @property
    def claim(self) -> Claim:
        """On torch's kernels every bit; from first principles an error that is not much larger."""
        return "exact" if self.engine == "kernels" else "close"

    @property
    def section(self) -> str:
        """The name by which `--only` selects it."""
        return f"nn.{self.layer}" if self.engine == "kernels" else f"nn.functional.{self.function}"

    @property
    def dtype_name(self) -> str:
        """The dtype as `--dtype` takes it."""
        return name_of(self.dtype)

    @property
    def draws(self) -> bool:
        """Whether it draws random numbers. First principles then follow torch's CPU kernel, and no other."""
        return self.layer == "Dropout" or "dropout" in self.options

    @property
    def name(self) -> str:
        """All of it in a line."""
        options = ", ".join(f"{name}={spell(value)}" for name, value in self.options.items())
        return f"{self.section} {self.dtype_name} {self.scenario.name} {self.layer}({options})"


def normal(name: str, *shape: int, scale: float = 1, mean: float = 0) -> Input:
    """Return an input of normally distributed numbers."""
    return Input(name, lambda draw: (draw.normal(*shape) * scale + mean,))


def batches(n: int, channels: int) -> list[Input]:
    """Return the inputs of a layer that slides over `n` dimensions: with a batch, and without one."""
    shape = (2, channels, *SIZES[n])
    found = [normal("batch", *shape), normal("unbatched", *shape[1:])]
    return [*found, channels_last(*shape)] if n == 2 else found


def channels_last(*shape: int, mean: float = 0) -> Input:
    """Return images whose channels are neighbours in memory."""
    return Input("channels last", lambda draw: ((draw.normal(*shape) + mean).to(memory_format=torch.channels_last),))


def to_normalise(n: int) -> list[Input]:
    """Return the inputs of `BatchNorm{n}d`. They are not around 0, where a mean has no scale to judge its error by."""
    shape = (4, 3, *SIZES[n])
    found = [normal("batch", *shape, mean=0.5), normal("mean of 1e4", *shape, mean=1e4)]
    if n == 1:
        found.append(normal("samples alone", 6, 3, mean=0.5))
    return [*found, channels_last(*shape, mean=0.5)] if n == 2 else found


def ties(n: int) -> list[Input]:
    """Return an input in which a maximum often stands more than once."""
    return [Input("ties", lambda draw: (draw.few(2, 3, *SIZES[n]),))]


def labelled(scores: Callable[[Tensor], Tensor]) -> list[Input]:
    """Return the inputs of a loss: scores, and for each sample a class."""
    return [
        Input("batch", lambda draw: (scores(draw.normal(6, CLASSES)), draw.classes(6))),
        Input("unbatched", lambda draw: (scores(draw.normal(CLASSES)), draw.classes())),
        Input("per pixel", lambda draw: (scores(draw.normal(3, CLASSES, 4, 2)), draw.classes(3, 4, 2))),
    ]


def log_shares(scores: Tensor) -> Tensor:
    """Return log-probabilities of the classes."""
    return scores.log_softmax(1 if scores.dim() > 1 else 0)


def probable() -> list[Input]:
    """Return the inputs of cross-entropy whose targets are probabilities."""
    return [
        Input("probabilities", lambda draw: (draw.normal(6, CLASSES), draw.normal(6, CLASSES).softmax(1))),
        Input(
            "probabilities per pixel",
            lambda draw: (draw.normal(3, CLASSES, 4, 2), draw.normal(3, CLASSES, 4, 2).softmax(1)),
        ),
    ]


def convolution(n: int) -> list[Options]:
    """Return the options of `Conv{n}d`."""
    base: Options = {"in_channels": 4, "out_channels": 6, "kernel_size": 3}
    found = grid(
        stride=[1, (2, 1, 2)[:n]],
        padding=["valid", (1, 2, 0)[:n], "same"],
        dilation=[1, 2],
        groups=[1, 2],
        padding_mode=["zeros", "reflect", "replicate", "circular"],
    )
    fitting = [
        options
        for options in found
        if not (options.get("padding") == "same" and "stride" in options)
        and not ("padding_mode" in options and "padding" not in options)
    ]
    others: list[Options] = [
        {"bias": False},
        {"kernel_size": 1},
        {"kernel_size": (4, 2, 3)[:n], "padding": "same"},
        {"padding": "valid"},
    ]
    return [{**base, **options} for options in [*fitting, *others]]


def max_pooling() -> list[Options]:
    """Return the options of `MaxPool{n}d`."""
    found = grid(
        stride=[None, 2, 1], padding=[0, 1], dilation=[1, 2], ceil_mode=[False, True], return_indices=[False, True]
    )
    return [{"kernel_size": 3, **options} for options in found]


def average_pooling(n: int) -> list[Options]:
    """Return the options of `AvgPool{n}d`."""
    choices: dict[str, list[Any]] = {"divisor_override": [None, 5]} if n > 1 else {}
    found = grid(
        stride=[None, 2, 1], padding=[0, 1], ceil_mode=[False, True], count_include_pad=[True, False], **choices
    )
    return [{"kernel_size": 3, **options} for options in found]


def adaptive_pooling(n: int, **choices: list[Any]) -> list[Options]:
    """Return the options of an adaptive pooling."""
    sizes: list[Any] = [1, 4, 13, (3, 5, 2)[:n]]
    if n > 1:
        sizes.append((None, 4, None)[:n])
    return [{"output_size": size, **options} for size in sizes for options in grid(**choices)]


def batch_normalisation() -> list[Options]:
    """Return the options of `BatchNorm{n}d`."""
    found = grid(momentum=[0.1, None, 0.7], affine=[True, False], track_running_stats=[True, False], eps=[1e-5, 0.1])
    return [{"num_features": 3, **options} for options in found]


def losses(**choices: list[Any]) -> list[Options]:
    """Return the options of a loss."""
    found = grid(weight=[None, CLASS_WEIGHTS], ignore_index=[-100, 1], reduction=["mean", "sum", "none"], **choices)
    return [*found, {"size_average": False}, {"reduce": False}]


def lstms() -> Iterator[tuple[Options, Input]]:
    """Yield the options of `LSTM`, each with its inputs."""
    for options in grid(
        num_layers=[1, 2],
        bias=[True, False],
        batch_first=[False, True],
        dropout=[0.0, 0.5],
        bidirectional=[False, True],
        proj_size=[0, 2],
    ):
        if "dropout" in options and "num_layers" not in options:
            continue
        yield from (({"input_size": 3, "hidden_size": 4, **options}, given) for given in sequences(options))


def sequences(options: Options) -> list[Input]:
    """Return the inputs of an LSTM: 3 sequences of up to 5 time steps with 3 features each."""
    stack = options.get("num_layers", 1) * (2 if "bidirectional" in options else 1)
    sizes = (options.get("proj_size", 4), 4)
    batch_first = "batch_first" in options
    shape = (3, 5, 3) if batch_first else (5, 3, 3)

    def with_states(draw: Draw) -> tuple[Any, ...]:
        return draw.normal(*shape), tuple(draw.normal(stack, 3, size) for size in sizes)

    def packed(draw: Draw) -> tuple[Any, ...]:
        lengths = torch.tensor([3, 5, 1])
        return (pack_padded_sequence(draw.normal(*shape), lengths, batch_first, enforce_sorted=False),)

    return [
        normal("batch", *shape),
        normal("unbatched", 5, 3),
        Input("initial states", with_states),
        Input("packed", packed),
    ]


def product(options: Iterable[Options], inputs: list[Input]) -> list[tuple[Options, Input]]:
    """Return every option with every input."""
    return list(itertools.product(options, inputs))


TABLES: dict[str, tuple[str | None, list[tuple[Options, Input]]]] = {
    "Linear": (
        "linear",
        product(
            [{"in_features": 7, "out_features": 5, **options} for options in grid(bias=[True, False])],
            [normal("batch", 6, 7), normal("unbatched", 7), normal("three dimensions", 2, 3, 7)],
        ),
    ),
    **{f"Conv{n}d": (f"conv{n}d", product(convolution(n), batches(n, 4))) for n in SIZES},
    **{f"MaxPool{n}d": (f"max_pool{n}d", product(max_pooling(), [*batches(n, 3), *ties(n)])) for n in SIZES},
    **{f"AvgPool{n}d": (f"avg_pool{n}d", product(average_pooling(n), batches(n, 3))) for n in SIZES},
    **{
        f"AdaptiveMaxPool{n}d": (
            f"adaptive_max_pool{n}d",
            product(adaptive_pooling(n, return_indices=[False, True]), [*batches(n, 3), *ties(n)]),
        )
        for n in SIZES
    },
    **{f"AdaptiveAvgPool{n}d": (f"adaptive_avg_pool{n}d", product(adaptive_pooling(n), batches(n, 3))) for n in SIZES},
    "Flatten": (None, product([{}, {"start_dim": 0}, {"end_dim": 2}], batches(2, 3))),
    **{
        name: (name.lower(), product([{}], [normal("batch", 6, 7), normal("wide", 6, 7, scale=100), normal("scalar")]))
        for name in ("Sigmoid", "Tanh")
    },
    "ReLU": ("relu", product([{}, {"inplace": True}], [normal("batch", 6, 7), normal("scalar")])),
    **{
        name: (
            function,
            product(
                [{"dim": 1}, {"dim": -1}, {"dim": 0}],
                [normal("batch", 6, 7), normal("per pixel", 2, 7, 3, 2), normal("±1e4", 6, 7, scale=1e4)],
            ),
        )
        for name, function in (("Softmax", "softmax"), ("LogSoftmax", "log_softmax"))
    },
    "Dropout": ("dropout", product(grid(p=[0.5, 0.1, 0.0, 1.0], inplace=[False, True]), [normal("batch", 6, 7)])),
    **{f"BatchNorm{n}d": ("batch_norm", product(batch_normalisation(), to_normalise(n))) for n in SIZES},
    "LSTM": ("lstm", list(lstms())),
    "LSTMCell": (
        "lstm_cell",
        product(
            [{"input_size": 3, "hidden_size": 4, **options} for options in grid(bias=[True, False])],
            [
                normal("batch", 6, 3),
                normal("unbatched", 3),
                Input("initial states", lambda draw: (draw.normal(6, 3), (draw.normal(6, 4), draw.normal(6, 4)))),
            ],
        ),
    ),
    "NLLLoss": ("nll_loss", product(losses(), labelled(log_shares))),
    "CrossEntropyLoss": (
        "cross_entropy",
        product(
            losses(label_smoothing=[0.0, 0.2]),
            [*labelled(lambda x: x), Input("±1e4", lambda draw: (1e4 * draw.normal(6, CLASSES), draw.classes(6)))],
        )
        + product(
            grid(weight=[None, CLASS_WEIGHTS], reduction=["mean", "sum", "none"], label_smoothing=[0.0, 0.2]),
            probable(),
        ),
    ),
}
"""For each layer its function, and its options with its inputs."""

MISSING = {("AvgPool3d", torch.bfloat16)}
"""What torch's own kernels do not have on every device."""


def layer_cases(layer: str) -> Iterator[LayerCase]:
    """Yield the cases of one layer."""
    function, pairs = TABLES[layer]
    engines: tuple[LayerEngine, ...] = ("kernels", "first principles") if function else ("kernels",)
    for engine in engines:
        for dtype, (options, given) in itertools.product(LAYER_DTYPES[engine], pairs):
            if (layer, dtype) not in MISSING:
                yield LayerCase(layer, function, options, given, dtype, engine)
