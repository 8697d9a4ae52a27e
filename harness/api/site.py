"""``qharness site``: a static site of the results of many sweeps and machines."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, replace
from itertools import compress
from pathlib import Path
from typing import Any

from harness.analysis.kept import NOTHING, KeptEntries
from harness.analysis.keyed import keyed_figures
from harness.api.bundle import bundle
from harness.api.locations import name_of
from harness.api.results import NamedRecords, kept_of, read_folder, redacted
from harness.core.foreign import read_file, shown
from harness.core.identity import full_digest
from harness.errors import HarnessError, ResultsError, UsageError
from harness.figures.summary import as_text, builder
from harness.report.derived_files import report_code
from harness.report.escape import file_name
from harness.report.page import page
from harness.report.redact import LEFT_OUT, Redaction
from harness.report.renderers.html import SitePlace, html
from harness.report.site.entries import SweepEntry, sweep_entry
from harness.report.site.pages import index_page, model_page, models_of
from harness.report.write import write_file
from harness.storage.bundle import SUFFIX, is_bundle
from harness.storage.objects import is_url, local_path
from harness.storage.summaries import TRACED

TITLE = "Quantization results"
KEPT = ".site.json"
"""What the site's pages say of each sweep, for the next build; its absence marks a folder that is no site."""
MAX_KEPT_BYTES = 2**30
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]*")


@dataclass(frozen=True)
class SiteBuild:
    """What a build did: its index, the sweeps by name, how many of them were built anew, the files that changed."""

    index: Path
    sweeps: tuple[str, ...]
    built: int
    written: tuple[Path, ...]
    removed: tuple[Path, ...]


@dataclass(frozen=True)
class _NamedSweep:
    """The records of one recipe at one location, under the name of their page."""

    name: str
    location: str | Path
    found: NamedRecords


def write_site(
    results: Sequence[str | Path],
    out: str | Path,
    title: str = TITLE,
    bundles: bool = False,
    on_skipped: Callable[[str | Path, HarnessError], None] = lambda location, error: None,
    redact: bool = False,
) -> SiteBuild:
    """Writes a site of results folders, bundles or URLs into the folder ``out``; it needs no server.

    Each recipe at each place is one sweep. A site that is there is brought up to date: only sweeps that changed are
    built, only files that differ are written, and pages of sweeps that are not among the results any more are removed.
    With ``bundles`` each page offers a bundle of its results; one that was given as a bundle always does.
    With ``redact`` pages leave out what redacted reports do, sweeps are named by their recipes, no bundle is offered,
    which would hold everything, and all sweeps are built if one changed, so that a name has one number in all.
    ``on_skipped`` receives what cannot be read. Raises UsageError for a folder with something else in it, and for
    bundles of a redacted site; ResultsError if no results can be read.
    """
    if redact and bundles:
        raise UsageError("--bundles: a bundle holds whole records, which --redact does not show; give one of both")
    folder = Path(out)
    if folder.exists() and not (folder / KEPT).is_file() and any(folder.iterdir()):
        raise UsageError(f"{shown(folder)}: holds files that are no site of qharness; name another folder for --out")
    writer = _SiteFiles(folder)
    kept = _read_kept(folder)
    states = {location: _state(location, title, bundles, redact) for location in results}
    gone = {state for state, entry in kept.values() if not _is_there(folder, entry)}
    unchanged = {state for state, _ in kept.values() if state in states.values()} - gone - {None}
    if redact and unchanged != set(states.values()):
        unchanged = set()  # a model has one number on all pages, which depends on the sweeps before it
    entries = {name: known for name, known in kept.items() if known[0] in unchanged}
    used, built = set(entries), 0
    redaction = Redaction() if redact else None
    try:
        for location in (location for location, state in states.items() if state not in unchanged):
            for sweep in _sweeps(location, used, on_skipped, redact):
                entries[sweep.name] = states[location], _build(sweep, title, bundles, writer, redaction)
                built += 1
    except BaseException:
        _keep(folder, {**kept, **entries})  # a build that was interrupted goes on from there
        raise
    if not entries:
        raise ResultsError("none of these can be read as results; name folders written by 'qharness run'")
    found = [entry for _, entry in entries.values()]
    for model in models_of(found):
        writer.write(f"models/{model.id}.html", model_page(title, model))
    writer.write("index.html", index_page(title, found))
    removed = tuple(_remove_stale(folder, kept, found))
    _keep(folder, entries)
    return SiteBuild(folder / "index.html", tuple(entries), built, tuple(writer.written), removed)


