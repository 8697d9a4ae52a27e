"""``qharness verify BUNDLE``: whether all of a bundle is as it was written, and follows from its records."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from harness.api.checked import Checked, attempts
from harness.core.foreign import shown
from harness.core.owner import temporary_folder
from harness.errors import ResultsError
from harness.plugins import plugin_figures
from harness.report.code import report_code
from harness.report.derived_files import TABLE, derived_files, unlike_tables, unlike_texts
from harness.storage.bundle import RESULTS, SIGNATURE, Bundle, open_bundle
from harness.storage.reading import all_records, read_results
from harness.storage.repair import FILES
from harness.storage.signature import check_signature


def verify_bundle(path: Path, signers: Path | None = None) -> Iterator[Checked]:
    """Yields every file of a bundle. ``signers`` is a file of those who may have signed it.

    Files that follow from the records are derived again, and may differ in the last digits of numbers. If other code
    made the bundle, only the numbers of its table are compared, and the names that they are of. Raises ResultsError for
    what is no bundle, or may do harm when it is unpacked.
    """
    with open_bundle(path) as bundle:
        is_whole = True
        for each in (*_signed(bundle, signers), *_misfits(bundle)):
            is_whole &= each.state == "signed"
            yield each
        if not is_whole:
            return
        with temporary_folder() as folder:
            bundle.unpack(RESULTS, folder)
            found = set[str]()
            for each in attempts(folder):
                name = Path(each.path).relative_to(folder).as_posix()
                found.add(f"{RESULTS}/{name}")
                is_whole &= each.state in ("ok", "not sealed")
                yield replace(each, path=f"{shown(path)}/{RESULTS}/{name}", reason=each.reason.replace(str(folder), ""))
            for stranger in _strangers(bundle, found):
                is_whole = False
                yield stranger
            if is_whole:
                yield from _derived(bundle, derived_files(all_records(read_results(folder))))


def _signed(bundle: Bundle, signers: Path | None) -> Iterator[Checked]:
    name = f"{shown(bundle.path)}/{SIGNATURE}"
    if bundle.signature is None:
        if signers is not None:
            yield Checked(name, "damaged", "it is not signed")
        return
    found = check_signature(bundle.manifest_text, bundle.signature, signers)
    if not found.holds:
        yield Checked(name, "damaged", f"the signature does not hold: {found.words}")
    else:
        whose = "" if signers else "; give --signers FILE to check whose key that is"
        yield Checked(name, "signed", f"{found.words}{whose}")


def _misfits(bundle: Bundle) -> Iterator[Checked]:
    for each in bundle.misfits():
        yield Checked(f"{shown(bundle.path)}/{each.name}", "damaged", each.reason)


def _strangers(bundle: Bundle, attempts: Collection[str]) -> Iterator[Checked]:
    """The files among the records that belong to none of them."""
    for name in bundle.names(RESULTS):
        folder, _, file = name.rpartition("/")
        if folder not in attempts or file not in FILES:
            yield Checked(f"{shown(bundle.path)}/{name}", "damaged", "belongs to no record")


def _derived(bundle: Bundle, derived: Mapping[str, bytes]) -> Iterator[Checked]:
    """Each file beside the records; ``derived`` are those that should be there."""
    same_code = bundle.manifest.code == report_code() and not plugin_figures()  # whose code may be another
    others = {name for name in bundle.manifest.files if not name.startswith(f"{RESULTS}/")}
    for name in sorted(others | derived.keys()):
        at = f"{shown(bundle.path)}/{name}"
        expected = derived.get(name)
        if name not in others:
            yield Checked(at, "damaged", "follows from the records, and is missing")
        elif expected is None:
            yield Checked(at, "damaged", "does not follow from the records")
        elif bundle.read(name) == expected:
            yield Checked(at, "ok")
        elif same_code or name == TABLE:
            yield _compared(at, name, bundle.read(name), expected, same_code)
        else:
            made_by = f"other code made it ({bundle.manifest.made_by})"
            yield Checked(at, "not compared", f"{made_by}; the numbers of {TABLE} were compared instead")


def _compared(at: str, name: str, bundled: bytes, derived: bytes, same_code: bool) -> Checked:
    try:
        unlike = unlike_tables(bundled, derived) if name == TABLE else None
        if unlike is None and same_code:
            unlike = unlike_texts(bundled, derived)
    except ValueError as error:
        unlike = f"it cannot be read: {error}"
    return (
        Checked(at, "ok") if unlike is None else Checked(at, "damaged", f"does not follow from the records: {unlike}")
    )


def refuse_unverified(path: Path) -> None:
    """Raises ResultsError, with the first file, for a bundle that is not whole, or does not follow from its records."""
    for each in verify_bundle(path):
        if each.state in ("damaged", "newer"):
            raise ResultsError(f"{each.path}: {each.reason}; 'qharness verify {shown(path)}' lists all that is wrong")
