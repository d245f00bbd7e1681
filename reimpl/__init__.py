"""PyTorch's optimizers and layers, written once each, to be read, used and checked."""

from reimpl.swap import Swap, swap, unswap
from reimpl.watch import Watch, watch

__version__ = "0.1.0.dev0"
__all__ = ["Swap", "Watch", "swap", "unswap", "watch"]