class _SiteFiles:
    """Writes files of a site that differ from what is there."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.written: list[Path] = []

    def write(self, name: str, text: str) -> None:
        path, content = self._folder / name, text.encode()
        if not path.is_file() or path.read_bytes() != content:
            write_file(path, content)
            self.written.append(path)

    def path(self, name: str) -> Path:
        """Where a file is written by somebody else."""
        path = self._folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        self.written.append(path)
        return path


def _state(location: str | Path, title: str, bundles: bool, redact: bool) -> str | None:
    """Equal if the pages of what is there would be equal; None for a URL, where that is not known.

    Files count as unchanged if their sizes and times are. Hidden ones are kept beside results, and are not results.
    """
    if is_url(location):
        return None
    root = local_path(location).absolute()
    walked = [(where, name) for where, _, names in os.walk(root) for name in names if not name.startswith(".")]
    found = []
    for path in sorted(Path(where, name) for where, name in walked) if walked else [root]:
        with suppress(OSError):  # it went away meanwhile, or is not there: whoever reads it will say so
            status = path.stat()
            found.append([str(path), status.st_size, status.st_mtime_ns])
    return full_digest([report_code(), title, bundles, redact, str(root), found])


def _sweeps(
    location: str | Path, used: set[str], on_skipped: Callable[[str | Path, HarnessError], None], redact: bool
) -> Iterator[_NamedSweep]:
    try:
        found = read_folder(location)
    except HarnessError as error:
        on_skipped(location, error)
        return
    place = name_of(location).removesuffix(SUFFIX)
    recipes = dict.fromkeys(record.spec.recipe for record in found.records)
    for recipe in recipes:
        own = found if len(recipes) == 1 else _of_recipe(found, recipe)
        name = recipe if redact else place if len(recipes) == 1 else f"{place} {recipe}"
        yield _NamedSweep(file_name(name, used), location, own)


def _of_recipe(found: NamedRecords, recipe: str) -> NamedRecords:
    chosen = [record.spec.recipe == recipe for record in found.records]
    return replace(found, records=tuple(compress(found.records, chosen)), seals=tuple(compress(found.seals, chosen)))


def _build(
    sweep: _NamedSweep, title: str, bundles: bool, writer: _SiteFiles, redaction: Redaction | None
) -> SweepEntry:
    found = sweep.found if redaction is None else redacted([sweep.found], redaction)[0]
    kept: AbstractContextManager[KeptEntries] = kept_of([found], TRACED) if found.seals else nullcontext(NOTHING)
    with found.summaries() as derived, kept as traced:
        whole = page(found.records, found.damaged, summaries=derived)
        keyed = keyed_figures(whole.tables, found.records, traced)
        offered = _bundle(sweep, bundles, writer) if redaction is None else None
        entry = sweep_entry(sweep.name, whole, keyed, offered)
        place = SitePlace(title, tuple(entry.models.items()), offered)
        if redaction is not None:
            whole = replace(whole, redacted=LEFT_OUT)
        writer.write(f"sweeps/{sweep.name}.html", html(whole, place, keyed))
    return entry


def _bundle(sweep: _NamedSweep, bundles: bool, writer: _SiteFiles) -> str | None:
    """The name of the bundle of a sweep's results, which is written or copied."""
    name = f"{sweep.name}{SUFFIX}"
    if is_bundle(sweep.location):
        shutil.copyfile(sweep.location, writer.path(f"bundles/{name}"))
        return name
    if not bundles or sweep.found.damaged:
        return None
    bundle(sweep.location, writer.path(f"bundles/{name}"))
    return name


def _is_there(folder: Path, entry: SweepEntry) -> bool:
    """Whether the files of a sweep that need not be built are where the last build put them."""
    return all((folder / name).is_file() for name in _files(entry))


def _files(entry: SweepEntry) -> Iterator[str]:
    yield f"sweeps/{entry.name}.html"
    if entry.bundle is not None:
        yield f"bundles/{entry.bundle}"


def _remove_stale(
    folder: Path, kept: Mapping[str, tuple[str | None, SweepEntry]], found: Sequence[SweepEntry]
) -> Iterator[Path]:
    """Deletes pages of the last build that are of no sweep or model any more."""
    before = [entry for _, entry in kept.values()]
    old, new = (
        {name for entry in entries for name in _files(entry)}
        | {f"models/{model.id}.html" for model in models_of(entries)}
        for entries in (before, found)
    )
    for name in sorted(old - new):
        (folder / name).unlink(missing_ok=True)
        yield folder / name


def _keep(folder: Path, entries: Mapping[str, tuple[str | None, SweepEntry]]) -> None:
    """For the next build; nothing if nothing was built."""
    if entries:
        content = {name: [state, as_text(entry)] for name, (state, entry) in entries.items()}
        write_file(folder / KEPT, json.dumps(content).encode())


def _read_kept(folder: Path) -> dict[str, tuple[str | None, SweepEntry]]:
    """What the last build kept; nothing if there was none, or what it kept cannot be read."""
    read: Callable[[Any], SweepEntry] = builder(SweepEntry)
    try:
        content = json.loads(read_file(folder / KEPT, MAX_KEPT_BYTES, ResultsError))
        found = {name: (state, read(json.loads(text))) for name, (state, text) in content.items()}
    except (OSError, ResultsError, ValueError, TypeError, AttributeError, LookupError):
        return {}
    return {name: known for name, known in found.items() if _is_named(name, known[1])}


def _is_named(name: str, entry: SweepEntry) -> bool:
    """Whether its names are those that a build gives: nothing else is looked for, or deleted."""
    parts = [name, entry.name, *entry.models, *([entry.bundle] if entry.bundle else [])]
    return all(isinstance(part, str) and _NAME.fullmatch(part) for part in parts)
