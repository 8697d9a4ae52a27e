"""The memory that a run may still take on its device."""

from __future__ import annotations

from harness.host.machine import usable_memory_bytes


def free_bytes(device: str, gpus: int = 1, limit_bytes: int | None = None) -> int | None:
    """What the GPUs have free together; of main memory what its control groups and the run's limit leave.

    None if it is not known.
    """
    if not device.startswith("cuda"):
        return min((size for size in (usable_memory_bytes(), limit_bytes) if size), default=None)
    import torch

    torch.cuda.empty_cache()
    return sum(int(torch.cuda.mem_get_info(index)[0]) for index in range(gpus))
