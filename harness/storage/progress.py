"""The file in which a sweep notes how far it is: ``.progress.json`` in the recipe's folder.

It holds no result: whoever reads results ignores it, because it is hidden. It is replaced whole, and one that cannot be
read counts as absent, since the next note replaces it.
"""

from __future__ import annotations

from collections.abc import Iterator

from harness.core.foreign import parse_json
from harness.core.identity import NAME
from harness.core.progress import SweepProgress
from harness.errors import ResultsError, reason_of
from harness.storage.json_codec import decode, encode
from harness.storage.objects import is_url
from harness.storage.place import StorePlace

PROGRESS = ".progress.json"
MAX_BYTES = 2**20
"""Far more than a note has; the folder may come from somebody else."""


def write_progress(place: StorePlace, progress: SweepProgress) -> None:
    """Replaces the note of a recipe's sweep. Raises OSError, or ResultsError if a link leads elsewhere."""
    place.replace(f"{progress.recipe}/{PROGRESS}", encode(progress).encode(errors="replace"))


def read_progress(place: StorePlace) -> tuple[SweepProgress, ...]:
    """The notes in a results folder, by recipe, or in the folder of one recipe.

    Raises ResultsError if what is in it cannot be listed.
    """
    try:
        names = place.names("")
    except OSError as error:
        where = "" if is_url(place.title) else f"{place.title}: "  # an error of a store says where it is
        raise ResultsError(f"{where}{reason_of(error)}") from None
    if PROGRESS in names:
        return tuple(_notes(place, [PROGRESS]))
    return tuple(_notes(place, [f"{name}/{PROGRESS}" for name in sorted(names) if NAME.fullmatch(name)]))


def _notes(place: StorePlace, files: list[str]) -> Iterator[SweepProgress]:
    for name in files:
        try:
            yield decode(SweepProgress, parse_json(place.read(name, MAX_BYTES), name, ResultsError), name)
        except ResultsError:
            continue
