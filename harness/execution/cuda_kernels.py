"""The names of the kernels that a GPU really ran, as its profiler heard them."""

from __future__ import annotations

from collections.abc import Callable

SHOWN = 6
"""The kernels that took the longest; the rest is norms, copies and the like."""


def kernel_names(work: Callable[[], object]) -> list[str]:
    """The longest-running CUDA kernels of a piece of work, by their time on the device."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    work()  # compiles and tunes what is compiled and tuned once
    with profile(activities=[ProfilerActivity.CUDA]) as trace:
        work()
        torch.cuda.synchronize()
    events = sorted(trace.key_averages(), key=lambda event: event.self_device_time_total, reverse=True)
    return [event.key for event in events if event.self_device_time_total > 0][:SHOWN]
