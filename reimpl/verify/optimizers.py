"""The registry of optimizers: every combination of options, dtype, engine and scenario about which a claim is made."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from reimpl.verify.options import DTYPES, Claim, grid, has_tensor, name_of, spell
from reimpl.verify.problems import PROBLEMS
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
    decays: list[dict[str, Any]] = [{}, {"weight_decay": 0.1}, {"weight_decay": 0.1, "decoupled_weight_decay": True}]
    if optimizer == "AdamW":
        betas = (torch.tensor(0.8), torch.tensor([0.95]))
        found = grid(lr=[None, tensor_lr], betas=[None, betas], amsgrad=[False, True])
        return vary(found, {"weight_decay": 0.1, "maximize": True})
    if optimizer == "Adamax":
        return vary(grid(lr=[None, tensor_lr], betas=[None, (0.5, 0.9)], weight_decay=[0, 0.1]), {"maximize": True})
    if optimizer == "NAdam":
        found = grid(lr=[None, tensor_lr], momentum_decay=[None, 0.1])
        return vary((o | decay for o in found for decay in decays), {"betas": (0.5, 0.9), "maximize": True})
    if optimizer == "RAdam":
        found = grid(lr=[None, tensor_lr], betas=[None, (0.5, 0.9)])
        return vary((o | decay for o in found for decay in decays), {"maximize": True})
    if optimizer == "Rprop":
        found = grid(lr=[None, torch.tensor(0.03)], etas=[None, (0.3, 1.1)], step_sizes=[None, (1e-3, 0.02)])
        return vary(found, {"maximize": True})
    if optimizer == "ASGD":
        found = grid(lr=[None, tensor_lr], lambd=[None, 1e-2], t0=[None, 2], weight_decay=[0, 0.1])
        return vary(found, {"alpha": 0.5, "maximize": True})
    if optimizer == "Adafactor":
        found = grid(lr=[None, 1.0, tensor_lr], eps=[None, (1e-3, 1e-2)], weight_decay=[0, 0.1])
        return vary(found, {"d": 2.0, "beta2_decay": -0.5, "maximize": True})
    if optimizer == "Muon":
        nesterov, adjust = [True, False], [None, "match_rms_adamw"]
        found = grid(lr=[None, tensor_lr], nesterov=nesterov, adjust_lr_fn=adjust, weight_decay=[None, 0])
        return vary(found, {"momentum": 0.5, "ns_steps": 3, "ns_coefficients": (2, -1.5, 0.5), "eps": 1.0})
    if optimizer == "SparseAdam":
        return vary(grid(lr=[None, tensor_lr], betas=[None, (0.5, 0.9)], eps=[None, 1e-2]), {"maximize": True})
    if optimizer == "LBFGS":
        found = grid(line_search_fn=[None, "strong_wolfe"], lr=[None, 0.3], history_size=[None, 3])
        return vary(found, {"max_iter": 5, "max_eval": 7, "tolerance_grad": 1e-2, "tolerance_change": 1e-3})
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


def vary(found: Iterable[dict[str, Any]], single: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the combinations, then each further option by itself, and last the last combination with all of them."""
    every = list(found)
    return [*every, *({name: value} for name, value in single.items()), {**every[-1], **single}]


OPTIMIZERS = (
    "SGD",
    "Adagrad",
    "RMSprop",
    "Adadelta",
    "Adam",
    "AdamW",
    "Adamax",
    "NAdam",
    "RAdam",
    "Rprop",
    "ASGD",
    "SparseAdam",
    "LBFGS",
    "Adafactor",
    "Muon",
)
TAKE_SPARSE = ("SGD", "Adagrad")
NOT_COMPLEX = ("SparseAdam", "LBFGS", "Adafactor", "Muon")
WITHOUT_EPS = ("SGD", "Rprop", "ASGD", "LBFGS", "Adafactor", "Muon")
ENGINES_OF: dict[str, tuple[Engine, ...]] = {
    "SparseAdam": ("loop",),
    "LBFGS": ("loop",),
    "Adafactor": ("loop", "foreach"),
    "Muon": ("loop",),
}
"""The engines of the optimizers that do not have all of them."""
SCENARIOS_OF: dict[str, tuple[str, ...]] = {
    "SparseAdam": ("sparse rows", "sparse groups"),
    "LBFGS": tuple(PROBLEMS),
    "Adafactor": ("filled", "missing", "groups", "exchange", "mixed"),
    "Muon": ("matrices", "matrix groups"),
}
"""The scenarios of the optimizers for which the general ones are not made: matrices only, say, or no empty tensors."""
TORCH_FAILS = {("Adagrad", "groups")} if torch.__version__ < "2.13" else set()
"""Scenarios that torch itself cannot run: before 2.13, its Adagrad makes no state for a group that is added later."""


