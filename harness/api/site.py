"""``qharness site``: a static site of the results of many sweeps and machines."""

from __future__ import annotations

import json
import operator
import os
import re
import shutil
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence, Set
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, closing, nullcontext, suppress
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from signal import SIG_IGN, SIGINT, signal
from typing import Any

from harness.analysis.kept import NOTHING, KeptEntries
from harness.analysis.keyed import keyed_figures
from harness.api.bundle import bundle_found
from harness.api.locations import name_of
from harness.api.results import NamedRecords, kept_of, read_folder, redacted
from harness.api.site_agreement import agreements
from harness.core.exact_text import as_text, builder
from harness.core.foreign import read_file, shown
from harness.core.identity import digest, full_digest
from harness.core.record import Failure, RunRecord
from harness.errors import HarnessError, ResultsError, UsageError
from harness.report.code import report_code
from harness.report.escape import file_name
from harness.report.page import page
from harness.report.redact import LEFT_OUT, Redaction
from harness.report.renderers.html import SitePlace, html
from harness.report.site.entries import SiteAgreement, SweepEntry, SweepRuns, sweep_entry
from harness.report.site.pages import index_page, model_page, models_of
from harness.report.write import write_file
from harness.storage.bundle import SUFFIX, is_bundle
from harness.storage.objects import is_url, local_path
from harness.storage.summaries import TRACED

