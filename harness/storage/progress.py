"""The files in which a sweep notes how far it is: ``.progress.json`` in the recipe's folder, and ``.preparing.json``.

They hold no result: whoever reads results ignores them, because they are hidden. A note is replaced whole, and one that
cannot be read counts as absent, since the next note replaces it. The first is written by the sweep that has locked the
folder. The second is of one that has not begun yet, and that may be kept out: it hides an older note, but for that of a
sweep that runs. It is removed when the sweep begins.
"""

from __future__ import annotations

from harness.core.foreign import parse_json
from harness.core.identity import NAME
from harness.core.progress import SweepProgress, seconds_between
from harness.errors import ResultsError, reason_of
from harness.storage.json_codec import decode, encode
from harness.storage.objects import is_url
from harness.storage.place import StorePlace

PROGRESS, PREPARING = ".progress.json", ".preparing.json"
MAX_BYTES = 2**20
"""Far more than a note has; the folder may come from somebody else."""


def write_progress(place: StorePlace, progress: SweepProgress) -> None:
    """Replaces the note of a recipe's sweep. Raises OSError, or ResultsError if a link leads elsewhere."""
    name = PREPARING if progress.preparing else PROGRESS
    place.replace(f"{progress.recipe}/{name}", encode(progress).encode(errors="replace"))


def remove_preparing(place: StorePlace, recipe: str) -> None:
    """Raises OSError, or ResultsError if a link leads elsewhere."""
    place.remove(f"{recipe}/{PREPARING}")


def read_progress(place: StorePlace) -> tuple[SweepProgress, ...]:
    """The newest note of each recipe in a results folder, by recipe, or that in the folder of one recipe.

    Raises ResultsError if what is in it cannot be listed.
    """
    try:
        names = place.names("")
    except OSError as error:
        where = "" if is_url(place.title) else f"{place.title}: "  # an error of a store says where it is
        raise ResultsError(f"{where}{reason_of(error)}") from None
    is_of_one = PROGRESS in names or PREPARING in names
    folders = [""] if is_of_one else [f"{name}/" for name in sorted(names) if NAME.fullmatch(name)]
    newest = (_newest(place, folder) for folder in folders)
    return tuple(note for note in newest if note is not None)


def _newest(place: StorePlace, folder: str) -> SweepProgress | None:
    begun, preparing = (_note(place, f"{folder}{name}") for name in (PROGRESS, PREPARING))
    if begun is None or preparing is None:
        return begun or preparing
    silence_s = seconds_between(begun.noted, preparing.noted)
    runs = begun.ending == "running" and not begun.is_silent(silence_s)
    return begun if runs or silence_s <= 0 else preparing


def _note(place: StorePlace, name: str) -> SweepProgress | None:
    try:
        return decode(SweepProgress, parse_json(place.read(name, MAX_BYTES), name, ResultsError), name)
    except ResultsError:
        return None
