"""The rules of CUDA_VISIBLE_DEVICES against torch's own code for whole GPUs."""

from __future__ import annotations

import os
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from harness.host.visible import GpuPart, select

pytestmark = pytest.mark.heavy

UUIDS = ["GPU-8932f937", "GPU-89aa0b11", "GPU-f0000000"]
ENTRIES = st.one_of(
    st.sampled_from(["", " ", "0", " 1", "2 ", "3", "+1", "-1", "01", "1x", "x1", "0x1", "9" * 25]),
    st.sampled_from([*UUIDS, "GPU-893", "GPU-89", "GPU-f", "GPU-", "GPU-8932f938", "gpu-f", " GPU-f", "GPU-f "]),
)


@given(st.lists(ENTRIES, min_size=1, max_size=4).map(",".join))
def test_as_torch_reads_the_list(listed: str) -> None:
    with mock.patch.dict(os.environ, {"CUDA_VISIBLE_DEVICES": listed}):
        parsed = torch.cuda._parse_visible_devices()
    if parsed and isinstance(parsed[0], str):
        numbers = torch.cuda._transform_uuid_to_ordinals(parsed, UUIDS)
    else:
        valid = next((index for index, number in enumerate(parsed) if number >= len(UUIDS)), len(parsed))
        numbers = parsed[:valid]
    assert [part.uuid for part in select(listed, [(GpuPart(uuid, uuid),) for uuid in UUIDS])] == [
        UUIDS[number] for number in numbers
    ]
