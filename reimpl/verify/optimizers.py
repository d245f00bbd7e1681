"""The registry of optimizers: every combination of options, dtype, engine and scenario about which a claim is made."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from reimpl.verify.options import DTYPES, Claim, grid, name_of, spell
from reimpl.verify.scenarios import LOW_PRECISION_EPS, SCENARIOS, Scenario

Engine = Literal["loop", "foreach", "fused"]
ENGINES: tuple[Engine, ...] = ("loop", "foreach", "fused")
DENSE = ("shapes", "missing", "groups", "exchange", "mixed")


@dataclass(frozen=True)
class Case:
    """One comparison.

    Attributes:
        optimizer: the class's name.
        options: its constructor's arguments, those apart that choose the engine.
        dtype: of the parameters.
        engine: the loop, the foreach or the fused engine.
        scenario: the parameters, and what happens to them.
        claim: `exact` if every bit is to be torch's, `close` if only the error is to be no larger.
    """

    optimizer: str
    options: dict[str, Any]
    dtype: torch.dtype
    engine: Engine
    scenario: Scenario
    claim: Claim = "exact"

    @property
    def subject(self) -> str:
        """What is judged."""
        return self.optimizer

    @property
    def section(self) -> str:
        """The name by which `--only` selects it."""
        return f"optim.{self.optimizer}"

    @property
    def dtype_name(self) -> str:
        """The dtype as `--dtype` takes it."""
        return name_of(self.dtype)

    @property
    def name(self) -> str:
        """All of it in a line."""
        options = ", ".join(f"{name}={spell(value)}" for name, value in self.options.items())
        return f"{self.section} {self.engine} {self.dtype_name} {self.scenario.name} ({options})"


def options_of(optimizer: str) -> list[dict[str, Any]]:
    """Return the option combinations of an optimizer, each allowed by its constructor."""
    tensor_lr = torch.tensor(0.003)
    shared: dict[str, list[Any]] = {"weight_decay": [0, 0.1], "maximize": [False, True]}
    if optimizer == "SGD":
        found = grid(lr=[None, 0.1, tensor_lr], momentum=[0, 0.9], dampening=[0, 0.5], nesterov=[False, True], **shared)
        return [o for o in found if not (o.get("nesterov") and ("momentum" not in o or "dampening" in o))]
    if optimizer == "Adagrad":
        return list(
            grid(lr=[None, 0.1, torch.tensor([0.003])], lr_decay=[0, 0.3], initial_accumulator_value=[0, 0.1], **shared)
        )
    if optimizer == "RMSprop":
        return list(grid(lr=[None, tensor_lr], alpha=[0.99, 0.9], momentum=[0, 0.9], centered=[False, True], **shared))
    if optimizer == "Adadelta":
        return list(grid(lr=[None, 0.3, tensor_lr], rho=[0.9, 0.5], eps=[None, 1e-2], **shared))
    if optimizer == "Adam":
        found = grid(
            lr=[None, 0.1, tensor_lr],
            betas=[None, (0.5, 0.9), (torch.tensor(0.8), torch.tensor([0.95]))],
            amsgrad=[False, True],
            decoupled_weight_decay=[False, True],
            **shared,
        )
        return [o for o in found if not o.get("decoupled_weight_decay") or "weight_decay" in o]
    raise ValueError(f"no options are registered for the optimizer {optimizer!r}; known are {', '.join(OPTIMIZERS)}")


OPTIMIZERS = ("SGD", "Adagrad", "RMSprop", "Adadelta", "Adam")
TAKE_SPARSE = ("SGD", "Adagrad")
TORCH_FAILS = {("Adagrad", "groups")} if torch.__version__ < "2.13" else set()
"""Scenarios that torch itself cannot run: before 2.13, its Adagrad makes no state for a group that is added later."""


def has_tensor(options: dict[str, Any]) -> bool:
    """Return whether an option is a tensor, or a tuple of tensors."""
    return any(isinstance(v, Tensor) or (isinstance(v, tuple) and isinstance(v[0], Tensor)) for v in options.values())


def optimizer_cases(optimizer: str) -> Iterator[Case]:
    """Yield the cases of one optimizer."""
    every = options_of(optimizer)
    for (index, options), dtype, engine in itertools.product(enumerate(every), DTYPES.values(), ENGINES):
        if engine == "foreach" and optimizer == "Adam" and has_tensor(options):
            continue  # torch refuses it, see the tests of errors
        if dtype == torch.float16 and optimizer != "SGD":
            options = {"eps": LOW_PRECISION_EPS, **options}
        names = list(DENSE) if not dtype.is_complex else ["shapes", "missing"]
        if index in (0, len(every) - 1) or (len(options) <= 1 and dtype == torch.float32):
            names.append("drift")
        takes_sparse = optimizer in TAKE_SPARSE and engine != "fused"
        if takes_sparse and "weight_decay" not in options and dtype in (torch.float64, torch.float32):
            names.append("sparse")
        for name in names:
            if (optimizer, name) in TORCH_FAILS:
                continue
            yield Case(
                optimizer, options, dtype, engine, SCENARIOS[name], claim(optimizer, options, dtype, engine, name)
            )


def claim(optimizer: str, options: dict[str, Any], dtype: torch.dtype, engine: Engine, scenario: str) -> Claim:
    """Return what is claimed: torch's bits, but for the fused engine and two corners.

    - One kernel rounds where it stores, and multiplies and adds at once; so do torch's, in another order.
    - torch's for-loop adds weight decay (Adadelta: also the update) to a complex parameter in complex arithmetic, with
      two roundings where the real multiply-add has one. Here, as in torch's foreach path, a complex tensor is a pair of
      real ones all the way.
    - Tensor betas make torch's Adam compute the denominator of a 0-dim float16 or bfloat16 parameter in float32. Here
      it has the parameter's dtype, since it is computed in place.
    """
    if engine == "fused":
        return "close"
    if dtype.is_complex and engine == "loop" and optimizer != "SGD":
        decays = "weight_decay" in options and "decoupled_weight_decay" not in options
        return "close" if decays or optimizer == "Adadelta" else "exact"
    low_precision = dtype in (torch.float16, torch.bfloat16)
    if optimizer == "Adam" and low_precision and scenario in ("shapes", "exchange"):
        return "close" if isinstance(options.get("betas", (0.9,))[0], Tensor) else "exact"
    return "exact"
