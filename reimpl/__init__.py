"""PyTorch's optimizers and layers, written once each, to be read, used and checked."""

__version__ = "0.1.0.dev0"