def optimizer_cases(optimizer: str) -> Iterator[Case]:
    """Yield the cases of one optimizer."""
    every = options_of(optimizer)
    engines = ENGINES_OF.get(optimizer, ENGINES)
    for (index, options), dtype, engine in itertools.product(enumerate(every), DTYPES.values(), engines):
        if dtype.is_complex and optimizer in NOT_COMPLEX:
            continue  # torch refuses it, but for LBFGS, whose problems are real; see its own tests
        if engine == "foreach" and optimizer in ("Adam", "AdamW") and has_tensor(options):
            continue  # torch refuses it, see the tests of errors
        if optimizer == "LBFGS" and dtype == torch.float16:
            continue  # steps of its line search overflow in torch
        if optimizer == "Muon" and dtype == torch.bfloat16 and not options.get("nesterov", True):
            continue  # torch corrupts its state, see the deviations
        if dtype == torch.float16 and optimizer not in WITHOUT_EPS:
            options = {"eps": LOW_PRECISION_EPS, **options}
        if optimizer in SCENARIOS_OF:
            names = list(SCENARIOS_OF[optimizer])
        else:
            names = list(DENSE) if not dtype.is_complex else ["shapes", "missing"]
        longest = index in (0, len(every) - 1) or (len(options) <= 1 and dtype == torch.float32)
        if longest and optimizer not in SCENARIOS_OF:
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


MIXED_ARITHMETIC = ("Adagrad", "RMSprop", "Adadelta", "Adam", "Adamax")
"""Whose for-loops add weight decay to complex parameters before they take them for pairs of real numbers."""
OTHER_FOREACH = ("NAdam", "RAdam", "ASGD")
"""Whose foreach paths in torch are other arithmetic than the for-loops."""


def claim(optimizer: str, options: dict[str, Any], dtype: torch.dtype, engine: Engine, scenario: str) -> Claim:
    """Return what is claimed: torch's bits, but for the fused engine and two corners.

    - One kernel rounds where it stores, and multiplies and adds at once; so do torch's, in another order.
    - torch's for-loop adds weight decay (Adadelta: also the update) to a complex parameter in complex arithmetic, with
      two roundings where the real multiply-add has one. Here, as in torch's foreach path, a complex tensor is a pair of
      real ones all the way.
    - torch's for-loop negates a complex gradient, here its two parts are negated; a 0 may get the other sign, which
      only Rprop keeps.
    - In float16 and bfloat16, `torch._foreach_mul_` and `mul_` round a product with a number differently. torch's
      foreach paths of NAdam, RAdam and ASGD are other arithmetic than its for-loops, which ours follows.
    - torch's foreach path of Adamax divides a tensor learning rate in float64, its for-loop and ours in float32. The
      other foreach paths equal one of the two.
    - Tensor betas make torch's Adam compute the denominator of a 0-dim float16 or bfloat16 parameter in float32. Here
      it has the parameter's dtype, since it is computed in place.
    """
    if engine == "fused":
        return "close"
    if dtype.is_complex and engine == "loop" and optimizer in MIXED_ARITHMETIC:
        decays = "weight_decay" in options and "decoupled_weight_decay" not in options
        return "close" if decays or optimizer == "Adadelta" else "exact"
    if dtype.is_complex and engine == "loop" and optimizer == "Rprop":
        return "close" if "maximize" in options else "exact"
    low_precision = dtype in (torch.float16, torch.bfloat16)
    if optimizer in OTHER_FOREACH and engine == "foreach":
        return "close" if low_precision or scenario == "mixed" else "exact"
    if optimizer == "Adamax" and engine == "foreach" and has_tensor(options):
        return "close" if dtype.is_complex or scenario == "mixed" else "exact"
    if optimizer in ("Adam", "AdamW") and low_precision and scenario in ("shapes", "exchange"):
        return "close" if isinstance(options.get("betas", (0.9,))[0], Tensor) else "exact"
    return "exact"
