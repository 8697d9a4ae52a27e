"""``harness.bundle``: results with all that others need to check and repeat them, in one file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

from harness.api.locations import open_source
from harness.api.results import NamedRecords, read_folder
from harness.core.foreign import shown
from harness.core.owner import current_owner
from harness.core.record import RunRecord
from harness.errors import ResultsError, StorageError, UsageError, reason_of
from harness.report.code import report_code
from harness.report.derived_files import derived_files
from harness.storage.bundle import RESULTS, SUFFIX, write_bundle
from harness.storage.disk import Disk
from harness.storage.reading import attempt_folders, read_raw
from harness.storage.repair import files_of
from harness.storage.signature import sign


@dataclass(frozen=True)
class Bundled:
    """A bundle that was written: its path, and how many attempts and files are in it."""

    path: Path
    attempts: int
    files: int
    bytes: int


def bundle(
    results: str | Path, out: str | Path, sign_with: str | Path | None = None, recipe: str | None = None
) -> Bundled:
    """Writes a results folder, or what is at a URL, with its report and the hashes of everything into one zip file.

    Equal results give equal bytes. ``sign_with`` is an SSH key, private, or public if an agent holds the private one.
    With ``recipe``, of the results of several only that one's are written. Raises UsageError for a name without
    ``.qh.zip`` and a key that cannot sign, ResultsError for results that are damaged or hold nothing, and StorageError
    if the disk refuses.
    """
    target = Path(out)
    if not target.name.endswith(SUFFIX):
        raise UsageError(f"{shown(target)}: name a file that ends with {SUFFIX}, so that commands know it as a bundle")
    found = read_folder(results)
    is_part = recipe is not None and any(record.spec.recipe != recipe for record in found.records)
    if recipe is not None and is_part:
        found = found.of_recipe(recipe)
        if not found.records:
            raise ResultsError(f"{shown(str(results))}: holds no results of the recipe {shown(recipe)}")
    return bundle_found(found, results, target, sign_with, is_part)


def bundle_found(
    found: NamedRecords, results: str | Path, target: Path, sign_with: str | Path | None = None, is_part: bool = False
) -> Bundled:
    """As ``bundle``, of records that were read; ``is_part``: the results hold other recipes beside theirs."""
    if found.damaged:
        raise ResultsError(
            f"{found.damaged[0].sentence}; 'qharness repair' may restore it: a bundle holds whole records"
        )
    placed = _placed(open_source(results).place.local(), found.records, is_part)
    with found.summaries() as kept:
        derived = derived_files(found.records, kept)
    if len(placed) != len(found.records):
        raise ResultsError(
            f"{shown(str(results))}: changed while it was read, or holds an attempt twice; bundle a folder without "
            "copies, when no sweep writes there"
        )
    part = target.with_name(f".{target.name}.{current_owner()}.part")
    disk = Disk()
    try:
        disk.make_folder(target.parent)
        with part.open("w+b") as file:
            manifest = write_bundle(
                file,
                _files(placed, derived),
                f"qharness {version('qharness')}",
                report_code(),
                None if sign_with is None else partial(sign, key=Path(sign_with).expanduser()),
            )
        disk.publish(part, target)
    except OSError as error:
        raise StorageError(f"{shown(target)}: cannot write the bundle: {reason_of(error)}") from None
    finally:
        part.unlink(missing_ok=True)
    return Bundled(target, len(found.records), len(manifest.files), target.stat().st_size)


def _placed(root: Path, records: Sequence[RunRecord], is_part: bool) -> dict[str, Path]:
    """The folders of these records' attempts by their names in a bundle; ``is_part``: others are there too.

    A recipe's folder bears its name. Only runs that are in no such folder have to say of which recipe they are.
    """
    recipes = {record.spec.recipe for record in records}
    if not is_part:
        return dict(_attempts(root, root, recipes))
    (recipe,) = recipes
    own = root / recipe
    placed = dict(_attempts(root, own, recipes)) if own.is_dir() else {}
    if len(placed) == len(records):
        return placed
    return {place: folder for place, folder in _attempts(root, root, set()) if _recipe(folder) == recipe}


def _attempts(root: Path, within: Path, recipes: Set[str]) -> Iterator[tuple[str, Path]]:
    """The folder of every attempt, by what it is named in a bundle, which does not depend on how results are named.

    A recipe's folder bears its name, unless it is the one that the user named.
    """
    for folder in attempt_folders(within):
        run, attempt = folder.absolute().parts[-2:]
        below = folder.relative_to(root).parts
        own = next(iter(recipes)) if len(recipes) == 1 else ""
        recipe = below[-3] if len(below) > 2 else own or _recipe(folder)
        yield f"{RESULTS}/{recipe}/{run}/{attempt}", folder


def _recipe(attempt: Path) -> str:
    return str(read_raw(attempt)["spec"]["recipe"])


def _files(attempts: Mapping[str, Path], derived: Mapping[str, bytes]) -> Iterator[tuple[str, bytes]]:
    """In the order of their names; the records are read one after the other, as they are written."""
    before = sorted(name for name in derived if name < RESULTS)
    after = sorted(derived.keys() - set(before))
    yield from ((name, derived[name]) for name in before)
    for place in sorted(attempts):
        yield from ((f"{place}/{name}", content) for name, content in sorted(files_of(attempts[place]).items()))
    yield from ((name, derived[name]) for name in after)
