"""Prints the UUIDs of the GPUs that this process may use, as JSON: by CUDA's driver, and by qharness.

``python -m harness.acceptance.visible``. A process of its own, because CUDA reads CUDA_VISIBLE_DEVICES once.
"""

from __future__ import annotations

import ctypes
import json
import sys
from collections.abc import Iterator
from uuid import UUID

from harness.host.gpu import visible_uuids

LIBRARY = "libcuda.so.1"
NO_DEVICE = 100
"""CUDA_ERROR_NO_DEVICE: there is none, or CUDA_VISIBLE_DEVICES hides all (cuda.h)."""


def driver_uuids() -> Iterator[str]:
    """What cuDeviceGetUuid_v2 says of each device, 16 bytes; of a MIG slice it is the slice's own.

    Raises OSError without the driver's library and RuntimeError with CUDA's number of an error.
    """
    cuda = ctypes.CDLL(LIBRARY)
    started = cuda.cuInit(0)
    if started == NO_DEVICE:
        return
    _check("cuInit", started)
    count = ctypes.c_int()
    _check("cuDeviceGetCount", cuda.cuDeviceGetCount(ctypes.byref(count)))
    for ordinal in range(count.value):
        device, uuid = ctypes.c_int(), (ctypes.c_ubyte * 16)()
        _check("cuDeviceGet", cuda.cuDeviceGet(ctypes.byref(device), ordinal))
        _check("cuDeviceGetUuid_v2", cuda.cuDeviceGetUuid_v2(ctypes.byref(uuid), device))
        yield str(UUID(bytes=bytes(uuid)))


def _check(call: str, code: int) -> None:
    if code != 0:
        raise RuntimeError(f"{call} failed with CUDA's error {code}")


def main() -> None:
    try:
        by_driver = list(driver_uuids())
    except (OSError, RuntimeError) as error:
        sys.exit(str(error))
    print(json.dumps({"driver": by_driver, "harness": [uuid.partition("-")[2] for uuid in visible_uuids()]}))


if __name__ == "__main__":
    main()
