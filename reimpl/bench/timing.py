"""Time several ways of doing the same, side by side: the machines are noisy, a ratio from one minute is not."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence

import torch

Step = Callable[[], object]
ROUND_SECONDS = 0.02


def seconds(step: Step, repeats: int, device: str) -> float:
    """Return the time of one step: on a GPU what its own clock says, between two events."""
    if device.startswith("cuda"):
        with torch.cuda.device(device):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            torch.cuda.synchronize()
            start.record()
            for _ in range(repeats):
                step()
            end.record()
            end.synchronize()
            milliseconds: float = start.elapsed_time(end)
            return milliseconds / 1e3 / repeats
    started = time.perf_counter()
    for _ in range(repeats):
        step()
    return (time.perf_counter() - started) / repeats


def alternate(steps: Sequence[Step], rounds: int, device: str) -> list[list[float]]:
    """Return the times of each step, one a round; in a round each gets its turn, of as many steps as take 20 ms."""
    for step in steps:
        seconds(step, 2, device)
    repeats = [max(1, round(ROUND_SECONDS / seconds(step, 2, device))) for step in steps]
    times: list[list[float]] = [[] for _ in steps]
    for number in range(rounds):
        order = range(len(steps)) if number % 2 else reversed(range(len(steps)))
        for index in order:
            times[index].append(seconds(steps[index], repeats[index], device))
    return times


def compare(steps: Sequence[Step], rounds: int, device: str) -> list[float]:
    """Return the median time of each step, measured in turn."""
    return [statistics.median(found) for found in alternate(steps, rounds, device)]


def peak_memory(step: Step, device: str) -> int:
    """Return how many bytes a step holds at once beside what was there before, as torch's allocator counts them."""
    step()
    if device.startswith("cuda"):
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        step()
        return torch.cuda.max_memory_allocated(device) - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # or the profiler tells standard error that it starts and stops
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    level = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        level += event.nbytes()
        peak = max(peak, level)
    return peak
