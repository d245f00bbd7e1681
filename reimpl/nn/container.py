"""The container that chains layers."""

from __future__ import annotations

import operator
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, Self, TypeVar

import torch
from torch.nn import Module

from reimpl.nn.layer import Layer

T = TypeVar("T")


class Sequential(Layer, torch.nn.Sequential):
    r"""Layers one after the other, each fed with what the one before returns.

    $$y = f_n(\dots f_2(f_1(x)))$$

    It is also a list of its layers: `len`, indices, slices, `append`, `insert`, `extend`, `pop`, `del`, `+`, `*`. The
    names of the layers, and so of their parameters in a `state_dict`, are their positions, or what an `OrderedDict`
    calls them. Slices keep those names. Deleting counts the rest anew; `+` and `*` make a new container that counts
    from 0, of the same layers: `Sequential(layer) * 3` applies one set of weights three times.

    Args:
        *args: the layers in order, or one `OrderedDict` of them by name.

    Raises:
        TypeError: if one is no `Module`.

    Differs from torch: `*=` takes a container whose layers have names, where torch raises a KeyError. TorchScript does
    not compile our layers.

    Source: `torch/nn/modules/container.py`.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__()
        if len(args) == 1 and isinstance(args[0], OrderedDict):
            for name, module in args[0].items():
                self.add_module(name, module)
        else:
            for i, module in enumerate(args):
                self.add_module(str(i), module)

    def forward(self, input: Any) -> Any:
        """Return what the last layer makes of it."""
        for module in self:
            input = module(input)
        return input

    def __len__(self) -> int:
        return len(self._modules)

    def __iter__(self) -> Iterator[Module]:
        return iter(self._modules.values())

    def __getitem__(self, idx: slice | int) -> Any:
        if isinstance(idx, slice):
            return self.__class__(OrderedDict(list(self._modules.items())[idx]))
        return self._get_item_by_idx(self._modules.values(), idx)

    def __setitem__(self, idx: int, module: Module) -> None:
        setattr(self, self._get_item_by_idx(self._modules, idx), module)

    def __delitem__(self, idx: slice | int) -> None:
        names = list(self._modules)[idx] if isinstance(idx, slice) else [self._get_item_by_idx(self._modules, idx)]
        for name in names:
            delattr(self, name)
        self._modules = {str(i): module for i, module in enumerate(self)}

    def _get_item_by_idx(self, iterator: Iterable[T], idx: int) -> T:
        """Return what stands at a position, counted from the end if negative."""
        size = len(self)
        idx = operator.index(idx)
        if not -size <= idx < size:
            raise IndexError(f"index {idx} is out of range")
        return next(islice(iterator, idx % size, None))

    def append(self, module: Module) -> Self:
        """Add a layer at the end, and return the container."""
        self.add_module(str(len(self)), module)
        return self

    def extend(self, sequential: Iterable[Module]) -> Self:
        """Add each layer of an iterable at the end, and return the container."""
        for module in sequential:
            self.append(module)
        return self

    def insert(self, index: int, module: Module) -> Self:
        """Put a layer before the one at a position, and return the container."""
        if not isinstance(module, Module):
            raise AssertionError(f"module should be of type: {Module}")
        size = len(self)
        if not -size <= index <= size:
            raise IndexError(f"Index out of range: {index}")
        index %= size + (index >= 0)
        for i in range(size, index, -1):
            self._modules[str(i)] = self._modules[str(i - 1)]
        self._modules[str(index)] = module
        return self

    def pop(self, key: int | slice) -> Any:
        """Take out a layer, or a slice of them, and return it."""
        taken = self[key]
        del self[key]
        return taken

    def __add__(self, other: Iterable[Module]) -> Sequential:
        return Sequential(*self, *sequential(other))

    def __iadd__(self, other: Iterable[Module]) -> Self:
        return self.extend(list(sequential(other)))

    def __mul__(self, other: int) -> Sequential:
        return Sequential(*(list(self) * self._factor(other)))

    def __rmul__(self, other: int) -> Sequential:
        return self * other

    def __imul__(self, other: int) -> Self:
        return self.extend(list(self) * (self._factor(other) - 1))

    def _factor(self, other: int) -> int:
        """Return by how much to multiply, or refuse it."""
        if not isinstance(other, int):
            raise TypeError(f"unsupported operand type(s) for *: {type(self)} and {type(other)}")
        if other <= 0:
            raise ValueError(f"Non-positive multiplication factor {other} for {type(self)}")
        return other

    def __dir__(self) -> list[str]:
        # A digit is no name that Python could complete.
        return [name for name in super().__dir__() if not name.isdigit()]


def sequential(other: Iterable[Module]) -> Iterable[Module]:
    """Return a container, torch's or ours, or refuse what is none."""
    if not isinstance(other, torch.nn.Sequential):
        raise ValueError(f"add operator supports only objects of Sequential class, but {type(other)!s} is given.")
    return other
