"""Makes the golden data: real records and run specs whose identities and figures must not change by a redesign.

Run from the project's folder, after ``qharness run recipes/methods-cpu.yaml --create-stacks``:

    .venv/bin/python tests/data/golden/keep.py results/methods-cpu
    QHARNESS_UPDATE_GOLDEN=1 .venv/bin/pytest tests/report/test_kept.py

``records.tar.xz`` holds that sweep with every 16th token of each window, and without logs. ``specs.json.xz`` holds the
runs that the project's recipes plan, each with the case id and the run id that it had when it was written.
"""

from __future__ import annotations

import io
import json
import lzma
import sys
import tarfile
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from harness.api.plan import plan
from harness.core.record import Measurement, Outcome, RunRecord
from harness.core.run import RunSpec
from harness.core.site import Machine
from harness.host.machine import cache_folder
from harness.recipe import load_recipe
from harness.stacks import Stacks
from harness.storage.json_codec import decode, encode
from harness.storage.reading import read_records
from harness.storage.store import Store

HERE, PROJECT = Path(__file__).parent, Path(__file__).parents[3]
EVERY = 16
RECIPES = ("quickstart-full", "methods-cpu", "engines-cpu", "kv-cache-cpu", "decode-modes-cpu", "synthetic-llama")
OTHERS: dict[str, Any] = {
    "name": "others",
    "models": [{"id": str(PROJECT / "tests" / "data" / "tiny-llama"), "dtype": "float32", "degrid": 2}],
    "methods": ["none", {"rtn": {"bits": [4, 2]}}, {"gptq": {"bits": 4, "group_size": 32}}],
    "scope": {"skip": ["*.k_proj"], "overrides": {"*.down_proj": {"bits": 8}, "*.0.*": {"bits": 3}}},
    "calibration": {"text": "demo_calibration", "samples": 8, "length": 64, "seed": 5},
    "measure": {
        "perplexity": [
            {"text": "demo", "protocol": "sliding", "context": 128, "stride": 64, "windows": 4},
            {"text": "demo", "protocol": "llama.cpp", "context": 128, "bos": "always"},
        ],
        "divergence": {},
        "tasks": [{"name": "arc_easy", "fewshot": 5, "limit": 10}, "hellaswag"],
        "memory": {"budget": "2GiB"},
        "energy": {},
        "throughput": {"batch_sizes": [1, 2], "prompt_tokens": [16, 32], "new_tokens": 4},
    },
    "kv_cache": ["model", "int8"],
    "decode_mode": ["eager", "compiled"],
    "price": {"per_hour": 1.5},
    "gates": {"decode": "5%"},
    "threads": 2,
    "seed": 3,
    "repetitions": 2,
}
"""What the project's recipes do not have."""
MOST_OF_A_KIND = 20
"""Of one recipe: enough to see every part of a question that a run of its kind has."""


def main(results: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder))
        for record in read_records(results):
            store.save(thinned(record))
        _pack(Path(folder), HERE / "records.tar.xz")
    (HERE / "specs.json.xz").write_bytes(lzma.compress(json.dumps(specs(), indent=0).encode(), preset=9))


def thinned(record: RunRecord) -> RunRecord:
    """The record with fewer tokens, no log and no path of this machine."""
    outcome = record.outcome
    failure = outcome.failure and replace(outcome.failure, log_tail="")
    kept = tuple(map(_fewer, outcome.measurements))
    return replace(record, spec=_anywhere(record.spec), outcome=replace(outcome, failure=failure, measurements=kept))


def specs() -> list[dict[str, Any]]:
    """Records of nothing: a spec each, as schema version 1 has it, with its identities beside it."""
    machine, stacks = Machine("cpu", "golden, 2 cores"), Stacks(cache_folder() / "stacks")
    with tempfile.TemporaryDirectory() as folder:
        others = Path(folder) / "others.yaml"
        others.write_text(yaml.safe_dump(OTHERS), encoding="utf-8")
        paths = [*(PROJECT / "recipes" / f"{name}.yaml" for name in RECIPES), others]
        planned = [[run.spec for run in plan(load_recipe(path), machine, stacks)] for path in paths]
    return [_kept(spec) for specs in planned for spec in _some_of_each_kind(specs)]


def _some_of_each_kind(specs: Iterable[RunSpec]) -> Iterator[RunSpec]:
    kinds: Counter[str] = Counter()
    for spec in specs:
        kinds[spec.kind] += 1
        if kinds[spec.kind] <= MOST_OF_A_KIND:
            yield spec


def _kept(spec: RunSpec) -> dict[str, Any]:
    record = RunRecord(_anywhere(spec), Outcome("ok"), "golden", 1, "2026-11-28T00:00:00+00:00", 0.0)
    return {"case_id": spec.case_id, "run_id": spec.run_id, "record": json.loads(encode(record))}


def _fewer(measured: Measurement) -> Measurement:
    if ":" not in next(iter(measured.item_ids), ""):
        return measured
    kept = [place for place, item in enumerate(measured.item_ids) if int(item.rpartition(":")[2]) % EVERY == 0]

    def some(values: Sequence[Any]) -> tuple[Any, ...]:
        return tuple(values[place] for place in kept) if values else ()

    return replace(
        measured,
        values=some(measured.values),
        weights=some(measured.weights),
        item_ids=some(measured.item_ids),
        cluster_ids=some(measured.cluster_ids),
    )


def _anywhere(spec: RunSpec) -> RunSpec:
    """The spec with the names of its files alone: where they lie is no part of any identity."""
    return decode(RunSpec, _named(json.loads(encode(spec))), "golden")


def _named(value: Any) -> Any:
    if isinstance(value, list):
        return list(map(_named, value))
    if not isinstance(value, dict):
        return value
    return {
        key: Path(inner).name if isinstance(inner, str) and Path(inner).is_absolute() else _named(inner)
        for key, inner in value.items()
    }


def _pack(folder: Path, archive: Path) -> None:
    """The same bytes for the same files."""
    with lzma.open(archive, "wb", preset=9) as packed, tarfile.open(fileobj=packed, mode="w") as tar:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            entry = tarfile.TarInfo(str(path.relative_to(folder)))
            content = path.read_bytes()
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
