"""What all layers share: the functions that they run on."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

import torch
from torch.nn import Module


class Layer(Module):
    """A layer whose arithmetic can be exchanged.

    A concrete layer also names torch's class as its last base, for `isinstance` alone: initialisers, `update_bn`,
    `convert_sync_batchnorm` and many models ask for it. No line of torch's class runs.

    Attributes:
        functional: where `forward` finds its function. `torch.nn.functional` runs it on torch's kernels,
            `reimpl.nn.functional` from first principles; any object with functions of these names will do.
    """

    functional: Any = torch.nn.functional

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # Not super(): next in line is torch's own layer, with a constructor that is written again here.
        Module.__init__(self, *args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        """Return what `pickle` and `deepcopy` take: a module of functions goes by its name."""
        state = self.__dict__.copy()
        if isinstance(state.get("functional"), ModuleType):
            state["functional"] = ModuleName(state["functional"].__name__)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        if isinstance(state.get("functional"), ModuleName):
            state = {**state, "functional": importlib.import_module(state["functional"])}
        Module.__setstate__(self, state)  # type: ignore[no-untyped-call]

    def __prepare_scriptable__(self) -> Module:
        """Refuse `torch.jit.script`, which compiles source code and cannot tell what `functional` will be."""
        raise RuntimeError(
            f"TorchScript does not compile reimpl.nn.{type(self).__name__}: reimpl.unswap(model) makes its layers "
            "torch's own, with the same parameters and results, or use torch.export"
        )


class ModuleName(str):
    """The name of a Python module that stands for the module."""