TITLE = "Quantization results"
KEPT = ".site.json"
"""What the site's pages say of each sweep, for the next build; its absence marks a folder that is no site."""
MAX_KEPT_BYTES = 2**30
LEAST_PER_PROCESS = 16
"""Fewer locations are built sooner than a further process has started."""
WITHDRAWN = Failure("elsewhere", "InvalidRunError", "another place of this site has the same run as invalid")
"""Why a copy of a run does not count that was withdrawn in another place."""
OF_RECIPE = "--"
"""Between the names of a place and a recipe; no such name contains it."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]*")


@dataclass(frozen=True)
class SiteBuild:
    """What a build did: its index, the sweeps by name, how many of them were built anew, the files that changed."""

    index: Path
    sweeps: tuple[str, ...]
    built: int
    written: tuple[Path, ...]
    removed: tuple[Path, ...]
    unbundled: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Agreed:
    """How far the sources of a model agree, by series; ``state`` is that of all of its sweeps."""

    state: str
    series: Mapping[str, SiteAgreement]


@dataclass(frozen=True)
class _LastBuild:
    """What a build leaves for the next: each sweep with the state of its location, and the agreement of each model."""

    sweeps: Mapping[str, tuple[str | None, SweepEntry]] = field(default_factory=dict)
    models: Mapping[str, _Agreed] = field(default_factory=dict)


@dataclass(frozen=True)
class _NamedSweep:
    """The records of one recipe at one location, under the name of their page.

    ``is_part``: the location holds other recipes too.
    """

    name: str
    location: str | Path
    is_part: bool
    found: NamedRecords


@dataclass(frozen=True)
class _Built:
    """The sweeps at one location whose pages were built, and the files that changed; or why it cannot be read."""

    entries: tuple[SweepEntry, ...] = ()
    written: tuple[Path, ...] = ()
    fault: HarnessError | None = None


def write_site(
    results: Sequence[str | Path],
    out: str | Path,
    title: str = TITLE,
    bundles: bool = False,
    on_skipped: Callable[[str | Path, HarnessError], None] = lambda location, error: None,
    redact: bool = False,
    processes: int = 1,
) -> SiteBuild:
    """Writes a site of results folders, bundles or URLs into the folder ``out``; it needs no server.

    Each recipe at each place is one sweep; a run that was withdrawn at one place counts at none. A site that is there
    is brought up to date: only sweeps that changed are built, only files that differ are written, and pages of sweeps
    that are not among the results any more are removed.
    With ``bundles`` each page offers a bundle of its results; one that was given as a bundle always does.
    With ``redact`` pages leave out what redacted reports do, sweeps are named by their recipes, no bundle is offered,
    which would hold everything, and all sweeps are built if one changed or is gone, so that a name has one number.
    ``on_skipped`` receives what cannot be read. Up to ``processes`` build the pages of many locations that are not
    redacted; each imports the main module of its caller, as ``multiprocessing`` does.
    Raises UsageError for a folder with something else in it, and for bundles of a redacted site; ResultsError if no
    results can be read.
    """
    if redact and bundles:
        raise UsageError("--bundles: a bundle holds whole records, which --redact does not show; give one of both")
    folder = Path(out)
    if folder.exists() and not (folder / KEPT).is_file() and any(folder.iterdir()):
        raise UsageError(f"{shown(folder)}: holds files that are no site of qharness; name another folder for --out")
    writer = _SiteFiles(folder)
    before = _read_kept(folder)
    kept = before.sweeps
    states = {location: _state(location, title, bundles, redact) for location in results}
    gone = {state for state, entry in kept.values() if not _is_there(folder, entry)}
    unchanged = {state for state, _ in kept.values() if state in states.values()} - gone - {None}
    if redact and not unchanged == set(states.values()) == {state for state, _ in kept.values()}:
        unchanged = set()  # a name has one number on all pages, which depends on all sweeps
    entries = {name: known for name, known in kept.items() if known[0] in unchanged}
    places: dict[str, str | Path] = {}
    left = [location for location, state in states.items() if state not in unchanged]
    redaction = Redaction() if redact else None
    builder, used = _Builder(folder, title, bundles), set(entries)
    anew: set[str] = set()
    pages = builder.named(left, used, processes) if redaction is None else builder.redacted(left, used, redaction)
    try:
        with closing(pages):
            for location, made in zip(left, pages, strict=True):
                state = states[location]
                if made.fault is not None:
                    on_skipped(location, made.fault)
                    state = None  # the next build tries again
                entries |= {entry.name: (state, entry) for entry in made.entries}
                places |= {entry.name: location for entry in made.entries}
                writer.written += made.written
                anew |= {entry.name for entry in made.entries}
    finally:  # a build that is interrupted, here or while it tests agreement, goes on from there
        _keep(folder, _LastBuild({**kept, **entries}, before.models))
    if not entries:
        raise ResultsError("none of these can be read as results; name folders written by 'qharness run'")
    found = [entry for _, entry in entries.values()]
    of_state = {state: location for location, state in states.items() if state is not None}
    places |= {name: of_state[state] for name, (state, _) in entries.items() if state in of_state}
    withdrawn = frozenset(key for each in found for key in each.runs.withdrawn)
    for each in found:
        if withdrawn.intersection(each.runs.held) != set(each.runs.dropped):
            made_again = builder.again(each, places[each.name], withdrawn, redaction, writer)
            entries[each.name] = entries[each.name][0], made_again
            anew.add(each.name)
    found = [entry for _, entry in entries.values()]
    agreed: dict[str, _Agreed] = {}
    for model in models_of(found):
        of_sweeps = [entries[sweep.name][0] for sweep in model.sweeps]
        state = full_digest([of_sweeps, [sweep.runs.dropped for sweep in model.sweeps]])
        known = before.models.get(model.id)
        if known is None or known.state != state or None in of_sweeps:
            known = _Agreed(state, agreements(model, places, redaction, lambda found: _withdrawn(found, withdrawn)))
        agreed[model.id] = known
        writer.write(f"models/{model.id}.html", model_page(title, model, known.series, keys=not redact))
    writer.write("index.html", index_page(title, found))
    removed = tuple(_remove_stale(folder, kept, found))
    _keep(folder, _LastBuild(entries, agreed))
    unbundled = tuple(entry.name for entry in found if bundles and entry.bundle is None)
    return SiteBuild(folder / "index.html", tuple(entries), len(anew), tuple(writer.written), removed, unbundled)


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


@dataclass(frozen=True)
class _Builder:
    """Builds the pages of sweeps, location by location, into the folder of a site."""

    folder: Path
    title: str
    bundles: bool

    def named(self, locations: Sequence[str | Path], used: set[str], processes: int) -> Generator[_Built]:
        """Each sweep under the name of its location, none of which is among the ``used``."""
        of_others = {name.partition(OF_RECIPE)[0] for name in used}
        places = [file_name(name_of(location).removesuffix(SUFFIX), of_others) for location in locations]
        if (count := min(processes, len(locations) // LEAST_PER_PROCESS)) < 2:
            yield from map(self.at_place, locations, places)
            return
        pool = ProcessPoolExecutor(count, get_context("spawn"), signal, (SIGINT, SIG_IGN))
        try:
            yield from pool.map(self.at_place, locations, places)
        finally:
            pool.shutdown(cancel_futures=True)

    def at_place(self, location: str | Path, place: str) -> _Built:
        """The sweeps of a location, with their recipes' names behind that of the place if they are several."""
        own: set[str] = set()
        return self._built(
            location, lambda recipe, alone: place if alone else place + OF_RECIPE + file_name(recipe, own)
        )

    def redacted(self, locations: Sequence[str | Path], used: set[str], redaction: Redaction) -> Generator[_Built]:
        """Each sweep under the name of its recipe; a name that is hidden has one number on all pages."""
        for location in locations:
            yield self._built(location, lambda recipe, alone: file_name(recipe, used), redaction)

    def _built(
        self, location: str | Path, name: Callable[[str, bool], str], redaction: Redaction | None = None
    ) -> _Built:
        try:
            found = read_folder(location)
        except HarnessError as error:
            return _Built(fault=error)
        writer = _SiteFiles(self.folder)
        recipes = dict.fromkeys(record.spec.recipe for record in found.records)
        alone = len(recipes) == 1
        sweeps = (
            _NamedSweep(name(recipe, alone), location, not alone, found if alone else found.of_recipe(recipe))
            for recipe in recipes
        )
        entries = []
        try:
            for sweep in sweeps:
                offered = _bundle(sweep, self.bundles, writer) if redaction is None else None
                entries.append(_build(sweep, self.title, offered, writer, redaction))
        except HarnessError as error:  # such as one that changes while it is bundled
            return _Built(tuple(entries), tuple(writer.written), error)
        return _Built(tuple(entries), tuple(writer.written))

    def again(
        self,
        entry: SweepEntry,
        location: str | Path,
        gone: Set[str],
        redaction: Redaction | None,
        writer: _SiteFiles,
    ) -> SweepEntry:
        """A sweep that was built, without the runs that turned out to be ``gone``. Raises what reading it raises."""
        found = read_folder(location).of_recipe(entry.runs.recipe)
        sweep = _NamedSweep(entry.name, location, is_part=True, found=found)
        return _build(sweep, self.title, entry.bundle, writer, redaction, gone)


