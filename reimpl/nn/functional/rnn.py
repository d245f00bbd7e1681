"""The long short-term memory (LSTM) from first principles."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any, overload

import torch
from torch import Tensor

from reimpl.nn.functional.dropout import dropout as drop
from reimpl.nn.functional.operation import Operation, widen

Weights = tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]
"""Of one direction of one layer: w_ih, w_hh, b_ih, b_hh, w_hr."""


@overload
def lstm(
    input: Tensor,
    hx: Sequence[Tensor],
    params: Sequence[Tensor],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Tensor, Tensor, Tensor]: ...


@overload
def lstm(
    data: Tensor,
    batch_sizes: Tensor,
    hx: Sequence[Tensor],
    params: Sequence[Tensor],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
) -> tuple[Tensor, Tensor, Tensor]: ...


def lstm(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor, Tensor]:
    r"""Run an LSTM of one or more layers over a batch of sequences, padded to one length or packed.

    In each layer, from $t = 1$ on, with four gates that the layer's weights stack in the order $i, f, g, o$:

    $$a_t = W_{ih} x_t + b_{ih} + W_{hh} h_{t-1} + b_{hh}, \qquad
      i_t = \sigma(a^i_t), \quad f_t = \sigma(a^f_t), \quad g_t = \tanh(a^g_t), \quad o_t = \sigma(a^o_t)$$

    $$c_t = f_t c_{t-1} + i_t g_t \qquad r_t = o_t \tanh c_t \qquad
      h_t = \begin{cases} r_t & \text{without projection} \\ W_{hr} r_t & \text{with it} \end{cases}$$

    $h_t$ is the layer's output $y_t$, and the next layer's $x_t$. The reverse direction reads a sequence from its end.

    Backward, with $\delta z = \partial L / \partial z$, since $g$ is a gate here. Through time, from the last step to
    the first, and zero beyond the last:

    $$\delta h_t = \delta y_t + W_{hh}^\top \delta a_{t+1} \qquad
      \delta r_t = \delta h_t \ \text{ or } \ W_{hr}^\top \delta h_t \qquad
      \delta c_t = f_{t+1}\, \delta c_{t+1} + \delta r_t\, o_t (1 - \tanh^2 c_t)$$

    $$\delta a^i_t = \delta c_t\, g_t\, i_t (1 - i_t) \quad
      \delta a^f_t = \delta c_t\, c_{t-1} f_t (1 - f_t) \quad
      \delta a^g_t = \delta c_t\, i_t (1 - g_t^2) \quad
      \delta a^o_t = \delta r_t \tanh c_t\, o_t (1 - o_t)$$

    And then, for all steps at once:

    $$\delta x_t = W_{ih}^\top \delta a_t \quad
      \delta W_{ih} = \sum_t \delta a_t\, x_t^\top \quad
      \delta W_{hh} = \sum_t \delta a_t\, h_{t-1}^\top \quad
      \delta b_{ih} = \delta b_{hh} = \sum_t \delta a_t \quad
      \delta W_{hr} = \sum_t \delta h_t\, r_t^\top$$

    torch keeps this function in `torch`, not in `torch.nn.functional`, and in these two forms.

    Args:
        *args: `(input, hx, params, has_biases, num_layers, dropout, train, bidirectional, batch_first)` for padded
            sequences, `(data, batch_sizes, hx, params, has_biases, num_layers, dropout, train, bidirectional)` for
            packed ones.
        **kwargs: any of them by name.
        input: $x$ of shape (time, batch, inputs), or (batch, time, inputs) with `batch_first`.
        data: $x$ of shape (rows, inputs): the first step of all samples, the second of those that have one, and so on.
        batch_sizes: the number of samples in each step. It never grows.
        hx: $h_0$ and $c_0$ of shape (layers · directions, batch, outputs) and (…, hidden).
        params: for each layer and in it for each direction $W_{ih}$ of shape (4 · hidden, inputs), $W_{hh}$ of shape
            (4 · hidden, outputs), with `has_biases` $b_{ih}$ and $b_{hh}$ of shape (4 · hidden), and $W_{hr}$ of shape
            (outputs, hidden) if $h_0$ and $c_0$ differ in size.
        has_biases: whether there are biases.
        num_layers: layers on top of one another.
        dropout: the probability of being dropped between two layers.
        train: whether to drop.
        bidirectional: whether each layer has a second direction, whose outputs are appended to the first's.
        batch_first: whether the batch comes first in input and output. The states are not concerned.

    Returns:
        $y$ of the last layer in the form of the input, and $h$ and $c$ after each sample's last step for each layer
        and direction.

    Raises:
        RuntimeError: if sequences are empty, or there are not as many states or parameters as layers need, or shapes or
            dtypes do not fit.

    Differs from torch: states of a wrong shape are refused with the module's message; torch's float32 kernel on the CPU
    reads beyond them. float16 and bfloat16 are computed in float32 and rounded where they leave a layer. The mask of
    `dropout` is torch's on the CPU. Under autocast packed sequences get low precision as padded ones do; torch's CPU
    leaves their states in float32.

    Costs: a step is nine calls forward and seven back, where oneDNN, which runs padded float32 sequences on torch's
    CPU, has one kernel: on a batch of one that is all the time there is. Kept for the backward: four gates, $c$,
    $\tanh c$ and $h$ of every step.

    Source: Hochreiter and Schmidhuber, Long Short-Term Memory, 1997; Gers et al., Learning to Forget, 2000 (the gate
    $f$); Sak et al., Long Short-Term Memory Based Recurrent Neural Network Architectures, 2014 (the projection);
    `aten/src/ATen/native/RNN.cpp`.
    """
    is_packed = "batch_sizes" in kwargs or (len(args) > 1 and isinstance(args[1], Tensor))
    return packed_lstm(*args, **kwargs) if is_packed else padded_lstm(*args, **kwargs)


def lstm_cell(
    input: Tensor,
    hx: Sequence[Tensor],
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Take one step of an LSTM: from $x, h, c$ to the next $h', c'$.

    $$i, f, o = \sigma(\dots) \quad g = \tanh(\dots) \qquad c' = f c + i g \qquad h' = o \tanh c'$$

    with the gates of `lstm`, of which this is the case of a single step. So is its backward.

    Args:
        input: $x$ of shape (batch, inputs).
        hx: $h$ and $c$ of shape (batch, hidden).
        w_ih: $W_{ih}$ of shape (4 · hidden, inputs).
        w_hh: $W_{hh}$ of shape (4 · hidden, hidden).
        b_ih: $b_{ih}$ of shape (4 · hidden).
        b_hh: $b_{hh}$ of shape (4 · hidden).

    Returns:
        $h'$ and $c'$ of shape (batch, hidden).

    Raises:
        RuntimeError: if shapes or dtypes do not fit.

    Differs from torch: as `lstm` does. Under autocast everything is float32; torch's CPU has products of low precision
    and states in float32, its CUDA kernel low precision alone.

    Source: as `lstm`.
    """
    if len(hx) != 2:
        raise RuntimeError("lstm_cell expects two hidden states")
    if input.size(1) != w_ih.size(1):
        raise RuntimeError(f"input has inconsistent input_size: got {input.size(1)} expected {w_ih.size(1)}")
    for k, state in enumerate(hx):
        if input.size(0) != state.size(0):
            raise RuntimeError(f"Input batch size {input.size(0)} doesn't match hidden{k} batch size {state.size(0)}")
        if state.size(1) != w_hh.size(1):
            raise RuntimeError(f"hidden{k} has inconsistent hidden_size: got {state.size(1)}, expected {w_hh.size(1)}")
    h, c, *_ = LSTMCell.run([len(input)], input, *hx, w_ih, w_hh, b_ih, b_hh, None)
    # Copies: the caller may change them in place, and the backward needs what they were.
    return h.clone(), c.clone()


