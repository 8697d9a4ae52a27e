"""CUDA_VISIBLE_DEVICES as CUDA's documents and torch read it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.host.visible import GpuPart, select

UUIDS = (
    "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6",
    "GPU-89aa0b11-0c2d-4e3f-9a4b-5c6d7e8f9a0b",
    "GPU-f0000000-0000-4000-8000-000000000000",
)
WHOLE = [(GpuPart(uuid, uuid),) for uuid in UUIDS]
SLICES = (
    GpuPart("MIG-0a000000-1111-5222-8333-444444444444", UUIDS[1], (1, 0)),
    GpuPart("MIG-0b000000-1111-5222-8333-444444444444", UUIDS[1], (5, 0)),
    GpuPart("MIG-0b100000-1111-5222-8333-444444444444", UUIDS[1], (5, 1)),
)
SLICED = [WHOLE[0], SLICES, WHOLE[2]]
OLD = [(GpuPart(f"MIG-{UUIDS[1]}/5/0", UUIDS[1], (5, 0)), GpuPart(f"MIG-{UUIDS[1]}/6/0", UUIDS[1], (6, 0)))]
"""As a driver before R470 names slices."""


@pytest.mark.parametrize(
    ("listed", "expected"),
    [
        (None, (0, 1, 2)),
        ("", ()),
        (" ", ()),
        ("1", (1,)),
        ("2,0", (2, 0)),
        ("0,2,-1,1", (0, 2)),  # the example of the CUDA programming guide
        ("-1", ()),
        ("3,0", ()),
        ("0,3,1", (0,)),
        ("0,,1", (0,)),
        ("0,x,1", (0,)),
        (" 1 , 0 ", (1, 0)),
        ("1gpu2,2ampere", (1, 2)),  # an example of torch's source
        ("+1", (1,)),
        ("01", (1,)),
        ("1,1", ()),
        ("0,1,01", ()),
        ("0,7,7", ()),
        ("99999999999999999999", ()),
        (UUIDS[1], (1,)),
        (f"{UUIDS[2]},{UUIDS[0]}", (2, 0)),
        ("GPU-893", (0,)),
        ("GPU-89", ()),  # two begin so
        ("GPU-f,GPU-89,GPU-893", (2,)),
        ("GPU-893,GPU-8932", ()),  # the same one twice
        ("GPU-8932F937", ()),
        ("GPU-8932f938", ()),
        ("GPU-893,1", (0,)),
        ("1,GPU-893", (1,)),
        ("gpu-893", ()),
        ("MIG-0a", ()),
    ],
)
def test_whole_gpus(listed: str | None, expected: tuple[int, ...]) -> None:
    assert [part.uuid for part in select(listed, WHOLE)] == [UUIDS[index] for index in expected]


@pytest.mark.parametrize(
    ("listed", "expected"),
    [
        (None, (WHOLE[0][0], *SLICES, WHOLE[2][0])),
        ("1", SLICES[:1]),  # the first slice of a GPU in MIG mode
        ("GPU-89aa", SLICES[:1]),
        ("2,1", (WHOLE[2][0], SLICES[0])),
        (SLICES[1].uuid, SLICES[1:2]),
        (f"{SLICES[2].uuid},{SLICES[0].uuid}", (SLICES[2], SLICES[0])),
        ("MIG-0b1", SLICES[2:]),
        ("MIG-0b", ()),
        (f"MIG-{UUIDS[1]}/5/0", SLICES[1:2]),
        ("MIG-GPU-89aa/5/1", SLICES[2:]),
        (f"MIG-{UUIDS[1]}/5", ()),
        (f"MIG-{UUIDS[1]}/5/2", ()),
        (f"MIG-{UUIDS[1]}", ()),
        (f"MIG-{UUIDS[0]}/5/0", ()),
        (f"{SLICES[1].uuid},MIG-{UUIDS[1]}/5/0", ()),  # the same one twice, by two spellings
        (f"{SLICES[1].uuid},0", SLICES[1:2]),
    ],
)
def test_slices(listed: str | None, expected: tuple[GpuPart, ...]) -> None:
    assert select(listed, SLICED) == expected


def test_slices_as_older_drivers_name_them() -> None:
    assert select(f"MIG-{UUIDS[1]}/6/0", OLD) == OLD[0][1:]


def test_a_gpu_that_cannot_be_used_keeps_its_number() -> None:
    lost = [(), WHOLE[1], WHOLE[2]]
    assert select(None, lost) == (*WHOLE[1], *WHOLE[2])
    assert select("1,0,2", lost) == WHOLE[1]


@given(st.lists(st.sampled_from(range(3)), unique=True))
def test_all_spellings_of_a_gpu_name_the_same_one(indices: list[int]) -> None:
    spellings = [
        ",".join(spell(index) for index in indices)
        for spell in (str, lambda index: UUIDS[index], lambda index: UUIDS[index][:8])
    ]
    assert {select(spelling, WHOLE) for spelling in spellings} == {tuple(WHOLE[index][0] for index in indices)}
