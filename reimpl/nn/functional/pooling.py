"""Where the windows of a pooling layer lie."""

from __future__ import annotations

from typing import NamedTuple


class Sliding(NamedTuple):
    r"""Windows of one size at equal distances, along one dimension.

    Tap $k$ of window $o$ is the input at $o s - p + k d$. Outside the input is padding.

    Attributes:
        kernel_size: $K$, taps of each window.
        stride: $s$, from a window to the next.
        padding: $p$, before the first element and after the last.
        dilation: $d$, from a tap to the next.
        size: $L$, of the input.
        outputs: windows.
    """

    kernel_size: int
    stride: int
    padding: int
    dilation: int
    size: int
    outputs: int

    @property
    def overhang(self) -> int:
        """How much has to be added behind the input for the last window to be inside."""
        last = (self.outputs - 1) * self.stride - self.padding + (self.kernel_size - 1) * self.dilation
        return max(last - (self.size - 1), 0)


def count_windows(size: int, kernel_size: int, stride: int, padding: int, dilation: int, ceil_mode: bool) -> int:
    r"""Return how many windows one dimension has.

    The last tap of window $o$ stands at $o s - p + d (K - 1)$, and the padding ends at $L + p - 1$. Inside it end

    $$\left\lfloor \frac{L + 2p - d (K - 1) - 1}{s} \right\rfloor + 1$$

    With `ceil_mode` the quotient is rounded up: one more may end outside. But if that one begins behind the input,
    at $o s - p \ge L$, it sees nothing of it and does not count.
    """
    room = size + 2 * padding - dilation * (kernel_size - 1) - 1
    if not ceil_mode:
        return room // stride + 1
    count = -(-room // stride) + 1
    return count - 1 if (count - 1) * stride - padding >= size else count


def adaptive_windows(size: int, count: int) -> list[tuple[int, int]]:
    r"""Return where each of `count` windows that together cover a dimension begins, and how many elements it has.

    Window $i$ of $n$ reaches from $\lfloor i L / n \rfloor$ up to, and not with, $\lceil (i + 1) L / n \rceil$.
    Neighbours share an element where $i L / n$ is not whole.
    """
    edges = [(i * size // count, -(-(i + 1) * size // count)) for i in range(count)]
    return [(start, end - start) for start, end in edges]
