"""The outcome of a run on its way to where it is stored: JSON, and beside it the evidence that would be long in JSON.

Whoever reads it does not trust it: a library in the run's process may have written anything.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from harness.core.foreign import parse_json, read_file
from harness.core.record import Outcome
from harness.errors import ResultsError
from harness.storage.evidence import FEW_VALUES, read_evidence, without_evidence, write_evidence
from harness.storage.json_codec import decode, encode
from harness.storage.seal import EVIDENCE, MAX_BYTES

MAX_OUTCOME_BYTES = 64 << 20
"""Of the JSON, in which a measurement has ``FEW_VALUES`` at most."""
MAX_OUTCOME_VALUES = 4_000_000


def evidence_of(path: Path) -> Path:
    """The file of the evidence beside that of an outcome; there is none if no measurement is long."""
    return path.with_suffix(".parquet")


def write_outcome(path: Path, outcome: Outcome, write: Callable[[Path, bytes], None]) -> None:
    """Writes an outcome by ``write``, which gives a file its name when it is whole; the JSON comes last.

    Raises ValueError or TypeError, and writes no JSON, if it holds NaN, infinity, text that is no Unicode or too much.
    """
    evidence = write_evidence(outcome.measurements, above=FEW_VALUES)
    slim = replace(outcome, measurements=without_evidence(outcome.measurements, above=FEW_VALUES))
    content = encode(slim).encode("utf-8")
    if evidence is not None:
        if len(evidence) > MAX_BYTES[EVIDENCE]:
            raise ValueError(f"its evidence of {len(evidence):,} bytes is larger than {MAX_BYTES[EVIDENCE]:,}")
        write(evidence_of(path), evidence)
    write(path, content)


def read_outcome(path: Path) -> Outcome:
    """The outcome that ``write_outcome`` wrote. Raises ResultsError if it cannot be read or is not one."""
    content = read_file(path, MAX_OUTCOME_BYTES, ResultsError)
    outcome = decode(Outcome, parse_json(content, path.name, ResultsError, MAX_OUTCOME_VALUES), path.name)
    if all(m.values for m in outcome.measurements):
        return outcome
    evidence = evidence_of(path)
    columns = read_file(evidence, MAX_BYTES[EVIDENCE], ResultsError)
    return replace(outcome, measurements=read_evidence(columns, evidence.name, outcome.measurements))


def remove_outcome(path: Path) -> None:
    """Deletes an outcome, if there is one, the JSON first. Raises OSError."""
    for each in (path, evidence_of(path)):
        each.unlink(missing_ok=True)
