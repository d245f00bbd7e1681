"""Pooling: a summary of each neighbourhood in place of its elements."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from reimpl.nn.layer import Layer

Size = int | tuple[int, ...]
"""One number for all dimensions, or one for each."""

OutputSize = int | None | tuple[int | None, ...]
"""The same; None leaves a dimension as long as it is."""


class MaxPool(Layer):
    """What the max pooling layers share.

    Attributes:
        kernel_size: how many inputs a window sees.
        stride: from a window to the next.
        padding: by how much windows may exceed the input.
        dilation: from one input of a window to the next.
        return_indices: whether the output is a pair of maxima and indices.
        ceil_mode: whether the last window may exceed the padding.
    """

    spatial: int
    """The number of dimensions that windows slide along."""
    kernel_size: Any
    stride: Any
    padding: Any
    dilation: Any

    def __init__(
        self,
        kernel_size: Size,
        stride: Size | None = None,
        padding: Size = 0,
        dilation: Size = 1,
        return_indices: bool = False,
        ceil_mode: bool = False,
    ) -> None:
        super().__init__()
        self.kernel_size = kernel_size
        self.stride = kernel_size if stride is None else stride
        self.padding = padding
        self.dilation = dilation
        self.return_indices = return_indices
        self.ceil_mode = ceil_mode

    def forward(self, input: Tensor) -> Any:
        """Return the maxima, and with `return_indices` where they stand."""
        pool = getattr(self.functional, f"max_pool{self.spatial}d")
        return pool(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            ceil_mode=self.ceil_mode,
            return_indices=self.return_indices,
        )

    def extra_repr(self) -> str:
        """Describe the layer in a model's `repr`."""
        return (
            f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}, "
            f"dilation={self.dilation}, ceil_mode={self.ceil_mode}"
        )


class MaxPool1d(MaxPool, torch.nn.MaxPool1d):
    r"""Keep the maximum of each window that slides over a signal.

    $$y_o = \max_{0 \le k < K} x_{o s - p + k d}$$

    where what lies outside of the input does not take part.

    Args:
        kernel_size: $K$, inputs that a window sees.
        stride: $s$, from a window to the next, $K$ unless given.
        padding: $p$, by how much the first window begins before the input, and the last may end behind it. At most
            $K / 2$.
        dilation: $d$, from one input of a window to the next.
        return_indices: whether to return where the maxima stand too, as `torch.nn.MaxUnpool1d` needs it.
        ceil_mode: whether there is one more window if the last ends before the input does. It must begin inside the
            input or the padding before it.

    Shape:
        Input (batch, planes, $L$) or (planes, $L$). Output the same with
        $\lfloor (L + 2p - d (K - 1) - 1) / s \rfloor + 1$ for $L$.

    Raises:
        RuntimeError: if the numbers make no sense, or no window fits.

    Differs from torch: nothing.

    Source: `torch/nn/modules/pooling.py`.
    """

    spatial = 1


class MaxPool2d(MaxPool, torch.nn.MaxPool2d):
    """Keep the maximum of each window that slides over an image.

    `MaxPool1d` has the formulas. Numbers may be given as one for both dimensions, or as a pair.

    Args:
        kernel_size: rows and columns of a window.
        stride: from a window to the next, `kernel_size` unless given.
        padding: by how much windows may exceed the input, at most half of `kernel_size`.
        dilation: from one input of a window to the next.
        return_indices: whether to return where the maxima stand too: row · width + column.
        ceil_mode: whether the last windows may exceed the padding.

    Shape:
        Input (batch, planes, height, width) or (planes, height, width).

    Raises:
        RuntimeError: if the numbers make no sense, or no window fits.

    Differs from torch: nothing.

    Source: `torch/nn/modules/pooling.py`.
    """

    spatial = 2