def padded_lstm(
    input: Tensor,
    hx: Sequence[Tensor],
    params: Sequence[Tensor],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run sequences of one length: packed ones, each step of which has the whole batch."""
    by_time = input.transpose(0, 1) if batch_first else input
    length, batch, _ = by_time.shape
    rows = by_time.flatten(0, 1)
    output, h_n, c_n = stack(rows, [batch] * length, hx, params, has_biases, num_layers, dropout, train, bidirectional)
    output = output.reshape(length, batch, output.shape[1])
    return output.transpose(0, 1) if batch_first else output, h_n, c_n


def packed_lstm(
    data: Tensor,
    batch_sizes: Tensor,
    hx: Sequence[Tensor],
    params: Sequence[Tensor],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run sequences of several lengths, the longest first."""
    sizes: list[int] = batch_sizes.tolist()
    return stack(data, sizes, hx, params, has_biases, num_layers, dropout, train, bidirectional)


def stack(
    input: Tensor,
    sizes: list[int],
    hx: Sequence[Tensor],
    params: Sequence[Tensor],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run layer upon layer. A row of the input is a sample at a step; `sizes` says how many samples a step has."""
    weights = grouped(params, has_biases, hx)
    directions = 2 if bidirectional else 1
    check(sizes, hx, weights, num_layers * directions)
    last, mirrored = (rows.to(input.device) for rows in landmarks(sizes))
    layers = zip(*hx, weights, strict=True)
    h_n, c_n = [], []
    for layer in range(num_layers):
        outputs = []
        for reverse in (False, True)[:directions]:
            h_0, c_0, of_layer = next(layers)
            x = input.index_select(0, mirrored) if reverse else input
            output, cells, *_ = LSTM.run(sizes, x, h_0, c_0, *of_layer)
            h_n.append(output.index_select(0, last))
            c_n.append(cells.index_select(0, last))
            outputs.append(output.index_select(0, mirrored) if reverse else output)
        # A copy even of one: the caller may change it in place, and the backward needs what it was.
        input = torch.cat(outputs, dim=1)
        if layer < num_layers - 1:
            input = drop(input, dropout, train)
    return input, torch.stack(h_n), torch.stack(c_n)


class LSTM(Operation):
    """One direction of one layer, from the first step to the last.

    The batch may shrink from step to step: a step works on the first rows of the state that the one before has left.
    """

    autocast = "lower"

    @staticmethod
    def forward(
        sizes: list[int],
        input: Tensor,
        h_0: Tensor,
        c_0: Tensor,
        w_ih: Tensor,
        w_hh: Tensor,
        b_ih: Tensor | None,
        b_hh: Tensor | None,
        w_hr: Tensor | None,
    ) -> tuple[Tensor, ...]:
        dtype = input.dtype
        input, h, c, w_ih, w_hh, b_ih, b_hh, w_hr = widened(input, h_0, c_0, w_ih, w_hh, b_ih, b_hh, w_hr)
        # What the input adds to each gate, in one product for all steps. The loop makes the gates of it, in place.
        gates = from_input(input, w_ih, b_ih, b_hh)
        cells = c.new_empty(len(input), c.shape[1])
        tanh_cells = torch.empty_like(cells)
        output = h.new_empty(len(input), h.shape[1])
        steps = (torch.split(rows, sizes) for rows in (gates, *gates.chunk(4, dim=1), cells, tanh_cells, output))
        for gates_t, i, f, g, o, c_t, tanh_c, h_t in zip(*steps, strict=True):
            n = len(gates_t)
            gates_t.addmm_(h[:n], w_hh.t())
            i.sigmoid_()
            f.sigmoid_()
            g.tanh_()
            o.sigmoid_()
            torch.mul(f, c[:n], out=c_t).addcmul_(i, g)
            torch.tanh(c_t, out=tanh_c)
            if w_hr is None:
                torch.mul(o, tanh_c, out=h_t)
            else:
                torch.mm(o * tanh_c, w_hr.t(), out=h_t)
            h, c = h_t, c_t
        return output.to(dtype), cells.to(dtype), gates, tanh_cells

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.sizes, *operands = inputs
        ctx.save_for_backward(*operands, *output)
        ctx.mark_non_differentiable(*output[2:])
        # Or the gates would get gradients too, of zeros.
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, d_output: Tensor | None, d_cells: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        sizes = ctx.sizes
        *operands, gates, tanh_cells = ctx.saved_tensors
        input, h_0, c_0, w_ih, w_hh, b_ih, b_hh, w_hr, output, cells = widened(*operands)
        d_output = torch.zeros_like(output) if d_output is None else widen(d_output)
        d_cells = torch.zeros_like(cells) if d_cells is None else widen(d_cells)
        h_before, c_before = before(h_0, output, sizes), before(c_0, cells, sizes)
        if torch.is_grad_enabled():
            # To be differentiated once more: the gates as functions of the inputs, and of the outputs one step before.
            i, f, g, o = (from_input(input, w_ih, b_ih, b_hh) + h_before @ w_hh.t()).chunk(4, dim=1)
            i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
            tanh_cells = cells.tanh()
        else:
            i, f, g, o = gates.chunk(4, dim=1)

        # What holds for all steps at once: the factors that each step's gradient will meet.
        local = torch.cat([g * i * (1 - i), c_before * f * (1 - f), i * (1 - g * g), tanh_cells * o * (1 - o)], dim=1)
        c_by_r = o * (1 - tanh_cells * tanh_cells)

        d_h, d_c = torch.zeros_like(h_0[: sizes[-1]]), torch.zeros_like(c_0[: sizes[-1]])
        d_gates, d_hidden = [], []
        steps = (torch.split(rows, sizes) for rows in (d_output, d_cells, local, c_by_r, f))
        for d_y, d_c_t, local_t, c_by_r_t, f_t in reversed(list(zip(*steps, strict=True))):
            d_h = d_y + joined(d_h, len(d_y))
            d_r = d_h if w_hr is None else d_h @ w_hr
            d_c = torch.addcmul(d_c_t + joined(d_c, len(d_y)), d_r, c_by_r_t)
            d_gates.append(local_t * torch.cat([d_c, d_c, d_c, d_r], dim=1))
            d_hidden.append(d_h)
            d_h = d_gates[-1] @ w_hh
            d_c = d_c * f_t

        d_a = torch.cat(d_gates[::-1])
        _, for_input, _, _, for_w_ih, for_w_hh, for_b_ih, for_b_hh, for_w_hr = ctx.needs_input_grad
        d_b = d_a.sum(0) if for_b_ih or for_b_hh else None
        return (
            None,
            d_a @ w_ih if for_input else None,
            d_h,
            d_c,
            d_a.t() @ input if for_w_ih else None,
            d_a.t() @ h_before if for_w_hh else None,
            d_b,
            d_b,
            torch.cat(d_hidden[::-1]).t() @ (o * tanh_cells) if for_w_hr else None,
        )


class LSTMCell(LSTM):
    """A single step. Under autocast torch keeps its states, and so what it returns, in float32."""

    autocast = "float32"  # type: ignore[assignment]


def from_input(input: Tensor, w_ih: Tensor, b_ih: Tensor | None, b_hh: Tensor | None) -> Tensor:
    """Return what the gates sum up that is known before the first step."""
    biases = [bias for bias in (b_ih, b_hh) if bias is not None]
    return torch.addmm(reduce(torch.add, biases), input, w_ih.t()) if biases else input @ w_ih.t()


def before(first: Tensor, rows: Tensor, sizes: list[int]) -> Tensor:
    """Return what each step found: at first `first`, then the rows of the step before, for the samples that go on."""
    return torch.cat([first, *(step[:n] for step, n in zip(torch.split(rows, sizes), sizes[1:], strict=False))])


def joined(state: Tensor, n: int) -> Tensor:
    """Return the gradient of `n` samples: those that end here get none from later steps."""
    if len(state) == n:
        return state
    return torch.cat([state, state.new_zeros(n - len(state), state.shape[1])])


def widened(*operands: Tensor | None) -> list[Any]:
    """Return float16 and bfloat16 as float32."""
    dtypes = {str(x.dtype) for x in operands if x is not None}
    if len(dtypes) > 1:
        raise RuntimeError(f"input, states and weights must have the same dtype, but got {sorted(dtypes)}")
    return [None if x is None else widen(x) for x in operands]


def grouped(params: Sequence[Tensor], has_biases: bool, hx: Sequence[Tensor]) -> list[Weights]:
    """Return the parameters of each direction of each layer."""
    if len(hx) != 2:
        raise RuntimeError("lstm expects two hidden states")
    projected = hx[0].shape[-1] != hx[1].shape[-1]
    count = 2 + 2 * has_biases + projected
    if len(params) % count:
        raise RuntimeError("got an incorrect number of RNN parameters")
    groups = []
    for start in range(0, len(params), count):
        w_ih, w_hh, *rest = params[start : start + count]
        w_hr = rest.pop() if projected else None
        b_ih, b_hh = rest or (None, None)
        groups.append((w_ih, w_hh, b_ih, b_hh, w_hr))
    return groups


def check(sizes: list[int], hx: Sequence[Tensor], weights: Sequence[Weights], states: int) -> None:
    """Refuse what does not fit together."""
    if not sizes:
        raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
    if sizes != sorted(sizes, reverse=True):
        raise RuntimeError(f"batch_sizes should never grow, but got {sizes}")
    if len(hx[0]) != states:
        raise RuntimeError("Expected more hidden states in stacked_rnn")
    if len(weights) != states:
        raise RuntimeError("Expected more weights in stacked_rnn")
    for k, state in enumerate(hx):
        expected = (states, sizes[0], state.shape[-1])
        if state.shape != expected:
            raise RuntimeError(f"Expected hidden[{k}] size {expected}, got {list(state.shape)}")


def landmarks(sizes: list[int]) -> tuple[Tensor, Tensor]:
    """Return which row is each sample's last, and which rows to read to read each sample backwards."""
    counts = torch.tensor(sizes)
    starts = counts.cumsum(0) - counts
    samples = torch.arange(sizes[0])
    lengths = (counts > samples.unsqueeze(1)).sum(1)
    time = torch.arange(len(sizes)).repeat_interleave(counts, output_size=sum(sizes))
    sample = torch.arange(sum(sizes)) - starts[time]
    return starts[lengths - 1] + samples, starts[lengths[sample] - 1 - time] + sample
