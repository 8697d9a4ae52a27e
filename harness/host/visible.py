"""Which GPUs and MIG slices CUDA_VISIBLE_DEVICES leaves visible: the rules of CUDA, and of torch, which parses it too.

Sources: the CUDA programming guide ("CUDA environment variables"), the MIG user guide ("CUDA device enumeration"), and
torch's ``torch.cuda._parse_visible_devices``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

VARIABLE = "CUDA_VISIBLE_DEVICES"
NUMBERED_AS_NVML = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
"""The variable of a process whose CUDA numbers GPUs as NVML does."""
_NUMBER = re.compile(r"[+-]?[0-9]+", re.ASCII)


@dataclass(frozen=True)
class GpuPart:
    """What CUDA can use as one device: a GPU, or a MIG slice of one. ``handle`` is NVML's.

    ``uuid`` is the part's own and ``gpu_uuid`` its GPU's. ``instances`` are the numbers of a slice's GPU instance and
    compute instance; None for a whole GPU.
    """

    uuid: str
    gpu_uuid: str
    instances: tuple[int, int] | None = None
    handle: Any = field(default=None, compare=False)


def select(listed: str | None, gpus: Sequence[Sequence[GpuPart]]) -> tuple[GpuPart, ...]:
    """The visible parts, in the order of the list; all parts if it is None.

    ``gpus`` holds the parts of each GPU in NVML's order: the GPU itself, its slices in MIG mode, or none if it cannot
    be used. The first entry that names no part ends the list, and a list that names one twice is empty. An entry is

    * a number, read as C's strtoul does: whatever follows its digits is ignored;
    * ``GPU-…``: the UUID of a GPU, or as much of its beginning as no other GPU shares;
    * ``MIG-…``: the UUID of a slice, likewise;
    * ``MIG-GPU-…/g/c``: a GPU, and the numbers of a slice's GPU instance and compute instance (drivers before R470).

    All entries are of the kind of the first one. A number or UUID of a GPU in MIG mode means its first slice.
    """
    if listed is None:
        return tuple(part for parts in gpus for part in parts)
    chosen: list[GpuPart] = []
    for entry in _entries(listed):
        part = _by_number(entry, gpus) if isinstance(entry, int) else _by_uuid(entry, gpus)
        if part is None:
            break
        if part in chosen:
            return ()
        chosen.append(part)
    return tuple(chosen)


def hides_all(listed: str | None) -> bool:
    """Whether a list leaves no GPU visible on any machine: it is empty, or begins with what can name none, as -1."""
    return listed is not None and not _entries(listed)


def _entries(listed: str) -> Sequence[str | int]:
    """The entries up to the first of another kind; none if one is repeated."""
    kind = next((kind for kind in ("GPU-", "MIG-") if listed.startswith(kind)), None)
    entries: list[str | int] = []
    for text in listed.split(","):
        entry = _number(text) if kind is None else text if text.startswith(kind) else None
        if entry in entries:
            return ()
        if entry is None:
            break
        entries.append(entry)
    return entries


def _number(text: str) -> int | None:
    """The number that a text begins with; None if there is none or it is negative."""
    digits = _NUMBER.match(text.strip())
    number = -1 if digits is None else int(digits[0])
    return None if number < 0 else number


def _by_number(number: int, gpus: Sequence[Sequence[GpuPart]]) -> GpuPart | None:
    return next(iter(gpus[number]), None) if number < len(gpus) else None


def _by_uuid(entry: str, gpus: Sequence[Sequence[GpuPart]]) -> GpuPart | None:
    """The only part that the entry names."""
    if entry.startswith("GPU-"):
        named = [parts[0] for parts in gpus if parts and parts[0].gpu_uuid.startswith(entry)]
    else:
        slices = [part for parts in gpus for part in parts if part.instances is not None]
        named = [part for part in slices if _names_slice(entry, part)]
    return named[0] if len(named) == 1 else None


def _names_slice(entry: str, part: GpuPart) -> bool:
    gpu_uuid, *instances = entry.removeprefix("MIG-").split("/")
    if gpu_uuid.startswith("GPU-"):
        return part.gpu_uuid.startswith(gpu_uuid) and instances == [str(each) for each in part.instances or ()]
    return part.uuid.startswith(entry)


def visible_parts(nvml: Any) -> tuple[GpuPart, ...]:
    """The visible parts of this machine. Workers set CUDA_DEVICE_ORDER, so that CUDA numbers GPUs as NVML does."""
    listed = os.environ.get(VARIABLE)
    # To list all GPUs may initialize each, which takes seconds. Workers get whole UUIDs or nothing, which need no list.
    if hides_all(listed):
        return ()
    exact = [_part(nvml, entry) for entry in _entries(listed or "")]
    found = tuple(part for part in exact if part is not None)
    if found and len(found) == len(exact) == len(set(found)):
        return found
    return select(listed, all_parts(nvml))


def all_parts(nvml: Any) -> list[tuple[GpuPart, ...]]:
    """The parts of each GPU, in NVML's order; none of a lost GPU, or of one in MIG mode without slices.

    NVML counts GPUs that this process may not open, as in a job with some of a machine's GPUs. CUDA does not.
    """
    try:
        listed = [_parts(nvml, index) for index in range(nvml.nvmlDeviceGetCount())]
    except nvml.NVMLError:
        return []
    return [parts for parts in listed if parts is not None]


def _part(nvml: Any, uuid: str | int) -> GpuPart | None:
    """The part with exactly this UUID; None if there is none, or it is a GPU in MIG mode."""
    if isinstance(uuid, int):
        return None
    try:
        handle = nvml.nvmlDeviceGetHandleByUUID(uuid)
        if str(nvml.nvmlDeviceGetUUID(handle)) != uuid:
            return None
        if uuid.startswith("MIG-"):
            gpu = nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(handle)
            return _slice(nvml, handle, str(nvml.nvmlDeviceGetUUID(gpu)))
        return None if _slots(nvml, handle) else GpuPart(uuid, uuid, handle=handle)
    except nvml.NVMLError:
        return None


def _parts(nvml: Any, index: int) -> tuple[GpuPart, ...] | None:
    """The parts of a GPU; None if this process may not open it."""
    try:
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        uuid, slots = str(nvml.nvmlDeviceGetUUID(handle)), _slots(nvml, handle)
    except nvml.NVMLError_NoPermission:
        return None
    except nvml.NVMLError:
        return ()
    slices = []
    for slot in range(slots):
        try:
            slices.append(_slice(nvml, nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, slot), uuid))
        except nvml.NVMLError:  # an empty slot, or a slice of somebody else
            continue
    return tuple(slices) if slots else (GpuPart(uuid, uuid, handle=handle),)


def _slots(nvml: Any, handle: Any) -> int:
    """How many slices a GPU in MIG mode can have; 0 if it is not, or the library is older than MIG."""
    try:
        return int(nvml.nvmlDeviceGetMaxMigDeviceCount(handle))
    except (AttributeError, nvml.NVMLError_FunctionNotFound, nvml.NVMLError_NotSupported):
        return 0


def _slice(nvml: Any, handle: Any, gpu_uuid: str) -> GpuPart:
    instances = int(nvml.nvmlDeviceGetGpuInstanceId(handle)), int(nvml.nvmlDeviceGetComputeInstanceId(handle))
    return GpuPart(str(nvml.nvmlDeviceGetUUID(handle)), gpu_uuid, instances, handle)