class MaxPool3d(MaxPool, torch.nn.MaxPool3d):
    """Keep the maximum of each window that slides over a volume.

    `MaxPool1d` has the formulas. Numbers may be given as one for all dimensions, or as a triple.

    Args:
        kernel_size: slices, rows and columns of a window.
        stride: from a window to the next, `kernel_size` unless given.
        padding: by how much windows may exceed the input, at most half of `kernel_size`.
        dilation: from one input of a window to the next.
        return_indices: whether to return where the maxima stand too: (slice · height + row) · width + column.
        ceil_mode: whether the last windows may exceed the padding.

    Shape:
        Input (batch, planes, depth, height, width) or (planes, depth, height, width).

    Raises:
        RuntimeError: if the numbers make no sense, or no window fits.

    Differs from torch: nothing.

    Source: `torch/nn/modules/pooling.py`.
    """

    spatial = 3


class AvgPool(Layer):
    """What the average pooling layers share."""

    kernel_size: Any
    stride: Any
    padding: Any

    def extra_repr(self) -> str:
        """Describe the layer in a model's `repr`."""
        return f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"


class AvgPool1d(AvgPool, torch.nn.AvgPool1d):
    r"""Average each window that slides over a signal.

    $$y_o = \frac{1}{n_o} \sum_{0 \le k < K} \bar x_{o s + k}
      \qquad \bar x_i = \begin{cases} x_{i - p} & 0 \le i - p < L \\ 0 & \text{else} \end{cases}$$

    where $n_o$ is how many elements of the window are inside the input or its padding: $K$, except for a window that
    hangs over with `ceil_mode`.

    Args:
        kernel_size: $K$, inputs that a window sees.
        stride: $s$, from a window to the next, $K$ unless given.
        padding: $p$ zeros at both ends, at most $K / 2$.
        ceil_mode: whether there is one more window if the last ends before the input does. It must begin inside the
            input or the padding before it.
        count_include_pad: whether $n_o$ counts the padding.

    Shape:
        Input (batch, planes, $L$) or (planes, $L$). Output the same with $\lfloor (L + 2p - K) / s \rfloor + 1$ for
        $L$.

    Attributes:
        kernel_size: a tuple, and so are `stride` and `padding`.

    Raises:
        RuntimeError: if the numbers make no sense, or no window fits.

    Differs from torch: nothing.

    Source: `torch/nn/modules/pooling.py`.
    """

    def __init__(
        self,
        kernel_size: Size,
        stride: Size | None = None,
        padding: Size = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
    ) -> None:
        super().__init__()
        self.kernel_size = as_tuple(kernel_size)
        self.stride = as_tuple(kernel_size if stride is None else stride)
        self.padding = as_tuple(padding)
        self.ceil_mode = ceil_mode
        self.count_include_pad = count_include_pad

    def forward(self, input: Tensor) -> Tensor:
        """Return the averages."""
        output: Tensor = self.functional.avg_pool1d(
            input, self.kernel_size, self.stride, self.padding, self.ceil_mode, self.count_include_pad
        )
        return output


