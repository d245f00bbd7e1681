"""Batch normalisation over samples, and over one, two or three dimensions of place."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import Module, Parameter

from reimpl.nn.layer import Layer


class BatchNorm(Layer):
    r"""Every channel with mean 0 and variance 1 over the batch, scaled by $\gamma$ and shifted by $\beta$.

    $$y = \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}}\, \gamma + \beta$$

    What `BatchNorm1d`, `BatchNorm2d` and `BatchNorm3d` share; they differ in the inputs that they take.

    In training $\mu$ and $\sigma^2$ are the batch's mean and variance, which are also mixed into running ones, the
    variance with $n - 1$ in place of $n$. In evaluation they are the running ones. Without running ones they are the
    batch's always:

    | | normalised by | running statistics |
    |---|---|---|
    | `train()` | batch | updated |
    | `train()`, `track_running_stats = False` set later | batch | kept |
    | `eval()` | running | kept |
    | `train()` or `eval()`, constructed with `track_running_stats=False` | batch | none |

    Args:
        num_features: channels, $C$.
        eps: $\epsilon$, added to the variance.
        momentum: $m$, the weight of the new batch in $(1 - m)\, \text{running} + m\, \text{new}$; None for the mean of
            all batches so far, $m = 1 / \text{num\_batches\_tracked}$.
        affine: whether there are $\gamma$ and $\beta$.
        track_running_stats: whether there are running statistics.
        device: of parameters and buffers.
        dtype: of parameters and buffers.
        bias: whether there is a $\beta$, if `affine`.

    Attributes:
        weight: $\gamma$ of shape $(C)$, at first 1.
        bias: $\beta$ of shape $(C)$, at first 0: the layer begins as the normalisation alone.
        running_mean: of shape $(C)$, at first 0.
        running_var: of shape $(C)$, at first 1.
        num_batches_tracked: how many batches the running statistics have seen.

    Raises:
        ValueError: if the input has another number of dimensions, or a training batch one value a channel.

    Differs from torch: a batch is counted after it was normalised, not before, so that a batch which raises is not.

    Source: Ioffe and Szegedy, Batch Normalization: Accelerating Deep Network Training by Reducing Internal Covariate
    Shift, 2015; `torch/nn/modules/batchnorm.py`.
    """

    _version = 2
    """Of a layer's part in a checkpoint: since 2 with `num_batches_tracked`."""

    dimensions: ClassVar[tuple[int, ...]]
    """How many dimensions an input may have."""

    weight: Parameter  # or None, as the next: torch declares them so
    bias: Parameter
    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        self.momentum = momentum
        self.affine = affine
        self.track_running_stats = track_running_stats

        def by_channel() -> Tensor:
            return torch.empty(num_features, device=device, dtype=dtype)

        self.register_parameter("weight", Parameter(by_channel()) if affine else None)
        self.register_parameter("bias", Parameter(by_channel()) if affine and bias else None)
        self.register_buffer("running_mean", by_channel() if track_running_stats else None)
        self.register_buffer("running_var", by_channel() if track_running_stats else None)
        count = torch.tensor(0, dtype=torch.long, device=device) if track_running_stats else None
        self.register_buffer("num_batches_tracked", count)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the initial values anew, those of the running statistics too."""
        self.reset_running_stats()
        with torch.no_grad():
            if self.affine:
                self.weight.fill_(1)
            if self.bias is not None:
                self.bias.zero_()

    def reset_running_stats(self) -> None:
        """Forget all batches."""
        if self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None:
            self.running_mean.zero_()
            self.running_var.fill_(1)
            self.num_batches_tracked.zero_()

    def forward(self, input: Tensor) -> Tensor:
        """Return the normalised batch; in training mix its statistics into the running ones."""
        self._check_input_dim(input)
        update = self.training and self.track_running_stats
        count = self.num_batches_tracked if update else None
        momentum = self.momentum
        if momentum is None:
            momentum = 0.0 if count is None else 1.0 / float(count + 1)
        # In training, statistics that are passed are changed.
        passed = update or not self.training
        mean = self.running_mean if passed else None
        var = self.running_var if passed else None
        by_batch = self.training or (mean is None and var is None)
        output: Tensor = self.functional.batch_norm(
            input, mean, var, self.weight, self.bias, by_batch, momentum, self.eps
        )
        if count is not None:
            count.add_(1)
        return output

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() not in self.dimensions:
            expected = " or ".join(f"{n}D" for n in self.dimensions)
            raise ValueError(f"expected {expected} input (got {input.dim()}D input)")

    def extra_repr(self) -> str:
        """Describe the layer in a model's `repr`."""
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}, "
            f"bias={self.bias is not None}, track_running_stats={self.track_running_stats}"
        )

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], *args: Any
    ) -> None:
        """Load, of a checkpoint older than `num_batches_tracked`, that no batch was counted yet, or as many as here."""
        version = local_metadata.get("version")
        key = prefix + "num_batches_tracked"
        if self.track_running_stats and (version is None or version < 2) and key not in state_dict:
            count = self.num_batches_tracked
            known = count is not None and not count.is_meta
            state_dict[key] = count if known else torch.tensor(0, dtype=torch.long)
        Module._load_from_state_dict(self, state_dict, prefix, local_metadata, *args)


class BatchNorm1d(BatchNorm, torch.nn.BatchNorm1d):
    """Batch normalisation of samples $(N, C)$ or sequences $(N, C, L)$: see `BatchNorm`, which explains the arguments.

    Differs from torch: when a batch is counted, see `BatchNorm`.

    Source: `torch/nn/modules/batchnorm.py`.
    """

    dimensions = (2, 3)


class BatchNorm2d(BatchNorm, torch.nn.BatchNorm2d):
    """Batch normalisation of images $(N, C, H, W)$: see `BatchNorm`, which explains the arguments.

    Differs from torch: when a batch is counted, see `BatchNorm`.

    Source: `torch/nn/modules/batchnorm.py`.
    """

    dimensions = (4,)


class BatchNorm3d(BatchNorm, torch.nn.BatchNorm3d):
    """Batch normalisation of volumes $(N, C, D, H, W)$: see `BatchNorm`, which explains the arguments.

    Differs from torch: when a batch is counted, see `BatchNorm`.

    Source: `torch/nn/modules/batchnorm.py`.
    """

    dimensions = (5,)
