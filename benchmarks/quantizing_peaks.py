"""Peaks of quantizing from disk to disk, beside those that a plan expects: ``python benchmarks/quantizing_peaks.py``.

With ``--residency resident`` those of the same with the model in memory as a whole. bitsandbytes and torchao then
quantize while the model is loaded for a quality run: the peak is that up to the end of loading.

For each shape it writes random float32 weights in the shape of a Llama, plans a sweep with that residency and
quantizes by each method in a process of its own, as a sweep does. Prints for every run the planned peak, the largest
resident set of its phases, and their ratio: what docs/measurements/streaming.md records. Exits with 1, and says which,
if a run failed or took more than was planned for it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from streaming import write_model
from transformers import LlamaConfig

from harness.core.record import RunRecord
from harness.execution.executors import THIS_MACHINE, open_executor
from harness.execution.local import local_site
from harness.execution.sweep import sweep
from harness.planning.plan import PlannedRun, plan
from harness.recipe import load_recipe
from harness.storage.store import Store

HEAD_DIM = 64


@dataclass(frozen=True)
class Shape:
    """A model, and the calibration set that it is quantized with."""

    hidden: int
    inner: int
    layers: int
    vocabulary: int
    samples: int
    length: int

    @property
    def title(self) -> str:
        model = f"{self.layers} layers of {self.hidden} × {self.inner}, vocabulary {self.vocabulary}"
        return f"{model}; {self.samples} × {self.length} tokens"

    @property
    def config(self) -> LlamaConfig:
        return LlamaConfig(
            hidden_size=self.hidden,
            intermediate_size=self.inner,
            num_hidden_layers=self.layers,
            num_attention_heads=self.hidden // HEAD_DIM,
            num_key_value_heads=self.hidden // HEAD_DIM,
            vocab_size=self.vocabulary,
            max_position_embeddings=4096,
            bos_token_id=0,
            eos_token_id=1,
        )


SHAPES = {
    "single": Shape(512, 1408, 1, 4096, 8, 64),
    "small": Shape(512, 1408, 4, 4096, 8, 64),
    "wide": Shape(1536, 4096, 2, 4096, 8, 64),
    "deep": Shape(1024, 2816, 16, 4096, 8, 64),
    "vocabulary": Shape(1024, 2816, 2, 65536, 8, 64),
    "samples": Shape(512, 512, 1, 2048, 256, 128),
    "length": Shape(512, 512, 1, 2048, 16, 1024),
    "twelve": Shape(768, 2048, 12, 2048, 4, 64),
}
SLOW = frozenset({"awq", "autoround"})
"""Take many minutes where the others take one; they run if they are named."""
METHODS: Mapping[str, Mapping[str, Any]] = {
    "gptq": {},
    "awq": {},
    "autoround": {"iterations": 3},
    "llmc-gptq": {},
    "llmc-awq": {"grid": 3},
    "llmc-rtn": {},
    "llmc-int8": {"smoothquant": True},
    "rtn": {},
    "bnb-nf4": {},
    "bnb-int8": {},
    "int8": {},
    "torchao-nvfp4": {},
}
ON_LOAD = ("import", "quantize_on_load")
"""The phases of a run that quantizes while loading, up to the end of that."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=[name for name in METHODS if name not in SLOW])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--residency", choices=["streamed", "resident"], default="streamed")
    parser.add_argument("--phases", action="store_true", help="also the peak of each phase")
    asked = parser.parse_args()
    faults: list[str] = []
    print("| shape | method | planned (GB) | measured (GB) | planned / measured |\n| --- | --- | ---: | ---: | ---: |")
    for name in asked.shapes:
        with tempfile.TemporaryDirectory() as folder:
            for run, record in _quantized(SHAPES[name], asked, Path(folder)):
                faults += _show(SHAPES[name], run, record, asked.phases)
    for fault in faults:
        print(f"fault: {fault}")
    sys.exit(1 if faults else 0)


def _quantized(shape: Shape, asked: argparse.Namespace, place: Path) -> Iterator[tuple[PlannedRun, RunRecord]]:
    """Quantizing by each method, as it was planned and as it went."""
    write_model(shape.config, place / "model")
    content = {
        "name": "peaks",
        "models": [{"id": str(place / "model"), "label": "random"}],
        "methods": ["none", *({name: dict(METHODS[name])} for name in asked.methods)],
        "calibration": {"samples": shape.samples, "length": shape.length},
        "measure": {"perplexity": {"text": "demo", "context": 64, "windows": 1}, "memory": {}},
        "residency": asked.residency,
        "threads": asked.threads,
        "device": "cpu",
    }
    recipe = place / "recipe.json"
    recipe.write_text(json.dumps(content), encoding="utf-8")
    site = local_site(place / "cache")
    planned = plan(load_recipe(recipe), site)
    before = [run for run in planned if run.spec.kind == "calibrate"]
    with closing(open_executor(THIS_MACHINE, site)) as executor:
        for run in planned:
            if run.spec.kind == "quantize" or run.spec.quantizes_on_load:
                *_, record = sweep([*before, run], Store(place / "results"), executor, lambda event: None)
                yield run, record


def _show(shape: Shape, run: PlannedRun, record: RunRecord, phases: bool) -> list[str]:
    """Prints a row; returns what is wrong with it."""
    method = record.spec.variant.method.name
    if record.status != "ok":
        return [f"{shape.title}: {method}: {record.outcome.failure}"]
    peaks = {
        str(each.protocol["phase"]): max(each.values)
        for each in record.outcome.measurements
        if each.metric == "peak_memory_bytes" and (record.spec.job.quantizes or each.protocol["phase"] in ON_LOAD)
    }
    measured, expected = max(peaks.values()), run.peak_bytes or 0
    print(
        f"| {shape.title} | `{method}` | {expected / 1e9:.2f} | {measured / 1e9:.2f} | {expected / measured:.2f} |",
        flush=True,
    )
    if phases:
        print("  ", {phase: round(size / 1e6) for phase, size in peaks.items()}, f"{record.wall_s:.0f} s", flush=True)
    return [f"{shape.title}: {method}: took more than planned"] if measured > expected else []


if __name__ == "__main__":
    main()
