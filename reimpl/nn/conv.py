"""The convolutional layers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import Parameter

from reimpl.nn.functional.padding import both_sides, same_widths
from reimpl.nn.initial import draw_uniform
from reimpl.nn.layer import Layer

PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]


class Conv(Layer):
    r"""A kernel slides over the input; each output channel is a weighted sum of what the kernel covers.

    $$y_{nmo} = b_m + \sum_c \sum_k W_{mck}\, \bar x_{n,\,c,\,os + kd}$$

    with stride $s$ and dilation $d$, where $\bar x$ is the input $x$ with its padding. Positions $o$ and taps $k$ have
    as many indices as the layer's name says. `reimpl.nn.functional.conv1d` has the backward.

    Args:
        in_channels: $C$.
        out_channels: $M$.
        kernel_size: the number of taps: one for all dimensions, or one for each. So for the next three.
        stride: $s$, from a window to the next.
        padding: on both sides of each dimension; or `valid` for none, or `same` for as much as keeps the size.
        dilation: $d$, from one input under the kernel to the next.
        groups: $G$: each of $G$ parts of the output channels sees one of $G$ parts of the input channels.
        bias: whether there is a $b$.
        padding_mode: what stands in the padding: `zeros`, or as `reimpl.nn.functional.pad` has it, `reflect`,
            `replicate` or `circular`.
        device: of the parameters.
        dtype: of the parameters.

    Shape:
        Input (batch, $C$, *sizes) or ($C$, *sizes); output (batch, $M$, *windows) or ($M$, *windows), with
        $\lfloor (\text{size} + \text{padding} - d (\text{kernel size} - 1) - 1) / s \rfloor + 1$ windows in each
        dimension, where padding is that of both sides.

    Attributes:
        weight: $W$ of shape ($M$, $C / G$, *kernel_size), at first from $\mathcal U(-1/\sqrt n, 1/\sqrt n)$, where $n$
            is the number of inputs under the kernel, $C / G$ times the number of taps.
        bias: $b$ of shape ($M$), at first from the same.

    Raises:
        ValueError: if `groups` does not divide both numbers of channels, a string is none of those above, or `same`
            meets a stride.
        RuntimeError: if the input's shape or dtype does not fit, in `forward`.

    Differs from torch: nothing.

    Source: `torch/nn/modules/conv.py`.
    """

    spatial: int
    """The number of dimensions that the kernel slides along."""
    weight: Tensor
    bias: Tensor | None
    _reversed_padding_repeated_twice: Any

    __constants__ = [
        "stride",
        "padding",
        "dilation",
        "groups",
        "padding_mode",
        "output_padding",
        "in_channels",
        "out_channels",
        "kernel_size",
    ]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, ...],
        stride: int | tuple[int, ...] = 1,
        padding: str | int | tuple[int, ...] = 0,
        dilation: int | tuple[int, ...] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: PaddingMode = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = self.for_each_dim(kernel_size)
        self.stride = self.for_each_dim(stride)
        self.padding = padding if isinstance(padding, str) else self.for_each_dim(padding)
        self.dilation = self.for_each_dim(dilation)
        self.groups = groups
        self.padding_mode = padding_mode
        # A transposed convolution has other values; tools that treat both alike read them.
        self.transposed = False
        self.output_padding = self.for_each_dim(0)
        self.check()
        self._reversed_padding_repeated_twice = self.padding_widths()
        shape = (out_channels, in_channels // groups, *self.kernel_size)
        self.weight = Parameter(torch.empty(shape, device=device, dtype=dtype))
        self.register_parameter(
            "bias", Parameter(torch.empty(out_channels, device=device, dtype=dtype)) if bias else None
        )
        self.reset_parameters()

    def for_each_dim(self, size: Any) -> tuple[Any, ...]:
        """Return one number for each dimension; what has several already, whatever their number, as it is."""
        return tuple(size) if isinstance(size, Iterable) else (size,) * self.spatial

    def check(self) -> None:
        """Raise if the arguments do not fit each other."""
        if self.groups <= 0:
            raise ValueError("groups must be a positive integer")
        if self.in_channels % self.groups:
            raise ValueError("in_channels must be divisible by groups")
        if self.out_channels % self.groups:
            raise ValueError("out_channels must be divisible by groups")
        if isinstance(self.padding, str):
            names = {"same", "valid"}
            if self.padding not in names:
                raise ValueError(f"Invalid padding string {self.padding!r}, should be one of {names}")
            if self.padding == "same" and any(step != 1 for step in self.stride):
                raise ValueError("padding='same' is not supported for strided convolutions")
        modes = {"zeros", "reflect", "replicate", "circular"}
        if self.padding_mode not in modes:
            raise ValueError(f"padding_mode must be one of {modes}, but got padding_mode='{self.padding_mode}'")

    def padding_widths(self) -> list[int] | tuple[int, ...]:
        """Return the widths before and after the last dimension, the last but one, and so on, as `pad` takes them."""
        if not isinstance(self.padding, str):
            return both_sides(self.padding)
        if self.padding == "valid":
            return [0, 0] * len(self.kernel_size)
        return list(same_widths(self.kernel_size, self.dilation))

    def reset_parameters(self) -> None:
        """Draw the initial values anew, in the order of the weight's indices however it lies in memory."""
        weight = self.weight
        if not weight.is_contiguous():
            weight = torch.empty_like(weight, memory_format=torch.contiguous_format)
        draw_uniform(weight, self.bias)
        if weight is not self.weight:
            with torch.no_grad():
                self.weight.copy_(weight)

    def forward(self, input: Tensor) -> Tensor:
        r"""Return $W \star \bar x + b$."""
        return self._conv_forward(input, self.weight, self.bias)

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Convolve with a given weight: what subclasses that change the weight call, under torch's name."""
        padding = self.padding
        if self.padding_mode != "zeros":
            input = self.functional.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            padding = self.for_each_dim(0)
        convolve = getattr(self.functional, f"conv{self.spatial}d")
        output: Tensor = convolve(input, weight, bias, self.stride, padding, self.dilation, self.groups)
        return output

    def extra_repr(self) -> str:
        """Describe the layer in a model's `repr`."""
        text = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        if self.padding != (0,) * len(self.padding):
            text += f", padding={self.padding}"
        if self.dilation != (1,) * len(self.dilation):
            text += f", dilation={self.dilation}"
        if self.groups != 1:
            text += f", groups={self.groups}"
        if self.bias is None:
            text += ", bias=False"
        if self.padding_mode != "zeros":
            text += f", padding_mode={self.padding_mode}"
        return text

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        # Layers pickled before there was a choice.
        self.__dict__.setdefault("padding_mode", "zeros")


class Conv1d(Conv, torch.nn.Conv1d):
    """A convolution over sequences (batch, channels, length): see `Conv`, which explains the arguments.

    Differs from torch: nothing.

    Source: `torch/nn/modules/conv.py`.
    """

    spatial = 1


class Conv2d(Conv, torch.nn.Conv2d):
    """A convolution over images (batch, channels, height, width): see `Conv`, which explains the arguments.

    Differs from torch: nothing.

    Source: `torch/nn/modules/conv.py`.
    """

    spatial = 2


class Conv3d(Conv, torch.nn.Conv3d):
    """A convolution over volumes (batch, channels, depth, height, width): see `Conv`, which explains the arguments.

    Differs from torch: nothing.

    Source: `torch/nn/modules/conv.py`.
    """

    spatial = 3
