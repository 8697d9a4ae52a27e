"""What a sweep says when a streamed model cannot be read, or its states find no room: the record, advice, exit code.

The worker is the real one; what breaks is patched in it before it starts.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from harness.cli.app import main
from harness.core.record import RunRecord
from harness.execution import local
from harness.storage.store import Store

pytestmark = pytest.mark.heavy

WORKER = """
import runpy
from pathlib import Path
from harness.models.streaming import reading, waiting
{patch}
runpy.run_module("harness.execution.worker", run_name="__main__", alter_sys=True)
"""
NO_ROOM = """
keep = waiting.WaitingStates.__init__
waiting.WaitingStates.__init__ = lambda self, budget_bytes: keep(self, 0)
waiting.WaitingStates._file = lambda self, number: Path("/dev/full")
"""
SLOW_DISK = """
read = reading.CheckpointReader.read
def slow(self, name):
    self.read_s += 100
    return read(self, name)
reading.CheckpointReader.read = slow
"""
CUT_SHORT = """
read = reading.CheckpointReader.read
def cut(self, name):
    placed = self._placed[name]
    size = placed.end - placed.begin
    self._placed[name] = reading.safetensors.Placed(placed.dtype, placed.shape, 2**40, 2**40 + size)
    return read(self, name)
reading.CheckpointReader.read = cut
"""


@dataclass(frozen=True)
class Ended:
    """How a command ended, what it printed in one line, and the records that it left."""

    code: int
    output: str
    records: Sequence[RunRecord]


Run = Callable[..., Ended]


@pytest.fixture
def run(sweeps: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Runs the command on a streamed model, with workers that are patched."""

    def run(model: Path, patch: str = "", **content: Any) -> Ended:
        (tmp_path / "odd_worker.py").write_text(WORKER.format(patch=patch), encoding="utf-8")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        monkeypatch.setattr(local, "WORKER", "odd_worker")
        recipe = sweeps.recipe(
            {
                "models": [{"id": str(model), "label": "tiny"}],
                "methods": ["none"],
                "measure": {"perplexity": {"text": "demo", "context": 32, "windows": 2}, "divergence": {}},
                "residency": "streamed",
                **content,
            }
        )
        results, cache = tmp_path / "results", tmp_path / "cache"
        arguments = ["run", recipe, "--results", results, "--cache", cache]
        monkeypatch.setattr("sys.argv", ["qharness", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capfd.readouterr()
        records = Store(results).read().records if results.exists() else ()
        return Ended(int(ended.value.code or 0), " ".join((printed.out + printed.err).split()), records)

    return run


@pytest.mark.parametrize(
    ("patch", "content", "status", "message", "advice"),
    [
        (NO_ROOM, {}, "failed", "no room for the states of suspended windows", "set TMPDIR to a folder on a larger"),
        pytest.param(
            *(SLOW_DISK, {"limits": {"time": "60s"}}, "unsupported"),
            *("its disk is too slow for the time limit", "raise the"),
            marks=pytest.mark.thorough,
        ),
        pytest.param(
            *(CUT_SHORT, {}, "failed", "it was cut short within", "fetch it again"), marks=pytest.mark.thorough
        ),
    ],
    ids=["no room", "slow disk", "cut short"],
)
def test_what_breaks_while_a_model_is_streamed_is_a_record_with_what_to_do(
    patch: str, content: dict[str, Any], status: str, message: str, advice: str, run: Run, tiny: Path
) -> None:
    ended = run(tiny, patch, **content)
    assert ended.code == 3, ended.output
    first = next(record for record in ended.records if record.spec.kind == "reference")
    assert first.status == status
    assert first.outcome.failure is not None
    assert message in first.outcome.failure.message
    assert advice in first.outcome.failure.message
    assert message in ended.output
    assert "Traceback" not in ended.output


@pytest.mark.thorough
def test_quantizing_from_a_disk_too_slow_is_a_record_with_what_to_do(run: Run, tiny: Path) -> None:
    measure = {"perplexity": {"text": "demo", "context": 32, "windows": 2}}
    rtn = {"rtn": {"bits": 4, "group_size": 32}}
    ended = run(tiny, SLOW_DISK, methods=["none", rtn], measure=measure, limits={"time": "60s"})
    (quantize,) = (record for record in ended.records if record.spec.kind == "quantize")
    assert quantize.status == "unsupported", ended.output
    assert "its disk is too slow for the time limit" in quantize.outcome.failure.message


def sharded(tiny: Path, folder: Path) -> Path:
    """The tiny model in two shards."""
    shutil.copytree(tiny, folder)
    whole = folder / "model.safetensors"
    tensors = load_file(whole)
    whole.unlink()
    names = sorted(tensors)
    index = {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file, metadata={"format": "pt"})
        index |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(f'{{"weight_map": {index!r}}}'.replace("'", '"'))
    return folder


def test_a_shard_that_is_missing_or_short_is_refused_before_the_first_run(run: Run, tiny: Path, tmp_path: Path) -> None:
    model = sharded(tiny, tmp_path / "model")
    shard = model / "model-00002-of-00002.safetensors"
    os.truncate(shard, shard.stat().st_size - 10)
    short = run(model)
    assert (short.code, list(short.records)) == (2, []), short.output
    assert "model-00002-of-00002.safetensors: not a whole safetensors file: it is cut short" in short.output
    shard.unlink()
    gone = run(model)
    assert (gone.code, list(gone.records)) == (2, []), gone.output
    assert "its index names weights that are not there: model-00002-of-00002.safetensors; fetch" in gone.output
