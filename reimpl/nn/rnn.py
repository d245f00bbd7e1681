"""The long short-term memory: a recurrent layer, and one step of it."""

from __future__ import annotations

import math
import warnings
import weakref
from collections.abc import Callable, Iterable
from itertools import chain, product
from numbers import Number
from typing import Any

import torch
from torch import Tensor
from torch.backends.cudnn import is_acceptable
from torch.backends.cudnn.rnn import get_cudnn_mode
from torch.nn import Module, Parameter
from torch.nn.utils.rnn import PackedSequence

from reimpl.nn.layer import Layer

State = tuple[Tensor, Tensor]
"""The hidden state h and the cell state c."""


class LSTM(Layer, torch.nn.LSTM):
    r"""Read a batch of sequences step by step, with a memory that gates protect.

    $$i_t, f_t, o_t = \sigma(W_{ih} x_t + b_{ih} + W_{hh} h_{t-1} + b_{hh}) \qquad g_t = \tanh(\text{likewise})$$

    $$c_t = f_t c_{t-1} + i_t g_t \qquad h_t = o_t \tanh c_t$$

    Each gate has rows of its own in the weights, in the order $i, f, g, o$. $f_t$ says how much of the memory $c$ is
    kept, $i_t$ how much of the candidate $g_t$ is written, $o_t$ how much is shown. The gradient by $c$ goes back
    through a factor $f_t$ a step, and no weight matrix.

    Args:
        input_size: features of each step, $n$.
        hidden_size: elements of the memory, $m$.
        num_layers: layers on top of one another: $h_t$ of one is $x_t$ of the next.
        bias: whether there are $b_{ih}$ and $b_{hh}$.
        batch_first: whether input and output are (batch, time, features). The states never are.
        dropout: the probability of being dropped between two layers, new at each step. Nothing in a single layer.
        bidirectional: whether each layer also reads from the end and appends what it finds.
        proj_size: outputs, if they are fewer than $m$: then $h_t = W_{hr} (o_t \tanh c_t)$.
        device: of the parameters.
        dtype: of the parameters.

    Shape:
        Input $(T, N, n)$, or $(T, n)$ without a batch, or a `PackedSequence`; with it, if wanted, the states $h_0$ of
        shape $(L D, N, p)$ and $c_0$ of $(L D, N, m)$, for $L$ layers, $D$ directions and $p$ outputs. Output
        $(T, N, D p)$ in the form of the input, and the states after each sequence's last step.

    Attributes:
        weight_ih_l0: $W_{ih}$ of layer 0, of shape $(4m, n)$, in layers above $(4m, D p)$. All parameters are drawn
            from $\mathcal U(-1/\sqrt m, 1/\sqrt m)$. Those of the reverse direction have the suffix `_reverse`.
        weight_hh_l0: $W_{hh}$ of shape $(4m, p)$.
        bias_ih_l0: $b_{ih}$ of shape $(4m)$.
        bias_hh_l0: $b_{hh}$ of shape $(4m)$. Only the sum of the two matters; cuDNN wants both.
        weight_hr_l0: $W_{hr}$ of shape $(p, m)$, with `proj_size` alone.

    Raises:
        ValueError: if an argument makes no sense, or the input has not two or three dimensions or another dtype than
            the weights.
        TypeError: if an argument has the wrong type.
        RuntimeError: if the input or a state has a wrong shape.

    Warns:
        UserWarning: of `dropout` in a single layer.

    Differs from torch: nothing.

    Source: Hochreiter and Schmidhuber, Long Short-Term Memory, 1997; Gers et al., Learning to Forget, 2000;
    Sak et al., Long Short-Term Memory Based Recurrent Neural Network Architectures, 2014; `torch/nn/modules/rnn.py`.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.mode = "LSTM"
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.bias = bias
        self.batch_first = batch_first
        self.dropout = float(dropout)
        self.bidirectional = bidirectional
        self.proj_size = proj_size
        if isinstance(dropout, bool) or not isinstance(dropout, Number) or not 0 <= dropout <= 1:
            raise ValueError(
                "dropout should be a number in range [0, 1] representing the probability of an element being zeroed"
            )
        if dropout > 0 and num_layers == 1:
            warnings.warn(
                "dropout option adds dropout after all but last recurrent layer, so non-zero dropout expects "
                f"num_layers greater than 1, but got dropout={dropout} and num_layers={num_layers}",
                stacklevel=2,
            )
        for name, flag in {"bias": bias, "batch_first": batch_first}.items():
            if not isinstance(flag, bool):
                raise TypeError(f"{name} should be of type bool, got: {type(flag).__name__}")
        for name, size in {"input_size": input_size, "hidden_size": hidden_size}.items():
            if not isinstance(size, int):
                raise TypeError(f"{name} should be of type int, got: {type(size).__name__}")
            if size <= 0:
                raise ValueError(f"{name} must be greater than zero")
        if num_layers <= 0:
            raise ValueError("num_layers must be greater than zero")
        if proj_size < 0:
            raise ValueError("proj_size should be a positive integer or zero to disable projections")
        if proj_size >= hidden_size:
            raise ValueError("proj_size has to be smaller than hidden_size")

        gates, outputs, directions = 4 * hidden_size, proj_size or hidden_size, 2 if bidirectional else 1
        names_of_weights = self._names_of_weights()
        for k, names in enumerate(names_of_weights):
            shapes: dict[str, tuple[int, ...]] = {
                "weight_ih": (gates, input_size if k < directions else outputs * directions),
                "weight_hh": (gates, outputs),
                "bias_ih": (gates,),
                "bias_hh": (gates,),
                "weight_hr": (outputs, hidden_size),
            }
            for name in names:
                shape = shapes[name.partition("_l")[0]]
                setattr(self, name, Parameter(torch.empty(shape, device=device, dtype=dtype)))
        self._all_weights = names_of_weights
        self._flat_weights_names = list(chain(*names_of_weights))
        self._init_flat_weights()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the initial values anew."""
        draw(self.parameters(), self.hidden_size)

    # The weights in the kernel's order. cuDNN wants them in one piece of memory, and `Module` knows them by name: so a
    # list of them is kept, and brought up to date when a name stands for another tensor than when it was made. That
    # happens by assignment, and in functional_call, parametrizations and replicas at each forward.

    def _names_of_weights(self) -> list[list[str]]:
        """Return the names of the parameters of each direction of each layer."""
        kinds = ["weight_ih", "weight_hh"]
        if self.bias:
            kinds += ["bias_ih", "bias_hh"]
        if self.proj_size > 0:
            kinds += ["weight_hr"]
        suffixes = ("", "_reverse") if self.bidirectional else ("",)
        layers = product(range(self.num_layers), suffixes)
        return [[f"{kind}_l{layer}{suffix}" for kind in kinds] for layer, suffix in layers]

    @property
    def all_weights(self) -> list[list[Parameter]]:
        """The parameters of each direction of each layer."""
        return [[getattr(self, name) for name in names] for names in self._all_weights]

    def _init_flat_weights(self) -> None:
        """Collect the weights, and remember which tensors they are."""
        self._flat_weights = [self._weight(name) for name in self._flat_weights_names]
        self._remember_weights()
        self.flatten_parameters()

    def _weight(self, name: str) -> Any:
        """Return what a name stands for, or None: while weight_norm changes it, for nothing."""
        # Asked twice, as torch does: a parametrization that draws random numbers then draws as many.
        return getattr(self, name) if hasattr(self, name) else None

    def _remember_weights(self) -> None:
        # Weakly: what has been replaced need not be kept alive to be compared.
        self._flat_weight_refs = [None if weight is None else weakref.ref(weight) for weight in self._flat_weights]

    def _weights_have_changed(self) -> bool:
        """Return whether a name stands for another tensor than before."""
        weights = (
            (self._weight(name), ref)
            for name, ref in zip(self._flat_weights_names, self._flat_weight_refs, strict=True)
        )
        return any(weight is not None and ref is not None and ref() is not weight for weight, ref in weights)

    def _update_flat_weights(self) -> None:
        """Collect the weights anew if they have changed."""
        if self._weights_have_changed():
            self._init_flat_weights()

    def __setattr__(self, name: str, value: Any) -> None:
        names = self.__dict__.get("_flat_weights_names", [])
        if name in names:
            self._flat_weights[names.index(name)] = value
        # Not super(), here and below: next in line after Layer is torch's own layer.
        Module.__setattr__(self, name, value)

    def flatten_parameters(self) -> None:
        """Move the weights into one piece of memory, as cuDNN wants them. Elsewhere than on CUDA do nothing."""
        weights: list[Any] = self._flat_weights
        if len(weights) != len(self._flat_weights_names) or not all(isinstance(w, Tensor) for w in weights):
            return
        dtype = weights[0].dtype
        if not all(w.dtype == dtype and w.is_cuda and is_acceptable(w) for w in weights):  # type: ignore[no-untyped-call]
            return
        if len({weight.data_ptr() for weight in weights}) != len(weights):
            return  # some share their memory, and should go on doing so
        with torch.cuda.device_of(weights[0]), torch.no_grad():  # type: ignore[no-untyped-call]
            if torch._use_cudnn_rnn_flatten_weight():
                torch._cudnn_rnn_flatten_weight(
                    weights,
                    len(self._all_weights[0]),
                    self.input_size,
                    get_cudnn_mode(self.mode),  # type: ignore[no-untyped-call]
                    self.hidden_size,
                    self.proj_size,
                    self.num_layers,
                    self.batch_first,
                    bool(self.bidirectional),
                )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Apply a function to the parameters, as `to` does. On CUDA they are flat afterwards."""
        # torch's swap_tensors refuses tensors with weak references.
        self._flat_weight_refs = []
        module = Module._apply(self, fn, recurse)  # type: ignore[no-untyped-call]
        self._init_flat_weights()
        return module

    def _replicate_for_data_parallel(self) -> Any:
        """Return a copy for another device, with lists of its own."""
        replica = Module._replicate_for_data_parallel(self)  # type: ignore[no-untyped-call]
        replica._flat_weights = list(replica._flat_weights)
        replica._flat_weights_names = list(replica._flat_weights_names)
        return replica

    def __getstate__(self) -> dict[str, Any]:
        self._update_flat_weights()
        state = super().__getstate__()
        del state["_flat_weight_refs"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        # What old pickles lack: there was no projection before torch 1.8, and first there were weights, no names.
        self.__dict__.setdefault("proj_size", 0)
        if "_flat_weights_names" not in state:
            self._all_weights = self._names_of_weights()
            self._flat_weights_names = list(chain(*self._all_weights))
            self._flat_weights = [self._weight(name) for name in self._flat_weights_names]
        self._remember_weights()

    # What a forward checks. Subclasses call these too.

    def check_input(self, input: Tensor, batch_sizes: Tensor | None) -> None:
        """Refuse an input of a wrong dtype or shape."""
        weights: list[Any] = self._flat_weights
        dtype = weights[0].dtype
        if input.dtype != dtype and not torch._C._is_any_autocast_enabled():
            raise ValueError(
                f"RNN input dtype ({input.dtype}) does not match weight dtype ({dtype}). "
                f"Convert input: input.to({dtype}), or convert model: model.to({input.dtype})"
            )
        dims = 3 if batch_sizes is None else 2
        if input.dim() != dims:
            raise RuntimeError(f"input must have {dims} dimensions, got {input.dim()}")
        if input.size(-1) != self.input_size:
            raise RuntimeError(
                f"input.size(-1) must be equal to input_size. Expected {self.input_size}, got {input.size(-1)}"
            )

    def get_expected_hidden_size(self, input: Tensor, batch_sizes: Tensor | None) -> tuple[int, int, int]:
        """Return the shape of $h$."""
        states, batch, hidden = self.get_expected_cell_size(input, batch_sizes)
        return states, batch, self.proj_size if self.proj_size > 0 else hidden

    def get_expected_cell_size(self, input: Tensor, batch_sizes: Tensor | None) -> tuple[int, int, int]:
        """Return the shape of $c$."""
        batch = input.size(0 if self.batch_first else 1) if batch_sizes is None else int(batch_sizes[0])
        return self.num_layers * (2 if self.bidirectional else 1), batch, self.hidden_size

    def check_hidden_size(
        self, hx: Tensor, expected_hidden_size: tuple[int, int, int], msg: str = "Expected hidden size {}, got {}"
    ) -> None:
        """Refuse a state of a wrong shape."""
        if hx.size() != expected_hidden_size:
            raise RuntimeError(msg.format(expected_hidden_size, list(hx.size())))

    def check_forward_args(self, input: Tensor, hidden: State, batch_sizes: Tensor | None) -> None:  # type: ignore[override]
        """Refuse an input or states that do not fit."""
        self.check_input(input, batch_sizes)
        sizes = self.get_expected_hidden_size(input, batch_sizes), self.get_expected_cell_size(input, batch_sizes)
        for k, size in enumerate(sizes):
            self.check_hidden_size(hidden[k], size, f"Expected hidden[{k}] size {{}}, got {{}}")

    def permute_hidden(self, hx: State, permutation: Tensor | None) -> State:  # type: ignore[override]
        """Return the states in another order of the batch."""
        if permutation is None:
            return hx
        return hx[0].index_select(1, permutation), hx[1].index_select(1, permutation)

    def forward(self, input: Any, hx: State | None = None) -> Any:
        """Return the outputs of the last layer, and the last states of all layers."""
        self._update_flat_weights()
        lstm = function_of(self.functional, "lstm")
        settings = (self.bias, self.num_layers, self.dropout, self.training, self.bidirectional)
        if isinstance(input, PackedSequence):
            data, batch_sizes, sorted_indices, unsorted_indices = input
            # The caller's states are in the order of the caller's batch.
            hx = self._zeros(data, batch_sizes) if hx is None else self.permute_hidden(hx, sorted_indices)
            output, *hidden = lstm(data, batch_sizes, hx, self._flat_weights, *settings)
            packed = PackedSequence(output, batch_sizes, sorted_indices, unsorted_indices)
            return packed, self.permute_hidden(tuple(hidden), unsorted_indices)

        if input.dim() not in (2, 3):
            raise ValueError(f"LSTM: Expected input to be 2D or 3D, got {input.dim()}D instead")
        is_batched = input.dim() == 3
        batch_dim = 0 if self.batch_first else 1
        if not is_batched:
            input = input.unsqueeze(batch_dim)
        if hx is None:
            hx = self._zeros(input, None)
        else:
            kind, dims = ("batched", 3) if is_batched else ("unbatched", 2)
            if hx[0].dim() != dims or hx[1].dim() != dims:
                raise RuntimeError(
                    f"For {kind} {dims}-D input, hx and cx should also be {dims}-D "
                    f"but got ({hx[0].dim()}-D, {hx[1].dim()}-D) tensors"
                )
            if not is_batched:
                hx = hx[0].unsqueeze(1), hx[1].unsqueeze(1)
        self.check_forward_args(input, hx, None)
        output, *hidden = lstm(input, hx, self._flat_weights, *settings, self.batch_first)
        if not is_batched:
            output, hidden = output.squeeze(batch_dim), [state.squeeze(1) for state in hidden]
        return output, tuple(hidden)

    def _zeros(self, input: Tensor, batch_sizes: Tensor | None) -> State:
        """Return the states before the first step."""
        sizes = self.get_expected_hidden_size(input, batch_sizes), self.get_expected_cell_size(input, batch_sizes)
        h, c = (torch.zeros(size, dtype=input.dtype, device=input.device) for size in sizes)
        return h, c

    def extra_repr(self) -> str:
        """Describe the layer in a model's `repr`."""
        text = f"{self.input_size}, {self.hidden_size}"
        if self.proj_size != 0:
            text += f", proj_size={self.proj_size}"
        if self.num_layers != 1:
            text += f", num_layers={self.num_layers}"
        if self.bias is not True:
            text += f", bias={self.bias}"
        if self.batch_first is not False:
            text += f", batch_first={self.batch_first}"
        if self.dropout != 0:
            text += f", dropout={self.dropout}"
        if self.bidirectional is not False:
            text += f", bidirectional={self.bidirectional}"
        return text


