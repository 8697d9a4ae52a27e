"""A run's record.json and, after a zero byte, its evidence.parquet, as a results folder holds them."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

from mutations import changed

from harness.core.foreign import parse_json
from harness.core.identity import NAME
from harness.core.record import Measurement, RunRecord
from harness.core.upgrade import upgrade
from harness.errors import ResultsError
from harness.storage.evidence import read_evidence
from harness.storage.json_codec import decode
from harness.storage.reading import read_results
from harness.storage.seal import EVIDENCE, RECORD, file_seal, seal

NLL = Measurement("nll", 1, "nat/token", "lower", "paired", ())
"""What the evidence belongs to, if the record does not say so."""


def read(content: bytes, folder: Path) -> object:
    record, _, evidence = content.partition(b"\0")
    measurements: tuple[Measurement, ...] = (NLL, NLL)
    run, fault = folder / "results" / "sweep" / "0123456789abcdef" / "1", None
    try:
        raw = parse_json(record, RECORD, ResultsError)
        found = decode(RunRecord, upgrade(raw, RECORD), RECORD)
        measurements = found.outcome.measurements
        _show(found)
        if NAME.fullmatch(found.spec.recipe) and 1 <= found.attempt <= 9:  # the folder that it belongs in
            run = folder / "results" / found.spec.recipe[:99] / found.spec.run_id / str(found.attempt)
        if "seal" in raw:  # as its author would: the seal is no signature
            record = json.dumps(seal(raw, {EVIDENCE: file_seal(evidence)} if evidence else {})).encode()
    except ResultsError as error:
        fault = error
    values = read_evidence(evidence, EVIDENCE, measurements) if evidence else None
    if fault is not None:
        raise fault
    run.mkdir(parents=True)
    (run / RECORD).write_bytes(record)
    if evidence:
        (run / EVIDENCE).write_bytes(evidence)
    return values, read_results(folder / "results")


def _show(record: RunRecord) -> object:
    """What every table and list of runs asks of a record."""
    sentences = [each.sentence for each in (*record.outcome.labels, *record.outcome.facts)]
    return record.spec.run_id, record.spec.case_id, record.spec.title, record.spec.names(), sentences


def mutate(content: bytes, random: Random) -> bytes:
    """Mostly changes a field of the record; else bytes of the evidence, whose footer is its end."""
    record, _, evidence = content.partition(b"\0")
    if not evidence or random.random() < 0.6:
        return json.dumps(changed(json.loads(record), random)).encode() + b"\0" + evidence
    held = bytearray(evidence)
    for _ in range(random.choice((1, 1, 2, 5))):
        place = random.randrange(len(held))
        if random.random() < 0.5:
            place = len(held) - 1 - random.randrange(min(len(held), 2000))
        held[place] = random.choice((0, 1, 0x7F, 0x80, 0xFF, held[place] ^ (1 << random.randrange(8))))
    return record + b"\0" + bytes(held)
