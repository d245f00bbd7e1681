"""Step counts, advanced in one call: a thousand additions by torch take longer than a kernel for all parameters."""

from __future__ import annotations

import ctypes
from array import array
from functools import cache
from operator import attrgetter

import torch
from torch import Tensor

from reimpl.optim.engines.kernel import NoKernelError, shared_library

SOURCE = """\
#include <cstdint>

extern "C" void advance(int64_t count, float* const* steps)
{
    for (int64_t i = 0; i < count; i++) *steps[i] += 1;
}
"""


def advance(counts: list[Tensor], compiled: bool) -> None:
    """Add one to each count.

    Args:
        counts: 0-dim tensors.
        compiled: whether a compiler may be used.
    """
    if compiled and is_plain(counts) and (found := library()) is not None:
        addresses = array("q", map(Tensor.data_ptr, counts))
        found.advance(len(counts), addresses.buffer_info()[0])
    elif counts[0].dtype == torch.float32 and counts[0].is_cpu and not torch.compiler.is_compiling():
        # Wrapping the number once is faster than once for each count, as torch found.
        torch._foreach_add_(counts, torch.tensor(1.0, device="cpu"), alpha=1.0)
    else:
        torch._foreach_add_(counts, 1)


def is_plain(counts: list[Tensor]) -> bool:
    """Return whether all counts are numbers of float32 in the host's memory."""
    types, dtypes = set(map(type, counts)), set(map(attrgetter("dtype"), counts))
    return (
        types == {Tensor}
        and dtypes == {torch.float32}
        and set(map(Tensor.numel, counts)) == {1}
        and all(map(attrgetter("is_cpu"), counts))
    )


@cache
def library() -> ctypes.CDLL | None:
    """Return the compiled function, None if there is no compiler."""
    try:
        found = shared_library(SOURCE)
    except NoKernelError:
        return None
    found.advance.argtypes = [ctypes.c_int64, ctypes.c_void_p]
    found.advance.restype = None
    return found
