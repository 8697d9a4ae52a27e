"""The files of a bundle that follow from its records: what they are of, the packages they ran with, and the report."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Any

import yaml

from harness.analysis.summaries import Summaries
from harness.core.identity import digest
from harness.core.record import Fingerprint, RunRecord
from harness.errors import UsageError
from harness.planning.recipe_of import recipe_of
from harness.recipe.fields import MAX_EXCLUDED
from harness.report.write import report_files

CONTENTS, LOCKS, RECIPES, REPORT = "contents.json", "locks", "recipes", "report"
TABLE = f"{REPORT}/report.csv"
"""The one file whose numbers are compared if other code wrote it."""
FORMATS = ("html", "md", "csv")
CUT_SHORT = (
    f"# 'exclude' holds {MAX_EXCLUDED} entries, the most that it may.\n"
    "# If more was left out, this recipe plans more than was measured.\n"
)
CLOSE = 1e-6
"""The relative difference of two numbers that libraries and processors explain, which add up in other orders."""
ROUNDING = 1e-12
"""The absolute difference that they explain: where terms cancel, only rounding is left."""
NAMES = ("model", "method", "engine")
"""Columns of the table whose words any code writes alike."""
_NUMBER_OR_LINE = re.compile(r"([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?|\n)")


def derived_files(records: Sequence[RunRecord], summaries: Summaries | None = None) -> dict[str, bytes]:
    """Every file of a bundle that is no part of a record, by name. They depend on nothing but records and code."""
    locks = dict(_locks(records))
    contents = json.dumps(_contents(records), indent=1, ensure_ascii=False, sort_keys=True) + "\n"
    return {
        CONTENTS: contents.encode(),
        **{name: text.encode() for name, text in locks.items()},
        **{name: text.encode() for name, text in _recipes(records)},
        **{f"{REPORT}/{name}": content for name, content in report_files(records, FORMATS, summaries=summaries)},
    }


def unlike_tables(bundled: bytes, derived: bytes) -> str | None:
    """The first number or name of a bundle's table that does not follow from the records; None if all do.

    Other words are not compared, and columns that only one has are not: other code may have written it. Raises
    ValueError for what is no table, or has no column that is known.
    """
    theirs, ours = (list(csv.reader(io.StringIO(each.decode()))) for each in (bundled, derived))
    if len(theirs) != len(ours):
        return f"{len(theirs) - 1} rows, and {len(ours) - 1} follow from the records"
    if uneven := next((row for row in theirs if len(row) != len(theirs[0])), None):
        raise ValueError(f"a row of {len(uneven)} cells below {len(theirs[0])} columns")
    shared = [(name, theirs[0].index(name), ours[0].index(name)) for name in theirs[0] if name in ours[0]]
    if not shared:
        raise ValueError("none of its columns is known")
    for number, (one, other) in enumerate(zip(theirs[1:], ours[1:], strict=True), 1):
        for name, left, right in shared:
            mine, found = _number(other[right]), _number(one[left])
            renamed = name in NAMES and one[left] != other[right]
            if renamed or (mine is None) != (found is None) or not _close(mine, found):
                return f"row {number}, {name}: {one[left] or 'nothing'}, and {other[right] or 'nothing'} follows"
    return None


def unlike_texts(bundled: bytes, derived: bytes) -> str | None:
    """The first line of a file that is not what the same code derives from the records; None if there is none.

    Numbers with a fraction may differ in their last digits. Raises ValueError for what is no text.
    """
    theirs, ours = (_NUMBER_OR_LINE.split(each.decode()) for each in (bundled, derived))
    for place, (one, other) in enumerate(zip(theirs, ours, strict=False)):
        fractions = place % 2 and "." in one + other and "\n" not in (one, other)
        if one != other and not (fractions and _close(float(one), float(other))):
            return f"line {1 + theirs[:place].count(chr(10))} is not what follows"
    return None if len(theirs) == len(ours) else "it ends too early" if len(theirs) < len(ours) else "it goes on"


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None


def _close(one: float | None, other: float | None) -> bool:
    if one is None or other is None:
        return True
    return math.isclose(one, other, rel_tol=CLOSE, abs_tol=ROUNDING) or (math.isnan(one) and math.isnan(other))


def _contents(records: Sequence[RunRecord]) -> dict[str, Any]:
    """What the records are of, by content: a reader need not open them."""
    jobs = [record.spec.job for record in records]
    locks: dict[str, set[str]] = {}
    for record in records:
        locks.setdefault(record.spec.stack, set()).add(record.spec.environment.lock)
    return {
        "recipes": sorted({record.spec.recipe for record in records}),
        "sessions": sorted({record.session for record in records}),
        "runs": len({record.spec.run_id for record in records}),
        "attempts": len(records),
        "models": _distinct(_without(asdict(model), "path") for job in jobs for model in job.models),
        "texts": _distinct(_without(asdict(text), "path") for job in jobs for text in job.texts),
        "tasks": _distinct(task.identity() for job in jobs for task in job.tasks),
        "machines": _distinct(
            {"class": record.spec.hardware, "node": record.node, **_hardware(record.outcome.before)}
            for record in records
        ),
        "stacks": {stack: sorted(found) for stack, found in locks.items()},
    }


def _hardware(fingerprint: Fingerprint | None) -> dict[str, Any]:
    return dict(fingerprint.hardware) if fingerprint else {}


def _locks(records: Iterable[RunRecord]) -> Iterator[tuple[str, str]]:
    """For each stack, the versions that runs found in it, as lines that pip reads; a file for each set of them.

    They are those of all distributions, but in older records only of those that affect figures.
    """
    found: dict[str, tuple[str, Mapping[str, str]]] = {}
    for record in records:
        before, after = record.outcome.before, record.outcome.after
        same = before is not None and after is not None and before.software == after.software
        for fingerprint in (before, None if same else after):
            if fingerprint and fingerprint.software:
                versions = {**fingerprint.software, **fingerprint.installed}
                for stack, own in ((record.spec.stack, versions), *fingerprint.beside.items()):
                    found[f"{LOCKS}/{stack}-{digest(dict(own))}.txt"] = stack, own
    for name, (stack, software) in sorted(found.items()):
        python = software.get("python", "")
        lines = [f"# {stack}, Python {python}", *(f"{p}=={v}" for p, v in sorted(software.items()) if p != "python")]
        yield name, "\n".join(lines) + "\n"


def _recipes(records: Sequence[RunRecord]) -> Iterator[tuple[str, str]]:
    """For each recipe the one that follows from its runs, so that it can be read and run without the original."""
    for name in sorted({record.spec.recipe for record in records}):
        specs = [record.spec for record in records if record.spec.recipe == name]
        with suppress(UsageError):  # of no variant
            plain = json.loads(json.dumps(recipe_of(specs, whole=True)))
            text = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=120)
            full = len(plain.get("exclude", ())) == MAX_EXCLUDED
            yield f"{RECIPES}/{name}.yaml", f"{CUT_SHORT}{text}" if full else text


def _distinct(entries: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    by_content = {json.dumps(entry, sort_keys=True, default=list): entry for entry in entries}
    return [by_content[key] for key in sorted(by_content)]


def _without(entry: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if key != name}
