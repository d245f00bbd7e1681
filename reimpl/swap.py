"""Put these layers into an existing torch model, and take them out again."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn import Module

import reimpl.nn

OURS: dict[type[Module], type[Module]] = {
    getattr(torch.nn, name): layer
    for name, layer in vars(reimpl.nn).items()
    if isinstance(layer, type) and name in reimpl.nn.__all__ and hasattr(torch.nn, name)
}
TORCHS = {ours: theirs for theirs, ours in OURS.items()}
HOLDERS = (torch.nn.ModuleList, torch.nn.ModuleDict, torch.nn.ParameterList, torch.nn.ParameterDict)
"""They compute nothing, so there is nothing to swap."""


@dataclass
class Swap:
    """What `swap` or `unswap` did to a model.

    Attributes:
        swapped: the layers that changed their class, by name: from which, to which. The model itself is named "".
        left: the layers that did not, by name, and why.
    """

    swapped: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"swapped {len(self.swapped)} layers, left {len(self.left)}"]
        lines += [f"  {name or '(the model)'}: {what}" for name, what in (self.swapped | self.left).items()]
        return "\n".join(lines)


def swap(model: Module, functional: Any = torch.nn.functional) -> Swap:
    """Make every layer of a model that torch has and `reimpl.nn` too one of `reimpl.nn`, in place.

    A layer stays the object that it is, and keeps its parameters, buffers, hooks, mode, device and dtype, and whatever
    else it holds; only its class changes. So whoever has a reference to it, a second module or an optimizer, need not
    know.

    Args:
        model: a model or a single layer.
        functional: what the layers run on: `torch.nn.functional`, or `reimpl.nn.functional` for first principles.
            Layers that are ours already change to it too.

    Returns:
        What was swapped, and what was not: a subclass of torch's layer, since it may compute something else, and a
        layer that is not written here.

    Raises:
        TypeError: if `model` is not a `torch.nn.Module`.
    """
    report = Swap()
    for name, module in modules_of(model):
        found = type(module)
        if found in OURS:
            module.__class__ = OURS[found]
            report.swapped[name] = f"{spell(found)} → {spell(type(module))}"
        elif reason := why_left(found):
            report.left[name] = reason
        if isinstance(module, reimpl.nn.Layer):
            set_functional(module, functional)
    return report


def unswap(model: Module) -> Swap:
    """Make every layer of `reimpl.nn` in a model torch's own again, in place, on torch's kernels.

    Args:
        model: a model or a single layer, swapped before or built of our layers.

    Returns:
        What was swapped, and the layers of ours that were not: subclasses.

    Raises:
        TypeError: if `model` is not a `torch.nn.Module`.
    """
    report = Swap()
    for name, module in modules_of(model):
        found = type(module)
        if found in TORCHS:
            if isinstance(module, reimpl.nn.Layer):
                set_functional(module, torch.nn.functional)
            module.__class__ = TORCHS[found]
            report.swapped[name] = f"{spell(found)} → {spell(type(module))}"
        elif reason := subclass_of(found, TORCHS):
            report.left[name] = reason
    return report


def modules_of(model: Module) -> list[tuple[str, Module]]:
    """Return the modules of a model by name, each once, however often it is used."""
    if not isinstance(model, Module):
        raise TypeError(f"model should be a torch.nn.Module, but got {type(model).__name__}")
    return list(model.named_modules())


def set_functional(layer: reimpl.nn.Layer, functional: Any) -> None:
    """Choose what a layer runs on; what the class says already is not said again."""
    layer.__dict__.pop("functional", None)
    if layer.functional is not functional:
        layer.functional = functional


def why_left(found: type[Module]) -> str | None:
    """Return why a class is not swapped, or None if it is no layer of torch's."""
    if found in TORCHS or issubclass(found, HOLDERS):
        return None
    if reason := subclass_of(found, OURS):
        return reason
    return f"{spell(found)} is not in reimpl.nn" if found.__module__.startswith("torch.nn.modules.") else None


def subclass_of(found: type[Module], layers: Iterable[type[Module]]) -> str | None:
    """Say of which of the layers a class is a subclass, or return None if it is of none."""
    bases = [f"{spell(found)} is a subclass of {spell(layer)}" for layer in layers if issubclass(found, layer)]
    return bases[0] if bases else None


def spell(found: type[Module]) -> str:
    """Write a class as one would import it."""
    package = found.__module__
    for public in ("torch.nn", "reimpl.nn"):
        if package.startswith(f"{public}."):
            package = public
    return f"{package}.{found.__qualname__}"
