"""How options and dtypes are combined and written."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor

Claim = Literal["exact", "close"]


def name_of(dtype: torch.dtype) -> str:
    """Return a dtype's name without `torch.`."""
    return str(dtype).removeprefix("torch.")


DTYPES = {
    name_of(dtype): dtype for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64)
}


def spell(value: Any) -> str:
    """Write an option as one would type it."""
    if isinstance(value, Tensor):
        return f"tensor({value.tolist()})"
    return f"({', '.join(map(spell, value))})" if isinstance(value, tuple) else repr(value)


def grid(**options: list[Any]) -> Iterator[dict[str, Any]]:
    """Yield every combination; an option at the first of its values is left out, to take the default."""
    for values in itertools.product(*options.values()):
        yield {
            name: value
            for (name, choices), value in zip(options.items(), values, strict=True)
            if value is not choices[0]
        }


def has_tensor(options: dict[str, Any]) -> bool:
    """Return whether an option is a tensor, or a tuple of tensors."""
    return any(isinstance(v, Tensor) or (isinstance(v, tuple) and isinstance(v[0], Tensor)) for v in options.values())
