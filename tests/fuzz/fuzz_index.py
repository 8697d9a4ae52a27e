"""The index of a recipe's results with some bytes changed: whatever it holds, it changes no answer.

The input is what is changed in an index that was made for the results of this process: entries of a place (four bytes,
modulo the size) and a byte, and what is left over is added at the end.
"""

from __future__ import annotations

import atexit
import shutil
import struct
import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path
from random import Random
from unittest.mock import patch

from harness.core.record import RunRecord
from harness.errors import ResultsError
from harness.storage import index as index_module
from harness.storage.index import INDEX
from harness.storage.reading import read_results
from harness.storage.store import Store

EXAMPLE = Path(__file__).parents[1] / "data" / "records" / "version-3"
CHANGE = struct.Struct("<IB")
ATTEMPTS = 3
OLD = patch.object(index_module, "SLACK_NS", -(10**18))
"""Has the reader take files that were written just now for old ones, whose stamps are proof enough."""


def read(content: bytes, folder: Path) -> object:
    results, index, records = _results()
    held = bytearray(index)
    whole = len(content) // CHANGE.size * CHANGE.size
    for place, value in CHANGE.iter_unpack(content[:whole]):
        held[place % len(held)] = value
    held += content[whole:]
    path = next(results.rglob(INDEX))
    path.write_bytes(held)
    with OLD:
        assert read_results(results).records == records, "an index changes no answer"
    if path.read_bytes() != held:
        raise ResultsError("the index was damaged, and is made anew")
    return records


def mutate(content: bytes, random: Random) -> bytes:
    return content + CHANGE.pack(random.randrange(2**32), random.randrange(256))


@cache
def _results() -> tuple[Path, bytes, tuple[RunRecord, ...]]:
    """A results folder of this process, the index that its reader made, and its records."""
    folder = Path(tempfile.mkdtemp(prefix="qharness-fuzz-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    (record,) = read_results(EXAMPLE).records
    for attempt in range(1, ATTEMPTS + 1):
        Store(folder).save(replace(record, attempt=attempt))
    recipe = folder / record.spec.recipe
    (recipe / INDEX).touch()  # there would be none of so few runs
    with OLD:
        records = read_results(folder).records
    return folder, (recipe / INDEX).read_bytes(), records
