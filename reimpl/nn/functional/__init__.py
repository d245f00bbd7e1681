"""`torch.nn.functional` from first principles: each operation's forward, and under it its backward, derived by hand.

No operation calls the kernel that it explains. What is not written here yet is torch's own.
"""

from typing import Any

import torch.nn.functional

from reimpl.nn.functional.linear import linear

__all__ = ["linear"]


def __getattr__(name: str) -> Any:
    try:
        return getattr(torch.nn.functional, name)
    except AttributeError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
