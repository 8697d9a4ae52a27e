"""Golden data of real sweeps: identities and figures that stay as they are, whatever becomes of the code around them.

``tests/data/golden/keep.py`` says how the data were made.
"""

from __future__ import annotations

import json
import lzma
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from harness.cli.app import app
from harness.core.record import RunRecord
from harness.core.upgrade import upgrade
from harness.storage.json_codec import decode

DATA = Path(__file__).parents[1] / "data" / "golden"
EXAMPLE = Path(__file__).parents[2] / "results" / "example"
KINDS = {
    *("machine", "prepare", "calibrate", "probe", "convert", "quantize", "reference", "quality", "task"),
    "performance",
}


@pytest.fixture(scope="module")
def sweeps(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Results folders by name."""
    folder = tmp_path_factory.mktemp("kept")
    with tarfile.open(DATA / "records.tar.xz") as tar:
        tar.extractall(folder, filter="data")
    return {"methods-cpu": folder / "methods-cpu", "example": EXAMPLE}


def test_case_ids_and_run_ids_are_what_they_were() -> None:
    """Of some 290 runs of all kinds. Resuming matches on the one, ``compare`` on the other."""
    kept = json.loads(lzma.decompress((DATA / "specs.json.xz").read_bytes()))
    records = [decode(RunRecord, upgrade(each["record"], "kept"), "kept") for each in kept]
    assert [record.spec.case_id for record in records] == [each["case_id"] for each in kept]
    assert [record.spec.run_id for record in records] == [each["run_id"] for each in kept]
    kinds = Counter(record.spec.kind for record in records)
    assert set(kinds) == KINDS
    assert kinds.total() > 250


def printed(*arguments: object) -> str:
    ended = CliRunner().invoke(app, list(map(str, arguments)))
    assert ended.exit_code in (0, 4), ended.output
    return ended.stdout


@pytest.mark.parametrize("name", ["methods-cpu", "example"])
def test_figures_are_what_they_were(name: str, sweeps: dict[str, Path], tmp_path: Path, golden: Any) -> None:
    """The CSV file of the report, and what ``compare``, ``history`` and ``recommend`` say of the same records."""
    results = sweeps[name]
    printed("report", results, "--format", "csv", "--out", tmp_path)
    (report,) = tmp_path.rglob("report.csv")
    golden(f"kept/{name}.csv", report.read_text(encoding="utf-8"))
    where = str(results)
    golden(f"kept/{name}-compare.json", printed("compare", results, results, "--format", "json").replace(where, name))
    golden(f"kept/{name}-history.json", printed("history", results, "--format", "json").replace(where, name))
    golden(f"kept/{name}-recommend.jsonl", printed("recommend", results, "--format", "json").replace(where, name))
