"""`torch.nn`, written once: change the import, and not one bit of the result changes.

The layers of `__all__` are written here; every other name is torch's own.
"""

from typing import Any

import torch.nn

from reimpl.nn import functional
from reimpl.nn.layer import Layer
from reimpl.nn.linear import Linear

__all__ = ["Layer", "Linear", "functional"]


def __getattr__(name: str) -> Any:
    try:
        return getattr(torch.nn, name)
    except AttributeError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
