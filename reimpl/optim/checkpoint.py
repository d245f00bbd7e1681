"""What a loaded state has to be: torch keeps whatever it finds in a checkpoint, and a later step fails or is wrong."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from typing import Any

import torch
from torch import Tensor


def is_loading(state: dict[str, Any]) -> bool:
    """Return whether what `__setstate__` is given comes from `load_state_dict`, not from a pickle or a copy."""
    return "defaults" not in state


def labelled_params(groups: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], Tensor, str]]:
    """Yield each parameter with its group, and what a message calls it."""
    numbers = count()
    for group in groups:
        names = group.get("param_names") or [None] * len(group["params"])
        for param, name, number in zip(group["params"], names, numbers, strict=False):
            yield group, param, f"parameter {number}" + (f" ({name})" if name is not None else "")


def stand_in(param: Tensor) -> Tensor:
    """Return a tensor of the parameter's shape and dtype, with a gradient, and without memory."""
    tensor = torch.empty(param.shape, dtype=param.dtype, device="meta")
    tensor.grad = torch.empty_like(tensor)
    return tensor


def check_state(label: str, saved: Any, required: Sequence[str] = ()) -> None:
    """Raise unless the saved state of a parameter is a dict, with what a step cannot make anew.

    Raises:
        TypeError: for another type.
        KeyError: for a state without a required entry, such as another optimizer's; torch's error.
    """
    if not isinstance(saved, dict):
        raise TypeError(f"loaded state dict: the state of {label} is of type {type(saved).__name__}, not a dict")
    for key in required if saved else ():
        if key not in saved:
            raise KeyError(key)


def check_tensors(label: str, saved: Mapping[str, Any], expected: Mapping[str, Tensor]) -> None:
    """Raise unless the tensors of a saved state have the shapes of those expected; either may lack some.

    Raises:
        ValueError: for another shape.
        TypeError: for what is neither a tensor nor None.
    """
    for key, tensor in expected.items():
        found = saved.get(key)
        if found is None:  # SGD of torch 2.0 to 2.4 saved a buffer of None before the first step with momentum
            continue
        if not isinstance(found, Tensor):
            raise TypeError(f"loaded state dict: {key} of {label} is of type {type(found).__name__}, not a tensor")
        if found.shape != tensor.shape:
            raise ValueError(
                f"loaded state dict: size mismatch for {key} of {label}: "
                f"it has shape {tuple(found.shape)} where {tuple(tensor.shape)} is expected"
            )


def check_number(label: str, key: str, found: Any) -> None:
    """Raise a `ValueError` for a tensor of other than one element, where a number is expected."""
    if isinstance(found, Tensor) and found.numel() != 1:
        raise ValueError(
            f"loaded state dict: size mismatch for {key} of {label}: "
            f"it has shape {tuple(found.shape)} where one number is expected"
        )