class AvgPoolWithDivisor(AvgPool):
    """What `AvgPool2d` and `AvgPool3d` share.

    Attributes:
        kernel_size: how many inputs a window sees.
        stride: from a window to the next.
        padding: zeros around the input.
        ceil_mode: whether the last window may exceed the padding.
        count_include_pad: whether the padding counts as elements of a window.
        divisor_override: what each sum is divided by; None for the elements of its window.
    """

    spatial: int
    """The number of dimensions that windows slide along."""

    def __init__(
        self,
        kernel_size: Size,
        stride: Size | None = None,
        padding: Size = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> None:
        super().__init__()
        self.kernel_size = kernel_size
        self.stride = kernel_size if stride is None else stride
        self.padding = padding
        self.ceil_mode = ceil_mode
        self.count_include_pad = count_include_pad
        self.divisor_override = divisor_override

    def forward(self, input: Tensor) -> Tensor:
        """Return the averages."""
        pool = getattr(self.functional, f"avg_pool{self.spatial}d")
        output: Tensor = pool(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.ceil_mode,
            self.count_include_pad,
            self.divisor_override,
        )
        return output


class AvgPool2d(AvgPoolWithDivisor, torch.nn.AvgPool2d):
    """Average each window that slides over an image.

    `AvgPool1d` has the formulas. Numbers may be given as one for both dimensions, or as a pair.

    Args:
        kernel_size: rows and columns of a window.
        stride: from a window to the next, `kernel_size` unless given.
        padding: zeros before and after, at most half of `kernel_size`.
        ceil_mode: whether the last windows may exceed the padding.
        count_include_pad: whether the padding counts as elements of a window.
        divisor_override: what each sum is divided by, however many elements its window has.

    Shape:
        Input (batch, planes, height, width) or (planes, height, width).

    Raises:
        RuntimeError: if the numbers make no sense, the divisor is 0, or no window fits.

    Differs from torch: nothing.

    Source: `torch/nn/modules/pooling.py`.
    """

    spatial = 2


class AvgPool3d(AvgPoolWithDivisor, torch.nn.AvgPool3d):
    """Average each window that slides over a volume.

    `AvgPool1d` has the formulas. Numbers may be given as one for all dimensions, or as a triple.

    Args:
        kernel_size: slices, rows and columns of a window.
        stride: from a window to the next, `kernel_size` unless given.
        padding: zeros before and after, at most half of `kernel_size`.
        ceil_mode: whether the last windows may exceed the padding.
        count_include_pad: whether the padding counts as elements of a window.
        divisor_override: what each sum is divided by, however many elements its window has.

    Shape:
        Input (batch, planes, depth, height, width) or (planes, depth, height, width). No kernel may be longer than
        the input, not even with padding.

    Raises:
        RuntimeError: if the numbers make no sense, the divisor is 0, or no window fits.

    Differs from torch: nothing.

    Source: `torch/nn/modules/pooling.py`.
    """

    spatial = 3

    def __setstate__(self, d: dict[str, Any]) -> None:
        """Restore the layer, from a time before it had all its options too."""
        super().__setstate__({"padding": 0, "ceil_mode": False, "count_include_pad": True, **d})


class AdaptiveMaxPool(Layer):
    """What the adaptive max pooling layers share.

    Attributes:
        output_size: how many windows to lay over each dimension.
        return_indices: whether the output is a pair of maxima and indices.
    """

    spatial: int
    """The number of dimensions that windows cover."""
    output_size: Any

    def __init__(self, output_size: OutputSize, return_indices: bool = False) -> None:
        super().__init__()
        self.output_size = output_size
        self.return_indices = return_indices

    def forward(self, input: Tensor) -> Any:
        """Return the maxima, and with `return_indices` where they stand."""
        pool = getattr(self.functional, f"adaptive_max_pool{self.spatial}d")
        return pool(input, self.output_size, self.return_indices)

    def extra_repr(self) -> str:
        """Describe the layer in a model's `repr`."""
        return f"output_size={self.output_size}"


class AdaptiveMaxPool1d(AdaptiveMaxPool, torch.nn.AdaptiveMaxPool1d):
    r"""Keep the maxima of as many windows as are asked for, that together cover a signal.

    $$y_o = \max_{\lfloor o L / n \rfloor \le i < \lceil (o + 1) L / n \rceil} x_i \qquad 0 \le o < n$$

    Args:
        output_size: $n$.
        return_indices: whether to return where the maxima stand too.

    Shape:
        Input (batch, planes, $L$) or (planes, $L$), for every $L$. Output the same with $n$ for $L$.

    Raises:
        RuntimeError: if the input is empty, or its shape another.

    Differs from torch: nothing.

    Source: `torch/nn/modules/pooling.py`.
    """

    spatial = 1


class AdaptiveMaxPool2d(AdaptiveMaxPool, torch.nn.AdaptiveMaxPool2d):
    """Keep the maxima of as many windows as are asked for, that together cover an image: see `AdaptiveMaxPool1d`.

    Args:
        output_size: windows in both dimensions or in each; None for as many as the dimension has elements.
        return_indices: whether to return where the maxima stand too: row · width + column.

    Shape:
        Input (batch, planes, height, width) or (planes, height, width).

    Raises:
        RuntimeError: if the input is empty, or its shape another.

    Differs from torch: nothing.

    Source: `torch/nn/modules/pooling.py`.
    """

    spatial = 2


class AdaptiveMaxPool3d(AdaptiveMaxPool, torch.nn.AdaptiveMaxPool3d):
    """Keep the maxima of as many windows as are asked for, that together cover a volume: see `AdaptiveMaxPool1d`.

    Args:
        output_size: windows in all dimensions or in each; None for as many as the dimension has elements.
        return_indices: whether to return where the maxima stand too: (slice · height + row) · width + column.

    Shape:
        Input (batch, planes, depth, height, width) or (planes, depth, height, width).

    Raises:
        RuntimeError: if the input is empty, or its shape another.

    Differs from torch: nothing.

    Source: `torch/nn/modules/pooling.py`.
    """

    spatial = 3


class AdaptiveAvgPool(Layer):
    """What the adaptive average pooling layers share.

    Attributes:
        output_size: how many windows to lay over each dimension.
    """

    spatial: int
    """The number of dimensions that windows cover."""
    output_size: Any

    def __init__(self, output_size: OutputSize) -> None:
        super().__init__()
        self.output_size = output_size

    def forward(self, input: Tensor) -> Tensor:
        """Return the averages."""
        pool = getattr(self.functional, f"adaptive_avg_pool{self.spatial}d")
        output: Tensor = pool(input, self.output_size)
        return output

    def extra_repr(self) -> str:
        """Describe the layer in a model's `repr`."""
        return f"output_size={self.output_size}"


class AdaptiveAvgPool1d(AdaptiveAvgPool, torch.nn.AdaptiveAvgPool1d):
    r"""Average as many windows as are asked for, that together cover a signal.

    $$y_o = \frac{1}{\lvert W_o \rvert} \sum_{i \in W_o} x_i \qquad
      W_o = \{\lfloor o L / n \rfloor, \dots, \lceil (o + 1) L / n \rceil - 1\} \qquad 0 \le o < n$$

    Args:
        output_size: $n$.

    Shape:
        Input (batch, planes, $L$) or (planes, $L$), for every $L$. Output the same with $n$ for $L$.

    Raises:
        RuntimeError: if the input is empty, or its shape another.

    Differs from torch: nothing.

    Source: `torch/nn/modules/pooling.py`.
    """

    spatial = 1


class AdaptiveAvgPool2d(AdaptiveAvgPool, torch.nn.AdaptiveAvgPool2d):
    """Average as many windows as are asked for, that together cover an image: see `AdaptiveAvgPool1d`.

    With `output_size` 1 this is the global average pooling that ends a ResNet.

    Args:
        output_size: windows in both dimensions or in each; None for as many as the dimension has elements.

    Shape:
        Input (batch, planes, height, width) or (planes, height, width).

    Raises:
        RuntimeError: if the input is empty, or its shape another.

    Differs from torch: nothing.

    Source: `torch/nn/modules/pooling.py`; Lin, Chen and Yan, Network In Network, 2014, section 3.2.
    """

    spatial = 2


class AdaptiveAvgPool3d(AdaptiveAvgPool, torch.nn.AdaptiveAvgPool3d):
    """Average as many windows as are asked for, that together cover a volume: see `AdaptiveAvgPool1d`.

    Args:
        output_size: windows in all dimensions or in each; None for as many as the dimension has elements.

    Shape:
        Input (batch, planes, depth, height, width) or (planes, depth, height, width).

    Raises:
        RuntimeError: if the input is empty, or its shape another.

    Differs from torch: nothing.

    Source: `torch/nn/modules/pooling.py`.
    """

    spatial = 3


def as_tuple(value: Size) -> tuple[int, ...]:
    """Return one number as a tuple, several as they are."""
    return tuple(value) if isinstance(value, Iterable) else (value,)
