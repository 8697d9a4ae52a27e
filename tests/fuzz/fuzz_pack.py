"""A pack of attempts, ``records.tar``: read, unpacked, and read again, which must give the same records."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random

from harness.api.pack import unpack
from harness.errors import ResultsError
from harness.storage.pack import BLOCK, PACK
from harness.storage.reading import read_results

HEADER_FIELDS = ((0, 100), (124, 12), (148, 8), (156, 1), (257, 8), (345, 155))
"""Where name, size, checksum, type, magic and prefix of a member begin, and their bytes (POSIX.1-1988, ustar)."""


def read(content: bytes, folder: Path) -> object:
    results = folder / "results"
    (results / "sweep").mkdir(parents=True)
    (results / "sweep" / PACK).write_bytes(content)
    found = read_results(results)
    left = [step.left for step in unpack(results)]
    again = read_results(results)
    assert again.records == found.records, "unpacking loses or adds nothing"
    assert not found.damaged or again.damaged or any(left), "what is damaged is still told"
    if found.damaged:
        raise ResultsError(found.damaged[0].reason)
    return found


def mutate(content: bytes, random: Random) -> bytes:
    """Changes a header, moves, doubles, cuts or removes a member, or changes bytes anywhere."""
    members = list(_members(content))
    begin, end = random.choice(members)
    kind = random.randrange(6)
    if kind == 0:
        return content[:begin] + content[end:]
    if kind == 1:
        return content + content[begin:end]
    if kind == 2:
        return content[: random.randrange(len(content))]
    if kind == 3:
        other, last = random.choice(members)
        return content[:begin] + content[other:last] + content[begin:]
    held = bytearray(content)
    if kind == 4:
        start, size = random.choice(HEADER_FIELDS)
        place = begin + start + random.randrange(size)
    else:
        place = random.randrange(len(held))
    held[place] = random.choice((0, ord("0"), ord("7"), ord("/"), 0x7F, 0xFF, held[place] ^ (1 << random.randrange(8))))
    return bytes(held)


def _members(content: bytes) -> Iterator[tuple[int, int]]:
    """Where members begin and end. Raises ValueError for a content that is none."""
    begin = 0
    while begin < len(content):
        size = int(content[begin + 124 : begin + 135], 8)
        end = begin + BLOCK + size + -size % BLOCK
        yield begin, end
        begin = end
