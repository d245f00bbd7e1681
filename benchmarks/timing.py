"""Time several ways of doing the same, side by side: the machines are noisy, a ratio from one minute is not."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch

Step = Callable[[], object]
ROUND_SECONDS = 0.02


def seconds(step: Step, repeats: int, device: str) -> float:
    """Return the time of one step."""
    wait = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
    wait()
    started = time.perf_counter()
    for _ in range(repeats):
        step()
    wait()
    return (time.perf_counter() - started) / repeats


def compare(steps: Sequence[Step], rounds: int, device: str) -> list[float]:
    """Return the median time of each step, measured in turn."""
    for step in steps:
        seconds(step, 2, device)
    repeats = max(1, round(ROUND_SECONDS / seconds(steps[-1], 2, device)))
    times: list[list[float]] = [[] for _ in steps]
    for number in range(rounds):
        order = range(len(steps)) if number % 2 else reversed(range(len(steps)))
        for index in order:
            times[index].append(seconds(steps[index], repeats, device))
    return [statistics.median(found) for found in times]


def peak_memory(step: Step, device: str) -> int:
    """Return how many bytes a step holds at once beside what was there before, as torch's allocator counts them."""
    step()
    if device.startswith("cuda"):
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        step()
        return torch.cuda.max_memory_allocated(device) - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    level = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        level += event.nbytes()
        peak = max(peak, level)
    return peak