class LSTMCell(Layer, torch.nn.LSTMCell):
    r"""Take one step of an LSTM.

    $$i, f, o = \sigma(W_{ih} x + b_{ih} + W_{hh} h + b_{hh}) \qquad g = \tanh(\text{likewise})$$

    $$c' = f c + i g \qquad h' = o \tanh c'$$

    For loops that a caller writes, because a step's input depends on the output before. An `LSTM` is faster.

    Args:
        input_size: features, $n$.
        hidden_size: elements of the memory, $m$.
        bias: whether there are $b_{ih}$ and $b_{hh}$.
        device: of the parameters.
        dtype: of the parameters.

    Shape:
        Input $(N, n)$ or $(n)$; with it, if wanted, the states $h$ and $c$ of shape $(N, m)$ or $(m)$, else they are
        zero. Output $h'$ and $c'$ of the same shape.

    Attributes:
        weight_ih: $W_{ih}$ of shape $(4m, n)$, with the rows of $i, f, g, o$ in this order. All parameters are drawn
            from $\mathcal U(-1/\sqrt m, 1/\sqrt m)$.
        weight_hh: $W_{hh}$ of shape $(4m, m)$.
        bias_ih: $b_{ih}$ of shape $(4m)$.
        bias_hh: $b_{hh}$ of shape $(4m)$.

    Raises:
        ValueError: if the input or a state has not one or two dimensions.
        RuntimeError: if shapes or dtypes do not fit.

    Differs from torch: nothing.

    Source: as `LSTM`.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.bias = bias
        shapes = {
            "weight_ih": (4 * hidden_size, input_size),
            "weight_hh": (4 * hidden_size, hidden_size),
            "bias_ih": (4 * hidden_size,) if bias else None,
            "bias_hh": (4 * hidden_size,) if bias else None,
        }
        for name, shape in shapes.items():
            empty = None if shape is None else Parameter(torch.empty(shape, device=device, dtype=dtype))
            self.register_parameter(name, empty)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the initial values anew."""
        draw(self.parameters(), self.hidden_size)

    def forward(self, input: Tensor, hx: State | None = None) -> State:
        """Return the next states."""
        if input.dim() not in (1, 2):
            raise ValueError(f"LSTMCell: Expected input to be 1D or 2D, got {input.dim()}D instead")
        for k, state in enumerate(() if hx is None else hx):
            if state.dim() not in (1, 2):
                raise ValueError(f"LSTMCell: Expected hx[{k}] to be 1D or 2D, got {state.dim()}D instead")
        is_batched = input.dim() == 2
        if not is_batched:
            input = input.unsqueeze(0)
        if hx is None:
            zeros = torch.zeros(input.size(0), self.hidden_size, dtype=input.dtype, device=input.device)
            hx = zeros, zeros
        elif not is_batched:
            hx = hx[0].unsqueeze(0), hx[1].unsqueeze(0)
        lstm_cell = function_of(self.functional, "lstm_cell")
        h, c = lstm_cell(input, hx, self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh)
        return (h, c) if is_batched else (h.squeeze(0), c.squeeze(0))

    def extra_repr(self) -> str:
        """Describe the layer in a model's `repr`."""
        return f"{self.input_size}, {self.hidden_size}" + ("" if self.bias is True else f", bias={self.bias}")


def function_of(functional: Any, name: str) -> Any:
    """Return what a recurrent layer runs on: torch has it in `torch`, where others have it with all the rest."""
    return getattr(functional, name, None) or getattr(torch, name)


def draw(parameters: Iterable[Tensor], hidden_size: int) -> None:
    r"""Draw from $\mathcal U(-1/\sqrt m, 1/\sqrt m)$ for a memory of $m$ elements.

    A gate sums $m$ outputs of the step before, each at most 1 in size: with weights of variance $1/(3m)$ the sum's
    variance is at most a third, and no gate begins saturated. The bound is the same for the biases and for the weights
    of the input, whatever its size. So the forget gate begins near $\sigma(0) = 1/2$: half the memory goes each step.
    """
    bound = 1 / math.sqrt(hidden_size) if hidden_size > 0 else 0
    with torch.no_grad():
        for parameter in parameters:
            parameter.uniform_(-bound, bound)