def _build(
    sweep: _NamedSweep,
    title: str,
    offered: str | None,
    writer: _SiteFiles,
    redaction: Redaction | None,
    gone: Set[str] = frozenset(),
) -> SweepEntry:
    runs, found = _runs(sweep, gone), _withdrawn(sweep.found, gone)
    found = found if redaction is None else redacted([found], redaction)[0]
    kept: AbstractContextManager[KeptEntries] = kept_of([found], TRACED) if found.seals else nullcontext(NOTHING)
    with found.summaries() as derived, kept as traced:
        whole = page(found.records, found.damaged, summaries=derived)
        keyed = keyed_figures(whole.tables, found.records, traced)
        entry = replace(sweep_entry(sweep.name, whole, keyed, offered), runs=runs)
        place = SitePlace(title, tuple(entry.models.items()), offered)
        if redaction is not None:
            whole = replace(whole, redacted=LEFT_OUT)
        writer.write(f"sweeps/{sweep.name}.html", html(whole, place, keyed))
    return entry


def _key(record: RunRecord) -> str:
    """What identifies an attempt at all places, in few letters."""
    return digest(record.key)


def _runs(sweep: _NamedSweep, gone: Set[str]) -> SweepRuns:
    keys = {_key(record): record.status == "invalid" for record in sweep.found.records}
    held = tuple(key for key, invalid in keys.items() if not invalid)
    withdrawn = tuple(key for key, invalid in keys.items() if invalid)
    recipe = sweep.found.records[0].spec.recipe
    return SweepRuns(recipe, held, withdrawn, tuple(key for key in held if key in gone))


def _withdrawn(found: NamedRecords, gone: Set[str]) -> NamedRecords:
    """With the attempts that are ``gone`` as invalid ones; what was derived from these records before is not used."""
    records = tuple(
        replace(each, outcome=replace(each.outcome, status="invalid", failure=WITHDRAWN))
        if each.status != "invalid" and gone and _key(each) in gone
        else each
        for each in found.records
    )
    unchanged = all(map(operator.is_, records, found.records))
    return found if unchanged else NamedRecords(found.name, records, found.damaged)


def _bundle(sweep: _NamedSweep, bundles: bool, writer: _SiteFiles) -> str | None:
    """The name of the bundle of a sweep's results, which is written or copied."""
    name = f"{sweep.name}{SUFFIX}"
    if is_bundle(sweep.location):
        shutil.copyfile(sweep.location, writer.path(f"bundles/{name}"))
        return name
    if not bundles or sweep.found.damaged:
        return None
    bundle_found(sweep.found, sweep.location, writer.path(f"bundles/{name}"), is_part=sweep.is_part)
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


def _keep(folder: Path, kept: _LastBuild) -> None:
    """For the next build; nothing if nothing was built."""
    if kept.sweeps:
        write_file(folder / KEPT, as_text(kept).encode())


def _read_kept(folder: Path) -> _LastBuild:
    """What the last build kept; nothing if there was none, or what it kept cannot be read."""
    read: Callable[[Any], _LastBuild] = builder(_LastBuild)
    try:
        found = read(json.loads(read_file(folder / KEPT, MAX_KEPT_BYTES, ResultsError)))
        return replace(found, sweeps={name: known for name, known in found.sweeps.items() if _is_named(name, known[1])})
    except (OSError, ResultsError, ValueError, TypeError, AttributeError, LookupError):
        return _LastBuild()


def _is_named(name: str, entry: SweepEntry) -> bool:
    """Whether its names are those that a build gives: nothing else is looked for, or deleted."""
    parts = [name, entry.name, *entry.models, *([entry.bundle] if entry.bundle else [])]
    return all(isinstance(part, str) and _NAME.fullmatch(part) for part in parts)
