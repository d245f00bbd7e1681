"""The registry: every case about which a claim is made."""

from __future__ import annotations

from reimpl.verify.layers import TABLES, LayerCase, layer_cases
from reimpl.verify.optimizers import OPTIMIZERS, Case, optimizer_cases


def cases(quick: bool = False, device: str = "cpu") -> list[Case | LayerCase]:
    """Return the registered cases, of the optimizers and then of the layers.

    Args:
        quick: only every seventh, and none of 1,000 steps.
        device: where they will run. What first principles draw at random is drawn as torch's CPU kernels draw it.
    """
    found: list[Case | LayerCase] = [case for optimizer in OPTIMIZERS for case in optimizer_cases(optimizer)]
    found += [
        case
        for layer in TABLES
        for case in layer_cases(layer)
        if device == "cpu" or not (case.draws and case.engine == "first principles")
    ]
    return [case for case in found if case.scenario.name != "drift"][::7] if quick else found
